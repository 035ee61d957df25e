"""Argument checks shared by the ops. Each error names the argument, what was expected and what it got.

Checks that return a value return it in the form that the implementations expect: ids as int64, numpy's numbers as
Python's. Implementations never compare in a narrow integer type, which could overflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from symground import errors
from symground.errors import choice as choice
from symground.errors import flag as flag

#: The dtypes that the ops compute with. Other floating-point types (float8) are for storage: torch has no arithmetic.
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: The dtypes of ids. Each is read as int64, which has every number of these dtypes but not every one of uint64.
INTEGER = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
)  # fmt: skip
#: Longer than any tensor, and small enough that its sum with a position stays within int64.
LONGEST = 2**31 - 1


def is_tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        raise ValueError(f"{name}: expected a dense tensor, got a nested one or one of layout {value.layout}")
    return value


def has_shape(name: str, value: Tensor, dims: str, expected: Sequence[int | None]) -> None:
    """``dims`` is the shape in letters, for the message. None in ``expected`` matches any size."""
    shape = is_tensor(name, value).shape
    same = len(shape) == len(expected)
    if same:
        for size, wanted in zip(shape, expected, strict=True):  # a generator would take as long as all other checks
            if wanted is not None and wanted != size:
                same = False
    if not same:
        # Formatted one by one, since torch.compile does not trace str of a graph's size.
        sizes = ", ".join("any" if e is None else f"{e}" for e in expected)
        came = ", ".join(f"{size}" for size in shape)
        raise ValueError(f"{name}: expected shape [{dims}] = [{sizes}], got [{came}]")


def is_floating(name: str, value: Tensor) -> None:
    if is_tensor(name, value).dtype not in FLOATING:
        expected = "a floating-point tensor (float32, float64, float16 or bfloat16)"
        raise ValueError(f"{name}: expected {expected}, got {value.dtype}")


def integers(name: str, value: Tensor) -> Tensor:
    """``value`` as int64."""
    if is_tensor(name, value).dtype not in INTEGER:
        raise ValueError(
            f"{name}: expected an integer tensor (signed, or unsigned of at most 32 bits), got {value.dtype}"
        )
    return value.long()


def integer(name: str, value: object, least: int | None = None) -> int:
    """As of `symground.errors`; a size in a graph for any length is returned as it is."""
    return value if isinstance(value, torch.SymInt) else errors.integer(name, value, least)  # type: ignore[return-value]


def number(name: str, value: object) -> float:
    """As of `symground.errors`; in a graph it is not compared, since each number would compile a graph of its own."""
    if isinstance(value, (torch.SymFloat, torch.SymInt)):
        return value  # type: ignore[return-value]
    if torch.compiler.is_compiling() and errors.is_number(value):
        return float(value)  # type: ignore[arg-type]
    return errors.number(name, value)


def matches(name: str, value: Tensor, other_name: str, other: Tensor, *, dtype: bool = True) -> None:
    if value.device != other.device:
        raise ValueError(f"{name}: expected device {other.device} as {other_name}, got {value.device}")
    if dtype and value.dtype != other.dtype:
        raise ValueError(f"{name}: expected dtype {other.dtype} as {other_name}, got {value.dtype}")


def values(ok: Tensor, message: str, given: Tensor, **sizes: int | str) -> None:
    """Refuse the entries of ``given`` at which ``ok`` is False.

    Eager CPU tensors raise ValueError with the first such entry. On a GPU, or in a compiled graph, the check is an
    asynchronous assertion, which neither waits for the GPU nor breaks the graph. Its message contains no numbers,
    because a graph would be compiled again for each of them. Tensors on the meta device and fake ones have no values.
    Within torch.func.vmap the values of all examples are checked at once, and none is named.
    """
    if ok.is_meta or (isinstance(ok, FakeTensor) and not torch.compiler.is_compiling()):
        return
    if torch.compiler.is_compiling() or ok.is_cuda:
        torch._assert_async(ok.all(), message)
    elif not bool(_of_all_examples(ok).all()):
        where = "".join(f", {name} = {size}" for name, size in sizes.items())
        if torch._C._functorch.is_batchedtensor(ok):
            raise ValueError(f"{message}{where}")
        came = given.expand(ok.shape + given.shape[ok.ndim :])[~ok][0].tolist()
        raise ValueError(f"{message}{where}; got {came}")


def _of_all_examples(ok: Tensor) -> Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(ok):
        ok = torch._C._functorch.get_unwrapped(ok)
    return ok


def key_range(value: Tensor | None, batch: int, keys: int, like_name: str, like: Tensor) -> Tensor | None:
    """The range as int64."""
    if value is None:
        return None
    has_shape("key_range", value, "B,2", (batch, 2))
    value = integers("key_range", value)
    matches("key_range", value, like_name, like, dtype=False)
    first, last = value[:, 0], value[:, 1]
    values(
        (first >= 0) & (first <= last) & (last <= keys), "key_range: expected 0 <= first <= last <= S", value, S=keys
    )
    return value


def gate(value: Tensor | None, batch: int, heads: int, like: Tensor, many: bool = False) -> None:
    """``many`` also allows [M,B,H], and leaves the check for NaN to the op."""
    if value is None:
        return
    is_floating("gate", value)
    # Compared one by one: a set would make the sizes of a graph constants.
    shape, wanted = value.shape, (batch, heads)
    fits = 1 <= len(shape) <= (3 if many else 2)
    for size, expected in zip(reversed(shape), reversed(wanted), strict=False):
        fits = fits and size == expected
    if not fits:
        also = f" or [M,B,H] = [M, {batch}, {heads}]" if many else ""
        raise ValueError(
            f"gate: expected shape [H] = [{heads}] or [B,H] = [{batch}, {heads}]{also}, got {list(value.shape)}"
        )
    matches("gate", value, "the heads", like, dtype=False)
    if not many:
        values(value.isfinite(), "gate: expected finite numbers", value)


def groups(
    name: str, value: Tensor | None, batch: int, length: int, count: int | None, like_name: str, like: Tensor
) -> tuple[Tensor, int]:
    """Check group ids [B,length] (-1 is in no group). Returns the ids as int64 and the number of groups."""
    value = is_tensor(name, value)
    has_shape(name, value, "B,T" if name == "query_groups" else "B,S", (batch, length))
    value = integers(name, value)
    matches(name, value, like_name, like, dtype=False)
    if count is not None:
        count = integer(f"num_{name}", count, 0)
    elif value.is_meta or isinstance(value, FakeTensor):
        raise ValueError(f"num_{name}: expected a number of groups for ids that hold no values (meta or fake tensors)")
    else:
        count = max(int(value.max()) + 1, 0) if value.numel() else 0
    values((value >= -1) & (value < count), f"{name}: expected group ids in [-1, G)", value, G=count)
    return value, count


def one_or_groups(
    value: Tensor | None, count: int | None, batch: int, length: int, like_name: str, like: Tensor
) -> tuple[Tensor | None, int]:
    """Ids of groups of queries and their number; without ids one group of all."""
    if value is not None:
        return groups("query_groups", value, batch, length, count, like_name, like)
    if count not in (None, 1):
        raise ValueError(f"num_query_groups: expected None or 1 without query_groups, got {count}")
    return None, 1


def rows(value: Tensor, batch: int, length: int, like_name: str, like: Tensor) -> Tensor:
    """Positions [B,R] of queries, as int64."""
    has_shape("rows", value, "B,R", (batch, None))
    value = integers("rows", value)
    matches("rows", value, like_name, like, dtype=False)
    values((value >= 0) & (value < length), "rows: expected positions in [0, T)", value, T=length)
    return value


def probe(name: str, value: Tensor, dims: str, expected: Sequence[int], like_name: str, like: Tensor) -> None:
    has_shape(name, value, dims, expected)
    is_floating(name, value)
    matches(name, value, like_name, like, dtype=False)
