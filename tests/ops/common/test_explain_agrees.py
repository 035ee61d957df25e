"""`ops.explain` names what then runs, and refuses, in the same words, what then raises."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from symground import ops
from tests.ops.common.drawn import OPS, arguments, draw, implementations

Body = Callable[[Tensor], Tensor]


def within(around: Callable[[], AbstractContextManager[Any]]) -> Callable[[Body, Tensor], Any]:
    def run(body: Body, x: Tensor) -> None:
        with around():
            body(x)

    return run


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def dual(body: Body, x: Tensor) -> None:
    with forward_ad.dual_level():
        body(forward_ad.make_dual(x, torch.ones_like(x)))


def of_another(body: Body, x: Tensor) -> None:
    """A gradient of something that does not reach the op."""
    torch.func.grad(lambda y: body(x) * y)(torch.ones(()))


def inner_without_gradient(body: Body, x: Tensor) -> None:
    """The inner transform does not record x, and the outer one records nothing of what is in the inner one."""

    def outer(x: Tensor) -> Tensor:
        with torch.no_grad():
            torch.func.grad(lambda y: body(x) * y)(torch.ones(()))
        return x.sum()

    torch.func.grad(outer)(x)


#: Where an op may be called → how: with a function of one argument of the op, and this argument.
AROUND: dict[str, Callable[[Body, Tensor], Any]] = {
    "nothing": within(nullcontext),
    "grad": lambda body, x: body(x.detach().requires_grad_()),
    "no_grad": within(torch.no_grad),
    "inference_mode": within(torch.inference_mode),
    "autocast": within(lambda: torch.autocast("cpu", torch.bfloat16)),
    "deterministic": within(deterministic),
    "dual number": dual,
    "dual level": within(forward_ad.dual_level),
    "jvp": lambda body, x: torch.func.jvp(body, (x,), (torch.ones_like(x),)),
    "func.grad": lambda body, x: torch.func.grad(body)(x),
    "func.grad, no_grad": lambda body, x: torch.func.grad(lambda y: torch.no_grad()(body)(y) + y.sum())(x),
    "func.grad of another": of_another,
    "func.grad of another, of leaves": lambda body, x: of_another(body, x.detach().requires_grad_()),
    "func.grad without, in func.grad": inner_without_gradient,
    "jacrev": lambda body, x: torch.func.jacrev(body)(x),
    "vmap": lambda body, x: torch.func.vmap(body)(x[None]),
    "vmap of grad": lambda body, x: torch.func.vmap(torch.func.grad(body))(x[None]),
    "grad of vmap": lambda body, x: torch.func.grad(lambda y: torch.func.vmap(body)(y[None]).sum())(x),
    "grad of grad": lambda body, x: torch.func.grad(lambda y: torch.func.grad(body)(y).sum())(x),
    "vmap, of leaves": lambda body, x: torch.func.vmap(body)(x.detach().requires_grad_()[None]),
    "hessian": lambda body, x: torch.func.hessian(body)(x),
}
#: What no op has; each of another kind.
UNKNOWN = ("nope", "", "CPU", 5, 0, True, ["cpu"], {"cpu": 1}, torch.ones(2), np.arange(2), ..., b"cpu")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The op and the implementation of each call that has come as far as an implementation."""
    found: list[tuple[str, str]] = []

    def recorded(op: str, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            found.append((op, name))
            return run(*args)

        return call

    for op in OPS:
        table = sys.modules[getattr(ops, op).__module__].IMPLEMENTATIONS
        for name in implementations(op):
            of = table[name]
            known = {n: getattr(of, n) for n in (*OPS, "refuses", "lacks", "declines", "checks") if hasattr(of, n)}
            monkeypatch.setitem(table, name, SimpleNamespace(**{**known, op: recorded(op, name, known[op])}))
    return found


def compare(op: str, where: str, impl: Any, seed: int, ran: list[tuple[str, str]], spoil: bool) -> None:
    rng = random.Random(seed)
    case = draw(op, seed, layouts=False, dtype=rng.choice([torch.float32, torch.float64, torch.bfloat16]))
    varied = rng.choice([n for n, x in case.given.items() if isinstance(x, Tensor) and x.is_floating_point()])
    if spoil:
        case.given["gate" if case.given.get("gate") is not None else varied].fill_(torch.nan)
    seen: list[tuple[Any, Any]] = []

    def body(x: Tensor) -> Tensor:
        z = arguments(case, **{varied: x})
        told: Any
        try:
            told = ops.explain(op, **z, impl=impl)
            assert isinstance(str(told), str)
        except Exception as error:
            told = error
        ran.clear()
        try:
            found = getattr(ops, op)(**z, impl=impl)
        except Exception as error:
            seen.append((told, error))
            return x.sum()
        seen.append((told, ran[0]))
        results = found if isinstance(found, tuple) else (found,)
        return sum((r.sum() for r in results if isinstance(r, Tensor)), torch.zeros(())) + x.sum()

    AROUND[where](body, case.given[varied].contiguous())
    assert seen
    for told, came in seen:
        about = f"{case} of {varied} in {where} with impl={impl!r}: {told!r}, and the op {came!r}"
        if isinstance(told, Exception):
            assert type(told) is type(came), about
            assert str(told) == str(came), about
        elif isinstance(came, Exception):
            assert told.impl is None, about
            assert any(str(came) in why for why in told.reasons.values()), about
            assert isinstance(came, (ValueError, RuntimeError)), about
        else:
            assert came == (op, told.impl), about


@pytest.mark.parametrize("where", AROUND)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore")
def test_it_names_what_runs_and_refuses_what_raises(op: str, where: str, ran: list[tuple[str, str]]) -> None:
    for at, impl in enumerate((None, *implementations(op), random.Random(f"{op} {where}").choice(UNKNOWN))):
        for seed in range(3):
            compare(op, where, impl, 100 * at + seed, ran, spoil=seed == 2)


@pytest.mark.parametrize("impl", UNKNOWN, ids=repr)
@pytest.mark.parametrize("op", OPS)
def test_an_unknown_name_is_the_ops_own_error(op: str, impl: Any, ran: list[tuple[str, str]]) -> None:
    compare(op, "nothing", impl, 1, ran, spoil=False)
    with pytest.raises(ValueError, match=rf"impl: ops\.{op} has '.*'; got {re.escape(repr(impl))}"):
        ops.explain(op, **arguments(draw(op, 1)), impl=impl)


def test_the_page_lists_them_in_the_order_in_which_they_are_tried() -> None:
    page = (Path(ops.__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    for op in set(OPS) - {"causal_conv1d", "mamba2_inner"}:  # which the table does not have
        (row,) = (line for line in page.splitlines() if line.startswith("| `") and f"`{op}`" in line.split("|")[1])
        named = row.replace("\\|", "").split("|")[3]
        own = re.search(rf"`{op}`: ([\w, ]+)", named) or re.search(r"the other two: ([\w, ]+)", named)
        assert (own[1] if own else named).strip().split(", ") == implementations(op)
