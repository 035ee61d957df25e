"""Which calls of an op pass the dispatcher by, and that it makes no difference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Thread
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from symground import ops
from symground.ops.common import register
from tests.ops.common.drawn import DIFFERENTIABLE, OPS, call, came, draw, leaves_of


class Nothing(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class NothingOfFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Wrapped(torch.Tensor):
    """A subclass with a `__torch_dispatch__` of its own."""

    @staticmethod
    def __new__(cls, x: Tensor) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, x.shape)  # type: ignore[attr-defined, no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError


def passes_by(*given: Any) -> bool:
    return register._only_autograd_listens((*given, None, 3, 0.5, True))


def test_a_call_on_plain_tensors_passes_the_dispatcher_by() -> None:
    x = torch.randn(2)
    assert passes_by(x, x.clone().requires_grad_(), torch.nn.Parameter(x), torch.arange(3), x[::2])
    with torch.no_grad():
        assert passes_by(x)
    with torch.inference_mode():
        assert passes_by(torch.randn(2))
    found: list[bool] = []
    thread = Thread(target=lambda: found.append(passes_by(x)))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize(
    "around",
    [
        Nothing,
        NothingOfFunctions,
        lambda: torch.autocast("cpu"),
        forward_ad.dual_level,
        torch._C._AutoDispatchBelowAutograd,
    ],
)
def test_where_more_listens_than_autograd_it_does_not(around: Callable[[], AbstractContextManager[Any]]) -> None:
    x = torch.randn(2)
    with around():
        assert not passes_by(x)
    assert passes_by(x)


def test_in_a_transform_or_a_trace_it_does_not() -> None:
    x, found = torch.randn(2), []

    def f(y: Tensor) -> Tensor:
        found.append(passes_by(y))
        return y.sum()

    torch.func.grad(f)(x)
    torch.func.vmap(f)(x[None])
    torch.jit.trace(f, x, check_trace=False)
    assert found == [False] * 3


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, dtype=torch.complex64).conj().imag,
        torch.empty(2, device="meta"),
        torch.eye(2).to_sparse(),
        Wrapped(torch.randn(2)),
    ],
    ids=["negated", "meta", "sparse", "subclass"],
)
def test_on_other_tensors_it_does_not(x: Tensor) -> None:
    assert not passes_by(torch.randn(2), x)


@pytest.mark.parametrize("op", OPS)
def test_both_ways_give_the_same(op: str) -> None:
    for seed in range(4):
        case = draw(op, seed)
        found = []
        for listens in (lambda given: True, lambda given: False):
            with patch.object(register, "_only_autograd_listens", listens):
                leaves = leaves_of(case)
                results = call(case, "cpu", **leaves)
                grads: tuple[Tensor | None, ...] = ()
                if op in DIFFERENTIABLE:
                    wanted = came(case, results, seed)
                    grads = torch.autograd.grad(
                        results[: len(wanted)], list(leaves.values()), wanted, allow_unused=True
                    )
            found.append((*results, *grads))
        for a, b in zip(*found, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_an_op_within_an_op_records_no_graph_of_its_own() -> None:
    q = torch.randn(1, 1, 3, 8, requires_grad=True)
    recorded = []

    @torch.library.custom_op("symground_tests::around", mutates_args=())
    def around(x: Tensor) -> Tensor:
        out, _ = ops.attention(x, x, x, impl="cpu")
        recorded.append(out.requires_grad)
        return out.detach().clone()

    around(q)
    assert recorded == [False]
