"""Mamba-2 and its peers: a training step beside transformers', and a layer's saliency beside a materialised matrix."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.problem import Problem
from symground import ops
from symground.ops.common.needs import imports

Run = Callable[[], Any]
STAGES = ("mamba2 step", "ssd", "ssd saliency")
SYMGROUND = "symground"
TRANSFORMERS, SHORT_CHUNKS = "transformers", "transformers, chunks of 64"
SCAN, REFERENCE = "transformers' chunked scan", "quadratic form"
KERNELS, MAMBA_SSM = "symground, its own kernels", "mamba-ssm's chunked scan"
MATERIALISED, COMPILED = "materialised M", "torch.compile of materialised M"


@dataclass(frozen=True)
class Shape(Problem):
    """A layer with H heads of size P and G groups of state N, or a model of ``layers`` such layers of width H·P/2."""

    B: int = 4
    T: int = 512
    H: int = 8
    P: int = 64
    G: int = 1
    N: int = 64
    layers: int = 4
    vocabulary: int = 1000
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"B{self.B} T{self.T} H{self.H} P{self.P} G{self.G} N{self.N} {self.dtype}"


# A training step: forward, loss, backward, AdamW.


def _model(shape: Shape, chunk: int) -> Any:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)  # it warns that it runs in plain PyTorch
    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.H * shape.P // 2, num_hidden_layers=shape.layers,
        num_heads=shape.H, head_dim=shape.P, state_size=shape.N, n_groups=shape.G, chunk_size=chunk, use_cache=False,
    )  # fmt: skip
    return Mamba2ForCausalLM(config).train()


def _step(shape: Shape, device: str, chunk: int = 256, attached: bool = False) -> Run:
    model = _model(shape, chunk).to(device)
    if attached:
        from symground.models import attach

        attach(model)
    ids = torch.randint(shape.vocabulary, (shape.B, shape.T), generator=torch.Generator().manual_seed(1)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return float(loss)

    return run


# One layer's SSD.


class Inputs:
    """x, dt, A, B, C, which require gradients, and dY; ``impl`` is symground's."""

    def __init__(self, shape: Shape, device: str = "cpu", impl: str | None = None) -> None:
        self.impl = impl
        g = torch.Generator().manual_seed(0)
        heads, groups = (shape.B, shape.T, shape.H), (shape.B, shape.T, shape.G, shape.N)
        x, grad = (torch.randn(*heads, shape.P, generator=g) for _ in range(2))
        dt, A = torch.rand(heads, generator=g), -torch.rand(shape.H, generator=g) - 0.01
        B, C = (torch.randn(groups, generator=g) for _ in range(2))
        element = shape.element
        self.leaves = tuple(
            z.to(device, e).requires_grad_()
            for z, e in ((x, element), (dt, torch.float32), (A, torch.float32), (B, element), (C, element))
        )
        self.grad = grad.to(device, element)
        self.future = torch.ones(shape.T, shape.T, dtype=torch.bool, device=device).triu(1)

    @property
    def detached(self) -> tuple[Tensor, ...]:
        return tuple(z.detach() for z in self.leaves)


def _both(function: Callable[..., Tensor], x: Inputs) -> Run:
    return lambda: torch.autograd.grad(function(*x.leaves), x.leaves, x.grad)


def _ssd(x: Inputs, impl: str | None = None) -> Run:
    return _both(partial(ops.ssd, impl=impl or x.impl), x)


def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    logging.getLogger("transformers").setLevel(logging.ERROR)
    return mamba2_chunk_scan(x, dt, A, B, C, 256)


def materialised(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, grad: Tensor, future: Tensor
) -> Tensor:  # fmt: skip
    """|Σ_h M_h ∘ (dY_h x_hᵀ)| [B,T,T] with M as a tensor, and C Bᵀ once for each group."""
    total = (dt * A).cumsum(1).transpose(1, 2)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(future, float("-inf")).exp()
    scores = (C.transpose(1, 2) @ B.permute(0, 2, 3, 1)).float()  # [B,G,T,T]
    m = scores.repeat_interleave(x.shape[2] // B.shape[2], 1) * decay * dt.transpose(1, 2)[..., None, :]
    return (m * (grad.transpose(1, 2) @ x.permute(0, 2, 3, 1))).sum(1).abs()


def _saliency(x: Inputs, compiled: bool | None = None) -> Run:
    if compiled is None:
        return partial(ops.ssd_saliency, *x.detached, x.grad, impl=x.impl)
    function = torch.compile(materialised, dynamic=False) if compiled else materialised
    return partial(function, *x.detached, x.grad, x.future)


_SSD: dict[str, dict[str, Callable[[Inputs], Run]]] = {
    "ssd": {
        SYMGROUND: _ssd,
        SCAN: partial(_both, _scan),
        REFERENCE: partial(_ssd, impl="reference"),
        KERNELS: partial(_ssd, impl="triton"),
        MAMBA_SSM: partial(_ssd, impl="mamba_ssm"),
    },
    "ssd saliency": {
        SYMGROUND: _saliency,
        MATERIALISED: partial(_saliency, compiled=False),
        COMPILED: partial(_saliency, compiled=True),
    },
}
_STEPS: dict[str, Callable[[Shape, str], Run]] = {
    SYMGROUND: partial(_step, attached=True),
    TRANSFORMERS: _step,
    SHORT_CHUNKS: partial(_step, chunk=64),
}


def names(stage: str, device: str = "cpu", compiles: bool = True) -> list[str]:
    """The names of the peers that run on the device."""
    found = list(_STEPS if stage == "mamba2 step" else _SSD[stage])
    lacking = set() if compiles else {COMPILED}
    if device == "cpu":
        lacking |= {KERNELS, MAMBA_SSM}
    elif not imports("mamba_ssm.ops.triton.ssd_combined"):
        lacking.add(MAMBA_SSM)
    return [name for name in found if name not in lacking]


def missing(device: str) -> dict[str, str]:
    """The peers that cannot run on this machine → the reason."""
    if device == "cpu":
        return {f"ssd: {MAMBA_SSM}": "needs CUDA"}
    return {} if imports("mamba_ssm.ops.triton.ssd_combined") else {f"ssd: {MAMBA_SSM}": "mamba_ssm does not import"}


def problem(stage: str, shape: Shape, device: str = "cpu", impl: str | None = None) -> Any:
    """The inputs that the peers of a stage share."""
    return (shape, device) if stage == "mamba2 step" else Inputs(shape, device, impl)


def prepare(stage: str, name: str, x: Any) -> Run:
    return _STEPS[name](*x) if stage == "mamba2 step" else _SSD[stage][name](x)


def prepared(stage: str, shape: Shape, device: str = "cpu") -> dict[str, Run]:
    x = problem(stage, shape, device)
    return {name: prepare(stage, name, x) for name in names(stage, device)}


def in_memory(stage: str, name: str, shape: dict[str, Any]) -> tuple[Run, Run]:
    """For `memory.py`: (a small problem to run first, which leaves little memory behind; the measured one)."""
    full = Shape(**shape)
    small = Shape(1, 64, full.H, full.P, full.G, full.N, 1, full.vocabulary, full.dtype)
    if stage == "mamba2 step":
        return _STEPS[name](small, "cpu"), _STEPS[name](full, "cpu")
    run = _SSD[stage][name](Inputs(full))
    return (run if "compile" in name else _SSD[stage][name](Inputs(small))), run
