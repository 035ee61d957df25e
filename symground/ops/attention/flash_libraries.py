"""The flash attention of flash-attn and of PyTorch, behind the two functions of `Flash`. Only `flash.py` reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from symground.ops.attention.mixing import Mixing
from symground.ops.common.tensors import adjacent


class Flash(Protocol):
    """A flash attention on q [B,H,T,D] and k, v [B,Hk,S,D]. The mixing has a scale above 0; its gate is not read."""

    def lacks(self, q: Tensor, k: Tensor, mixing: Mixing) -> str | None:
        """What of the call the library does not take, or None."""
        ...

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
        """out [B,H,T,D] and lse [B,H,T], +inf where a query sees no key."""
        ...

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mixing: Mixing
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv; in a fixed order if deterministic algorithms are required."""
        ...


class FlashAttn:
    """The flash-attn package, from 2.7 on. It aligns causal masks bottom-right, as we do; it has windows, a softcap and
    ALiBi's slopes.

    Padding is given as sequences of different lengths: the padded keys of an example are a sequence without queries,
    and the queries before its first key are one without keys. So nothing is copied, and no length is read.
    """

    def lacks(self, q: Tensor, k: Tensor, mixing: Mixing) -> str | None:
        if mixing.key_range is not None and mixing.window is not None:
            return "window: impl 'flash' expected None where a key_range is given, got both"
        return None if mixing.slopes is None else _of_slopes(mixing.slopes, mixing)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_forward, _flash_attn_varlen_forward

        if mixing.key_range is None:
            rows = [adjacent(x).transpose(1, 2) for x in (q, k, v)]
            out, lse, *_ = _flash_attn_forward(
                *rows, dropout_p=0.0, **_how(mixing, mixing.causal), return_softmax=False
            )
            return out.transpose(1, 2), lse - _level(q, k, mixing)
        given = [_packed(x) for x in (q, k, v)]
        found = []
        for causal, lengths in _sequences(q, k, mixing):
            found.append(_flash_attn_varlen_forward(*given, **lengths, dropout_p=0.0, **_how(mixing, causal))[:2])
        # A query is in one of the calls, and sees no key in the other: its output is 0 there, and its lse +inf.
        out, lse = found[0]
        for more, level in found[1:]:
            out, lse = out + more, torch.minimum(lse, level)
        return _unpacked(out, q), lse.unflatten(1, (q.shape[0], q.shape[2])).transpose(0, 1)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mixing: Mixing
    ) -> tuple[Tensor, Tensor, Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_backward, _flash_attn_varlen_backward

        repeats = {"deterministic": torch.are_deterministic_algorithms_enabled()}
        if mixing.key_range is None:
            given = [adjacent(x).transpose(1, 2) for x in (grad, q, k, v, out)]
            dq, dk, dv = (torch.empty_like(x) for x in given[1:4])
            level = lse + _level(q, k, mixing)
            _flash_attn_backward(*given, level, dq, dk, dv, dropout_p=0.0, **_how(mixing, mixing.causal), **repeats)
            return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)
        given = [_packed(x) for x in (grad, q, k, v, out)]
        level = lse.transpose(0, 1).flatten(1).contiguous()
        total: list[Tensor] = []
        for causal, lengths in _sequences(q, k, mixing):
            grads = [torch.zeros_like(x) for x in given[1:4]]  # 0 where no sequence writes
            _flash_attn_varlen_backward(
                *given, level, *grads, **lengths, dropout_p=0.0, **_how(mixing, causal), **repeats
            )
            total = [x + y for x, y in zip(total, grads, strict=True)] if total else grads
        dq, dk, dv = (_unpacked(x, like) for x, like in zip(total, (q, k, v), strict=True))
        return dq, dk, dv


def _how(mixing: Mixing, causal: bool) -> dict[str, Any]:
    """The package's arguments for how queries see keys."""
    before = -1 if mixing.window is None else mixing.window - 1
    return {
        "softmax_scale": mixing.scale, "causal": causal, "window_size_left": before,
        "window_size_right": 0 if causal else -1, "softcap": mixing.softcap or 0.0, "alibi_slopes": mixing.slopes,
    }  # fmt: skip


def _of_slopes(slopes: Tensor, mixing: Mixing) -> str | None:
    """What the package does not take with slopes."""
    if not mixing.causal:  # it adds -slope · |i + S - T - j|
        return "slopes: impl 'flash' expected None where causal=False, got a tensor"
    if mixing.key_range is not None:
        return "slopes: impl 'flash' expected None where a key_range is given, got both"
    if slopes.requires_grad and torch.is_grad_enabled():
        return "slopes: impl 'flash' expected a tensor that needs no gradient, got requires_grad=True"
    return None


def _level(q: Tensor, k: Tensor, mixing: Mixing) -> Tensor | float:
    """By how much the package's log-sum-exp is above ours. It adds slope · j without a window that hides keys."""
    queries, keys, window = q.shape[2], k.shape[2], mixing.window
    if mixing.slopes is None or (window is not None and window <= keys):
        return 0.0
    return mixing.slopes[:, None] * torch.arange(keys - queries, keys, device=q.device)


def _packed(x: Tensor) -> Tensor:
    """[B,H,T,D] → [B·T,H,D]; no copy of what a projection gives, [B,T,H,D] transposed."""
    return adjacent(x).transpose(1, 2).flatten(0, 1)


def _unpacked(x: Tensor, like: Tensor) -> Tensor:
    found: Tensor = x.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)
    return found


def _sequences(q: Tensor, k: Tensor, mixing: Mixing) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Calls of the package, causal or not, and the lengths of their sequences, which together are every valid pair.

    In the causal call, the sequences of an example are: the queries before its first key, and no key; its padding
    before, and no query; its queries up to its last key, and its keys; the queries after, and no key; its padding
    after, and no query. The queries after its last key see all keys: they are in a second call, which is not causal.
    """
    key_range, queries, keys = mixing.key_range, q.shape[2], k.shape[2]
    assert key_range is not None
    first, last = key_range.unbind(1)
    none, all_ = torch.zeros_like(first), torch.full_like(first, queries)
    if not mixing.causal:
        yield False, _lengths([none, none, all_], [none, first, last], queries, keys)
        return
    start, stop = ((x + queries - keys).clamp(min=0) for x in (first, last))
    yield True, _lengths([none, start, start, stop, all_], [none, none, first, last, last], queries, keys)
    yield False, _lengths([none, stop, stop, all_], [none, none, first, last], queries, keys)


def _lengths(of_queries: list[Tensor], of_keys: list[Tensor], queries: int, keys: int) -> dict[str, Any]:
    """From where each sequence of an example begins, in its queries and in its keys; the last ends with the example."""
    # For a bound of one query the package takes every sequence to have exactly one.
    return {
        "cu_seqlens_q": _cumulative(of_queries, queries), "cu_seqlens_k": _cumulative(of_keys, keys),
        "max_seqlen_q": max(queries, 2), "max_seqlen_k": keys,
    }  # fmt: skip


def _cumulative(starts: list[Tensor], length: int) -> Tensor:
    begins = torch.stack(starts, 1)  # [B, sequences]
    begins = begins + torch.arange(len(begins), device=begins.device)[:, None] * length
    end = begins.new_full((1,), len(begins) * length)
    return torch.cat([begins.flatten(), end]).to(torch.int32)


class TorchFlash:
    """The flash kernel of scaled_dot_product_attention: no window, padding, softcap or slopes, and T = S if causal.

    It aligns causal masks top-left. Its backward pass uses atomic additions unless
    torch.use_deterministic_algorithms(True) is set.
    """

    def lacks(self, q: Tensor, k: Tensor, mixing: Mixing) -> str | None:
        without = "impl 'flash' without the flash-attn package expected"
        for name in ("softcap", "slopes"):
            if getattr(mixing, name) is not None:
                return f"{name}: {without} None, since PyTorch's kernel has none"
        if mixing.key_range is not None:
            return f"key_range: {without} None, since PyTorch's kernel takes no padding; got a tensor"
        if mixing.window is not None:
            return f"window: {without} None, since PyTorch's kernel has none; got {mixing.window}"
        if mixing.causal and q.shape[2] != k.shape[2]:
            return f"k: {without} S = T = {q.shape[2]} where causal, got S = {k.shape[2]}"
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
        given = [adjacent(x) for x in (q, k, v)]
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            *given, 0.0, mixing.causal, scale=mixing.scale
        )
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mixing: Mixing
    ) -> tuple[Tensor, Tensor, Tensor]:
        unread = torch.empty(2, dtype=torch.uint64, device=q.device)  # the state of dropout, which is off
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            *(adjacent(x) for x in (grad, q, k, v)), out, lse, None, None, q.shape[2], k.shape[2], 0.0, mixing.causal,
            unread, unread, scale=mixing.scale,
        )  # fmt: skip
        return dq, dk, dv
