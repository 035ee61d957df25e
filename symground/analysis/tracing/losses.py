"""A trace back from a number that is computed of a model's output, in any model with heads.

Encoders, classifiers and vision models have layers of one kind. A model with cross-attention has layers whose matrices
have other queries and keys: their variables have names and dimensions of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from transformers import PreTrainedModel

from symground.analysis.checks import ids_of, tensor_of
from symground.analysis.tracing.backward import (
    Loss,
    most_heads,
    run_pass,
)
from symground.analysis.tracing.patch_places import check_pictures, patch_places
from symground.analysis.tracing.sides import PREFIXES, Sides, prefix_of
from symground.analysis.tracing.trace_input import (
    KEYWORDS,
    checked_mask,
    image_group,
    inputs_of,
    last_of,
    targets_of,
    warn_without_pictures,
)
from symground.errors import described, is_about
from symground.models import Mixer
from symground.models.architectures import grids_of, is_learnt, is_written_out, twins_pass
from symground.models.attachment import untraced
from symground.models.hooks import Tap, device_of, head_outputs, is_encoder_decoder, tapped, vision_tower
from symground.models.passes import check_names
from symground.models.trials import check_deterministic, readout, surprisal_of
from symground.running import progress


class Settings(NamedTuple):
    """The settings of :func:`symground.trace`."""

    saliency: bool
    rows: bool
    batch_size: int
    checkpoint: bool
    offload: bool


class Asked(NamedTuple):
    """What a trace goes back from."""

    loss: Callable[[Any, slice], Tensor]
    """(the model's output, which examples) → one number an example."""
    name: str
    prediction: Tensor | None = None
    """[B] the position whose rows are requested."""


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
    given = _inputs(model, given, attention_mask, beside)
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
    attention_mask: Any,
    groups: Mapping[str, Any] | None,
    source_groups: Mapping[str, Any] | None,
    settings: Settings,
    beside: Mapping[str, Any],
) -> xr.Dataset:
    """`trace` of ``targets`` in a model with cross-attention; the arguments are its own.

    The text that is continued is ``decoder_input_ids`` in an encoder-decoder, else ``input_ids``.
    """
    given = _inputs(model, given, attention_mask, beside)
    name = "decoder_input_ids" if is_encoder_decoder(model) else "input_ids"
    if given.get(name) is None:
        raise ValueError(f"{name}: expected the ids [B,T] of the text whose continuation is asked, got None")
    ids = ids_of(given[name], name, 2, 2**62)
    if targets is None:
        raise ValueError("targets: expected the ids [B] to predict, got None")
    source = given.get(model.main_input_name)
    if isinstance(source, Tensor) and len(source) != len(ids):
        raise ValueError(f"{name}: expected {len(source)} examples, as {model.main_input_name} has, got {len(ids)}")
    words = targets_of(targets, ids, readout(model).weight.shape[0])
    of_mask = name.replace("input_ids", "attention_mask")
    mask = given.get(of_mask)
    groups = image_group(model, ids) if groups is None and name == "input_ids" else groups
    p = last_of(torch.ones_like(ids) if mask is None else checked_mask(mask, ids, of_mask).bool())

    def surprisal(out: Any, at: slice) -> Tensor:
        logits = out.logits
        at_p = logits[torch.arange(len(logits), device=logits.device), p[at].to(logits.device)]
        return surprisal_of(at_p, words[at, None].to(logits.device))[:, 0]

    return _trace(model, layers, given, groups, source_groups, Asked(surprisal, "surprisal", p), settings)


def _inputs(model: PreTrainedModel, given: Any, attention_mask: Any, beside: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of the model by name."""
    inputs = dict(given) if isinstance(given, Mapping) else {"input_ids": tensor_of(given, "input_ids")}
    inputs |= {**beside, **({} if attention_mask is None else {"attention_mask": attention_mask})}
    inputs |= {name: tensor_of(x, name) for name, x in inputs.items() if isinstance(x, (np.ndarray, list))}
    check_names(model, inputs, "symground.trace", KEYWORDS)
    _check_ids(model, inputs)
    if inputs.get("encoder_outputs") is not None:
        raise ValueError("encoder_outputs: expected None, since the encoder's layers are traced; give it its inputs")
    parameters = inspect.signature(type(model).forward).parameters
    passes_on = "kwargs" in parameters and getattr(model.config.get_text_config(), "use_cache", None) is not None
    if "use_cache" in parameters or passes_on:  # a layer that is recomputed would fill a cache again
        inputs.setdefault("use_cache", False)
    return inputs


def _check_ids(model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    """Refuse ids that their embedding lacks: on a GPU they would end the process."""
    readers: dict[str, Any] = {"input_ids": model}
    if is_encoder_decoder(model):
        readers = {"input_ids": model.get_encoder(), "decoder_input_ids": model.get_decoder()}
    for name, part in readers.items():
        try:
            table = part.get_input_embeddings()
        except (AttributeError, NotImplementedError):  # of CLIP, with its two towers, and of FSMT's encoder
            continue
        if isinstance(inputs.get(name), Tensor) and isinstance(table, nn.Embedding):
            if inputs[name].ndim < 2:
                raise ValueError(f"{name}: expected shape [B,T], got {list(inputs[name].shape)}")
            ids_of(inputs[name].flatten(), name, 1, table.num_embeddings)


def _trace(
    model: PreTrainedModel,
    layers: tuple[Mixer, ...],
    given: Mapping[str, Any],
    groups: Mapping[str, Any] | None,
    source_groups: Mapping[str, Any] | None,
    asked: Asked,
    settings: Settings,
) -> xr.Dataset:
    tensors = [x for x in (given.get("input_ids"), *given.values()) if isinstance(x, Tensor) and x.ndim]
    count = len(tensors[0]) if tensors else 0
    if not count:
        raise ValueError("input_ids: expected the model's inputs as tensors of at least one example, got none")
    batch_size = settings.batch_size
    inputs, device = inputs_of(given, None, count, batch_size), device_of(model)

    def run(given: Mapping[str, Any]) -> Any:
        return model(**{n: x.to(device) if isinstance(x, Tensor) else x for n, x in given.items()})

    def output(at: slice) -> Any:
        return run(inputs(at))

    check_deterministic(model)
    if isinstance(given.get("input_ids"), Tensor):
        warn_without_pictures(model, given["input_ids"], given)
    if any(is_written_out(mixer.module) and not is_learnt(mixer.module) for mixer in layers if mixer.kind != "vision"):
        with head_outputs(layers), twins_pass(), torch.no_grad():
            run(_twice(inputs(slice(0, 1)), count))
    tower = vision_tower(model) if any(mixer.kind == "vision" for mixer in layers) else None
    with grids_of(tower) as grids:
        sizes = _sizes(model, layers, output, min(batch_size, count), given.get("attention_mask") is not None)
    sides = Sides(sizes, count, groups, source_groups, asked.prediction)
    if "vision_" in sizes and isinstance(given.get("input_ids"), Tensor):
        check_pictures(image_group(model, given["input_ids"]), grids, sizes["vision_"][0])
    parts = {
        kind: sides.part(
            kind, tuple(m for m in layers if prefix_of(m) == kind), most_heads(layers), settings.saliency, settings.rows
        )
        for kind in sizes
    }
    each = np.empty(count, np.float32)
    weight = next(parameter for parameter in model.parameters() if parameter.ndim)
    with progress("trace", -(-count // batch_size), quick=True) as bar:
        for start in range(0, count, batch_size):
            at = slice(start, min(start + batch_size, count))

            def of(at: slice = at) -> Tensor:
                return asked.loss(output(at), at)

            prediction = None if asked.prediction is None else asked.prediction[at]
            loss = Loss(of, asked.name, weight)
            of_part = [part.of(at) for part in parts.values()]
            each[at] = run_pass(model, loss, of_part, at, settings.checkpoint, settings.offload, prediction)
            bar.advance()
    named = [sides.named(kind, part) for kind, part in parts.items()]
    if "vision_" in parts:
        times, _, patches = sizes["vision_"]
        named.append(({}, patch_places(tower, grids, (count, times, patches))))
    at_p = {} if asked.prediction is None else {"prediction": ("example", asked.prediction.cpu().numpy())}
    return xr.Dataset(
        {asked.name: ("example", each), **{name: value for variables, _ in named for name, value in variables.items()}},
        {**{name: value for _, coordinates in named for name, value in coordinates.items()}, **at_p},
        attrs={"untraced": ", ".join(untraced(model))},
    )


@torch.no_grad()
def _sizes(
    model: PreTrainedModel,
    layers: tuple[Mixer, ...],
    output: Callable[[slice], Any],
    examples: int,
    masked: bool,
) -> dict[str, tuple[int, int, int]]:
    """Prefix → how many matrices an example has in its layers, and the numbers of queries and keys, by the first batch.

    Kinds of layers that these inputs do not reach are left out.

    Raises:
        ValueError: layers of a kind mix other numbers of positions, or several passes of a layer.
    """
    found: dict[Mixer, list[tuple[int, int, int]]] = {mixer: [] for mixer in layers}

    def tap(mixer: Mixer) -> Tap:
        if mixer.kind == "mamba2":
            return Tap(observe=(lambda x: found[mixer].append((len(x), x.shape[1], x.shape[1])),))
        return Tap(measure=lambda *sizes: found[mixer].append(sizes))

    with tapped({mixer: tap(mixer) for mixer in layers}):
        try:
            output(slice(0, examples))
        except ValueError as error:
            if masked or not is_about(error, "attention_mask"):
                raise
            raise ValueError(
                f"model: {type(model).__name__} makes a mask that symground's attention does not take ({error}); with "
                "one picture or text in a pass (batch_size=1) it may"
            ) from error
        except Exception as error:
            raise ValueError(
                f"model: {type(model).__name__} does not run on these inputs with symground's attention "
                f"({type(error).__name__}: {error})"
            ) from error
    sizes = {}
    for kind in sorted({prefix_of(mixer) for mixer in layers}):
        of_kind = [found[mixer] for mixer in layers if prefix_of(mixer) == kind]
        if kind in ("cross_", "vision_") and not any(of_kind):  # no image was given
            continue
        several = sorted({size for each in of_kind for size in each})
        once = len(several) == 1 and all(len(each) == 1 for each in of_kind)
        times, rest = divmod(several[0][0], examples) if once else (0, 0)
        if not times or rest or (times > 1 and kind != "vision_"):
            pairs = {(queries, keys) for _, queries, keys in several}
            if any(len(each) > 1 for each in of_kind):
                cause = "a layer that runs several times in a pass (ALBERT's) is not traced"
            elif any(not each for each in of_kind):
                cause = "a layer that these inputs do not reach is not traced"
            elif len(pairs) > 1:
                cause = "layers that mix different positions (latents, windows, a predictor) are not traced together"
            else:
                cause = "several choices of an example, or other numbers of pictures in other examples, are not traced"
            raise ValueError(
                "model: expected layers that mix the same positions of each example once, got (examples, queries, "
                f"keys) {several} in {sum(map(bool, of_kind))} of {len(of_kind)} layers, for a batch of {examples}: "
                + cause
            )
        sizes[kind] = times, *several[0][1:]
    return sizes


def _twice(one: Mapping[str, Any], examples: int) -> dict[str, Any]:
    """The inputs of one example as those of two that are equal."""

    def of_two(x: Any) -> Any:
        has_examples = isinstance(x, Tensor) and x.ndim and len(x) in (1, examples)
        return torch.cat([x[:1], x[:1]]) if has_examples else x

    return {name: of_two(x) for name, x in one.items()}


def _checked(each: Any, examples: int) -> Tensor:
    if not isinstance(each, Tensor) or each.shape != (examples,) or not each.is_floating_point():
        got = f"shape {list(each.shape)} {each.dtype}" if isinstance(each, Tensor) else described(each)
        raise ValueError(f"loss: expected one floating-point number an example, shape [{examples}], got {got}")
    if not each.requires_grad:
        raise ValueError("loss: expected a number that depends on the model's output, got one without a gradient")
    return each
