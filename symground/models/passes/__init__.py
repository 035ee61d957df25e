"""Special forward passes: from a key-value cache, from a middle layer, layer by layer, and with less memory."""

from symground.models.passes.activation_memory import Kept, checkpointed, frozen, offloaded
from symground.models.passes.gating import gated
from symground.models.passes.inputs import (
    check_inputs,
    check_length,
    check_names,
    check_weights,
    check_words,
    id_limit,
    readable_ids,
)
from symground.models.passes.kv_cache import Reader, State
from symground.models.passes.partial_forward import Replay, replays
from symground.models.passes.residual_states import final_norm, residual_stream

__all__ = [
    "Kept",
    "Reader",
    "Replay",
    "State",
    "check_inputs",
    "check_length",
    "check_names",
    "check_weights",
    "check_words",
    "checkpointed",
    "final_norm",
    "frozen",
    "gated",
    "id_limit",
    "offloaded",
    "readable_ids",
    "replays",
    "residual_stream",
]
