"""Peers of one attention layer: several ways to compute the same stage from the same `Inputs`.

The stages are `forward` and `backward` of attention; `layer`, which is forward + backward + saliency (peers without
saliency are its floor); `saliency` and `flow` alone, from (q, k, v, dO, LSE); `rows`, the saliency of four queries for
each head; `weights`, what is read off A alone (`weights.py`); and `options`, the layer with saliency under each option
of `ops.attention` beside the plain one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.common.inputs import Inputs, Shape
from benchmarks.peers import weights
from symground import ops

Run = Callable[[], Any]
STAGES = ("forward", "backward", "layer", "saliency", "flow", "rows", "weights", "options")
SYMGROUND, SDPA, FLASH, EAGER, CLOSED = "symground", "SDPA", "SDPA flash", "eager retain_grad", "eager A∘(dO Vᵀ)"
COMPILED_EAGER, COMPILED_CLOSED = "torch.compile of eager", "torch.compile of A∘(dO Vᵀ)"
FLASH_ATTN, FLEX, CUDNN = "flash-attn", "FlexAttention", "SDPA cuDNN"
NO_SALIENCY = "symground, no saliency"
MATRIX, WITH_FORWARD = "eager softmax and sums", "symground, with the forward pass"
PLAIN, SOFTCAP, SINK, SLOPES, PACKED = "plain causal", "softcap", "sink", "slopes", "texts of 128, packed"
#: Name → the option's argument.
OPTIONS: dict[str, Callable[[Inputs], dict[str, Any]]] = {
    PLAIN: lambda x: {},
    SOFTCAP: lambda x: {"softcap": 50.0},
    SINK: lambda x: {"sink": torch.zeros(x.q.shape[1], device=x.q.device)},
    SLOPES: lambda x: {"slopes": torch.linspace(0.01, 0.5, x.q.shape[1], device=x.q.device)},
    PACKED: lambda x: {"segments": (torch.arange(x.q.shape[2], device=x.q.device) // 128).expand(len(x.q), -1)},
}


class Peer(NamedTuple):
    """``prepare(inputs)`` does the preparation, which is not measured, and returns the run, which is."""

    stage: str
    name: str
    prepare: Callable[[Inputs], Run]
    compiles: bool = False
    lacks: Callable[[Shape, str], str | None] = lambda shape, device: None


# The formulas in plain PyTorch.


def matrix(q: Tensor, k: Tensor, future: Tensor, scale: float) -> Tensor:
    """A [B,H,T,T]"""
    return ((q @ k.mT) * scale).masked_fill(future, float("-inf")).softmax(-1)


def mixed(a: Tensor, v: Tensor) -> Tensor:
    return a @ v


def gradient_times_attention(a: Tensor, grad: Tensor) -> Tensor:
    """|Σ_h A_h ∘ ∂L/∂A_h|, [B,T,T]"""
    return (a * grad).sum(1, dtype=torch.float32).abs()


def closed_form(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, future: Tensor, scale: float) -> Tensor:
    return gradient_times_attention(matrix(q, k, future, scale), grad @ v.mT)


# Preparations: from the inputs to the measured run.


def _eager(x: Inputs, compiled: bool = False) -> Run:
    # A graph break at `retain_grad` leaves three compiled pieces: A, A·V and the product with the gradient.
    pieces = (matrix, mixed, gradient_times_attention)
    to_matrix, to_out, to_saliency = (torch.compile(f, dynamic=False) for f in pieces) if compiled else pieces
    future = x.future

    def run() -> Tensor:
        x.without_grads()
        a = to_matrix(x.q, x.k, future, x.scale)
        a.retain_grad()
        to_out(a, x.v).backward(x.grad)
        return to_saliency(a.detach(), a.grad)

    return run


def _closed_form(x: Inputs, compiled: bool = False) -> Run:
    function = torch.compile(closed_form, dynamic=False) if compiled else closed_form
    return partial(function, *x.detached, x.future, x.scale)


def _closed_rows(x: Inputs) -> Run:
    q, k, v, grad = x.detached
    at = x.rows[:, None, :, None]
    position = torch.arange(x.shape.T, device=x.device)

    def run() -> Tensor:
        a = matrix(q.take_along_dim(at, 2), k, position > at, x.scale)
        return a * (grad.take_along_dim(at, 2) @ v.mT)  # [B,H,R,T]

    return run


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def _forward(attention: Callable[[Inputs], Attention], x: Inputs) -> Run:
    return partial(attention(x), *x.leaves)


def _backward(attention: Callable[[Inputs], Attention], x: Inputs) -> Run:
    out = attention(x)(*x.leaves)
    return partial(torch.autograd.grad, out, x.leaves, x.grad, retain_graph=True)


def _both(attention: Callable[[Inputs], Attention], x: Inputs) -> Run:
    function = attention(x)

    def run() -> None:
        x.without_grads()
        function(*x.leaves).backward(x.grad)

    return run


def _sdpa(x: Inputs, backend: SDPBackend | None = None) -> Attention:
    def context() -> AbstractContextManager[Any]:
        return nullcontext() if backend is None else sdpa_kernel(backend)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with context():
            return scaled_dot_product_attention(q, k, v, is_causal=True)

    return run


def _flash_attn(x: Inputs) -> Attention:
    from flash_attn import flash_attn_func

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # It expects [B,T,H,D] with any strides, so that the transposed views cost nothing.
        return flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True).transpose(1, 2)

    return run


def _flex(x: Inputs) -> Attention:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._functorch.config.donated_buffer = False  # or its backward would not run twice on one forward
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, x.shape.T, x.shape.T, device=x.device)
    return partial(torch.compile(flex_attention, dynamic=False), block_mask=mask)


def _symground(x: Inputs) -> Attention:
    return lambda q, k, v: ops.attention(q, k, v, impl=x.impl)[0]


def _through_probe(x: Inputs, impl: str | None = None, option: str = PLAIN) -> Run:
    impl, more = impl or x.impl, OPTIONS[option](x)

    def run() -> Tensor:
        x.without_grads()
        probe = x.saliency_probe()
        ops.attention(x.q, x.k, x.v, saliency_probe=probe, impl=impl, **more)[0].backward(x.grad)
        assert probe.grad is not None
        return probe.grad.abs_()

    return run


def _backward_with(x: Inputs, flow: bool) -> Run:
    """The backward pass alone, with flow or saliency."""
    probe = x.flow_probe() if flow else x.saliency_probe()
    kw = {"flow_probe": probe, "query_groups": x.groups, "key_groups": x.groups} if flow else {"saliency_probe": probe}
    out, _ = ops.attention(x.q, x.k, x.v, impl=x.impl, **kw)
    return partial(torch.autograd.grad, out, (*x.leaves, probe), x.grad, retain_graph=True)


def _saliency(x: Inputs) -> Run:
    return partial(ops.attention_saliency, *x.detached, x.lse, impl=x.impl)


def _flow(x: Inputs, one_row: bool, impl: str | None = None) -> Run:
    query_groups = x.last_row if one_row else x.groups
    sizes = (1 if one_row else x.GROUPS, x.GROUPS)
    return partial(
        ops.attention_flow, *x.detached, x.lse, query_groups, x.groups, *sizes,
        with_matrix_total=not one_row, impl=impl or x.impl,
    )  # fmt: skip


def _rows(x: Inputs) -> Run:
    return partial(ops.attention_saliency_rows, *x.detached, x.lse, x.rows, impl=x.impl)


# Reasons for the result file why a peer cannot run.


def _needs_cuda(shape: Shape, device: str) -> str | None:
    return None if device == "cuda" else "needs CUDA"


def _needs_half(shape: Shape, device: str) -> str | None:
    return _needs_cuda(shape, device) or ("takes float16 and bfloat16 only" if shape.dtype == "float32" else None)


def _needs_flash_attn(shape: Shape, device: str) -> str | None:
    try:
        importlib.import_module("flash_attn")
    except Exception as error:  # a package built for another machine fails in ways of its own
        return f"flash_attn does not import: {error}"
    return _needs_half(shape, device)


def _flex_lacks(shape: Shape, device: str) -> str | None:
    return None if device == "cuda" else "has no backward on a CPU"


ATTENTIONS: list[tuple[str, Callable[[Inputs], Attention], bool, Callable[[Shape, str], str | None]]] = [
    (SDPA, _sdpa, False, lambda shape, device: None),
    (FLASH, partial(_sdpa, backend=SDPBackend.FLASH_ATTENTION), False, _needs_half),
    (CUDNN, partial(_sdpa, backend=SDPBackend.CUDNN_ATTENTION), False, _needs_half),
    (FLASH_ATTN, _flash_attn, False, _needs_flash_attn),
    (FLEX, _flex, True, _flex_lacks),
    (SYMGROUND, _symground, False, lambda shape, device: None),
]


def _named(stage: str, name: str) -> str:
    """The peer's name; in the stage `layer`, "symground" is the run with saliency."""
    return NO_SALIENCY if (stage, name) == ("layer", SYMGROUND) else name


PEERS: list[Peer] = [
    *(
        Peer(stage, _named(stage, name), partial(way, attention), compiles, lacks)
        for stage, way in (("forward", _forward), ("backward", _backward), ("layer", _both))
        for name, attention, compiles, lacks in ATTENTIONS
    ),
    Peer("backward", "symground + saliency", partial(_backward_with, flow=False)),
    Peer("backward", "symground + flow of 3 groups", partial(_backward_with, flow=True)),
    Peer("layer", EAGER, _eager),
    Peer("layer", COMPILED_EAGER, partial(_eager, compiled=True), compiles=True),
    Peer("layer", SYMGROUND, _through_probe),
    Peer("layer", "symground, impl flash", partial(_through_probe, impl="flash"), lacks=_needs_half),
    Peer("saliency", CLOSED, _closed_form),
    Peer("saliency", COMPILED_CLOSED, partial(_closed_form, compiled=True), compiles=True),
    Peer("saliency", SYMGROUND, _saliency),
    Peer("flow", "eager reference", partial(_flow, one_row=False, impl="reference")),
    Peer("flow", "symground, all rows in 3 groups", partial(_flow, one_row=False)),
    Peer("flow", "symground, one prediction row", partial(_flow, one_row=True)),
    Peer("rows", CLOSED, _closed_rows),
    Peer("rows", SYMGROUND, _rows),
    Peer("weights", MATRIX, weights.eager),
    Peer("weights", SYMGROUND, weights.symground),
    Peer("weights", SDPA, weights.sdpa),
    Peer("weights", WITH_FORWARD, weights.forward_and_weights),
    *(Peer("options", name, partial(_through_probe, option=name)) for name in OPTIONS),
]  # fmt: skip


def available(
    stages: tuple[str, ...], shape: Shape, device: str, compiles: bool | None = None
) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run, and "stage: name" → the reason for those that cannot."""
    chosen, missing = [], {}
    for peer in _of(stages, compiles):
        reason = peer.lacks(shape, device)
        if reason is None:
            chosen.append(peer)
        else:
            missing[f"{peer.stage}: {peer.name}"] = reason
    return chosen, missing


def _of(stages: tuple[str, ...], compiles: bool | None) -> Iterator[Peer]:
    return (p for p in PEERS if p.stage in stages and compiles in (None, p.compiles))


def find(stage: str, name: str) -> Peer:
    return next(p for p in PEERS if (p.stage, p.name) == (stage, name))
