"""How many positions a model has, and whether they depend on the length of the text."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from symground.models.hooks import body


class Stretch(NamedTuple):
    kind: str
    limit: int
    """The largest number of tokens for which positions are as in training."""


def stretch_of(model: PreTrainedModel) -> Stretch | None:
    """How a model's rotary positions depend on the length of the text; None if they do not."""
    config = model.config.get_text_config()
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found = []
    for part in (settings, *settings.values()):  # some models have settings for each kind of layer
        if not isinstance(part, dict):
            continue
        kind = str(part.get("rope_type") or part.get("type") or "")
        if "dynamic" in kind or kind in ("longrope", "su"):
            limits = [getattr(config, "max_position_embeddings", None)]
            if "dynamic" not in kind:
                limits += [x.get("original_max_position_embeddings") for x in (part, vars(config))]
            found.append(Stretch(kind, min(limit for limit in limits if limit)))
    return min(found, key=lambda one: one.limit, default=None)


def positions_of(model: PreTrainedModel) -> int | None:
    """The number of tokens that a model's positions are made for: those of its table, or of its training.

    None: it says none, or has none (ALiBi, Mamba-2), or stretches them to any length (dynamic NTK).
    """
    text = model.config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_target_positions")
    found = next((x for x in (getattr(text, name, None) for name in names) if x), None)
    stretch = stretch_of(model)
    if found is None or found < 1 or getattr(text, "alibi", False) or (stretch and "dynamic" in stretch.kind):
        return None  # XLNet says -1
    # RoBERTa's table begins with the rows up to that of padding.
    tables = [m for name, m in body(model).named_modules() if "position" in name and isinstance(m, nn.Embedding)]
    skipped = [m.padding_idx + 1 for m in tables if m.num_embeddings == found and m.padding_idx is not None]
    return int(found - max(skipped, default=0))
