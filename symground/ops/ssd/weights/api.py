"""What is read off SSD's mixing matrix: the public ops, their arguments, results and checks."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common import needs
from symground.ops.common.derivatives import product
from symground.ops.common.dispatch import choose
from symground.ops.common.flow import check_groups, members
from symground.ops.ssd.scan import Scan, check_scan
from symground.ops.ssd.weights import reference
from symground.ops.ssd.weights.autograd import register

#: The implementations by their name for ``impl``, in the order in which ``impl=None`` tries them.
IMPLEMENTATIONS = {
    "cpu": register("cpu", True, needs.cpu, cpu_only=True), "torch": register("torch", False, needs.nothing),
    "reference": reference,
}  # fmt: skip


def ssd_rows(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, rows: Tensor, key_range: Tensor | None = None, *,
    impl: str | None = None,
) -> Tensor:  # fmt: skip
    """M_h[i,:] for the queries i in ``rows``, signed; M = (C Bᵀ) ∘ exp(segsum(dt·A)) · dt.

    Args:
        dt, A, B, C, key_range: as in :func:`symground.ops.ssd`.
        rows: [B,R] int, query positions in [0, T).
        impl: None picks by device.

    Returns:
        [B,H,R,T] in at least float32; 0 after the query and outside ``key_range``. M has no softmax: its rows sum to
        any number, of any sign.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.
        NotImplementedError: a derivative of the result was requested; only ``impl="reference"`` has it.

    Source: Dao and Gu 2024 (Mamba-2), section 3.

    Example:
        >>> dt, A, B, C = torch.rand(1, 5, 2), -torch.rand(2), torch.randn(1, 5, 1, 4), torch.randn(1, 5, 1, 4)
        >>> last = ops.ssd_rows(dt, A, B, C, torch.tensor([[4]]))
        >>> y = ops.ssd(torch.ones(1, 5, 2, 1), dt, A, B, C)
        >>> torch.allclose(last.sum(-1)[..., 0], y[:, 4, :, 0], atol=1e-4)
        True
    """
    scan = _scan(dt, A, B, C, key_range)
    rows = check.rows(rows, dt.shape[0], dt.shape[1], "dt", dt)
    found: Tensor = choose("ssd_rows", IMPLEMENTATIONS, impl, scan.x)(scan, rows)
    return found


def ssd_mass(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, query_groups: Tensor, key_groups: Tensor,
    num_query_groups: int | None = None, num_key_groups: int | None = None, key_range: Tensor | None = None, *,
    impl: str | None = None,
) -> Tensor:  # fmt: skip
    """Σ_{i∈a, j∈b} |M_h[i,j]|, how much the queries of a group read from the keys of another.

    Args:
        dt, A, B, C, key_range: as in :func:`symground.ops.ssd`.
        query_groups, key_groups: [B,T] int; -1 is in no group.
        num_query_groups, num_key_groups: the numbers of groups. None takes them from the ids, which waits for a GPU.
        impl: None picks by device.

    Returns:
        [B,H,Gq,Gk] in at least float32.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or group id; the message names it.
        NotImplementedError: a derivative of the result was requested; only ``impl="reference"`` has it.

    Source: as of :func:`symground.ops.ssd_rows`, with the absolute value, since M has both signs.

    Example:
        >>> dt, A, B, C = torch.rand(1, 5, 2), -torch.rand(2), torch.randn(1, 5, 1, 4), torch.randn(1, 5, 1, 4)
        >>> ids = torch.tensor([[0, 0, 1, 1, -1]])
        >>> m = ops.ssd_rows(dt, A, B, C, torch.arange(5)[None]).abs()
        >>> torch.allclose(ops.ssd_mass(dt, A, B, C, ids, ids)[:, :, 1, 0], m[:, :, 2:4, :2].sum((-1, -2)), atol=1e-4)
        True
    """
    scan = _scan(dt, A, B, C, key_range)
    batch, length = dt.shape[:2]
    groups = check_groups(query_groups, key_groups, num_query_groups, num_key_groups, (batch, length, length), "dt", dt)
    query, key = groups.given
    received = choose("ssd_mass", IMPLEMENTATIONS, impl, scan.x)(scan, query, groups.num_query)
    return product(received, members(key, groups.num_key, received.dtype).mT[:, None])


def ssd_received(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, query_groups: Tensor | None = None,
    num_query_groups: int | None = None, key_range: Tensor | None = None, *, impl: str | None = None,
) -> Tensor:  # fmt: skip
    """Σ_{i∈a} |M_h[i,j]|, how much the queries of a group read from each position.

    Args:
        dt, A, B, C, key_range: as in :func:`symground.ops.ssd`.
        query_groups: [B,T] int, -1 is in no group; None is one group of all queries.
        num_query_groups: the number of groups. None takes it from the ids, which waits for a GPU.
        impl: None picks by device.

    Returns:
        [B,H,Gq,T] in at least float32.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or group id; the message names it.
        NotImplementedError: a derivative of the result was requested; only ``impl="reference"`` has it.

    Source: as of :func:`symground.ops.ssd_mass`.

    Example:
        >>> dt, A, B, C = torch.rand(1, 5, 2), -torch.rand(2), torch.randn(1, 5, 1, 4), torch.randn(1, 5, 1, 4)
        >>> m = ops.ssd_rows(dt, A, B, C, torch.arange(5)[None]).abs()
        >>> torch.allclose(ops.ssd_received(dt, A, B, C)[:, :, 0], m.sum(2), atol=1e-4)
        True
    """
    scan = _scan(dt, A, B, C, key_range)
    query, count = check.one_or_groups(query_groups, num_query_groups, dt.shape[0], dt.shape[1], "dt", dt)
    found: Tensor = choose("ssd_received", IMPLEMENTATIONS, impl, scan.x)(scan, query, count)
    return found


def _scan(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None) -> Scan:
    """The record, with x of ones [B,T,H,1] in the finest dtype of the others."""
    check.has_shape("dt", dt, "B,T,H", (None,) * 3)
    dtype = dt.dtype
    for name, value in (("dt", dt), ("A", A), ("B", B), ("C", C)):
        check.is_floating(name, value)
        dtype = torch.promote_types(dtype, value.dtype)
    if dt.shape[1] == 0:
        raise ValueError("dt: expected at least one position, got T = 0")
    return check_scan(Scan(dt.detach().new_ones(*dt.shape, 1, dtype=dtype), dt, A, B, C, key_range))
