"""Whether a model's tokens see those after them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.models.hooks import device_of, untapped
from symground.models.trials.cached_trials import tried
from symground.models.trials.output_head import hidden_states, trial_ids


def looks_ahead(model: PreTrainedModel) -> bool:
    """Whether a token's hidden state depends on later tokens (masked language models, prefixes), by a trial."""
    return tried(model, "looks ahead", partial(_trial, model))


@torch.no_grad()
def _trial(model: PreTrainedModel) -> bool:
    ids = trial_ids(model, 4).to(device_of(model)).repeat(2, 1)
    changed = ids.clone()
    changed[0, -1] = ids[0, 0]
    with untapped():
        return sees_change(hidden_states(model, ids), hidden_states(model, changed), torch.tensor([3, 0]))


def sees_change(one: Tensor, other: Tensor, before: Tensor) -> bool:
    """Whether states stand out that a change of a token after them has moved, however little.

    Args:
        one: [B,T,D] states.
        other: those of a pass in which a token of some of the examples is another.
        before: [B] the number of states of each example before its changed token; 0 of examples without one. These
            move by rounding only, as where tokens are routed to experts and a product has other rows.
    """
    moved = (one - other).abs().amax(-1).nan_to_num(0)  # [B,T]; NaN where padding sees nothing
    before = before.to(moved.device)[:, None]
    ahead = torch.arange(moved.shape[1], device=moved.device) < before
    return bool(moved.masked_fill(~ahead, 0).max() > 8 * moved.masked_fill(before > 0, 0).max())
