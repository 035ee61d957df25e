"""Properties that registration gives every implementation: full graphs, valid schemas, and bounded memory."""

from __future__ import annotations

import subprocess
import sys
import weakref
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from symground import ops
from symground.ops.attention import cpu, triton
from symground.ops.attention.mixing import Mixing
from symground.ops.common.flow import NO_GROUPS
from symground.ops.common.register import define
from symground.ops.vocabulary import cpu as vocabulary_cpu
from symground.ops.vocabulary import tiles as vocabulary_tiles

registered_impl = pytest.mark.parametrize(
    "impl",
    [
        "cpu",
        pytest.param("triton", marks=pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")),
    ],
)


@registered_impl
def test_compiles_without_a_graph_break(impl: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 16, requires_grad=True) for _ in range(3))
    key_range = torch.tensor([[1, 5]])

    def saliency(q: Tensor, k: Tensor, v: Tensor, probe: Tensor) -> Tensor:
        return ops.attention(q, k, v, key_range=key_range, saliency_probe=probe, impl=impl)[0].square().sum()

    probes = [torch.zeros(1).expand(1, 5, 5).requires_grad_() for _ in range(2)]
    saliency(q, k, v, probes[0]).backward()
    torch.compile(saliency, fullgraph=True, backend="aot_eager")(q, k, v, probes[1]).backward()
    torch.testing.assert_close(probes[0].grad, probes[1].grad)
    groups = torch.zeros(1, 5).long()

    def flow(probe: Tensor) -> Tensor:
        return (
            ops.attention(q, k, v, flow_probe=probe, query_groups=groups, key_groups=groups, impl=impl)[0]
            .square()
            .sum()
        )

    probes = [torch.zeros(1).expand(1, 2, 1, 1).requires_grad_() for _ in range(2)]
    flow(probes[0]).backward()
    torch.compile(flow, fullgraph=True, backend="aot_eager")(probes[1]).backward()
    torch.testing.assert_close(probes[0].grad, probes[1].grad)


def test_a_kernel_is_not_compiled_where_its_op_is_called_from_a_frame_that_is_skipped() -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 4, 9, 8) for _ in range(4))
    _, lse = ops.attention(q, k, v)
    arguments = (q, k, v, grad, lse, *Mixing(scale=8**-0.5), torch.tensor([[4], [3]]))

    def run() -> Tensor:
        for _ in range(1):  # a graph break within a loop: the frame runs as it is, and those below it are compiled
            torch._dynamo.graph_break()
            found: Tensor = torch.ops.symground.attention_saliency_rows_cpu(*arguments)
        return found

    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph.code)
        return graph.forward

    torch._dynamo.reset()
    assert torch.equal(torch.compile(run, backend=backend)(), run())
    assert not graphs


def test_an_op_can_be_defined_again() -> None:
    """As when a module is imported again after its import was interrupted, in a notebook for example."""
    for factor in (2.0, 3.0):
        op = define(
            "defined_twice", "(Tensor x) -> Tensor", lambda x, by=factor: x * by, torch.empty_like, lambda ctx, g: g
        )
        assert float(op(torch.ones(()))) == factor


@pytest.mark.parametrize(("impl", "extended"), [("cpu", False), ("cpu", True), ("torch", True), ("triton", False)])
def test_opcheck(impl: str, extended: bool) -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(2, 2, 6, 16, requires_grad=True) for _ in range(2))
    v = torch.randn(2, 2, 6, 8 if extended else 16, requires_grad=True)
    grad, groups = torch.randn_like(v), torch.randint(-1, 2, (2, 6))
    key_range, gate = torch.tensor([[0, 4], [1, 6]]), torch.tensor([[1.0, 0.0], [0.3, 1.0]])
    probes = (torch.zeros(1).expand(2, 6, 6).requires_grad_(), torch.zeros(1).expand(2, 2, 2, 2).requires_grad_())
    form = Mixing(True, 0.5, key_range, 3, gate)
    if extended:
        sink, slopes = (torch.randn(2, requires_grad=True) for _ in range(2))
        ids = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 2, 2, 2, 3]]), torch.tensor([[0, 0, -1, 1, 1, -1]] * 2)
        form = Mixing(True, 0.5, key_range, 3, gate, 2.0, sink, slopes, *ids)
    arguments = (q, k, v, *probes, groups, groups.clone(), *form)

    def op(name: str) -> Any:
        return getattr(torch.ops.symground, f"{name}_{impl}")

    torch.library.opcheck(op("attention"), arguments)
    out, lse = (x.detach() for x in op("attention")(*arguments))
    plain = [x.detach() for x in (q, k, v)]
    form = form._make(x.detach() if isinstance(x, Tensor) else x for x in form)
    backward, given = op("attention_backward"), (grad, *plain, out, lse, *form)
    torch.library.opcheck(backward, (*given, True, extended, extended, True, groups, groups.clone(), 2, 2))
    torch.library.opcheck(backward, (*given, False, False, False, False, None, None, 0, 0))
    torch.library.opcheck(op("attention_saliency"), (*plain, grad, lse, *form, False))
    torch.library.opcheck(op("attention_flow"), (*plain, grad, lse, *form, groups, groups.clone(), 2, 2, True))
    torch.library.opcheck(op("attention_saliency_rows"), (*plain, grad, lse, *form, torch.tensor([[0, 5], [3, 3]])))


@registered_impl
@pytest.mark.parametrize("shared", [True, False])
def test_opcheck_of_surprisal(impl: str, shared: bool) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(s, requires_grad=True) for s in ((5, 16), (40, 16), (40,)))
    candidates = torch.randint(40, (3,) if shared else (5, 3))
    op = getattr(torch.ops.symground, f"candidate_surprisal_{impl}")
    backward = getattr(torch.ops.symground, f"candidate_surprisal_backward_{impl}")
    for level in (bias, None):
        arguments = (hidden, weight, level, candidates)
        torch.library.opcheck(op, arguments)
        plain = [None if x is None else x.detach() for x in arguments]
        out, norm = op(*plain)
        torch.library.opcheck(backward, (torch.randn_like(out), *plain, norm, True, True, level is not None))
        torch.library.opcheck(backward, (torch.randn_like(out), *plain, norm, False, True, False))


@pytest.mark.parametrize("of", [(True, True, True), (False, True, False)])
def test_opcheck_of_a_loss_with_its_gradients(of: tuple[bool, bool, bool]) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (
        torch.randn(s, requires_grad=w) for s, w in zip(((5, 16), (40, 16), (40,)), of, strict=True)
    )
    targets = torch.tensor([3, -1, 39, 0, 7])
    torch.library.opcheck(torch.ops.symground.linear_cross_entropy_cpu, (hidden, weight, bias, targets, *of))


@registered_impl
def test_surprisal_compiles_without_a_graph_break(impl: str) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 5, 16, requires_grad=True), torch.randn(40, 16, requires_grad=True)
    targets, candidates = torch.tensor([3, -100, 39, 0, 7]), torch.tensor([1, 2])
    translators = (torch.randn(2, 16, 16), torch.randn(2, 16))

    def losses(hidden: Tensor, weight: Tensor) -> Tensor:
        loss = ops.linear_cross_entropy(hidden[0], weight, targets, impl=impl)
        lens = ops.lens_surprisal(hidden, translators, torch.tanh, weight, candidates, impl=impl)
        return loss + lens.sum() + ops.candidate_surprisal(hidden[1], weight, candidates, impl=impl).sum()

    found = []
    for run in (losses, torch.compile(losses, fullgraph=True, backend="aot_eager")):
        loss = run(hidden, weight)
        found.append([loss.detach(), *torch.autograd.grad(loss, (hidden, weight))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


class Watch(TorchDispatchMode):
    """Counts the numbers in the largest tensor made, and the peak of all that live beside the given ones."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in given}
        self.alive = self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.known:
                storage = x.untyped_storage()
                size = storage.nbytes() // x.element_size()
                self.known.add(storage.data_ptr())
                weakref.finalize(storage, self.gone, storage.data_ptr(), size)
                self.alive, self.largest = self.alive + size, max(self.largest, size)
                self.peak = max(self.peak, self.alive)
        return result

    def gone(self, pointer: int, size: int) -> None:
        self.known.discard(pointer)
        self.alive -= size


@pytest.mark.slow
@registered_impl
@pytest.mark.parametrize("padded", [False, True])
def test_kernels_keep_no_attention_matrix_and_no_copies(impl: str, padded: bool) -> None:
    """Runs the registered ops' kernels directly, since a dispatch mode around the ops sees nothing. Beside the inputs
    there may be outputs, gradients, LSE and delta, [B,T,S], and rows of tiles."""
    kernels = {"cpu": cpu.backend, "triton": triton.backend}[impl]
    batch, heads, length, size = 1, 8, 256, 16
    inputs = [torch.randn(batch, heads, length, size) for _ in range(4)]
    bounds = torch.tensor([[5, 250]]) if padded else None
    mixing = Mixing(causal=True, scale=0.25, key_range=bounds, window=None, gate=None)
    q, k, v, grad = inputs
    one, row = q.numel(), batch * heads * length
    with Watch(*inputs) as watch:
        out, lse = kernels.forward(q, k, v, mixing)
        kept = [out, lse, *kernels.gradients(grad, q, k, v, out, lse, mixing, True, False, False, True, NO_GROUPS)]
    assert len(kept) == 9
    assert watch.largest <= max(3 * 64 * heads * length, one)
    # The output and three gradients; [B,T,S]; LSE and delta. Beside these: rows of tiles on a CPU; for Triton's float32
    # kernels, dO divided by its row sums.
    beside = 4 * 64 * heads * length if impl == "cpu" else one
    assert watch.peak <= 4 * one + batch * length**2 + 4 * row + beside


def test_surprisal_keeps_no_row_of_the_vocabulary() -> None:
    """Forward and backward pass, beside inputs and gradients: tiles of logits, never all N·V."""
    torch.manual_seed(0)
    rows, size, vocabulary, tile = 3000, 16, 9000, 2**18
    inputs = [torch.randn(rows, size), torch.randn(vocabulary, size), torch.randn(vocabulary)]
    for candidates in (torch.arange(100), torch.randint(vocabulary, (rows, 2))):
        grad = torch.randn(rows, candidates.shape[-1])
        with patch.object(vocabulary_tiles, "TILE", tile), Watch(*inputs, candidates, grad) as watch:
            out, lse = vocabulary_cpu.backend.forward(*inputs, candidates)
            kept = [out, lse, *vocabulary_cpu.backend.backward(grad, *inputs, candidates, lse, True, True, True)]
        assert len(kept) == 5
        assert watch.largest <= max(tile, grad.numel())
        given = sum(x.numel() for x in (*inputs, *kept[:2]))
        assert watch.peak <= 3 * tile + 2 * given < rows * vocabulary / 10


def test_memory_of_a_whole_pass_under_checkpointing_and_over_micro_batches() -> None:
    """Measured by the operating system in a separate process: below half an attention matrix; eager keeps four."""
    code = """
import resource, torch
from torch.utils.checkpoint import checkpoint
from symground import ops
torch.set_num_threads(1)

def run(heads, length):
    leaves = [torch.randn(1, heads, length, 16, requires_grad=True) for _ in range(3)]
    probe = torch.zeros(1).expand(1, length, length).requires_grad_()
    layer = lambda q, k, v, p: ops.attention(q, k, v, saliency_probe=p, impl="cpu")[0]
    for _ in range(2):
        checkpoint(layer, *leaves, probe, use_reentrant=False).sum().backward()
    assert probe.grad.abs().sum() > 0

run(2, 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(16, 2048)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    matrix = 16 * 2048 * 2048 * 4 / 1024  # KiB
    # The saliency, its sum over micro-batches, and its gradient are three [T,S]: 3/16 of the matrix.
    assert int(done.stdout) < 0.4 * matrix
