"""Taps, by which an analysis reads or changes heads in a forward pass, and hooks that act in one thread only."""

from symground.models.hooks.forward_hooks import (
    forward_as,
    given_forward,
    hooked,
    hooked_by_others,
    hooks_of,
    hooks_of_all,
    is_ours,
    is_plain,
    is_trusted,
    own_forward,
)
from symground.models.hooks.mixers import (
    Mixer,
    Replacement,
    Tap,
    check_batch,
    device_of,
    head_outputs,
    shown,
    tap_of,
    tapped,
    untapped,
)
from symground.models.hooks.row_probes import RowProbe, attention_row, ssd_row
from symground.models.hooks.scopes import forget_when_checkpointing, place, remember_when_checkpointing, remembering

__all__ = [
    "Mixer",
    "Replacement",
    "RowProbe",
    "Tap",
    "attention_row",
    "check_batch",
    "device_of",
    "forget_when_checkpointing",
    "forward_as",
    "given_forward",
    "head_outputs",
    "hooked",
    "hooked_by_others",
    "hooks_of",
    "hooks_of_all",
    "is_ours",
    "is_plain",
    "is_trusted",
    "own_forward",
    "place",
    "remember_when_checkpointing",
    "remembering",
    "shown",
    "ssd_row",
    "tap_of",
    "tapped",
    "untapped",
]
