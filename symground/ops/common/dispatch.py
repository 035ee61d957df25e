"""Choosing the implementation of an op: by device if the caller does not name one, else exactly the one named.

An implementation is a module, or the `Ops` of one (`attention/autograd.py` and its like), with these functions:

- one for each op that it implements, by the op's name;
- ``refuses``: a tensor → the exception that says why it cannot use such tensors on this machine, or None;
- ``lacks``, if it does not take every call with such tensors: the op's arguments → what it does not take, or None;
- ``declines``, if ``impl=None`` should not always pick it: the op's arguments → why not, or None;
- ``checks``, if it checks values while it computes: the op's arguments → nothing, or the exception that it would raise.

`Question` in place of the name asks what would run; `symground.ops.explain` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from symground.ops.common.differentiated import any_taken, no_derivative, refusing_derivatives
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

    ``impl=None`` picks the first one in ``table`` that implements the op, is not switched off, does not refuse
    ``like``, and neither lacks nor declines ``like`` and ``others``. A named one is returned or refused; it is never
    replaced by another. The function returned takes a tensor first, and autocast does not change what it does. For a
    `Question` it raises the `Answer`.

    Raises:
        ValueError: ``op`` has no such implementation, or the implementation does not support such tensors.
        RuntimeError: this machine lacks something that the implementation needs.
    """
    having = {name: ops for name, ops in table.items() if hasattr(ops, op)}
    if isinstance(impl, Question):
        _check_name(op, having, impl.impl)
        return partial(_answer, op, having, impl.impl, (like, *others))
    _check_name(op, having, impl)
    if impl is None:
        impl = next(name for name, ops in having.items() if _objection(name, ops, like, *others) is None)
    else:
        refused = _refusal(impl, having[impl], like, *others)
        if refused is not None:
            raise refused
    run: Callable[..., Any] = getattr(having[impl], op)
    if any_taken():
        run = refusing_derivatives(op, impl, run)
    return without_autocast(run) if active(like.device.type) else run


def _check_name(op: str, having: Mapping[str, Any], impl: object) -> None:
    if impl is not None and (not isinstance(impl, str) or impl not in having):
        raise ValueError(f"impl: ops.{op} has {', '.join(map(repr, sorted(having)))}; got {impl!r}")


def _refusal(name: str, ops: Any, like: Tensor, *others: Any) -> Exception | None:
    """Why the implementation cannot run, even if it is named, or None."""
    refused: Exception | None = refusal(name) if name in DISABLED else ops.refuses(like)
    if refused is None and (lacks := getattr(ops, "lacks", None)) is not None:
        lacking = lacks(like, *others)
        refused = None if lacking is None else ValueError(lacking)
    return refused


def _objection(name: str, ops: Any, like: Tensor, *others: Any) -> Exception | str | None:
    """Why ``impl=None`` passes the implementation over, or None."""
    declines = getattr(ops, "declines", None)
    return _refusal(name, ops, like, *others) or (declines(like, *others) if declines is not None else None)


def _answer(op: str, having: Mapping[str, Any], impl: str | None, by: tuple[Any, ...], *given: Any) -> Any:
    """Raise the answer to a `Question`: what `choose` does by ``by``, and its choice with ``given``."""
    if impl is not None:
        refused = _refusal(impl, having[impl], *by) or no_derivative(op, impl, given)
        if refused is not None:
            raise Answer(op, None, {impl: str(refused)})
        _check_values(having[impl], given)
        raise Answer(op, impl, {impl: "it is named, and runs here"})
    picked, runs, reasons = None, None, {}
    for name, ops in having.items():
        objection, refused = _objection(name, ops, *by), no_derivative(op, name, given)
        if objection is not None:
            reasons[name] = str(objection)
        elif picked is None:
            picked = name
            runs = name if refused is None else None
            reasons[name] = "the first that takes these tensors here" + ("" if refused is None else f", but {refused}")
        elif refused is None:
            reasons[name] = f"it would take them, and comes after {picked!r}"
        else:
            reasons[name] = str(refused)
    if runs is not None:
        _check_values(having[runs], given)
    raise Answer(op, runs, reasons)


def _check_values(ops: Any, given: tuple[Any, ...]) -> None:
    checks = getattr(ops, "checks", None)
    if checks is not None:
        checks(*given)
