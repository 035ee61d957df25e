"""The CPU implementation's two insides, the C++ extension and plain PyTorch, against the reference; and the build."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from symground import ops
from symground.ops import _build, _cpu, _extension


@contextmanager
def using(inner: str, threads: int = 1) -> Iterator[None]:
    """With the extension or without it, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with patch.object(_extension, "library", _extension.library if inner == "extension" else None):
            yield
    finally:
        torch.set_num_threads(before)


built = pytest.mark.skipif(_extension.library is None, reason="the C++ extension is not built: symground build")
both = pytest.mark.parametrize("inner", ["plain", pytest.param("extension", marks=built)])


def everything(impl: str, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, **kw: Any) -> list[Tensor]:
    """[out, lse, dq, dk, dv, saliency by the probe, saliency alone]"""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    probe = lse_like(q).expand(q.shape[0], q.shape[2], k.shape[2]).requires_grad_()
    out, lse = ops.attention(*leaves, **kw, saliency_probe=probe, impl=impl)
    gradients = torch.autograd.grad(out, [*leaves, probe], grad, materialize_grads=True)
    return [out, lse, *gradients, ops.attention_saliency(q, k, v, grad, lse, signed=True, **kw, impl=impl)]


def lse_like(q: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.promote_types(q.dtype, torch.float32))


@both
@given(
    st.integers(1, 5), st.integers(1, 300), st.integers(1, 300), st.booleans(), st.integers(1, 400),
    st.sampled_from(((4, 4), (4, 2), (3, 1))), st.integers(1, 3), st.integers(0, 10**6),
)  # fmt: skip
def test_agrees_with_the_reference_across_tiles_and_threads(
    inner: str, batch: int, t: int, s: int, causal: bool, window: int, heads: tuple[int, int], threads: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    q, grad = (torch.randn(batch, heads[0], t, 3, generator=g, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(batch, heads[1], s, 3, generator=g, dtype=torch.float64) for _ in range(2))
    kw: dict[str, Any] = {"causal": causal}
    if seed % 2:
        kw["key_range"] = torch.randint(0, s + 1, (batch, 2), generator=g).sort(-1).values
    if causal and seed % 3:
        kw["window"] = window
    if seed % 5:
        choice = torch.randint(3, (batch, heads[0]), generator=g)
        kw["gate"] = torch.tensor([0.0, 1.0, 0.4], dtype=torch.float64)[choice]
    expected = everything("reference", q, k, v, grad, **kw)
    with using(inner, threads):
        got = everything("cpu", q, k, v, grad, **kw)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounds_only_what_comes_in_and_goes_out(inner: str, dtype: torch.dtype) -> None:
    """Products and sums are in float32, at least: what is off is a rounding of the largest number or two."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 2, 200, 16).to(dtype) for _ in range(4))
    exact = everything("reference", *(x.double() for x in (q, k, v, grad)))
    with using(inner, 2):
        got = everything("cpu", q, k, v, grad)
    assert [x.dtype for x in got] == [dtype, torch.float32, dtype, dtype, dtype, torch.float32, torch.float32]
    for ours, wanted in zip(got, exact, strict=True):
        units = 16 if dtype == torch.float32 else 2
        assert (ours.double() - wanted).abs().max() <= units * torch.finfo(dtype).eps * wanted.abs().max()


@both
def test_what_stands_outside_the_key_range_is_not_read(inner: str) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(3, 2, 150, 4) for _ in range(4))
    key_range = torch.tensor([[0, 90], [70, 150], [5, 5]])
    dirty_k, dirty_v = k.clone(), v.clone()
    for b, (low, high) in enumerate(key_range.tolist()):
        for x in (dirty_k, dirty_v):
            x[b, :, :low], x[b, :, high:] = float("nan"), float("inf")
    with using(inner, 2):
        clean = everything("cpu", q, k, v, grad, key_range=key_range)
        dirty = everything("cpu", q, dirty_k, dirty_v, grad, key_range=key_range)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


@both
@pytest.mark.parametrize("queries", [512, 300])
@pytest.mark.parametrize("window", [None, 40])
def test_padding_costs_no_mask_and_no_copy(inner: str, queries: int, window: int | None) -> None:
    """Nothing that the forward or the backward makes is larger than one example's keys: no mask, no copy."""
    torch.manual_seed(0)
    q, grad = (torch.randn(3, 4, queries, 128) for _ in range(2))
    k, v = (torch.randn(3, 4, 512, 128) for _ in range(2))
    form = (None, True, 0.1, torch.tensor([[0, 400], [100, 512], [17, 500]]), window)
    made: list[Tensor] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend(x for x in (result if isinstance(result, (tuple, list)) else (result,)) if torch.is_tensor(x))
            return result

    with using(inner), Watch():  # inside a registered op a mode sees nothing, so not through ops.attention
        out, lse = _cpu._forward(q, k, v, *form)
        no_groups = (None, None, 0, 0)
        gradients = _cpu._backward(grad, q, k, v, out, lse, *form, False, *no_groups)
    known = [q, k, v, grad, out, *(x for x in gradients if x is not None)]
    known_storage = {x.untyped_storage().data_ptr() for x in known}
    largest = max(x.untyped_storage().nbytes() for x in made if x.untyped_storage().data_ptr() not in known_storage)
    assert largest <= k.nbytes // 3 < 4 * 3 * queries * 512  # one example's keys; additive mask


@both
def test_the_gradient_of_a_gated_off_head_is_not_read(inner: str) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 4, 70, 4) for _ in range(4))
    gate = torch.ones(2, 4)
    gate[0, 1] = gate[1, 3] = 0.0
    dirty = grad.clone()
    dirty[0, 1] = dirty[1, 3] = float("nan")
    with using(inner, 2):
        for a, b in zip(
            everything("cpu", q, k, v, dirty, gate=gate), everything("cpu", q, k, v, grad, gate=gate), strict=True
        ):
            assert torch.equal(a, b)


@both
def test_a_coarse_log_sum_exp_gives_a_coarse_saliency(inner: str) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 2, 9, 4) for _ in range(4))
    _, lse = ops.attention(q, k, v)
    exact = ops.attention_saliency(q, k, v, grad, lse)
    with using(inner):
        got = ops.attention_saliency(q, k, v, grad, lse.bfloat16(), impl="cpu")
        wide = ops.attention_saliency(q, k, v, grad, lse.double(), impl="cpu")
    assert (got.dtype, wide.dtype) == (torch.bfloat16, torch.float64)
    torch.testing.assert_close(got.float(), exact, atol=0.1, rtol=0.1)
    torch.testing.assert_close(wide.float(), exact)


@both
def test_any_strides(inner: str) -> None:
    torch.manual_seed(0)
    packed = torch.randn(2, 6, 70, 3, 4, dtype=torch.float64)
    strided = [packed.transpose(1, 3)[:, :, :, i].transpose(2, 3)[..., :3, :].mT for i in (0, 2, 5)]
    q, k, v = strided
    grad = torch.ones((), dtype=torch.float64).expand(q.shape)  # as .sum().backward() gives it
    with using(inner, 2):
        got = everything("cpu", q, k, v, grad)
    for a, b in zip(got, everything("reference", *(x.contiguous() for x in (q, k, v, grad))), strict=True):
        torch.testing.assert_close(a, b)


@both
def test_repeats_are_identical(inner: str) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(3, 4, 200, 8) for _ in range(4))
    with using(inner, 2):
        first = everything("cpu", q, k, v, grad)
        for _ in range(5):
            assert all(map(torch.equal, everything("cpu", q, k, v, grad), first))


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponential(dtype: torch.dtype) -> None:
    """With q = x and everything else 1 or 0 the saliency is exp(x)."""
    x = torch.linspace(-86, 88, 20001, dtype=torch.float64).to(dtype)
    if dtype == torch.float64:
        x = x * 8
    special = torch.tensor([0.0, float("-inf"), -1e4, 1e4, float("inf"), float("nan")], dtype=dtype)

    def exponential(x: Tensor) -> Tensor:
        q = x.view(1, 1, -1, 1)
        one = torch.ones(1, 1, 1, 1, dtype=dtype)
        args = (q, one, one, torch.ones_like(q), torch.zeros(1, 1, len(x), dtype=dtype))
        return ops.attention_saliency(*args, signed=True, causal=False, scale=1.0, impl="cpu").flatten()

    exact = x.double().exp()
    units = 3 if dtype == torch.float32 else 4  # torch's own exp has an error too
    torch.testing.assert_close(exponential(x).double(), exact, rtol=units * torch.finfo(dtype).eps / 2, atol=0)
    expected = torch.tensor([1.0, 0.0, 0.0, float("inf"), float("inf"), float("nan")], dtype=dtype)
    torch.testing.assert_close(exponential(special), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(_build.compiler() is None, reason="no C++ compiler")
def test_builds_where_a_compiler_is(tmp_path: Path) -> None:
    path = _build.build(tmp_path)
    code = f"import torch; torch.ops.load_library({str(path)!r}); print(torch.ops.symground_C.version())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == _build.VERSION
    assert os.listdir(tmp_path) == [_build.FILE]


def test_a_build_that_fails_names_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FileNotFoundError, match=r"no C\+\+ compiler found \(CXX=no-such-compiler\)"):
        _build.build(tmp_path)
    monkeypatch.setenv("CXX", f"{sys.executable} -c 'import sys; sys.exit(\"rows.cpp:1: error: what is this\")'")
    with pytest.raises(RuntimeError, match=r"failed: rows\.cpp:1: error: what is this"):
        _build.build(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected C\\+\\+ sources in"):
        _build.build(tmp_path, sources=tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_extension_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    assert _extension.load(tmp_path / _build.FILE) is None
    (tmp_path / _build.FILE).write_bytes(b"no library")
    with pytest.warns(RuntimeWarning, match=r"_C\.so is not used, plain PyTorch is .*: .*To rebuild: symground build"):
        assert _extension.load(tmp_path / _build.FILE) is None
