"""Rotary positions that depend on how long a text is: LongRoPE (arXiv 2402.13753) and the dynamic NTK form.

The longest text of a pass decides how all of its positions are turned. So a text that grows beyond a limit is another
text from its beginning on, and texts of several lengths in one pass are not what each is alone.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel


class Stretch(NamedTuple):
    kind: str
    limit: int
    """The most tokens of a text whose positions are as they were learnt."""


def stretch_of(model: PreTrainedModel) -> Stretch | None:
    """How a model's rotary positions depend on the length of the text; None where they do not."""
    config = model.config.get_text_config()
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found = []
    for part in (settings, *settings.values()):  # some models have them by the kind of layer
        if not isinstance(part, dict):
            continue
        kind = str(part.get("rope_type") or part.get("type") or "")
        if "dynamic" in kind or kind in ("longrope", "su"):
            limits = [getattr(config, "max_position_embeddings", None)]
            limits += [x.get("original_max_position_embeddings") for x in (part, vars(config))]
            found.append(Stretch(kind, min(limit for limit in limits if limit)))
    return min(found, key=lambda one: one.limit, default=None)


def check_lengths(model: PreTrainedModel, lengths: Tensor, width: int | None = None) -> None:
    """Refuse texts of these lengths [B] in one pass where they would not be read as each is alone.

    Args:
        model: any causal language model.
        lengths: how many tokens of each text count.
        width: how many positions of each the model takes for text; None: those that count.

    Raises:
        ValueError: positions that depend on the text's length, and texts on both sides of the limit.
    """
    stretch = stretch_of(model)
    shortest, longest = int(lengths.min()), max(int(lengths.max()), width or 0)
    if stretch is None or longest <= stretch.limit or shortest == longest:
        return
    if shortest <= stretch.limit or "dynamic" in stretch.kind:
        raise ValueError(
            f"input_ids: {type(model).__name__} turns its positions by the longest text of a pass beyond "
            f"{stretch.limit} tokens (rope_type {stretch.kind!r}), and these have {shortest} to {longest}; give texts "
            "of one length at a time"
        )
