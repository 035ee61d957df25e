"""Choosing the implementation of an op: by device if the caller does not name one, else exactly the one named.

An implementation is a module, or the `Ops` of one (`attention/autograd.py` and its like), with these functions:

- one for each op that it implements, by the op's name;
- ``refuses``: a tensor → the exception that says why it cannot use such tensors on this machine, or None;
- ``declines``, if ``impl=None`` should not always pick it: the op's arguments → why not, or None.

`Question` in place of the name asks what would run; `symground.ops.explain` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from symground.ops.common.disabled import DISABLED, refusal
from symground.ops.common.tensors import active, without_autocast


class Question:
    """Given as ``impl``, it makes the op raise an `Answer` in place of running."""

    def __init__(self, impl: str | None) -> None:
        self.impl = impl


class Answer(BaseException):
    """What would run; raised from within the op, past its checks of arguments. Nothing but `explain` catches it."""

    def __init__(self, op: str, impl: str | None, reasons: dict[str, str]) -> None:
        self.op, self.impl, self.reasons = op, impl, reasons


def choose(
    op: str, table: Mapping[str, Any], impl: str | Question | None, like: Tensor, *others: Any
) -> Callable[..., Any]:
    """Return the implementation of ``op`` to run.

    ``impl=None`` picks the first one in ``table`` that implements the op, is not switched off, does not refuse ``like``
    and does not decline ``like`` and ``others``. A named one is returned or refused; it is never replaced by another.
    The function returned takes a tensor first, and autocast does not change what it does.

    Raises:
        ValueError: ``op`` has no such implementation, or the implementation does not support such tensors.
        RuntimeError: this machine lacks something that the implementation needs.
    """
    if impl is None:
        impl = next(
            name for name, ops in table.items() if hasattr(ops, op) and _objection(name, ops, like, *others) is None
        )
    elif isinstance(impl, Question):
        raise _answer(op, table, impl.impl, like, *others)
    elif not isinstance(impl, str) or not hasattr(table.get(impl), op):
        names = sorted(name for name, ops in table.items() if hasattr(ops, op))
        raise ValueError(f"impl: ops.{op} has {', '.join(map(repr, names))}; got {impl!r}")
    else:
        refused = _refusal(impl, table[impl], like)
        if refused is not None:
            raise refused
    run: Callable[..., Any] = getattr(table[impl], op)
    if forward_ad._current_level >= 0 and impl != "reference":
        run = _without_tangents(op, impl, run)
    return without_autocast(run) if active(like.device.type) else run


def _refusal(name: str, ops: Any, like: Tensor) -> Exception | None:
    refused: Exception | None = refusal(name) if name in DISABLED else ops.refuses(like)
    return refused


def _objection(name: str, ops: Any, like: Tensor, *others: Any) -> Exception | str | None:
    """Why ``impl=None`` passes the implementation over, or None."""
    declines = getattr(ops, "declines", None)
    return _refusal(name, ops, like) or (declines(like, *others) if declines is not None else None)


def _answer(op: str, table: Mapping[str, Any], impl: str | None, like: Tensor, *others: Any) -> Answer:
    """The answer to a `Question`: what `choose` would do, and its reasons."""
    having = {name: ops for name, ops in table.items() if hasattr(ops, op)}
    if impl is not None:
        try:
            choose(op, table, impl, like, *others)
        except (ValueError, RuntimeError) as error:
            return Answer(op, None, {impl: str(error)})
        return Answer(op, impl, {impl: "it is named, and runs here"})
    chosen, reasons = None, {}
    for name, ops in having.items():
        objection = _objection(name, ops, like, *others)
        if objection is not None:
            reasons[name] = str(objection)
        elif chosen is None:
            chosen, reasons[name] = name, "the first that takes these tensors here"
        else:
            reasons[name] = f"it would take them, and comes after {chosen!r}"
    return Answer(op, chosen, reasons)


def _without_tangents(op: str, impl: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, which refuses dual numbers: registered ops have no forward mode, and torch would use tangents of 0.

    Inside another torch.func transform a tensor does not show whether it is a dual number, so it is treated as one.
    """
    within = len(torch._C._functorch.get_interpreter_stack() or ()) > 1

    def guarded(*args: Any) -> Any:
        for x in _tensors(args):
            if within or forward_ad.unpack_dual(x).tangent is not None:
                raise NotImplementedError(
                    f"ops.{op}: impl {impl!r} has no derivative in forward mode (torch.func.jvp, jacfwd, hessian, "
                    "forward_ad); impl='reference', which is plain PyTorch, has it"
                )
        return run(*args)

    return guarded


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    for x in args:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, tuple):
            yield from _tensors(x)
