"""The bounds of a kernel's loop over keys or queries, against a count of every pair."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

triton = pytest.importorskip("triton", reason="Triton is not installed: kernel tests")
import triton.language as tl  # noqa: E402

from symground.kernels.common.masks import keys_of, load_range, queries_of, spans  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BM, BN = 8, 4


@triton.jit(do_not_specialize=["window", "T", "S", "first"])
def bounds_kernel(
    p_found, p_range, p_segments, p_blocks, window, T, S, first,
    KEYS: tl.constexpr, CAUSAL: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """[4], the bounds for the tile of rows from ``first`` on."""
    low, high = load_range(p_range, 0, S)
    mask = (S - T, low, high, window, p_segments, p_blocks, 0, S)
    o_x = first + tl.arange(0, TILE)
    if KEYS:
        a, b, c, d = keys_of(first, first + TILE, o_x, mask, CAUSAL, STEP)
    else:
        a, b, c, d = queries_of(first, first + TILE, o_x, mask, T, CAUSAL, STEP)
    tl.store(p_found, a)
    tl.store(p_found + 1, b)
    tl.store(p_found + 2, c)
    tl.store(p_found + 3, d)


class Case(NamedTuple):
    """One example: T queries, S keys, and who sees whom."""

    T: int
    S: int
    low: int
    high: int
    causal: bool
    window: int | None = None
    segments: list[int] | None = None
    blocks: list[int] | None = None

    def seen(self) -> NDArray[np.bool_]:
        """[T,S] whether query i sees key j, from the definition."""
        i, j = np.arange(self.T)[:, None] + self.S - self.T, np.arange(self.S)[None]
        found = np.broadcast_to(j <= i if self.causal else j >= 0, (self.T, self.S)).copy()
        if self.window is not None:
            found &= j > i - self.window
        if self.blocks is not None:
            ids = np.array(self.blocks)
            found |= (ids[i] == ids[j]) & (ids[i] >= 0)
        if self.segments is not None:
            ids = np.array(self.segments)
            found &= ids[i] == ids[j]
        return found & (j >= self.low) & (j < self.high)

    def bounds(self, first: int, of_keys: bool, tile: int, step: int) -> list[int]:
        bounds = torch.tensor([[self.low, self.high]], device=DEVICE)
        ids = [None if x is None else torch.tensor([x], device=DEVICE) for x in (self.segments, self.blocks)]
        of_ids = [None if x is None else spans(x, none) for x, none in zip(ids, (None, -1), strict=True)]
        found = torch.full((4,), -99, dtype=torch.int32, device=DEVICE)
        bounds_kernel[(1,)](
            found, bounds, *of_ids, self.window, self.T, self.S, first, of_keys, self.causal, tile, step
        )
        return found.tolist()


def drawn(causal: bool, windows: bool, ids: bool) -> list[Case]:
    """Lengths, padding and ids at random; every window of about two tiles and long texts, so that each edge occurs."""
    rng = np.random.default_rng(0)
    found = []
    for n in range(40):
        T, S = (int(x) for x in rng.integers(1, 40, 2))
        low, high = sorted(int(x) for x in rng.integers(0, S + 1, 2))
        if ids:
            T, S = min(T, S), max(T, S)
            low, high = (0, S) if n % 2 else (low, high)
        of_texts = np.sort(rng.integers(-3, 4, S)) if n % 3 else rng.integers(-3, 4, S)
        of_blocks = np.where(rng.random(S) < 0.3, -1, np.sort(rng.integers(-1, 3, S)))
        window = int(rng.integers(1, 45)) if windows else None
        segments = of_texts.tolist() if ids and n % 4 != 1 else None
        found.append(Case(T, S, low, high, causal, window, segments, of_blocks.tolist() if ids and n % 4 else None))
    if windows and not ids:
        found += [Case(33, 33, 0, 33, True, window) for window in range(1, 20)]
        found += [Case(20, 31, 2, 29, True, window) for window in range(1, 13)]
        found += [Case(31, 20, 0, 20, True, window) for window in range(1, 13)]
    return found


@pytest.mark.parametrize("of_keys", [True, False], ids=["keys of a tile of queries", "queries of a tile of keys"])
@pytest.mark.parametrize("ids", [False, True], ids=["without ids", "with ids"])
@pytest.mark.parametrize(("causal", "windows"), [(True, True), (True, False), (False, False)])
def test_a_loop_meets_every_pair_and_masks_where_it_must(causal: bool, windows: bool, ids: bool, of_keys: bool) -> None:
    tile, step = (BM, BN) if of_keys else (BN, BM)
    for case in drawn(causal, windows, ids):
        everything = case.seen() if of_keys else case.seen().T
        for at in range(0, len(everything), tile):
            pairs = everything[at : at + tile]
            start, full_first, full_last, end = case.bounds(at, of_keys, tile, step)
            steps = [slice(x, x + step) for x in range(start, end, step)]
            taken = np.zeros(pairs.shape[1], dtype=bool)
            for x in steps:
                taken[x] = True
                if full_first <= x.start < full_last:  # without a mask: whole tiles in which each pair is seen
                    assert pairs[:, x].shape[1] == step, case
                    assert pairs[:, x].all(), case
            assert start % step == full_first % step == full_last % step == 0, case
            assert not pairs[:, ~taken].any(), case
            full = [x for x in range(0, pairs.shape[1] - step + 1, step) if pairs[:, x : x + step].all()]
            if len(pairs) == tile and not ids:  # with several tiles, every whole tile that needs no mask has none
                unmasked = [x.start for x in steps if full_first <= x.start < full_last]
                assert set(full) == set(unmasked), case


@pytest.mark.parametrize("of_keys", [True, False])
def test_texts_that_a_tile_has_none_of_are_skipped(of_keys: bool) -> None:
    """Packed texts cost what they cost alone."""
    tile, step = (BM, BN) if of_keys else (BN, BM)
    case = Case(32, 32, 0, 32, True, segments=[n // 8 for n in range(32)])
    for first in range(0, 32, tile):
        start, _, _, end = case.bounds(first, of_keys, tile, step)
        assert first // 8 * 8 <= start < end <= first // 8 * 8 + 8


@pytest.mark.parametrize("none", [None, -1])
def test_spans_are_the_first_and_last_of_each_id(none: int | None) -> None:
    ids = torch.tensor([[-1, 4, 4, -1, 0, 4, -1, 9], [2**40, -(2**40), 2**40, 7, 7, 7, -1, -(2**40)]], device=DEVICE)
    found = spans(ids, none).tolist()
    for b, row in enumerate(ids.tolist()):
        for at, value in enumerate(row):
            same = [n for n, other in enumerate(row) if other == value]
            wanted = (len(row), 0) if value == none else (same[0], same[-1] + 1)
            assert (found[b][0][at], found[b][1][at]) == wanted
