"""The bounds of a kernel's loop over keys or queries, against a count of every pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

triton = pytest.importorskip("triton", reason="Triton is not installed: kernel tests")
import triton.language as tl  # noqa: E402

from symground.kernels.common.tiles import keys_of, queries_of  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BM, BN = 8, 4


@triton.jit
def bounds_kernel(
    p_cases, p_found, KEYS: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """Row i of the result [N,4]: the bounds of case i, (first, offset, low, high, window, T)."""
    p_case = p_cases + tl.program_id(0) * 6
    first, offset = tl.load(p_case), tl.load(p_case + 1)
    low, high = tl.load(p_case + 2), tl.load(p_case + 3)
    window, T = tl.load(p_case + 4), tl.load(p_case + 5)
    if KEYS:
        a, b, c, d = keys_of(first, first + TILE, offset, low, high, window, CAUSAL, WINDOW, STEP)
    else:
        a, b, c, d = queries_of(first, first + TILE, offset, low, high, window, T, CAUSAL, WINDOW, STEP)
    p_out = p_found + tl.program_id(0) * 4
    tl.store(p_out, a)
    tl.store(p_out + 1, b)
    tl.store(p_out + 2, c)
    tl.store(p_out + 3, d)


def seen(T: int, S: int, low: int, high: int, window: int | None, causal: bool) -> NDArray[np.bool_]:
    """[T,S] whether query i sees key j, from the definition."""
    i, j = np.arange(T)[:, None] + S - T, np.arange(S)[None]
    found = np.broadcast_to((j >= low) & (j < high), (T, S)).copy()
    if causal:
        found &= j <= i
    return found if window is None else found & (j > i - window)


def cases(windows: bool) -> list[tuple[int, int, int, int, int]]:
    """(T, S, low, high, window), with every window of about two tiles and long texts, so that each edge occurs."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(40):
        T, S = (int(x) for x in rng.integers(1, 40, 2))
        low, high = sorted(int(x) for x in rng.integers(0, S + 1, 2))
        drawn.append((T, S, low, high, int(rng.integers(1, 45))))
    if windows:
        drawn += [(33, 33, 0, 33, window) for window in range(1, 20)]
        drawn += [(20, 31, 2, 29, window) for window in range(1, 13)]
        drawn += [(31, 20, 0, 20, window) for window in range(1, 13)]
    return drawn


@pytest.mark.parametrize("of_keys", [True, False], ids=["keys of a tile of queries", "queries of a tile of keys"])
@pytest.mark.parametrize(("causal", "windows"), [(True, True), (True, False), (False, False)])
def test_a_loop_meets_every_pair_and_masks_where_it_must(causal: bool, windows: bool, of_keys: bool) -> None:
    tile, step = (BM, BN) if of_keys else (BN, BM)
    rows, wanted = [], []
    for T, S, low, high, window in cases(windows):
        pairs = seen(T, S, low, high, window if windows else None, causal)
        pairs = pairs if of_keys else pairs.T
        for first in range(0, len(pairs), tile):
            rows.append((first, S - T, low, high, window, T))
            wanted.append(pairs[first : first + tile])
    given = torch.tensor(rows, dtype=torch.int32, device=DEVICE)
    found = torch.full((len(rows), 4), -99, dtype=torch.int32, device=DEVICE)
    bounds_kernel[(len(rows),)](given, found, of_keys, causal, windows, tile, step)
    for case, (start, full_first, full_last, end), pairs in zip(rows, found.tolist(), wanted, strict=True):
        steps = [slice(at, at + step) for at in range(start, end, step)]
        taken = np.zeros(pairs.shape[1], dtype=bool)
        for at in steps:
            taken[at] = True
            if full_first <= at.start < full_last:  # without a mask: whole tiles in which each pair is seen
                assert pairs[:, at].shape[1] == step, case
                assert pairs[:, at].all(), case
        assert start % step == full_first % step == full_last % step == 0, case
        assert not pairs[:, ~taken].any(), case
        full = [at for at in range(0, pairs.shape[1] - step + 1, step) if pairs[:, at : at + step].all()]
        if len(pairs) == tile:  # with several tiles, every whole tile that needs no mask has none
            unmasked = [at.start for at in steps if full_first <= at.start < full_last]
            assert set(full) == set(unmasked), case
