"""A model's attention weights, read in forward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import tensor_of
from symground.analysis.probing import Examples, ImageQuestions, Probes
from symground.analysis.reading.given import Given, given_of
from symground.analysis.reading.layers import Wanted, arrays_of, bytes_of, dataset_of, reading
from symground.analysis.tracing import (
    group_ids,
)
from symground.errors import choice, described, flag, integer, is_integer, is_list
from symground.models import Mixer, mixers
from symground.models.hooks import body, device_of
from symground.models.trials import check_deterministic
from symground.running import LARGE_PASS, progress, return_freed_memory


def attention(
    model: PreTrainedModel,
    input_ids: Any = None,
    attention_mask: Any = None,
    *,
    rows: str | Tensor | None = "last",
    groups: Mapping[str, Tensor] | None = None,
    received: bool = False,
    summary: bool = False,
    topk: int | None = None,
    block: int | None = None,
    reduce: str = "sum",
    layers: Sequence[int] | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    **model_inputs: Any,
) -> xr.Dataset:
    """Read the attention weights A of every layer and head, forward only and without the matrices.

    A layer's results are computed from its queries, keys and log-sum-exp as soon as it has run, and move to host
    memory, so a device holds what a forward pass holds, and the results of one layer. No logits are computed.

    Args:
        model: made traceable by :func:`symground.attach`; one that reads a text, without cross-attention. Of Mamba-2's
            layers rows, mass and received are those of |M|, whose rows sum to any number. The rest has no meaning
            there: it is NaN, and -1 for keys. ``attrs["note"]`` says so.
        input_ids: [B,T]; None if ``inputs_embeds`` [B,T,D] is given. Or examples of probes, or probes or questions
            about images, whose matched examples are read. These have their own groups, and
            :meth:`symground.analysis.ImageQuestions.on_picture` spreads a row over the pixels of a picture.
        attention_mask: [B,T], 0 at padding; as in transformers.
        rows: whose rows of A are returned: "last", each example's last valid token; "all"; positions [B,R]; or None.
        groups: names → [B,T] masks of positions, which do not overlap; asks for mass. With None, texts with images have
            the groups "system" (what stands before the first image), "image" (the placeholders), "question" (what
            follows) and "answer" (where ``assistant_masks`` [B,T], which a chat template returns, has 1).
        received: whether to return what each key receives, by group of queries; without groups from all queries.
        summary: whether to return entropy, largest weight, its key and score, and mean distance of each row.
        topk: how many of the largest weights of each row to return.
        block: the side of the blocks over which A is pooled.
        reduce: "sum" or "max", of the blocks.
        layers: the numbers of the layers to read; None reads all.
        batch_size: the examples of one pass.
        limit: the most bytes that the result may have in host memory (:func:`symground.attention_memory`); None
            is any number.
        model_inputs: further inputs of the model (``pixel_values``, ``position_ids``, ``inputs_embeds``), and
            ``assistant_masks``.

    Returns:
        An xarray Dataset, of what was asked for, float32 unless said otherwise:

        - rows (example, layer, head, query, key), or (…, row, key) if a result of every query is asked for too; the
          coordinate row_position (example, query or row) is the position of each row;
        - mass (example, layer, head, query_group, key_group): Σ A between groups; the query groups are "prediction",
          each example's last valid token, and ``groups`` without it;
        - received (example, layer, head, query_group, key); without groups the one query group is "all";
        - entropy in nats, weight, score, distance, and key in int64 (example, layer, head, query);
        - topk_weight and topk_key in int64 (example, layer, head, query, rank);
        - pooled (example, layer, head, query_block, key_block).

        The coordinates valid (example, query) and group_size (example, query_group) say which queries are not padding,
        and how many a group has. Padding is no valid key, and its own rows mean nothing.

    Raises:
        ValueError: rows out of range, groups that do not fit or overlap, ``topk`` beyond the length, a result larger
            than ``limit``, a model in training mode with dropout, one that is not attached or has cross-attention.
        TypeError: a keyword that is neither one of these nor an input of the model.

    Source: :func:`symground.ops.attention_rows`, :func:`symground.ops.ssd_rows` and their companions, which give the
    formulas.
    """
    read = readable(model, layers, isinstance(input_ids, (Examples, Probes, ImageQuestions)))
    batch_size = integer("batch_size", batch_size, 1)
    given = given_of(model, input_ids, attention_mask, groups, batch_size, model_inputs)
    asked = _asked(given, rows, received, summary, topk, block, reduce)
    check_deterministic(model)
    _check_limit(bytes_of(read, asked), limit)
    arrays, device, count = arrays_of(read, asked), device_of(model), given.examples
    width = getattr(model.config.get_text_config(), "hidden_size", 0)
    large = len(read) * min(batch_size, count) * given.length * width >= LARGE_PASS
    returns = return_freed_memory(device.type == "cpu" and large)
    with torch.inference_mode(), returns, progress("attention", -(-count // batch_size), quick=True) as bar:
        for start in range(0, count, batch_size):
            at = slice(start, min(start + batch_size, count))
            here = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in given.inputs(at).items()}
            with reading(read, asked, at, arrays):
                body(model)(**here, use_cache=False)
            bar.advance()
    return dataset_of(model, read, asked, arrays)


def attention_memory(
    model: PreTrainedModel, input_ids: Any = None, attention_mask: Any = None, *, rows: str | Tensor | None = "last",
    groups: Mapping[str, Tensor] | None = None, received: bool = False, summary: bool = False, topk: int | None = None,
    block: int | None = None, layers: Sequence[int] | None = None, **model_inputs: Any,
) -> int:  # fmt: skip
    """The bytes in host memory of what :func:`symground.attention` would return; nothing is computed.

    Args:
        model, input_ids, attention_mask, rows, groups, received, summary, topk, block, layers, model_inputs: as there.

    Raises:
        ValueError, TypeError: as there.
    """
    read = readable(model, layers, isinstance(input_ids, (Examples, Probes, ImageQuestions)))
    given = given_of(model, input_ids, attention_mask, groups, 2**62, model_inputs)
    return bytes_of(read, _asked(given, rows, received, summary, topk, block, "sum"))


def readable(
    model: PreTrainedModel, chosen: Sequence[int] | None = None, of_probes: bool = False
) -> tuple[Mixer, ...]:  # fmt: skip
    """The layers to read: of the numbers ``chosen``; of probes, which are words alone, those that mix the text."""
    every = mixers(model)
    layers = tuple(mixer for mixer in every if mixer.kind in ("attention", "mamba2"))
    others = sorted({mixer.kind for mixer in every if mixer not in layers})
    if (others and not of_probes) or not layers:
        raise ValueError(
            "model: expected one whose layers mix the positions of a text by attention or Mamba-2, got "
            + type(model).__name__
            + (f" with layers of kind {', '.join(others)}" if others else " without such layers")
        )
    if chosen is None:
        return layers
    known = {mixer.layer: mixer for mixer in layers}
    wrong = [x for x in (chosen if is_list(chosen) else [chosen]) if not is_integer(x) or x not in known]
    if wrong or not len(chosen):
        raise ValueError(f"layers: expected numbers of layers among {sorted(known)}, got {described(wrong or chosen)}")
    return tuple(known[n] for n in sorted({int(x) for x in chosen}))


def _asked(
    given: Given, rows: str | Tensor | None, received: bool, summary: bool, topk: int | None, block: int | None,
    reduce: str,
) -> Wanted:  # fmt: skip
    length, like = given.length, given.valid.long()
    topk = None if topk is None else integer("topk", topk, 1, length)
    queries, keys = (group_ids(of, like) if of else None for of in (given.queries, given.keys))
    return Wanted(
        given.examples, length, length, given.valid, _rows_of(rows, given.prediction, length), queries, keys,
        tuple(given.queries), tuple(given.keys), flag("received", received), flag("summary", summary), topk,
        0 if block is None else integer("block", block, 1), choice("reduce", reduce, ("sum", "max")) == "max",
    )  # fmt: skip


def _rows_of(rows: Any, last: Tensor, length: int) -> Tensor | None:
    """Positions [N,R]."""
    if rows is None:
        return None
    if isinstance(rows, str):
        every = choice("rows", rows, ("last", "all")) == "all"
        return torch.arange(length).expand(len(last), -1) if every else last[:, None]
    found = tensor_of(rows, "rows")
    if found.ndim != 2 or len(found) != len(last) or found.is_floating_point():
        raise ValueError(f"rows: expected positions [B,R] = [{len(last)}, any], got {list(found.shape)} {found.dtype}")
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < length:
        wrong = found[(found < 0) | (found >= length)][0]
        raise ValueError(f"rows: expected positions from 0 to {length - 1}, got {int(wrong)}")
    return found.long().cpu()


def _check_limit(needed: int, limit: int | None) -> None:
    if limit is not None and needed > integer("limit", limit, 0):
        raise ValueError(f"limit: the result needs {needed} bytes in host memory, got a limit of {limit}; ask for less")
