"""The ``flash`` implementation: another library's flash attention, and our saliency from its log-sum-exp.

The library is flash-attn if it imports, else PyTorch with the flash kernel of scaled_dot_product_attention
(`flash_libraries.py`). Both return the natural-log LSE, which is all that saliency and flow need from the forward pass.
These are Triton's, or plain PyTorch's where Triton does not run.

``impl=None`` takes it on a GPU where the library takes the call, with exceptions that `declines` names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from symground.ops.attention.autograd import Backend, Gradients, register
from symground.ops.attention.flash_libraries import Flash, FlashAttn, TorchFlash
from symground.ops.attention.mixing import Mixing
from symground.ops.attention.torch import backend as torch_backend
from symground.ops.attention.triton import backend as triton_backend
from symground.ops.common import disabled, needs
from symground.ops.common.flow import FlowSums, Groups
from symground.ops.common.tensors import with_positive_scale
from symground.ops.gate.reference import plain

#: The oldest flash-attn whose functions have these arguments.
_OLDEST = (2, 7)


def refuses(like: Tensor) -> Exception | None:
    if like.dtype not in (torch.float16, torch.bfloat16):
        return ValueError(f"impl: 'flash' expected float16 or bfloat16, got {like.dtype}")
    if like.device.type != "cuda":
        return ValueError(f"impl: 'flash' expected tensors on a GPU, got {like.device}")
    if isinstance(flash(), TorchFlash) and not needs.flash_in_torch():
        return RuntimeError("impl: 'flash' needs flash-attn, or a torch that was built with flash attention")
    return None if torch.version.hip else needs.before_ampere("flash", like.device.index)


def declines(q: Tensor, k: Tensor | None, mixing: Mixing, v: Tensor) -> str | None:
    """Why ``impl=None`` does not pick it, or None. Ops that give no keys are not attention itself."""
    if k is None:
        return "its library computes attention alone; for this op it would run what 'triton' or 'torch' runs"
    if torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms are required, and its backward pass adds in any order unless it is slowed down"
    if mixing.gate is not None:
        return "gate: it computes silenced heads, which Triton skips"
    if not torch.backends.cuda.flash_sdp_enabled():
        return "torch.backends.cuda.enable_flash_sdp(False) was called"
    return "its library on ROCm has not been tried with this package" if torch.version.hip else None


def lacks(q: Tensor, k: Tensor | None, mixing: Mixing, v: Tensor) -> str | None:
    """What of a call the library does not take, or None."""
    if k is None:
        return None
    for name in ("sink", "segments", "blocks"):
        if getattr(mixing, name) is not None:
            return f"{name}: impl 'flash' expected None, since its library has none"
    if v.shape[3] != q.shape[3]:
        return f"v: impl 'flash' expected a head size Dv = D = {q.shape[3]}, got {v.shape[3]}"
    widest = 256 if needs.capability(q.device.index) in ((8, 0), (9, 0), (10, 0)) else 192
    if q.shape[3] % 8 or q.shape[3] > widest:
        return f"q: impl 'flash' expected a head size D that is a multiple of 8, up to {widest} here, got {q.shape[3]}"
    return flash().lacks(q, k, mixing)


def flash() -> Flash:
    usable = "flash_attn" not in disabled.DISABLED and needs.imports("flash_attn.flash_attn_interface")
    return FlashAttn() if usable and needs.version("flash-attn") >= _OLDEST else TorchFlash()


def _forward(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    q, scale = with_positive_scale(q, mixing.scale_of(q))
    out, lse = flash().forward(q, k, v, mixing._replace(scale=scale))
    # These kernels return +inf for rows that see no key.
    return _gated(out, mixing.gate).contiguous(), lse.masked_fill(lse == float("inf"), float("-inf")).contiguous()


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mixing: Mixing,
    of_slopes: bool, saliency: bool, groups: Groups,
) -> Gradients:  # fmt: skip
    gate, scale = mixing.gate, mixing.scale_of(q)
    if gate is not None:  # these kernels need the output that belongs to their gradient: the ungated one
        out = _gated(out, torch.where(gate == 0, 0.0, 1 / gate))
    finite = lse.masked_fill(lse.isneginf(), float("inf"))
    given, positive = with_positive_scale(q, scale)
    grad = _gated(grad_out, gate)
    dq, dk, dv = flash().backward(grad, given, k, v, out, finite, mixing._replace(scale=positive))
    if scale <= 0:  # undo what with_positive_scale did to q
        dq = -dq if scale else dq * 0
    return Gradients(dq.contiguous(), dk.contiguous(), dv.contiguous(), None, None)


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """x [B,H,T,D] times a gate that is checked already."""
    return x if gate is None else plain(x.transpose(1, 2), gate, None).transpose(1, 2)


def _others(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, *rest: Any) -> Backend:
    """What computes saliency and flow."""
    return triton_backend if needs.triton(q) is None else torch_backend


def _saliency(*given: Any) -> Tensor:
    return _others(*given).saliency(*given)


def _flow(*given: Any) -> FlowSums:
    return _others(*given).flow(*given)


def _rows(*given: Any) -> Tensor:
    return _others(*given).rows(*given)


backend = Backend(forward=_forward, backward=_backward, saliency=_saliency, flow=_flow, rows=_rows)
ops = register("flash", backend, refuses, lacks=lacks, declines=declines)
