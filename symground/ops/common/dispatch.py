"""Choosing the implementation of an op: by device if the caller does not name one, else exactly the one named.

An implementation is a module, or the `Ops` of one (`attention/autograd.py` and its like), with these functions:

- one for each op that it implements, by the op's name;
- ``refuses``: a tensor → the exception that says why it cannot use such tensors on this machine, or None;
- ``suits``, if ``impl=None`` should not always pick it: the op's tensors → whether to pick it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from symground.ops.common.tensors import active, without_autocast


def choose(op: str, table: Mapping[str, Any], impl: str | None, like: Tensor, *others: Tensor) -> Callable[..., Any]:
    """Return the implementation of ``op`` to run.

    ``impl=None`` picks the first one in ``table`` that implements the op, suits, and does not refuse ``like``. A named
    one is returned or refused; it is never replaced by another. The function returned takes a tensor first, and
    autocast does not change what it does.

    Raises:
        ValueError: ``op`` has no such implementation, or the implementation does not support such tensors.
        RuntimeError: this machine lacks something that the implementation needs.
    """
    if impl is None:
        impl = next(
            name
            for name, ops in table.items()
            if hasattr(ops, op) and _suits(ops, like, *others) and ops.refuses(like) is None
        )
    elif not isinstance(impl, str) or not hasattr(table.get(impl), op):
        names = sorted(name for name, ops in table.items() if hasattr(ops, op))
        raise ValueError(f"impl: ops.{op} has {', '.join(map(repr, names))}; got {impl!r}")
    else:
        refusal = table[impl].refuses(like)
        if refusal is not None:
            raise refusal
    run: Callable[..., Any] = getattr(table[impl], op)
    if forward_ad._current_level >= 0 and impl != "reference":
        run = _without_tangents(op, impl, run)
    return without_autocast(run) if active(like.device.type) else run


def _suits(ops: Any, *given: Tensor) -> bool:
    return not hasattr(ops, "suits") or bool(ops.suits(*given))


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
