"""What a model's own code does to the scores of its attention, recorded in place of computed.

`written_out` runs the code, and makes a `Scores` of each product of queries and keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from symground.models.architectures.pairs import HIDES, of_seen
from symground.ops.attention.mixing import Mixing

#: Calls that leave the values as they are, as far as attention in the accumulation dtype is concerned.
_KEEP = ("to", "float", "double", "half", "bfloat16", "type_as", "type", "contiguous", "clone")
#: Calls whose second argument at most the hidden scores reach.
_CLAMP = ("max", "maximum", "clamp", "clamp_min")


class Attends(Protocol):
    """What computes the attention of a module, at the product of its weights and values."""

    module: nn.Module

    def attended(self, query: Tensor, key: Tensor, value: Tensor, mixing: Mixing, dropout: float) -> Tensor:
        """The heads' outputs [B,H,T,Dv]."""


def refused(module: nn.Module, what: str) -> ValueError:
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

    def __init__(self, watch: Attends, query: Tensor, key: Tensor, shape: Sequence[int]) -> None:
        self.watch, self.query, self.key = watch, query, key  # [B,H,T,D], [B,Hk,S,D]
        self.shape = torch.Size(shape)
        """As the code sees it: the last two dimensions are T and S, those before B and H or their product."""
        self.scale = 1.0
        self.capped: float | None = None
        """The scale of the scores within a hyperbolic tangent, which ``scale`` multiplies; None without one."""
        self.bias: Tensor | None = None
        """Added to the scores; broadcasts to [B,H,T,S]."""
        self.hidden: Tensor | None = None
        """True where a score is hidden; broadcasts to [B,H,T,S]."""
        self.zeroed: Tensor | None = None
        """True where a score was multiplied by 0, which must be hidden too; broadcasts to [B,H,T,S]."""
        self.softmaxed, self.dropout = False, 0.0
        self.dtype, self.device, self.requires_grad = query.dtype, query.device, query.requires_grad

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = among((*args, *(kwargs or {}).values()))
        assert found is not None
        return found.call(name_of(func), *args, **(kwargs or {}))

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
            case "add" | "radd", (other,) if not kwargs:
                return self._added(other)
            case "sub", (other,) if not kwargs:
                return self._added(-other)
            case "mul" | "rmul" | "multiply", (other,):
                return self._multiplied(other)
            case "div" | "truediv" | "true_divide", (other,) if not kwargs:
                return self._multiplied(1 / other)
            case "masked_fill", (mask, value) if float(value) <= HIDES and not self.softmaxed:
                return self._hiding(mask)
            case "view" | "reshape", _:
                return self._viewed(*others)
            case "tanh", () if self.capped is self.bias is self.hidden is self.zeroed is None and not self.softmaxed:
                return self._with(capped=self.scale, scale=1.0)
            case "softmax", _ if not self.softmaxed and self._is_last(kwargs.get("dim", (*others, None)[0])):
                return self._with(softmaxed=True)
            case "dropout", _:
                given = {**dict(zip(("p", "training"), others, strict=False)), **kwargs}
                dropped = given.get("p", 0.5) if given.get("training", True) else 0.0
                if self.softmaxed or not dropped:
                    return self._with(dropout=max(dropped, self.dropout))
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

    def _is_last(self, dim: Any) -> bool:
        return dim in (-1, self.ndim - 1)

    def _weighted(self, equation: str, weights: Any, values: Any) -> Tensor:
        """The values weighted by an equation such as "bhij,bhjd->bhid" or "bhij,bjhd->bihd"."""
        terms = terms_of(equation)
        if weights is not self or not self.softmaxed or terms is None:
            raise self._refusal("einsum")
        (b, h, i, j), of_values, out = list(terms[0]), *terms[1:]
        d = "".join(set(of_values) - {b, h, j})
        if set(of_values) != {b, h, j, d} or set(out) != {b, h, i, d}:
            raise self._refusal("einsum")
        found: Tensor = self._of_values(values.permute([of_values.index(c) for c in (b, h, j, d)]))
        placed: Tensor = found.permute([(b + h + i + d).index(c) for c in out])
        return placed

    def _refusal(self, name: str) -> ValueError:
        return refused(
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
            if self.hidden is not None or self.zeroed is not None or not bool(((other == 0) | (other == 1)).all()):
                raise self._refusal("mul")
            return self._with(zeroed=self._whole(other == 0))
        if self.hidden is not None and not float(other) >= 0.01:  # a hidden score would be seen again
            raise self._refusal("mul")
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
        bounds = (*others, *kwargs.values())
        if self.softmaxed or len(bounds) != 1 or not set(kwargs) <= {"min", "other"}:
            return False
        (lowest,) = bounds
        return isinstance(lowest, (int, float, Tensor)) and getattr(lowest, "ndim", 0) == 0 and float(lowest) <= HIDES

    def _of_values(self, values: Tensor) -> Tensor:
        batch, heads = self.query.shape[:2]
        value = values if values.ndim == 4 else values.reshape(batch, -1, *values.shape[1:])
        query, key, hidden, bias = self.query, self.key, self.hidden, self.bias
        if hidden is not None and query.shape[2] < key.shape[2] and not _is_alike(hidden, query.shape[2]):
            # The keys of a cache of fixed size that are not in use yet: a causal mask is aligned to the last key.
            used = int((~hidden).expand(-1, -1, query.shape[2], key.shape[2]).flatten(0, 2).any(0).nonzero().max()) + 1
            key, value, hidden = key[:, :, :used], value[:, :, :used], hidden[..., :used]
            bias = None if bias is None else bias[..., :used]
        if self.zeroed is not None and (hidden is None or bool((self.zeroed[..., : key.shape[2]] & ~hidden).any())):
            raise self._refusal("mul")
        seen = None if hidden is None else ~hidden.expand(-1, -1, query.shape[2], key.shape[2])
        mixing = Mixing(causal=False) if seen is None else of_seen(seen)
        if mixing is None:
            raise refused(
                self.watch.module, "hide other pairs than a causal mask, a window, packed texts and padding do"
            )
        if mixing.key_range is not None:
            whole = bool((mixing.key_range == mixing.key_range.new_tensor([0, key.shape[2]])).all())
            mixing = mixing._replace(key_range=None if whole else mixing.key_range.expand(batch, -1))
        if mixing.segments is not None:
            mixing = mixing._replace(segments=mixing.segments.expand(batch, -1))
        slopes = None if bias is None else self._slopes(bias, seen, heads)
        mixing = mixing._replace(scale=self.scale, slopes=slopes)
        if self.capped is not None:
            if self.scale == 0:
                raise self._refusal("tanh")
            mixing = mixing._replace(scale=self.capped * self.scale, softcap=abs(self.scale))
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
            raise refused(self.watch.module, "add to their scores a bias that is not proportional to the distance")
        found: Tensor = slopes.expand(heads)
        return found


def _ends(valid: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last True of each row [B,H,T] of [B,H,T,S]; 0 and 0 if there is none."""
    keys = valid.shape[-1]
    last = keys - 1 - valid.flip(-1).int().argmax(-1)
    return valid.int().argmax(-1), torch.where(valid.any(-1), last, 0)


def _is_alike(hidden: Tensor, queries: int) -> bool:
    """Whether a mask hides the same keys from several queries, so that it is not causal."""
    return queries > 1 and bool((hidden == hidden[:, :, :1]).all())


def among(given: Any) -> Scores | None:
    """The scores among arguments, which may be lists."""
    for x in given:
        found = among(x) if isinstance(x, (list, tuple)) else x
        if isinstance(found, Scores):
            return found
    return None


def terms_of(equation: str) -> list[str] | None:
    """The two operands and the result of an einsum of four letters each; None for others."""
    terms = equation.replace(" ", "").replace("->", ",").split(",")
    fits = len(terms) == 3 and all(len(term) == 4 and term.isalpha() for term in terms)
    return terms if fits else None


def name_of(func: Any) -> str:
    return str(getattr(func, "__name__", func)).removeprefix("__").removesuffix("__")
