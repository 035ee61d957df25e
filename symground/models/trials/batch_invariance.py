"""Whether texts of a pass are read as each is alone.

Rotary positions may depend on how long a text is: LongRoPE (arXiv 2402.13753) and the dynamic NTK form. The longest
text of a pass decides how all of its positions are turned. So a text that grows beyond a limit is another text from its
beginning on, and texts of several lengths in one pass are not what each is alone. Hooks may do anything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.models.hooks import device_of, untapped
from symground.models.trials.output_head import agree, hidden_states, trial_ids
from symground.models.trials.trying import hooked_by_others


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


def check_lengths(model: PreTrainedModel, lengths: Tensor, width: int | None = None, *, logits: bool = False) -> None:
    """Refuse texts of these lengths [B] in one pass where they would not be read as each is alone.

    Where hooks or forward functions of others act on the model, two texts of the extreme lengths are tried.

    Args:
        model: any causal language model.
        lengths: how many tokens of each text count.
        width: how many positions of each the model takes for text; None: those that count.
        logits: whether its logits are compared, in place of its final hidden states.

    Raises:
        ValueError: positions that depend on the text's length, and texts on both sides of the limit; a hook that acts
            on a text by what else is in the pass, padding included.
    """
    stretch = stretch_of(model)
    shortest, longest = int(lengths.min()), max(int(lengths.max()), width or 0)
    if width is not None and (shortest < longest or len(lengths) > 1) and hooked_by_others(model):
        _check_apart(model, shortest, longest, logits)
    if stretch is None or longest <= stretch.limit or shortest == longest:
        return
    if shortest <= stretch.limit or "dynamic" in stretch.kind:
        raise ValueError(
            f"input_ids: {type(model).__name__} turns its positions by the longest text of a pass beyond "
            f"{stretch.limit} tokens (rope_type {stretch.kind!r}), and these have {shortest} to {longest}; give texts "
            "of one length at a time"
        )


@torch.no_grad()
def _check_apart(model: PreTrainedModel, shortest: int, longest: int, logits: bool) -> None:
    """Refuse a model that makes of a text something else beside another one, padded on the right, than alone.

    Its final hidden states are compared, or its ``logits``.

    Raises:
        ValueError: it does, by trying.
    """
    ids = trial_ids(model, longest + 1).to(device_of(model))
    rows = torch.cat([ids[:, :-1], ids[:, 1:]])

    def read(ids: Tensor) -> Tensor:
        return model(input_ids=ids).logits if logits else hidden_states(model, ids)

    with untapped():
        alone, beside = read(rows[1:, :shortest])[0, -1], read(rows)[1, shortest - 1]
    if not agree(beside, alone):
        raise ValueError(
            f"model: a hook or a forward function that was put on {type(model).__name__} makes of a text of {shortest} "
            f"tokens something else beside one of {longest}, padded on the right, than alone; give texts of one length "
            "at a time, or a hook that acts on each position of each text by itself"
        )
