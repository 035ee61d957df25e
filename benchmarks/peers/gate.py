"""Gating heads and its peers: the formula in eager PyTorch and under torch.compile, and a copy of x."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.problem import Problem
from symground import ops

Run = Callable[[], Any]
SYMGROUND, EAGER, FORMULA = "symground", "eager torch.where", "eager formula, ends not exact"
COMPILED, COMPILED_FORMULA = "torch.compile of torch.where", "torch.compile of the formula"
COPY = "copy of x"


@dataclass(frozen=True)
class Shape(Problem):
    """x [B,T,H,D] with M masks (0: one gate [B,H]). Closed heads become 0, or rows of ``fill`` if ``filled``."""

    B: int = 8
    T: int = 1024
    H: int = 12
    D: int = 64
    M: int = 0
    filled: bool = False
    mixed: bool = True
    """Whether a third of the gates are 0 and a third 1. Otherwise none is, so that every byte of x is read."""
    dtype: str = "float32"

    def __str__(self) -> str:
        masks, fill = f" M{self.M}" if self.M else "", ", filled" if self.filled else ""
        return (
            f"B{self.B} T{self.T} H{self.H} D{self.D}{masks} {self.dtype}{fill}{'' if self.mixed else ', all between'}"
        )


class Inputs:
    def __init__(self, shape: Shape, device: str = "cpu") -> None:
        g = torch.Generator().manual_seed(0)
        element = shape.element
        size = (shape.B, shape.T, shape.H, shape.D)
        self.x = torch.randn(size, generator=g).to(device, element)
        self.fill = torch.randn(size, generator=g).to(device, element) if shape.filled else None
        gates = (max(shape.M, 1), shape.B, shape.H)
        between = torch.rand(gates, generator=g) * 0.8 + 0.1
        chosen = torch.rand(gates, generator=g).argsort(-1).argsort(-1) % 3 if shape.mixed else torch.full(gates, 2)
        gate = torch.where(chosen == 2, between, chosen.float())
        self.gate = (gate if shape.M else gate[0]).to(device, element)


def exact_ends(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
    g = gate[..., None, :, None]
    filled = torch.zeros((), dtype=x.dtype, device=x.device) if fill is None else fill
    return torch.where(g == 0, filled, torch.where(g == 1, x, formula(x, gate, fill)))


def formula(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
    g = gate[..., None, :, None]
    return g * x if fill is None else g * x + (1 - g) * fill


def _called(function: Callable[..., Tensor], compiles: bool = False) -> Callable[[Inputs], Run]:
    def prepare(inputs: Inputs) -> Run:
        run = torch.compile(function, dynamic=False) if compiles else function
        run(inputs.x, inputs.gate, inputs.fill)
        return lambda: run(inputs.x, inputs.gate, inputs.fill)

    return prepare


def _copy(inputs: Inputs) -> Run:
    out = torch.empty_like(inputs.x)
    return lambda: out.copy_(inputs.x)


PEERS: dict[str, Callable[[Inputs], Run]] = {
    SYMGROUND: _called(ops.gate_heads),
    EAGER: _called(exact_ends),
    FORMULA: _called(formula),
    COMPILED: _called(exact_ends, compiles=True),
    COMPILED_FORMULA: _called(formula, compiles=True),
    COPY: _copy,
}


def names(shape: Shape, compiles: bool = True) -> Iterator[str]:
    """The names of the peers. A copy is one only without masks and fill, where it moves as many bytes."""
    for name in PEERS:
        if (name != COPY or not (shape.M or shape.filled)) and (compiles or "compile" not in name):
            yield name
