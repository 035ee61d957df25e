"""The record of how queries see keys, which every attention op passes whole from its public function to its kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common.flow import Heads
from symground.ops.common.tensors import accumulation_dtype, padding
from symground.ops.gate.reference import gate_heads

MAX_HEAD_SIZE = 576


class Mixing(NamedTuple):
    """How a query sees the keys; :func:`symground.ops.attention` documents the fields."""

    causal: bool = True
    scale: float | None = None
    key_range: Tensor | None = None
    window: int | None = None
    gate: Tensor | None = None
    softcap: float | None = None
    sink: Tensor | None = None
    slopes: Tensor | None = None
    segments: Tensor | None = None
    blocks: Tensor | None = None

    def resolved(self, q: Tensor) -> Mixing:
        """The record as implementations read it: the scale is a number, and the gate is [B,H].

        The gate, the sink and the slopes are in the accumulation dtype.
        """
        dtype = accumulation_dtype(q)
        gate = None if self.gate is None else self.gate.to(dtype).expand(q.shape[:2])
        found = self._replace(scale=self.scale_of(q), gate=gate)
        if self.sink is not None or self.slopes is not None:
            sink, slopes = (None if x is None else x.to(dtype) for x in (self.sink, self.slopes))
            found = found._replace(sink=sink, slopes=slopes)
        return found

    @property
    def only_causal(self) -> bool:
        """Whether nothing is set but ``causal`` and ``scale``; what further fields may say counts here unasked."""
        return all(field is None for field in self[2:])

    def scale_of(self, q: Tensor) -> float:
        return float(q.shape[-1] ** -0.5 if self.scale is None else self.scale)

    def of(self, examples: slice, heads: Heads = slice(None)) -> Mixing:
        """The resolved record of some of the examples and heads."""
        key_range, segments, blocks = (
            None if x is None else x[examples] for x in (self.key_range, self.segments, self.blocks)
        )
        sink, slopes = (None if x is None else x[heads] for x in (self.sink, self.slopes))
        gate = None if self.gate is None else self.gate[examples, heads]
        return self._replace(key_range=key_range, gate=gate, sink=sink, slopes=slopes, segments=segments, blocks=blocks)

    def gated(self, x: Tensor) -> Tensor:
        """[B,H,T,D] multiplied by each head's gate; a gate of 0 gives 0 without reading x."""
        if self.gate is None:
            return x
        return gate_heads(x.transpose(1, 2), self.gate.to(accumulation_dtype(x)), None).transpose(1, 2)

    def without_padding(self, x: Tensor) -> Tensor:
        """Keys or values [B,Hk,S,D], with padding set to 0: 0 · NaN would be NaN there."""
        if self.key_range is None:
            return x
        return x.masked_fill(padding(self.key_range, x.shape[2])[:, None, :, None], 0.0)

    def valid(self, q: Tensor, k: Tensor) -> Tensor:
        """[B or 1, 1, T, S] bool: True where query i sees key j."""
        queries, keys = q.shape[2], k.shape[2]
        if self.segments is None and self.blocks is None:
            return valid_keys(queries, keys, self.causal, self.key_range, self.window, q.device)
        return self.valid_of(torch.arange(keys - queries, keys, device=q.device)[None], keys)[:, None]

    def valid_of(self, at: Tensor, keys: int) -> Tensor:
        """[B,R,S] bool, as `valid`, of the queries whose positions among the keys, i + S - T, are ``at`` [B,R]."""
        seen = self.sees(at, torch.arange(keys, device=at.device))
        return seen if self.key_range is None else seen & ~padding(self.key_range, keys)[:, None]

    def logits(self, s: Tensor, at: Tensor, keys: Tensor) -> Tensor:
        """Products q kᵀ [B,H,R,C] → logits, without the mask.

        ``keys`` [C] are the positions of the keys; ``at`` broadcasts to [B,H,R,1]: those of the queries, i + S - T.
        """
        assert self.scale is not None  # the record is resolved
        s = s * self.scale
        if self.softcap is not None:
            s = torch.tanh(s / self.softcap) * self.softcap
        if self.slopes is not None:
            s = s + per_head(self.slopes.to(s.dtype)) * (keys - at)
        return s

    def softmax(self, logits: Tensor) -> Tensor:
        """Masked logits [B,H,...,S] → attention; the sink is one more logit in each row, of no value."""
        if self.sink is None:
            return torch.softmax(logits, -1)
        sink = self.sink.to(logits.dtype).view(-1, *(1,) * (logits.ndim - 2)).expand(*logits.shape[:-1], 1)
        return torch.softmax(torch.cat((logits, sink), -1), -1)[..., :-1]

    def sees(self, at: Tensor, keys: Tensor) -> Tensor:
        """Whether queries see keys [C], but for ``key_range``: [B or 1,R,C] bool.

        ``at`` [B or 1,R] is the position of each query among the keys, i + S - T.
        """
        i = at[..., None]
        seen = keys <= i if self.causal else torch.ones_like(keys <= i)
        if self.window is not None:
            seen = seen & (keys > i - self.window) & (keys < i + self.window)
        if self.blocks is not None:
            of_query = _ids_at(self.blocks, at)
            seen = seen | ((of_query == self.blocks[:, None, keys]) & (of_query >= 0))
        if self.segments is not None:
            seen = seen & (_ids_at(self.segments, at) == self.segments[:, None, keys])
        return seen

    @property
    def extended(self) -> bool:
        """Whether anything is set beside what every implementation takes."""
        tensors_are_none = self.sink is self.slopes is self.segments is self.blocks is None
        return not (self.softcap is None and tensors_are_none)

    @property
    def is_masks(self) -> bool:
        """Whether the record changes which keys are seen alone, not their scores or the softmax."""
        return self.softcap is None and self.sink is None and self.slopes is None

    @property
    def by_ids(self) -> bool:
        """Whether ids of positions say which keys a query sees."""
        return self.segments is not None or self.blocks is not None


def check_attention(q: Tensor, k: Tensor, v: Tensor | None, mixing: Mixing) -> Mixing:
    """The checks common to every attention op, of which some read no values. Returns the checked record.

    Raises:
        ValueError: the message names the argument.
    """
    check.has_shape("q", q, "B,H,T,D", (None,) * 4)
    check.is_floating("q", q)
    batch, heads, _, size = q.shape
    check.has_shape("k", k, "B,Hk,S,D", (batch, None, None, size))
    _, key_heads, keys, _ = k.shape
    if v is not None:
        check.has_shape("v", v, "B,Hk,S,Dv", (batch, key_heads, keys, None))
    check.matches("k", k, "q", q)
    if v is not None:
        check.matches("v", v, "q", q)
    if key_heads == 0 or heads % key_heads:
        raise ValueError(f"k: expected Hk to divide H = {heads}, got Hk = {key_heads}")
    if not 1 <= size <= MAX_HEAD_SIZE:
        raise ValueError(f"q: expected a head size D from 1 to {MAX_HEAD_SIZE}, got {size}")
    if v is not None and not 1 <= v.shape[3] <= MAX_HEAD_SIZE:
        raise ValueError(f"v: expected a head size Dv from 1 to {MAX_HEAD_SIZE}, got {v.shape[3]}")
    causal, scale, window = check.flag("causal", mixing.causal), mixing.scale, mixing.window
    if scale is not None:
        scale = check.number("scale", scale)
        if abs(scale) > torch.finfo(accumulation_dtype(q)).max:
            raise ValueError(
                f"scale: expected a number that is finite in {accumulation_dtype(q)}, or None; got {scale}"
            )
    if window is not None:
        # A window of LONGEST includes all keys; a larger one would overflow when subtracted from a position.
        window = min(check.integer("window", window, 1), check.LONGEST)
        if not causal:
            raise ValueError("window: needs causal=True, got causal=False")
    key_range = check.key_range(mixing.key_range, batch, keys, "q", q)
    check.gate(mixing.gate, batch, heads, q)
    if mixing.extended:
        mixing = _check_extended(mixing, q, k)
    return mixing._replace(causal=causal, scale=scale, key_range=key_range, window=window)


def _check_extended(mixing: Mixing, q: Tensor, k: Tensor) -> Mixing:
    softcap, dtype = mixing.softcap, accumulation_dtype(q)
    if softcap is not None:
        softcap = check.number("softcap", softcap)
        least = 2**26 * torch.finfo(dtype).tiny  # so that scores over it, and it times their tanh, stay in range
        if not least <= softcap <= 1 / least:
            raise ValueError(f"softcap: expected a number from {least:.0e} to {1 / least:.0e}, or None; got {softcap}")
    for name in ("sink", "slopes"):
        of_head = getattr(mixing, name)
        if of_head is not None:
            check.has_shape(name, of_head, "H", (q.shape[1],))
            check.is_floating(name, of_head)
            check.matches(name, of_head, "q", q, dtype=False)
            # The kernels multiply them with log2(e), and slopes with distances.
            farthest, beside = (1, "") if name == "sink" else (q.shape[2] + k.shape[2], ", times T + S too")
            ok = (of_head.to(dtype) * 2 * farthest).isfinite()
            check.values(ok, f"{name}: expected numbers that are finite in {dtype}{beside}", of_head)
    segments, blocks = (_ids(name, getattr(mixing, name), q, k) for name in ("segments", "blocks"))
    if blocks is not None:
        check.values(blocks >= -1, "blocks: expected ids of at least -1, which is no block", blocks)
    return mixing._replace(softcap=softcap, segments=segments, blocks=blocks)


def _ids(name: str, value: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Ids of the keys' positions, of which the queries are the last, as int64."""
    if value is None:
        return None
    check.has_shape(name, value, "B,S", (q.shape[0], k.shape[2]))
    value = check.integers(name, value)
    check.matches(name, value, "q", q, dtype=False)
    if q.shape[2] > k.shape[2]:
        raise ValueError(
            f"{name}: query i has the id of key i + S - T, so T <= S is expected; got T = {q.shape[2]}, "
            f"S = {k.shape[2]}"
        )
    return value


def _ids_at(ids: Tensor, at: Tensor) -> Tensor:
    """The ids [B,S] of positions [B or 1,R] → [B,R,1]"""
    return ids.gather(1, at.expand(len(ids), -1))[..., None]


def check_saliency(q: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor) -> None:
    """The checks of the further arguments of every op that reads a gradient."""
    check.has_shape("grad_out", grad_out, "B,H,T,Dv", (*q.shape[:3], v.shape[3]))
    check.matches("grad_out", grad_out, "q", q)
    check_lse(q, lse)


def check_lse(q: Tensor, lse: Tensor) -> None:
    check.has_shape("lse", lse, "B,H,T", tuple(q.shape[:3]))
    check.is_floating("lse", lse)
    check.matches("lse", lse, "q", q, dtype=False)


def per_head(gate: Tensor) -> Tensor:
    """A gate [H] or [B,H] shaped to multiply [B,H,T,D] or [B,H,T,S]."""
    return gate[..., :, None, None]


def valid_keys(
    queries: int, keys: int, causal: bool, key_range: Tensor | None, window: int | None, device: torch.device
) -> Tensor:
    """[B or 1, 1, T, S] bool: True where query i sees key j.

    Causal is aligned bottom-right, j <= i + S - T; ``window`` keeps the keys at a smaller distance from i + S - T,
    those after it too if not causal; ``key_range`` [B,2] is each example's first and one-past-last valid key.
    """
    last = torch.arange(queries, device=device)[:, None] + (keys - queries)  # [T,1]
    j = torch.arange(keys, device=device)[None, :]  # [1,S]
    valid = (j <= last) if causal else torch.ones(queries, keys, dtype=torch.bool, device=device)
    if window is not None:
        valid = valid & (j > last - window) & (j < last + window)
    if key_range is not None:
        valid = valid & (j >= key_range[:, :1, None]) & (j < key_range[:, 1:, None])  # [B,T,S]
        return valid[:, None]
    return valid[None, None]


def key_range_of(mask: Tensor) -> Tensor:
    """[B,S] mask of the valid keys → [B,2] first and one-past-last valid key of each example.

    Raises:
        ValueError: the valid keys of an example are not contiguous.
    """
    valid = mask.bool()
    first = valid.int().argmax(-1)  # the first True; 0 if there is none
    last = first + valid.sum(-1)
    positions = torch.arange(valid.shape[1], device=valid.device)
    contiguous = (positions >= first[:, None]) & (positions < last[:, None])
    wrong = contiguous != valid
    check.values(
        ~wrong.any(-1),
        "attention_mask: expected the valid tokens of each example to be contiguous (padding at the ends only), "
        "without padding between them at an [example, position]",
        torch.stack([torch.arange(len(valid), device=valid.device), wrong.int().argmax(-1)], -1),
    )
    return torch.stack((first, last), -1)
