"""Argument checks shared by the ops: each failure names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value


def has_shape(name: str, value: Tensor, dims: str, expected: Sequence[int | None]) -> None:
    """``dims`` is the shape in letters, for the message; None in ``expected`` matches any size."""
    is_tensor(name, value)
    same_rank = value.ndim == len(expected)
    if not same_rank or any(e is not None and e != s for s, e in zip(value.shape, expected, strict=True)):
        sizes = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{name}: expected shape [{dims}] = [{sizes}], got {list(value.shape)}")


def is_floating(name: str, value: Tensor) -> None:
    if not is_tensor(name, value).is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {value.dtype}")


def is_integer(name: str, value: Tensor) -> None:
    if is_tensor(name, value).dtype not in (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8):
        raise ValueError(f"{name}: expected an integer tensor, got {value.dtype}")


def matches(name: str, value: Tensor, other_name: str, other: Tensor, *, dtype: bool = True) -> None:
    if value.device != other.device:
        raise ValueError(f"{name}: expected device {other.device} as {other_name}, got {value.device}")
    if dtype and value.dtype != other.dtype:
        raise ValueError(f"{name}: expected dtype {other.dtype} as {other_name}, got {value.dtype}")


def values(ok: Tensor, message: str) -> None:
    """Refuse bad values without a host synchronisation on a GPU and without breaking a compiled graph.

    Eager CPU tensors raise ValueError; on a GPU, or in a compiled graph, the check is an asynchronous assertion.
    """
    if torch.compiler.is_compiling() or ok.is_cuda:
        torch._assert_async(ok, message)
    elif not bool(ok):
        raise ValueError(message)


def key_range(value: Tensor | None, batch: int, keys: int, like: Tensor) -> None:
    if value is None:
        return
    has_shape("key_range", value, "B,2", (batch, 2))
    is_integer("key_range", value)
    matches("key_range", value, "q", like, dtype=False)
    value = value.long()  # narrow types would wrap in the comparison
    values(((value >= 0) & (value <= keys)).all(), f"key_range: expected values in [0, S] = [0, {keys}]")


def gate(value: Tensor | None, batch: int, heads: int, like: Tensor, many: bool = False) -> None:
    """``many`` allows [M,B,H] too, and leaves NaN to the op."""
    if value is None:
        return
    is_floating("gate", value)
    shape = tuple(value.shape)
    if shape not in {(heads,), (batch, heads)} and not (many and len(shape) == 3 and shape[1:] == (batch, heads)):
        also = f" or [M,B,H] = [M, {batch}, {heads}]" if many else ""
        raise ValueError(
            f"gate: expected shape [H] = [{heads}] or [B,H] = [{batch}, {heads}]{also}, got {list(value.shape)}"
        )
    matches("gate", value, "the heads", like, dtype=False)
    if not many:
        values(~value.isnan().any(), "gate: expected numbers, got NaN")


def groups(name: str, value: Tensor, batch: int, length: int, count: int | None, like: Tensor) -> int:
    """Check group ids [B,length] (-1 is in no group) and return how many groups there are."""
    has_shape(name, value, "B,T" if name == "query_groups" else "B,S", (batch, length))
    is_integer(name, value)
    matches(name, value, "q", like, dtype=False)
    value = value.long()  # narrow types would wrap in the comparison
    if count is None:
        count = max(int(value.max()) + 1, 0) if value.numel() else 0
    values(
        ((value >= -1) & (value < count)).all(), f"{name}: expected group ids in [-1, {count - 1}] for {count} groups"
    )
    return count


def probe(name: str, value: Tensor, dims: str, expected: Sequence[int], like: Tensor) -> None:
    has_shape(name, value, dims, expected)
    is_floating(name, value)
    matches(name, value, "q", like, dtype=False)


def flow_probe(
    value: Tensor,
    query_groups: Tensor | None,
    key_groups: Tensor | None,
    sizes: tuple[int, int, int, int],
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """Check a flow probe and its groups for ``sizes`` (B, H, T, S); returns the groups, never one tensor twice."""
    if query_groups is None or key_groups is None:
        missing = "query_groups" if query_groups is None else "key_groups"
        raise ValueError(f"{missing}: expected group ids, since flow_probe is given; got None")
    if is_tensor("flow_probe", value).ndim != 4:
        raise ValueError(f"flow_probe: expected shape [B,H,Gq,Gk], got {list(value.shape)}")
    batch, heads, queries, keys = sizes
    probe("flow_probe", value, "B,H,Gq,Gk", (batch, heads, *value.shape[2:]), like)
    groups("query_groups", query_groups, batch, queries, value.shape[2], like)
    groups("key_groups", key_groups, batch, keys, value.shape[3], like)
    # Autograd functions take no tensor twice in a compiled graph.
    return query_groups, query_groups.clone() if key_groups is query_groups else key_groups
