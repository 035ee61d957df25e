"""torch.compile with dynamic=True makes one graph for all lengths, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from symground import ops
from tests.ops.common.drawn import DIFFERENTIABLE, OPS

LENGTHS = (5, 6, 9, 17, 33, 40, 64, 65, 70, 130)  # more than the number of times torch recompiles a function


def qkv(length: int) -> dict[str, Tensor]:
    return {name: torch.randn(2, 2, length, 8) for name in "qkv"}


def after(length: int) -> dict[str, Tensor]:
    return {**qkv(length), "grad_out": torch.randn(2, 2, length, 8), "lse": torch.randn(2, 2, length)}


def read(length: int) -> dict[str, Tensor]:
    """Not the LSE of these: what is found of a row sums to another number than 1."""
    z = after(length)
    return {name: z[name] for name in ("q", "k", "lse")} | bounds(length)


def bounds(length: int) -> dict[str, Tensor]:
    return {"key_range": torch.tensor([[0, length], [1, length - 1]])}


def groups(length: int) -> dict[str, Tensor]:
    return {name: torch.randint(-1, 2, (2, length)) for name in ("query_groups", "key_groups")}


def scan(length: int) -> dict[str, Tensor]:
    return {
        "x": torch.randn(2, length, 2, 4), "dt": torch.rand(2, length, 2), "A": -torch.rand(2) - 0.1,
        "B": torch.randn(2, length, 1, 3), "C": torch.randn(2, length, 1, 3),
    }  # fmt: skip


def probe(length: int) -> dict[str, Tensor]:
    return {"saliency_probe": torch.zeros(1).expand(2, length, length)}


def head(length: int) -> dict[str, Tensor]:
    return {"hidden": torch.randn(length, 8), "weight": torch.randn(20, 8)}


def scanned(length: int) -> dict[str, Tensor]:
    return {**scan(length), "grad_y": torch.randn(2, length, 2, 4)}


def steps(length: int) -> dict[str, Tensor]:
    return {name: x for name, x in scan(length).items() if name != "x"}


#: By the name of the op: what is called, and its tensors for a length.
CALLS: dict[str, tuple[Callable[..., Any], Callable[[int], dict[str, Tensor]]]] = {
    "attention": (ops.attention, lambda n: {**qkv(n), **bounds(n), **probe(n)}),
    "attention_saliency": (ops.attention_saliency, lambda n: {**after(n), **bounds(n)}),
    "attention_saliency_rows": (
        ops.attention_saliency_rows,
        lambda n: {**after(n), **bounds(n), "rows": torch.tensor([[0, n - 1], [1, 2]])},
    ),
    "attention_flow": (
        lambda **z: ops.attention_flow(num_query_groups=2, num_key_groups=2, **z),
        lambda n: {**after(n), **groups(n), **bounds(n)},
    ),
    "attention_rows": (ops.attention_rows, lambda n: {**read(n), "rows": torch.tensor([[0, n - 1], [1, 2]])}),
    "attention_mass": (
        lambda **z: ops.attention_mass(num_query_groups=2, num_key_groups=2, **z), lambda n: {**read(n), **groups(n)}
    ),
    "attention_received": (
        lambda **z: ops.attention_received(num_query_groups=2, **z),
        lambda n: {**read(n), "query_groups": torch.randint(-1, 2, (2, n))},
    ),
    "attention_summary": (ops.attention_summary, read),
    "attention_pooled": (lambda **z: ops.attention_pooled(block=2, **z), read),
    "attention_topk": (lambda **z: ops.attention_topk(count=3, **z), read),
    "ssd": (ops.ssd, lambda n: {**scan(n), **bounds(n)}),
    "ssd_rows": (ops.ssd_rows, lambda n: {**steps(n), **bounds(n), "rows": torch.tensor([[0, n - 1], [1, 2]])}),
    "ssd_mass": (
        lambda **z: ops.ssd_mass(num_query_groups=2, num_key_groups=2, **z),
        lambda n: {**steps(n), **groups(n), **bounds(n)},
    ),
    "ssd_received": (ops.ssd_received, lambda n: {**steps(n), **bounds(n)}),
    "ssd_saliency": (ops.ssd_saliency, lambda n: {**scanned(n), **bounds(n)}),
    "ssd_flow": (
        lambda **z: ops.ssd_flow(num_query_groups=2, num_key_groups=2, **z),
        lambda n: {**scanned(n), **groups(n), **bounds(n)},
    ),
    "candidate_surprisal": (ops.candidate_surprisal, lambda n: {**head(n), "candidates": torch.randint(20, (n, 3))}),
    "linear_cross_entropy": (ops.linear_cross_entropy, lambda n: {**head(n), "targets": torch.randint(20, (n,))}),
    "lens_surprisal": (
        lambda hidden, **z: ops.lens_surprisal(hidden[None], None, torch.tanh, **z),
        lambda n: {**head(n), "candidates": torch.randint(20, (3,))},
    ),
    "causal_conv1d": (ops.causal_conv1d, lambda n: {"x": torch.randn(2, n, 6), "weight": torch.randn(6, 4)}),
    "mamba2_inner": (
        lambda **z: ops.mamba2_inner(groups=1, eps=1e-5, **z),
        lambda n: {
            "projected": torch.randn(2, n, 8 + 14 + 2), "conv_weight": torch.randn(14, 4), "conv_bias": torch.randn(14),
            "dt_bias": torch.randn(2), "A_log": torch.randn(2), "D": torch.randn(2), "norm_weight": torch.randn(8),
        },
    ),
    "gate_heads": (ops.gate_heads, lambda n: {"x": torch.randn(2, n, 3, 4), "gate": torch.rand(3)}),
}  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_one_graph_for_all_lengths(op: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    public, inputs = CALLS[op]
    counter = CompileCounterWithBackend("aot_eager")

    def run(given: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        found = public(**given, impl="cpu")
        return found if isinstance(found, tuple) else (found,)

    compiled, graphs = torch.compile(run, fullgraph=True, dynamic=True, backend=counter), set()
    for length in LENGTHS:
        given = inputs(length)
        if op in DIFFERENTIABLE:
            given = {n: x.requires_grad_() if x.is_floating_point() else x for n, x in given.items()}
        of = []
        for call in (run, compiled):
            found = [x for x in call(given) if x is not None]
            outputs = [x.sum() for x in found if x.requires_grad]
            leaves = [x for x in given.values() if x.requires_grad]
            of.append([*found, *(torch.autograd.grad(outputs, leaves, materialize_grads=True) if leaves else ())])
        for a, b in zip(*of, strict=True):
            torch.testing.assert_close(a, b)
        graphs.add(counter.frame_count)
    assert len(graphs) == 1  # one graph of the first length serves all


@pytest.mark.parametrize("impl", ["cpu", "torch"])
@pytest.mark.parametrize("shape", ["[H]", "[B,H]"])
def test_one_graph_for_all_batch_sizes_with_a_gate(shape: str, impl: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def run(q: Tensor, gate: Tensor) -> Tensor:
        return ops.attention(q, q, q, gate=gate, impl=impl)[0]

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    for batch in (3, 5, 7, 2, 9, 11, 13, 17, 19, 23):
        q, gate = torch.randn(batch, 4, 31, 8), torch.rand(4) if shape == "[H]" else torch.rand(batch, 4)
        torch.testing.assert_close(compiled(q, gate), run(q, gate))
    assert counter.frame_count == 1


WRONG: dict[str, Tensor] = {
    "sink": torch.zeros(3), "slopes": torch.zeros(5), "segments": torch.zeros(2, 5).long(),
    "blocks": torch.zeros(1, 6).long(), "gate": torch.ones(2), "key_range": torch.zeros(2, 3).long(),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_wrong_shape_within_a_graph_is_named(name: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)

    def run(q: Tensor, k: Tensor, value: Tensor) -> Tensor:
        return ops.attention(q, k, k, **{name: value})[0]

    with pytest.raises(Exception, match=f"{name}: expected shape"):
        torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")(q, k, WRONG[name])
