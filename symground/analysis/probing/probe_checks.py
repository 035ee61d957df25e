"""Checks that an analysis takes the given probes or questions about images, and that the model can read them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from symground.analysis.probing.questions import Asked, ImageQuestions
from symground.analysis.probing.sentence_probes import Probes
from symground.errors import described
from symground.models.passes import check_length, check_weights, check_words
from symground.models.trials import check_deterministic


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


def check_fits(model: PreTrainedModel, probes: Asked, images: bool = False, name: str = "probes") -> None:
    """Refuse probes that the model cannot read, a model with dropout on, and questions unless ``images`` is True.

    Raises:
        ValueError: names ``name``, the argument, or ``model``.
    """
    check_weights(model)
    check_asked(probes, name, images=images)
    tokens, context = probes.longest
    check_length(model, tokens, name, f" in context {context}")
    check_words(model, probes.largest_id, name)
    check_deterministic(model)
