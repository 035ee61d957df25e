"""The public ops on a vocabulary head: surprisal of candidates, also through each layer's lens, and training loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common.dispatch import choose
from symground.ops.vocabulary import cpu, reference, torch, triton
from symground.ops.vocabulary.lens import Lens

#: The implementations by their name for ``impl``, in the order in which ``impl=None`` tries them. ``torch`` takes any
#: tensor, so what comes after it runs only if it is named.
IMPLEMENTATIONS = {"cpu": cpu.ops, "triton": triton.ops, "torch": torch.ops, "reference": reference}


def candidate_surprisal(
    hidden: Tensor, weight: Tensor, candidates: Tensor, bias: Tensor | None = None, *, impl: str | None = None
) -> Tensor:
    """-log softmax(hidden weightᵀ + bias) at the candidates.

    Args:
        hidden: [N,D] final hidden states, after the final norm.
        weight: [V,D] output embedding in the dtype of hidden; D at least 1.
        candidates: [K] shared by all rows, or [N,K]; int ids in [0, V).
        bias: [V] or None.
        impl: None picks by device.

    Returns:
        [N,K] surprisals in nats, float32 (float64 for float64 inputs); differentiable in hidden, weight and bias.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or id, or there is no candidate; the message names it.
        NotImplementedError: a second or forward-mode derivative was requested; only ``impl="reference"`` has them.

    Source: surprisal, Shannon 1948; s(w|c) = -log P(w|c) of arXiv 2510.13796.

    Example:
        >>> hidden, weight, candidates = torch.randn(3, 8), torch.randn(20, 8), torch.tensor([4, 7])
        >>> by_hand = -torch.log_softmax(hidden @ weight.T, -1)[:, candidates]
        >>> torch.allclose(ops.candidate_surprisal(hidden, weight, candidates), by_hand, atol=1e-5)
        True
    """
    _check_head(hidden, weight, bias)
    candidates = _check_candidates(candidates, hidden.shape[0], hidden, weight.shape[0])
    found: Tensor = choose("candidate_surprisal", IMPLEMENTATIONS, impl, hidden)(hidden, weight, candidates, bias)
    return found


def lens_surprisal(
    hidden: Tensor,
    translators: tuple[Tensor, Tensor] | None,
    norm: Callable[[Tensor], Tensor],
    weight: Tensor,
    candidates: Tensor,
    bias: Tensor | None = None,
    *,
    impl: str | None = None,
) -> Tensor:
    """Candidate surprisal of every layer's residual stream through its translator, the final norm and the head.

    Args:
        hidden: [L,N,D] residual streams before the final norm.
        translators: (W [L,D,D], b [L,D]); layer l reads h + h W_lᵀ + b_l. None is the plain logit lens.
        norm: the model's final norm, [N,D] → [N,D], applied to each row, for any number of rows.
        weight: [V,D] output embedding.
        candidates: [K] or [N,K], int ids in [0, V).
        bias: [V], the bias of the head, or None.
        impl: None picks by device.

    Returns:
        [L,N,K] surprisals in nats, float32 (float64 for float64 inputs).

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or id; the message names it.
        NotImplementedError: a second or forward-mode derivative was requested; only ``impl="reference"`` has them.

    Source: tuned lens, Belrose et al. 2023, equation 6 (affine residual translators); logit lens, nostalgebraist 2020.

    Example:
        >>> hidden, weight, candidates = torch.randn(2, 3, 8), torch.randn(20, 8), torch.tensor([4, 7])
        >>> W, b, norm = torch.randn(2, 8, 8), torch.randn(2, 8), torch.nn.LayerNorm(8)
        >>> translated = hidden + hidden @ W.mT + b[:, None]
        >>> by_hand = -torch.log_softmax(norm(translated) @ weight.T, -1)[..., candidates]
        >>> torch.allclose(ops.lens_surprisal(hidden, (W, b), norm, weight, candidates), by_hand, atol=1e-4)
        True
    """
    _check_head(hidden, weight, bias, "L,N,D")
    layers, rows, size = hidden.shape
    candidates = _check_candidates(candidates, rows, hidden, weight.shape[0])
    if not callable(norm):
        raise ValueError(f"norm: expected a function or module [N,D] → [N,D], got {type(norm).__name__}")
    if translators is not None:
        if not isinstance(translators, tuple) or len(translators) != 2:
            raise ValueError("translators: expected (W [L,D,D], b [L,D]) or None")
        check.has_shape("translators", translators[0], "L,D,D", (layers, size, size))
        check.has_shape("translators", translators[1], "L,D", (layers, size))
        for part in translators:
            check.matches("translators", part, "hidden", hidden)
    run = choose("lens_surprisal", IMPLEMENTATIONS, impl, hidden)
    found: Tensor = run(hidden, Lens(translators, norm), weight, candidates, bias)
    return found


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    impl: str | None = None,
) -> Tensor:
    """Cross-entropy of softmax(hidden weightᵀ + bias) against targets.

    Args:
        hidden: [N,D] final hidden states.
        weight: [V,D] output embedding in the dtype of hidden; D at least 1.
        targets: [N] int ids in [0, V), or ``ignore_index``.
        bias: [V] or None.
        ignore_index: targets of this value count neither in the sum nor in the mean.
        reduction: "mean" over the targets that count, or "sum". If no target counts, the result is 0.
        impl: None picks by device.

    Returns:
        A scalar in nats, float32 (float64 for float64 inputs), differentiable in hidden, weight and bias. In float32
        and float64 it has second derivatives (for a gradient penalty or a Hessian), which materialise all N·V logits.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device, id or reduction; the message names it.
        NotImplementedError: a second derivative was requested in half precision or of ``impl="triton"``, or a
            forward-mode derivative of anything but ``impl="reference"``.

    Source: the definition of cross-entropy.

    Example:
        >>> hidden, weight, targets = torch.randn(3, 8), torch.randn(20, 8), torch.tensor([4, -100, 7])
        >>> by_hand = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
        >>> torch.allclose(ops.linear_cross_entropy(hidden, weight, targets), by_hand, atol=1e-5)
        True
    """
    _check_head(hidden, weight, bias)
    check.has_shape("targets", targets, "N", (hidden.shape[0],))
    targets = check.integers("targets", targets)
    check.matches("targets", targets, "hidden", hidden, dtype=False)
    check.choice("reduction", reduction, ("mean", "sum"))
    ignore_index = check.integer("ignore_index", ignore_index)
    known = (targets == ignore_index) | ((targets >= 0) & (targets < weight.shape[0]))
    sizes = {"V": weight.shape[0], "ignore_index": ignore_index}
    check.values(known, "targets: expected ids in [0, V) or ignore_index", targets, **sizes)
    run = choose("linear_cross_entropy", IMPLEMENTATIONS, impl, hidden)
    loss: Tensor = run(hidden, weight, targets, bias, ignore_index, reduction)
    return loss


def _check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, dims: str = "N,D") -> None:
    """``dims`` is the shape of hidden in letters: rows, or rows for each layer."""
    check.has_shape("hidden", hidden, dims, (None,) * len(dims.split(",")))
    check.is_floating("hidden", hidden)
    if hidden.shape[-1] == 0:
        raise ValueError("hidden: expected at least one number in a row, got D = 0")
    check.has_shape("weight", weight, "V,D", (None, hidden.shape[-1]))
    check.matches("weight", weight, "hidden", hidden)
    if bias is not None:
        check.has_shape("bias", bias, "V", (weight.shape[0],))
        check.is_floating("bias", bias)
        check.matches("bias", bias, "hidden", hidden, dtype=False)


def _check_candidates(candidates: Tensor, rows: int, like: Tensor, vocabulary: int) -> Tensor:
    """The candidates as int64."""
    candidates = check.integers("candidates", candidates)
    if candidates.ndim not in (1, 2) or (candidates.ndim == 2 and candidates.shape[0] != rows):
        raise ValueError(f"candidates: expected shape [K] or [N,K] with N = {rows}, got {list(candidates.shape)}")
    if candidates.shape[-1] == 0:
        raise ValueError("candidates: expected at least one candidate, got none")
    check.matches("candidates", candidates, "hidden", like, dtype=False)
    in_vocabulary = (candidates >= 0) & (candidates < vocabulary)
    check.values(in_vocabulary, "candidates: expected ids in [0, V)", candidates, V=vocabulary)
    return candidates
