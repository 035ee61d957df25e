"""Attention that a model writes out in PyTorch, in place of calling an attention function.

If a block taps such a module, its forward pass runs as it is, but the product of its queries and keys is not computed.
A `Scores` takes the place of the product and records what the code does to it: scales it, adds a mask or a bias, takes
the softmax. At the product with the values, `ops.attention` computes what the record says. Whatever else the code does
to its scores is refused by name. Where nothing is tapped, the model's own code runs unchanged.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from symground.models.architectures.attention import attend
from symground.models.architectures.mamba2 import MambaMixer
from symground.models.architectures.scores import Scores, among, name_of, refused, terms_of
from symground.models.hooks import Mixer, tap_of
from symground.ops.attention.mixing import Mixing

_RUNNING = threading.local()
"""``modes``: the modes of the forward passes that run in this thread, or None for those without; ``twins``."""
#: The attribute of a module of which `is_learnt` is true.
_LEARNT = "_symground_learnt"


def is_written_out(module: nn.Module) -> bool:
    """Whether an attention module calls no attention function by the name in transformers' configuration."""
    kind: Any = type(module)
    return not isinstance(module, MambaMixer) and not _calls_attention_function(kind)


@cache
def _calls_attention_function(kind: Any) -> bool:
    try:
        return any("ALL_ATTENTION_FUNCTIONS" in inspect.getsource(of) for of in (kind.forward, kind))
    except (OSError, TypeError):  # a class typed in at a prompt
        return False


def watch(mixers: Sequence[Mixer]) -> list[RemovableHandle]:
    """Hooks that run tapped modules, which write their attention out, under the mode described above."""
    handles = []
    for mixer in mixers:
        handles.append(mixer.module.register_forward_pre_hook(partial(_enter, mixer.heads)))
        handles.append(mixer.module.register_forward_hook(_leave, always_call=True))
    return handles


@contextmanager
def twins_pass() -> Iterator[None]:
    """A block around a pass over two equal examples, by which tapped modules learn where examples and heads are."""
    before, _RUNNING.twins = getattr(_RUNNING, "twins", False), True
    try:
        yield
    finally:
        _RUNNING.twins = before


def is_learnt(module: nn.Module) -> bool:
    """Whether a pass over twins has shown that a module has the heads of an example side by side."""
    return getattr(module, _LEARNT, False)


def _enter(heads: int, module: nn.Module, args: Any) -> None:
    """A hook before the forward pass of a module with so many heads."""
    _RUNNING.modes = modes = [*getattr(_RUNNING, "modes", ()), None]
    if not tap_of(module).idle:
        modes[-1] = _Watch(module, heads)
        modes[-1].__enter__()


def _leave(module: nn.Module, args: Any, output: Any) -> Any:
    mode = _RUNNING.modes.pop()
    if mode is None:
        return None
    mode.__exit__(None, None, None)
    if output is None:  # the forward pass failed
        return None
    if not mode.computed:
        raise refused(module, "take no product of attention weights and values that symground sees")
    if mode.computed != 1:
        raise refused(module, f"take {mode.computed} products of attention weights and values in place of one")
    if isinstance(output, (tuple, list)):
        return type(output)(None if isinstance(x, Scores) else x for x in output)
    return output


class _Watch(TorchFunctionMode):
    """Within it, products of queries and keys are `Scores`, which `scaled_dot_product_attention` takes in one step."""

    def __init__(self, module: nn.Module, heads: int) -> None:
        super().__init__()
        self.module, self.heads, self.computed, self._computing = module, heads, 0, False

    def attended(self, query: Tensor, key: Tensor, value: Tensor, mixing: Mixing, dropout: float) -> Tensor:
        """The heads' outputs [B,H,T,Dv]."""
        self.computed, self._computing = self.computed + 1, True
        try:
            return attend(self.module, query, key, value, mixing, dropout).transpose(1, 2)
        finally:
            self._computing = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._computing:
            return func(*args, **kwargs)
        name = name_of(func).strip("_")
        scores = among((*args, *kwargs.values()))
        if scores is not None:
            return scores.call(name_of(func), *args, **kwargs)
        if name == "scaled_dot_product_attention":
            return self._all_at_once(*args, **kwargs)
        if name in ("matmul", "bmm") and len(args) == 2:
            product = self._product(*args)
            if product is not None:
                return product
        if name == "baddbmm":
            return self._biased(*args, **kwargs)
        if name == "einsum" and len(args) == 3 and isinstance(args[0], str):
            product = self._einsum(*args)
            if product is not None:
                return product
        if name == "softmax" and args[0].ndim > 2:
            raise refused(self.module, "take the softmax of scores that are not one product of queries and keys")
        return func(*args, **kwargs)

    def _product(self, x: Tensor, y: Tensor) -> Scores | None:
        """The product of queries and transposed keys, if these tensors have the dimensions of such."""
        if x.ndim not in (3, 4) or y.ndim != x.ndim or x.shape[-1] != y.shape[-2]:
            return None
        query, key = x, y.transpose(-1, -2)
        if x.ndim == 3:
            if len(x) != len(y) or len(x) % self.heads:
                return None
            query, key = (z.reshape(-1, self.heads, *z.shape[1:]) for z in (query, key))
        if query.shape[1] != self.heads or len(query) != len(key) or self.heads % key.shape[1]:
            return None
        self._check_order(query, x.ndim == 3)
        return Scores(self, query, key, (*x.shape[:-1], y.shape[-1]))

    def _check_order(self, query: Tensor, folded: bool) -> None:
        """Refuse queries whose first dimension is that of the heads, which a shape does not always tell."""
        batch, heads = query.shape[:2]
        if getattr(_RUNNING, "twins", False) and batch == 2:
            first, second = query.detach()
            if not torch.allclose(first, second, rtol=1e-3, atol=1e-5):
                raise refused(
                    self.module,
                    "have other queries for two equal examples, as if the examples of a head were side by side in "
                    "place of an example's heads, or as if the pass were random",
                )
            object.__setattr__(self.module, _LEARNT, True)
        elif batch > 1 and (folded or batch == heads) and not is_learnt(self.module):
            raise ValueError(
                f"model: {type(self.module).__name__} does not show whether its first dimension, of {batch}, is the "
                "examples or the heads; symground.trace with a loss finds out, unless the layer makes several rows of "
                "an example (frames, patches), which are not traced"
            )

    def _einsum(self, equation: str, x: Tensor, y: Tensor) -> Scores | None:
        """The product of queries and keys by an equation such as "bhid,bhjd->bhij" or "bihd,bjhd->bhij"."""
        terms = terms_of(equation)
        if terms is None:
            return None
        of_x, of_y, out = terms
        b, h, i, j = list(out)
        d = "".join(set(of_x) - set(out))
        if set(of_x) != {b, h, i, d} or set(of_y) != {b, h, j, d}:
            return None
        query, key = (
            z.permute([of.index(c) for c in to]) for z, of, to in ((x, of_x, b + h + i + d), (y, of_y, b + h + d + j))
        )
        return self._product(query, key)

    def _biased(self, bias: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        product = self._product(batch1, batch2)
        if product is None:
            return torch.baddbmm(bias, batch1, batch2, beta=beta, alpha=alpha)
        return product * alpha + bias * beta

    def _all_at_once(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        scores = self._product(query, key.transpose(-1, -2))
        if scores is None:
            raise refused(self.module, f"mix queries of shape {list(query.shape)} by {self.heads} heads")
        scores.scale = query.shape[-1] ** -0.5 if scale is None else scale
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None:
            scores = scores._hiding(~attn_mask) if attn_mask.dtype == torch.bool else scores._added(attn_mask)
        return scores._with(softmaxed=True, dropout=dropout_p)._of_values(value)
