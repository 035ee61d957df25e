"""Checks of the inputs of a pass: names, ids and positions. Each error says what to do."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from symground.models.architectures import PatchEmbedding
from symground.models.attachment import check_model
from symground.models.hooks import body, is_encoder_decoder
from symground.models.trials import positions_of, readout

#: Inputs that the analysis itself passes to the model, and why a caller may not pass them.
_TAKEN = {
    "input_ids": "it is the second argument",
    "inputs_embeds": "saliency is of ids; give input_ids",
    "past_key_values": "a text is traced whole; give all of it as input_ids, without a cache",
    "cache": "a text is traced whole; give all of it as input_ids, without a cache",
    "cache_params": "a text is traced whole; give all of it as input_ids, without a cache",
    "use_cache": "a text is traced whole, without a cache",
    "return_dict": "the model's output is read by its names",
    "output_attentions": "symground builds no attention matrix; symground.trace with rows=True gives every head's row",
}


def check_weights(model: Any) -> None:
    """Check that the model is one of transformers, with weights that are loaded and a floating-point vocabulary head.

    Raises:
        ValueError: it is not; the message says which of these fails.
    """
    check_model(model)
    if is_encoder_decoder(model):
        raise ValueError(
            f"model: expected one that reads and continues a text, got {type(model).__name__}, which has an encoder; "
            "symground.trace takes its inputs with targets or with a loss"
        )
    weight = readout(model).weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else f"made by {type(model.get_output_embeddings()).__name__}"
        raise ValueError(
            f"model: expected a vocabulary head with floating-point weights, got {kind}; quantise all but the head "
            "(bitsandbytes does so by default)"
        )
    if all(p.is_meta for p in model.parameters()) and not any(hasattr(m, "_hf_hook") for m in model.modules()):
        raise ValueError(
            "model: its weights are on the meta device, which holds no numbers; load them, with from_pretrained or "
            "load_state_dict(…, assign=True)"
        )


def check_inputs(model: PreTrainedModel, names: Collection[str], function: str, own: Iterable[str]) -> None:
    """Refuse inputs that the model's forward does not name, because transformers ignores unknown keywords silently.

    Args:
        model: any model of transformers.
        names: the names of the inputs.
        function: the name of the function that was called, for the message.
        own: the keywords of that function, to suggest one.

    Raises:
        TypeError: an unknown keyword; the message suggests the nearest known one.
        ValueError: an input that has another name here, or that the function passes itself.
    """
    for name in names:
        if name in _TAKEN:
            raise ValueError(f"{name}: {function} takes none: {_TAKEN[name]}")
    check_names(body(model), names, function, own)


def check_names(module: nn.Module, names: Collection[str], function: str, own: Iterable[str]) -> None:
    """Refuse names that are no arguments of a module's forward; see `check_inputs`."""
    base = getattr(module, "_orig_mod", module)  # if torch.compile wraps the model
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [name for name, x in inspect.signature(base.forward).parameters.items() if x.kind in kinds]
    for name in names:
        if name not in known:
            near = _nearest(name, [*own, *(x for x in known if x not in _TAKEN)])
            raise TypeError(
                f"{function}: {name!r} is neither an argument of it nor an input of {type(base).__name__}"
                + (f"; did you mean {near!r}?" if near else f"; that takes {', '.join(known)}")
            )


def _nearest(name: str, known: Sequence[str]) -> str | None:
    close = get_close_matches(name, known, 1, 0.7)
    held = [x for x in known if name in x.split("_") or x in name.split("_")]
    return next(iter([*close, *held, *get_close_matches(name, known, 1, 0.5)]), None)


def check_length(model: PreTrainedModel, tokens: int, name: str, of: str = "") -> None:
    """Refuse texts longer than the model's positions; with rotary ones too, beyond which it is not trained.

    Raises:
        ValueError: the text is too long; the message begins with ``name``, and ends with ``of``, which text it is.
    """
    most = positions_of(model)
    if most is not None and tokens > most:
        raise ValueError(f"{name}: expected at most {most} tokens, the model's positions, got {tokens}{of}")


def check_words(model: PreTrainedModel, largest: int, name: str, of: str = "") -> None:
    """Refuse ids outside the model's vocabulary and the patches of its images; ``largest`` is the largest.

    Raises:
        ValueError: it is outside; the message begins with ``name``, and names ``of``, whose id it is.
    """
    limit, rows = id_limit(model), readout(model).weight.shape[0]
    if largest >= limit:
        has = f" and its {limit - rows} patches of images" if limit > rows else ""
        raise ValueError(
            f"{name}: id {largest}{of} is outside the model's vocabulary of {rows}{has}; is this its tokenizer?"
        )


def readable_ids(model: PreTrainedModel) -> int:
    """The number of ids that the embedding accepts."""
    embedding = model.get_input_embeddings()
    if isinstance(embedding, PatchEmbedding) and embedding.features is None:
        return 2**62  # its own error says what is missing
    rows: int = getattr(embedding, "num_embeddings", 0)
    return rows if model.get_output_embeddings() is None else max(id_limit(model), rows)


def id_limit(model: PreTrainedModel) -> int:
    """The number of ids that have a meaning: the words, and the patches of the images that were set."""
    embedding = model.get_input_embeddings()
    features = embedding.features if isinstance(embedding, PatchEmbedding) else None
    return readout(model).weight.shape[0] + (0 if features is None else len(features))
