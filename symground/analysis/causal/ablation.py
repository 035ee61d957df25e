"""Silencing heads: a context manager that leaves the model as it found it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.causal.fills import Reference, check_fills, fills_of
from symground.analysis.causal.gates import Block, Heads, gates_of
from symground.models.passes import gated


def ablate(
    model: PreTrainedModel,
    heads: Heads | Sequence[Heads],
    mode: str = "zero",
    reference: Reference | None = None,
    *,
    positions: Tensor | None = None,
) -> AbstractContextManager[None]:
    """A context: within its block, the given heads' outputs are replaced before the output projection.

    Args:
        model: attached.
        heads: (layer, head) pairs for all examples, or a collection of pairs for each example of the batch.
        mode: what replaces them: "zero", the study's; "mean", the head's mean output over the reference; "resample",
            its output at the same position of the reference, which then has the shape of the batch.
        reference: for "mean" and "resample": ids [N,T], a mapping of model inputs (``input_ids`` and perhaps
            ``attention_mask``), or probes: the mean over their matched examples, or what their matched examples
            resample from the mismatched ones. Read when the block is entered, as the model is then.
        positions: [T] or [B,T] bool, of the forward passes in the block: silence at these positions only.

    Blocks add up, each after those that were entered before it, in whatever order they end; what a block asks ends with
    it, after an exception too. A context can be entered again. The block holds for the passes of the thread that
    entered it (in asyncio: of the task, and of those that it starts meanwhile). A trace within the block carries the
    gates. In text generation with a cache, only the new tokens pass through the block: use no ``positions`` and no
    "resample" there.

    Raises:
        ValueError: a layer or head that does not exist, a model without heads, an unknown mode, a reference that does
            not fit. Forward passes within the block are refused where their batch has another size than the sets,
            where positions have another shape, or what is resampled.

    Source: arXiv 2510.13796 (outputs of the identified heads set to zero); Wang et al. 2023, "Interpretability in the
    wild" (mean ablation); Chan et al. 2022, "Causal scrubbing" (resampling).
    """
    gates = gates_of(model, heads)
    check_fills(mode, reference)
    return Block(lambda: gated(model, gates, fills_of(model, mode, reference), positions))
