"""Tracing a model: surprisal, layer saliency and per-head flow from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import check_mapping, check_trace, ids_of, mask_of, tensor_of
from symground.analysis.probing.examples import PATCHES, Examples
from symground.analysis.probing.fitting import check_asked, check_fits
from symground.analysis.probing.questions import Asked, ImageQuestions
from symground.analysis.probing.sentence_probes import Probes
from symground.analysis.tracing.backward import Pass, Results, gradient_x_input, run_pass
from symground.models import mixers
from symground.models.passes.inputs import check_inputs, check_length, check_weights, readable_ids
from symground.models.trials.batch_invariance import check_lengths
from symground.models.trials.determinism import check_deterministic
from symground.models.trials.output_head import readout, verified_readout
from symground.progress import progress

PREDICTION = "prediction"
_KEYWORDS = ("targets", "attention_mask", "groups", "saliency", "rows", "batch_size", "checkpoint", "offload")
_DIMS = {
    "surprisal": ("example",),
    "saliency": ("example", "layer", "query", "key"),
    "flow": ("example", "layer", "head", "query_group", "key_group"),
    "row_total": ("example", "layer", "head", "query_group"),
    "matrix_total": ("example", "layer", "head"),
    "rows": ("example", "layer", "head", "key"),
    "input_x_gradient": ("example", "key"),
}


def trace(
    model: PreTrainedModel,
    input_ids: Tensor | Asked | Examples,
    targets: Tensor | None = None,
    attention_mask: Tensor | None = None,
    groups: Mapping[str, Tensor] | None = None,
    *,
    saliency: bool = True,
    rows: bool = False,
    batch_size: int = 64,
    checkpoint: bool = False,
    offload: bool = False,
    **model_inputs: Any,
) -> xr.Dataset:
    """Trace the surprisal of ``targets`` back through every head.

    The loss is the sum over examples of the surprisal at p, each example's last valid token, so examples stay
    independent. Saliency and flow are gradients of zero-storage probes, and each layer's leave for host memory when the
    backward pass has made them: a device holds the backward pass and one layer's result
    (:func:`symground.trace_memory` says how much that is).

    Args:
        model: attached (:func:`symground.attach`) and in evaluation, or with an attention dropout of 0.
        input_ids: [B,T], a tensor, an array or lists; or examples of probes, which have their own targets and groups;
            or probes, or questions about images, for their matched examples.
        targets: [B] ids predicted at p.
        attention_mask: [B,T], 1 for valid tokens, padding at the ends; None: all valid.
        groups: name → [B,T] bool masks that do not overlap. All are key groups; as query groups they come after
            "prediction", which is p alone (taken out of any other query group). None: "image", the placeholders of
            images in a vision-language model's ids; else no key groups, so the flow is empty, while the totals stand.
        saliency: also return the [example, layer, query, key] matrices; False saves their memory.
        rows: also return every head's own signed saliency at p.
        batch_size: examples per pass.
        checkpoint: keep only what each layer is given, and run it once more on the way back.
        offload: what is kept waits in host memory (with models on a GPU).
        model_inputs: further inputs of the model, named parameters of its base model's forward, as a processor gives
            them; of several batches tensors have B as their first dimension.

    Returns:
        A Dataset with named coordinates: surprisal (example), nats; saliency (example, layer, query, key), |Σ_h S_h|;
        flow (example, layer, head, query_group, key_group) of |S_h|; row_total (example, layer, head, query_group);
        matrix_total (example, layer, head); with ``rows``, rows (example, layer, head, key), S_h[p, key], signed;
        group (example, key), the key group's index or -1; and the coordinate prediction (example). Layers and heads
        count from 0. A layer with fewer heads than others has NaN there.

        An LSTM mixes positions by no matrix and has neither saliency nor flow. What it has is input_x_gradient
        (example, key), the gradient × input of each position's embedding, Σ_d e[d] · ∂L/∂e[d], signed, nats; its
        ``attrs`` say so.

    Raises:
        ValueError: shapes that do not fit, ids outside the vocabulary, overlapping groups, a cache, a model with
            dropout on, without weights, or with a surprisal or a flow that is not finite, as a float16 model's that
            overflows.
        TypeError: a keyword that is neither one of these nor an input of the model.
        RuntimeError: called inside torch.inference_mode().

    Source: Wang et al. 2023 (saliency), arXiv 2510.13796 (flow into the prediction position), Shrikumar et al. 2016
    ("Not just a black box", gradient × input).
    """
    check_weights(model)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    layers = mixers(model)
    check_inputs(model, model_inputs, "symground.trace", _KEYWORDS)
    if torch.is_inference_mode_enabled():
        raise RuntimeError("trace takes a gradient and cannot run inside torch.inference_mode()")
    labels: dict[str, Any] = {}
    if isinstance(input_ids, (Probes, ImageQuestions)):
        check_fits(model, input_ids, images=True)
        input_ids = input_ids.matched()
    else:
        check_deterministic(model)
    if isinstance(input_ids, Examples):
        given = {"targets": targets, "attention_mask": attention_mask, "groups": groups, **model_inputs}
        if any(value is not None for value in given.values()):
            name = next(name for name, value in given.items() if value is not None)
            raise ValueError(f"{name}: probes and questions bring their own; expected none beside them")
        examples = input_ids
        ids, p, wanted = examples.input_ids, examples.prediction, examples.targets
        query_masks, key_masks = examples.query_masks, examples.key_masks
        labels = {"context": ("example", examples.context), "noun": ("example", examples.noun)}
        # Right padding needs no mask: no token that counts comes after it.
        inputs: Callable[[slice], Mapping[str, Any]] = examples.given
        lengths, masked = p + 1, False
    else:
        if targets is None:
            raise ValueError("targets: expected the ids [B] to predict, got None")
        if isinstance(input_ids, str) or not hasattr(input_ids, "__len__"):
            check_asked(input_ids, "input_ids", images=True)
        ids = ids_of(input_ids, "input_ids", 2, readable_ids(model))
        check_length(model, ids.shape[1], "input_ids")
        wanted = ids_of(targets, "targets", 1, readout(model).weight.shape[0]).to(ids.device)
        if len(wanted) != len(ids):
            raise ValueError(f"targets: expected shape [B] = [{len(ids)}], got {list(wanted.shape)}")
        if attention_mask is not None:
            attention_mask = mask_of(attention_mask, "attention_mask", ids.shape).to(ids.device)
            if not bool(attention_mask.any(-1).all()):
                raise ValueError("attention_mask: expected at least one valid token in every example")
        position = torch.arange(ids.shape[1], device=ids.device)
        valid = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        p = (valid * position).amax(-1)
        lengths, masked = valid.sum(-1), attention_mask is not None
        groups = image_group(model, ids) if groups is None else groups
        key_masks = {n: _check_group(n, mask, ids) & valid for n, mask in check_mapping(groups, "groups").items()}
        at_p = position == p[:, None]
        query_masks = {PREDICTION: at_p, **{name: mask & ~at_p for name, mask in key_masks.items()}}
        inputs = _inputs_of(model_inputs, attention_mask, len(ids), batch_size)
    query_groups, key_groups = _group_ids(query_masks, ids), _group_ids(key_masks, ids)
    results = Results(layers, len(ids), ids.shape[1], (len(query_masks), len(key_masks)), saliency, rows)
    head, parts = verified_readout(model), []
    with progress("trace", -(-len(ids) // batch_size), quick=True) as bar:
        for start in range(0, len(ids), batch_size):
            at = slice(start, min(start + batch_size, len(ids)))
            check_lengths(model, lengths[at], None if masked else ids.shape[1])
            batch = Pass(ids[at], p[at], wanted[at], query_groups[at], key_groups[at], inputs(at))
            if layers:
                run_pass(model, head, layers, batch, results, at, checkpoint, offload)
            else:
                parts.append(gradient_x_input(model, head, batch))
            bar.advance()
    arrays = results.arrays() if layers else {n: np.concatenate([x[n] for x in parts]) for n in parts[0]}
    variables = {name: (_DIMS[name], value) for name, value in arrays.items()}
    coords = {"key_group": list(key_masks), "prediction": ("example", p.cpu().numpy()), **labels}
    note = {"note": f"{type(model).__name__} mixes positions by no matrix: gradient × input, no saliency, no heads"}
    if layers:
        heads = np.arange(max(mixer.heads for mixer in layers))
        coords |= {"layer": [mixer.layer for mixer in layers], "head": heads, "query_group": list(query_masks)}
    return xr.Dataset(
        {**variables, "group": (("example", "key"), key_groups.cpu().numpy())}, coords, attrs={} if layers else note
    )


def _inputs_of(
    given: Mapping[str, Any], attention_mask: Tensor | None, examples: int, batch_size: int
) -> Callable[[slice], dict[str, Any]]:
    """The further inputs of the model for a part of the examples."""
    whole = {**given, **({} if attention_mask is None else {"attention_mask": attention_mask})}
    for name, value in whole.items():
        if isinstance(value, Tensor) and len(value) != examples and examples > batch_size:
            raise ValueError(
                f"{name}: expected its first dimension to be that of {examples} examples to make batches of "
                f"{batch_size}, got shape {list(value.shape)}; a larger batch_size takes it whole"
            )

    def of_part(at: slice) -> dict[str, Any]:
        return {
            n: value[at] if isinstance(value, Tensor) and len(value) == examples else value
            for n, value in whole.items()
        }

    return of_part


def _group_ids(masks: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """[B,T] index of the mask that holds each position, -1 where none does."""
    if not masks:
        return torch.full_like(ids, -1)
    stacked = torch.stack([mask.bool() for mask in masks.values()])
    if bool((stacked.sum(0) > 1).any()):
        raise ValueError(f"groups: expected masks that do not overlap, got an overlap among {', '.join(masks)}")
    return torch.where(stacked.any(0), stacked.int().argmax(0), -1)


def image_group(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    """{"image": [B,T] where ids are placeholders of images}; empty for a model without such a token or ids without."""
    token = getattr(model.config, "image_token_id", None)
    places = None if token is None else ids == token
    return {} if places is None or not bool(places.any()) else {"image": places}


def _check_group(name: str, mask: Any, ids: Tensor) -> Tensor:
    if name == PREDICTION:
        raise ValueError(f"groups: {PREDICTION!r} is the prediction position itself; choose another name")
    mask = tensor_of(mask, f"groups[{name!r}]")
    if mask.shape != ids.shape:
        raise ValueError(f"groups[{name!r}]: expected shape {list(ids.shape)}, got {list(mask.shape)}")
    found: Tensor = mask.bool().to(ids.device)
    return found


def saliency_by_region(traced: xr.Dataset) -> xr.DataArray:
    """Layer saliency into the prediction position by region: (layer, region), mean over examples.

    Regions are the key groups and "other", the context's remaining tokens. Each is the sum of I over its keys.
    """
    check_trace(traced, "traced")
    _check_saliency(traced)
    at_p = traced.saliency.isel(query=traced.prediction)  # (example, layer, key)
    groups = traced.key_group.values.tolist()
    index = {name: [i] for i, name in enumerate(groups) if name != PATCHES} | {"other": [-1]}
    if PATCHES in groups:  # all patches of the noun are the noun
        index["env"].append(groups.index(PATCHES))
    sums = [at_p.where(traced.group.isin(i), 0.0).sum("key") for i in index.values()]
    by_region: xr.DataArray = xr.concat(sums, dim="region").assign_coords(region=list(index))
    mean: xr.DataArray = by_region.mean("example").transpose("layer", "region")
    return mean


def _check_saliency(traced: xr.Dataset) -> None:
    if "saliency" not in traced:
        raise ValueError(f"trace: expected one with saliency; {traced.attrs.get('note', 'it was made without')}")
