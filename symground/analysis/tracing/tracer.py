"""Tracing a model: surprisal, layer saliency and per-head flow from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import tensor_of
from symground.analysis.probing import Asked, Examples, ImageQuestions, Probes, answered, check_fits, check_prompt
from symground.analysis.tracing.backward import Loss, Pass, check_unseen, gradient_x_input, run_pass, surprisal_at
from symground.analysis.tracing.collected import (
    Part,
    Results,
    blank,
    coordinates_of,
    dims_of,
    most_heads,
    scores_of,
    without_empty,
)
from symground.analysis.tracing.losses import Settings, has_crossings, trace_loss, trace_targets
from symground.analysis.tracing.sides import PREFIXES
from symground.analysis.tracing.split import Split
from symground.analysis.tracing.trace_input import KEYWORDS, TraceInput, of_examples, of_ids
from symground.errors import described, flag, integer
from symground.models import Mixer, mixers
from symground.models.attachment import reads_whole, untraced
from symground.models.passes import check_inputs, check_weights
from symground.models.trials import check_deterministic, check_lengths, verified_readout
from symground.running import progress


def trace(
    model: PreTrainedModel,
    input_ids: Tensor | Asked | Examples | Mapping[str, Any] | None = None,
    targets: Tensor | None = None,
    attention_mask: Tensor | None = None,
    groups: Mapping[str, Tensor | str] | None = None,
    *,
    span: Tensor | None = None,
    per_token: bool = False,
    prompt: str | Sequence[Mapping[str, Any]] | None = None,
    answer: str | None = None,
    tokenizer: Any = None,
    max_new_tokens: int = 64,
    source_groups: Mapping[str, Tensor] | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    saliency: bool = True,
    rows: bool = False,
    batch_size: int = 64,
    checkpoint: bool = False,
    offload: bool = False,
    **model_inputs: Any,
) -> xr.Dataset:
    """Trace the surprisal of ``targets`` back through every head.

    The loss is the sum over examples of the surprisal at p, each example's last valid token, so examples stay
    independent. With a ``span`` of the text's own tokens it is the sum of their surprisals, each given the tokens
    before it (teacher-forced). Saliency and flow are gradients of probes without storage. Each layer's gradients move
    to host memory once the backward pass has computed them, so a device holds the backward pass and the result of one
    layer (:func:`symground.trace_memory` estimates this memory).

    Args:
        model: attached (:func:`symground.attach`), and in evaluation or with an attention dropout of 0.
        input_ids: [B,T], a tensor, an array or lists; or examples of probes, which have their own targets and groups;
            or probes or questions about images, whose matched examples are traced. With ``loss``, and in a model with
            cross-attention, also the inputs of the model by name, as a tokenizer or another processor returns them; or
            None, and they are ``model_inputs``.
        targets: [B] ids predicted at p.
        span: in place of ``targets``, a [B,T] bool mask of the tokens of ``input_ids`` that are predicted, such as
            those of an answer. The prediction positions are then those before its tokens. A word of probes that has
            several tokens is such a span by itself.
        per_token: trace each token of the span by itself. All variables but ``surprisal`` get a dimension target after
            example, and one forward pass is followed by as many backward passes as the longest span has tokens; each
            costs about as much as the one without it, and the results take as many times their memory.
        attention_mask: [B,T], 1 for valid tokens, padding at the ends; None: all valid.
        groups: name → [B,T] bool masks that do not overlap. Every group is a key group and a query group. "prediction"
            is a further query group, the first: the prediction positions alone, which are removed from the others (per
            token, only that before the token itself). With None, the placeholders
            of images in a vision-language model's ids are the group "image"; without images there is no key group and
            no flow, and only the totals are computed.
        prompt: in place of ``input_ids``, a text, or the turns of a chat (mappings with role and content), to which the
            tokenizer's chat template is applied. The span is then its ``answer``. The groups are "prompt" and "answer"
            if none are given; a group may also be a phrase that the prompt has once. Its tokens are those that spell
            any of it, so that spaces and punctuation which a token has beside it count too; one that begins or ends
            within a token's letters or digits is refused.
        answer: the text that follows the prompt; None lets the model generate it, greedily.
        tokenizer: a fast one, for ``prompt``; None loads that of the folder or name that the model came from.
        max_new_tokens: the most tokens of an answer that is generated.
        source_groups: in a model with cross-attention, name → [B,S] masks of the positions that it reads: the encoder's
            or the image's.
        loss: in place of ``targets``, a function of the model's output that returns one number an example [B], such as
            a class's logit or a similarity. Any attached model will do, without a vocabulary too. Then there is no
            prediction position, T is the number of positions that its layers mix, the groups are both query and key
            groups, and ``loss`` takes the place of ``surprisal`` in the result. It is called once a batch, in order;
            each number comes from its own example, since what mixes examples would differ with ``batch_size``.
        saliency: also return the [example, layer, query, key] matrices; False saves their memory.
        rows: also return every head's own signed saliency at p, summed over the prediction positions of a span.
        batch_size: examples per pass.
        checkpoint: keep only the input of each layer, and recompute the layer in the backward pass.
        offload: keep activations in host memory between the passes (for models on a GPU).
        model_inputs: further inputs of the model as a processor returns them, by the parameter names of its base
            model's forward. If there are several batches, tensors have B as their first dimension.

    Returns:
        A Dataset with named coordinates. Layers and heads count from 0; a layer with fewer heads than others has NaN
        for the missing ones. Its variables:

        - surprisal (example), nats; with a span also token_surprisal (example, target), NaN where an example has fewer
          tokens in it than others, as all variables per token are;
        - saliency (example, layer, query, key): |Σ_h S_h|, with ``saliency``;
        - flow (example, layer, head, query_group, key_group): sums of |S_h|;
        - row_total (example, layer, head, query_group), matrix_total (example, layer, head): sums over all keys, and
          over all queries and keys;
        - rows (example, layer, head, key): S_h[p, key], signed, with ``rows``;
        - group (example, key): index of the key group, or -1;
        - the coordinates prediction (example), p, and target_token (example); of a span both (example, target), -1
          where an example has fewer; token (example, key): the ids, -1 at padding.

        In an encoder-decoder, ``input_ids`` (or its other inputs by name) are read by the encoder, and p is the last
        valid token of ``decoder_input_ids``. Its own layers have the variables above. Those of cross-attention begin
        with "cross_" and have the dimensions cross_layer, source and source_group in place of layer, key and
        key_group; those of the encoder begin with "encoder_" and have encoder_layer, source_query, source_query_group,
        source and source_group. ``source_groups`` (example, source) is the index of the source group. All layers are
        numbered in their order in the model. The same holds for the cross-attention of a decoder that reads images.

        The layers of a vision tower that is attached too (``parts``) have variables that begin with "vision_", with the
        dimensions example, image (the pictures or tiles of an example), vision_layer, head, patch_query and patch. The
        coordinates patch_row and patch_column say where each patch lies in the picture that the tower reads; they are
        -1 for its class token and where it is not known. A tower that is given grids of patches (Qwen-VL's) has them,
        and patch_frame of a video, for each (example, image, patch), and the matrices of smaller pictures are padded
        with 0. There are no groups of patches. The coordinate ``part`` of each kind of layer is "text" or "vision".

        An LSTM mixes positions without a matrix, so it has neither saliency nor flow. Its Dataset has input_x_gradient
        (example, key) in their place: gradient × input of each position's embedding, Σ_d e[d] · ∂L/∂e[d], signed, nats.
        A note in ``attrs`` says so.

    Raises:
        ValueError: a span that is empty in an example, that contains padding or a token that nothing stands before, or
            whose tokens the model sees before it predicts them; a loss that is not one number an example or does not
            depend on the model; shapes that do not fit, ids outside the vocabulary, overlapping groups, a cache, a
            model with dropout on or without weights, or a surprisal, loss or flow that is not finite (if a float16
            model overflows).
        TypeError: a keyword that is neither one of these nor an input of the model.
        RuntimeError: called inside torch.inference_mode().

    Source: Wang et al. 2023 (saliency), arXiv 2510.13796 (flow into the prediction position), Shrikumar et al. 2016
    ("Not just a black box", gradient × input).
    """
    batch_size = integer("batch_size", batch_size, 1)
    saliency, rows, per_token = flag("saliency", saliency), flag("rows", rows), flag("per_token", per_token)
    checkpoint, offload = flag("checkpoint", checkpoint), flag("offload", offload)
    max_new_tokens = integer("max_new_tokens", max_new_tokens, 1)
    if prompt is not None:
        check_prompt(prompt)
        others = ("input_ids", input_ids), ("targets", targets), ("attention_mask", attention_mask), ("span", span)
        for name, other in (*others, ("loss", loss)):
            if other is not None:
                raise ValueError(f"{name}: expected None with a prompt, whose answer is traced; got {described(other)}")
        check_weights(model)
        text = answered(model, prompt, answer, tokenizer, max_new_tokens)
        input_ids, span, groups = text.ids, text.answer, text.groups_of(groups)
    elif answer is not None or tokenizer is not None:
        name, came = ("tokenizer", tokenizer) if answer is None else ("answer", answer)
        raise ValueError(f"{name}: expected None without a prompt, got {described(came)}")
    layers = mixers(model, vision=True)
    of_probes, whole = isinstance(input_ids, (Examples, Probes, ImageQuestions)), reads_whole(model)
    if of_probes and whole:
        raise ValueError(
            f"input_ids: {type(model).__name__} does not run on the words of probes alone; expected its inputs by name"
        )
    crossing = (has_crossings(layers) or whole) and not of_probes
    if input_ids is None and (loss is not None or crossing):
        input_ids = {}
    if loss is None and not crossing:
        check_inputs(model, model_inputs, "symground.trace", KEYWORDS)
    if torch.is_inference_mode_enabled():
        raise RuntimeError("trace takes a gradient and cannot run inside torch.inference_mode()")
    if per_token and span is None and not of_probes:
        raise ValueError("per_token: expected False without a span, since each example has one target")
    settings = Settings(saliency, rows, span is not None, per_token, batch_size, checkpoint, offload)
    beside = {"targets": targets, "span": span, "attention_mask": attention_mask, "groups": groups, **model_inputs}
    if loss is not None:
        for name, value in (("targets", targets), ("span", span), ("rows", rows or None)):
            if value is not None:
                raise ValueError(f"{name}: a loss has no prediction position; leave {name} out")
        return trace_loss(model, layers, input_ids, attention_mask, groups, source_groups, loss, settings, model_inputs)
    if crossing:
        return trace_targets(
            model, layers, input_ids, targets, span, attention_mask, groups, source_groups, settings, model_inputs
        )
    if source_groups is not None:
        raise ValueError("source_groups: expected None, since no layer reads other positions than the text's")
    layers = tuple(mixer for mixer in layers if mixer.kind not in PREFIXES)  # of probes, the text's layers alone
    if isinstance(input_ids, (Probes, ImageQuestions)):
        check_fits(model, input_ids, images=True, name="input_ids")
        given = of_examples(model, input_ids.matched(), beside)
    else:
        model_inputs = {n: tensor_of(x, n) if isinstance(x, np.ndarray) else x for n, x in model_inputs.items()}
        check_weights(model)
        check_deterministic(model)
        if isinstance(input_ids, Examples):
            given = of_examples(model, input_ids, beside)
        else:
            given = of_ids(model, input_ids, targets, span, attention_mask, groups, model_inputs, batch_size)
    return _trace(model, layers, given, settings)


def _trace(model: PreTrainedModel, layers: tuple[Mixer, ...], given: TraceInput, settings: Settings) -> xr.Dataset:
    """Trace the input in batches."""
    saliency, rows, span, per_token, batch_size, checkpoint, offload = settings
    (count, length), targets = given.ids.shape, given.targets
    sizes = (length, length), (len(given.query_names), len(given.key_names))
    queries, split = given.query_groups, None
    if per_token:
        split = Split.at(targets.positions, given.key_groups, given.query_names, given.key_names)
        queries = split.groups(queries, targets.positions)
    each = targets.positions.shape[1] if per_token else None
    results = Results(len(layers), most_heads(layers), count, *sizes, saliency, rows, each)
    whole = Part(layers, (queries, given.key_groups), results, split=split)
    surprisal = np.empty(targets.positions.shape, np.float32)
    head, parts = verified_readout(model), []
    with progress("trace", -(-count // batch_size), quick=True) as bar:
        for start in range(0, count, batch_size):
            at = slice(start, min(start + batch_size, count))
            check_lengths(model, given.lengths[at], given.width)
            batch = Pass(given.ids[at], targets.part(at), given.inputs(at))
            if span:  # of examples, by their lengths
                check_unseen(model, batch)
            if layers:
                loss = Loss(partial(surprisal_at, model, head, batch), "surprisal", head.weight)
                positions = batch.targets.positions
                surprisal[at] = run_pass(model, loss, [whole.of(at)], at, checkpoint, offload, positions, per_token)
            else:
                parts.append(gradient_x_input(model, head, batch, per_token))
            bar.advance()
    arrays = results.arrays() if layers else {n: np.concatenate([x[n] for x in parts]) for n in parts[0]}
    scores, coordinates = scores_of(
        targets, arrays.pop("surprisal", surprisal), span or per_token or targets.positions.shape[1] > 1
    )
    if per_token:
        blank(arrays, targets)
    variables = {**scores, **{name: (dims_of(name, per_token), value) for name, value in arrays.items()}}
    tokens = torch.where(given.valid, given.ids, -1).cpu().numpy()
    coords: dict[str, Any] = {
        "key_group": given.key_names, "token": (("example", "key"), tokens), **coordinates, **given.labels,
    }  # fmt: skip
    note = {"note": f"{type(model).__name__} mixes positions by no matrix: gradient × input, no saliency, no heads"}
    if layers:
        coords |= {**coordinates_of(layers), "query_group": given.query_names}
    found = xr.Dataset(
        {**variables, "group": (("example", "key"), given.key_groups.cpu().numpy())},
        coords,
        attrs={"untraced": ", ".join(untraced(model))} if layers else note,
    )
    return without_empty(found)
