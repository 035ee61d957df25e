"""Ops of torch.library as this package defines them: no kernel sees autocast, and a missing derivative is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from symground.ops._autocast import without_autocast


def define(op: str, impl: str, function: Callable[..., Any], schema: str, device_types: str | None) -> Any:
    """Register ``function`` as ``symground::<op>_<impl>``; ``register_fake`` and ``register_autograd`` follow.

    Until ``register_autograd`` gives it a derivative, one that is asked of it is an error that speaks of the user's
    function: most of these ops are derivatives themselves, and have none of their own.
    """
    defined = torch.library.custom_op(
        f"symground::{op}_{impl}", without_autocast(function), mutates_args=(), device_types=device_types, schema=schema
    )
    public = op.removesuffix("_backward").removesuffix("_probed")

    def backward(ctx: Any, *grads: Any) -> Any:
        order = "second derivative" if op.endswith("_backward") else "derivative"
        raise NotImplementedError(
            f"ops.{public}: impl {impl!r} has no {order}; impl='reference', which is plain PyTorch, has it"
        )

    defined.register_autograd(backward)
    return defined
