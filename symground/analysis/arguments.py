"""What a public function was given in place of what it takes: messages that name the argument and say what to do."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn
from transformers import PreTrainedModel

from symground.analysis.probes import Probes
from symground.analysis.questions import ImageQuestions
from symground.models.attach import check_model
from symground.models.images import PatchEmbedding, id_limit
from symground.models.readout import readout

#: What a trace gives the model itself, and why nobody else may.
_TAKEN = {
    "input_ids": "it is the second argument",
    "inputs_embeds": "saliency is of ids; give input_ids",
    "past_key_values": "a text is traced whole; give all of it as input_ids, without a cache",
    "cache": "a text is traced whole; give all of it as input_ids, without a cache",
    "cache_params": "a text is traced whole; give all of it as input_ids, without a cache",
    "use_cache": "a text is traced whole, without a cache",
    "return_dict": "the model's output is read by its names",
}


def told(value: Any) -> str:
    """What something is, in a few words."""
    if isinstance(value, (str, bool, int, float)):
        text = repr(value)
        return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '…'}"
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" {list(shape)}" if isinstance(shape, tuple) and shape else "")


def check_asked(value: Any, name: str = "probes", *, images: bool = False) -> None:
    """Refuse what are no probes, or, without ``images``, questions about images.

    Raises:
        ValueError: by ``name``.
    """
    if isinstance(value, ImageQuestions) and not images:
        raise ValueError(
            f"{name}: expected probes, got questions about images; those are for trace, intervene, monitor, steering "
            "and answers"
        )
    if isinstance(value, Probes) or (images and isinstance(value, ImageQuestions)):
        return
    made = "symground.probes(tokenizer)" + (" or symground.image_questions(processor, …)" if images else "")
    raise ValueError(f"{name}: expected what {made} makes, got {told(value)}")


def check_frame(value: Any, name: str, columns: Iterable[str], made: str) -> None:
    """Refuse what is no DataFrame with these columns, such as ``made`` gives.

    Raises:
        ValueError: by ``name``.
    """
    if not isinstance(value, pd.DataFrame):
        raise ValueError(f"{name}: expected a DataFrame as {made} gives it, got {told(value)}")
    for column in columns:
        if column not in value:
            raise ValueError(f"{name}: expected a column {column!r} as {made} gives it, got {list(value.columns)}")


def check_trace(value: Any, name: str = "trace") -> None:
    """Refuse what no trace gave.

    Raises:
        ValueError: by ``name``.
    """
    if not isinstance(value, xr.Dataset) or "surprisal" not in value:
        raise ValueError(f"{name}: expected what symground.trace(model, …) gives, got {told(value)}")


def words_of(value: Any, name: str) -> list[str]:
    """Words as a list; one string is no list of its letters.

    Raises:
        ValueError: by ``name``.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name}: expected a list of words, such as ['dog', 'cat']; got {told(value)}")
    words = list(value)
    wrong = [word for word in words if not isinstance(word, str) or not word.strip()]
    if wrong:
        raise ValueError(f"{name}: expected words, got {told(wrong[0])}")
    return words


def tensor_of(value: Any, name: str) -> Tensor:
    """A tensor, an array or nested lists as a tensor.

    Raises:
        ValueError: by ``name``.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (np.ndarray, Sequence)) and not isinstance(value, str):
        try:
            return torch.as_tensor(np.asarray(value))
        except (ValueError, TypeError):
            pass
    raise ValueError(f"{name}: expected a tensor, an array or lists of numbers of one length, got {told(value)}")


def ids_of(value: Any, name: str, ndim: int, limit: int) -> Tensor:
    """Token ids as an int64 tensor of so many dimensions, each from 0 to below ``limit``.

    Raises:
        ValueError: by ``name``.
    """
    ids = tensor_of(value, name)
    shape = "[B,T]" if ndim == 2 else "[B]"
    if ids.ndim != ndim:
        raise ValueError(f"{name}: expected shape {shape}, got {list(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name}: expected token ids, integers {shape}, got {ids.dtype}")
    if not ids.numel():
        raise ValueError(f"{name}: expected at least one token and one example, got shape {list(ids.shape)}")
    ids = ids.long()
    wrong = ids[(ids < 0) | (ids >= limit)]
    if len(wrong):
        raise ValueError(
            f"{name}: expected ids from 0 to {limit - 1}, the model's vocabulary, got {int(wrong[0])}; is this its "
            "tokenizer?"
        )
    return ids


def mask_of(value: Any, name: str, shape: torch.Size) -> Tensor:
    """A mask [B,T] of 0 and 1.

    Raises:
        ValueError: by ``name``.
    """
    mask = tensor_of(value, name)
    if mask.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(mask.shape)}")
    wrong = mask[(mask != 0) & (mask != 1)]
    if len(wrong):
        raise ValueError(
            f"{name}: expected 0 and 1 (1 for valid tokens), got {wrong[0].item():g}; texts packed into one row are "
            "traced in rows of their own"
        )
    return mask


def check_inputs(model: PreTrainedModel, names: Collection[str], function: str, own: Iterable[str]) -> None:
    """Refuse further inputs that are no named parameters of the model's forward: transformers swallows any keyword.

    Args:
        model: any.
        names: of the inputs.
        function: that was called.
        own: its own keywords, of which one may have been meant.

    Raises:
        TypeError: names the keyword and the nearest that there is.
        ValueError: an input that is named otherwise, or that the function gives itself.
    """
    base = getattr(model.base_model, "_orig_mod", model.base_model)  # within torch.compile's wrapper
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [name for name, x in inspect.signature(base.forward).parameters.items() if x.kind in kinds]
    for name in names:
        if name in _TAKEN:
            raise ValueError(f"{name}: {function} takes none: {_TAKEN[name]}")
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


def check_weights(model: Any) -> None:
    """Refuse what is no model of transformers, or one whose weights are not there or are no floating-point numbers.

    Raises:
        ValueError: says which.
    """
    check_model(model)
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


def check_length(model: PreTrainedModel, tokens: int, name: str) -> None:
    """Refuse texts longer than the positions that a model has learnt; others can be gone beyond.

    Raises:
        ValueError: by ``name``.
    """
    most = positions_of(model)
    tables = [m for m in model.base_model.modules() if isinstance(m, nn.Embedding)]
    learnt = any(m is not model.get_input_embeddings() and m.num_embeddings - (most or 0) in (0, 2) for m in tables)
    if most is not None and learnt and tokens > most:
        raise ValueError(f"{name}: expected at most {most} tokens, the model's positions, got {tokens}")


def positions_of(model: PreTrainedModel) -> int | None:
    """How many positions a model's configuration says it has."""
    text = model.config.get_text_config()
    found: int | None = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return found


def readable_ids(model: PreTrainedModel) -> int:
    """How many ids a model can be given."""
    embedding = model.get_input_embeddings()
    if isinstance(embedding, PatchEmbedding) and embedding.features is None:
        return 2**62  # it says itself what lacks
    return max(id_limit(model), getattr(embedding, "num_embeddings", 0))


def check_mapping(value: Any, name: str) -> Mapping[str, Any]:
    """A mapping from names.

    Raises:
        ValueError: by ``name``.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected a mapping from names, got {told(value)}")
    return value
