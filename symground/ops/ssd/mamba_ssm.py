"""``impl="mamba_ssm"``: the mamba-ssm package's chunked scan and its gradients, with our saliency and flow."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.common import needs
from symground.ops.common.probes import GradientProbes
from symground.ops.common.tensors import padding
from symground.ops.ssd.scan import Scan
from symground.ops.ssd.torch import ops as torch_ops
from symground.ops.ssd.triton import ops as triton_ops

#: Positions in a chunk, as in mamba-ssm's own Mamba-2 layer.
CHUNK = 256


def refuses(like: Tensor) -> Exception | None:
    return needs.package("mamba_ssm", "mamba_ssm.ops.triton.ssd_combined", like)


def declines(like: Tensor) -> str | None:
    """Why ``impl=None`` does not pick it, or None."""
    if like.dtype == torch.float32:
        return "x: mamba-ssm computes float32 in TF32"
    if torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms are required, and the sums of mamba-ssm may have no fixed order"
    return None


def ssd(scan: Scan, initial_state: Tensor | None, probes: GradientProbes) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    x, dt, A, B, C, key_range = scan
    dt, A, B, C = dt.float(), A.float(), B.to(x.dtype), C.to(x.dtype)
    if key_range is not None:  # the package has no padding; a position with dt = 0 neither writes nor decays
        outside = padding(key_range, x.shape[1])[..., None]
        dt = dt.masked_fill(outside, 0)
        x, B = (z.masked_fill(outside[..., None], 0) for z in (x, B))
    y, state = mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size=CHUNK, initial_states=initial_state, return_final_states=True
    )
    if probes.saliency is not None or probes.flow is not None:
        y = (triton_ops if needs.triton(x) is None else torch_ops).probed(y, scan, probes)
    return y, state.float()
