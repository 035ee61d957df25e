"""What stands in for a silenced head: its mean over a reference, or what it gives in a paired text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.probes import Examples, Probes
from symground.models import mixers
from symground.models.mixers import head_outputs
from symground.models.readout import readout

Reference = Probes | Tensor | Mapping[str, Tensor]
MODES = ("zero", "mean", "resample")
_BATCH = 64


def fills_of(model: PreTrainedModel, mode: str, reference: Reference | None) -> dict[int, Tensor] | None:
    """What replaces the outputs of each layer's heads: None for zeros, else layer → [H,D] or [B,T,H,D].

    Args:
        model: attached.
        mode: "zero"; "mean", of each head's output over all valid positions of all reference rows; "resample", each
            head's outputs in the reference rows, position by position.
        reference: ids [N,T], or a mapping of model inputs with ``input_ids`` and perhaps ``attention_mask``; or probes,
            whose matched examples give the mean and whose mismatched ones are those to resample from.

    Raises:
        ValueError: an unknown mode, a reference that it does not take or lacks, or (resample) mismatched examples of
            other lengths than the matched ones.
    """
    check_fills(mode, reference)
    if reference is None:
        return None
    inputs, valid = _inputs(reference, mode)
    device = readout(model).weight.device
    inputs = {name: value.to(device) for name, value in inputs.items()}
    layers = mixers(model)
    with torch.no_grad():
        if mode == "resample":
            with head_outputs(layers) as found:
                model.base_model(**inputs)
            return dict(found)
        sums: dict[int, Tensor] = {}
        for start in range(0, len(valid), _BATCH):
            part = slice(start, start + _BATCH)
            with head_outputs(layers) as found:
                model.base_model(**{name: value[part] for name, value in inputs.items()})
            for layer, heads in found.items():
                chosen = heads[valid[part].to(device)]  # [valid positions,H,D]
                sums[layer] = sums.get(layer, 0) + chosen.double().sum(0)
        return {layer: (total / valid.sum().item()).to(found[layer].dtype) for layer, total in sums.items()}


def check_fills(mode: str, reference: Reference | None) -> None:
    """Refuse a mode that there is not, and a reference that it does not take or lacks."""
    if mode not in MODES:
        raise ValueError(f"mode: expected {', '.join(map(repr, MODES[:-1]))} or {MODES[-1]!r}, got {mode!r}")
    if mode == "zero" and reference is not None:
        raise ValueError("reference: mode 'zero' takes none")
    if mode != "zero":
        if reference is None:
            raise ValueError(f"reference: mode {mode!r} needs one: ids, model inputs or probes")
        _inputs(reference, mode)


def aligned(matched: Examples, mismatched: Examples) -> None:
    """Refuse pairs whose positions do not correspond: nothing could be resampled from one into the other."""
    if matched.input_ids.shape == mismatched.input_ids.shape:
        same = (matched.query_masks["env"] == mismatched.query_masks["env"]).all(1)
        same &= matched.prediction == mismatched.prediction
        if bool(same.all()):
            return
    raise ValueError(
        "probes: resampling takes a head's output at the same position of the mismatched context, and the ENV nouns of "
        "these probes are not all of the same number of tokens"
    )


def _inputs(reference: Reference, mode: str) -> tuple[dict[str, Any], Tensor]:
    """The model's inputs, and which of their positions count [N,T]."""
    if isinstance(reference, Probes):
        examples = reference.matched()
        valid = torch.arange(examples.input_ids.shape[1]) <= examples.prediction[:, None]
        if mode == "resample":
            mismatched = reference.mismatched()
            aligned(examples, mismatched)
            examples = mismatched
        return {"input_ids": examples.input_ids}, valid
    inputs = {"input_ids": reference} if isinstance(reference, Tensor) else dict(reference)
    ids = inputs.get("input_ids")
    if ids is None or ids.ndim != 2:
        got = "none" if ids is None else f"shape {list(ids.shape)}"
        raise ValueError(f"reference: expected input_ids of shape [N,T], got {got}")
    mask = inputs.get("attention_mask")
    return inputs, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
