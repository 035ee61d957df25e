"""The one way in which every family of ops registers its ops with torch.library, and calls them.

An eager call on plain tensors goes straight to the kernel, or to a function of autograd around it: the dispatcher would
do the same, but converts each argument four times on the way, which takes longer than a small op. Whatever else listens
to ops (a graph that is traced, a mode, a transform, a subclass) finds them at the dispatcher.

A kernel is a plain function without autograd. Its arguments may be records: named tuples such as `Mixing`, which
torch.library does not accept. Only this module flattens a record into the arguments of a schema and rebuilds it for the
kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate
from operator import or_
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _dispatch_keys,
    _dispatch_tls_local_exclude_set,
    _dispatch_tls_local_include_set,
)
from torch.autograd import forward_ad

from symground.ops.common.compiled import opaque
from symground.ops.common.tensors import without_autocast

#: The library of each op, so that an op can be defined again when its module is imported again.
_libraries: dict[str, torch.library.Library] = {}


def define(
    name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any], backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None, *, cpu_only: bool = False,
) -> Any:  # fmt: skip
    """``torch.ops.symground.<name>``, differentiable, and opaque to torch.compile; a function that calls it.

    ``torch.library.custom_op`` would do the same, but its checks at each call take longer than a small op. ``run`` is a
    kernel, which runs without autocast. A registered op returns only tensors, so a result that is None becomes an empty
    tensor, except in an eager call that no gradient needs.
    """
    if name in _libraries:
        _libraries.pop(name)._destroy()
    library = _libraries[name] = torch.library.Library("symground", "FRAGMENT")
    library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))

    def kernel(*given: Any) -> Any:
        return _tensors(run(*given), given[0])

    # Else torch.compile traces into the kernel of an op that is called from a frame that it skips.
    hidden = opaque(without_autocast(kernel))
    library.impl(name, hidden, "CPU" if cpu_only else "CompositeExplicitAutograd")
    torch.library.register_fake(f"symground::{name}", fake, lib=library)
    torch.library.register_autograd(f"symground::{name}", backward, setup_context=setup_context, lib=library)
    registered = getattr(torch.ops.symground, name).default

    def forward(ctx: Any, *given: Any) -> Any:
        found = kernel(*given)
        if setup_context is not None:
            setup_context(ctx, given, found)
        return found

    of_autograd = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(name, (torch.autograd.Function,), of_autograd)
    # Without the part of Function.apply that is for torch.func: where a transform is active, it is not called.
    apply: Any = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def call(*given: Any) -> Any:
        if torch.compiler.is_compiling() or not _only_autograd_listens(given):
            return registered(*given)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*given):
            return apply(*given)
        return run(*given)

    return call


def _keys(*names: str) -> int:
    """The bits of some of the dispatcher's keys."""
    return reduce(or_, (DispatchKeySet(getattr(DispatchKey, name)).raw_repr() for name in names))


#: The keys of plain tensors, at which nothing but autograd has anything to do with our ops.
_PLAIN = _keys("CPU", "CUDA", "ADInplaceOrView", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA")
#: What a thread adds to every tensor's keys where no mode, transform or tracer is active.
_ADDED = _keys("BackendSelect", "ADInplaceOrView")
#: What it removes where autocast is off.
_AUTOCAST = _keys("AutocastCPU", "AutocastCUDA")
#: What it removes where autograd has already been passed, as in a kernel of another library that calls us, and in
#: inference mode, where no gradient is enabled.
_PASSED = _keys("AutogradCPU") & ~_keys("CPU")


def _only_autograd_listens(given: Sequence[Any]) -> bool:
    """Whether the dispatcher would call autograd and the kernel with these arguments, and nothing else."""
    keys = 0
    for x in given:
        if isinstance(x, Tensor):
            keys |= _dispatch_keys(x).raw_repr()
    removed = _dispatch_tls_local_exclude_set().raw_repr()
    return not (
        keys & ~_PLAIN
        or _dispatch_tls_local_include_set().raw_repr() & ~_ADDED
        or (removed & _PASSED and torch.is_grad_enabled())
        or ~removed & _AUTOCAST
        or torch._C._len_torch_function_stack()
        or forward_ad._current_level >= 0
        or torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None
    )


class Derivative(NamedTuple):
    """The derivative of an `Op`.

    Attributes:
        keep: (ctx, output, *arguments); it saves what ``backward`` needs, with `save`.
        backward: (ctx, needs, *gradients of the results) → a gradient or None for each argument, for a record of
            tensors a record of gradients; those that are not needed are dropped. ``needs`` is whether the gradient of
            each argument is needed, for a record a record of bools.
    """

    keep: Callable[..., None]
    backward: Callable[..., Sequence[Any]]


class Op:
    """``symground::<op>_<impl>``, called with the kernel's own arguments.

    A result may be None because it was not requested. Most of these ops are derivatives themselves and have no
    derivative: requesting one raises an error that names the public op.
    """

    def __init__(
        self, op: str, kernel: Callable[..., Any], takes: Sequence[Any], results: Callable[..., Any], *, impl: str,
        returns: int = 1, cpu_only: bool = False, is_empty: Callable[..., bool] | None = None,
        derivative: Derivative | None = None,
    ) -> None:  # fmt: skip
        """Register a kernel.

        Args:
            kernel: the arguments of ``takes`` → a tensor, or a tuple of ``returns`` tensors and Nones.
            takes: a piece of schema ("Tensor q") for each argument, or a record class, each field of which is an
                argument.
            results: the arguments of ``takes`` → contiguous tensors, or None, with the kernel's shapes and dtypes. It
                is the fake implementation, and also gives the results where there is nothing to read.
            returns: how many results there are.
            cpu_only: whether the kernel runs on CPU tensors only.
            is_empty: the arguments of ``takes`` → whether there is nothing to read; the kernel is not run then.
            derivative: None refuses derivatives.
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
            return (kernel if run_kernel else results)(*given)

        def fake(*flat: Any) -> Any:
            return _tensors(results(*self.whole(flat)), flat[0])

        def back(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            if derivative is None:
                order = "second derivative" if op.endswith("_backward") else "derivative"
                raise NotImplementedError(
                    f"ops.{op.removesuffix('_backward').removesuffix('_probed')}: impl {impl!r} has no {order}; "
                    "impl='reference', which is plain PyTorch, has it"
                )
            found = list(derivative.backward(ctx, self.whole(ctx.needs_input_grad), *grads))
            for place, _, at, end in self._records:
                found[place : place + 1] = [None] * (end - at) if found[place] is None else found[place]
            return tuple(x if needed else None for x, needed in zip(found, ctx.needs_input_grad, strict=True))

        def keep(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
            assert derivative is not None
            derivative.keep(ctx, output, *self.whole(inputs))

        self._handle = define(
            f"{op}_{impl}", f"({', '.join(arguments)}) -> {of}", run, fake, back,
            None if derivative is None else keep, cpu_only=cpu_only,
        )  # fmt: skip

    def __call__(self, *given: Any) -> Any:
        flat = list(given)
        for place, *_ in self._records:
            flat[place : place + 1] = flat[place]
        return self._handle(*flat)

    def whole(self, flat: Sequence[Any]) -> list[Any]:
        """The schema's arguments, with the records rebuilt."""
        given = list(flat)
        for _, record, at, end in self._records:
            given[at:end] = [record._make(given[at:end])]
        return given


#: The place of a tensor that torch saves.
_SAVED = object()


def save(ctx: Any, *values: Any) -> None:
    """Save tensors, numbers, None and records of them for the backward pass."""
    flat: list[Any] = []
    for value in values:
        if isinstance(value, tuple):
            flat += value
        else:
            flat.append(value)
    ctx.save_for_backward(*[x for x in flat if isinstance(x, Tensor)])
    ctx.flat = [_SAVED if isinstance(x, Tensor) else x for x in flat]
    ctx.records = [(place, type(value)) for place, value in enumerate(values) if isinstance(value, tuple)]


def saved(ctx: Any) -> list[Any]:
    """The values that `save` saved, in order."""
    tensors = iter(ctx.saved_tensors)
    values = [next(tensors) if x is _SAVED else x for x in ctx.flat]
    for place, record in ctx.records:
        end = place + len(record._fields)
        values[place:end] = [record._make(values[place:end])]
    return values


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
