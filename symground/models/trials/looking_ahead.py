"""Whether a model's tokens see those after them."""

from __future__ import annotations

from functools import partial

import torch
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
    ids[1, -1] = ids[0, 0]
    with untapped():
        one, other = hidden_states(model, ids)[:, 0]
    return bool((one - other).norm() > 1e-3 * one.norm())
