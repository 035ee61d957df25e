"""A tiny model of transformers under its eager attention, which is the oracle, beside a copy with the same weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel


def twins(kind: Any, config: PreTrainedConfig) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model of class ``kind`` under eager attention, with weights drawn from a fixed seed, and a copy to attach."""
    torch.manual_seed(0)
    eager = kind._from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    for parameter in eager.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    twin = kind(copy.deepcopy(config)).eval()
    twin.load_state_dict(eager.state_dict())
    return eager, twin
