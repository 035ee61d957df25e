"""Tracing a model: surprisal, layer saliency and per-head flow from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from symground import ops
from symground.analysis.heads import PATCHES
from symground.analysis.probes import Examples, Probes
from symground.analysis.score import check_deterministic, check_fits
from symground.models import Mixer, mixers
from symground.models.readout import hidden_states, verified_readout
from symground.models.rows import RowProbe

PREDICTION = "prediction"


def trace(
    model: PreTrainedModel,
    input_ids: Tensor | Probes | Examples,
    targets: Tensor | None = None,
    attention_mask: Tensor | None = None,
    groups: Mapping[str, Tensor] | None = None,
    *,
    saliency: bool = True,
    rows: bool = False,
    batch_size: int = 64,
    **model_inputs: Any,
) -> xr.Dataset:
    """Trace the surprisal of ``targets`` back through every head.

    The loss is the sum over examples of the surprisal at p, each example's last valid token, so examples stay
    independent. Saliency and flow are gradients of zero-storage probes: nothing of size layers·heads·T² is kept.

    Args:
        model: attached (:func:`symground.attach`) and in evaluation, or with an attention dropout of 0.
        input_ids: [B,T]; or examples of probes, which have their own targets and groups; or probes, for their matched
            examples.
        targets: [B] ids predicted at p.
        attention_mask: [B,T], 1 for valid tokens, padding at the ends; None: all valid.
        groups: name → [B,T] bool masks that do not overlap. All are key groups; as query groups they come after
            "prediction", which is p alone (taken out of any other query group). None: no key groups, so the flow is
            empty, while the totals stand.
        saliency: also return the [example, layer, query, key] matrices; False saves their memory.
        rows: also return every head's own signed saliency at p.
        batch_size: examples per pass.
        model_inputs: further inputs of the model; tensors have B as their first dimension.

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
        ValueError: shapes that do not fit, overlapping groups, a model with dropout on, or with a surprisal that is not
            finite.
        RuntimeError: called inside torch.inference_mode().

    Source: Wang et al. 2023 (saliency), arXiv 2510.13796 (flow into the prediction position), Shrikumar et al. 2016
    ("Not just a black box", gradient × input).
    """
    layers = mixers(model)
    if torch.is_inference_mode_enabled():
        raise RuntimeError("trace takes a gradient and cannot run inside torch.inference_mode()")
    labels: dict[str, Any] = {}
    if isinstance(input_ids, Probes):
        check_fits(model, input_ids)
        input_ids = input_ids.matched()
    else:
        check_deterministic(model)
    if isinstance(input_ids, Examples):
        examples = input_ids
        ids, p, wanted = examples.input_ids, examples.prediction, examples.targets
        query_masks, key_masks = examples.query_masks, examples.key_masks
        labels = {"context": ("example", examples.context), "noun": ("example", examples.noun)}
        # Right padding needs no mask: no token that counts comes after it.
    else:
        if targets is None:
            raise ValueError("targets: expected the ids [B] to predict, got None")
        ids, wanted = input_ids, targets
        _check_inputs(ids, wanted, attention_mask)
        position = torch.arange(ids.shape[1], device=ids.device)
        valid = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        p = (valid * position).amax(-1)
        key_masks = {name: _check_group(name, mask, ids) & valid for name, mask in (groups or {}).items()}
        at_p = position == p[:, None]
        query_masks = {PREDICTION: at_p, **{name: mask & ~at_p for name, mask in key_masks.items()}}
    query_groups, key_groups = _group_ids(query_masks, ids), _group_ids(key_masks, ids)
    parts = []
    for start in range(0, len(ids), batch_size):
        part = slice(start, start + batch_size)
        inputs = {n: value[part] if isinstance(value, Tensor) else value for n, value in model_inputs.items()}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask[part]
        if not layers:
            parts.append(_inputs_of_batch(model, ids[part], p[part], wanted[part], inputs))
            continue
        parts.append(
            _trace_batch(
                model, layers, ids[part], p[part], wanted[part], query_groups[part], key_groups[part],
                len(query_masks), len(key_masks), saliency, rows, inputs,
            )
        )  # fmt: skip
    dims = {
        "surprisal": ("example",),
        "saliency": ("example", "layer", "query", "key"),
        "flow": ("example", "layer", "head", "query_group", "key_group"),
        "row_total": ("example", "layer", "head", "query_group"),
        "matrix_total": ("example", "layer", "head"),
        "rows": ("example", "layer", "head", "key"),
        "input_x_gradient": ("example", "key"),
    }
    variables = {name: (dims[name], np.concatenate([part[name] for part in parts])) for name in parts[0]}
    coords = {"key_group": list(key_masks), "prediction": ("example", p.cpu().numpy()), **labels}
    note = {"note": f"{type(model).__name__} mixes positions by no matrix: gradient × input, no saliency, no heads"}
    if layers:
        heads = np.arange(max(mixer.heads for mixer in layers))
        coords |= {"layer": [mixer.layer for mixer in layers], "head": heads, "query_group": list(query_masks)}
    return xr.Dataset(
        {**variables, "group": (("example", "key"), key_groups.cpu().numpy())}, coords, attrs={} if layers else note
    )


def _trace_batch(
    model: PreTrainedModel,
    layers: tuple[Mixer, ...],
    ids: Tensor,
    p: Tensor,
    targets: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    num_query: int,
    num_key: int,
    saliency: bool,
    rows: bool,
    inputs: dict[str, Any],
) -> dict[str, NDArray[Any]]:
    head = verified_readout(model)
    device = head.weight.device
    ids, p, targets = ids.to(device), p.to(device), targets.to(device)
    inputs = {n: value.to(device) if isinstance(value, Tensor) else value for n, value in inputs.items()}
    batch, length = ids.shape
    # One group more on each side takes the positions that are in none, so that the totals are sums of the flow.
    rest_query = torch.where(query_groups < 0, num_query, query_groups).to(device)
    rest_key = torch.where(key_groups < 0, num_key, key_groups).to(device)
    saliency_probes = [_zero_storage(batch, length, length, like=head.weight) for _ in layers if saliency]
    flow_probes = [_zero_storage(batch, m.heads, num_query + 1, num_key + 1, like=head.weight) for m in layers]
    row_probes = [_zero_storage(batch, mixer.heads, length, like=head.weight) for mixer in layers if rows]
    with ExitStack() as stack, torch.enable_grad():
        for i, mixer in enumerate(layers):
            probe = saliency_probes[i] if saliency else None
            stack.enter_context(
                mixer.tapped(
                    saliency_probe=probe,
                    flow_probe=flow_probes[i],
                    query_groups=rest_query,
                    key_groups=rest_key,
                    rows=RowProbe(row_probes[i], p) if rows else None,
                )
            )
        hidden = hidden_states(model, ids, **inputs)[torch.arange(batch, device=device), p]  # [B,D]
        surprisal = ops.candidate_surprisal(hidden, head.weight, targets[:, None], head.bias)[:, 0]
        # Within the block: under activation checkpointing the layers run again here and must see the same taps.
        grads = torch.autograd.grad(surprisal.sum(), [*row_probes, *saliency_probes, *flow_probes], allow_unused=True)
    if any(grad is None for grad in grads):
        raise ValueError(
            "model: the gradient does not reach every layer's attention; if activation checkpointing is on, "
            'set it with gradient_checkpointing_kwargs={"use_reentrant": False}'
        )
    _check_finite(surprisal)
    result = {"surprisal": surprisal.detach()}
    if rows:
        result["rows"] = _stack_heads(tuple(grad[..., None] for grad in grads[: len(layers)]))[..., 0]
    if saliency:
        result["saliency"] = torch.stack(grads[-2 * len(layers) : -len(layers)], 1).abs()
    flow = _stack_heads(grads[-len(layers) :])  # [B,L,H,Gq+1,Gk+1]
    result["flow"] = flow[..., :num_query, :num_key]
    result["row_total"] = flow[..., :num_query, :].sum(-1)
    result["matrix_total"] = flow.sum((-1, -2))
    return {name: value.float().cpu().numpy() for name, value in result.items()}


def _inputs_of_batch(
    model: PreTrainedModel, ids: Tensor, p: Tensor, targets: Tensor, inputs: dict[str, Any]
) -> dict[str, NDArray[Any]]:
    """Gradient × input, as the gradient of a probe too: each embedding enters as e · (1 + probe)."""
    head = verified_readout(model)
    device = head.weight.device
    ids, p, targets = ids.to(device), p.to(device), targets.to(device)
    inputs = {n: value.to(device) if isinstance(value, Tensor) else value for n, value in inputs.items()}
    probe = torch.zeros(ids.shape, device=device, dtype=head.weight.dtype, requires_grad=True)
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, args, out: out * (1 + probe)[..., None])
    try:
        # cuDNN has no way back through an LSTM in evaluation.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            hidden = hidden_states(model, ids, **inputs)[torch.arange(len(ids), device=device), p]  # [B,D]
            surprisal = ops.candidate_surprisal(hidden, head.weight, targets[:, None], head.bias)[:, 0]
            (grad,) = torch.autograd.grad(surprisal.sum(), probe)
    finally:
        hook.remove()
    _check_finite(surprisal)
    return {"surprisal": surprisal.detach().float().cpu().numpy(), "input_x_gradient": grad.float().cpu().numpy()}


def _check_finite(surprisal: Tensor) -> None:
    if not bool(surprisal.isfinite().all()):
        raise ValueError(
            f"model: the surprisal of example {int((~surprisal.isfinite()).nonzero()[0])} of a batch is not finite"
        )


def _zero_storage(*shape: int, like: Tensor) -> Tensor:
    return torch.zeros(1, device=like.device, dtype=torch.float32).expand(shape).requires_grad_()


def _stack_heads(flows: tuple[Tensor, ...]) -> Tensor:
    """[B,H_l,…] of each layer → [B,L,H,…], NaN where a layer has fewer heads."""
    most = max(flow.shape[1] for flow in flows)
    padded = [torch.nn.functional.pad(f, (0, 0, 0, 0, 0, most - f.shape[1]), value=float("nan")) for f in flows]
    return torch.stack(padded, 1)


def _group_ids(masks: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """[B,T] index of the mask that holds each position, -1 where none does."""
    if not masks:
        return torch.full_like(ids, -1)
    stacked = torch.stack([mask.bool() for mask in masks.values()])
    if bool((stacked.sum(0) > 1).any()):
        raise ValueError(f"groups: expected masks that do not overlap, got an overlap among {', '.join(masks)}")
    return torch.where(stacked.any(0), stacked.int().argmax(0), -1)


def _check_inputs(ids: Tensor, targets: Tensor, attention_mask: Tensor | None) -> None:
    if ids.ndim != 2:
        raise ValueError(f"input_ids: expected shape [B,T], got {list(ids.shape)}")
    if tuple(targets.shape) != (ids.shape[0],):
        raise ValueError(f"targets: expected shape [B] = [{ids.shape[0]}], got {list(targets.shape)}")
    if attention_mask is not None and attention_mask.shape != ids.shape:
        raise ValueError(f"attention_mask: expected shape {list(ids.shape)}, got {list(attention_mask.shape)}")
    if attention_mask is not None and not bool(attention_mask.any(-1).all()):
        raise ValueError("attention_mask: expected at least one valid token in every example")


def _check_group(name: str, mask: Tensor, ids: Tensor) -> Tensor:
    if name == PREDICTION:
        raise ValueError(f"groups: {PREDICTION!r} is the prediction position itself; choose another name")
    if mask.shape != ids.shape:
        raise ValueError(f"groups[{name!r}]: expected shape {list(ids.shape)}, got {list(mask.shape)}")
    return mask.bool().to(ids.device)


def saliency_by_region(traced: xr.Dataset) -> xr.DataArray:
    """Layer saliency into the prediction position by region: (layer, region), mean over examples.

    Regions are the key groups and "other", the context's remaining tokens. Each is the sum of I over its keys.
    """
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
