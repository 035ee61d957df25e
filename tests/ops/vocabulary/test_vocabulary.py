"""Surprisal, the training loss and the lens against log_softmax over the whole vocabulary."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from symground import ops
from symground.ops.common import extension
from symground.ops.vocabulary import tiles

every_impl = pytest.mark.parametrize("impl", ["reference", "cpu", "torch"])


@every_impl
@given(
    st.integers(0, 9), st.integers(1, 5), st.integers(1, 12), st.integers(1, 4), st.booleans(), st.booleans(),
    st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6),
)  # fmt: skip
def test_candidate_surprisal(
    impl: str, n: int, d: int, v: int, k: int, shared: bool, with_bias: bool, rows: int, columns: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(r, d, generator=g, dtype=torch.float64) for r in (n, v))
    bias = torch.randn(v, generator=g, dtype=torch.float64) if with_bias else None
    candidates = torch.randint(v, (k,) if shared else (n, k), generator=g)
    upstream = torch.randn(n, k, generator=g, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias) if x is not None]
    full = -torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias), -1)
    expected = full.gather(1, candidates.expand(n, k))
    with patch.multiple(tiles, ROWS=rows, TILE=rows * columns):  # several tiles, the last one narrower
        got = ops.candidate_surprisal(hidden, weight, candidates, bias, impl=impl)
        everything = ops.candidate_surprisal(hidden, weight, torch.arange(v), bias, impl=impl)
        gradients = torch.autograd.grad(got, leaves, upstream)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.exp(-everything).sum(-1), torch.ones(n, dtype=torch.float64))
    for ours, autograds in zip(gradients, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(ours, autograds)


@every_impl
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32(impl: str, dtype: torch.dtype) -> None:
    """Accumulated in float32; only the inputs and the gradients are rounded."""
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 8).to(dtype).requires_grad_() for n in (4, 50))
    got = ops.candidate_surprisal(hidden, weight, torch.arange(50), impl=impl)
    assert got.dtype == torch.float32
    torch.testing.assert_close(torch.exp(-got).sum(-1), torch.ones(4), atol=1e-5, rtol=0)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact = ops.candidate_surprisal(*wide, torch.arange(50), impl="reference")
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=0)
    gradients = torch.autograd.grad(got[:, :9].sum(), (hidden, weight))
    for ours, wanted in zip(gradients, torch.autograd.grad(exact[:, :9].sum(), wide), strict=True):
        assert ours.dtype == dtype
        assert (ours - wanted).abs().max() <= torch.finfo(dtype).eps * wanted.abs().max()


@every_impl
def test_gradcheck(impl: str) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 2), (5, 2), (5,))]
    own, shared, targets = torch.tensor([[0, 4], [1, 1], [2, 3]]), torch.tensor([2, 2, 0]), torch.tensor([0, -100, 4])
    for candidates in (own, shared):

        def surprisal(h: Tensor, w: Tensor, b: Tensor, candidates: Tensor = candidates) -> Tensor:
            return ops.candidate_surprisal(h, w, candidates, b, impl=impl)

        assert torch.autograd.gradcheck(surprisal, leaves)
    assert torch.autograd.gradcheck(lambda h, w, b: ops.linear_cross_entropy(h, w, targets, b, impl=impl), leaves)


@pytest.mark.parametrize("extended", [True, False])
@given(
    st.integers(0, 9), st.integers(1, 5), st.integers(1, 12), st.booleans(), st.integers(1, 30),
    st.tuples(st.booleans(), st.booleans(), st.booleans()), st.integers(0, 10**6),
)  # fmt: skip
def test_cross_entropy_with_its_gradients_in_one_go(
    extended: bool, n: int, d: int, v: int, with_bias: bool, tile: int, of: tuple[bool, bool, bool], seed: int
) -> None:
    """For any of them requiring a gradient, and for any number of rows in a tile."""
    if extended and extension.library is None:
        pytest.skip("no C++ extension: symground build")
    g = torch.Generator().manual_seed(seed)
    given_ = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, d), (v, d), (v,))]
    targets = torch.randint(-1, v, (n,), generator=g)
    hidden, weight, bias = (x.requires_grad_(wanted) for x, wanted in zip(given_, of, strict=True))
    bias = bias if with_bias else None
    leaves = [x for x in (hidden, weight, bias) if x is not None and x.requires_grad]
    library = extension.library if extended else None
    with patch.object(tiles, "LOSS_TILE", tile), patch.object(extension, "library", library):
        got = ops.linear_cross_entropy(hidden, weight, targets, bias, -1, "sum", impl="cpu")
        found = torch.autograd.grad(3 * got, leaves) if leaves and n else ()
    expected = ops.linear_cross_entropy(hidden, weight, targets, bias, -1, "sum", impl="reference")
    torch.testing.assert_close(got, expected)
    assert got.requires_grad == bool(leaves)
    for ours, exact in zip(found, torch.autograd.grad(3 * expected, leaves) if found else (), strict=True):
        torch.testing.assert_close(ours, exact)


@every_impl
def test_cross_entropy_is_torchs(impl: str) -> None:
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 4, requires_grad=True) for n in (6, 9))
    for targets, ignored in (([0, 8, -100, 3, -100, 1], -100), ([0, 8, 5, 3, 5, 1], 5), ([0, -1, 5, 3, -1, 1], -1)):
        for reduction in ("mean", "sum"):
            kw = {"ignore_index": ignored, "reduction": reduction}
            got = ops.linear_cross_entropy(hidden, weight, torch.tensor(targets), **kw, impl=impl)
            expected = torch.nn.functional.cross_entropy(hidden @ weight.T, torch.tensor(targets), **kw)
            torch.testing.assert_close(got, expected)
            for a, b in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (got, expected)), strict=True):
                torch.testing.assert_close(a, b)
    nothing = ops.linear_cross_entropy(hidden, weight, torch.full((6,), -100), impl=impl)
    assert nothing == 0
    assert torch.autograd.grad(nothing, hidden)[0].eq(0).all()


def test_ignored_rows_cost_nothing_on_a_cpu() -> None:
    """These rows are not even read."""
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 4, requires_grad=True) for n in (6, 9))
    dirty = hidden.detach().clone()
    dirty[2] = float("nan")
    targets = torch.tensor([0, 8, -100, 3, -100, 1])
    loss = ops.linear_cross_entropy(dirty.requires_grad_(), weight, targets, impl="cpu")
    gradients = torch.autograd.grad(loss, (dirty, weight))
    assert loss.isfinite()
    assert all(x.isfinite().all() for x in gradients)


@every_impl
@pytest.mark.parametrize("words", [3, 60])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("of", ["shared candidates", "own candidates", "loss"])
def test_what_nearly_vanishes_is_as_good_as_the_references(impl: str, words: int, of: str, gradients: bool) -> None:
    """The most probable word has almost all the probability: its surprisal is small beside the log-sum-exp."""
    errors: dict[str, list[list[float]]] = {name: [] for name in ("reference", impl)}
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        hidden, weight = (torch.randn(n, 130, generator=generator) for n in (1, words))
        target = (hidden @ weight.T).argmax(-1)

        def found(hidden: Tensor, weight: Tensor, name: str, target: Tensor = target) -> list[Tensor]:
            leaves = [x.clone().requires_grad_(gradients) for x in (hidden, weight)]
            if of == "loss":
                loss = ops.linear_cross_entropy(*leaves, target, impl=name)
            else:
                ids = target if of == "shared candidates" else target[:, None]
                loss = ops.candidate_surprisal(*leaves, ids, impl=name).sum()
            return [loss.detach(), *(torch.autograd.grad(loss, leaves) if gradients else ())]

        right = found(hidden.double(), weight.double(), "reference")
        for name, of_name in errors.items():
            with patch.multiple(tiles, TILE=20):
                got = found(hidden, weight, name)
            of_name.append([float((x - y).norm() / y.norm()) for x, y in zip(got, right, strict=True)])
    allowed, reached = (torch.tensor(errors[name]).median(0).values for name in ("reference", impl))
    assert (reached <= 2 * allowed).all()


@every_impl
def test_a_word_that_cannot_be_said(impl: str) -> None:
    """A bias of -inf gives infinite surprisal, and other results are unaffected."""
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(3, 4), torch.randn(9, 4), torch.zeros(9)
    bias[:5] = float("-inf")
    with patch.multiple(tiles, TILE=6):
        got = ops.candidate_surprisal(hidden, weight, torch.tensor([1, 6]), bias, impl=impl)
    assert got[:, 0].isposinf().all()
    rest = ops.candidate_surprisal(hidden, weight[5:], torch.tensor([1]), impl="reference")
    torch.testing.assert_close(got[:, 1:], rest)


@every_impl
def test_any_strides_and_any_integers(impl: str) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 4), torch.randn(9, 4)
    candidates = torch.randint(9, (6, 3))
    expected = ops.candidate_surprisal(hidden, weight, candidates, impl="reference")
    strided = [torch.stack((x, x), -1).mT.contiguous().mT[..., 0].T.contiguous().T for x in (hidden, weight)]
    for dtype in (torch.uint8, torch.int8, torch.int32):
        ids = candidates.to(dtype).T.contiguous().T
        torch.testing.assert_close(ops.candidate_surprisal(*strided, ids, impl=impl), expected)


@every_impl
def test_lens_scores_layers_as_one_by_one(impl: str) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    norm = torch.nn.LayerNorm(5, dtype=torch.float64)
    translators = (torch.randn(3, 5, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64))
    for candidates in (torch.tensor([0, 10, 10]), torch.randint(11, (4, 2))):
        for pair in (None, translators):
            got = ops.lens_surprisal(hidden, pair, norm, weight, candidates, impl=impl)
            wanted = ops.lens_surprisal(hidden, pair, norm, weight, candidates, impl="reference")
            torch.testing.assert_close(got, wanted)


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
            r"candidates: expected ids in \[0, V\), V = 5; got 5",
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
