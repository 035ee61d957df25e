"""Kinds of fault, each tested for all ops: layouts, autocast, derivatives of every mode, ids, numbers, sizes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import forward_ad

from symground import ops
from tests.ops.common.drawing import LAYOUTS, laid_out
from tests.ops.common.drawn import (
    DIFFERENTIABLE,
    OPS,
    Case,
    call,
    came,
    draw,
    implementation,
    leaves_of,
    on_a_cpu,
)  # fmt: skip
from tests.ops.common.fuzz import check

every_op = pytest.mark.parametrize("op", OPS)
every_impl = pytest.mark.parametrize(("op", "impl"), [(op, impl) for op in OPS for impl in on_a_cpu(op)])
every_differentiable = pytest.mark.parametrize(
    ("op", "impl"), [(op, impl) for op in DIFFERENTIABLE for impl in on_a_cpu(op)]
)
F32, F64 = torch.float32, torch.float64
#: The arguments of each op that contain positions, ids or counts.
IDS = ("key_range", "rows", "query_groups", "key_groups", "candidates", "targets")


def results(case: Case, impl: str, autocast: torch.dtype | None, back: bool) -> list[Tensor]:
    """Results and gradients, with autocast around the call, and if ``back`` around the backward pass too."""
    leaves = leaves_of(case)
    with implementation(impl) as name:
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            found = call(case, name, **leaves)
        ways = [(x, g) for x, g in zip(found, came(case, found, 3), strict=False) if x is not None and x.requires_grad]
        with torch.autocast("cpu", autocast, enabled=autocast is not None and back):
            outputs, grads = [x for x, _ in ways], [g for _, g in ways]
            of = torch.autograd.grad(outputs, list(leaves.values()), grads, materialize_grads=True) if ways else ()
    return [x.detach() for x in (*found, *of) if x is not None]


@every_impl
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_any_argument(op: str, impl: str, layout: str) -> None:
    """Each floating-point argument in this layout, and the others and the incoming gradients in random ones."""
    for seed in range(2):
        case = draw(op, seed, dtype=F32 if seed else F64)
        rng = random.Random(seed)
        kept = ("lse", "saliency_probe", "flow_probe", *IDS)  # lse belongs to q and k, so it keeps its layout
        given = {
            n: laid_out(x, layout, rng) if isinstance(x, Tensor) and n not in kept else x for n, x in case.given.items()
        }
        check(case._replace(given=given), impl)


@every_impl
@pytest.mark.parametrize("back", [False, True])
def test_autocast_changes_no_bit(op: str, impl: str, back: bool) -> None:
    for seed in range(3):
        case = draw(op, seed + 10, dtype=F32)
        for plain, cast in zip(
            results(case, impl, None, False), results(case, impl, torch.bfloat16, back), strict=True
        ):
            assert plain.dtype == cast.dtype
            torch.testing.assert_close(cast, plain, rtol=0, atol=0, equal_nan=True)


@every_differentiable
def test_a_gradient_that_nothing_sent_is_none(op: str, impl: str) -> None:
    """As where an op further on has no gradient of its input."""

    class Stops(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> None:
            return None

    for seed in range(4):
        leaves = leaves_of(case := draw(op, seed + 60, dtype=F64))
        with implementation(impl) as name:
            for x in call(case, name, **leaves):
                if x is not None and x.requires_grad:
                    of = torch.autograd.grad(
                        Stops.apply(x).sum(), list(leaves.values()), retain_graph=True, allow_unused=True
                    )
                    assert all(g is None or not g.any() for g in of)


@every_differentiable
def test_second_derivatives_are_right_or_refused(op: str, impl: str) -> None:
    for seed in range(20):
        check(draw(op, seed + 20, dtype=F64), impl, "second")


@pytest.mark.parametrize("impl", on_a_cpu("linear_cross_entropy"))
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_has_second_derivatives(impl: str, reduction: str) -> None:
    """A gradient penalty and a Hessian equal those of F.cross_entropy; a third derivative too."""
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(s, dtype=F64) for s in ((4, 3), (6, 3), (6,)))
    targets = torch.tensor([5, -100, 0, 2])

    def ours(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ops.linear_cross_entropy(h, w, targets, b, reduction=reduction, impl=name)

    def theirs(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(h @ w.T + b, targets, reduction=reduction)

    def penalty(loss: Any, *given: Tensor) -> Tensor:
        of = torch.autograd.grad(loss(*given), given, create_graph=True)
        return sum(x.square().sum() for x in of) ** 2

    with implementation(impl) as name:
        for a, b in zip(
            torch.autograd.functional.hessian(ours, (hidden, weight, bias)),
            torch.autograd.functional.hessian(theirs, (hidden, weight, bias)), strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(a, b)
        of = []
        for loss in (ours, theirs):
            leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
            first = torch.autograd.grad(penalty(loss, *leaves), leaves, create_graph=True)
            of.append([*first, *torch.autograd.grad(sum(x.sin().sum() for x in first), leaves)])
        for a, b in zip(*of, strict=True):
            torch.testing.assert_close(a, b)


@every_differentiable
def test_forward_mode_is_right_or_refused(op: str, impl: str) -> None:
    for seed in range(4):
        check(draw(op, seed + 40, dtype=F64), impl, "forward")


@every_op
@pytest.mark.parametrize("impl", ["cpu", "plain"])
def test_no_tangent_is_dropped(op: str, impl: str) -> None:
    """With a dual number in any one floating-point argument, by forward_ad and by torch.func.jvp, also nested."""
    case = draw(op, 7, dtype=F64, layouts=False)
    floating = [
        n for n, x in case.given.items() if isinstance(x, Tensor) and x.is_floating_point() and "probe" not in n
    ]
    refused = pytest.raises(NotImplementedError, match=r"ops\.\w+: impl 'cpu' has no derivative in forward mode")
    with implementation(impl) as name:
        for n in floating:
            x = case.given[n].contiguous()
            with forward_ad.dual_level(), refused:
                call(case, name, **{n: forward_ad.make_dual(x, torch.ones_like(x))})
            with refused:
                torch.func.jvp(lambda x, n=n: call(case, name, **{n: x})[0], (x,), (torch.ones_like(x),))
        n, x = floating[0], case.given[floating[0]].contiguous()
        with refused:
            torch.func.hessian(lambda x: call(case, name, **{n: x})[0].sum())(x)
        with refused:
            mapped = torch.func.vmap(lambda x: call(case, name, **{n: x})[0])
            torch.func.jvp(mapped, (x[None],), (torch.ones_like(x[None]),))


@pytest.mark.parametrize("impl", ["cpu", "plain", "torch"])
def test_no_derivative_of_a_lens_norm_is_dropped(impl: str) -> None:
    """What comes in with a function is seen too."""
    hidden, weight, g = torch.randn(2, 3, 8), torch.randn(20, 8), torch.ones(8)
    with implementation(impl) as name:

        def of(g: Tensor) -> Tensor:
            return ops.lens_surprisal(hidden, None, lambda x: x * g, weight, torch.tensor([1]), impl=name).sum()

        with pytest.raises(NotImplementedError, match=r"ops.lens_surprisal: .* in forward mode"):
            torch.func.jvp(of, (g,), (g,))
        with pytest.raises(NotImplementedError, match=r"ops.lens_surprisal: .* in torch.func"):
            torch.func.grad(of)(g)


@every_differentiable
def test_torch_func_gives_the_gradients_or_refuses(op: str, impl: str) -> None:
    for seed in range(2):
        case = draw(op, seed + 50, dtype=F64, layouts=False)
        names = list(case.leaves)

        def total(*leaves: Tensor, case: Case = case, names: list[str] = names, name: str) -> Tensor:
            return call(case, name, **dict(zip(names, leaves, strict=True)))[0].sum()

        given = tuple(case.given[n] for n in names)
        with implementation(impl) as name:
            every, several = tuple(range(len(given))), tuple(torch.stack([x, x]) for x in given)

            def mapped(*z: Tensor, total: Callable[..., Tensor] = total, name: str = name) -> Tensor:
                return torch.func.vmap(lambda *z: total(*z, name=name))(*z)

            if impl != "reference":
                with pytest.raises(
                    NotImplementedError, match=rf"ops\.{op}: impl '{name}' has no derivative in torch.func"
                ):
                    torch.func.grad(lambda *z, total=total: total(*z, name=name), every)(*given)
            else:
                found = torch.func.grad(lambda *z, total=total: total(*z, name=name), every)(*given)
                of_mapped = torch.func.grad(lambda *z, mapped=mapped: mapped(*z).sum(), every)(*several)
                mapped_of = torch.func.vmap(torch.func.grad(lambda *z, total=total: total(*z, name=name), every))(
                    *several
                )
                leaves = [x.clone().requires_grad_() for x in given]
                right = torch.autograd.grad(total(*leaves, name=name), leaves, materialize_grads=True)
                for a, b, c, d in zip(found, of_mapped, mapped_of, right, strict=True):
                    torch.testing.assert_close(a, d)
                    torch.testing.assert_close(b, d.expand(b.shape))
                    torch.testing.assert_close(c, d.expand(c.shape))
            torch.testing.assert_close(mapped(*several), total(*given, name=name).detach().expand(2))


@every_impl
def test_ids_of_every_integer_dtype(op: str, impl: str) -> None:
    """Numbers mean the same in every dtype as in int64: nothing overflows, and no integer dtype is refused."""
    for seed in range(3):
        case = draw(op, seed, dtype=F64, layouts=False)
        names = [n for n in IDS if case.given.get(n) is not None]
        with implementation(impl) as name:
            for n in names:
                ids = case.given[n].long()
                expected = call(case, name, **{n: ids})
                for dtype in (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32):
                    info = torch.iinfo(dtype)
                    if ids.numel() and not (info.min <= ids.min() and ids.max() <= info.max):
                        continue
                    for a, b in zip(call(case, name, **{n: ids.to(dtype)}), expected, strict=True):
                        assert (a is None and b is None) or torch.equal(a, b)
                for dtype in (torch.bool, F32, torch.complex64, torch.uint64):
                    with pytest.raises(ValueError, match=f"{n}: expected an integer tensor .*got {dtype}"):
                        call(case, name, **{n: ids.to(dtype)})


@pytest.mark.parametrize("impl", on_a_cpu("attention"))
def test_narrow_ids_do_not_wrap(impl: str) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 4), torch.randn(300, 4)
    wide, narrow = torch.tensor([156, 7, 255]), torch.tensor([156, 7, 255], dtype=torch.uint8)
    with implementation(impl) as name:
        for of in (ops.linear_cross_entropy, ops.candidate_surprisal):
            assert torch.equal(of(hidden, weight, narrow, impl=name), of(hidden, weight, wide, impl=name))
        right = F.cross_entropy(hidden @ weight.T, wide)  # 156 is -100 in eight bits, but is not ignored
        torch.testing.assert_close(ops.linear_cross_entropy(hidden, weight, narrow, impl=name), right)
        with pytest.raises(ValueError, match=r"targets: expected ids in \[0, V\) or ignore_index.*got -2"):
            ops.linear_cross_entropy(hidden, weight, torch.tensor([-2, 0, 0], dtype=torch.int8), impl=name)
        x = torch.randn(1, 1, 300, 4)
        bounds = torch.tensor([[3, 255]], dtype=torch.uint8)
        found = ops.attention(x, x, x, key_range=bounds, impl=name)[0]
        assert torch.equal(found, ops.attention(x, x, x, key_range=bounds.long(), impl=name)[0])


@every_op
def test_tensors_without_data_give_tensors_without_data(op: str) -> None:
    case = draw(op, 3, dtype=F32, layouts=False)
    meta = {n: x.to("meta") if isinstance(x, Tensor) else x for n, x in case.given.items()}
    for a, b in zip(call(case._replace(given=meta), None), call(case, "cpu"), strict=True):
        assert (a is None and b is None) or (a.is_meta and a.shape == b.shape and a.dtype == b.dtype)


@pytest.mark.parametrize("impl", on_a_cpu("attention"))
@pytest.mark.parametrize("op", ["attention", "ssd"])
def test_a_probe_is_taken_to_be_zero(op: str, impl: str) -> None:
    """Whatever its values, NaN and infinities included."""
    seed = next(s for s in range(100) if {"saliency_probe", "flow_probe"} <= set(draw(op, s, layouts=False).leaves))
    case = draw(op, seed, dtype=F64, layouts=False)
    probes = [n for n in case.leaves if "probe" in n]
    of = []
    for value in (0.0, 5.0, float("nan"), float("inf")):
        filled = {n: torch.full_like(case.given[n], value) for n in probes}
        of.append(results(case._replace(given={**case.given, **filled}), impl, None, False))
    for other in of[1:]:
        for a, b in zip(of[0], other, strict=True):
            assert torch.equal(a, b)


@every_impl
def test_sizes_of_zero(op: str, impl: str) -> None:
    """Any size may be 0: the result is empty with the right shape, and gradients are 0."""
    for seed in range(8):
        check(draw(op, seed, zeros=0.5), impl, "backward" if op in DIFFERENTIABLE else "no grad")
