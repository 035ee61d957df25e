"""``impl="mamba_ssm"``: the mamba-ssm package's chunked scan forward and backward, our saliency and flow beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops._ssd import out_of_range
from symground.ops._ssd_triton import triton

#: Positions together, as in mamba-ssm's own Mamba-2 layer.
CHUNK = 256


def suits(x: Tensor) -> bool:
    """Whether to take it unasked: it multiplies float32 in TF32, and adds in no fixed order where that is allowed."""
    return x.dtype != torch.float32 and not torch.are_deterministic_algorithms_enabled()


def mamba_ssm(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None, initial_state: Tensor | None,
    saliency_probe: Tensor | None, flow_probe: Tensor | None, query_groups: Tensor | None, key_groups: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    given = (x, dt, A, B, C, key_range)
    dt, A, B, C = dt.float(), A.float(), B.to(x.dtype), C.to(x.dtype)
    if key_range is not None:  # it knows no padding; but where dt is 0 a position neither writes nor decays
        outside = out_of_range(key_range, x.shape[1])[..., None]
        dt = dt.masked_fill(outside, 0)
        x, B = (z.masked_fill(outside[..., None], 0) for z in (x, B))
    y, state = mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size=CHUNK, initial_states=initial_state, return_final_states=True
    )
    if saliency_probe is not None or flow_probe is not None:
        y = triton.probed(y, *given, saliency_probe, flow_probe, query_groups, key_groups)
    return y, state.float()
