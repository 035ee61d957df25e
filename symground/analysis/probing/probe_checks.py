"""Checks that an analysis takes the given probes or questions about images, and that the model can read them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from symground.analysis.probing.questions import Asked, ImageQuestions
from symground.analysis.probing.sentence_probes import Probes
from symground.errors import described
from symground.models.passes import check_weights, id_limit
from symground.models.trials import check_deterministic, positions_of, readout


def check_asked(value: Any, name: str = "probes", *, images: bool = False) -> None:
    """Refuse anything but probes or, with ``images``, questions about images.

    Raises:
        ValueError: names ``name``.
    """
    if isinstance(value, ImageQuestions) and not images:
        raise ValueError(
            f"{name}: expected probes, got questions about images; those are for trace, intervene, monitor, steering "
            "and answers"
        )
    if isinstance(value, Probes) or (images and isinstance(value, ImageQuestions)):
        return
    made = "symground.probes(tokenizer)" + (" or symground.image_questions(processor, …)" if images else "")
    raise ValueError(f"{name}: expected what {made} makes, got {described(value)}")


def check_fits(model: PreTrainedModel, probes: Asked, images: bool = False) -> None:
    """Refuse probes that the model cannot read, a model with dropout on, and questions unless ``images`` is True."""
    check_weights(model)
    check_asked(probes, images=images)
    positions = positions_of(model)
    tokens, context = probes.longest
    if positions is not None and tokens > positions:
        raise ValueError(f"probes: context {context} has {tokens} tokens, the model has {positions} positions")
    limit = id_limit(model)
    if probes.largest_id >= limit:
        rows = readout(model).weight.shape[0]
        has = f" and its {limit - rows} patches of images" if limit > rows else ""
        raise ValueError(
            f"probes: id {probes.largest_id} is outside the model's vocabulary of {rows}{has}; is this its tokenizer?"
        )
    check_deterministic(model)
