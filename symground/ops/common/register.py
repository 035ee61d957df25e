"""The one way in which every family of ops registers its ops with torch.library.

A kernel is a plain function without autograd. Its arguments may be records: named tuples such as `Mixing`, which
torch.library does not accept. Only this module flattens a record into the arguments of a schema and rebuilds it for the
kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, get_type_hints

import torch
from torch import Tensor

from symground.ops.common.tensors import without_autocast


class Op:
    """``symground::<op>_<impl>``, called with the kernel's own arguments.

    Kernels run without autocast. A registered op returns only tensors, so a result that is None because it was not
    requested becomes an empty tensor. Most of these ops are derivatives themselves and have no derivative: requesting
    one raises an error that names the public op, unless `differentiable` has given the op one.
    """

    def __init__(
        self, op: str, impl: str, kernel: Callable[..., Any], takes: Sequence[Any], results: Callable[..., Any],
        *, returns: int = 1, device_types: str | None = None, is_empty: Callable[..., bool] | None = None,
    ) -> None:  # fmt: skip
        """Register a kernel.

        Args:
            kernel: the arguments of ``takes`` → a tensor, or a tuple of ``returns`` tensors and Nones.
            takes: a piece of schema ("Tensor q") for each argument, or a record class, each field of which is an
                argument.
            results: the arguments of ``takes`` → contiguous tensors, or None, with the kernel's shapes and dtypes. It
                is the fake implementation, and also gives the results where there is nothing to read.
            returns: how many results there are.
            device_types: "cpu" for a kernel that runs only there.
            is_empty: the arguments of ``takes`` → whether there is nothing to read; the kernel is not run then.
        """
        pieces = [[part] if isinstance(part, str) else _schema(part) for part in takes]
        arguments = [argument for piece in pieces for argument in piece]
        ends = list(accumulate(map(len, pieces)))
        #: The records from the last to the first: its place among the arguments, its class, and the range of its fields
        #: among the schema's arguments.
        self._records = [
            (place, part, end - len(piece), end)
            for place, (part, piece, end) in enumerate(zip(takes, pieces, ends, strict=True))
            if not isinstance(part, str)
        ][::-1]
        of = "Tensor" if returns == 1 else f"({', '.join(['Tensor'] * returns)})"

        def run(*flat: Any) -> Any:
            given = self.whole(flat)
            run_kernel = is_empty is None or not is_empty(*given)
            return _tensors((kernel if run_kernel else results)(*given), flat[0])

        def fake(*flat: Any) -> Any:
            return _tensors(results(*self.whole(flat)), flat[0])

        self.handle: Any = torch.library.custom_op(
            f"symground::{op}_{impl}", without_autocast(run), mutates_args=(), device_types=device_types,
            schema=f"({', '.join(arguments)}) -> {of}",
        )  # fmt: skip
        self.handle.register_fake(fake)
        public = op.removesuffix("_backward").removesuffix("_probed")
        order = "second derivative" if op.endswith("_backward") else "derivative"

        def refuse(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError(
                f"ops.{public}: impl {impl!r} has no {order}; impl='reference', which is plain PyTorch, has it"
            )

        self.handle.register_autograd(refuse)

    def __call__(self, *given: Any) -> Any:
        flat = list(given)
        for place, *_ in self._records:
            flat[place : place + 1] = flat[place]
        return self.handle(*flat)

    def whole(self, flat: Sequence[Any]) -> list[Any]:
        """The schema's arguments, with the records rebuilt."""
        given = list(flat)
        for _, record, at, end in self._records:
            given[at:end] = [record(*given[at:end])]
        return given

    def differentiable(self, keep: Callable[..., None], backward: Callable[..., Sequence[Any]]) -> None:
        """Give the op a derivative.

        Args:
            keep: (ctx, output, *arguments); it saves what ``backward`` needs, with `save`.
            backward: (ctx, needs, *gradients of the results) → a gradient or None for each argument, for a record of
                tensors a record of gradients; those that are not needed are dropped. ``needs`` is whether the gradient
                of each argument is needed, for a record a record of bools.
        """

        def back(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            found = list(backward(ctx, self.whole(ctx.needs_input_grad), *grads))
            for place, _, at, end in self._records:
                found[place : place + 1] = [None] * (end - at) if found[place] is None else found[place]
            return tuple(x if needed else None for x, needed in zip(found, ctx.needs_input_grad, strict=True))

        self.handle.register_autograd(
            back, setup_context=lambda ctx, inputs, output: keep(ctx, output, *self.whole(inputs))
        )


def save(ctx: Any, *values: Any) -> None:
    """Save tensors, numbers, None and records of them for the backward pass."""
    tensors: list[Tensor] = []

    def taken(value: Any) -> Any:
        """``value`` with each tensor replaced by `_SAVED`."""
        if isinstance(value, Tensor):
            tensors.append(value)
            return _SAVED
        return type(value)(*map(taken, value)) if isinstance(value, tuple) else value

    ctx.others = [taken(value) for value in values]
    ctx.save_for_backward(*tensors)


def saved(ctx: Any) -> list[Any]:
    """The values that `save` saved, in order."""
    tensors = iter(ctx.saved_tensors)

    def given(value: Any) -> Any:
        if value is _SAVED:
            return next(tensors)
        return type(value)(*map(given, value)) if isinstance(value, tuple) else value

    return [given(value) for value in ctx.others]


#: Stands for a tensor that torch saves.
_SAVED = object()


#: The type of a record's field → its type in a schema.
_TYPES: dict[Any, str] = {
    Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool", int: "int", int | None: "int?", float: "float",
    float | None: "float?",
}  # fmt: skip


def _schema(record: Any) -> list[str]:
    return [f"{_TYPES[of]} {name}" for name, of in get_type_hints(record).items()]


def _tensors(found: Any, like: Tensor) -> Any:
    if isinstance(found, Tensor):
        return found
    return tuple(like.new_empty(0) if x is None else x for x in found)
