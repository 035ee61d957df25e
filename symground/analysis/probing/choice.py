"""What a model is about to name: its choice at the prediction position, and how sure it is of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.probing.sentence_probes import Examples
from symground.models.passes.gating import gated
from symground.models.trials.batch_invariance import check_lengths
from symground.models.trials.determinism import check_deterministic
from symground.models.trials.output_head import hidden_states, verified_readout

AMONG = ("targets", "vocabulary")


class Choices(NamedTuple):
    """Of N examples."""

    ids: NDArray[np.int64]
    """[N] the likeliest word."""
    right: NDArray[np.bool_]
    """[N] whether it is the example's target, what is in the scene."""
    probability: NDArray[np.float64]
    """[N] of the likeliest word."""
    entropy: NDArray[np.float64]
    """[N] of the distribution, nats."""
    surprisal: NDArray[np.float64]
    """[N] of the target, in the whole vocabulary, nats."""


@torch.no_grad()
def choices(
    model: PreTrainedModel,
    examples: Examples,
    among: str = "targets",
    gates: Mapping[int, Tensor] | None = None,
    batch_size: int = 256,
) -> Choices:
    """What the model would say after each example.

    Args:
        model: attached, in evaluation.
        examples: N of them.
        among: "targets", the words that the examples ask for: the choice is a naming; or "vocabulary".
        gates: layer → [H] or [N,H], what the heads' outputs are multiplied with.
        batch_size: examples per pass.

    Raises:
        ValueError: an unknown ``among``, a model whose passes differ (dropout), or texts that it cannot read in one
            batch.
    """
    if among not in AMONG:
        raise ValueError(f"among: expected one of {', '.join(AMONG)}; got {among!r}")
    check_deterministic(model)
    check_lengths(model, examples.prediction + 1, examples.input_ids.shape[1])
    head = verified_readout(model)
    device = head.weight.device
    asked = examples.targets.unique().to(device)
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(examples.input_ids), batch_size):
        part = slice(start, min(start + batch_size, len(examples.input_ids)))
        of_part = {layer: gate if gate.ndim == 1 else gate[part] for layer, gate in (gates or {}).items()}
        ids, p, targets = (x[part].to(device) for x in (examples.input_ids, examples.prediction, examples.targets))
        with gated(model, of_part):
            hidden = hidden_states(model, ids, **examples.given(part, device)).to(device)
            hidden = hidden[torch.arange(len(ids), device=device), p]
        whole = head.logits(hidden).float().log_softmax(-1)  # [B,V]
        seen = whole[:, asked].log_softmax(-1) if among == "targets" else whole
        top, at = seen.max(-1)
        chosen = asked[at] if among == "targets" else at
        entropy = -(seen.exp() * seen).sum(-1)
        surprisal = -whole.gather(1, targets[:, None])[:, 0]
        parts.append((chosen, chosen == targets, top.exp().double(), entropy.double(), surprisal.double()))
    return Choices(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))
