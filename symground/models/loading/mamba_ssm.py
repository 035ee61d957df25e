"""Mamba-2 weights to and from the mamba-ssm package. Its `MambaLMHeadModel` has the same layers under other names.

The package is not imported, because it needs a GPU; its weights do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, PreTrainedModel

from symground.files import read_json
from symground.models.attachment import attach

#: Argument of mamba-ssm → (argument of transformers' configuration, default of mamba-ssm).
_SIZES = {
    "d_state": ("state_size", 128), "d_conv": ("conv_kernel", 4), "expand": ("expand", 2), "headdim": ("head_dim", 64),
    "ngroups": ("n_groups", 1), "bias": ("use_bias", False), "conv_bias": ("use_conv_bias", True),
    "chunk_size": ("chunk_size", 256), "dt_limit": ("time_step_limit", (0.0, float("inf"))),
}  # fmt: skip
#: Options of mamba-ssm that transformers lacks → the only value that both support.
_ONLY = {"rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False, "d_ssm": None}
#: Options that do not affect a loaded model.
_INITIAL = {"layer", "A_init_range", "dt_min", "dt_max", "dt_init_floor", "conv_init", "use_mem_eff_path"}
_EMBEDDING, _OURS = "backbone.embedding.weight", "backbone.embeddings.weight"


def is_mamba_ssm(folder: Path) -> bool:
    """Whether a folder contains a model that mamba-ssm saved."""
    path = folder / "config.json"
    return path.is_file() and "ssm_cfg" in read_json(path)


def load_mamba_ssm(folder: str | Path) -> Mamba2ForCausalLM:
    """The attached model that mamba-ssm saved in a folder: config.json, and model.safetensors or pytorch_model.bin.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: as :func:`from_mamba_ssm`.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if (folder / "model.safetensors").is_file():
        return from_mamba_ssm(load_file(folder / "model.safetensors"), config)
    if (folder / "pytorch_model.bin").is_file():
        weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        return from_mamba_ssm(weights, config)
    raise FileNotFoundError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin is there")


def from_mamba_ssm(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Mamba2ForCausalLM:
    """The attached Mamba-2 equal to ``MambaLMHeadModel(MambaConfig(**config))`` with these weights.

    Raises:
        ValueError: the configuration has another architecture (Mamba-1, attention or MLP layers, LayerNorm), or the
            weights do not belong to it.
    """
    mixer = dict(config.get("ssm_cfg") or {})
    if mixer.get("layer") != "Mamba2":
        raise ValueError(f"config: expected ssm_cfg with layer 'Mamba2', got {mixer.get('layer', 'Mamba1')!r}")
    for name, wanted in (("attn_layer_idx", []), ("d_intermediate", 0), ("rms_norm", True)):
        if config.get(name, wanted) not in (wanted, None):
            raise ValueError(f"config: expected {name} {wanted!r}, got {config[name]!r}")
    for name, shared in _ONLY.items():
        if mixer.get(name, shared) != shared:
            raise ValueError(f"config: expected ssm_cfg with {name} {shared!r}, got {mixer[name]!r}")
    unknown = set(mixer) - set(_SIZES) - set(_ONLY) - _INITIAL
    if unknown:
        raise ValueError(
            f"config: expected nothing in ssm_cfg that is not known here, got {', '.join(sorted(unknown))}"
        )
    sizes = {ours: mixer.get(theirs, default) for theirs, (ours, default) in _SIZES.items()}
    sizes["time_step_limit"] = tuple(sizes["time_step_limit"])
    if _EMBEDDING not in weights:
        raise ValueError(f"weights: expected {_EMBEDDING}, got {', '.join(sorted(weights)[:3])}, …")
    found = Mamba2Config(
        vocab_size=len(weights[_EMBEDDING]),  # mamba-ssm pads the vocabulary to a multiple
        hidden_size=config["d_model"],
        num_hidden_layers=config["n_layer"],
        num_heads=int(sizes["expand"]) * config["d_model"] // int(sizes["head_dim"]),
        residual_in_fp32=config.get("residual_in_fp32", True),
        tie_word_embeddings=config.get("tie_embeddings", True),
        **sizes,
    )
    model: Mamba2ForCausalLM = Mamba2ForCausalLM(found)
    named = {_OURS if name == _EMBEDDING else name: value for name, value in weights.items()}
    lacking = model.load_state_dict(named, strict=False)
    missing = [name for name in lacking.missing_keys if name != "lm_head.weight" or not found.tie_word_embeddings]
    if missing or lacking.unexpected_keys:
        raise ValueError(f"weights: expected those of config; missing {missing}, unknown {lacking.unexpected_keys}")
    model.tie_weights()
    attach(model)
    model.eval()
    return model


def to_mamba_ssm(model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the configuration for ``MambaLMHeadModel(MambaConfig(**config)).load_state_dict(weights)``.

    Raises:
        ValueError: the model is not a Mamba-2, or mamba-ssm does not have its activation or norm.
    """
    if not isinstance(model, Mamba2ForCausalLM):
        raise ValueError(f"model: expected a Mamba2ForCausalLM, got {type(model).__name__}")
    config = model.config
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(
            f"model: expected hidden_act 'silu', which is all that mamba-ssm has; got {config.hidden_act!r}"
        )
    if config.layer_norm_epsilon != 1e-5:
        raise ValueError(
            f"model: expected layer_norm_epsilon 1e-5, as mamba-ssm has it; got {config.layer_norm_epsilon}"
        )
    weights = {_EMBEDDING if name == _OURS else name: value for name, value in model.state_dict().items()}
    found = {
        "d_model": config.hidden_size,
        "d_intermediate": 0,
        "n_layer": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
        "ssm_cfg": {"layer": "Mamba2", **{theirs: getattr(config, ours) for theirs, (ours, _) in _SIZES.items()}},
        "attn_layer_idx": [],
        "rms_norm": True,
        "residual_in_fp32": config.residual_in_fp32,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": config.tie_word_embeddings,
    }
    return weights, found
