"""The SSD ops against the recurrence, position by position, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from symground import ops

Inputs = dict[str, Tensor]


@st.composite
def inputs(draw: st.DrawFn) -> Inputs:
    batch, t, groups, repeat = (draw(st.integers(1, n)) for n in (2, 8, 2, 2))
    p, n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    heads = groups * repeat
    return {
        "x": normal(batch, t, heads, p), "dt": normal(batch, t, heads).abs(), "A": -normal(heads).abs() - 0.01,
        "B": normal(batch, t, groups, n), "C": normal(batch, t, groups, n),
    }  # fmt: skip


def recurrence(z: Inputs, state: Tensor | None = None, key_range: Tensor | None = None) -> Tensor:
    x, dt, a = z["x"], z["dt"], z["A"]
    batch, t, heads, p = x.shape
    b, c = (z[name].repeat_interleave(heads // z[name].shape[2], 2) for name in "BC")
    h = torch.zeros(batch, heads, p, b.shape[-1], dtype=x.dtype) if state is None else state
    out = []
    for i in range(t):
        step = dt[:, i]
        if key_range is not None:
            step = step * ((key_range[:, :1] <= i) & (i < key_range[:, 1:]))
        h = h * torch.exp(step * a)[..., None, None] + (step[..., None] * x[:, i])[..., None] * b[:, i, :, None]
        out.append((h * c[:, i, :, None]).sum(-1))
    return torch.stack(out, 1)


@given(inputs())
def test_is_the_recurrence(z: Inputs) -> None:
    torch.testing.assert_close(ops.ssd(**z), recurrence(z))


@given(inputs(), st.data())
def test_initial_state_and_padding(z: Inputs, data: st.DataObject) -> None:
    batch, t, heads, p = z["x"].shape
    state = torch.randn(batch, heads, p, z["B"].shape[-1], dtype=torch.float64)
    bounds = [sorted(data.draw(st.tuples(st.integers(0, t), st.integers(0, t)))) for _ in range(batch)]
    key_range = torch.tensor(bounds)
    got = ops.ssd(**z, key_range=key_range, initial_state=state)
    torch.testing.assert_close(got, recurrence(z, state, key_range))


@given(inputs())
def test_saliency_is_the_gradient_through_the_mixing_matrix(z: Inputs) -> None:
    x, grad = z["x"], torch.randn_like(z["x"])
    batch, t, heads, _ = x.shape
    # M column by column: the op is linear in x, so M[:, j] is its output for a unit at j.
    m = torch.zeros(batch, heads, t, t, dtype=torch.float64)
    for j in range(t):
        unit = torch.zeros(batch, t, heads, 1, dtype=torch.float64)
        unit[:, j] = 1
        m[..., j] = recurrence({**z, "x": unit})[..., 0].transpose(1, 2)
    saliency = m * torch.einsum("bihp,bjhp->bhij", grad, x)
    torch.testing.assert_close(ops.ssd_saliency(**z, grad_y=grad, signed=True), saliency.sum(1))
    torch.testing.assert_close(ops.ssd_saliency(**z, grad_y=grad), saliency.sum(1).abs())
    groups = torch.arange(t).expand(batch, t) % 2
    flow, row, matrix = ops.ssd_flow(**z, grad_y=grad, query_groups=groups, key_groups=groups - 1)
    even = saliency.abs()[:, :, ::2]
    torch.testing.assert_close(row[:, :, 0], even.sum((-1, -2)))
    torch.testing.assert_close(matrix, saliency.abs().sum((-1, -2)))
    if t > 1:
        torch.testing.assert_close(flow[:, :, 0, 0], even[..., 1::2].sum((-1, -2)))


def test_gradcheck_and_strong_decay() -> None:
    torch.manual_seed(0)
    z = [
        torch.randn(1, 4, 2, 2),
        torch.rand(1, 4, 2),
        -torch.rand(2) - 0.1,
        torch.randn(1, 4, 1, 2),
        torch.randn(1, 4, 1, 2),
    ]
    assert torch.autograd.gradcheck(ops.ssd, [w.double().requires_grad_() for w in z])
    strong = [w.clone().requires_grad_() for w in z]
    strong[2] = torch.full((2,), -1e4, requires_grad=True)
    out = ops.ssd(*strong)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in strong)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("A", torch.tensor([0.5, -1.0])),
        ("dt", torch.full((1, 4, 2), -1.0)),
        ("B", torch.zeros(1, 4, 3, 2)),
        ("C", torch.zeros(1, 4, 1, 3)),
        ("key_range", torch.tensor([[0, 5]])),
    ],
)
def test_bad_arguments_are_named(name: str, value: Tensor) -> None:
    good = {
        "x": torch.zeros(1, 4, 2, 3), "dt": torch.ones(1, 4, 2), "A": -torch.ones(2),
        "B": torch.zeros(1, 4, 1, 2), "C": torch.zeros(1, 4, 1, 2),
    }  # fmt: skip
    extra = {"C": torch.zeros(1, 4, 3, 2)} if name == "B" else {}
    with pytest.raises(ValueError, match=f"^{name}"):
        ops.ssd(**{**good, **extra, name: value})
