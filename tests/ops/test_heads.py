"""Head gates: the formula, its exact ends, its gradient."""

from __future__ import annotations

import pytest
import torch

from symground import ops


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_is_the_formula(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, gate = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.rand(shape, dtype=torch.float64)
    fill = torch.randn(3, 4, dtype=torch.float64)
    g = gate.expand(2, 3)[:, None, :, None]
    torch.testing.assert_close(ops.gate_heads(x, gate, fill), g * x + (1 - g) * fill)
    torch.testing.assert_close(ops.gate_heads(x, gate), g * x)


def test_ends_are_exact_and_do_not_read_what_they_drop() -> None:
    x, fill = torch.randn(1, 2, 2, 3), torch.randn(1, 2, 2, 3)
    poisoned = x.clone()
    poisoned[:, :, 0] = float("nan")
    out = ops.gate_heads(poisoned, torch.tensor([0.0, 1.0]), fill)
    assert torch.equal(out[:, :, 0], fill[:, :, 0])
    assert torch.equal(out[:, :, 1], x[:, :, 1])


def test_gradcheck_at_both_ends_too() -> None:
    torch.manual_seed(0)
    x, fill = (torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    gate = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.gate_heads, (x, gate, fill))
    ends = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    got = torch.autograd.grad(ops.gate_heads(x, ends, fill), (x, ends, fill), grad)
    g = ends.detach()[:, None]
    torch.testing.assert_close(got[0], g * grad)
    torch.testing.assert_close(got[1], (grad * (x - fill)).sum((0, 1, 3)))
    torch.testing.assert_close(got[2], (1 - g) * grad)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("gate: expected shape", (torch.zeros(1, 2, 3, 4), torch.ones(2))),
        ("gate: expected numbers, got NaN", (torch.zeros(1, 2, 3, 4), torch.full((3,), float("nan")))),
        ("x: expected shape", (torch.zeros(2, 3, 4), torch.ones(3))),
        ("fill: expected a shape that broadcasts", (torch.zeros(1, 2, 3, 4), torch.ones(3), torch.zeros(5))),
    ],
)
def test_bad_arguments_are_named(message: str, arguments: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(ValueError, match=message):
        ops.gate_heads(*arguments)
