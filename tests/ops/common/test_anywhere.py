"""The ``torch`` implementations on devices that are not here: no value is read, and memory is bounded.

Each registered op's own kernel is run below the dispatcher, on the arguments of drawn calls: on the meta device, where
whoever reads a value fails, and on a CPU with a record of the operations.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from symground import ops
from symground.ops.attention import plan
from symground.ops.common.tensors import by_doubling, running_sum
from symground.ops.vocabulary import tiles as vocabulary
from tests.ops.common.drawn import DIFFERENTIABLE, OPS, call, draw, implementations
from tests.ops.common.fuzz import check
from tests.ops.common.kernels import below
from tests.ops.common.test_lists import Calls

every_op = pytest.mark.parametrize("op", [op for op in OPS if "torch" in implementations(op)])


def results_below(function: Any, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The results of an op's kernel itself."""
    with torch.no_grad():
        found = below(function, *arguments)
    return found if isinstance(found, tuple) else (found,)


def to_meta(x: Any) -> Any:
    return x.to("meta") if isinstance(x, Tensor) else x


@every_op
@pytest.mark.parametrize("seed", range(4))
def test_no_value_is_read(op: str, seed: int) -> None:
    """Reading one would wait for the device. On the meta device it fails; shapes and dtypes are those of a CPU."""
    with Calls() as calls:
        check(draw(op, seed, wide=True, layouts=False), "torch", "backward" if op in DIFFERENTIABLE else "no grad")
    assert calls.found

    for name, (function, arguments) in calls.found.items():
        real = results_below(function, arguments)
        for a, b in zip(results_below(function, tuple(map(to_meta, arguments))), real, strict=True):
            assert a.is_meta
            assert (a.shape, a.dtype) == (b.shape, b.dtype), name


@every_op
@pytest.mark.parametrize("seed", range(4))
def test_fake_tensors_have_the_shapes_of_real_ones(op: str, seed: int) -> None:
    """As memory planners and exporters call ops: without values, which no check may ask for."""
    case = draw(op, seed, wide=True, layouts=False)
    real = [x for x in call(case, "cpu") if x is not None]
    with FakeTensorMode() as mode:
        faked = {name: mode.from_tensor(x) if isinstance(x, Tensor) else x for name, x in case.given.items()}
        found = [x for x in call(case, "cpu", **faked) if x is not None]
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in real]


@pytest.mark.parametrize("impl", ["reference", "cpu", "torch"])
@pytest.mark.parametrize("gate", [None, torch.ones(4), torch.tensor([0.5, 0.0, 1.0, -1.0]).requires_grad_()], ids=str)
def test_gradients_of_several_directions_at_once(gate: Tensor | None, impl: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 5, 8, requires_grad=True) for _ in range(3))
    out, _ = ops.attention(q, k, v, gate=gate, impl=impl)
    leaves = [q, k, v] + ([gate] if gate is not None and gate.requires_grad else [])
    directions = torch.randn(3, *out.shape)
    found = torch.autograd.grad(out, leaves, directions, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(out, leaves, direction, retain_graph=True) for direction in directions]
    for several, *alone in zip(found, *each, strict=True):
        torch.testing.assert_close(several, torch.stack(alone))


class Operations(TorchDispatchMode):
    """The names of the operations, and the numbers in the largest tensor that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._opname)
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return result


#: Operations that torch.use_deterministic_algorithms(True) refuses on a GPU, by its documentation.
REFUSED = {"cumsum", "cumsum_", "put", "put_", "histc", "bincount", "median", "nll_loss_forward", "nll_loss_backward"}


@every_op
def test_deterministic_algorithms_refuse_no_operation(op: str) -> None:
    with Calls() as calls:
        for seed in range(3):
            case = draw(op, seed, wide=True, layouts=False)
            check(case, "torch", "backward" if op in DIFFERENTIABLE else "no grad")
    torch.use_deterministic_algorithms(True)
    try:
        with Operations() as made:
            for function, arguments in calls.found.values():
                results_below(function, tuple(map(to_meta, arguments)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert made.names
    assert not made.names & REFUSED


@pytest.mark.parametrize("length", [0, 1, 2, 3, 64, 65, 130])
def test_a_running_sum_by_doubling(length: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, length, 3, dtype=torch.float64)
    torch.testing.assert_close(by_doubling(x, 1), x.cumsum(1))
    assert running_sum(x.to("meta"), 1).shape == x.shape


def long_calls() -> None:
    """Attention and SSD of 300 positions with everything asked for, and a vocabulary of 3000."""
    heads, length, size = 4, 300, 8
    q, k, v, grad = (torch.randn(2, heads, length, size, requires_grad=True) for _ in range(4))
    bounds, gate = torch.tensor([[3, 300], [0, 290]]), torch.tensor([1.0, 0.0, 0.5, 1.0])
    ids = torch.randint(-1, 2, (2, length))
    asked = {
        "saliency_probe": torch.zeros(1).expand(2, length, length).requires_grad_(),
        "flow_probe": torch.zeros(1).expand(2, heads, 2, 2).requires_grad_(), "query_groups": ids, "key_groups": ids,
        "impl": "torch",
    }  # fmt: skip
    out, lse = ops.attention(q, k, v, key_range=bounds, gate=gate, **asked)
    out.backward(grad)
    after = [x.detach() for x in (q, k, v, grad, lse)]
    ops.attention_saliency(*after, key_range=bounds, impl="torch")
    ops.attention_flow(*after, ids, ids, 2, 2, key_range=bounds, impl="torch")
    x, dt, A = torch.randn(2, length, heads, size, requires_grad=True), torch.rand(2, length, heads), -torch.rand(heads)
    B, C = torch.randn(2, length, 1, 4), torch.randn(2, length, 1, 4)
    ops.ssd(x, dt, A, B, C, **asked).sum().backward()
    hidden, weight = torch.randn(600, 16, requires_grad=True), torch.randn(3000, 16, requires_grad=True)
    ops.candidate_surprisal(hidden, weight, torch.arange(9), impl="torch").sum().backward()
    ops.linear_cross_entropy(hidden, weight, torch.arange(600), impl="torch").backward()


def test_memory_is_bounded() -> None:
    """The largest tensor beside the results is a tile: never [B,H,T,S], and never all logits."""
    torch.manual_seed(0)
    with Calls() as calls:
        long_calls()
    bound = {"attention": 64 * 4 * 300, "ssd": 2 * 320 * 4 * 64, "candidate": 2**16, "linear": 2**16}
    small = (
        patch.object(plan, "UNREAD", 1), patch.object(vocabulary, "TILE", 2**16),
        patch.object(vocabulary, "LOSS_TILE", 2**16),
    )  # fmt: skip
    assert len(calls.found) >= 10
    for name, (function, arguments) in calls.found.items():
        with small[0], small[1], small[2], Operations() as made:
            found = results_below(function, arguments)
        known = max(x.numel() for x in (*arguments, *found) if isinstance(x, Tensor))
        assert made.largest <= max(known, bound[name.split("_")[0]]), name
