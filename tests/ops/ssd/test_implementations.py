"""Implementations of SSD against its reference in float64: gradients, chunk boundaries, padding, strong decay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from symground import ops
from symground.ops.common import extension
from symground.ops.ssd import chunks, cpu, tiles

NAN = float("nan")


@pytest.fixture(
    autouse=True,
    scope="module",
    params=[
        "plain PyTorch",
        pytest.param(
            "extension", marks=pytest.mark.skipif(extension.library is None, reason="the extension is not built")
        ),
    ],
)
def _inner(request: Any) -> Any:
    """Both versions on the CPU; plain PyTorch with chunks and tiles of 4, so that short inputs have several."""
    patch = pytest.MonkeyPatch()
    patch.setattr(tiles, "TILE", 4)
    if request.param == "plain PyTorch":
        patch.setattr(chunks, "CHUNK", 4)
        patch.setattr(cpu, "_inner", lambda: chunks)
    yield
    patch.undo()


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
    """Inputs in float64, some with a range of valid positions and NaN outside it, some with an initial state."""
    batch, length = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 4, 5, 8, 13, 64, 65, 130]))
    groups, repeat = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1)]))
    size, state = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    heads = groups * repeat
    z = {
        "x": normal(batch, length, heads, size), "dt": normal(batch, length, heads).abs(),
        "A": -normal(heads).abs() * draw(st.sampled_from([0.1, 1.0, 30.0])) - 1e-3,
        "B": normal(batch, length, groups, state), "C": normal(batch, length, groups, state),
    }  # fmt: skip
    key_range = initial = None
    if draw(st.booleans()):
        bounds = [sorted(draw(st.tuples(st.integers(0, length), st.integers(0, length)))) for _ in range(batch)]
        key_range = torch.tensor(bounds)
        for b, (low, high) in enumerate(bounds):
            for name in ("x", "dt", "B"):
                z[name][b, :low] = z[name][b, high:] = NAN
    if draw(st.booleans()):
        initial = normal(batch, heads, size, state)
    return z, key_range, initial


def gradients(z: dict[str, Tensor], key_range: Tensor | None, initial: Tensor | None, impl: str) -> list[Tensor]:
    """y, the final state, and all gradients of a loss that uses both."""
    leaves = [w.clone().requires_grad_() for w in (*z.values(), *(() if initial is None else (initial,)))]
    y, state = ops.ssd(*leaves[:5], key_range, leaves[5] if initial is not None else None, return_state=True, impl=impl)
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(w.shape, generator=g, dtype=torch.float64).to(w.dtype) for w in (y, state)]
    (y * weights[0]).sum().add((state * weights[1]).sum()).backward()
    return [y.detach(), state.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@contextmanager
def on(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@given(problems(), st.sampled_from([1, 3]))
def test_equals_the_reference_with_all_gradients(problem: Any, threads: int) -> None:
    z, key_range, initial = problem
    expected = gradients(z, key_range, initial, "reference")
    for impl in IMPLS[:-1]:
        with on(threads):
            found = gradients(z, key_range, initial, impl)
        for a, b in zip(found, expected, strict=True):
            assert b.isfinite().all()
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@given(problems(), st.integers(0, 2))
def test_saliency_and_flow_equal_the_reference(problem: Any, groups: int) -> None:
    z, key_range, _ = problem
    grad = torch.randn_like(z["x"]).nan_to_num()
    ids = torch.randint(-1, max(groups, 1), z["x"].shape[:2])
    for signed in (True, False):
        *found, right = (ops.ssd_saliency(**z, grad_y=grad, signed=signed, key_range=key_range, impl=i) for i in IMPLS)
        for x in found:
            torch.testing.assert_close(x, right, rtol=1e-9, atol=1e-12)
    for matrix in (True, False):
        *found, right = (ops.ssd_flow(**z, grad_y=grad, query_groups=ids, key_groups=ids, num_query_groups=groups,
                             num_key_groups=groups, key_range=key_range, with_matrix_total=matrix, impl=i)
                for i in IMPLS) if groups else ((),)  # fmt: skip
        for x in found:
            torch.testing.assert_close(x, right, rtol=1e-9, atol=1e-12)


IMPLS = ("cpu", "torch", "reference")


@given(problems())
def test_probes_have_saliency_and_flow_as_their_gradients(problem: Any) -> None:
    z, key_range, initial = problem
    batch, length, heads, _ = z["x"].shape
    ids = torch.arange(length).expand(batch, -1) % 3 - 1
    loss_of = torch.randn_like(z["x"]).nan_to_num()
    for impl in IMPLS:
        probes = [torch.zeros(1).expand(*shape).requires_grad_() for shape in ((batch, length, length),
                                                                              (batch, heads, 2, 2))]  # fmt: skip
        y = ops.ssd(**z, key_range=key_range, initial_state=initial, saliency_probe=probes[0], flow_probe=probes[1],
                    query_groups=ids, key_groups=ids, impl=impl)  # fmt: skip
        torch.testing.assert_close(y, ops.ssd(**z, key_range=key_range, initial_state=initial))
        (y * loss_of).sum().backward()
        saliency = ops.ssd_saliency(**z, grad_y=loss_of, signed=True, key_range=key_range)
        flow, _, _ = ops.ssd_flow(**z, grad_y=loss_of, query_groups=ids, key_groups=ids, num_query_groups=2,
                                  num_key_groups=2, key_range=key_range)  # fmt: skip
        torch.testing.assert_close(probes[0].grad, saliency.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(probes[1].grad, flow.float(), rtol=1e-5, atol=1e-5)


@given(problems(), st.data())
def test_decoding_step_by_step_and_in_pieces_is_the_full_pass(problem: Any, data: st.DataObject) -> None:
    z, _, initial = problem
    z = {name: w.nan_to_num() for name, w in z.items()}
    length = z["x"].shape[1]
    whole, last = ops.ssd(**z, initial_state=initial, return_state=True)
    cut = data.draw(st.integers(0, length))
    for steps in ([1] * length if length < 20 else [63, *[1] * (length - 63)], [n for n in (cut, length - cut) if n]):
        state, found, at = initial, [], 0
        for n in steps:
            piece = {name: w if name == "A" else w[:, at : at + n] for name, w in z.items()}
            y, state = ops.ssd(**piece, initial_state=state, return_state=True)
            found.append(y)
            at += n
        torch.testing.assert_close(torch.cat(found, 1), whole)
        torch.testing.assert_close(state, last)


def many(length: int, decay: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, B, C = (torch.randn(1, length, h, 4, generator=g, dtype=torch.float64) for h in (2, 1, 1))
    dt = torch.rand(1, length, 2, generator=g, dtype=torch.float64) + 0.5
    z = {"x": x, "dt": dt, "A": torch.full((2,), -decay, dtype=torch.float64), "B": B, "C": C}
    return {name: w.to(dtype) for name, w in z.items()}


@pytest.mark.parametrize("decay", [1e-4, 1.0, 50.0, 1e4])
def test_any_decay_over_a_long_text_keeps_float32_accuracy(decay: float) -> None:
    """The sum of exponents from the start reaches 5e6: differences of float32 sums would be off by whole numbers."""
    length = 520
    z = many(length, decay)
    exact = {name: w.double() for name, w in z.items()}
    found, expected = gradients(z, None, None, "cpu"), gradients(exact, None, None, "reference")
    for a, b in zip(found, expected, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-30)
    grad = torch.randn(1, length, 2, 4)
    a = ops.ssd_saliency(**z, grad_y=grad, signed=True)
    b = ops.ssd_saliency(**exact, grad_y=grad.double(), signed=True, impl="reference")
    torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_after_a_decay_that_forgets_everything_slow_ones_keep_their_precision() -> None:
    z = many(96, 100.0)
    z["dt"][:, :20], z["dt"][:, 20:] = 500.0, 0.01
    exact = {name: w.double() for name, w in z.items()}
    for a, b in zip(gradients(z, None, None, "cpu"), gradients(exact, None, None, "reference"), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    z = many(9, 0.3, dtype)
    exact = ops.ssd(**{name: w.double() for name, w in z.items()}, impl="reference")
    torch.testing.assert_close(ops.ssd(**z), exact.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert [g.dtype for g in gradients(z, None, None, "cpu")[2:]] == [dtype] * 5


def test_views_with_any_strides() -> None:
    z = many(9, 0.3)
    together = torch.cat([z["x"].flatten(2), z["B"].flatten(2), z["C"].flatten(2)], 2)
    x, B, C = together.split([8, 4, 4], 2)
    views = {**z, "x": x.unflatten(2, (2, 4)), "B": B.unflatten(2, (1, 4)), "C": C.unflatten(2, (1, 4))}
    torch.testing.assert_close(ops.ssd(**views), ops.ssd(**z), rtol=0, atol=0)


def test_opcheck_and_whole_graphs() -> None:
    z = {name: w.requires_grad_() for name, w in many(9, 0.3).items()}
    key_range, initial = torch.tensor([[1, 8]]), torch.randn(1, 2, 4, 4, requires_grad=True)
    op = torch.ops.symground
    torch.library.opcheck(op.ssd_cpu, (*z.values(), key_range, initial))
    torch.library.opcheck(op.ssd_cpu, (*z.values(), None, None))
    plain = [w.detach() for w in z.values()]
    grad, ids = torch.randn(1, 9, 2, 4), torch.randint(-1, 2, (1, 9))
    torch.library.opcheck(op.ssd_backward_cpu, (grad, None, *plain, key_range, initial.detach()))
    torch.library.opcheck(op.ssd_backward_cpu, (grad, torch.randn(1, 2, 4, 4), *plain, None, None))
    torch.library.opcheck(op.ssd_saliency_cpu, (*plain, key_range, grad, True))
    torch.library.opcheck(op.ssd_flow_cpu, (*plain, None, grad, ids, ids.clone(), 2, 2, True))
    probes = [torch.zeros(1).expand(*s).requires_grad_() for s in ((1, 9, 9), (1, 2, 2, 2))]
    torch.library.opcheck(op.ssd_probed_cpu, (grad, *plain, key_range, *probes, ids, ids.clone()))

    def loss(probe: Tensor) -> Tensor:
        return ops.ssd(**z, key_range=key_range, saliency_probe=probe).square().sum()

    first, second = (torch.zeros(1).expand(1, 9, 9).requires_grad_() for _ in range(2))
    loss(first).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(second).backward()
    torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"flow_probe": torch.zeros(1, 2, 1, 1)}, "query_groups"),
        ({"saliency_probe": torch.zeros(1, 9, 8)}, "saliency_probe"),
        ({"initial_state": torch.zeros(1, 2, 4, 5)}, "initial_state"),
        ({"initial_state": torch.zeros(1, 2, 4, 4).long()}, "initial_state"),
        ({"x": torch.zeros(1, 0, 2, 4), "dt": torch.zeros(1, 0, 2), "B": torch.zeros(1, 0, 1, 4)}, "x"),
        ({"impl": "triton2"}, "impl"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], name: str) -> None:
    z = many(9, 0.3)
    if "B" in changes:
        changes["C"] = changes["B"]
    with pytest.raises(ValueError, match=f"^{name}: "):
        ops.ssd(**{**z, **changes})


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_call_gives_the_same_bits(threads: int) -> None:
    torch.manual_seed(0)
    z = {
        "x": torch.randn(2, 150, 6, 16), "dt": torch.rand(2, 150, 6), "A": -torch.rand(6),
        "B": torch.randn(2, 150, 2, 16), "C": torch.randn(2, 150, 2, 16),
    }  # fmt: skip
    grad, ids = torch.randn(2, 150, 6, 16), torch.randint(-1, 3, (2, 150))
    runs = []
    with on(threads):
        for _ in range(5):
            leaves = [w.clone().requires_grad_() for w in z.values()]
            found = torch.autograd.grad(ops.ssd(*leaves, impl="cpu"), leaves, grad)
            flow = ops.ssd_flow(**z, grad_y=grad, query_groups=ids, key_groups=ids, impl="cpu")
            runs.append([*found, ops.ssd_saliency(**z, grad_y=grad, impl="cpu"), *flow])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))
