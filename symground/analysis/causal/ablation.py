"""Silencing heads within a context manager, which does not change the model itself."""

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
    """A context manager: within its block, the outputs of the given heads are replaced before the output projection.

    Args:
        model: attached.
        heads: (layer, head) pairs for all examples, or a collection of pairs for each example of the batch.
        mode: what replaces them. "zero" is the study's; "mean" is the head's mean output over the reference; "resample"
            is its output at the same position of the reference, which must then have the shape of the batch.
        reference: for "mean" and "resample": ids [N,T], a mapping of model inputs (``input_ids`` and perhaps
            ``attention_mask``), or probes. With probes, "mean" averages over their matched examples, and "resample"
            reads their mismatched examples. The model reads the reference when the block is entered.
        positions: [T] or [B,T] bool; the forward passes in the block silence the heads at these positions only.

    Nested blocks add up. Each applies after those that were entered before it, in whatever order they end. A block ends
    after an exception too, and a context manager can be entered again. A block affects the forward passes of the thread
    that entered it (in asyncio: of the task, and of tasks that it starts within the block). A trace within the block
    includes the gates. In text generation with a cache, only the new tokens pass through the block: use no
    ``positions`` and no "resample" there.

    Raises:
        ValueError: a layer or head that does not exist, a model without heads, an unknown mode, a reference that does
            not fit. A forward pass within the block also raises it if the batch size differs from the number of head
            sets, or if the shape of the positions or of the resampled outputs differs from that of the batch.

    Source: arXiv 2510.13796 (outputs of the identified heads set to zero); Wang et al. 2023, "Interpretability in the
    wild" (mean ablation); Chan et al. 2022, "Causal scrubbing" (resampling).
    """
    gates = gates_of(model, heads)
    check_fills(mode, reference)
    return Block(lambda: gated(model, gates, fills_of(model, mode, reference), positions))
