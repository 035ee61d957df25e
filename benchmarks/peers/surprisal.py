"""Surprisal under a vocabulary head and its peers. The stage `surprisal` is the forward pass for K shared candidates.
The stage `loss` is the training loss for one target per row, forward and backward.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common.problem import Problem
from symground import ops

Run = Callable[[], Any]
STAGES = ("surprisal", "loss")
SYMGROUND, FULL, COMPILED = "symground", "full logits + log_softmax + gather", "torch.compile of full logits"
LIGER, CCE, CCE_EXACT = "Liger", "cut-cross-entropy", "cut-cross-entropy, no filter"


@dataclass(frozen=True)
class Shape(Problem):
    """N rows of size D, V words, K candidates."""

    N: int = 8192
    D: int = 768
    V: int = 50257
    K: int = 100
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"N{self.N} D{self.D} V{self.V} K{self.K} {self.dtype}"

    def flops(self, stage: str) -> float:
        """FLOPs of the products that every implementation needs: the logits, and for the loss two gradients."""
        return {"surprisal": 2, "loss": 6}[stage] * float(self.N) * self.V * self.D


class Inputs:
    """hidden [N,D] and weight [V,D], which require gradients; candidates [K]; targets [N]."""

    def __init__(self, shape: Shape, device: str = "cpu", impl: str | None = None) -> None:
        g = torch.Generator().manual_seed(0)
        dtype = shape.element
        self.shape, self.impl = shape, impl
        self.hidden = torch.randn(shape.N, shape.D, generator=g).to(device, dtype).requires_grad_()
        self.weight = (torch.randn(shape.V, shape.D, generator=g) * 0.05).to(device, dtype).requires_grad_()
        self.candidates = torch.randint(shape.V, (shape.K,), generator=g).to(device)
        self.targets = torch.randint(shape.V, (shape.N,), generator=g).to(device)

    def without_grads(self) -> None:
        self.hidden.grad = self.weight.grad = None


def logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Logits [N,V] in at least float32, as in the losses of transformers."""
    z = hidden @ weight.T
    return z.to(torch.promote_types(z.dtype, torch.float32))


def full_surprisal(hidden: Tensor, weight: Tensor, candidates: Tensor) -> Tensor:
    return -torch.log_softmax(logits(hidden, weight), -1)[:, candidates]


def full_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits(hidden, weight), targets)


def _forward(x: Inputs, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Run:
    hidden, weight = x.hidden.detach(), x.weight.detach()
    return lambda: function(hidden, weight, x.candidates)


def _both_ways(x: Inputs, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Run:
    def run() -> tuple[Tensor | None, Tensor | None]:
        x.without_grads()
        function(x.hidden, x.weight, x.targets).backward()
        return x.hidden.grad, x.weight.grad

    return run


def _ours(x: Inputs, stage: str) -> Run:
    if stage == "surprisal":
        return _forward(x, lambda h, w, c: ops.candidate_surprisal(h, w, c, impl=x.impl))
    return _both_ways(x, lambda h, w, t: ops.linear_cross_entropy(h, w, t, impl=x.impl))


def _full(x: Inputs, stage: str) -> Run:
    return _forward(x, full_surprisal) if stage == "surprisal" else _both_ways(x, full_loss)


def _compiled(x: Inputs, stage: str) -> Run:
    if stage == "surprisal":
        return _forward(x, torch.compile(full_surprisal, dynamic=False))
    return _both_ways(x, torch.compile(full_loss, dynamic=False))


def _liger(x: Inputs, stage: str) -> Run:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return _both_ways(x, liger_fused_linear_cross_entropy)


def _cce(x: Inputs, stage: str, **kw: Any) -> Run:
    from cut_cross_entropy import linear_cross_entropy

    return _both_ways(x, lambda h, w, t: linear_cross_entropy(h, w, t, **kw))


PEERS: dict[str, Callable[[Inputs, str], Run]] = {
    SYMGROUND: _ours,
    FULL: _full,
    COMPILED: _compiled,
    LIGER: _liger,
    CCE: _cce,
    CCE_EXACT: lambda x, stage: _cce(x, stage, filter_eps=None),
}
_MODULES = {LIGER: "liger_kernel.transformers.functional", CCE: "cut_cross_entropy", CCE_EXACT: "cut_cross_entropy"}


def available(stage: str, dtype: str, device: str, compiles: bool = True) -> tuple[list[str], dict[str, str]]:
    """The peers that can run, and the others → the reason."""
    names, missing = [], {}
    for name in PEERS:
        reason = None
        if name in _MODULES:
            if stage != "loss":
                continue  # it has no such function
            reason = "needs CUDA" if device != "cuda" else _import_error(_MODULES[name])
            if reason is None and dtype == "float32" and name != LIGER:
                reason = "takes half precision only"
        elif name == COMPILED and not compiles:
            reason = "not in a dry run"
        if reason is None:
            names.append(name)
        else:
            missing[f"{stage}: {name}, {dtype}"] = reason
    return names, missing


def _import_error(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a package built for another machine fails in ways of its own
        return f"does not import: {error}"
    return None


def in_memory(stage: str, name: str, shape: dict[str, Any]) -> tuple[Run, Run]:
    """For `memory.py`: (a run to do first, the measured run). The first one is small, unless the peer compiles."""
    full = Shape(**shape)
    run = PEERS[name](Inputs(full), stage)
    small = Inputs(Shape(16, full.D, 64, 4, full.dtype))
    return (run if name == COMPILED else PEERS[name](small, stage)), run
