"""Surprisal, the training loss and the lens against log_softmax over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from symground import ops


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_candidate_surprisal(n: int, d: int, v: int, shared: bool, with_bias: bool, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(r, d, generator=g, dtype=torch.float64) for r in (n, v))
    bias = torch.randn(v, generator=g, dtype=torch.float64) if with_bias else None
    candidates = torch.randint(v, (3,) if shared else (n, 3), generator=g)
    full = -torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias), -1)
    got = ops.candidate_surprisal(hidden, weight, candidates, bias)
    torch.testing.assert_close(got, full.gather(1, candidates.expand(n, 3)))
    everything = ops.candidate_surprisal(hidden, weight, torch.arange(v), bias)
    torch.testing.assert_close(torch.exp(-everything).sum(-1), torch.ones(n, dtype=torch.float64))


def test_half_precision_gives_float32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 8).bfloat16(), torch.randn(50, 8).bfloat16()
    got = ops.candidate_surprisal(hidden, weight, torch.arange(50))
    assert got.dtype == torch.float32
    torch.testing.assert_close(torch.exp(-got).sum(-1), torch.ones(4))


def test_gradcheck() -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 2), (5, 2), (5,)))
    candidates, targets = torch.tensor([[0, 4], [1, 1], [2, 3]]), torch.tensor([0, -100, 4])
    assert torch.autograd.gradcheck(
        lambda *z: ops.candidate_surprisal(z[0], z[1], candidates, z[2]), (hidden, weight, bias)
    )
    assert torch.autograd.gradcheck(
        lambda *z: ops.linear_cross_entropy(z[0], z[1], targets, z[2]), (hidden, weight, bias)
    )


def test_cross_entropy_is_torchs() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 4), torch.randn(9, 4)
    targets = torch.tensor([0, 8, -100, 3, -100, 1])
    for reduction in ("mean", "sum"):
        got = ops.linear_cross_entropy(hidden, weight, targets, reduction=reduction)
        torch.testing.assert_close(
            got, torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction=reduction)
        )
    assert ops.linear_cross_entropy(hidden, weight, torch.full((6,), -100)) == 0


def test_lens_reads_each_layer_through_its_translator() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 4, 5), torch.randn(11, 5)
    norm = torch.nn.LayerNorm(5)
    w, b = torch.randn(3, 5, 5) * 0.1, torch.randn(3, 5)
    candidates = torch.tensor([0, 10])
    got = ops.lens_surprisal(hidden, (w, b), norm, weight, candidates)
    assert got.shape == (3, 4, 2)
    for layer in range(3):
        translated = norm(hidden[layer] + hidden[layer] @ w[layer].T + b[layer])
        torch.testing.assert_close(got[layer], ops.candidate_surprisal(translated, weight, candidates))
    zero = (torch.zeros(3, 5, 5), torch.zeros(3, 5))
    plain = ops.lens_surprisal(hidden, None, norm, weight, candidates)
    torch.testing.assert_close(ops.lens_surprisal(hidden, zero, norm, weight, candidates), plain)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("candidates: expected at least one", lambda h, w: ops.candidate_surprisal(h, w, torch.empty(0).long())),
        (
            r"candidates: expected ids in \[0, V\) = \[0, 5\)",
            lambda h, w: ops.candidate_surprisal(h, w, torch.tensor([5])),
        ),
        ("candidates: expected shape", lambda h, w: ops.candidate_surprisal(h, w, torch.zeros(2, 1).long())),
        ("weight: expected shape", lambda h, w: ops.candidate_surprisal(h, w[:, :1], torch.tensor([0]))),
        ("targets: expected ids", lambda h, w: ops.linear_cross_entropy(h, w, torch.tensor([0, 5, 1]))),
        ("reduction", lambda h, w: ops.linear_cross_entropy(h, w, torch.tensor([0, 1, 1]), reduction="none")),
        ("translators", lambda h, w: ops.lens_surprisal(h[None], (w, w), lambda z: z, w, torch.tensor([0]))),
    ],
)
def test_bad_arguments_are_named(message: str, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 2), torch.zeros(5, 2))
