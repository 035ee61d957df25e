"""The attention problem of one layer, which every peer of a measurement gets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.common.problem import Problem
from symground import ops


@dataclass(frozen=True)
class Shape(Problem):
    """A causal self-attention: B examples, H heads, T positions, heads of size D."""

    B: int
    H: int
    T: int
    D: int
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"B{self.B} H{self.H} T{self.T} D{self.D} {self.dtype}"


def constant_tokens(T: int, dtype: str = "float32", H: int = 12, D: int = 64, tokens: int = 4096) -> Shape:
    return Shape(tokens // T, H, T, D, dtype)


class Inputs:
    """q, k, v [B,H,T,D], which require gradients, and dO; three groups of positions and four chosen rows."""

    GROUPS, ROWS = 3, 4

    def __init__(self, shape: Shape, device: str = "cpu", impl: str | None = None) -> None:
        self.shape, self.device, self.impl = shape, device, impl
        self.scale = shape.D**-0.5
        g = torch.Generator(device).manual_seed(0)
        size = (shape.B, shape.H, shape.T, shape.D)
        self.q, self.k, self.v, self.grad = (
            torch.randn(size, generator=g, dtype=shape.element, device=device) for _ in range(4)
        )
        for x in self.leaves:
            x.requires_grad_()
        position = torch.arange(shape.T, device=device)
        self.groups = (position * self.GROUPS // shape.T).expand(shape.B, -1).contiguous()  # [B,T], no row left out
        self.last_row = torch.where(position == shape.T - 1, 0, -1).expand(shape.B, -1).contiguous()
        self.rows = torch.linspace(0, shape.T - 1, self.ROWS, device=device).long().expand(shape.B, -1).contiguous()

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @property
    def detached(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.q.detach(), self.k.detach(), self.v.detach(), self.grad

    @cached_property
    def lse(self) -> Tensor:
        """[B,H,T]"""
        with torch.no_grad():
            return ops.attention(self.q, self.k, self.v, impl=self.impl)[1]

    @cached_property
    def future(self) -> Tensor:
        """[T,T], True at the keys that a query must not see."""
        return torch.ones(self.shape.T, self.shape.T, dtype=torch.bool, device=self.device).triu(1)

    def without_grads(self) -> None:
        """Drop the gradients, so that no run adds to those of an earlier one."""
        for x in self.leaves:
            x.grad = None

    def saliency_probe(self) -> Tensor:
        B, T = self.shape.B, self.shape.T
        return torch.zeros(1, device=self.device).expand(B, T, T).requires_grad_()

    def flow_probe(self) -> Tensor:
        B, H = self.shape.B, self.shape.H
        return torch.zeros(1, device=self.device).expand(B, H, self.GROUPS, self.GROUPS).requires_grad_()
