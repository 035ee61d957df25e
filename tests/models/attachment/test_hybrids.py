"""Tiny hybrids of attention and Mamba-2: both kinds in one trace, and a word about what else mixes positions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

import symground as sg
from benchmarks.common.twins import twins
from symground.data import Corpus

SIZES = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 8}
_FALCON = {
    **_MAMBA, "num_hidden_layers": 2, "mamba_d_ssm": 64, "lm_head_multiplier": 0.3, "ssm_in_multiplier": 1.5,
    "ssm_out_multiplier": 0.7, "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
}  # fmt: skip
#: The Mamba-2 of layers that have attention too is numbered on after all layers.
_BOTH = {0: "attention", 1: "attention", 2: "mamba2", 3: "mamba2"}
#: name → (class, settings, kind of each traced layer by its number)
HYBRIDS: dict[str, tuple[str, dict[str, Any], dict[int, str]]] = {
    "Bamba": ("Bamba", {**_MAMBA, "num_hidden_layers": 2, "attn_layer_indices": [1]}, {0: "mamba2", 1: "attention"}),
    "Granite-hybrid": (
        "GraniteMoeHybrid",
        {**_MAMBA, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"],
         "num_local_experts": 4, "num_experts_per_tok": 1, "shared_intermediate_size": 16},
        {0: "mamba2", 1: "attention"},
    ),
    "Nemotron-H": (
        "NemotronH",
        {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "mamba_num_heads": 8,
         "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8, "chunk_size": 8, "head_dim": 8,
         "n_routed_experts": 4, "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
         "num_experts_per_tok": 1},
        {0: "mamba2", 2: "attention"},
    ),
    "Zamba2": (
        "Zamba2",
        {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "hybrid", "mamba"], "num_key_value_heads": 4,
         "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_d_state": 8, "mamba_ngroups": 2, "num_mem_blocks": 1,
         "use_mem_rope": True, "chunk_size": 8},
        {0: "mamba2", 1: "attention", 2: "attention", 3: "mamba2", 5: "mamba2", 6: "mamba2"},
    ),
    "Falcon-H1": ("FalconH1", {**_FALCON, "mamba_rms_norm": False}, _BOTH),
    "Falcon-H1, norm": ("FalconH1", {**_FALCON, "mamba_rms_norm": True, "mamba_norm_before_gate": False}, _BOTH),
    "Falcon-H1, norm before gate": (
        "FalconH1", {**_FALCON, "mamba_rms_norm": True, "mamba_norm_before_gate": True}, _BOTH,
    ),
}  # fmt: skip
#: Gated DeltaNet's sizes.
_DELTA = {
    "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
}  # fmt: skip
_EXPERTS = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts_per_tok": 1}
#: name → (class, settings, what is not traced)
OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "Jamba": (
        "Jamba",
        {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
         "expert_layer_period": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
        "JambaMambaMixer",
    ),
    "LFM2": ("Lfm2", {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}, "Lfm2ShortConv"),
    "MiniMax": (
        "MiniMax",
        {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2,
         "head_dim": 8},
        "MiniMaxLightningAttention",
    ),
    "OLMo-hybrid": ("OlmoHybrid", _DELTA, "OlmoHybridGatedDeltaNet"),
    "Qwen3.5": ("Qwen3_5", {**_DELTA, "head_dim": 8}, "Qwen3_5GatedDeltaNet"),
    "Qwen3-Next": ("Qwen3Next", {**_DELTA, **_EXPERTS, "head_dim": 8, "num_experts": 4}, "Qwen3NextGatedDeltaNet"),
    "RecurrentGemma": (
        "RecurrentGemma", {"num_hidden_layers": 3, "lru_width": 32, "head_dim": 8, "attention_window_size": 4},
        "RecurrentGemmaRglru",
    ),
}  # fmt: skip
TARGETS = torch.tensor([5, 7])


def pair(name: str, settings: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedModel]:
    config = getattr(transformers, f"{name.replace('Qwen3_5', 'Qwen3_5Text')}Config")(**{**SIZES, **settings})
    kind = getattr(transformers, f"{name}ForCausalLM")
    return twins(kind, config)


def ids_and_mask(side: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    ids, mask = torch.randint(1, 101, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    return (ids * mask, mask) if side == "left" else ((ids * mask).flip(1), mask.flip(1))


@pytest.fixture(params=HYBRIDS, ids=str)
def models(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel, dict[int, str]]:
    name, settings, kinds = HYBRIDS[request.param]
    eager, twin = pair(name, settings)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        ours = sg.attach(twin)
    assert not said
    return eager, ours, kinds


@pytest.mark.parametrize("side", ["left", "right"])
def test_both_kinds_are_traced_and_the_attention_is_eagers(
    models: tuple[PreTrainedModel, PreTrainedModel, dict[int, str]], side: str
) -> None:
    eager, ours, kinds = models
    ids, mask = ids_and_mask(side)
    out = eager(ids, attention_mask=mask, output_attentions=True, use_cache=False)
    valid, p = mask.bool(), (mask * torch.arange(9)).argmax(-1)
    with torch.no_grad():
        logits = ours(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(logits[valid], out.logits[valid], atol=1e-4, rtol=1e-4)
    surprisal = -out.logits[torch.arange(2), p].log_softmax(-1)[torch.arange(2), TARGETS]
    attentions = [a for a in out.attentions if a is not None]
    signed = [a * g for a, g in zip(attentions, torch.autograd.grad(surprisal.sum(), attentions), strict=True)]
    traced = sg.trace(ours, ids, TARGETS, mask, rows=True)
    assert dict(zip(traced.layer.values.tolist(), traced.kind.values.tolist(), strict=True)) == kinds
    assert traced.attrs["untraced"] == ""
    found = traced.isel(layer=traced.kind.values == "attention")
    seen = valid[:, None, :, None].numpy()
    wanted = torch.stack([s.sum(1).abs() for s in signed], 1).detach().numpy()
    np.testing.assert_allclose(found.saliency * seen, wanted * seen, atol=1e-5, rtol=1e-3)
    heads = wanted.shape[1], attentions[0].shape[1]
    rows = torch.stack([torch.stack([s[i, :, p[i]] for s in signed]) for i in range(2)]).detach()
    np.testing.assert_allclose(found.rows[:, :, : heads[1]], rows, atol=1e-5, rtol=1e-3)


def test_a_mamba_layers_saliency_is_that_of_its_matrix(
    models: tuple[PreTrainedModel, PreTrainedModel, dict[int, str]],
) -> None:
    """Σ_h S_h = Σ_h M_h ∘ (dY_h X_hᵀ), with M from the recurrence, one step at a time."""
    _, ours, kinds = models
    ids, _ = ids_and_mask("left")
    layer = max(number for number, kind in kinds.items() if kind == "mamba2")
    mixer = next(m for m in sg.models.mixers(ours) if m.layer == layer).module
    given: list[Tensor] = []
    taken: list[Tensor] = []
    no_norm = isinstance(mixer.norm, torch.nn.Identity)  # then the heads are gated without a norm
    reads_heads = mixer.out_proj if no_norm else mixer.norm
    hooks = [
        mixer.register_forward_pre_hook(lambda _, args, kw: given.append((args or (kw["hidden_states"],))[0]),
                                        with_kwargs=True),
        reads_heads.register_forward_pre_hook(lambda _, args: (taken.append(args[0].requires_grad_()), None)[1]),
    ]  # fmt: skip
    logits = ours(ids, use_cache=False).logits[:, -1]
    for hook in hooks:
        hook.remove()
    surprisal = -logits.log_softmax(-1)[torch.arange(2), TARGETS]
    heads, groups = mixer.num_heads, mixer.n_groups
    with torch.no_grad():
        projected = mixer.in_proj(given[0] * getattr(mixer, "ssm_in_multiplier", 1)) * getattr(mixer, "mup_vector", 1)
        z, xbc, dt = projected.split([mixer.intermediate_size, mixer.conv_dim, heads], -1)
    grad = torch.autograd.grad(surprisal.sum(), taken[0])[0]
    grad = (grad * torch.nn.functional.silu(z) if no_norm else grad).unflatten(-1, (heads, -1))  # [B,T,H,P]
    with torch.no_grad():
        xbc = torch.nn.functional.silu(mixer.conv1d(xbc.transpose(1, 2))[..., :9]).transpose(1, 2)
        x, b, c = xbc.split([mixer.intermediate_size, *[groups * mixer.ssm_state_size] * 2], -1)
        dt = torch.nn.functional.softplus(dt + mixer.dt_bias).clamp(*mixer.time_step_limit)
        decay = (dt * -mixer.A_log.exp()).exp()
        b, c = (z.unflatten(-1, (groups, -1)).repeat_interleave(heads // groups, 2) for z in (b, c))
        x, total = x.unflatten(-1, (heads, -1)), torch.zeros(2, 9, 9)
        for i in range(9):
            for j in range(i + 1):
                m = (c[:, i] * b[:, j]).sum(-1) * dt[:, j] * decay[:, j + 1 : i + 1].prod(1)
                total[:, i, j] = (m * (grad[:, i] * x[:, j]).sum(-1)).sum(-1)
    traced = sg.trace(ours, ids, TARGETS).sel(layer=layer)
    np.testing.assert_allclose(traced.saliency, total.abs(), atol=1e-6, rtol=1e-3)


def test_heads_of_both_kinds_are_silenced_found_swept_and_generated_with(
    models: tuple[PreTrainedModel, PreTrainedModel, dict[int, str]],
) -> None:
    eager, ours, kinds = models
    ids, mask = ids_and_mask("left")
    made = [m.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False) for m in (eager, ours)]
    assert made[0].tolist() == made[1].tolist()
    before = ours(ids, use_cache=False).logits
    for layer in kinds:
        with sg.ablate(ours, [(layer, 1)]), torch.no_grad():
            after = ours(ids, use_cache=False).logits
        assert (after - before).abs().max() > 1e-3
    with sg.ablate(ours, [(layer, 1) for layer in kinds]), torch.no_grad():
        one = ids[1:]
        found = ours.generate(one, attention_mask=torch.ones_like(one), max_new_tokens=5, do_sample=False)
        for _ in range(5):
            one = torch.cat([one, ours(one, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert found.tolist() == one.tolist()
    sg.detach(ours)
    assert not any("symground" in type(module).__module__ for module in ours.modules())
    torch.testing.assert_close(ours(ids, use_cache=False).logits, before)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_traced_is_named(name: str, tmp_path: Path) -> None:
    kind, settings, untraced = OTHERS[name]
    eager, twin = pair(kind, settings)
    with pytest.warns(UserWarning, match=f"also mixes positions by {untraced}, which symground does not trace"):
        ours = sg.attach(twin)
    ids, _ = ids_and_mask("left")
    traced = sg.trace(ours, ids, TARGETS, groups={"first": torch.arange(9).expand(2, -1) == 0})
    assert set(traced.kind.values) == {"attention"}
    traced.to_netcdf(tmp_path / "trace.nc")  # whose attributes are no lists of words
    for found in (traced, xr.load_dataset(tmp_path / "trace.nc")):
        assert found.attrs["untraced"] == untraced
    out = eager(ids, use_cache=False, output_attentions=True)
    surprisal = -out.logits[:, -1].log_softmax(-1)[torch.arange(2), TARGETS]
    np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4, rtol=1e-4)
    attentions = [a for a in out.attentions if a is not None and a.shape[1:] == (4, 9, 9)]
    gradients = torch.autograd.grad(surprisal.sum(), attentions)
    signed = torch.stack([(a * g).sum(1).abs() for a, g in zip(attentions, gradients, strict=True)], 1)
    np.testing.assert_allclose(traced.saliency, signed.detach(), atol=1e-5, rtol=1e-3)


class Running(torch.nn.Module):
    """A mean over all tokens so far: it mixes positions, and its name does not say so."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        mixed: Tensor = self.inner(x) + x.cumsum(1) / count
        return mixed


def test_layers_of_unknown_names_that_mix_positions_are_noticed() -> None:
    config = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 2})
    model = transformers.LlamaForCausalLM(config).eval()
    model.model.layers[0].mlp = Running(model.model.layers[0].mlp)
    with pytest.warns(UserWarning, match="also mixes positions by layers that symground does not know"):
        sg.attach(model)
    ids, _ = ids_and_mask("left")
    assert sg.trace(model, ids, TARGETS).attrs["untraced"] == "layers that symground does not know"


def test_padding_that_a_layer_reads_is_refused() -> None:
    """RG-LRU carries padding on the left into the text; padding on the right is not read."""
    kind, settings, untraced = OTHERS["RecurrentGemma"]
    with pytest.warns(UserWarning, match="also mixes positions by"):
        ours = sg.attach(pair(kind, settings)[1])
    ids, mask = ids_and_mask("left")
    with pytest.raises(ValueError, match=f"reads padding on the left by its {untraced}"):
        sg.trace(ours, ids, TARGETS, mask)
    ids, mask = ids_and_mask("right")
    padded, alone = sg.trace(ours, ids, TARGETS, mask), sg.trace(ours, ids[:1, :6], TARGETS[:1])
    np.testing.assert_allclose(padded.surprisal[0], alone.surprisal[0], atol=1e-5)


def test_probes_ask_both_kinds_of_a_layer(corpus: Corpus) -> None:
    """Heads are selected, silenced and swept under their numbers; the mean layer is that of the model's layers."""
    _, settings, kinds = HYBRIDS["Falcon-H1"]
    config = transformers.FalconH1Config(**{**SIZES, **settings, "vocab_size": len(corpus.tokenizer)})
    torch.manual_seed(0)
    model = sg.attach(transformers.FalconH1ForCausalLM(config).eval())
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 1])
    done = sg.intervene(model, probes, threshold=1e-9, draws=1)
    assert (done.mean_layer.dropna() < 2).all()
    swept = sg.sweep_heads(model, probes, method="exact", per_example=True)
    assert dict(zip(swept.layer.values.tolist(), swept.kind.values.tolist(), strict=True)) == kinds
    matched = probes.matched()
    length = int(matched.prediction[0]) + 1

    def surprisal() -> Tensor:
        with torch.no_grad():
            logits = model(matched.input_ids[:1, :length], use_cache=False).logits[0, -1].double()
        return -logits.log_softmax(-1)[matched.targets[0]]

    before, mixers = surprisal(), model.model.layers[1]
    for layer, module, columns in ((1, mixers.self_attn.o_proj, 8), (3, mixers.mamba.out_proj, 8)):

        def cut(_: Any, args: Any, columns: int = columns) -> Any:
            x = args[0].clone()
            x[..., columns : 2 * columns] = 0
            return (x,)

        hook = module.register_forward_pre_hook(cut)
        effect = surprisal() - before
        hook.remove()
        np.testing.assert_allclose(swept.sel(layer=layer, head=1)[0], effect, atol=1e-5, rtol=1e-3)
