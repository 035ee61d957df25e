"""Head gates: the formula, exact results at gates 0 and 1, gradients; by the extension and by plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from symground import ops
from symground.ops.common import extension
from symground.ops.gate import api, reference


@contextmanager
def using(inner: str) -> Iterator[None]:
    """Use the extension or plain PyTorch."""
    with patch.object(extension, "library", extension.library if inner == "extension" else None):
        yield


built = pytest.mark.skipif(extension.library is None, reason="the C++ extension is not built: symground build")
both = pytest.mark.parametrize("inner", ["plain", pytest.param("extension", marks=built)])
IMPLS = ("reference", "cpu")


def gates(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gates of 0, of 1, between them, and outside [0, 1]."""
    some = torch.tensor([0.0, 1.0, 0.5, 0.3, -0.7, 1.9], dtype=dtype)
    return some[torch.randint(6, shape)]


@both
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3)])
def test_is_the_formula(inner: str, impl: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, gate = torch.randn(2, 5, 3, 4, dtype=torch.float64), gates(*shape)
    fill = torch.randn(3, 4, dtype=torch.float64)
    g = gate.expand(*shape[:-2], 2, 3)[..., None, :, None]
    with using(inner):
        torch.testing.assert_close(ops.gate_heads(x, gate, fill, impl=impl), g * x + (1 - g) * fill)
        torch.testing.assert_close(ops.gate_heads(x, gate, impl=impl), g * x)


FILLS = ["none", "number", "[D]", "[H,1]", "[H,D]", "[T,1,D]", "[B,T,H,1]", "[B,T,H,D]", "[M,1,1,H,D]", "[M,B,T,H,D]"]


@built
@given(st.data())
def test_both_give_the_same_bits(data: st.DataObject) -> None:
    M = data.draw(st.sampled_from([None, 1, 3]))
    B, T, H, D = (data.draw(st.integers(1, most)) for most in (3, 4, 4, 35))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(B, T, H, D).to(dtype)
    layout = data.draw(st.sampled_from(["contiguous", "heads first", "every other", "transposed"]))
    if layout == "heads first":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "every other":
        x = x.repeat_interleave(2, 1)[:, ::2]
    elif layout == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    gate = gates(*data.draw(st.sampled_from([(H,), (B, H)] if M is None else [(M, B, H)])), dtype=dtype)
    if data.draw(st.booleans()):
        gate = torch.where((gate == 0) | (gate == 1), gate, torch.randn(gate.shape)).to(
            torch.promote_types(dtype, torch.float32)
        )
    name = data.draw(st.sampled_from(FILLS if M else FILLS[:-2]))
    sizes = {"B": B, "T": T, "H": H, "D": D, "M": M, "1": 1}
    shape = [] if name == "number" else [sizes[c] for c in name.strip("[]").split(",") if c in sizes]
    fill = None if name == "none" else torch.randn(shape).to(dtype)
    if fill is not None and fill.ndim > 1 and data.draw(st.booleans()):
        fill = fill.mT.contiguous().mT  # the same numbers, columns not contiguous
    found = []
    for inner in ("plain", "extension"):
        with using(inner):
            found.append(ops.gate_heads(x, gate, fill, impl="cpu"))
    assert found[0].dtype == dtype
    assert found[1].is_contiguous()
    assert torch.equal(*found)
    assert torch.equal(found[0], ops.gate_heads(x, gate, fill, impl="reference"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, fill = (torch.randn(2, 3, 4, 5).to(dtype) for _ in range(2))
    gate = torch.rand(2, 4)  # in float32, not rounded to the dtype of x
    exact = reference.plain(x.double(), gate.double(), fill.double())
    spacing = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
    assert bool(((ops.gate_heads(x, gate, fill).double() - exact).abs() <= 0.51 * spacing + 1e-6).all())


@both
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_ends_are_exact_and_do_not_read_what_they_drop(inner: str, impl: str, dtype: torch.dtype) -> None:
    x, fill = (torch.randn(1, 2, 2, 3).to(dtype) for _ in range(2))
    x[:, :, 0] = float("nan")
    fill[:, :, 1] = float("nan")
    with using(inner):
        for mask in ([0.0, 1.0], [[0.0, 1.0]], [[[0.0, 1.0]], [[0.0, 1.0]]]):
            out = ops.gate_heads(x, torch.tensor(mask), fill, impl=impl)
            for of_mask in out.view(-1, 1, 2, 2, 3):
                assert torch.equal(of_mask[:, :, 0], fill[:, :, 0])
                assert torch.equal(of_mask[:, :, 1], x[:, :, 1])
        assert not ops.gate_heads(x, torch.tensor([0.0, 1.0]), impl=impl)[:, :, 0].any()


@both
def test_out_is_written_whole(inner: str) -> None:
    x = torch.randn(2, 3, 4, 5)
    for gate in (torch.zeros(4), torch.ones(4), torch.full((3, 2, 4), 0.5)):
        with using(inner), patch.object(torch.Tensor, "new_empty", lambda x, *s: x.new_full(*s, float("nan"))):
            assert not ops.gate_heads(x, gate).isnan().any()


@both
@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck_at_both_ends_too(inner: str, impl: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    with using(inner):
        for shape, fill_shape in (((3,), (3, 1)), ((2, 3), (2, 2, 3, 2)), ((2, 2, 3), (2, 1, 1, 3, 2)), ((2, 3), ())):
            gate = torch.rand(shape, dtype=torch.float64, requires_grad=True)
            fill = torch.randn(fill_shape, dtype=torch.float64, requires_grad=True)
            assert torch.autograd.gradcheck(lambda *args: ops.gate_heads(*args, impl=impl), (x, gate, fill))
            assert torch.autograd.gradcheck(lambda *args: ops.gate_heads(*args, impl=impl), (x, gate))
        fill = torch.randn_like(x).requires_grad_()
        ends = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
        grad = torch.randn_like(x)
        got = torch.autograd.grad(ops.gate_heads(x, ends, fill, impl=impl), (x, ends, fill), grad)
    g = ends.detach()[:, None]
    torch.testing.assert_close(got[0], g * grad)
    torch.testing.assert_close(got[1], (grad * (x - fill)).sum((0, 1, 3)))
    torch.testing.assert_close(got[2], (1 - g) * grad)


@both
def test_only_asked_gradients_are_computed(inner: str) -> None:
    x = torch.full((1, 2, 3, 4), float("nan"))
    fill = torch.zeros(4, requires_grad=True)
    with using(inner):
        ops.gate_heads(x, torch.zeros(3), fill).sum().backward()
    assert fill.grad is not None
    assert fill.grad.tolist() == [6.0] * 4


@both
@pytest.mark.parametrize("impl", IMPLS)
def test_x_is_kept_for_the_gradient_of_the_gate_only(inner: str, impl: str) -> None:
    x, fill = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(2))
    kept: list[int] = []
    with using(inner), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        ops.gate_heads(x, torch.rand(3), fill, impl=impl)
        assert kept == [3]
        ops.gate_heads(x, torch.rand(3, requires_grad=True), fill, impl=impl)
        assert sorted(kept) == [3, 3, 24, 24]


@both
@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_in_half_precision_are_summed_in_float32(inner: str, impl: str) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 300, 3, 4), torch.rand(2, 3), torch.randn(3, 4)]
    grad, found = torch.randn(2, 300, 3, 4).bfloat16(), []
    for dtype in (torch.bfloat16, torch.float64):
        x, gate, fill = (t.bfloat16().to(dtype).requires_grad_() for t in inputs)
        with using(inner):
            found.append(torch.autograd.grad(ops.gate_heads(x, gate, fill, impl=impl), (x, gate, fill), grad.to(dtype)))
    for half, exact in zip(*found, strict=True):
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.double(), exact, rtol=2**-8, atol=0.05)


@built
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_half_precision_passes(dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 64, 4, 256)
    gate = torch.tensor([1.0, 0.0, 0.5, -3.0])
    for fill in (None, x):
        found = [ops.gate_heads(x, gate, fill, impl=impl) for impl in IMPLS]
        assert torch.equal(*(out.nan_to_num(nan=12345.0) for out in found))
        assert torch.equal(found[1][:, :, 0].view(torch.int16), x[:, :, 0].view(torch.int16))


@built
def test_many_tokens_over_several_threads() -> None:
    x, gate = torch.randn(3, 700, 4, 33), gates(5, 3, 4, dtype=torch.float32)
    fill = torch.randn(700, 4, 33)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = ops.gate_heads(x, gate, fill, impl="cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, ops.gate_heads(x, gate, fill, impl="reference"))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_nothing_to_gate(impl: str, shape: tuple[int, ...]) -> None:
    x, gate = torch.zeros(shape), torch.ones(2, shape[0], shape[2])
    assert ops.gate_heads(x, gate, torch.zeros(()), impl=impl).shape == (2, *shape)


@both
def test_is_registered(inner: str) -> None:
    x = torch.randn(2, 3, 4, 5).transpose(1, 2).requires_grad_()
    with using(inner):
        for gate in (torch.rand(3), torch.rand(2, 3), torch.rand(4, 2, 3)):
            for fill in (None, torch.randn(3, 5)):
                torch.library.opcheck(torch.ops.symground.gate_heads.default, (x, gate, fill))


@both
def test_a_compiled_graph_keeps_it_whole(inner: str) -> None:
    x, gate, fill = torch.randn(2, 3, 4, 5, requires_grad=True), gates(3, 2, 4, dtype=torch.float32), torch.randn(4, 5)

    def loss(x: Tensor) -> Tensor:
        return (ops.gate_heads(x, gate, fill, impl="cpu") ** 2).sum()

    with using(inner):
        (expected,) = torch.autograd.grad(loss(x), x)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], expected)
        gate[0] = float("nan")
        with pytest.raises(ValueError, match="gate: expected numbers"):
            compiled(x)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("gate: expected shape", (torch.zeros(1, 2, 3, 4), torch.ones(2))),
        (r"or \[M,B,H\] = \[M, 1, 3\], got \[5, 2, 3\]", (torch.zeros(1, 2, 3, 4), torch.ones(5, 2, 3))),
        ("gate: expected numbers", (torch.zeros(1, 2, 3, 4), torch.full((3,), float("nan")))),
        ("gate: expected device cpu as the heads, got meta", (torch.zeros(1, 2, 3, 4), torch.ones(3, device="meta"))),
        ("fill: expected device cpu as x", (torch.zeros(1, 2, 3, 4), torch.ones(3), torch.zeros(4, device="meta"))),
        (
            "x: expected a floating-point tensor .*float16 or bfloat16.*, got .*int64",
            (torch.ones(1, 2, 3, 4).long(), torch.ones(3)),
        ),
        ("x: expected a torch.Tensor, got list", ([1.0], torch.ones(3))),
        ("gate: expected .*int64", (torch.zeros(1, 2, 3, 4), torch.ones(3, dtype=torch.long))),
        ("x: expected shape", (torch.zeros(2, 3, 4), torch.ones(3))),
        ("fill: expected a shape that broadcasts", (torch.zeros(1, 2, 3, 4), torch.ones(3), torch.zeros(5))),
        (r"broadcasts to \[1, 2, 3, 4\]", (torch.zeros(1, 2, 3, 4), torch.ones(3), torch.zeros(7, 1, 2, 3, 4))),
        ("fill: expected .*float64", (torch.zeros(1, 2, 3, 4), torch.ones(3), torch.zeros(4, dtype=torch.float64))),
    ],
)
def test_bad_arguments_are_named(message: str, arguments: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(ValueError, match=message):
        ops.gate_heads(*arguments)


def test_a_named_implementation_is_that_one() -> None:
    x, gate = torch.zeros(1, 2, 3, 4), torch.ones(3)
    with pytest.raises(ValueError, match="impl: 'cuda' expected tensors on a GPU, got cpu"):
        ops.gate_heads(x, gate, impl="cuda")
    with pytest.raises(ValueError, match=r"ops\.gate_heads has 'cpu', 'cuda', 'reference'; got 'triton'"):
        ops.gate_heads(x, gate, impl="triton")


@both
def test_it_says_what_runs(inner: str) -> None:
    with using(inner):
        assert api.implementation() == {"plain": "plain PyTorch", "extension": "extension"}[inner]
        assert api.implementation("cuda") == (
            "extension" if extension.cuda and inner == "extension" else "plain PyTorch"
        )


@built
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fill", ["none", "number", "[D]"])
def test_what_is_too_large_for_the_caches_gets_the_same_bits(dtype: torch.dtype, fill: str) -> None:
    torch.manual_seed(0)
    D = 2056  # more than two buffers
    T = 2**24 // dtype.itemsize // (3 * D) + 1
    x = torch.randn(1, T, 3, D).to(dtype)
    filled = {"none": None, "number": torch.tensor(0.3).to(dtype), "[D]": torch.randn(D).to(dtype)}[fill]
    for gate in (torch.tensor([0.3, 0.0, 1.0]), torch.tensor([[[1.0, -0.7, 0.0]], [[0.5, 0.0, 1.9]]])):
        of_x = x.index_fill(2, torch.tensor([1]), float("nan")) if gate.ndim == 1 else x[:, : T // 2 + 1]
        with using("plain"):
            expected = ops.gate_heads(of_x, gate, filled, impl="cpu")
        assert torch.equal(ops.gate_heads(of_x, gate, filled, impl="cpu"), expected)
