"""Surprisal under a vocabulary head, z = h wᵀ + bias, from tiles of logits, which are never materialised whole.

For the log-sum-exp of each row, the vocabulary is split over programs, which give partial maxima and sums. One kernel
subtracts the logits of candidates that rows share, another those of each row's own candidates. The backward pass
computes ∂L/∂z for as many columns as a bounded buffer holds; matrix products give the gradients from it. Source of the
idea: Wijmans et al. 2024 ("Cut your losses in large-vocabulary language models"). Here there are no locks: no program
adds to what another wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from symground.kernels.common.configs import Config, Tiles
from symground.kernels.common.launch import cdiv, chunk_of, config_of, launch, power_of_2, precision_of, processors
from symground.kernels.common.tiles import LOG2E

#: Their products are small, so one configuration serves everywhere.
SHARED_CANDIDATES, OWN_CANDIDATES = Config(32, 32, 4, 2), Config(32, 32, 4, 1)

#: Config(rows, words, warps, stages) by architecture and element size (`common/configs.py`). They read rows of any
#: length in pieces, so what fits one of CUDA's architectures fits all of them.
TILES: dict[str, Tiles] = {
    "vocabulary_lse": {
        ("cuda", 2): Config(128, 128, 8, 3),
        ("cuda", 4): Config(128, 64, 8, 2),
        ("gfx942", 2): Config(128, 128, 8, 2),
        ("gfx942", 4): Config(64, 64, 8, 2),
    },
    "logits_gradient": {
        ("cuda", 2): Config(128, 128, 8, 3),
        ("cuda", 4): Config(128, 64, 8, 2),
        ("gfx942", 2): Config(128, 128, 8, 2),
        ("gfx942", 4): Config(64, 64, 8, 2),
    },
    "shared_candidates": SHARED_CANDIDATES,
    "own_candidates": OWN_CANDIDATES,
}  # fmt: skip


#: The vocabulary is split over at least this many programs per processor.
WAVES = 4
#: The bytes of ∂L/∂z that are allocated at a time.
BUFFER_BYTES = 64 * 2**20


@triton.jit
def logits_tile(
    p_h, p_w, p_bias, o_n, o_v, m_n, m_v, s_h, s_hd, s_w, s_wd,
    D: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """[BM,BN] logits of the rows p_h + o_n · s_h and p_w + o_v · s_w, CHUNK features at a time; 0 where masked."""
    b_z = tl.zeros([BM, BN], tl.float32)
    p_h_tile = p_h + o_n.to(tl.int64)[:, None] * s_h
    p_w_tile = p_w + o_v.to(tl.int64)[:, None] * s_w
    for c in range(0, D, CHUNK):
        o_d = (c + tl.arange(0, CHUNK)).to(tl.int64)[None, :]
        if D % CHUNK:
            b_h = tl.load(p_h_tile + o_d * s_hd, mask=m_n[:, None] & (o_d < D), other=0.0)  # [BM,CHUNK]
            b_w = tl.load(p_w_tile + o_d * s_wd, mask=m_v[:, None] & (o_d < D), other=0.0)  # [BN,CHUNK]
        else:
            b_h = tl.load(p_h_tile + o_d * s_hd, mask=m_n[:, None], other=0.0)
            b_w = tl.load(p_w_tile + o_d * s_wd, mask=m_v[:, None], other=0.0)
        b_z = tl.dot(b_h, tl.trans(b_w), b_z, input_precision=PRECISION)
    if HAS_BIAS:
        # Not an addition: Triton makes that the start of a single product, and for sm_90 its PTX then writes registers
        # between wgmma.fence and wgmma, which PTX forbids (ptxas 13.4 repairs it).
        b_z -= -tl.load(p_bias + o_v, mask=m_v, other=0.0).to(tl.float32)[None, :]
    return b_z


@triton.jit(do_not_specialize=["splits"])
def vocabulary_lse_kernel(
    p_h, p_w, p_bias, p_max, p_sum, s_h, s_hd, s_w, s_wd, N, V, splits,
    HAS_BIAS: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Each row's maximum over a part of the vocabulary, and its sum of exponentials relative to it: [splits,N] each.

    Grid: row tiles, which read the same weights at the same time, × splits.
    """
    n_n = tl.cdiv(N, BM)
    i_program = tl.program_id(0)
    first_n = i_program % n_n * BM
    o_n, o_v = tl.arange(0, BM), tl.arange(0, BN)
    m_n = first_n + o_n < N
    i_split = (i_program // n_n).to(tl.int64)
    per_split = tl.cdiv(tl.cdiv(V, BN), splits) * BN
    first = (i_split * per_split).to(tl.int32)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    for v in range(first, tl.minimum(first + per_split, V), BN):
        m_v = v + o_v < V
        b_z = logits_tile(
            p_h + first_n.to(tl.int64) * s_h, p_w + tl.cast(v, tl.int64) * s_w, p_bias + v if HAS_BIAS else p_bias,
            o_n, o_v, m_n, m_v, s_h, s_hd, s_w, s_wd, D, CHUNK, BM, BN, HAS_BIAS, PRECISION,
        )  # fmt: skip
        b_z = tl.where(m_v[None, :], b_z, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_z, 1))
        b_top = tl.where(b_new == float("-inf"), 0.0, b_new)  # -inf - (-inf) would be NaN
        # Converting to base 2 after the subtraction costs no accuracy, since the differences are small.
        b_sum = b_sum * tl.exp2((b_max - b_top) * LOG2E) + tl.sum(tl.exp2((b_z - b_top[:, None]) * LOG2E), 1)
        b_max = b_new
    o_out = i_split * N + first_n + o_n
    tl.store(p_max + o_out, b_max, mask=m_n)
    tl.store(p_sum + o_out, b_sum, mask=m_n)


@triton.jit
def shared_candidates_kernel(
    p_h, p_w, p_bias, p_ids, p_lse, p_out, s_h, s_hd, s_w, s_wd, s_ik, N, K,
    HAS_BIAS: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out [N,K] = lse - z at the candidates p_ids [K] of all rows. Grid: row tiles × candidate tiles."""
    n_n = tl.cdiv(N, BM)
    i_program = tl.program_id(0)
    o_n = i_program % n_n * BM + tl.arange(0, BM)
    o_k = i_program // n_n * BN + tl.arange(0, BN)
    m_n, m_k = o_n < N, o_k < K
    o_v = tl.load(p_ids + o_k.to(tl.int64) * s_ik, mask=m_k, other=0)
    b_z = logits_tile(p_h, p_w, p_bias, o_n, o_v, m_n, m_k, s_h, s_hd, s_w, s_wd, D, CHUNK, BM, BN, HAS_BIAS, PRECISION)
    b_lse = tl.load(p_lse + o_n, mask=m_n, other=0.0)
    o_out = o_n.to(tl.int64)[:, None] * K + o_k[None, :]
    tl.store(p_out + o_out, b_lse[:, None] - b_z, mask=m_n[:, None] & m_k[None, :])


@triton.jit
def own_candidates_kernel(
    p_h, p_w, p_bias, p_ids, p_lse, p_out, s_h, s_hd, s_w, s_wd, s_in, s_ik, N, K,
    HAS_BIAS: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out [N,K] = lse - z at each row's own candidates p_ids [N,K]; 0 where that is -1. Grid: row tiles × K."""
    n_n = tl.cdiv(N, BM)
    i_program = tl.program_id(0)
    o_n = i_program % n_n * BM + tl.arange(0, BM)
    i_k = (i_program // n_n).to(tl.int64)
    b_ids = tl.load(p_ids + o_n.to(tl.int64) * s_in + i_k * s_ik, mask=o_n < N, other=-1)
    m_n = b_ids >= 0
    b_terms = tl.zeros([BM, CHUNK], tl.float32)
    for c in range(0, D, CHUNK):
        o_d = (c + tl.arange(0, CHUNK)).to(tl.int64)[None, :]
        m_tile = m_n[:, None] & (o_d < D)
        b_h = tl.load(p_h + o_n.to(tl.int64)[:, None] * s_h + o_d * s_hd, mask=m_tile, other=0.0)
        b_w = tl.load(p_w + b_ids.to(tl.int64)[:, None] * s_w + o_d * s_wd, mask=m_tile, other=0.0)
        b_terms += b_h.to(tl.float32) * b_w.to(tl.float32)
    # Not a sum of products: each thread would round its own product once, in a multiply-add, and the others' twice. The
    # threads that hold one logit would then differ in its last bit, and any of them may be the one that is stored.
    b_z = tl.sum(b_terms, 1)
    if HAS_BIAS:
        b_z += tl.load(p_bias + b_ids, mask=m_n, other=0.0).to(tl.float32)
    b_out = tl.where(m_n, tl.load(p_lse + o_n, mask=m_n, other=0.0) - b_z, 0.0)
    tl.store(p_out + o_n.to(tl.int64) * K + i_k, b_out, mask=o_n < N)


@triton.jit(do_not_specialize=["first", "width"])
def logits_gradient_kernel(
    p_h, p_w, p_bias, p_lse, p_row, p_grad, p_ids, p_bounds, p_out,
    s_h, s_hd, s_w, s_wd, s_gn, s_gk, s_in, s_ik, s_out, first, width, N, V, K,
    HAS_BOUNDS: tl.constexpr, HAS_BIAS: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂L/∂z [N,width] of the vocabulary's entries from ``first`` on.

    p_row [N] is Σ_k grad. With HAS_BOUNDS all rows have the same candidates, sorted, and those of the i-th tile of the
    vocabulary have indices p_bounds[i] to p_bounds[i + 1]. Grid: row tiles × vocabulary tiles.
    """
    n_n = tl.cdiv(N, BM)
    i_program = tl.program_id(0)
    first_n, i_v = i_program % n_n * BM, first // BN + i_program // n_n
    first_v = i_v * BN
    o_n, o_v = tl.arange(0, BM), tl.arange(0, BN)
    m_n, m_v = first_n + o_n < N, first_v + o_v < tl.minimum(first + width, V)
    b_z = logits_tile(
        p_h + first_n.to(tl.int64) * s_h, p_w + first_v.to(tl.int64) * s_w, p_bias + first_v if HAS_BIAS else p_bias,
        o_n, o_v, m_n, m_v, s_h, s_hd, s_w, s_wd, D, CHUNK, BM, BN, HAS_BIAS, PRECISION,
    )  # fmt: skip
    b_lse = tl.load(p_lse + first_n + o_n, mask=m_n, other=0.0)
    b_row = tl.load(p_row + first_n + o_n, mask=m_n, other=0.0)
    b_dz = tl.exp2((b_z - b_lse[:, None]) * LOG2E) * b_row[:, None]  # [BM,BN]
    start, end = 0, K
    if HAS_BOUNDS:
        start = tl.load(p_bounds + i_v)
        end = tl.load(p_bounds + i_v + 1)
    o_row = (first_n + o_n).to(tl.int64)
    for k in range(start, end):
        i_k = tl.cast(k, tl.int64)
        b_ids = tl.load(p_ids + o_row * s_in + i_k * s_ik, mask=m_n, other=-1) - first_v
        b_grad = tl.load(p_grad + o_row * s_gn + i_k * s_gk, mask=m_n, other=0.0).to(tl.float32)
        b_dz -= tl.where(b_ids[:, None] == o_v[None, :], b_grad[:, None], 0.0)
    o_out = o_row[:, None] * s_out + (first_v - first + o_v)[None, :]
    tl.store(p_out + o_out, b_dz.to(p_out.dtype.element_ty), mask=m_n[:, None] & m_v[None, :])


class Head:
    """One call: hidden [N,D], weight [V,D], bias [V] or None, candidates int64 [K] or [N,K]."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor) -> None:
        self.hidden, self.weight, self.candidates = hidden, weight, candidates
        self.bias = None if bias is None else bias.contiguous()
        (self.N, self.D), self.V, self.K = hidden.shape, weight.shape[0], candidates.shape[-1]
        self.constants: dict[str, Any] = {
            "HAS_BIAS": bias is not None,
            "D": self.D,
            "CHUNK": chunk_of(hidden),
        }
        self.precision = precision_of(hidden)
        self.strides = (*hidden.stride(), *weight.stride())

    @property
    def tuning_key(self) -> tuple[int, ...]:
        return power_of_2(self.N), power_of_2(self.V), self.D

    @property
    def ids(self) -> Tensor:
        """[N,K]; if rows share their candidates, a view without storage of its own."""
        return self.candidates.expand(self.N, self.K)


def log_sum_exp(head: Head) -> Tensor:
    """The log-sum-exp over the vocabulary, [N] float32."""
    empty = torch.empty((), dtype=torch.float32, device=head.hidden.device)

    def run(config: Config) -> Tensor:
        tiles = cdiv(head.N, config.BM)
        splits = cdiv(WAVES * processors(head.hidden.device), tiles)
        splits = max(1, min(splits, cdiv(head.V, config.BN)))
        top, total = (empty.new_empty(splits, head.N) for _ in range(2))
        launch(
            vocabulary_lse_kernel, (tiles * splits,), (head.hidden, head.weight, head.bias, top, total),
            (*head.strides, head.N, head.V, splits), **head.constants, PRECISION=head.precision, **config.kwargs,
        )  # fmt: skip
        highest = top.amax(0)
        level = highest.masked_fill(highest.isneginf(), 0.0)
        return level + ((top - level).exp() * total).sum(0).log()

    return run(config_of("vocabulary_lse", TILES, head.hidden, head, run)) if head.N else empty.new_empty(0)


def surprisal(head: Head, lse: Tensor) -> Tensor:
    """-log p of the candidates, [N,K] float32."""
    out = torch.empty(head.N, head.K, dtype=torch.float32, device=head.hidden.device)
    if not head.N:
        return out
    tensors = (head.hidden, head.weight, head.bias, head.candidates, lse, out)
    if head.candidates.ndim == 1:
        config = SHARED_CANDIDATES
        launch(
            shared_candidates_kernel, (cdiv(head.N, config.BM) * cdiv(head.K, config.BN),), tensors,
            (*head.strides, *head.candidates.stride(), head.N, head.K), **head.constants, PRECISION=head.precision,
            **config.kwargs,
        )  # fmt: skip
    else:
        config = OWN_CANDIDATES
        launch(
            own_candidates_kernel, (cdiv(head.N, config.BM) * head.K,), tensors,
            (*head.strides, *head.candidates.stride(), head.N, head.K), **head.constants, **config.kwargs,
        )  # fmt: skip
    return out


def gradients(
    head: Head, grad: Tensor, lse: Tensor, of_hidden: bool, of_weight: bool, of_bias: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of hidden, weight and bias in their dtypes, from grad [N,K] and lse [N]; None if not requested."""
    hidden, weight, bias = head.hidden, head.weight, head.bias
    dh = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device) if of_hidden else None
    dw = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device) if of_weight else None
    db = torch.zeros_like(bias) if of_bias and bias is not None else None
    if head.N:
        for columns, dz in _of_logits(head, grad, lse):
            if dh is not None:
                dh += _product(dz, weight[columns])
            if dw is not None:
                dw[columns] = _product(dz.mT, hidden)
            if db is not None:
                db[columns] = dz.sum(0, dtype=torch.float32)
    return None if dh is None else dh.to(hidden.dtype), dw, db


def _of_logits(head: Head, grad: Tensor, lse: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Columns of the vocabulary and their ∂L/∂z [N,columns] in the dtype of hidden; the next columns overwrite it."""
    hidden, ids, bounded = head.hidden, head.ids, head.candidates.ndim == 1
    of_row = grad.sum(1, dtype=torch.float32)
    if bounded:  # sorted, so that a tile reads only its own candidates
        order = head.candidates.argsort(stable=True)
        grad, ids = grad[:, order], ids[:, order]
    width = max(1, BUFFER_BYTES // (head.N * hidden.element_size()))
    buffer = None

    def run(config: Config, first: int = 0) -> Tensor:
        nonlocal buffer
        tiles = max(1, min(width, head.V) // config.BN)
        if buffer is None or buffer.shape[1] != tiles * config.BN:
            buffer = torch.empty(head.N, tiles * config.BN, dtype=hidden.dtype, device=hidden.device)
        bounds = None
        if bounded:
            starts = torch.arange(cdiv(head.V, config.BN) + 1, device=hidden.device) * config.BN
            bounds = torch.searchsorted(ids[0], starts).int()
        here = min(buffer.shape[1], head.V - first)
        strides = (*head.strides, *grad.stride(), *ids.stride(), buffer.stride(0))
        launch(
            logits_gradient_kernel, (cdiv(head.N, config.BM) * cdiv(here, config.BN),),
            (hidden, head.weight, head.bias, lse, of_row, grad, ids, bounds, buffer),
            (*strides, first, here, head.N, head.V, head.K), HAS_BOUNDS=bounded, **head.constants,
            PRECISION=head.precision, **config.kwargs,
        )  # fmt: skip
        return buffer[:, :here]

    config, first = config_of("logits_gradient", TILES, hidden, head, run), 0
    while first < head.V:
        dz = run(config, first)
        yield slice(first, first + dz.shape[1]), dz
        first += dz.shape[1]


def _product(x: Tensor, y: Tensor) -> Tensor:
    """The product of x and y, accumulated in float32 for every dtype."""
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, y, out_dtype=torch.float32)
    return x.float() @ y.float()
