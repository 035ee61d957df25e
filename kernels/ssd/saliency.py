"""Saliency and flow of SSD, S_h = M_h ∘ (dY_h x_hᵀ), by attention's kernels, with C as queries and B as keys."""

from __future__ import annotations

import torch

from symground.kernels.attention.flow import PARTS, attention_flow_kernel
from symground.kernels.attention.saliency import WAVES, attention_saliency_kernel
from symground.kernels.common.configs import Config, Tiles
from symground.kernels.common.flow import groups_of
from symground.kernels.common.launch import cdiv, config_of, launch, processors, rows_adjacent
from symground.kernels.ssd.launch import Call, heads_first

#: Config(BM, BN, warps, stages) by architecture and bytes of an element (`common/configs.py`).
TILES: dict[str, Tiles] = {
    "ssd_saliency": {
        ("cuda", 2): Config(64, 64, 8, 1),
        ("cuda", 4): {128: Config(64, 32, 8, 1), 256: Config(32, 64, 8, 1)},
        ("sm_80", 4): Config(32, 16, 4, 1),
        ("sm_86", 2): Config(64, 64, 8, 1),
        ("sm_86", 4): Config(32, 64, 8, 1),
        ("sm_90", 4): Config(64, 32, 8, 1),
        ("sm_100", 2): {32: Config(32, 64, 8, 1), 256: Config(64, 64, 8, 1)},
        ("gfx942", 2): Config(64, 64, 4, 1),
        ("gfx942", 4): Config(32, 32, 4, 1),
    },
    "ssd_flow": {
        ("cuda", 2): Config(64, 32, 4, 1),
        ("cuda", 4): Config(32, 16, 4, 1),
        ("sm_86", 2): Config(64, 32, 4, 1),
        ("sm_90", 4): Config(16, 16, 4, 1),
        ("sm_100", 2): Config(64, 64, 8, 1),
        ("gfx942", 2): Config(32, 32, 4, 1),
        ("gfx942", 4): Config(16, 16, 4, 1),
    },
}  # fmt: skip


#: What attention's kernels are compiled for.
_SSD = {"CAUSAL": True, "DECAY": True}


def _given(call: Call) -> tuple[torch.Tensor | None, ...]:
    """The gate, slopes, key range, segments and blocks of attention's kernels."""
    return None, None, call.key_range, None, None


def _tensors(call: Call, grad_y: torch.Tensor) -> list[torch.Tensor]:
    """q, k, v and dO [B,·,T,·] as attention's kernels take them."""
    return [heads_first(z) for z in (call.c, call.b, call.x, rows_adjacent(grad_y))]


def ssd_saliency(call: Call, grad_y: torch.Tensor, signed: bool) -> torch.Tensor:
    """[B,T,T] float32."""
    tensors, (batch, length, heads, *_) = _tensors(call, grad_y), call.sizes
    device = call.x.device

    def run(config: Config) -> torch.Tensor:
        n_i, n_j = cdiv(length, config.BM), cdiv(length, config.BN)
        busy = n_i * n_j * batch / 2
        # A split has whole groups, because the heads of a group share their scores.
        splits = max(1, min(heads // call.group, int(WAVES * processors(device) / max(1, busy))))
        total = torch.empty(splits, batch, length, length, dtype=torch.float32, device=device)
        strides = [stride for z in tensors for stride in z.stride()]
        launch(
            attention_saliency_kernel, (n_i * n_j * splits * batch,),
            (*tensors, call.decays, *_given(call), None, None, total),
            (*strides, *total.stride()[:3], 1.0, None, None, n_i, n_j, splits, heads, length, length),
            SIGNED=signed or splits > 1, GROUP=call.group, **_SSD,
            **call.in_chunks, **config.kwargs,
        )  # fmt: skip
        if splits == 1:
            return total[0]
        total = total.sum(0)
        return total if signed else total.abs_()

    return run(config_of("ssd_saliency", TILES, _widest(call), call, run))


def ssd_flow(
    call: Call,
    grad_y: torch.Tensor,
    query_groups: torch.Tensor,
    key_groups: torch.Tensor,
    num_query_groups: int,
    num_key_groups: int,
    matrix: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """F [B,H,Gq,Gk], row_total [B,H,Gq] and, with ``matrix``, matrix_total [B,H] (0 without), float32."""
    tensors, (batch, length, heads, *_) = _tensors(call, grad_y), call.sizes
    groups = (query_groups.contiguous(), key_groups.contiguous())
    of_program = groups_of(num_key_groups)
    blocks = max(1, cdiv(num_key_groups, of_program))
    of_tile = batch * heads * max(1, num_query_groups * num_key_groups)
    shapes = ((num_query_groups, num_key_groups), (num_query_groups,), ())
    strides = [stride for z in tensors for stride in z.stride()]

    def numbers(fill: float | None, *shape: int) -> torch.Tensor:
        found = torch.empty(batch, heads, *shape, dtype=torch.float32, device=call.x.device)
        return found if fill is None else found.fill_(fill)

    def run(config: Config) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sums = [numbers(0.0, *shape) for shape in shapes]
        tiles = cdiv(length, config.BM)
        together = max(1, min(tiles, PARTS // of_tile))
        for first in range(0, tiles, together):
            n_i = min(together, tiles - first)
            parts = [numbers(None, n_i, *shape) for shape in shapes]
            launch(
                attention_flow_kernel, (n_i * heads * batch, blocks),
                (*tensors, call.decays, *_given(call), *groups, *parts),
                (num_query_groups, num_key_groups, *strides, 1.0, None, None, first, n_i, heads, length, length),
                MATRIX=matrix, GROUPS=of_program, GROUP=call.group, **_SSD, **call.in_rows, **config.kwargs,
            )  # fmt: skip
            for total, part in zip(sums[: 2 + matrix], parts, strict=False):
                total += part.sum(2)
        return sums[0], sums[1], sums[2]

    return run(config_of("ssd_flow", TILES, _widest(call), call, run))


def _widest(call: Call) -> torch.Tensor:
    """The tensor with the longer rows, which a configuration has to fit."""
    return max(call.x, call.b, key=lambda z: z.shape[3])
