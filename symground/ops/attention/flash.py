"""The ``flash`` implementation: another library's flash attention, and our saliency from its log-sum-exp.

The library is flash-attn if it imports, else PyTorch with the flash kernel of scaled_dot_product_attention. Both return
the natural-log LSE, which is all that the saliency and flow kernels need from the forward pass.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from symground.ops.attention.autograd import Gradients, register
from symground.ops.attention.mixing import Mixing
from symground.ops.attention.triton import backend as triton_backend
from symground.ops.common import needs
from symground.ops.common.flow import Groups
from symground.ops.common.tensors import adjacent, with_positive_scale
from symground.ops.gate.reference import plain


def refuses(like: Tensor) -> Exception | None:
    if like.dtype not in (torch.float16, torch.bfloat16):
        return ValueError(f"impl: 'flash' expected float16 or bfloat16, got {like.dtype}")
    if like.device.type != "cuda":
        return ValueError(f"impl: 'flash' expected tensors on a GPU, got {like.device}")
    return needs.triton(like, "flash")  # which computes saliency and flow


class Flash(Protocol):
    """A flash attention on q [B,H,T,D] and k, v [B,Hk,S,D]."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """out [B,H,T,D] and lse [B,H,T]."""
        ...

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """dq, dk, dv."""
        ...


class FlashAttn:
    """The flash-attn package. It aligns causal masks bottom-right, as we do, and has windows."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_forward

        out, lse, *_ = _flash_attn_forward(
            *(adjacent(x).transpose(1, 2) for x in (q, k, v)), dropout_p=0.0, softmax_scale=scale, causal=causal,
            window_size_left=-1 if window is None else window - 1, window_size_right=0 if causal else -1, softcap=0.0,
            alibi_slopes=None, return_softmax=False,
        )  # fmt: skip
        return out.transpose(1, 2), lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        from flash_attn.flash_attn_interface import _flash_attn_backward

        given = [adjacent(x).transpose(1, 2) for x in (grad, q, k, v, out)]
        dq, dk, dv = (torch.empty_like(x) for x in given[1:4])
        _flash_attn_backward(
            *given, lse, dq, dk, dv, dropout_p=0.0, softmax_scale=scale, causal=causal,
            window_size_left=-1 if window is None else window - 1, window_size_right=0 if causal else -1, softcap=0.0,
            alibi_slopes=None, deterministic=True,
        )  # fmt: skip
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


class TorchFlash:
    """The flash kernel of scaled_dot_product_attention: no window, and as many queries as keys if causal.

    Its backward pass uses atomic additions unless torch.use_deterministic_algorithms(True) is set.
    """

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        if window is not None:
            raise ValueError("window: impl 'flash' takes one with the flash-attn package only, which does not import")
        if causal and q.shape[2] != k.shape[2]:
            raise ValueError(
                f"k: impl 'flash' without the flash-attn package expected S = T = {q.shape[2]} where causal, got "
                f"S = {k.shape[2]}"
            )
        given = [adjacent(x) for x in (q, k, v)]
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*given, 0.0, causal, scale=scale)
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        unread = torch.empty(2, dtype=torch.uint64, device=q.device)  # the state of dropout, which is off
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            *(adjacent(x) for x in (grad, q, k, v)), out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal,
            unread, unread, scale=scale,
        )  # fmt: skip
        return dq, dk, dv


def flash() -> Flash:
    return FlashAttn() if needs.imports("flash_attn.flash_attn_interface") else TorchFlash()


def _forward(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    if mixing.key_range is not None:
        raise ValueError("key_range: impl 'flash' expected None, since these kernels take no padding; got a tensor")
    if q.shape[3] % 8:
        raise ValueError(f"q: impl 'flash' expected a head size D that is a multiple of 8, got {q.shape[3]}")
    q, scale = with_positive_scale(q, mixing.scale_of(q))
    out, lse = flash().forward(q, k, v, mixing.causal, scale, mixing.window)
    # These kernels return +inf for rows that see no key.
    return _gated(out, mixing.gate).contiguous(), lse.masked_fill(lse == float("inf"), float("-inf")).contiguous()


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mixing: Mixing, saliency: bool,
    groups: Groups,
) -> Gradients:  # fmt: skip
    gate, scale = mixing.gate, mixing.scale_of(q)
    if gate is not None:  # these kernels need the output that belongs to their gradient: the ungated one
        out = _gated(out, torch.where(gate == 0, 0.0, 1 / gate))
    finite = lse.masked_fill(lse.isneginf(), float("inf"))
    given, positive = with_positive_scale(q, scale)
    grad = _gated(grad_out, gate)
    dq, dk, dv = flash().backward(grad, given, k, v, out, finite, mixing.causal, positive, mixing.window)
    if scale <= 0:  # undo what with_positive_scale did to q
        dq = -dq if scale else dq * 0
    return Gradients(dq.contiguous(), dk.contiguous(), dv.contiguous(), None, None)


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """x [B,H,T,D] times a gate that is checked already."""
    return x if gate is None else plain(x.transpose(1, 2), gate, None).transpose(1, 2)


backend = triton_backend._replace(forward=_forward, backward=_backward)
ops = register("flash", backend, refuses)
