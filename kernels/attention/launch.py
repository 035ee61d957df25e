"""The arguments of an attention op as its kernels take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from symground.kernels.common.launch import (
    cdiv,
    chunk_of,
    part_of,
    power_of_2,
    precision_of,
    remembered,
    rows_adjacent,
    too_wide,
)
from symground.kernels.common.masks import spans


class Call:
    """One call of an attention op: q [B,H,T,D], k [B,Hk,S,D], v [B,Hk,S,Dv] and the fields of the resolved `Mixing`.

    Attributes:
        fixed: what every kernel of attention is compiled for: the heads that share a key head, whether it is causal,
            and how the rows of a head are read.
        strides: those of q, k and v.
        given: the tensors, each of which a call may leave out, that say how queries see keys: the gate, the slopes, the
            key range, and the spans of segments and blocks.
        sizes: the numbers that every kernel takes last: scale, softcap, window, H, T, S.
        bends: whether the logits, the mask or, in products in chunks, a sink take registers for which the tables leave
            no room.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, key_range: Tensor | None = None,
        window: int | None = None, gate: Tensor | None = None, softcap: float | None = None,
        sink: Tensor | None = None, slopes: Tensor | None = None, segments: Tensor | None = None,
        blocks: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.q, self.k, self.v = q, k, v = rows_adjacent(q), rows_adjacent(k), rows_adjacent(v)
        self.B, self.H, self.T, self.D = q.shape
        _, self.Hk, self.S, self.DV = v.shape
        self.causal, self.scale, self.gate = causal, scale, _contiguous(gate)
        self.sink, self.slopes = _contiguous(sink), _contiguous(slopes)
        segments, blocks = None if segments is None else spans(segments), None if blocks is None else spans(blocks, -1)
        self.given = (self.gate, self.slopes, _contiguous(key_range), segments, blocks)
        # A window of S excludes no key, and its sums could exceed 2³¹.
        window = None if window is None or window >= self.S else window
        self.bends = softcap is not None or any(x is not None for x in (slopes, segments, blocks))
        self.bends |= sink is not None and too_wide(self.widest)
        self.strides = (*q.stride(), *k.stride(), *v.stride())
        self.sizes = (scale, softcap, window, self.H, self.T, self.S)
        self._masks = (causal, softcap is None, window is None, sink is None, *[x is None for x in self.given])
        self._remembered = remembered(
            self.B, self.Hk, self.D, self.DV, self.strides, self.sizes, self._masks, q.dtype, q.device
        )
        self.fixed = self.once("fixed", self._fixed)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` made at the first call of this shape; ``key`` has all else on which it depends."""
        found = self._remembered.get(key)
        if found is None:
            found = self._remembered[key] = make()
        return found

    def _fixed(self) -> dict[str, Any]:
        return {
            "GROUP": self.H // self.Hk,
            "CAUSAL": self.causal,
            "D": self.D,
            "BLOCK_D": part_of(self.D),
            "CHUNK": chunk_of(self.q) if too_wide(self.q) else part_of(self.D),
            "DV": self.DV,
            "BLOCK_DV": part_of(self.DV),
            "CHUNK_V": chunk_of(self.v) if too_wide(self.v) else part_of(self.DV),
            "PRECISION": precision_of(self.q),
        }

    @property
    def widest(self) -> Tensor:
        """The tensor with the longer rows, which a configuration has to fit."""
        return self.q if self.D >= self.DV else self.v

    def parts(self, *sizes: int) -> int:
        """How many programs share the columns of results of these head sizes."""
        return max(cdiv(size, part_of(size)) for size in sizes)

    @property
    def tuning_key(self) -> tuple[Any, ...]:
        """The properties on which the best configuration may depend, lengths by powers of two."""
        lengths = tuple(map(power_of_2, (self.B * self.H, self.T, self.S)))
        return (*lengths, self.fixed["GROUP"], self.DV, *self._masks)


def _contiguous(x: Tensor | None) -> Tensor | None:
    """A small tensor, which the kernels read as contiguous."""
    return None if x is None else x.contiguous()
