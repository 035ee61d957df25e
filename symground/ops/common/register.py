"""Ops of torch.library, made one way for every family of ops.

A kernel is a plain function without autograd, and its arguments may be records: named tuples such as `Mixing`, which
torch.library cannot take. Here, and nowhere else, a record is flattened into the arguments of a schema and put together
again for the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, islice
from typing import Any, get_type_hints

import torch
from torch import Tensor

from symground.ops.common.tensors import without_autocast


class Op:
    """``symground::<op>_<impl>``, called with the kernel's own arguments.

    No kernel sees autocast. A registered op returns tensors only, so that a result which was not asked, None from the
    kernel, is an empty tensor from the op. Most of these ops are derivatives themselves and have none of their own: one
    that is asked of them is an error that names the public op, until `differentiable` gives them one.
    """

    def __init__(
        self, op: str, impl: str, kernel: Callable[..., Any], takes: Sequence[Any], results: Callable[..., Any],
        *, returns: int = 1, device_types: str | None = None, nothing: Callable[..., bool] | None = None,
    ) -> None:  # fmt: skip
        """Register a kernel.

        Args:
            kernel: the arguments of ``takes`` → a tensor, or a tuple of ``returns`` tensors and Nones.
            takes: for each argument a piece of schema ("Tensor q"), or a class of records, whose fields are one each.
            results: the arguments of ``takes`` → contiguous tensors, or None, of the shapes and dtypes that the kernel
                returns, holding what is right where there is nothing to read. A compiled graph asks it for the shapes.
            returns: how many results there are.
            device_types: "cpu" for a kernel that runs there only.
            nothing: the arguments of ``takes`` → whether there is nothing to read: the kernel is not run then.
        """
        pieces = [[part] if isinstance(part, str) else _schema(part) for part in takes]
        arguments = [argument for piece in pieces for argument in piece]
        ends = list(accumulate(map(len, pieces)))
        #: Of each argument its class of records or None, and where its fields are among the schema's arguments.
        self._takes = [
            (None if isinstance(part, str) else part, end - len(piece), end)
            for part, piece, end in zip(takes, pieces, ends, strict=True)
        ]
        of = "Tensor" if returns == 1 else f"({', '.join(['Tensor'] * returns)})"

        def run(*flat: Any) -> Any:
            given = self.whole(flat)
            empty = nothing is not None and nothing(*given)
            return _tensors((results if empty else kernel)(*given), flat[0])

        def fake(*flat: Any) -> Any:
            return _tensors(results(*self.whole(flat)), flat[0])

        self.registered: Any = torch.library.custom_op(
            f"symground::{op}_{impl}", without_autocast(run), mutates_args=(), device_types=device_types,
            schema=f"({', '.join(arguments)}) -> {of}",
        )  # fmt: skip
        self.registered.register_fake(fake)
        public = op.removesuffix("_backward").removesuffix("_probed")
        order = "second derivative" if op.endswith("_backward") else "derivative"

        def refuse(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError(
                f"ops.{public}: impl {impl!r} has no {order}; impl='reference', which is plain PyTorch, has it"
            )

        self.registered.register_autograd(refuse)

    def __call__(self, *given: Any) -> Any:
        return self.registered(*_flat(given))

    def whole(self, flat: Sequence[Any]) -> list[Any]:
        """The arguments of the schema, put together into records."""
        return [flat[at] if record is None else record._make(flat[at:end]) for record, at, end in self._takes]

    def differentiable(self, keep: Callable[..., None], backward: Callable[..., Sequence[Any]]) -> None:
        """Give the op a derivative.

        Args:
            keep: (ctx, output, *arguments); it keeps what ``backward`` wants, with `save`.
            backward: (ctx, *gradients of the results) → a gradient or None for each argument, for a record of tensors a
                record of them. ``ctx.needs_input_grad`` has an entry for each argument of the schema.
        """

        def back(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            found: list[Any] = []
            for (record, at, end), grad in zip(self._takes, backward(ctx, *grads), strict=True):
                if record is None:
                    found.append(grad)
                else:
                    found += [None] * (end - at) if grad is None else grad
            return tuple(found)

        self.registered.register_autograd(
            back, setup_context=lambda ctx, inputs, output: keep(ctx, output, *self.whole(inputs))
        )


def save(ctx: Any, *values: Any) -> None:
    """Keep tensors, numbers, None and records of them for the backward pass."""
    flat = _flat(values)
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in flat))
    ctx.others = [None if isinstance(x, Tensor) else x for x in flat]
    ctx.records = [type(value) if isinstance(value, tuple) else None for value in values]


def saved(ctx: Any) -> list[Any]:
    """What `save` kept, in its order."""
    flat = iter([y if x is None else x for x, y in zip(ctx.saved_tensors, ctx.others, strict=True)])
    return [next(flat) if made is None else made._make(islice(flat, len(made._fields))) for made in ctx.records]


#: The type of a record's field → its type in a schema.
_TYPES: dict[Any, str] = {
    Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool", int: "int", int | None: "int?", float: "float",
    float | None: "float?",
}  # fmt: skip


def _schema(record: Any) -> list[str]:
    return [f"{_TYPES[of]} {name}" for name, of in get_type_hints(record).items()]


def _flat(values: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        if isinstance(value, tuple):
            flat += value
        else:
            flat.append(value)
    return flat


def _tensors(found: Any, like: Tensor) -> Any:
    if isinstance(found, Tensor):
        return found
    return tuple(like.new_empty(0) if x is None else x for x in found)
