"""A call up to its launches never waits for the device and makes no tensor on the host, so that CUDA graphs capture it.

The device is `meta`, whose tensors have no data: what would read data on the host fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

from benchmarks.common.absent_gpu import absent_gpu
from symground.kernels.common.launch import Launch
from symground.ops.common import register
from tests.ops.common.drawn import DIFFERENTIABLE, OPS, Case, call, came, draw, implementations

#: Ops of `triton` in plain PyTorch, and those whose gradients are: they launch none of our kernels.
PLAIN = ("attention_rows", "attention_topk")
PLAIN_GRADIENTS = ("attention_rows", "attention_mass", "attention_received", "attention_summary")


class NoNumbersOfPython(TorchFunctionMode):
    """Fails where a tensor, or an index, is made from numbers of Python, which are copied to the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor, torch.from_numpy), f"{func} copies numbers from the host"
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            indices = args[1] if isinstance(args[1], tuple) else args[1:2]
            assert not any(isinstance(x, list) for x in indices), f"{func} copies indices from the host"
        return func(*args, **(kwargs or {}))


class NoTensorOfTheHost(TorchDispatchMode):
    """Fails where an op takes or gives a tensor of the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, found)):
            assert not isinstance(x, Tensor) or x.is_meta, f"{func} has a tensor of the host"
        return found


@contextmanager
def on_the_device_only() -> Iterator[None]:
    with NoNumbersOfPython(), NoTensorOfTheHost():
        yield


@pytest.fixture
def launches() -> Iterator[list[Launch]]:
    """The launches of a test, which launch nothing."""
    found: list[Launch] = []
    with (
        absent_gpu("sm_90"),
        patch.object(register, "_only_autograd_listens", lambda given: True),  # as of a GPU's tensors
        patch.object(Launch, "__call__", lambda launch, *tensors: found.append(launch)),
    ):
        yield found


def on_device(x: Any) -> Any:
    """A tensor of the device, in the same layout."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def moved(case: Case) -> dict[str, Any]:
    given = {name: on_device(x) for name, x in case.given.items()}
    for name in case.leaves:
        given[name].requires_grad_()
    # A number of groups of None is taken from the ids, which waits for the device, as the docstring says.
    return given | {name: 3 for name, x in given.items() if x is None and name.startswith("num_")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("op", [op for op in OPS if "triton" in implementations(op)])
def test_a_launch_path_stays_on_the_device(op: str, dtype: torch.dtype, launches: list[Launch]) -> None:
    for seed in range(8):  # which masks, probes and layouts there are
        case = draw(op, seed, dtype=dtype, wide=True)
        given = moved(case)
        before = len(launches)
        with on_the_device_only():
            results = call(case, "triton", **given)
        assert len(launches) > before or op in PLAIN
        if op in DIFFERENTIABLE:
            grads = [on_device(x) for x in came(case, results, seed)]
            before = len(launches)
            with on_the_device_only():
                torch.autograd.grad(
                    results[: len(grads)], [given[name] for name in case.leaves], grads, allow_unused=True
                )
            assert len(launches) > before or op in PLAIN_GRADIENTS


@pytest.mark.parametrize(
    "planted",
    [
        lambda x: x.sum().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x * torch.tensor([1.0, 2.0]),
        lambda x: torch.arange(2).to(x.device),
        lambda x: x[[0, 1]],
    ],
)
def test_what_waits_or_is_of_the_host_is_noticed(planted: Callable[[Tensor], Any]) -> None:
    x = torch.empty(2, device="meta")
    with on_the_device_only(), pytest.raises((AssertionError, RuntimeError)):
        planted(x)
