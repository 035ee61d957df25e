"""The implementations by tiles against the reference: the CPU's two versions, the C++ extension and plain PyTorch, and
``torch``, which has the same tiles and reads no value; and the build.
"""

from __future__ import annotations

import os
import platform
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
from symground.ops.attention import cpu
from symground.ops.attention import torch as torch_impl
from symground.ops.attention.mixing import Mixing
from symground.ops.common import build, extension
from symground.ops.common.flow import NO_GROUPS, Groups


@contextmanager
def using(inner: str, threads: int = 1) -> Iterator[str]:
    """The ``impl`` that is the extension, plain PyTorch or ``torch``, with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with patch.object(extension, "library", extension.library if inner == "extension" else None):
            yield "torch" if inner == "torch" else "cpu"
    finally:
        torch.set_num_threads(before)


built = pytest.mark.skipif(extension.library is None, reason="the C++ extension is not built: symground build")
both = pytest.mark.parametrize("inner", ["plain", pytest.param("extension", marks=built)])
every = pytest.mark.parametrize("inner", ["plain", pytest.param("extension", marks=built), "torch"])


def some_groups(q: Tensor, k: Tensor) -> Groups:
    """Groups of consecutive keys, and every fourth query, of which one in four is in no group."""
    of_query, of_key = (torch.arange(x.shape[2]).expand(x.shape[0], -1) for x in (q, k))
    return Groups(of_query % 4 - 1, of_key // 60 - 1, 3, max(1, (k.shape[2] - 1) // 60))


NAMES = (
    "out", "lse", "dq", "dk", "dv", "saliency in the backward", "flow in the backward", "dq beside flow",
    "flow alone in the backward", "saliency", "rows", "flow", "row total", "matrix total", "flow without matrix total",
    "row total without it",
)  # fmt: skip


def everything(
    impl: str, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, groups: Groups | None = None, **kw: Any
) -> list[Tensor]:
    """The results in NAMES, with flow and saliency both by the probes and by their ops."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    groups = some_groups(q, k) if groups is None else groups
    batch, heads, queries, _ = q.shape
    of_saliency, of_flow = (
        lse_like(q).expand(shape).requires_grad_()
        for shape in ((batch, queries, k.shape[2]), (batch, heads, *groups[2:]))
    )
    probe = {"flow_probe": of_flow, "query_groups": groups[0], "key_groups": groups[1]}
    out, lse = ops.attention(*leaves, **kw, **probe, saliency_probe=of_saliency, impl=impl)
    both = torch.autograd.grad(out, [*leaves, of_saliency, of_flow], grad, materialize_grads=True)
    again, _ = ops.attention(*leaves, **kw, **probe, impl=impl)
    flow_only = torch.autograd.grad(again, [leaves[0], of_flow], grad, materialize_grads=True)
    after = (q, k, v, grad, lse)
    rows = torch.arange(0, queries, 70).expand(batch, -1)
    flow = [ops.attention_flow(*after, *groups, **kw, with_matrix_total=x, impl=impl) for x in (True, False)]
    return [
        out, lse, *both, *flow_only, ops.attention_saliency(*after, signed=True, **kw, impl=impl),
        ops.attention_saliency_rows(*after, rows, **kw, impl=impl), *(x for y in flow for x in y if x is not None),
    ]  # fmt: skip


def lse_like(q: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.promote_types(q.dtype, torch.float32))


@every
@given(
    st.integers(1, 5), st.integers(1, 300), st.integers(1, 300), st.booleans(), st.integers(1, 400),
    st.sampled_from(((4, 4), (4, 2), (3, 1))), st.integers(1, 3), st.sampled_from((0, 1, 3, 40, 300)),
    st.sampled_from((0, 1, 3, 40, 300)), st.integers(0, 10**6),
)  # fmt: skip
def test_agrees_with_the_reference_across_tiles_and_threads(
    inner: str, batch: int, t: int, s: int, causal: bool, window: int, heads: tuple[int, int], threads: int,
    num_query: int, num_key: int, seed: int,
) -> None:  # fmt: skip
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
    of_query, of_key = (
        torch.randint(-1, n, (batch, length), generator=g) for n, length in ((num_query, t), (num_key, s))
    )
    if seed % 7 == 0:  # the usual request
        of_query = torch.where(torch.arange(t) == t - 1, of_query[:, -1:], -1)
    kw["groups"] = (of_query, of_key, num_query, num_key)
    expected = everything("reference", q, k, v, grad, **kw)
    with using(inner, threads) as impl:
        got = everything(impl, q, k, v, grad, **kw)
    for name, a, b in zip(NAMES, got, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


@every
@pytest.mark.parametrize("gate", [None, torch.tensor([1.0, 0.5])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounds_only_what_comes_in_and_goes_out(inner: str, dtype: torch.dtype, gate: Tensor | None) -> None:
    """Products and sums are in at least float32: the error is a rounding or two of the largest number."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 2, 200, 16).to(dtype) for _ in range(4))
    exact = everything("reference", *(x.double() for x in (q, k, v, grad)), gate=gate)
    with using(inner, 2) as impl:
        got = everything(impl, q, k, v, grad, gate=gate)
    like_inputs = {"out", "dq", "dk", "dv", "dq beside flow"}
    assert [x.dtype for x in got] == [dtype if name in like_inputs else torch.float32 for name in NAMES]
    for ours, wanted in zip(got, exact, strict=True):
        units = 16 if dtype == torch.float32 else 2
        assert (ours.double() - wanted).abs().max() <= units * torch.finfo(dtype).eps * wanted.abs().max()


@every
def test_what_stands_outside_the_key_range_is_not_read(inner: str) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(3, 2, 150, 4) for _ in range(4))
    key_range = torch.tensor([[0, 90], [70, 150], [5, 5]])
    dirty_k, dirty_v = k.clone(), v.clone()
    for b, (low, high) in enumerate(key_range.tolist()):
        for x in (dirty_k, dirty_v):
            x[b, :, :low], x[b, :, high:] = float("nan"), float("inf")
    with using(inner, 2) as impl:
        clean = everything(impl, q, k, v, grad, key_range=key_range)
        dirty = everything(impl, q, dirty_k, dirty_v, grad, key_range=key_range)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


@both
@pytest.mark.parametrize("queries", [512, 300])
@pytest.mark.parametrize("window", [None, 40])
def test_padding_costs_no_mask_and_no_copy(inner: str, queries: int, window: int | None) -> None:
    """No tensor that the forward or the backward pass makes is larger than one example's keys: no mask, no copy."""
    torch.manual_seed(0)
    q, grad = (torch.randn(3, 4, queries, 128) for _ in range(2))
    k, v = (torch.randn(3, 4, 512, 128) for _ in range(2))
    bounds = torch.tensor([[0, 400], [100, 512], [17, 500]])
    mixing = Mixing(causal=True, scale=0.1, key_range=bounds, window=window, gate=None)
    made: list[Tensor] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend(x for x in (result if isinstance(result, (tuple, list)) else (result,)) if torch.is_tensor(x))
            return result

    with using(inner), Watch():  # a dispatch mode sees nothing inside a registered op, so not through ops.attention
        out, lse = cpu._forward(q, k, v, mixing)
        gradients = cpu._backward(grad, q, k, v, out, lse, mixing, False, False, NO_GROUPS)
    known = [q, k, v, grad, out, *(x for x in gradients if x is not None)]
    known_storage = {x.untyped_storage().data_ptr() for x in known}
    largest = max(x.untyped_storage().nbytes() for x in made if x.untyped_storage().data_ptr() not in known_storage)
    assert largest <= k.nbytes // 3 < 4 * 3 * queries * 512  # one example's keys; additive mask


@every
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("key_range", [None, torch.tensor([[0, 150], [3, 140]])])
def test_a_closed_head_is_not_read(inner: str, key_heads: int, key_range: Tensor | None) -> None:
    """NaN in a head with gate 0 does not spread, but its log-sum-exp is still computed from its queries and keys."""
    torch.manual_seed(0)
    q, grad = (torch.randn(2, 4, 150, 4) for _ in range(2))
    k, v = (torch.randn(2, key_heads, 150, 4) for _ in range(2))
    gate = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.5, 0.0, 1.0, 0.0]])  # with 2 key heads, example 0 needs only one
    closed = gate == 0
    of_key = closed.view(2, key_heads, -1).all(-1)
    grad_, v_ = grad.clone(), v.clone()
    grad_[closed], v_[of_key] = float("nan"), float("inf")
    with using(inner, 2) as impl:
        clean = dict(zip(NAMES, everything(impl, q, k, v, grad, gate=gate, key_range=key_range), strict=True))
        dirty = dict(zip(NAMES, everything(impl, q, k, v_, grad_, gate=gate, key_range=key_range), strict=True))
        # With a log-sum-exp given, its queries and keys are not read either: anything computed from them would be NaN.
        q_, k_ = q.clone(), k.clone()
        q_[closed], k_[of_key] = float("nan"), float("nan")
        mixing = Mixing(causal=True, scale=0.5, key_range=key_range, window=None, gate=gate)
        groups = some_groups(q, k)
        after = (q_, k_, v_, grad_, clean["lse"], mixing)
        kernels = {"cpu": cpu.backend, "torch": torch_impl.backend}[impl]
        others = {
            "saliency": kernels.saliency(*after, True),
            "flow": kernels.flow(*after, groups, True)[0],
            "rows": kernels.rows(*after, torch.arange(0, 150, 70).expand(2, -1)),
        }
        both_too = kernels.gradients(
            grad_, q_, k_, v_, clean["out"], clean["lse"], mixing, True, False, False, True, groups
        )
        others |= dict(zip(NAMES[2:7], both_too[:5], strict=True))
    for name, x in clean.items():
        assert torch.equal(x, dirty[name]), name
    for name, x in others.items():
        assert torch.equal(x, clean[name]), name
    for name in ("out", "dq", "flow", "rows", "matrix total"):
        assert not clean[name][closed].any(), name
    open_lse = ops.attention(q, k, v, key_range=key_range, impl="reference")[1]
    torch.testing.assert_close(clean["lse"], open_lse)


@every
def test_a_coarse_log_sum_exp_gives_a_coarse_saliency(inner: str) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 2, 9, 4) for _ in range(4))
    _, lse = ops.attention(q, k, v)
    exact = ops.attention_saliency(q, k, v, grad, lse)
    with using(inner) as impl:
        got = ops.attention_saliency(q, k, v, grad, lse.bfloat16(), impl=impl)
        wide = ops.attention_saliency(q, k, v, grad, lse.double(), impl=impl)
    assert (got.dtype, wide.dtype) == (torch.bfloat16, torch.float64)
    torch.testing.assert_close(got.float(), exact, atol=0.1, rtol=0.1)
    torch.testing.assert_close(wide.float(), exact)


@every
def test_any_strides(inner: str) -> None:
    torch.manual_seed(0)
    packed = torch.randn(2, 6, 70, 3, 4, dtype=torch.float64)
    strided = [packed.transpose(1, 3)[:, :, :, i].transpose(2, 3)[..., :3, :].mT for i in (0, 2, 5)]
    q, k, v = strided
    grad = torch.ones((), dtype=torch.float64).expand(q.shape)  # as .sum().backward() gives
    gate = torch.tensor([1.0, 0.5, 0.0])
    with using(inner, 2) as impl:
        got = everything(impl, q, k, v, grad, gate=gate)
    expected = everything("reference", *(x.contiguous() for x in (q, k, v, grad)), gate=gate)
    for name, a, b in zip(NAMES, got, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


@every
def test_repeats_are_identical(inner: str) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(3, 4, 200, 8) for _ in range(4))
    with using(inner, 2) as impl:
        first = everything(impl, q, k, v, grad)
        for _ in range(5):
            assert all(map(torch.equal, everything(impl, q, k, v, grad), first))


@built
def test_flow_does_not_depend_on_how_the_heads_are_shared_out() -> None:
    """Each head's sums belong to one thread. (With a single thread, torch may multiply in a different way.)"""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(3, 4, 300, 8) for _ in range(4))
    found = []
    for threads in (2, 2, 3, 4):
        with using("extension", threads):
            found.append(dict(zip(NAMES, everything("cpu", q, k, v, grad), strict=True)))
    for name in NAMES:
        if "flow" in name or "total" in name:
            assert all(torch.equal(x[name], found[0][name]) for x in found), name


@built
@pytest.mark.parametrize("threads", [1, 2])
def test_subnormal_results_are_zero_there_and_nowhere_else(threads: int) -> None:
    """Weights of e^-88 to e^-95, as ALiBi gives far tokens, are subnormal in float32."""
    torch.manual_seed(0)
    q, k, grad = torch.ones(1, 2, 4096, 1), torch.zeros(1, 2, 8, 1), torch.rand(1, 2, 4096, 1)
    k[..., 1:, 0] = -torch.arange(88.0, 95.0)
    v = torch.rand(1, 2, 8, 1)
    args = {"causal": False, "scale": 1.0}
    small = torch.full((1 << 16,), 1e-40)
    with using("extension", threads) as impl:
        _, lse = ops.attention(q, k, v, **args, impl=impl)
        found = ops.attention_saliency(q, k, v, grad, lse, **args, impl=impl)
        after = small * 0.5  # on the same threads
    exact = ops.attention_saliency(*(x.double() for x in (q, k, v, grad, lse)), **args, impl="reference")
    least = torch.finfo(torch.float32).tiny
    assert bool(((exact[..., 1:] > 0) & (exact[..., 1:] < least)).any())
    torch.testing.assert_close(found.double(), exact, atol=least, rtol=1e-5)
    assert bool((after > 0).all())
    if platform.machine() == "x86_64":
        assert bool(((found == 0) | (found >= least)).all())


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponential(dtype: torch.dtype) -> None:
    """With q = x and all other inputs 1 or 0, the saliency is exp(x)."""
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


@pytest.mark.slow
@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
def test_builds_where_a_compiler_is(tmp_path: Path) -> None:
    path = build.build(tmp_path)
    code = f"import torch; torch.ops.load_library({str(path)!r}); print(torch.ops.symground_C.version())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == build.VERSION
    assert os.listdir(tmp_path) == [build.FILE]


def test_a_build_that_fails_names_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FileNotFoundError, match=r"no C\+\+ compiler found \(CXX=no-such-compiler\)"):
        build.build(tmp_path)
    monkeypatch.setenv("CXX", f"{sys.executable} -c 'import sys; sys.exit(\"rows.cpp:1: error: what is this\")'")
    with pytest.raises(RuntimeError, match=r"failed: rows\.cpp:1: error: what is this"):
        build.build(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected C\\+\\+ sources in"):
        build.build(tmp_path, sources=tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_extension_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    assert extension.load(tmp_path / build.FILE) is None
    (tmp_path / build.FILE).write_bytes(b"no library")
    with pytest.warns(RuntimeWarning, match=r"_C\.so is not used, plain PyTorch is .*: .*To rebuild: symground build"):
        assert extension.load(tmp_path / build.FILE) is None
