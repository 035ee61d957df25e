"""Mamba-2 weights converted to and from the mamba-ssm package's format."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel, Mamba2Config, Mamba2ForCausalLM

import symground as sg
from symground.models.loading.mamba_ssm import from_mamba_ssm, to_mamba_ssm

IDS = torch.randint(5, 96, (2, 11), generator=torch.Generator().manual_seed(0))

#: The package's configuration of a small Mamba-2 with two layers.
CONFIG: dict[str, Any] = {
    "d_model": 16, "d_intermediate": 0, "n_layer": 2, "vocab_size": 90, "attn_layer_idx": [], "attn_cfg": {},
    "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 4}, "rms_norm": True, "residual_in_fp32": True,
    "fused_add_norm": True, "pad_vocab_size_multiple": 16, "tie_embeddings": True,
}  # fmt: skip


def weights(config: dict[str, Any] = CONFIG) -> dict[str, torch.Tensor]:
    """Weights with the package's names and shapes: W = 32, C = 32 + 2·8, H = 8."""
    g = torch.Generator().manual_seed(1)
    shapes = {"backbone.embedding.weight": (96, 16), "backbone.norm_f.weight": (16,), "lm_head.weight": (96, 16)}
    for i in range(config["n_layer"]):
        at = f"backbone.layers.{i}."
        shapes |= {
            f"{at}norm.weight": (16,), f"{at}mixer.dt_bias": (8,), f"{at}mixer.A_log": (8,), f"{at}mixer.D": (8,),
            f"{at}mixer.in_proj.weight": (2 * 32 + 2 * 8 + 8, 16), f"{at}mixer.conv1d.weight": (48, 1, 4),
            f"{at}mixer.conv1d.bias": (48,), f"{at}mixer.norm.weight": (32,), f"{at}mixer.out_proj.weight": (16, 32),
        }  # fmt: skip
    found = {name: torch.randn(shape, generator=g) * 0.3 for name, shape in shapes.items()}
    found["lm_head.weight"] = found["backbone.embedding.weight"]
    return found


def test_there_and_back() -> None:
    model = from_mamba_ssm(weights(), CONFIG)
    assert model.config.vocab_size == 96
    assert (model.config.num_heads, model.config.n_groups, model.config.chunk_size) == (8, 1, 256)
    assert model.lm_head.weight is model.backbone.embeddings.weight
    found, config = to_mamba_ssm(model)
    for name, value in weights().items():
        assert torch.equal(found[name], value), name
    assert found.keys() == weights().keys()
    again = from_mamba_ssm(found, config)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert config["ssm_cfg"]["layer"] == "Mamba2"
    json.dumps(config)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_folder_of_the_package_is_loaded(tmp_path: Path, form: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(FileNotFoundError, match="has no weights"):
        sg.load(tmp_path)
    given = {name: value.clone() for name, value in weights().items()}
    if form == "bin":
        torch.save(given, tmp_path / "pytorch_model.bin")
    else:
        save_file(given, tmp_path / "model.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(sg.load(tmp_path)(IDS).logits, from_mamba_ssm(weights(), CONFIG)(IDS).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssm_cfg": {}}, "layer 'Mamba2', got 'Mamba1'"),
        ({"attn_layer_idx": [1]}, r"attn_layer_idx \[\], got \[1\]"),
        ({"d_intermediate": 64}, "d_intermediate 0, got 64"),
        ({"rms_norm": False}, "rms_norm True, got False"),
        (
            {"ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 4, "norm_before_gate": True}},
            "norm_before_gate False",
        ),
        ({"ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 4, "new": 1}}, "not known here, got new"),
        ({"n_layer": 3}, "missing"),
        ({"n_layer": 1}, "unknown"),
    ],
)
def test_other_architectures_and_other_weights_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_mamba_ssm(weights(), {**CONFIG, **changes})


def test_what_the_package_cannot_hold_is_refused(gpt2: GPT2LMHeadModel) -> None:
    with pytest.raises(ValueError, match="expected a Mamba2ForCausalLM, got GPT2LMHeadModel"):
        to_mamba_ssm(gpt2)
    small = {"hidden_size": 8, "num_heads": 4, "head_dim": 4, "n_groups": 1, "num_hidden_layers": 1, "vocab_size": 20}
    with pytest.raises(ValueError, match="hidden_act 'silu'"):
        to_mamba_ssm(Mamba2ForCausalLM(Mamba2Config(**small, hidden_act="gelu")))
    with pytest.raises(ValueError, match="layer_norm_epsilon 1e-5"):
        to_mamba_ssm(Mamba2ForCausalLM(Mamba2Config(**small, layer_norm_epsilon=1e-6)))


@pytest.mark.skipif(
    not (find_spec("mamba_ssm") and torch.cuda.is_available()), reason="needs the mamba-ssm package and a GPU"
)
def test_logits_are_those_of_the_package() -> None:
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    model = from_mamba_ssm(weights(), CONFIG)
    found, config = to_mamba_ssm(model)
    theirs = MambaLMHeadModel(MambaConfig(**config), device="cuda")
    theirs.load_state_dict(found)
    with torch.no_grad():
        logits = theirs(IDS.cuda()).logits.cpu()
        torch.testing.assert_close(logits, model(IDS).logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(logits, model.cuda()(IDS.cuda()).logits.cpu(), rtol=1e-3, atol=1e-3)
