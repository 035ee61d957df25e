"""A model's attention weights, read in forward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.probing import Examples, ImageQuestions, Probes
from symground.analysis.reading.given import given_of
from symground.analysis.reading.kinds_reader import KindsReader
from symground.analysis.reading.requests import KEYWORDS, Request, check_limit, request_of
from symground.analysis.reading.text_reader import TextReader, chosen_of, readable
from symground.analysis.tracing import PREFIXES, inputs_by_name
from symground.errors import integer
from symground.models import mixers
from symground.models.hooks import CACHES


def attention(
    model: PreTrainedModel,
    input_ids: Any = None,
    attention_mask: Any = None,
    *,
    rows: str | Tensor | None = "last",
    groups: Mapping[str, Tensor] | None = None,
    source_groups: Mapping[str, Tensor] | None = None,
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
        model: made traceable by :func:`symground.attach`. Of Mamba-2's layers rows, mass and received are those of |M|,
            whose rows sum to any number. The rest has no meaning there: it is NaN, and -1 for keys. ``attrs["note"]``
            says so.
        input_ids: [B,T]; None if ``inputs_embeds`` [B,T,D] is given. Or examples of probes, or probes or questions
            about images, whose matched examples are read. These have their own groups, and
            :meth:`symground.analysis.ImageQuestions.on_picture` spreads a row over the pixels of a picture.
        attention_mask: [B,T], 0 at padding; as in transformers.
        rows: whose rows of A are returned: "last", each example's last valid token; "all"; positions [B,R]; or None.
            Encoders of another text and vision towers return rows with "all" alone.
        groups: names → [B,T] masks of positions, which do not overlap; asks for mass. With None, texts with images have
            the groups "system" (what stands before the first image), "image" (the placeholders), "question" (what
            follows) and "answer" (where ``assistant_masks`` [B,T], which a chat template returns, has 1).
        source_groups: in a model with cross-attention, names → [B,S] masks of the positions that it reads, likewise.
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
        - entropy in nats, the largest weight, its key (int64) and score, and the mean distance, each (example,
          layer, head, query);
        - topk_weight and topk_key in int64 (example, layer, head, query, rank);
        - pooled (example, layer, head, query_block, key_block).

        In an encoder-decoder, where ``input_ids`` or other inputs by name are read by the encoder, these are of the
        layers of ``decoder_input_ids``. The variables of its other layers begin with "cross_" and "encoder_", those of
        a model that reads an image by cross-attention with "cross_", and those of a vision tower that is attached too
        (``parts``) with "vision_"; their dimensions are named as in :func:`symground.trace`. Models of other inputs
        than text, such as vision transformers, take these by name.

        The coordinates token (example, key), the ids of a text (-1 at padding), valid (example, query) and group_size
        (example, query_group) say what stands where, which queries are not padding, and how many a group has. Padding
        is no valid key, and its own rows mean nothing.

    Raises:
        ValueError: rows out of range, groups that do not fit or overlap, ``topk`` beyond the length, a result larger
            than ``limit``, a model in training mode with dropout, or one that is not attached.
        TypeError: a keyword that is neither one of these nor an input of the model.

    Source: :func:`symground.ops.attention_rows`, :func:`symground.ops.ssd_rows` and their companions, which give the
    formulas.
    """
    batch_size = integer("batch_size", batch_size, 1)
    asked = request_of(rows, received, summary, topk, block, reduce)
    reader = _reader(model, input_ids, attention_mask, groups, source_groups, asked, layers, batch_size, model_inputs)
    check_limit(reader.bytes, limit)
    return reader.read()


def attention_memory(
    model: PreTrainedModel, input_ids: Any = None, attention_mask: Any = None, *, rows: str | Tensor | None = "last",
    groups: Mapping[str, Tensor] | None = None, source_groups: Mapping[str, Tensor] | None = None,
    received: bool = False, summary: bool = False, topk: int | None = None, block: int | None = None,
    reduce: str = "sum", layers: Sequence[int] | None = None, batch_size: int = 8, limit: int | None = None,
    **model_inputs: Any,
) -> int:  # fmt: skip
    """The bytes in host memory of what :func:`symground.attention` would return.

    Nothing is computed, but in a model with several kinds of layers a pass, which says what they mix.

    Args:
        model, input_ids, attention_mask, rows, groups, source_groups, received, summary, topk, block, reduce,
            layers, batch_size, limit, model_inputs: as there, so that a call of it can be passed on.

    Raises:
        ValueError, TypeError: as there.
    """
    asked, batch_size = request_of(rows, received, summary, topk, block, reduce), integer("batch_size", batch_size, 1)
    limit = None if limit is None else integer("limit", limit, 0)
    return _reader(
        model, input_ids, attention_mask, groups, source_groups, asked, layers, batch_size, model_inputs
    ).bytes


def _reader(
    model: PreTrainedModel, given: Any, attention_mask: Any, groups: Any, source_groups: Any, asked: Request,
    layers: Any, batch_size: int, more: Mapping[str, Any],
) -> TextReader | KindsReader:  # fmt: skip
    """What reads these inputs of the model."""
    for name in CACHES:
        if more.get(name) is not None:
            raise ValueError(
                f"{name}: expected None, since each text is read at once; symground.observe reads any pass"
            )
    every = mixers(model, vision=True)
    of_probes = isinstance(given, (Examples, Probes, ImageQuestions))
    embeds = more.get("inputs_embeds")
    words = given is not None or embeds is not None or model.main_input_name == "input_ids"
    words = words and not _has_towers(model)
    if of_probes or (words and every and not any(mixer.kind in PREFIXES for mixer in every)):
        read = readable(model, layers, of_probes)
        if source_groups is not None:
            raise ValueError("source_groups: expected None, since no layer reads other positions than the text's")
        return TextReader(
            model, read, given_of(model, given, attention_mask, groups, batch_size, more), asked, batch_size
        )
    beside = dict(more)
    answers = beside.pop("assistant_masks", None)
    named = inputs_by_name(
        model, {} if given is None else given, attention_mask, beside, "symground.attention", KEYWORDS
    )
    read = chosen_of(every, layers)
    return KindsReader(model, every, read, named, (groups, source_groups, answers), asked, batch_size)


def _has_towers(model: PreTrainedModel) -> bool:
    """Whether a model reads a text and a picture apart from each other, as CLIP does; it has no one embedding."""
    try:
        model.get_input_embeddings()
    except NotImplementedError:
        return True
    return False
