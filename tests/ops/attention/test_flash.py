"""``impl="flash"``: the code around another library's flash attention.

On a GPU the real one runs. Elsewhere PyTorch's CPU flash attention takes its place behind the same two functions. This
tests layouts, gates and the saliency from its log-sum-exp, but not the GPU kernels.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from symground import ops
from symground.ops.attention import flash
from symground.ops.attention.api import IMPLEMENTATIONS
from symground.ops.attention.flash_libraries import FlashAttn, TorchFlash
from symground.ops.attention.mixing import Mixing
from symground.ops.common import needs
from symground.ops.common.tensors import padding
from tests.ops.common.triton_device import CUDA, DEVICE


class StandIn:
    def lacks(self, q: Tensor, k: Tensor, mixing: Mixing) -> str | None:
        return TorchFlash().lacks(q, k, mixing)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, mixing.causal, scale=mixing.scale
        )
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mixing: Mixing
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, mixing.causal, scale=mixing.scale
        )
        return grads


@pytest.fixture
def runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    if not CUDA:
        monkeypatch.setattr(flash, "flash", StandIn)
        monkeypatch.setattr(needs, "capability", lambda index: (9, 0))
        monkeypatch.setitem(IMPLEMENTATIONS, "flash", flash.ops._replace(refuses=lambda like: None))


@pytest.mark.usefixtures("runs_here")
@pytest.mark.parametrize("gated", [False, True])
def test_flash_gives_what_the_reference_gives(gated: bool) -> None:
    torch.manual_seed(0)
    dtype, tolerance = (torch.float16, 2e-2) if CUDA else (torch.float32, 1e-4)
    q, k, v, grad = (torch.randn(2, 2, 40, 16, device=DEVICE, dtype=dtype) for _ in range(4))
    groups = torch.randint(-1, 3, (2, 40), device=DEVICE)
    gate = torch.tensor([0.5, 0.0], device=DEVICE) if gated else None
    results = []
    for impl in ("reference", "flash"):
        leaves = [x.to(torch.float64 if impl == "reference" else dtype).requires_grad_() for x in (q, k, v)]
        saliency = torch.zeros(1, device=DEVICE).expand(2, 40, 40).requires_grad_()
        flow = torch.zeros(1, device=DEVICE).expand(2, 2, 3, 3).requires_grad_()
        out, lse = ops.attention(
            *leaves, gate=gate, saliency_probe=saliency, flow_probe=flow, query_groups=groups, key_groups=groups,
            impl=impl,
        )  # fmt: skip
        results.append((out, lse, *torch.autograd.grad(out, [*leaves, saliency, flow], grad.to(out.dtype))))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), wanted.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("runs_here")
def test_what_flash_does_not_take_is_named() -> None:
    q = torch.zeros(1, 1, 4, 16, device=DEVICE, dtype=torch.float16)
    with pytest.raises(ValueError, match="key_range: impl 'flash' without the flash-attn package expected None"):
        ops.attention(q, q, q, key_range=torch.tensor([[0, 4]], device=DEVICE), impl="flash")
    with pytest.raises(
        ValueError, match="q: impl 'flash' expected a head size D that is a multiple of 8, up to 256 here, got 12"
    ):
        ops.attention(q[..., :12], q[..., :12], q[..., :12], impl="flash")


def test_pytorchs_own_flash_names_what_it_lacks() -> None:
    q, own = torch.zeros(1, 1, 4, 16), TorchFlash()
    assert "window: impl 'flash' without" in str(own.lacks(q, q, Mixing(window=3)))
    assert "expected S = T = 2 where causal, got S = 4" in str(own.lacks(q[:, :, :2], q, Mixing()))
    assert own.lacks(q[:, :, :2], q, Mixing(causal=False)) is own.lacks(q, q, Mixing()) is None


@pytest.mark.skipif(CUDA, reason="on a GPU flash runs")
def test_flash_is_refused_where_it_cannot_run() -> None:
    q = torch.zeros(1, 1, 4, 16)
    with pytest.raises(ValueError, match="impl: 'flash' expected float16 or bfloat16, got torch.float32"):
        ops.attention(q, q, q, impl="flash")
    with pytest.raises(ValueError, match="impl: 'flash' expected tensors on a GPU, got cpu"):
        ops.attention(q.half(), q.half(), q.half(), impl="flash")


# The flash-attn package, of which the functions have a stand-in with their arguments, in plain PyTorch.


def one_sequence(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, before: int, softcap: float = 0.0,
    slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """[T,H,D] and [S,Hk,D] → out and lse [H,T]; a mask aligned bottom-right, as in flash-attn from 2.1 on.

    A bias of ALiBi is slope · j if causal, and with a window -slope · |i + S - T - j|, as in flash-attn's mask.h. A
    window that hides no key is none.
    """
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
    s = torch.einsum("thd,shd->hts", q, k) * scale
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    i, j = torch.arange(len(q))[:, None] + len(k) - len(q), torch.arange(len(k))
    before = -1 if before >= len(k) else before
    if slopes is not None:
        s = s + slopes[:, None, None] * (-(i - j).abs() if before >= 0 else j)
    seen = (j <= i) if causal else torch.ones_like(j <= i)
    if before >= 0:
        seen &= j >= i - before
    s = s.masked_fill(~seen, float("-inf"))
    lse = s.logsumexp(-1) if len(k) else s.new_full(s.shape[:2], float("-inf"))
    p = (s - lse.masked_fill(lse.isneginf(), 0.0)[..., None]).exp()
    return torch.einsum("hts,shd->thd", p, v), lse.masked_fill(lse.isneginf(), float("inf"))


def stand_in_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float, softmax_scale: float, causal: bool, window_size_left: int, window_size_right: int,
    softcap: float, alibi_slopes: None,
) -> tuple[Tensor, Tensor, None, None]:  # fmt: skip
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert len(cu_seqlens_q) == len(cu_seqlens_k)
    assert (int(cu_seqlens_q[-1]), int(cu_seqlens_k[-1])) == (len(q), len(k))
    assert max_seqlen_q > 1, "else the package takes every sequence to have one query"
    assert (dropout_p, softcap, window_size_right) == (0.0, 0.0, 0 if causal else -1)
    outs, levels = [], []
    for a, b, c, d in zip(
        cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), cu_seqlens_k[:-1].tolist(), cu_seqlens_k[1:].tolist(),
        strict=True,
    ):  # fmt: skip
        assert 0 <= b - a <= max_seqlen_q
        assert 0 <= d - c <= max_seqlen_k
        out, lse = one_sequence(q[a:b], k[c:d], v[c:d], causal, softmax_scale, window_size_left)
        outs.append(out)
        levels.append(lse)
    return torch.cat(outs), torch.cat(levels, 1), None, None


def stand_in_varlen_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    *, deterministic: bool, **kw: Any,
) -> None:  # fmt: skip
    assert softmax_lse.shape == (q.shape[1], len(q))
    assert not deterministic
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        found = stand_in_varlen(*leaves, **kw)[0]
    grads = torch.autograd.grad(found, leaves, dout, materialize_grads=True)
    for x, grad in zip((dq, dk, dv), grads, strict=True):
        x.copy_(grad)


def stand_in(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, softmax_scale: float, causal: bool, window_size_left: int,
    window_size_right: int, softcap: float, alibi_slopes: Tensor | None, return_softmax: bool = False,
) -> tuple[Tensor, Tensor, None, None]:  # fmt: skip
    assert (dropout_p, window_size_right, return_softmax) == (0.0, 0 if causal else -1, False)
    how = (causal, softmax_scale, window_size_left, softcap, alibi_slopes)
    outs, levels = zip(*(one_sequence(*x, *how) for x in zip(q, k, v, strict=True)), strict=True)
    return torch.stack(outs), torch.stack(levels), None, None


def stand_in_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    *, deterministic: bool, **kw: Any,
) -> None:  # fmt: skip
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        found, level = stand_in(*leaves, **kw)[:2]
    torch.testing.assert_close(softmax_lse, level.detach())  # the package computes P from it
    for x, grad in zip((dq, dk, dv), torch.autograd.grad(found, leaves, dout), strict=True):
        x.copy_(grad)


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn.flash_attn_interface")
    module._flash_attn_forward = stand_in  # type: ignore[attr-defined]
    module._flash_attn_backward = stand_in_backward  # type: ignore[attr-defined]
    module._flash_attn_varlen_forward = stand_in_varlen  # type: ignore[attr-defined]
    module._flash_attn_varlen_backward = stand_in_varlen_backward  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", module)


@pytest.mark.usefixtures("flash_attn")
@given(
    st.integers(1, 9), st.integers(1, 9), st.booleans(), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)),
    min_size=1, max_size=3), st.booleans(),
)  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_padding_as_sequences_of_different_lengths(
    queries: int, keys: int, causal: bool, ranges: list[tuple[int, int]], grouped: bool
) -> None:
    """Left, right and on both sides, with queries after the last key, T ≠ S, empty ranges, and NaN in the padding."""
    torch.manual_seed(0)
    bounds = torch.tensor([sorted((min(a, keys), min(b, keys))) for a, b in ranges])
    q, grad = (torch.randn(len(bounds), 4, queries, 3, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(len(bounds), 2 if grouped else 4, keys, 3, dtype=torch.float64) for _ in range(2))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    right, right_lse = ops.attention(*leaves, causal=causal, key_range=bounds, scale=0.7, impl="reference")
    wanted = torch.autograd.grad(right, leaves, grad, materialize_grads=True)
    q, k, v = (x.detach().clone() for x in leaves)
    outside = padding(bounds, keys)[:, None, :, None].expand_as(k)
    k[outside], v[outside] = float("nan"), float("inf")
    mixing = Mixing(causal, 0.7, bounds)
    out, lse = FlashAttn().forward(q, k, v, mixing)
    torch.testing.assert_close(out, right.detach())
    torch.testing.assert_close(lse, right_lse.masked_fill(right_lse.isneginf(), float("inf")))
    for found, of in zip(FlashAttn().backward(grad, q, k, v, out, lse, mixing), wanted, strict=True):
        torch.testing.assert_close(found, of)


@pytest.mark.usefixtures("flash_attn")
@pytest.mark.parametrize("lengths", [(5, 5), (3, 7), (7, 4)])
@pytest.mark.parametrize("window", [None, 2, 4, 7, 8, 50])
@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("alibi", [True, False])
def test_softcap_slopes_and_windows_are_the_packages(
    lengths: tuple[int, int], window: int | None, softcap: float | None, alibi: bool
) -> None:
    torch.manual_seed(0)
    queries, keys = lengths
    q, grad = (torch.randn(2, 4, queries, 3, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(2, 2, keys, 3, dtype=torch.float64) for _ in range(2))
    slopes = torch.tensor([0.5, -0.2, 0.0, 1.0], dtype=torch.float64) if alibi else None
    mixing = Mixing(True, 0.7, window=window, softcap=softcap, slopes=slopes)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    right, right_lse = ops.attention(
        *leaves, scale=0.7, window=window, softcap=softcap, slopes=slopes, impl="reference"
    )
    wanted = torch.autograd.grad(right, leaves, grad)
    q, k, v = (x.detach() for x in leaves)
    assert FlashAttn().lacks(q, k, mixing) is None
    out, lse = FlashAttn().forward(q, k, v, mixing)
    torch.testing.assert_close(out, right.detach())
    torch.testing.assert_close(lse, right_lse.masked_fill(right_lse.isneginf(), float("inf")))
    for found, of in zip(FlashAttn().backward(grad, q, k, v, out, lse, mixing), wanted, strict=True):
        torch.testing.assert_close(found, of)


def test_what_the_package_does_not_take_with_slopes_is_named() -> None:
    q, slopes = torch.zeros(1, 2, 4, 16), torch.zeros(2)
    found = [
        FlashAttn().lacks(q, q, Mixing(causal=False, slopes=slopes)),
        FlashAttn().lacks(q, q, Mixing(key_range=torch.tensor([[0, 4]]), slopes=slopes)),
        FlashAttn().lacks(q, q, Mixing(slopes=slopes.clone().requires_grad_())),
    ]
    assert [str(x).split(", got")[0] for x in found] == [
        "slopes: impl 'flash' expected None where causal=False",
        "slopes: impl 'flash' expected None where a key_range is given",
        "slopes: impl 'flash' expected a tensor that needs no gradient",
    ]
    assert "softcap: impl 'flash' without the flash-attn package expected None" in str(
        TorchFlash().lacks(q, q, Mixing(softcap=1.0))
    )


@pytest.mark.usefixtures("runs_here")
@pytest.mark.parametrize("name", ["sink", "segments", "blocks"])
def test_what_no_library_has_is_named(name: str) -> None:
    q = torch.zeros(1, 2, 4, 16, device=DEVICE, dtype=torch.float16)
    value = torch.zeros(2, device=DEVICE) if name == "sink" else torch.zeros(1, 4, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match=f"{name}: impl 'flash' expected None"):
        ops.attention(q, q, q, **{name: value}, impl="flash")
    with pytest.raises(ValueError, match="v: impl 'flash' expected a head size Dv = D = 16, got 8"):
        ops.attention(q, q, q[..., :8], impl="flash")
