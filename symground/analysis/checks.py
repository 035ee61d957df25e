"""Argument checks of the analyses. Each error names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from symground.errors import described
from symground.models.passes import check_length, readable_ids


def words_of(value: Any, name: str) -> list[str]:
    """Words as a list; a single string is refused.

    Raises:
        ValueError: names ``name``.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name}: expected a list of words, such as ['dog', 'cat']; got {described(value)}")
    words = list(value)
    wrong = [word for word in words if not isinstance(word, str) or not word.strip()]
    if wrong:
        raise ValueError(f"{name}: expected words, got {described(wrong[0])}")
    return words


def tensor_of(value: Any, name: str) -> Tensor:
    """A tensor, an array or nested lists as a tensor.

    Raises:
        ValueError: names ``name``.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (np.ndarray, Sequence)) and not isinstance(value, str):
        try:
            return torch.as_tensor(np.asarray(value))
        except (ValueError, TypeError):
            pass
    raise ValueError(f"{name}: expected a tensor, an array or lists of numbers of one length, got {described(value)}")


def ids_of(value: Any, name: str, ndim: int, limit: int) -> Tensor:
    """Token ids as an int64 tensor of ``ndim`` dimensions; each id is at least 0 and below ``limit``.

    Raises:
        ValueError: names ``name``.
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


def texts_of(model: PreTrainedModel, value: Any, name: str) -> Tensor:
    """Texts as ids [B,T] that the model's embedding and positions can read.

    Raises:
        ValueError: names ``name``.
    """
    ids = ids_of(value, name, 2, readable_ids(model))
    check_length(model, ids.shape[1], name)
    return ids


def mask_of(value: Any, name: str, shape: torch.Size) -> Tensor:
    """A mask [B,T] of 0 and 1.

    Raises:
        ValueError: names ``name``.
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


def check_frame(value: Any, name: str, columns: Iterable[str], made: str) -> None:
    """Refuse anything but a DataFrame with these columns, such as ``made`` returns.

    Raises:
        ValueError: names ``name``.
    """
    if not isinstance(value, pd.DataFrame):
        raise ValueError(f"{name}: expected a DataFrame as {made} gives it, got {described(value)}")
    for column in columns:
        if column not in value:
            raise ValueError(f"{name}: expected a column {column!r} as {made} gives it, got {list(value.columns)}")


#: Variables of a trace; a Dataset without any of them is not a trace.
_TRACED = {"surprisal", "saliency", "flow", "matrix_total", "rows", "input_x_gradient"}


def check_trace(value: Any, name: str = "trace") -> None:
    """Refuse anything but the result of a trace.

    Raises:
        ValueError: names ``name``.
    """
    if not isinstance(value, xr.Dataset) or not _TRACED & set(value.data_vars):
        raise ValueError(f"{name}: expected what symground.trace(model, …) gives, got {described(value)}")


def check_mapping(value: Any, name: str) -> Mapping[str, Any]:
    """A mapping from names.

    Raises:
        ValueError: names ``name``.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected a mapping from names, got {described(value)}")
    return value
