"""Packed texts, prefixes, sinks, caps and slopes: each against the plain attention that it stands for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from symground import ops
from symground.ops.attention import tiles
from symground.ops.attention.mixing import Mixing

F64 = torch.float64
every_impl = pytest.mark.parametrize("impl", ["reference", "cpu", "torch"])


def heads(*lengths: int, batch: int = 2, size: int = 8, of_value: int = 8) -> list[Tensor]:
    """q [B,4,T,D], k and v [B,2,S,·], dO, in float64."""
    torch.manual_seed(0)
    queries, keys = lengths[0], lengths[-1]
    shapes = ((4, queries, size), (2, keys, size), (2, keys, of_value), (4, queries, of_value))
    return [torch.randn(batch, *shape, dtype=F64) for shape in shapes]


def everything(impl: str, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, **kw: Any) -> dict[str, Tensor]:
    """Output, log-sum-exp, gradients, signed saliency and rows of all queries."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    probe = torch.zeros(1, dtype=F64).expand(len(q), q.shape[2], k.shape[2]).requires_grad_()
    out, lse = ops.attention(*leaves, saliency_probe=probe, impl=impl, **kw)
    dq, dk, dv, total = torch.autograd.grad(out, [*leaves, probe], grad)
    rows = torch.arange(q.shape[2]).expand(len(q), -1)
    of_rows = ops.attention_saliency_rows(q, k, v, grad, lse, rows, impl=impl, **kw)
    return {"out": out.detach(), "lse": lse, "dq": dq, "dk": dk, "dv": dv, "saliency": total, "rows": of_rows}


@every_impl
@pytest.mark.parametrize("window", [None, 3])
def test_packed_texts_are_the_texts_alone(impl: str, window: int | None) -> None:
    """In rows with texts at different places, one of them with padding at its left; with a window too."""
    given = heads(90)
    starts = ((0, 20, 21, 90), (5, 70, 90))
    segments, bounds = torch.zeros(2, 90, dtype=torch.long), torch.tensor([[0, 90], [5, 90]])
    for b, at in enumerate(starts):
        for n, (low, high) in enumerate(pairwise(at)):
            segments[b, low:high] = (7, 3, 9)[n]
    packed = everything(impl, *given, window=window, segments=segments, key_range=bounds)
    for b, at in enumerate(starts):
        for low, high in pairwise(at):
            alone = everything(impl, *(x[b : b + 1, :, low:high] for x in given), window=window)
            for name in ("out", "lse", "dq", "dk", "dv"):
                torch.testing.assert_close(packed[name][b : b + 1, :, low:high], alone[name])
            torch.testing.assert_close(packed["saliency"][b : b + 1, low:high, low:high], alone["saliency"])
            torch.testing.assert_close(packed["rows"][b : b + 1, :, low:high, low:high], alone["rows"])
            outside = packed["saliency"][b, low:high].clone()
            outside[:, low:high] = 0
            assert not outside.any()


@every_impl
def test_queries_of_the_last_positions_have_the_ids_of_their_positions(impl: str) -> None:
    """As in generation with a cache: fewer queries than keys."""
    q, k, v, grad = heads(80)
    segments = (torch.arange(80) // 30).expand(2, -1)
    blocks = torch.where(torch.arange(80) // 8 == 8, 0, -1).expand(2, -1)  # positions 64 to 71
    whole = everything(impl, q, k, v, grad, segments=segments, blocks=blocks)
    last = everything(impl, q[:, :, 66:], k, v, grad[:, :, 66:], segments=segments, blocks=blocks)
    for name in ("out", "lse", "dq", "rows"):
        torch.testing.assert_close(last[name], whole[name][:, :, 66:])


@every_impl
def test_a_block_is_seen_both_ways_and_the_rest_is_causal(impl: str) -> None:
    q, k, v, grad = heads(70)
    blocks = torch.full((2, 70), -1)
    blocks[0, :10], blocks[1, 60:68] = 0, 2  # a prefix; a picture across the tiles of 64
    s = torch.einsum("bhid,bhjd->bhij", q, k.repeat_interleave(2, 1)) * 8**-0.5
    seen = torch.ones(70, 70, dtype=torch.bool).tril().repeat(2, 1, 1)
    seen[0, :10, :10], seen[1, 60:68, 60:68] = True, True
    a = s.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    found = everything(impl, q, k, v, grad, blocks=blocks)
    torch.testing.assert_close(found["out"], a @ v.repeat_interleave(2, 1))
    torch.testing.assert_close(found["rows"], a * (grad @ v.repeat_interleave(2, 1).mT))


@every_impl
@pytest.mark.parametrize("gated", [False, True])
def test_rows_of_saliency_sum_to_the_outputs_part_with_a_sink(impl: str, gated: bool) -> None:
    """Σ_j S[i,j] = ⟨dO[i], O[i]⟩: the sink has no value."""
    q, k, v, grad = heads(70, of_value=3)
    more = {"sink": torch.tensor([-1.0, 0.0, 5.0, 50.0], dtype=F64), "softcap": 2.0}
    more |= {"gate": torch.tensor([1.0, 0.0, -2.0, 0.5])} if gated else {}
    found = everything(impl, q, k, v, grad, **more)
    torch.testing.assert_close(found["rows"].sum(-1), (grad * found["out"]).sum(-1))
    plain = everything(impl, q, k, v, grad, **{**more, "sink": None})
    share = (plain["lse"] - torch.logaddexp(plain["lse"], more["sink"][:, None])).exp()
    torch.testing.assert_close(found["out"], plain["out"] * share[..., None])


@every_impl
def test_a_query_without_a_key_has_the_sink_alone(impl: str) -> None:
    q, k, v, grad = heads(70)
    sink = torch.arange(4, dtype=F64)
    found = everything(impl, q, k, v, grad, sink=sink, key_range=torch.tensor([[0, 70], [65, 70]]))
    torch.testing.assert_close(found["lse"][1, :, :65], sink[:, None].expand(-1, 65))
    for name in ("out", "dq", "rows"):
        assert not found[name][1, :, :65].any()
        assert found[name].isfinite().all()


@every_impl
def test_a_float32_row_sums_to_one_with_its_sink(impl: str) -> None:
    """A large log-sum-exp is rounded by more than the error that attention may have."""
    q, k, v, grad = (x.float() for x in heads(130, size=64, of_value=64))
    sink = torch.tensor([2000.0, 1990.0, 1995.0, 2001.0])
    kw = {"slopes": torch.full((4,), -0.3), "scale": 8.0, "sink": sink}
    q, k = q.abs() + 0.5, k.abs() + 0.5
    exact = everything("reference", *(x.double() for x in (q, k, v, grad)), **{**kw, "sink": sink.double()})
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    probe = torch.zeros(1).expand(2, 130, 130).requires_grad_()
    out, _ = ops.attention(*leaves, saliency_probe=probe, impl=impl, **kw)
    total = torch.autograd.grad(out, probe, grad)[0].double()
    # Logits of about 2,000 are rounded by 1e-4, as an eager float32 computation rounds them too.
    assert (total - exact["saliency"]).abs().max() <= 1e-3 * exact["saliency"].abs().max()


@pytest.mark.parametrize("impl", ["reference", "cpu", "torch"])
def test_sinks_and_slopes_have_gradients(impl: str) -> None:
    q, k, v, _ = heads(5, 7, size=3)
    sink, slopes = (torch.randn(4, dtype=F64, requires_grad=True) for _ in range(2))
    blocks = torch.tensor([[-1, 0, 0, -1, 2, 2, 2]] * 2)

    def run(*given: Tensor) -> Tensor:
        q, k, v, sink, slopes = given
        return ops.attention(q, k, v, sink=sink, slopes=slopes, softcap=1.5, blocks=blocks, impl=impl)[0]

    leaves = (*(x.requires_grad_() for x in (q, k, v)), sink, slopes)
    assert torch.autograd.gradcheck(run, leaves)
    if impl == "reference":
        assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("impl", ["reference", "cpu", "torch"])
@pytest.mark.parametrize("size", [(257, 257), (576, 512), (64, 300)])
def test_wide_heads(impl: str, size: tuple[int, int]) -> None:
    """Heads wider than the kernels' 256, and values of another width, as in multi-head latent attention."""
    given = heads(70, batch=1, size=size[0], of_value=size[1])
    found, right = everything(impl, *given), everything("reference", *given)
    for name, x in found.items():
        torch.testing.assert_close(x, right[name])


def test_only_what_a_row_sees_is_computed() -> None:
    """Texts packed into one row cost what they cost alone: no tile spans two of them."""
    q, k, v, grad = heads(1024, batch=1)
    segments = (torch.arange(1024) // 128)[None]
    pairs = 0

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal pairs
            found = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.bmm.default:
                pairs += found.numel()
            return found

    _, lse = ops.attention(q, k, v, segments=segments, impl="cpu")
    with Count():  # within a registered op it would see nothing
        tiles.saliency(q, k, v, grad, lse, Mixing(segments=segments).resolved(q), True)
    assert 0 < pairs <= 2 * 4 * 8 * (64 * 64 + 64 * 128)  # two products, four heads, eight texts of two tiles
