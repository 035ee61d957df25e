"""Attention that a model writes out in PyTorch, in place of calling an attention function.

If a block taps such a module, its forward pass runs as it is, but the product of its queries and keys is not computed.
A `Scores` takes the place of the product and records what the code does to it: scales it, adds a mask or a bias, takes
the softmax. At the product with the values, `ops.attention` computes what the record says. Whatever else the code does
to its scores is refused by name. Where nothing is tapped, the model's own code runs unchanged.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from symground.models.architectures.attention import attend
from symground.models.architectures.mamba2 import MambaMixer
from symground.models.architectures.masks import HIDES, of_seen
from symground.models.hooks import Mixer, tap_of
from symground.ops.attention.mixing import Mixing

_RUNNING = threading.local()
"""``modes``: the modes of the forward passes that run in this thread, or None for those without."""
#: Calls that leave the values as they are, as far as attention in the accumulation dtype is concerned.
_KEEP = ("to", "float", "double", "half", "bfloat16", "type_as", "type", "contiguous", "clone")
#: Calls whose second argument at most the hidden scores reach.
_CLAMP = ("max", "maximum", "clamp", "clamp_min")


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
        handles.append(mixer.module.register_forward_pre_hook(_Enter(mixer.heads)))
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


class _Enter:
    """A hook before a module's forward pass."""

    def __init__(self, heads: int) -> None:
        self.heads = heads
        self.by_example = False
        """Whether a pass over twins has shown that the module has the heads of an example side by side."""

    def __call__(self, module: nn.Module, args: Any) -> None:
        _RUNNING.modes = modes = [*getattr(_RUNNING, "modes", ()), None]
        if not tap_of(module).idle:
            modes[-1] = _Watch(module, self)
            modes[-1].__enter__()


def _leave(module: nn.Module, args: Any, output: Any) -> Any:
    mode = _RUNNING.modes.pop()
    if mode is None:
        return None
    mode.__exit__(None, None, None)
    if output is None:  # the forward pass failed
        return None
    if mode.computed != 1:
        raise _refusal(module, f"take {mode.computed} products of attention weights and values in place of one")
    if isinstance(output, (tuple, list)):
        return type(output)(None if isinstance(x, Scores) else x for x in output)
    return output


def _refusal(module: nn.Module, what: str) -> ValueError:
    return ValueError(
        f"model: the layers of {type(module).__name__} {what}, which symground's attention does not compute"
    )


def _refusing(what: str) -> Callable[..., Any]:
    """A method that names what the code applies to its scores."""

    def refuse(self: Scores, *_: Any) -> Any:
        raise self._refusal(what)

    return refuse


class Scores:
    """Products of queries and keys that are not computed, and what has been done to them."""

    def __init__(self, watch: _Watch, query: Tensor, key: Tensor, shape: Sequence[int]) -> None:
        self.watch, self.query, self.key = watch, query, key  # [B,H,T,D], [B,Hk,S,D]
        self.shape = torch.Size(shape)
        """As the code sees it: the last two dimensions are T and S, those before B and H or their product."""
        self.scale = 1.0
        self.bias: Tensor | None = None
        """Added to the scores; broadcasts to [B,H,T,S]."""
        self.hidden: Tensor | None = None
        """True where a score is hidden; broadcasts to [B,H,T,S]."""
        self.softmaxed, self.dropout = False, 0.0
        self.dtype, self.device, self.requires_grad = query.dtype, query.device, query.requires_grad

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = _among((*args, *(kwargs or {}).values()))
        assert found is not None
        return found.call(_name(func), *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        if not callable(getattr(Tensor, name, None)):
            raise self._refusal(name)
        return lambda *args, **kwargs: self.call(name, self, *args, **kwargs)

    __getitem__ = __setitem__ = _refusing("an index")
    __iter__ = __len__ = _refusing("an iteration")
    __pow__ = __rpow__ = _refusing("a power")
    __rtruediv__ = _refusing("a division by them")
    __rmatmul__ = _refusing("a product from the left")
    __lt__ = __le__ = __gt__ = __ge__ = _refusing("a comparison")

    def __neg__(self) -> Scores:
        return self._multiplied(-1)

    def __rsub__(self, other: Any) -> Scores:
        return (-self)._added(other)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def __add__(self, other: Any) -> Scores:
        return self._added(other)

    __radd__ = __iadd__ = __add__

    def __sub__(self, other: Any) -> Scores:
        return self._added(-other)

    def __mul__(self, other: Any) -> Scores:
        return self._multiplied(other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Scores:
        return self._multiplied(1 / other)

    def __matmul__(self, other: Tensor) -> Tensor:
        found: Tensor = self._called("matmul", self, other)
        return found

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What a function of PyTorch, or a method, of this name does to the scores."""
        in_place, name = name.endswith("_"), name.strip("_")
        found = self._called(name, *args, **kwargs)
        if in_place:
            vars(self).update(vars(found))
        return self if in_place else found

    def _called(self, name: str, *args: Any, **kwargs: Any) -> Any:
        first, others = args[0] if args else None, args[1:]
        if name == "einsum":
            return self._weighted(*args)
        if first is not self:
            return self._called_second(name, *args, **kwargs)
        match name, others:
            case "add" | "radd", (other,):
                return self._added(other)
            case "sub", (other,):
                return self._added(-other)
            case "mul" | "rmul" | "multiply", (other,):
                return self._multiplied(other)
            case "div" | "truediv" | "true_divide", (other,):
                return self._multiplied(1 / other)
            case "masked_fill", (mask, value) if float(value) <= HIDES and not self.softmaxed:
                return self._hiding(mask)
            case "view" | "reshape", _:
                return self._viewed(*others)
            case "softmax", _ if kwargs.get("dim", others[0] if others else None) in (-1, self.ndim - 1):
                return self._with(softmaxed=True)
            case "dropout", _:
                names = ("p", "training")
                given = {**dict(zip(names, others, strict=False)), **kwargs}
                return self._with(dropout=given.get("p", 0.5) if given.get("training", True) else 0.0)
            case "matmul" | "bmm", (values,) if self.softmaxed:
                return self._of_values(values)
            case _ if name in _KEEP:
                return self
            case _ if name in _CLAMP and self._clamps(*others, **kwargs):
                return self
        raise self._refusal(name)

    def _called_second(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a function whose first argument is another tensor."""
        match name, args:
            case "add" | "radd" | "mul" | "rmul", (other, _):
                return self._called(name, self, other)
            case "expand_as", (other, _):
                return other.expand(self.shape)
            case "type_as", (other, _):
                return other.to(self.dtype)
            case "where", (seen, _, value) if args[1] is self and not self.softmaxed and float(value) <= HIDES:
                return self._hiding(~seen)
        raise self._refusal(name)

    def _weighted(self, equation: str, weights: Any, values: Any) -> Tensor:
        """The values weighted by an equation such as "bhij,bhjd->bhid" or "bhij,bjhd->bihd"."""
        terms = equation.replace(" ", "").replace("->", ",").split(",")
        if weights is not self or not self.softmaxed or len(terms) != 3 or any(len(term) != 4 for term in terms):
            raise self._refusal("einsum")
        (b, h, i, j), of_values, out = list(terms[0]), *terms[1:]
        d = "".join(set(of_values) - {b, h, j})
        if set(of_values) != {b, h, j, d} or set(out) != {b, h, i, d}:
            raise self._refusal("einsum")
        found: Tensor = self._of_values(values.permute([of_values.index(c) for c in (b, h, j, d)]))
        placed: Tensor = found.permute([(b + h + i + d).index(c) for c in out])
        return placed

    def _refusal(self, name: str) -> ValueError:
        return _refusal(
            self.watch.module, f"apply {name!r} to their {'attention weights' if self.softmaxed else 'scores'}"
        )

    def _with(self, **changed: Any) -> Scores:
        found = Scores.__new__(Scores)
        vars(found).update({**vars(self), **changed})
        return found

    def _whole(self, x: Tensor) -> Tensor:
        """A tensor that broadcasts to the scores as the code sees them, as one that broadcasts to [B,H,T,S]."""
        batch, heads = self.query.shape[:2]
        if self.ndim == 3 and x.ndim == 3 and len(x) == batch * heads:
            return x.view(batch, heads, *x.shape[1:])
        if self.ndim == 3 and x.ndim == 3 and len(x) != 1:
            raise self._refusal("a tensor of another shape")
        return x[(None,) * (4 - x.ndim)]

    def _added(self, other: Any) -> Scores:
        if self.softmaxed:
            raise self._refusal("add")
        if not isinstance(other, Tensor) or other.ndim == 0:
            return self  # a number added to all scores changes no weight
        added = self._whole(other)
        hides = added <= HIDES
        found = self._hiding(hides) if bool(hides.any()) else self
        bias = added.masked_fill(hides, 0.0)
        if not bool(bias.any()):
            return found
        return found._with(bias=bias if self.bias is None else self.bias + bias)

    def _multiplied(self, other: Any) -> Scores:
        if self.softmaxed:
            raise self._refusal("mul")
        if isinstance(other, Tensor) and other.ndim:
            if not bool(((other == 0) | (other == 1)).all()):
                raise self._refusal("mul")
            return self._hiding(other == 0)  # what is then added to them is as low as that of a mask
        return self._with(scale=self.scale * float(other), bias=None if self.bias is None else self.bias * other)

    def _hiding(self, mask: Tensor) -> Scores:
        mask = self._whole(mask)
        return self._with(hidden=mask if self.hidden is None else self.hidden | mask)

    def _viewed(self, *shape: Any) -> Scores:
        shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        count, known = self.shape.numel(), math.prod(x for x in shape if x != -1)
        shape = tuple(count // known if x == -1 else x for x in shape)
        batch, heads = self.query.shape[:2]
        if shape[-2:] != tuple(self.shape[-2:]) or shape[:-2] not in ((batch, heads), (batch * heads,)):
            raise self._refusal("view")
        return self._with(shape=torch.Size(shape))

    def _clamps(self, *others: Any, **kwargs: Any) -> bool:
        """Whether a clamp reaches hidden scores only."""
        lowest = next(iter((*others, *kwargs.values())), None)
        return not self.softmaxed and lowest is not None and set(kwargs) <= {"min", "other"} and (
            not isinstance(lowest, Tensor) or lowest.ndim == 0
        ) and float(lowest) <= HIDES  # fmt: skip

    def _of_values(self, values: Tensor) -> Tensor:
        batch, heads = self.query.shape[:2]
        value = values if values.ndim == 4 else values.reshape(batch, -1, *values.shape[1:])
        query, key, hidden, bias = self.query, self.key, self.hidden, self.bias
        if hidden is not None and query.shape[2] < key.shape[2]:
            # The keys of a cache of fixed size that are not in use yet: a causal mask is aligned to the last key.
            used = int((~hidden).expand(-1, -1, query.shape[2], key.shape[2]).flatten(0, 2).any(0).nonzero().max()) + 1
            key, value, hidden = key[:, :, :used], value[:, :, :used], hidden[..., :used]
            bias = None if bias is None else bias[..., :used]
        seen = None if hidden is None else ~hidden.expand(-1, -1, query.shape[2], key.shape[2])
        mixing = Mixing(causal=False) if seen is None else of_seen(seen)
        if mixing is None:
            raise _refusal(self.watch.module, "hide other pairs than a causal mask, a window and padding do")
        if mixing.key_range is not None:
            whole = bool((mixing.key_range == mixing.key_range.new_tensor([0, key.shape[2]])).all())
            mixing = mixing._replace(key_range=None if whole else mixing.key_range.expand(batch, -1))
        slopes = None if bias is None else self._slopes(bias, seen, heads)
        mixing = mixing._replace(scale=self.scale, slopes=slopes)
        exact = torch.promote_types(query.dtype, value.dtype)  # GPT-Neo has float32 queries and keys in any model
        q, k, v = (x.to(exact) for x in (query, key, value))
        out = self.watch.attended(q, k, v, mixing, self.dropout).to(value.dtype)
        return out if self.ndim == 4 else out.flatten(0, 1)

    def _slopes(self, bias: Tensor, seen: Tensor | None, heads: int) -> Tensor:
        """The slopes [H] of a bias that is linear in the distance, beside what it adds to all scores of a row.

        Raises:
            ValueError: the bias is another one.
        """
        bias = bias.to(torch.float64 if bias.dtype == torch.float64 else torch.float32)
        keys = bias.shape[-1]
        at = torch.arange(keys, device=bias.device, dtype=bias.dtype)
        valid = bias.new_ones(1, 1, 1, keys, dtype=torch.bool) if seen is None else seen
        if bias.shape[2] == 1:  # the same for all queries: all keys that any of them sees
            valid = valid.any(2, keepdim=True)
        rows, valid = torch.broadcast_tensors(bias, valid)
        low, high = _ends(valid)  # [B,H,T]
        first, last = (rows.take_along_dim(x[..., None], 3)[..., 0] for x in (low, high))
        steps = (high - low).clamp(min=1)
        widest = (high - low).transpose(0, 1).flatten(1).argmax(1, keepdim=True)  # [H,1]: of each head's rows
        slopes = ((last - first) / steps).transpose(0, 1).flatten(1).take_along_dim(widest, 1)[:, 0]
        off = rows - first[..., None] - slopes[:, None, None] * (at - low[..., None])
        tolerance = 4 * torch.finfo(self.dtype).eps * bias.detach().abs().max()
        if bool((off.detach().masked_fill(~valid, 0.0).abs() > tolerance).any()):
            raise _refusal(self.watch.module, "add to their scores a bias that is not proportional to the distance")
        found: Tensor = slopes.expand(heads)
        return found


def _ends(valid: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last True of each row [B,H,T] of [B,H,T,S]; 0 and 0 if there is none."""
    keys = valid.shape[-1]
    last = keys - 1 - valid.flip(-1).int().argmax(-1)
    return valid.int().argmax(-1), torch.where(valid.any(-1), last, 0)


def _among(given: Any) -> Scores | None:
    """The scores among arguments, which may be lists."""
    for x in given:
        found = _among(x) if isinstance(x, (list, tuple)) else x
        if isinstance(found, Scores):
            return found
    return None


def _name(func: Any) -> str:
    return str(getattr(func, "__name__", func)).removeprefix("__").removesuffix("__")


class _Watch(TorchFunctionMode):
    """Within it, products of queries and keys are `Scores`, which `scaled_dot_product_attention` takes in one step."""

    def __init__(self, module: nn.Module, entered: _Enter) -> None:
        super().__init__()
        self.module, self.heads, self.computed, self._computing = module, entered.heads, 0, False
        self._entered = entered

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
        name = _name(func).strip("_")
        scores = _among((*args, *kwargs.values()))
        if scores is not None:
            return scores.call(_name(func), *args, **kwargs)
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
            raise _refusal(self.module, "take the softmax of scores that are not one product of queries and keys")
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
                raise _refusal(self.module, "have the examples of a head side by side in place of an example's heads")
            self._entered.by_example = True
        elif batch > 1 and (folded or batch == heads) and not self._entered.by_example:
            raise ValueError(
                f"model: {type(self.module).__name__} does not show whether its first dimension is the examples or the "
                "heads; symground.trace of it, or of one example, finds out"
            )

    def _einsum(self, equation: str, x: Tensor, y: Tensor) -> Scores | None:
        """The product of queries and keys by an equation such as "bhid,bhjd->bhij" or "bihd,bjhd->bhij"."""
        terms = equation.replace(" ", "").replace("->", ",").split(",")
        if len(terms) != 3 or any(len(term) != 4 or not term.isalpha() for term in terms):
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
        scores = Scores(self, query, key, (*query.shape[:-1], key.shape[2]))
        scores.scale = query.shape[-1] ** -0.5 if scale is None else scale
        if is_causal:
            full = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            attn_mask = full.tril()
        if attn_mask is not None:
            scores = scores._hiding(~attn_mask) if attn_mask.dtype == torch.bool else scores._added(attn_mask)
        return scores._with(softmaxed=True, dropout=dropout_p)._of_values(value)
