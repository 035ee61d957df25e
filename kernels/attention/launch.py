"""The arguments of an attention op as its kernels take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from symground.kernels.common.launch import (
    block_of,
    chunk_of,
    power_of_2,
    precision_of,
    remembered,
    rows_adjacent,
    too_wide,
)


class Call:
    """One call of an attention op: q [B,H,T,D], k and v [B,Hk,S,D], gate [B,H], key_range [B,2].

    Attributes:
        fixed: what every kernel of attention is compiled for: the heads that share a key head, the masks that there
            are, and how a row of a head is read.
        strides: those of q, k and v.
        sizes: the numbers that every kernel takes last: scale, window, H, T, S.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, key_range: Tensor | None,
        window: int | None, gate: Tensor | None,
    ) -> None:  # fmt: skip
        self.q, self.k, self.v = q, k, v = rows_adjacent(q), rows_adjacent(k), rows_adjacent(v)
        self.B, self.H, self.T, self.D = q.shape
        _, self.Hk, self.S, _ = k.shape
        self.causal, self.scale = causal, scale
        # Both are small, and read as contiguous tensors.
        self.key_range = None if key_range is None else key_range.contiguous()
        self.gate = None if gate is None else gate.contiguous()
        # A window of S excludes no key, and its sums could exceed 2³¹.
        self.window = None if window is None or window >= self.S else window
        self.strides = (*q.stride(), *k.stride(), *v.stride())
        self.sizes = (scale, self.window or 0, self.H, self.T, self.S)
        masks = (causal, self.window is not None, key_range is not None, gate is not None)
        self._remembered = remembered(self.B, self.Hk, self.D, self.strides, self.sizes, masks, q.dtype, q.device)
        self.fixed = self.once("fixed", lambda: self._fixed(*masks))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` made at the first call of this shape; ``key`` has all else on which it depends."""
        found = self._remembered.get(key)
        if found is None:
            found = self._remembered[key] = make()
        return found

    def _fixed(self, causal: bool, window: bool, has_range: bool, has_gate: bool) -> dict[str, Any]:
        block = block_of(self.D)
        return {
            "GROUP": self.H // self.Hk,
            "CAUSAL": causal,
            "WINDOW": window,
            "HAS_RANGE": has_range,
            "HAS_GATE": has_gate,
            "D": self.D,
            "BLOCK_D": block,
            "CHUNK": chunk_of(self.q) if too_wide(self.q) else block,
            "PRECISION": precision_of(self.q),
        }

    @property
    def tuning_key(self) -> tuple[Any, ...]:
        """The properties on which the best configuration may depend, lengths by powers of two."""
        lengths = tuple(map(power_of_2, (self.B * self.H, self.T, self.S)))
        masks = tuple(self.fixed[name] for name in ("CAUSAL", "WINDOW", "HAS_RANGE", "HAS_GATE"))
        return (*lengths, self.fixed["GROUP"], *masks)
