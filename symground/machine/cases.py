"""A small call of each op, in float64, in the forms that take different ways through its implementations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground import ops

_B, _H, _T, _D = 2, 4, 130, 64  # crosses a tile of 64 and one of 128


class Case(NamedTuple):
    """Arguments of an op by name."""

    op: str
    form: str
    floats: dict[str, Tensor]
    """They are rounded to the dtype that is checked."""
    others: dict[str, Any]
    leaves: tuple[str, ...] = ()
    """Those of ``floats`` whose gradients are compared."""


def cases() -> Iterator[Case]:
    """In a fixed order; numbers are drawn from fixed seeds."""
    torch.manual_seed(0)
    yield from _attention()
    yield from _ssd()
    yield from _vocabulary()
    yield from _rest()


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _attention() -> Iterator[Case]:
    q, grad_out = _normal(_B, _H, _T, _D), _normal(_B, _H, _T, _D)
    k, v = _normal(_B, _H // 2, _T, _D), _normal(_B, _H // 2, _T, _D)
    ids = torch.arange(_T).expand(_B, -1) % 4 - 1
    qkv, probes = {"q": q, "k": k, "v": v}, {"query_groups": ids, "key_groups": ids}
    asked = {"saliency_probe": (_B, _T, _T), "flow_probe": (_B, _H, 3, 3)}
    forms: dict[str, dict[str, Any]] = {
        "causal": {}, "all keys": {"causal": False}, "window": {"window": 40},
        "padding": {"key_range": torch.tensor([[0, _T - 7], [9, _T]])},
        "gate": {"gate": torch.tensor([1.0, 0.0, 0.5, 2.0])},
    }  # fmt: skip
    for form, how in forms.items():
        yield Case("attention", form, qkv, how, ("q", "k", "v"))
        yield Case("attention", f"{form}, with probes", qkv, {**how, **probes, **asked}, ("q", "k", "v"))
    shorter = {"q": q[:, :, -20:], "k": k, "v": v}
    yield Case("attention", "fewer queries than keys", shorter, {}, ("q", "k", "v"))
    for form in ("causal", "padding"):
        how = forms[form]
        after = {**qkv, "grad_out": grad_out, "lse": ops.attention(q, k, v, **how, impl="reference")[1]}
        yield Case("attention_saliency", form, after, {**how, "signed": True})
        rows = torch.tensor([[_T - 1, 3], [64, 70]])
        yield Case("attention_saliency_rows", form, after, {**how, "rows": rows})
        yield Case("attention_flow", form, after, {**how, **probes, "num_query_groups": 3, "num_key_groups": 3})

    groups = {**probes, "num_query_groups": 3, "num_key_groups": 3}
    for form in ("causal", "window", "padding"):
        how = forms[form]
        read = {"q": q, "k": k, "lse": ops.attention(q, k, v, **how, impl="reference")[1]}
        yield Case("attention_rows", form, read, {**how, "rows": torch.tensor([[_T - 1, 3], [64, 70]])}, ("q", "k"))
        yield Case("attention_mass", form, read, {**how, **groups}, ("q", "k"))
        yield Case("attention_received", form, read, how, ("q", "k"))
        yield Case("attention_summary", form, read, how, ("q", "k"))
        yield Case("attention_pooled", form, read, {**how, "block": 16})
        yield Case("attention_topk", form, read, {**how, "count": 4})


def _ssd() -> Iterator[Case]:
    heads, state, size = 4, 32, 32
    scan = {
        "x": _normal(_B, _T, heads, size), "dt": torch.rand(_B, _T, heads, dtype=torch.float64),
        "A": -torch.rand(heads, dtype=torch.float64) - 0.1, "B": _normal(_B, _T, 2, state),
        "C": _normal(_B, _T, 2, state),
    }  # fmt: skip
    bounds, ids = torch.tensor([[0, _T - 7], [9, _T]]), torch.arange(_T).expand(_B, -1) % 4 - 1
    leaves = tuple(scan)
    yield Case("ssd", "whole", scan, {"return_state": True}, leaves)
    yield Case("ssd", "padding", scan, {"key_range": bounds, "saliency_probe": (_B, _T, _T)}, leaves)
    after = {**scan, "grad_y": _normal(_B, _T, heads, size)}
    yield Case("ssd_saliency", "whole", after, {"signed": True})
    groups = {"query_groups": ids, "key_groups": ids, "num_query_groups": 3, "num_key_groups": 3}
    yield Case("ssd_flow", "whole", after, groups)
    steps = {name: x for name, x in scan.items() if name != "x"}
    yield Case("ssd_rows", "padding", steps, {"key_range": bounds, "rows": torch.tensor([[_T - 1, 3], [64, 70]])})
    yield Case("ssd_mass", "padding", steps, {**groups, "key_range": bounds})
    yield Case("ssd_received", "padding", steps, {"key_range": bounds})


def _vocabulary() -> Iterator[Case]:
    hidden, weight, bias = _normal(70, _D), _normal(500, _D) / 8, _normal(500)
    head = {"hidden": hidden, "weight": weight, "bias": bias}
    yield Case("candidate_surprisal", "shared", head, {"candidates": torch.tensor([1, 499, 7])}, tuple(head))
    yield Case("candidate_surprisal", "by row", head, {"candidates": torch.arange(140).view(70, 2)}, tuple(head))
    targets = torch.arange(70).masked_fill(torch.arange(70) % 5 == 0, -100)
    yield Case("linear_cross_entropy", "mean", head, {"targets": targets}, tuple(head))
    lens = {**head, "hidden": _normal(2, 70, _D)}
    how = {"translators": None, "norm": torch.tanh, "candidates": torch.tensor([1, 499])}
    yield Case("lens_surprisal", "logit lens", lens, how, ("hidden", "weight"))


def _rest() -> Iterator[Case]:
    channels, heads, state = 40, 4, 4
    x, weight, bias = _normal(_B, _T, channels), _normal(channels, 4), _normal(channels)
    yield Case("causal_conv1d", "silu", {"x": x, "weight": weight, "bias": bias}, {}, ("x", "weight", "bias"))
    layer = {
        "projected": _normal(_B, _T, 2 * 32 + 2 * state + heads), "conv_weight": _normal(channels, 4),
        "conv_bias": _normal(channels), "dt_bias": _normal(heads), "A_log": _normal(heads), "D": _normal(heads),
        "norm_weight": _normal(32),
    }  # fmt: skip
    yield Case("mamba2_inner", "layer", layer, {}, tuple(layer))
    blocks, gate = _normal(_B, _T, _H, _D), torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    yield Case("gate_heads", "fill", {"x": blocks, "gate": gate, "fill": _normal(_D)}, {}, ("x", "gate", "fill"))
