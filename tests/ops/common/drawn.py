"""A table of all public ops, with valid arguments for each, drawn from a seed in all sizes, dtypes and layouts.

`draw(op, seed)` gives a `Case`; `call` calls the op with an implementation; `expected` gives the oracle's results and
gradients in float64. A test of one kind of fault is a loop over this table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from symground import ops
from symground.ops.common import extension
from tests.ops.common.drawing import Draw
from tests.ops.common.oracles import ORACLES, Found, flow_of, norm

OPS = tuple(ORACLES)
#: The ops whose results have gradients; the other ops compute gradients themselves.
DIFFERENTIABLE = (
    "attention", "ssd", "candidate_surprisal", "linear_cross_entropy", "lens_surprisal", "causal_conv1d",
    "mamba2_inner", "gate_heads", "attention_rows", "attention_mass", "attention_received", "attention_summary",
)  # fmt: skip


def implementations(op: str) -> list[str]:
    """The names that ``impl`` takes for an op, from its family's table."""
    return [name for name, of in sys.modules[getattr(ops, op).__module__].IMPLEMENTATIONS.items() if hasattr(of, op)]


def on_a_cpu(op: str) -> list[str]:
    """Those that run on any CPU; "plain" is "cpu" without the extension."""
    return [name for name in ("reference", "cpu", "plain", "torch", "parts") if name in (*implementations(op), "plain")]


class Case(NamedTuple):
    op: str
    given: dict[str, Any]
    """Arguments of the op by name; the lens's two translator tensors have names of their own."""
    leaves: tuple[str, ...]
    """The floating-point tensors that have a gradient, including probes."""

    def __repr__(self) -> str:
        def short(x: Any) -> str:
            if not isinstance(x, Tensor):
                return repr(x)
            return f"{str(x.dtype)[6:]}{list(x.shape)} strides {x.stride()}{' negated' if x.is_neg() else ''}"

        return f"{self.op}({', '.join(f'{name}={short(x)}' for name, x in self.given.items())})"


def draw(
    op: str,
    seed: int,
    *,
    zeros: float = 0.0,
    layouts: bool = True,
    dtype: torch.dtype | None = None,
    wide: bool = False,
) -> Case:
    """A valid call.

    ``zeros``: how often a size is 0. ``wide``: heads of at least 16 and few positions, for Triton's interpreter.
    """
    return _DRAW[op](Draw(seed, zeros, layouts, dtype, wide))


def _form(d: Draw, batch: int, heads: int, keys: int) -> dict[str, Any]:
    causal = d.one(True, True, False, np.bool_(True))
    numbers = (None, 0.7, 1, np.float32(0.3), np.float64(-0.2), np.int64(1), 0)
    gate = d.maybe(lambda: _gate(d, *d.one((heads,), (batch, heads))))
    return {
        "causal": causal, "scale": d.one(*numbers), "key_range": d.ranges(batch, keys), "gate": gate,
        "window": d.one(None, 1, 3, np.int32(5), 64, 2**63 - 1) if causal else None,
    }  # fmt: skip


def _more(d: Draw, batch: int, heads: int, queries: int, keys: int) -> dict[str, Any]:
    """What the scores and masks of some of today's models have beside."""
    found: dict[str, Any] = {"softcap": d.one(None, None, 0.5, np.float32(3), 50)}
    found |= {name: d.maybe(lambda: d.normal(heads, dtype=d.other())) for name in ("sink", "slopes")}
    if queries <= keys:
        found["segments"] = d.maybe(lambda: d.ids(-2 if d.rng.random() < 0.5 else 0, 3, batch, keys).sort(-1).values)
        found["blocks"] = d.maybe(lambda: d.ids(-1, 2, batch, keys))
    return found


def _gate(d: Draw, *shape: int) -> Tensor:
    x = torch.tensor([0.0, 1.0, 0.4, -2.0])[torch.randint(4, shape, generator=d.generator)]
    return d.laid(x.to(d.one(torch.float32, d.dtype)))


def _heads(d: Draw) -> dict[str, Any]:
    batch, key_heads, share = d.size(3), d.rng.randint(1, 2), d.size(3)
    queries, keys = d.length(), d.length()
    if d.rng.random() < 0.4:
        keys = queries
    size = d.one(16, 24) if d.wide else d.one(1, 2, 3, 8, 16)
    heads, of_value = key_heads * share, size
    more: dict[str, Any] = {}
    if d.rng.random() < 0.5:
        of_value, more = d.one(size, 1, 5, 16), _more(d, batch, heads, queries, keys)
    q, k = d.normal(batch, heads, queries, size), d.normal(batch, key_heads, keys, size)
    v = d.normal(batch, key_heads, keys, of_value)
    return {"q": q, "k": k, "v": v, **_form(d, batch, heads, keys), **more}


def _groups(d: Draw, batch: int, queries: int, keys: int) -> tuple[Tensor, Tensor, int, int]:
    num_query, num_key = d.size(3), d.size(3)
    return d.ids(-1, num_query, batch, queries), d.ids(-1, num_key, batch, keys), num_query, num_key


def _probes(d: Draw, batch: int, heads: int, queries: int, keys: int) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if d.rng.random() < 0.5:
        given["saliency_probe"] = d.probe(batch, queries, keys)
    if d.rng.random() < 0.4:
        query, key, num_query, num_key = _groups(d, batch, queries, keys)
        given |= {"flow_probe": d.probe(batch, heads, num_query, num_key), "query_groups": query, "key_groups": key}
    return given


def _present(given: dict[str, Any], *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if given.get(name) is not None)


def _attention(d: Draw) -> Case:
    z = _heads(d)
    z |= _probes(d, *z["q"].shape[:3], z["k"].shape[2])
    return Case("attention", z, _present(z, "q", "k", "v", "gate", "sink", "slopes", "saliency_probe", "flow_probe"))


def _after_attention(d: Draw) -> dict[str, Any]:
    z = _heads(d)
    z["grad_out"] = d.normal(*z["q"].shape[:3], z["v"].shape[3])
    exact = ORACLES["attention"]({n: x.double() if _floating(x) else x for n, x in z.items()}).results[1]
    z["lse"] = d.laid(
        exact.to(torch.promote_types(d.dtype, torch.float32)), d.one("contiguous", "transposed", "strided")
    )
    return z


def _halves(x: Tensor) -> Tensor:
    """Multiples of 1/2, of which products and sums are exact in every dtype, so that equal scores are equal in all."""
    return (x * 2).round().clamp(-2, 2) / 2


def _reading(op: str) -> Callable[[Draw], Case]:
    """An op that reads A off q, k and the LSE."""

    def make(d: Draw) -> Case:
        z = _heads(d)
        if op in ("attention_summary", "attention_topk"):  # whose order of keys must not depend on rounding
            z |= {name: d.normal(*z[name].shape, by=_halves) for name in "qk"}
            z["softcap"] = None if z.get("softcap") is None else 3 + z["softcap"]  # a smaller one makes scores equal
        exact = {n: x.double() if _floating(x) else x for n, x in {**z, "v": z["k"]}.items()}
        lse = ORACLES["attention"](exact).results[1]
        z = {n: x for n, x in z.items() if n not in ("v", "gate")}
        layout = d.one("contiguous", "transposed", "strided")
        z["lse"] = d.laid(lse.to(torch.promote_types(d.dtype, torch.float32)), layout)
        (batch, _, queries, _), keys = z["q"].shape, z["k"].shape[2]
        z |= _asked(d, op, batch, queries, keys)
        return Case(op, z, _present(z, "q", "k", "sink", "slopes") if op in DIFFERENTIABLE else ())

    return make


def _asked(d: Draw, op: str, batch: int, queries: int, keys: int) -> dict[str, Any]:
    if op == "attention_rows":
        return {"rows": d.ids(0, queries, batch, d.size(3) if queries else 0)}
    if op == "attention_pooled":
        return {"block": d.one(1, 3, 64, np.int64(5), 1000), "reduce": d.one("sum", "max")}
    if op == "attention_topk":
        return {"count": d.rng.randint(0, keys)}
    z = _counts(d, batch, queries, keys)
    z.pop("with_matrix_total")
    if op == "attention_received":
        z = {n: x for n, x in z.items() if "key" not in n} if d.rng.random() < 0.7 else {}
    return {} if op == "attention_summary" else z


def _counts(d: Draw, batch: int, queries: int, keys: int) -> dict[str, Any]:
    query, key, num_query, num_key = _groups(d, batch, queries, keys)
    counts = {"num_query_groups": d.one(num_query, np.int64(num_query)), "num_key_groups": num_key}
    return {"query_groups": query, "key_groups": key, **counts, "with_matrix_total": d.one(True, False)}


def _ssd_inputs(d: Draw) -> dict[str, Any]:
    batch, groups, share = d.size(3), d.rng.randint(1, 2), d.size(2)
    length, heads = max(1, d.length()), groups * share
    size, state = (d.one(16, 24), d.one(16, 24)) if d.wide else (d.size(5), d.rng.randint(1, 5))
    return {
        "x": d.normal(batch, length, heads, size),
        "dt": d.normal(batch, length, heads, dtype=d.other(), by=lambda x: x.abs() / 2),
        "A": d.normal(heads, dtype=d.other(), by=lambda x: -x.abs() - 0.01),
        "B": d.normal(batch, length, groups, state, dtype=d.other()),
        "C": d.normal(batch, length, groups, state, dtype=d.other()),
        "key_range": d.ranges(batch, length),
    }  # fmt: skip


def _ssd(d: Draw) -> Case:
    z = _ssd_inputs(d)
    (batch, length, heads, size), state = z["x"].shape, z["B"].shape[3]
    z["initial_state"] = d.maybe(lambda: d.normal(batch, heads, size, state, dtype=d.other()))
    z |= {**_probes(d, batch, heads, length, length), "return_state": True}
    names = ("x", "dt", "A", "B", "C", "initial_state", "saliency_probe", "flow_probe")
    return Case("ssd", z, _present(z, *names))


def _reading_ssd(op: str) -> Callable[[Draw], Case]:
    """An op that reads M off dt, A, B and C."""

    def make(d: Draw) -> Case:
        z = _ssd_inputs(d)
        batch, length = z.pop("x").shape[:2]
        return Case(op, {**z, **_asked(d, op.replace("ssd", "attention"), batch, length, length)}, ())

    return make


def _vocabulary(d: Draw, layers: int | None = None) -> dict[str, Any]:
    rows, size, words = d.size(7), d.one(16, 24) if d.wide else d.rng.randint(1, 9), d.one(1, 7, 40, 300)
    return {
        "hidden": d.normal(*(() if layers is None else (layers,)), rows, size), "weight": d.normal(words, size),
        "bias": d.maybe(lambda: d.normal(words, dtype=d.other())),
    }  # fmt: skip


def _candidates(d: Draw, z: dict[str, Any]) -> Tensor:
    shape = d.one((3,), (z["hidden"].shape[-2], 2))
    return d.ids(0, len(z["weight"]), *shape)


def _surprisal(d: Draw) -> Case:
    z = _vocabulary(d)
    z["candidates"] = _candidates(d, z)
    return Case("candidate_surprisal", z, _present(z, "hidden", "weight", "bias"))


def _cross_entropy(d: Draw) -> Case:
    z = _vocabulary(d)
    words, ignored = len(z["weight"]), d.one(-100, np.int64(-1), 0, 5)
    z |= {"targets": d.ids(0, words, len(z["hidden"])), "ignore_index": ignored, "reduction": d.one("mean", "sum")}
    if torch.iinfo(z["targets"].dtype).min < ignored and len(z["hidden"]) and d.rng.random() < 0.5:
        z["targets"] = z["targets"].clone()
        z["targets"][d.rng.randrange(len(z["hidden"]))] = int(ignored)
    return Case("linear_cross_entropy", z, _present(z, "hidden", "weight", "bias"))


def _lens(d: Draw) -> Case:
    layers = d.size(3)
    z = _vocabulary(d, layers)
    size = z["hidden"].shape[2]
    if d.rng.random() < 0.6:
        z |= {"translator_weight": d.normal(layers, size, size), "translator_bias": d.normal(layers, size)}
    z["candidates"] = _candidates(d, z)
    return Case("lens_surprisal", z, _present(z, "hidden", "weight", "bias", "translator_weight", "translator_bias"))


def _convolution(d: Draw) -> Case:
    batch, length, channels, taps = d.size(3), d.length(), d.size(5), d.rng.randint(1, 4)
    z = {
        "x": d.normal(batch, length, channels), "weight": d.normal(channels, taps, dtype=d.other()),
        "bias": d.maybe(lambda: d.normal(channels, dtype=d.other())),
        "initial_state": d.maybe(lambda: d.normal(batch, taps - 1, channels, dtype=d.other())),
        "activation": d.one("silu", None),
    }  # fmt: skip
    return Case("causal_conv1d", z, _present(z, "x", "weight", "bias", "initial_state"))


def _mamba2(d: Draw) -> Case:
    batch, length, groups, share = d.size(2), max(1, d.length()), d.rng.randint(1, 2), d.rng.randint(1, 2)
    heads, taps, state, size = groups * share, d.rng.randint(1, 4), d.rng.randint(1, 4), d.rng.randint(1, 4)
    width = heads * size
    channels = width + 2 * groups * state
    z = {
        "projected": d.normal(batch, length, width + channels + heads),
        "conv_weight": d.normal(channels, taps, dtype=d.other()),
        "conv_bias": d.maybe(lambda: d.normal(channels, dtype=d.other())), "dt_bias": d.normal(heads, dtype=d.other()),
        "A_log": d.normal(heads, dtype=d.other()), "D": d.normal(heads, dtype=d.other()),
        "norm_weight": d.normal(width, dtype=d.other()), "groups": d.one(groups, np.int64(groups)),
        "eps": d.one(1e-2, np.float32(0.1)), "dt_limit": d.one((0.0, float("inf")), (0.1, 0.9), [0, np.float32(0.5)]),
    }  # fmt: skip
    return Case("mamba2_inner", z, tuple(n for n, x in z.items() if _floating(x)))


def _gate_heads(d: Draw) -> Case:
    batch, length, heads, size = d.size(3), d.length(), d.size(3), d.size(5)
    gate = _gate(d, *d.one((heads,), (batch, heads), (d.size(2), batch, heads)))
    shape = d.one((), (size,), (heads, size), (batch, length, heads, size), (batch, 1, 1, size))
    z = {"x": d.normal(batch, length, heads, size), "gate": gate, "fill": d.maybe(lambda: d.normal(*shape))}
    return Case("gate_heads", z, _present(z, "x", "gate", "fill"))


def _derived(op: str, inputs: Callable[[Draw], dict[str, Any]], grad: str, more: str) -> Callable[[Draw], Case]:
    """An op that reads a gradient: saliency, flow or rows."""

    def make(d: Draw) -> Case:
        z = inputs(d)
        x = z["q" if grad == "grad_out" else "x"]
        batch, queries = x.shape[0], x.shape[2 if grad == "grad_out" else 1]
        keys = z["k"].shape[2] if grad == "grad_out" else queries
        if grad == "grad_y":
            z[grad] = d.normal(*x.shape)
        if more == "signed":
            z["signed"] = d.one(True, False)
        elif more == "rows":
            z["rows"] = d.ids(0, queries, batch, d.size(3) if queries else 0)
        else:
            z |= _counts(d, batch, queries, keys)
        return Case(op, z, ())

    return make


_DRAW: dict[str, Callable[[Draw], Case]] = {
    "attention": _attention,
    "attention_saliency": _derived("attention_saliency", _after_attention, "grad_out", "signed"),
    "attention_saliency_rows": _derived("attention_saliency_rows", _after_attention, "grad_out", "rows"),
    "attention_flow": _derived("attention_flow", _after_attention, "grad_out", "groups"),
    **{
        op: _reading(op)
        for op in (
            "attention_rows",
            "attention_mass",
            "attention_received",
            "attention_summary",
            "attention_pooled",
            "attention_topk",
        )
    },
    "ssd": _ssd,
    **{op: _reading_ssd(op) for op in ("ssd_rows", "ssd_mass", "ssd_received")},
    "ssd_saliency": _derived("ssd_saliency", _ssd_inputs, "grad_y", "signed"),
    "ssd_flow": _derived("ssd_flow", _ssd_inputs, "grad_y", "groups"),
    "candidate_surprisal": _surprisal,
    "linear_cross_entropy": _cross_entropy,
    "lens_surprisal": _lens,
    "causal_conv1d": _convolution,
    "mamba2_inner": _mamba2,
    "gate_heads": _gate_heads,
}


def _floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


@contextmanager
def implementation(name: str) -> Iterator[str]:
    """The ``impl`` to pass; "plain" is "cpu" without the extension."""
    with patch.object(extension, "library", None) if name == "plain" else nullcontext():
        yield "cpu" if name == "plain" else name


def call(case: Case, impl: str | None, **replaced: Any) -> tuple[Tensor | None, ...]:
    """The op's results, as a tuple."""
    found = getattr(ops, case.op)(**arguments(case, **replaced), impl=impl)
    return found if isinstance(found, tuple) else (found,)


def arguments(case: Case, **replaced: Any) -> dict[str, Any]:
    """The arguments as the op takes them, some of them replaced."""
    z = {**case.given, **replaced}
    if case.op == "lens_surprisal":
        w, b = z.pop("translator_weight", None), z.pop("translator_bias", None)
        z |= {"translators": None if w is None else (w, b), "norm": norm}
    return z


def came(case: Case, results: tuple[Tensor | None, ...], seed: int) -> tuple[Tensor, ...]:
    """Incoming gradients of the results that have one, each in its own layout."""
    d = Draw(seed, 0.0, True, torch.float64, False)
    return tuple(
        d.laid(d.normal(*x.shape).to(x.dtype)) for x in results[: 2 if case.op == "ssd" else 1] if x is not None
    )


def exactly(case: Case) -> dict[str, Any]:
    """The arguments in float64, with probes of 0, each a separate leaf."""
    z = {n: x.detach().double().clone() if _floating(x) else x for n, x in case.given.items()}
    for name in ("saliency_probe", "flow_probe"):
        if z.get(name) is not None:
            z[name] = torch.zeros(z[name].shape, dtype=torch.float64)
    for name in case.leaves:
        z[name].requires_grad_()
    return z


def expected(case: Case, grads: tuple[Tensor, ...]) -> tuple[tuple[Tensor | None, ...], tuple[Tensor, ...]]:
    """The oracle's results, and its gradients of the leaves, in float64."""
    z = exactly(case)
    found: Found = ORACLES[case.op](z)
    total = sum(((x * g.double()).sum() for x, g in zip(found.results, grads, strict=False)), torch.zeros(()))
    of = (
        torch.autograd.grad(total, [z[n] for n in case.leaves], materialize_grads=True, retain_graph=True)
        if total.requires_grad
        else [torch.zeros_like(z[n]) for n in case.leaves]
    )
    gradients = dict(zip(case.leaves, of, strict=True))
    if "flow_probe" in gradients:
        a = found.matrix
        of_a = torch.autograd.grad(total, a, materialize_grads=True)[0] if total.requires_grad else torch.zeros_like(a)
        gradients["flow_probe"] = flow_of(a * of_a, z, *z["flow_probe"].shape[2:])[0]
    return found.results, tuple(gradients[n].detach() for n in case.leaves)


def leaves_of(case: Case) -> dict[str, Tensor]:
    """The differentiable arguments in their layouts, with requires_grad set."""
    return {n: case.given[n].detach().requires_grad_() for n in case.leaves}


#: Allowed error, as a multiple of 1 + the largest number: for sums of up to 130 terms, rounded once or a few times.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def close(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    """Whether a result equals the oracle's within the precision of ``dtype``; infinities must be the same."""
    if got.shape != wanted.shape:
        return False
    got, wanted = got.detach().double(), wanted.detach().double()
    if bool((got.isfinite() != wanted.isfinite()).any()):
        return False
    at = wanted.isfinite()
    if not bool((got[~at] == wanted[~at]).all()):
        return False
    scale = 1 + (wanted[at].abs().max() if bool(at.any()) else 0)
    return bool(((got[at] - wanted[at]).abs() <= TOLERANCE[dtype] * scale).all())
