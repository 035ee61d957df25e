"""A trace back from a number that is computed of a model's output, in any model with heads.

Encoders, classifiers and vision models have layers of one kind. A model with cross-attention has layers whose matrices
have other queries and keys: their variables have names and dimensions of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import ids_of
from symground.analysis.probing import Targets
from symground.analysis.tracing.backward import Loss, run_pass
from symground.analysis.tracing.collected import blank, most_heads, scores_of, without_empty
from symground.analysis.tracing.named_inputs import count_of, inputs_by_name, learn_layouts, run_on, sizes_of
from symground.analysis.tracing.patches import check_pictures, patch_places
from symground.analysis.tracing.sides import PREFIXES, Sides, prefix_of
from symground.analysis.tracing.trace_input import (
    KEYWORDS,
    check_one_of,
    checked_mask,
    image_group,
    inputs_of,
    wanted_of,
    warn_without_pictures,
)
from symground.errors import described
from symground.models import Mixer
from symground.models.architectures import grids_of
from symground.models.attachment import untraced
from symground.models.hooks import is_encoder_decoder, vision_tower
from symground.models.trials import check_deterministic, readout, surprisal_of
from symground.running import progress


class Settings(NamedTuple):
    """The settings of :func:`symground.trace`."""

    saliency: bool
    rows: bool
    span: bool
    per_token: bool
    batch_size: int
    checkpoint: bool
    offload: bool


class Asked(NamedTuple):
    """What a trace goes back from."""

    loss: Callable[[Any, slice], Tensor]
    """(the model's output, which examples) → one number an example."""
    name: str
    targets: Targets | None = None
    """What is predicted, at the positions whose rows are requested."""


def has_crossings(layers: tuple[Mixer, ...]) -> bool:
    """Whether some layers have other queries or keys than the text."""
    return any(mixer.kind in PREFIXES for mixer in layers)


def trace_loss(
    model: PreTrainedModel,
    layers: tuple[Mixer, ...],
    given: Any,
    attention_mask: Any,
    groups: Mapping[str, Any] | None,
    source_groups: Mapping[str, Any] | None,
    loss: Callable[[Any], Tensor],
    settings: Settings,
    beside: Mapping[str, Any],
) -> xr.Dataset:
    """`trace` with its ``loss``; the arguments are its own."""
    if not callable(loss):
        raise ValueError(f"loss: expected a function of the model's output, got {described(loss)}")
    if not layers:
        raise ValueError(f"loss: {type(model).__name__} has no heads to trace it back to")
    given = inputs_by_name(model, given, attention_mask, beside, "symground.trace", KEYWORDS)
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.bool().any(-1).all()):
        raise ValueError("attention_mask: expected at least one valid token in each example, got one without any")
    asked = Asked(lambda out, at: _checked(loss(out), at.stop - at.start), "loss")
    return _trace(model, layers, given, groups, source_groups, asked, settings)


def trace_targets(
    model: PreTrainedModel,
    layers: tuple[Mixer, ...],
    given: Any,
    targets: Any,
    span: Any,
    attention_mask: Any,
    groups: Mapping[str, Any] | None,
    source_groups: Mapping[str, Any] | None,
    settings: Settings,
    beside: Mapping[str, Any],
) -> xr.Dataset:
    """`trace` of ``targets`` or a span in a model with cross-attention; the arguments are its own.

    The text that is continued is ``decoder_input_ids`` in an encoder-decoder, else ``input_ids``.
    """
    given = inputs_by_name(model, given, attention_mask, beside, "symground.trace", KEYWORDS)
    name = "decoder_input_ids" if is_encoder_decoder(model) else "input_ids"
    if given.get(name) is None:
        raise ValueError(f"{name}: expected the ids [B,T] of the text whose continuation is asked, got None")
    ids = ids_of(given[name], name, 2, 2**62)
    check_one_of(targets, span)
    source = given.get(model.main_input_name)
    if isinstance(source, Tensor) and len(source) != len(ids):
        raise ValueError(f"{name}: expected {len(source)} examples, as {model.main_input_name} has, got {len(ids)}")
    of_mask = name.replace("input_ids", "attention_mask")
    mask = given.get(of_mask)
    groups = image_group(model, ids) if groups is None and name == "input_ids" else groups
    valid = torch.ones_like(ids).bool() if mask is None else checked_mask(mask, ids, of_mask).bool()
    wanted = wanted_of(targets, span, ids, valid, readout(model).weight.shape[0], name)

    def surprisal(out: Any, at: slice) -> Tensor:
        return wanted.part(at).surprisal(surprisal_of, out.logits)

    return _trace(model, layers, given, groups, source_groups, Asked(surprisal, "surprisal", wanted), settings)


def _trace(
    model: PreTrainedModel,
    layers: tuple[Mixer, ...],
    given: Mapping[str, Any],
    groups: Mapping[str, Any] | None,
    source_groups: Mapping[str, Any] | None,
    asked: Asked,
    settings: Settings,
) -> xr.Dataset:
    count, batch_size = count_of(given), settings.batch_size
    inputs = inputs_of(given, None, count, batch_size)
    check_deterministic(model)
    if isinstance(given.get("input_ids"), Tensor):
        warn_without_pictures(model, given["input_ids"], given)
    learn_layouts(model, layers, inputs(slice(0, 1)), count)

    def output(at: slice) -> Any:
        return run_on(model, inputs(at))

    tower = vision_tower(model) if any(mixer.kind == "vision" for mixer in layers) else None
    with grids_of(tower) as grids:
        sizes = sizes_of(model, layers, output, min(batch_size, count), given.get("attention_mask") is not None)
    targets = asked.targets
    sides = Sides(sizes, count, groups, source_groups, targets and targets.positions, settings.per_token)
    if "vision_" in sizes and isinstance(given.get("input_ids"), Tensor):
        check_pictures(image_group(model, given["input_ids"]), grids, sizes["vision_"][0])
    parts = {
        kind: sides.part(
            kind, tuple(m for m in layers if prefix_of(m) == kind), most_heads(layers), settings.saliency, settings.rows
        )
        for kind in sizes
    }
    each = np.empty(count if targets is None else targets.positions.shape, np.float32)
    weight = next(parameter for parameter in model.parameters() if parameter.ndim)
    with progress("trace", -(-count // batch_size), quick=True) as bar:
        for start in range(0, count, batch_size):
            at = slice(start, min(start + batch_size, count))

            def of(at: slice = at) -> Tensor:
                return asked.loss(output(at), at)

            positions = None if targets is None else targets.positions[at]
            loss = Loss(of, asked.name, weight)
            of_part = [part.of(at) for part in parts.values()]
            each[at] = run_pass(
                model, loss, of_part, at, settings.checkpoint, settings.offload, positions, settings.per_token
            )
            bar.advance()
    if targets is not None and settings.per_token:
        for part in parts.values():
            blank(part.results.arrays(), targets, part.times)
    named = [sides.named(kind, part) for kind, part in parts.items()]
    if "vision_" in parts:
        times, _, patches = sizes["vision_"]
        named.append(({}, patch_places(tower, grids, (count, times, patches))))
    scores, at_p = ({asked.name: ("example", each)}, {}) if targets is None else scores_of(targets, each, settings.span)
    found = xr.Dataset(
        {**scores, **{name: value for variables, _ in named for name, value in variables.items()}},
        {**{name: value for _, coordinates in named for name, value in coordinates.items()}, **at_p},
        attrs={"untraced": ", ".join(untraced(model))},
    )
    return without_empty(found)


def _checked(each: Any, examples: int) -> Tensor:
    if not isinstance(each, Tensor) or each.shape != (examples,) or not each.is_floating_point():
        got = f"shape {list(each.shape)} {each.dtype}" if isinstance(each, Tensor) else described(each)
        raise ValueError(f"loss: expected one floating-point number an example, shape [{examples}], got {got}")
    if not each.requires_grad:
        raise ValueError("loss: expected a number that depends on the model's output, got one without a gradient")
    return each
