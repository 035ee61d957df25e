"""The specification of what is read off M, in plain PyTorch. It materialises M, [B,H,T,T]."""

from __future__ import annotations

from torch import Tensor

from symground.ops.common import needs
from symground.ops.common.derivatives import product
from symground.ops.common.flow import members
from symground.ops.ssd.reference import mixing_matrix
from symground.ops.ssd.scan import Scan

refuses = needs.nothing


def ssd_rows(scan: Scan, rows: Tensor) -> Tensor:
    return mixing_matrix(scan.without_padding()).take_along_dim(rows[:, None, :, None], 2)


def ssd_received(scan: Scan, query: Tensor | None, count: int) -> Tensor:
    m = mixing_matrix(scan.without_padding()).abs()
    return m.sum(2, keepdim=True) if query is None else product(members(query, count, m.dtype)[:, None], m)


ssd_mass = ssd_received
