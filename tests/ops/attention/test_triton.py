"""The Triton kernels against the reference in float64: on a GPU if there is one, else in Triton's interpreter.

It also runs without the rest of the suite: python -m pytest tests/ops/attention/test_triton.py --noconftest
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from symground import ops
from symground.ops.common import needs
from tests.ops.common.oracles import seen
from tests.ops.common.triton_device import (  # noqa: F401
    CUDA,
    DEVICE,
    DTYPES,
    EMULATED,
    INTERPRETED,
    fresh_memory_is_nan,
)

NAMES = ("out", "lse", "dq", "dk", "dv", "saliency", "flow probe", "I", "F", "row total", "matrix total", "rows")


class Inputs:
    """One random problem, in float64 on the device."""

    def __init__(
        self, B: int, H: int, Hk: int, T: int, S: int, D: int, groups: tuple[int, int] = (3, 4),
        of_value: int | None = None,
    ) -> None:  # fmt: skip
        of_value = of_value or D
        g = torch.Generator().manual_seed(B * 1000 + H * 100 + T + S + D)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64).to(DEVICE)

        self.q, self.k, self.v, self.grad = (
            normal(B, H, T, D),
            normal(B, Hk, S, D),
            normal(B, Hk, S, of_value),
            normal(B, H, T, of_value),
        )
        self.counts = groups
        self.query_groups = torch.randint(-1, groups[0], (B, T), generator=g).to(DEVICE)
        self.key_groups = torch.randint(-1, groups[1], (B, S), generator=g).to(DEVICE)
        self.rows = torch.randint(0, T, (B, 5), generator=g).to(DEVICE)

    def rounded(self, dtype: torch.dtype) -> Inputs:
        """In float64, but rounded to ``dtype``, so that errors do not include the rounding of the inputs."""
        for name in ("q", "k", "v", "grad"):
            setattr(self, name, getattr(self, name).to(dtype).double())
        return self

    def everything(self, impl: str, dtype: torch.dtype, kw: dict[str, Any]) -> list[Tensor]:
        """Every result of every attention op, in the order of NAMES."""
        q, k, v = (x.to(dtype).detach().requires_grad_() for x in (self.q, self.k, self.v))
        grad, plain = self.grad.to(dtype), [x.detach() for x in (q, k, v)]
        (B, H, T, _), S = q.shape, k.shape[2]
        saliency = torch.zeros(1, device=DEVICE).expand(B, T, S).requires_grad_()
        flow = torch.zeros(1, device=DEVICE).expand(B, H, *self.counts).requires_grad_()
        groups = (self.query_groups, self.key_groups)
        out, lse = ops.attention(
            q, k, v, **kw, saliency_probe=saliency, flow_probe=flow, query_groups=groups[0], key_groups=groups[1],
            impl=impl,
        )  # fmt: skip
        grads = torch.autograd.grad(out, [q, k, v, saliency, flow], grad)
        total = ops.attention_saliency(*plain, grad, lse, **kw, impl=impl)
        sums = ops.attention_flow(*plain, grad, lse, *groups, *self.counts, **kw, impl=impl)
        assert sums[2] is not None
        rows = ops.attention_saliency_rows(*plain, grad, lse, self.rows, **kw, impl=impl)
        return [out.detach(), lse, *grads, total, *sums, rows]

    def without_probes(self, impl: str, dtype: torch.dtype) -> list[Tensor]:
        """The first five results, from kernels that sum no flow."""
        leaves = [x.to(dtype).detach().requires_grad_() for x in (self.q, self.k, self.v)]
        out, lse = ops.attention(*leaves, impl=impl)
        return [out.detach(), lse, *torch.autograd.grad(out, leaves, self.grad.to(dtype))]


def spread(x: Tensor) -> Tensor:
    """[H] shaped to meet [B,H,T,S]."""
    return x[:, None, None]


def eager(x: Inputs, dtype: torch.dtype, kw: dict[str, Any]) -> list[Tensor]:
    """The same results from eager PyTorch in this precision, whose errors are the standard."""
    q, k, v = (y.to(dtype).detach().requires_grad_() for y in (x.q, x.k, x.v))
    (_, H, T, D), S = q.shape, k.shape[2]
    valid = seen({name: y.cpu() if isinstance(y, Tensor) else y for name, y in kw.items()}, T, S).to(q.device)
    group = H // k.shape[1]
    s = (q @ k.repeat_interleave(group, 1).mT) * (kw.get("scale") or D**-0.5)
    if kw.get("softcap") is not None:
        s = torch.tanh(s / kw["softcap"]) * kw["softcap"]
    if kw.get("slopes") is not None:
        at = torch.arange(S - T, S, device=DEVICE)[:, None]
        s = s + spread(kw["slopes"]).to(dtype) * (torch.arange(S, device=DEVICE) - at)
    masked = s.masked_fill(~valid, torch.finfo(dtype).min)
    if kw.get("sink") is not None:
        masked = torch.cat([masked, spread(kw["sink"]).to(dtype).expand(len(q), H, T, 1)], -1)
    a = masked.softmax(-1)[..., :S] * valid
    a.retain_grad()
    out = a @ v.repeat_interleave(group, 1)
    gate = kw.get("gate")
    gate = torch.ones(H, device=DEVICE) if gate is None else gate
    (out * gate[..., :, None, None].to(dtype)).backward(x.grad.to(dtype))
    per_head = a.detach() * a.grad
    total = per_head.sum(1)
    size = per_head.abs()
    q_in = torch.nn.functional.one_hot(x.query_groups + 1, x.counts[0] + 1)[..., 1:].to(dtype)
    k_in = torch.nn.functional.one_hot(x.key_groups + 1, x.counts[1] + 1)[..., 1:].to(dtype)
    flow = q_in.mT[:, None] @ size @ k_in[:, None]
    out = out.detach() * gate[..., :, None, None].to(dtype)
    # A row without keys has no logits, whereas the smallest number stands for them in the softmax above.
    lse = masked.detach().masked_fill(masked == torch.finfo(dtype).min, float("-inf")).logsumexp(-1)
    row_total = (size.sum(-1)[:, :, None] * q_in.mT[:, None]).sum(-1)
    rows = per_head.take_along_dim(x.rows[:, None, :, None], 2)
    return [out, lse, q.grad, k.grad, v.grad, total, flow, total.abs(), flow, row_total, size.sum((-1, -2)), rows]


def assert_as_good_as_eager(x: Inputs, dtype: torch.dtype, kw: dict[str, Any]) -> None:
    """FlashAttention's criterion: at most twice the error of eager in the same precision, against float64."""
    exact = x.rounded(dtype).everything("reference", torch.float64, kw)
    assert_as_good(x.everything("triton", dtype, kw), eager(x, dtype, kw), exact, dtype)


def assert_as_good(found: list[Tensor], peers: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    """The first of the results of NAMES, beside eager's."""
    for name, ours, peer, wanted in zip(NAMES, found, peers, exact, strict=False):
        assert ours.shape == wanted.shape, name
        assert torch.equal(ours.isneginf(), wanted.isneginf()), name
        finite = ~wanted.isneginf()
        wanted = wanted[finite].double()
        error, eagers = ((y[finite].double() - wanted).abs().max().item() for y in (ours, peer))
        # float32: a product in three TF32 parts keeps 21 of its 24 bits.
        slack = (2e-6 if dtype == torch.float32 else 1e-6) * (1 + wanted.abs().max().item())
        assert error <= 2 * eagers + slack, (name, error, eagers)


def key_range(*bounds: tuple[int, int]) -> Tensor:
    return torch.tensor(bounds, device=DEVICE)


SHAPES = [  # B, H, Hk, T, S, D
    (1, 2, 1, 70, 70, 32),
    (2, 1, 1, 40, 70, 80),
    (1, 2, 2, 70, 40, 20),
    (2, 2, 1, 1, 1, 16),
    (1, 2, 2, 1, 37, 64),
]
if not INTERPRETED:  # the interpreter's tiles are small, and so are the shapes that cross their edges
    SHAPES += [(1, 2, 1, 200, 200, 64), (1, 2, 2, 150, 290, 64), (1, 1, 1, 290, 150, 128), (2, 2, 1, 129, 257, 80)]
#: The lengths of other tests are multiplied by it.
LONGER = 1 if INTERPRETED else 4
OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"causal": False, "scale": -0.3},
    "window": {"window": 9},
    "gate": {"gate": torch.tensor(0.4)},  # for every other head; the others have gate 0
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_result_is_as_good_as_eagers(shape: tuple[int, ...], options: str, dtype: torch.dtype) -> None:
    kw = dict(OPTIONS[options])
    if options == "gate":
        kw["gate"] = torch.tensor([0.5, 0.0] * shape[1], device=DEVICE)[: shape[1]]
    assert_as_good_as_eager(Inputs(*shape), dtype, kw)


def test_heads_that_share_keys_read_their_own() -> None:
    """Two key heads for six query heads, in two examples: taking the head's number modulo would give other keys."""
    assert_as_good_as_eager(Inputs(2, 6, 2, 17, 20, 16), torch.float32, {"window": 9})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [128, 200, 256])
def test_large_heads(size: int, dtype: torch.dtype) -> None:
    assert_as_good_as_eager(Inputs(1, 1, 1, 33 * LONGER, 33 * LONGER, size), dtype, {})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_gradients_without_probes(size: int, dtype: torch.dtype) -> None:
    """Without a flow, dq has tiles of its own."""
    x = Inputs(1, 2, 1, 37 * LONGER, 37 * LONGER, size).rounded(dtype)
    exact = x.without_probes("reference", torch.float64)
    assert_as_good(x.without_probes("triton", dtype), eager(x, dtype, {}), exact, dtype)


@pytest.mark.parametrize(
    ("size", "options"),
    [(129, {"window": 9}), (200, {"causal": False, "scale": -0.05}), (256, {"window": 9}), (256, {})],
    ids=str,
)
def test_float32_heads_beyond_128_columns_with_every_option(size: int, options: dict[str, Any]) -> None:
    """Products read these heads in chunks, of which the last has 1, 8 or 32 columns. One head in two has gate 0."""
    gate = torch.tensor([0.5, 0.0], device=DEVICE)
    kw = {"key_range": key_range((0, 30), (5, 37)), "gate": gate, **options}
    assert_as_good_as_eager(Inputs(2, 2, 1, 34, 37, size), torch.float32, kw)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 9])
def test_padding_on_either_side_and_examples_with_no_valid_key(window: int | None, dtype: torch.dtype) -> None:
    x = Inputs(4, 1, 1, 50 * LONGER, 50 * LONGER, 24)
    bounds = key_range((0, 31), (18, 50), (20, 20), (3, 44)) * LONGER
    assert_as_good_as_eager(x, dtype, {"key_range": bounds, "window": window})


@pytest.mark.parametrize("window", [7, 8, 2**31 - 1, 2**40])
@pytest.mark.parametrize(("T", "S"), [(4, 8), (8, 4)])
def test_a_window_of_any_size(T: int, S: int, window: int) -> None:
    assert_as_good_as_eager(Inputs(1, 1, 1, T, S, 16), torch.float32, {"window": window})


def test_what_is_masked_or_closed_is_not_read() -> None:
    x = Inputs(2, 3, 3, 40, 40, 16)
    kw = {"key_range": key_range((0, 30), (7, 40)), "gate": torch.tensor([1.0, 0.0, 0.5], device=DEVICE)}
    clean = x.everything("triton", torch.float32, kw)
    for y in (x.k, x.v):
        y[0, :, 30:], y[1, :, :7] = float("nan"), float("nan")
    masked = x.everything("triton", torch.float32, kw)
    for y in (x.q, x.k, x.v, x.grad):
        y[:, 1] = float("nan")
    closed = x.everything("triton", torch.float32, kw)
    for name, a, b, c in zip(NAMES, clean, masked, closed, strict=True):
        assert torch.equal(a, b), name
        if name != "lse":  # the lse of a head with gate 0 is still computed
            assert torch.equal(a, c), name


def test_a_gate_that_wants_a_gradient_has_one() -> None:
    x = Inputs(2, 3, 3, 20, 20, 16)
    grads = []
    for impl, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        gate = torch.tensor([[0.0, 1.0, 0.5]] * 2, dtype=dtype, device=DEVICE, requires_grad=True)
        out, _ = ops.attention(*(y.to(dtype) for y in (x.q, x.k, x.v)), gate=gate, impl=impl)
        (out * x.grad.to(dtype)).sum().backward()
        grads.append(gate.grad)
    torch.testing.assert_close(grads[1].double(), grads[0], atol=1e-5, rtol=1e-5)


def test_any_strides() -> None:
    packed = torch.randn(2, 30, 3, 2, 16, device=DEVICE)  # [B,T,3,H,D]
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    results = []
    for inputs in ((q, k, v), (q.contiguous(), k.contiguous(), v.contiguous())):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out, lse = ops.attention(*leaves, impl="triton")
        out.sum().backward()  # the gradient is one number, expanded
        ones = torch.ones((), device=DEVICE).expand_as(q)
        saliency = ops.attention_saliency(*inputs, ones, lse, impl="triton")
        results.append((out, *(x.grad for x in leaves), saliency))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_more_groups_than_a_program_sums_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from symground.kernels.attention import flow as attention_flow

    x = Inputs(1, 2, 1, 70, 70, 16, groups=(40, 37))
    assert_as_good_as_eager(x, torch.float32, {})
    monkeypatch.setattr(attention_flow, "PARTS", 1)  # one tile of queries at a time
    assert_as_good_as_eager(x, torch.float32, {})


def test_flow_without_the_matrix_total() -> None:
    x = Inputs(2, 2, 2, 70, 70, 16)
    x.query_groups.fill_(-1)
    x.query_groups[:, 69] = 0
    q, k, v, grad = (y.float() for y in (x.q, x.k, x.v, x.grad))
    _, lse = ops.attention(q, k, v, impl="triton")
    arguments = (q, k, v, grad, lse, x.query_groups, x.key_groups, 1, 4)
    flow, row_total, matrix_total = ops.attention_flow(*arguments, with_matrix_total=False, impl="triton")
    wanted = ops.attention_flow(*arguments, impl="reference")
    assert matrix_total is None
    whole = ops.attention_flow(*arguments, impl="triton")
    assert torch.equal(flow, whole[0])
    assert torch.equal(row_total, whole[1])
    torch.testing.assert_close(flow, wanted[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(row_total, wanted[1], atol=1e-5, rtol=1e-5)


def test_heads_split_over_programs_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from symground.kernels.attention import saliency as attention_saliency

    x = Inputs(2, 5, 5, 40, 40, 16)
    gate = torch.tensor([[1.0, 0.0, 0.3, 1.0, 1.0], [0.0] * 5], device=DEVICE)
    for processors in (1, 8, 1000):
        monkeypatch.setattr(attention_saliency, "processors", lambda _, n=processors: n)
        assert_as_good_as_eager(x, torch.float32, {"gate": gate})


def test_repeats_are_identical_to_the_bit() -> None:
    x = Inputs(1, 2, 1, 70, 70, 32)
    first = x.everything("triton", DTYPES[-1], {})
    for _ in range(100 if CUDA else 1):
        for a, b in zip(first, x.everything("triton", DTYPES[-1], {}), strict=True):
            assert torch.equal(a, b)


@pytest.mark.skipif(not CUDA, reason="needs CUDA: a [T,S] beyond 2³¹ numbers")
def test_more_than_two_to_the_31_pairs() -> None:
    T = 46_400
    q, k, v, grad = (torch.randn(1, 1, T, 16, device=DEVICE, dtype=torch.float16) for _ in range(4))
    _, lse = ops.attention(q, k, v, impl="triton")
    total = ops.attention_saliency(q, k, v, grad, lse, signed=True, impl="triton")
    rows = torch.tensor([[0, 1, T // 2, T - 2, T - 1]], device=DEVICE)
    torch.testing.assert_close(
        total[:, rows[0]],
        ops.attention_saliency_rows(q, k, v, grad, lse, rows, impl="triton")[:, 0],
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU Triton takes these")
def test_what_the_interpreter_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.zeros(1, 1, 4, 16)
    with pytest.raises(ValueError, match="impl: Triton's interpreter multiplies bfloat16 wrongly"):
        ops.attention(*[q.bfloat16()] * 3, impl="triton")
    monkeypatch.setattr(needs, "_interpreting", lambda: False)
    with pytest.raises(RuntimeError, match="impl: 'triton' expected tensors on a GPU, got cpu"):
        ops.attention(q, q, q, impl="triton")


@pytest.mark.skipif(EMULATED is not None, reason="the emulator takes every tensor for a GPU's")
def test_float64_is_refused() -> None:
    q = torch.zeros(1, 1, 4, 16, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="impl: 'triton' expected float32, float16 or bfloat16, got torch.float64"):
        ops.attention(q, q, q, impl="triton")
