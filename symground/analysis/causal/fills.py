"""Replacements for the output of a silenced head: its mean over a reference, or its output in a paired text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import texts_of
from symground.analysis.probing import Asked, Examples, ImageQuestions, Probes, check_fits
from symground.analysis.tracing import inputs_of
from symground.errors import choice, described
from symground.models import mixers
from symground.models.hooks import body, device_of, head_outputs
from symground.models.passes import check_inputs
from symground.models.trials import check_deterministic, check_lengths

Reference = Asked | Examples | Tensor | Mapping[str, Tensor]
MODES = ("zero", "mean", "resample")
_BATCH = 64


def fills_of(model: PreTrainedModel, mode: str, reference: Reference | None) -> dict[int, Tensor] | None:
    """The replacements for the outputs of each layer's heads: None for zeros, else layer → [H,D] or [B,T,H,D].

    Args:
        model: attached.
        mode: "zero"; "mean", the mean of each head's output over all valid positions of all reference rows; or
            "resample", each head's output in the reference rows, position by position.
        reference: ids [N,T]; a mapping of model inputs with ``input_ids`` and perhaps ``attention_mask``; examples; or
            probes. "mean" reads the probes' matched examples, "resample" their mismatched ones.

    Raises:
        ValueError: an unknown mode, a missing or unexpected reference, or (resample) mismatched examples whose lengths
            differ from those of the matched ones.
    """
    check_fills(mode, reference)
    if reference is None:
        return None
    if isinstance(reference, Mapping):
        check_inputs(model, [name for name in reference if name != "input_ids"], "reference", ())
    rows = _rows(reference, mode, model)
    check_deterministic(model)
    check_lengths(model, *rows.lengths())
    device = device_of(model)
    layers = mixers(model)

    def read(part: slice) -> dict[int, Tensor]:
        inputs = {name: value.to(device) for name, value in rows.given(part).items()}
        with head_outputs(layers) as found:
            body(model)(input_ids=rows.ids[part].to(device), **inputs)
        return found

    with torch.no_grad():
        if mode == "resample":
            return read(slice(0, len(rows.ids)))
        sums: dict[int, Tensor] = {}
        for start in range(0, len(rows.ids), _BATCH):
            part = slice(start, min(start + _BATCH, len(rows.ids)))
            for layer, heads in read(part).items():
                chosen = heads[rows.valid[part].to(heads.device)]  # [valid positions,H,D]
                sums[layer] = sums.get(layer, 0) + chosen.double().sum(0)
                dtype = heads.dtype
        return {layer: (total / rows.valid.sum().item()).to(dtype) for layer, total in sums.items()}


def check_fills(mode: str, reference: Reference | None) -> None:
    """Refuse an unknown mode, and a reference that the mode lacks or does not take."""
    choice("mode", mode, MODES)
    if mode == "zero" and reference is not None:
        raise ValueError("reference: mode 'zero' takes none")
    if mode != "zero":
        if reference is None:
            raise ValueError(f"reference: mode {mode!r} needs one: ids, model inputs or probes")
        _rows(reference, mode)


def aligned(matched: Examples, mismatched: Examples) -> None:
    """Refuse pairs whose positions do not correspond: outputs of one could not be resampled into the other."""
    if matched.input_ids.shape == mismatched.input_ids.shape:
        ground, other = (x.query_masks.get("env", x.key_masks.get("image")) for x in (matched, mismatched))
        assert ground is not None
        assert other is not None
        same = (ground == other).all(1) & (matched.prediction == mismatched.prediction)
        if bool(same.all()):
            return
    raise ValueError(
        "probes: resampling takes a head's output at the same position of the mismatched context, and the ENV nouns "
        "(or the images) of these are not all of the same number of tokens"
    )


class _Rows(NamedTuple):
    ids: Tensor
    """[N,T]"""
    valid: Tensor
    """[N,T] bool: the positions that are averaged."""
    given: Callable[[slice], Mapping[str, Tensor]]
    """Further inputs of the model for a part of the rows."""

    def lengths(self) -> tuple[Tensor, int | None]:
        """The valid tokens of each row, and the length that the model reads as text (None: the valid tokens)."""
        masked = "attention_mask" in self.given(slice(0, 1))
        return self.valid.sum(-1), None if masked else self.ids.shape[1]


def _rows(reference: Reference, mode: str, model: PreTrainedModel | None = None) -> _Rows:
    if isinstance(reference, (Probes, ImageQuestions)):
        if model is not None:
            check_fits(model, reference, images=True, name="reference")
        examples = reference.matched()
        if mode == "resample":
            mismatched = reference.mismatched()
            aligned(examples, mismatched)
            examples = mismatched
        reference = examples
    if isinstance(reference, Examples):
        valid = torch.arange(reference.input_ids.shape[1]) < reference.lengths[:, None]
        return _Rows(reference.input_ids, valid, (reference if model is None else reference.read_by(model)).given)
    if not isinstance(reference, (Tensor, Mapping)):
        raise ValueError(f"reference: expected ids [N,T], model inputs, examples or probes, got {described(reference)}")
    inputs: dict[str, Any] = {"input_ids": reference} if isinstance(reference, Tensor) else dict(reference)
    ids = inputs.pop("input_ids", None)
    if ids is None or ids.ndim != 2:
        got = "none" if ids is None else f"shape {list(ids.shape)}"
        raise ValueError(f"reference: expected input_ids of shape [N,T], got {got}")
    if model is not None:
        ids = texts_of(model, ids, "reference")
    mask = inputs.get("attention_mask")
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    return _Rows(ids, valid, inputs_of(inputs, None, len(ids), len(ids) if mode == "resample" else _BATCH))
