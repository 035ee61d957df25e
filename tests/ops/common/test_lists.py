"""A new op joins the tests of all ops, or fails here by its name."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from symground import ops
from tests.ops.common.drawn import DIFFERENTIABLE, OPS, draw, implementations
from tests.ops.common.fuzz import check

#: Further ops of torch.library for a public op: its derivative, and its forward pass with probes.
FURTHER = ("", "_backward", "_probed")
#: Public ops that are one op of torch.library, which computes whatever is asked for.
ONE = {f"attention_{name}": "attention_read" for name in ("rows", "mass", "received", "summary", "pooled")}
ONE["ssd_mass"] = "ssd_received"


def test_every_op_is_drawn_and_has_an_oracle() -> None:
    public = set(ops.__all__) - {"explain"}  # which asks about the others
    assert {draw(op, 0).op for op in public} == set(OPS) == public


def registered() -> set[str]:
    """The names of symground's ops of torch.library."""
    names = (name.split("::") for name in torch._C._dispatch_get_all_op_names())
    return {name for space, name in names if space == "symground"}


def registered_for(op: str, impl: str) -> set[str]:
    return registered() & {f"{ONE.get(op, op)}{more}{of}" for more in FURTHER for of in ("", f"_{impl}")}


def test_every_registered_op_belongs_to_a_public_one() -> None:
    assert registered() == set().union(*(registered_for(op, impl) for op in OPS for impl in implementations(op)))


class Calls(TorchDispatchMode):
    """The last call of each of symground's ops of torch.library."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "symground":
            self.found[func._opname] = func, args
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("op", "impl"), [(op, impl) for op in OPS for impl in ("cpu", "triton") if impl in implementations(op)]
)
def test_opcheck_of_every_registered_op(op: str, impl: str) -> None:
    """On a drawn call of the public op and on its derivative."""
    if impl == "triton" and (torch.cuda.is_available() or not find_spec("triton")):
        pytest.skip("needs Triton's interpreter, which is off where there is a GPU")
    with Calls() as calls:
        for seed in range(3):  # some draws have probes
            case = draw(op, seed, dtype=torch.float32, wide=True, layouts=False)
            check(case, impl, "backward" if op in DIFFERENTIABLE else "no grad")
    wanted = {name for name in registered_for(op, impl) if op in DIFFERENTIABLE or "_backward" not in name}
    assert calls.found.keys() >= wanted
    for name in wanted:
        function, arguments = calls.found[name]
        differentiable = op in DIFFERENTIABLE and "_backward" not in name
        given = [
            x.detach().requires_grad_(x.requires_grad and differentiable) if isinstance(x, Tensor) else x
            for x in arguments
        ]
        torch.library.opcheck(function, given)
