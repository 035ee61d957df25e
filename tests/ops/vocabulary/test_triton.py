"""The vocabulary kernels against the reference in float64: on a GPU if there is one, else in Triton's interpreter.

It also runs without the rest of the suite: python -m pytest tests/ops/vocabulary/test_triton.py --noconftest
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.ops.common.triton_device import CUDA, DEVICE, DTYPES, INTERPRETED, fresh_memory_is_nan  # noqa: F401

# isort: split

from symground import ops
from symground.kernels.vocabulary import surprisal as vocabulary
from symground.ops.vocabulary import triton


class Inputs:
    """One random problem, rounded to ``dtype``, in float64 on the device."""

    def __init__(self, N: int, D: int, V: int, K: int, shared: bool, bias: bool, dtype: torch.dtype) -> None:
        g = torch.Generator().manual_seed(N + D + V + K)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=g) * scale).to(DEVICE, dtype).double()

        self.hidden, self.weight, self.grad = normal(N, D), normal(V, D, scale=2 * D**-0.5), normal(N, K)
        self.bias = normal(V) if bias else None
        self.candidates = torch.randint(V, (K,) if shared else (N, K), generator=g).to(DEVICE)

    def everything(self, impl: str, dtype: torch.dtype) -> list[Tensor]:
        """[surprisal, the gradients of hidden, weight and bias]"""
        leaves = [x.to(dtype).requires_grad_() for x in (self.hidden, self.weight, self.bias) if x is not None]
        bias = leaves[2] if self.bias is not None else None
        out = ops.candidate_surprisal(leaves[0], leaves[1], self.candidates, bias, impl=impl)
        return [out.detach(), *torch.autograd.grad(out, leaves, self.grad.to(out.dtype))]

    def eager(self, dtype: torch.dtype) -> list[Tensor]:
        """The same results from eager PyTorch in this precision, whose errors are the standard."""
        leaves = [x.to(dtype).requires_grad_() for x in (self.hidden, self.weight, self.bias) if x is not None]
        z = torch.nn.functional.linear(*leaves)
        out = -torch.log_softmax(z, -1).gather(1, self.candidates.expand(len(z), -1))
        return [out.detach(), *torch.autograd.grad(out, leaves, self.grad.to(out.dtype))]


SHAPES = [
    (1, 16, 17, 1), (70, 40, 90, 40), (33, 96, 300, 5), (5, 7, 33, 3), (64, 64, 64, 32), (3, 130, 1, 1),
    *([] if INTERPRETED else [(150, 96, 300, 40), (200, 130, 260, 3)]), *([(1024, 768, 50257, 100)] if CUDA else []),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_eager(shape: tuple[int, int, int, int], shared: bool, bias: bool, dtype: torch.dtype) -> None:
    """FlashAttention's criterion: at most twice the error of eager in the same precision, against float64."""
    x = Inputs(*shape, shared, bias, dtype)
    exact = x.everything("reference", torch.float64)
    for name, ours, peer, wanted in zip(
        ("surprisal", "dhidden", "dweight", "dbias"), x.everything("triton", dtype), x.eager(dtype), exact, strict=False
    ):
        assert ours.shape == wanted.shape, name
        error, eagers = ((y.double() - wanted).abs().max().item() for y in (ours, peer))
        slack = (2e-6 if dtype == torch.float32 else 1e-6) * (1 + wanted.abs().max().item())
        assert error <= 2 * eagers + slack, (name, error, eagers)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probabilities_sum_to_one(dtype: torch.dtype) -> None:
    x = Inputs(20, 48, 200, 1, True, True, dtype)
    hidden, weight, bias = (y.to(dtype) for y in (x.hidden, x.weight, x.bias) if y is not None)
    for candidates in (torch.arange(200, device=DEVICE), torch.arange(200, device=DEVICE).expand(20, -1)):
        total = ops.candidate_surprisal(hidden, weight, candidates, bias, impl="triton").neg().exp().sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


def test_gradients_by_pieces_of_the_vocabulary() -> None:
    """A buffer for one or two tiles gives the same as one for everything."""
    for shared in (True, False):
        x = Inputs(37, 32, 150, 9, shared, True, torch.float32)
        whole = x.everything("triton", torch.float32)
        for size in (1, 37 * 4 * 40):
            with mock.patch.object(vocabulary, "BUFFER_BYTES", size):
                pieces = x.everything("triton", torch.float32)
            for a, b in zip(pieces, whole, strict=True):
                torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_vocabulary_in_one_part_or_many() -> None:
    x = Inputs(5, 32, 333, 2, True, False, torch.float32)
    results = []
    for waves in (1, 7, 1000):
        with mock.patch.object(vocabulary, "WAVES", waves):
            results.append(x.everything("triton", torch.float32)[0])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=2e-6, rtol=0)


def test_any_strides() -> None:
    x = Inputs(34, 24, 70, 3, False, False, torch.float32)
    hidden, weight = x.hidden.float(), x.weight.float()
    expected = ops.candidate_surprisal(hidden, weight, x.candidates, impl="triton")
    strided = [torch.stack((y, y)).permute(1, 2, 0)[..., 0] for y in (hidden, weight)]
    turned = [y.T.contiguous().T for y in (hidden, weight)]
    ids = x.candidates.T.contiguous().T
    for h, w in (strided, turned):
        torch.testing.assert_close(ops.candidate_surprisal(h, w, ids, impl="triton"), expected, atol=1e-6, rtol=0)


def test_a_word_that_cannot_be_said() -> None:
    """A bias of -inf gives infinite surprisal and no NaN elsewhere, even if a whole tile is impossible."""
    x = Inputs(4, 16, 100, 1, True, True, torch.float32)
    assert x.bias is not None
    bias = x.bias.float()
    bias[:64] = float("-inf")
    candidates = torch.tensor([3, 80], device=DEVICE)
    args = (x.hidden.float(), x.weight.float(), candidates, bias)
    got = ops.candidate_surprisal(*args, impl="triton")
    assert got[:, 0].isposinf().all()
    torch.testing.assert_close(got[:, 1], ops.candidate_surprisal(*args, impl="reference")[:, 1])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_leaves_out_what_is_ignored(reduction: str) -> None:
    x = Inputs(40, 32, 60, 1, True, True, torch.float32)
    targets = torch.randint(60, (40,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    targets[::3] = -100
    found = []
    for impl in ("triton", "reference"):
        leaves = [y.float().requires_grad_() for y in (x.hidden, x.weight, x.bias) if y is not None]
        loss = ops.linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2], reduction=reduction, impl=impl)
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=2e-6)


def test_a_row_without_a_candidate_has_a_surprisal_of_0() -> None:
    """As `Backend` documents; the other rows are unaffected."""
    x = Inputs(40, 32, 60, 1, False, True, torch.float32)
    hidden, weight, bias = (y.float() for y in (x.hidden, x.weight, x.bias) if y is not None)
    candidates = x.candidates.clone()
    candidates[::3] = -1
    found = triton._forward(hidden, weight, bias, candidates)[0]
    expected = ops.candidate_surprisal(hidden, weight, x.candidates, bias, impl="reference")
    expected[::3] = 0
    torch.testing.assert_close(found, expected)


def test_repeats_are_identical() -> None:
    x = Inputs(70, 40, 90, 40, False, True, torch.float32)
    first = x.everything("triton", torch.float32)
    for _ in range(3):
        assert all(map(torch.equal, x.everything("triton", torch.float32), first))
