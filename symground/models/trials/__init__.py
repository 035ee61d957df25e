"""Tests of a model on a few tokens: its vocabulary head, and whether each pass over a text has the same result."""

from symground.models.trials.cached_trials import tried
from symground.models.trials.looking_ahead import looks_ahead, sees_change
from symground.models.trials.output_head import (
    Readout,
    agree,
    hidden_states,
    logits_given_by,
    readout,
    readout_by,
    surprisal_of,
    trial_ids,
    verified_readout,
)
from symground.models.trials.positions import positions_of, stretch_of
from symground.models.trials.reproducibility import check_deterministic, check_dropout, check_lengths

__all__ = [
    "Readout",
    "agree",
    "check_deterministic",
    "check_dropout",
    "check_lengths",
    "hidden_states",
    "logits_given_by",
    "looks_ahead",
    "positions_of",
    "readout",
    "readout_by",
    "sees_change",
    "stretch_of",
    "surprisal_of",
    "trial_ids",
    "tried",
    "verified_readout",
]
