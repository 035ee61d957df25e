"""Parts of models that symground implements: attention, Mamba-2's mixer, the LSTM, image tokens and fused GELU."""

from symground.models.architectures.attention import NO_MATRIX, register, unpadded
from symground.models.architectures.gelu import fuse_gelu, write_out_gelu
from symground.models.architectures.image_tokens import PatchEmbedding, set_images, with_images
from symground.models.architectures.lstm import LSTMConfig, LSTMForCausalLM, LSTMState
from symground.models.architectures.mamba2 import MambaMixer, give_back_mamba, initialize_decay, mamba_mixers
from symground.models.architectures.masks import NAME, UNPADDED
from symground.models.architectures.packed_pictures import PACKED, grids_of, is_packed, pack, places_in_grids
from symground.models.architectures.written_out import is_learnt, is_written_out, twins_pass, watch

__all__ = [
    "NAME",
    "NO_MATRIX",
    "PACKED",
    "UNPADDED",
    "LSTMConfig",
    "LSTMForCausalLM",
    "LSTMState",
    "MambaMixer",
    "PatchEmbedding",
    "fuse_gelu",
    "give_back_mamba",
    "grids_of",
    "initialize_decay",
    "is_learnt",
    "is_packed",
    "is_written_out",
    "mamba_mixers",
    "pack",
    "places_in_grids",
    "register",
    "set_images",
    "twins_pass",
    "unpadded",
    "watch",
    "with_images",
    "write_out_gelu",
]
