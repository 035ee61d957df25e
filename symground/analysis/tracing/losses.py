"""A trace back from any number that a caller computes of a model's output: of classifiers, encoders, vision models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import check_mapping, tensor_of
from symground.analysis.tracing.backward import Loss, Pass, Results, run_pass
from symground.errors import described
from symground.models import Mixer
from symground.models.attachment import untraced
from symground.models.hooks import device_of, head_outputs
from symground.models.trials import check_deterministic
from symground.running import progress

_DIMS = {
    "loss": ("example",),
    "saliency": ("example", "layer", "query", "key"),
    "flow": ("example", "layer", "head", "query_group", "key_group"),
    "row_total": ("example", "layer", "head", "query_group"),
    "matrix_total": ("example", "layer", "head"),
}


def trace_loss(
    model: PreTrainedModel,
    layers: tuple[Mixer, ...],
    given: Any,
    attention_mask: Any,
    groups: Mapping[str, Any] | None,
    loss: Callable[[Any], Tensor],
    saliency: bool,
    batch_size: int,
    checkpoint: bool,
    offload: bool,
    beside: Mapping[str, Any],
) -> xr.Dataset:
    """`trace` with its ``loss``; the arguments are its own."""
    if not callable(loss):
        raise ValueError(f"loss: expected a function of the model's output, got {described(loss)}")
    if not layers:
        raise ValueError(f"loss: {type(model).__name__} has no heads to trace it back to")
    inputs, count = _inputs(model, given, attention_mask, beside)
    check_deterministic(model)
    length = _length(model, layers, _part(inputs, slice(0, 1), count))
    masks = {name: _mask(name, mask, (count, length)) for name, mask in check_mapping(groups or {}, "groups").items()}
    of_groups = torch.full((count, length), -1)
    for i, (name, mask) in enumerate(masks.items()):
        if bool((of_groups[mask] >= 0).any()):
            raise ValueError(f"groups: expected masks that do not overlap, got an overlap of {name!r} with another")
        of_groups[mask] = i
    results = Results(layers, count, length, (len(masks), len(masks)), saliency, False, "loss")
    weight, none = next(model.parameters()), torch.zeros(0)
    with progress("trace", -(-count // batch_size), quick=True) as bar:
        for start in range(0, count, batch_size):
            at = slice(start, min(start + batch_size, count))
            part = _part(inputs, at, count)

            def of(part: Mapping[str, Any] = part, size: int = at.stop - at.start) -> Tensor:
                return _checked(loss(model(**part)), size)

            batch = Pass(none, none, none, of_groups[at], of_groups[at], part)
            run_pass(model, Loss(of, "loss", weight), layers, batch, results, at, checkpoint, offload)
            bar.advance()
    heads = np.arange(max(mixer.heads for mixer in layers))
    coords = {
        "key_group": list(masks), "query_group": list(masks), "head": heads,
        "layer": [mixer.layer for mixer in layers], "kind": ("layer", [mixer.kind for mixer in layers]),
    }  # fmt: skip
    variables = {name: (_DIMS[name], value) for name, value in results.arrays().items()}
    return xr.Dataset(
        {**variables, "group": (("example", "key"), of_groups.numpy())}, coords,
        attrs={"untraced": list(untraced(model))},
    )  # fmt: skip


def _inputs(
    model: PreTrainedModel, given: Any, attention_mask: Any, beside: Mapping[str, Any]
) -> tuple[dict[str, Any], int]:
    """The model's inputs by name, and how many examples they have."""
    found = dict(given) if isinstance(given, Mapping) else {"input_ids": tensor_of(given, "input_ids")}
    found |= {**beside, **({} if attention_mask is None else {"attention_mask": attention_mask})}
    takes = inspect.signature(type(model).forward).parameters
    for name in found:
        if name not in takes:
            raise TypeError(
                f"symground.trace: {name!r} is neither an argument of it nor an input of {type(model).__name__}; that "
                f"takes {', '.join(n for n in takes if n not in ('self', 'kwargs'))}"
            )
    tensors = [x for x in found.values() if isinstance(x, Tensor) and x.ndim]
    if not tensors or not len(tensors[0]):
        raise ValueError("input_ids: expected the model's inputs as tensors of at least one example, got none")
    if "use_cache" in takes:
        found.setdefault("use_cache", False)
    device = device_of(model)
    return {n: x.to(device) if isinstance(x, Tensor) else x for n, x in found.items()}, len(tensors[0])


def _part(inputs: Mapping[str, Any], at: slice, count: int) -> dict[str, Any]:
    return {n: x[at] if isinstance(x, Tensor) and x.ndim and len(x) == count else x for n, x in inputs.items()}


@torch.no_grad()
def _length(model: PreTrainedModel, layers: tuple[Mixer, ...], inputs: Mapping[str, Any]) -> int:
    """How many positions the layers mix; all of them as many."""
    with head_outputs(layers) as found:
        try:
            model(**inputs)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"model: {type(model).__name__} does not run on these inputs with symground's attention "
                f"({type(error).__name__}: {error})"
            ) from error
    lengths = {layer: heads.shape[1] for layer, heads in found.items()}
    examples = {len(heads) for heads in found.values()}
    if len({*lengths.values()}) != 1 or examples != {1} or len(found) != len(layers):
        raise ValueError(
            f"model: expected layers that mix the same positions of each example once, got {lengths} positions by "
            f"layer of {len(layers)} layers, for {sorted(examples)} examples in place of 1"
        )
    return next(iter(lengths.values()))


def _mask(name: str, mask: Any, shape: tuple[int, int]) -> Tensor:
    found = tensor_of(mask, f"groups[{name!r}]")
    if tuple(found.shape) != shape:
        raise ValueError(f"groups[{name!r}]: expected shape {list(shape)}, got {list(found.shape)}")
    return found.bool().cpu()


def _checked(each: Any, examples: int) -> Tensor:
    if not isinstance(each, Tensor) or each.shape != (examples,) or not each.is_floating_point():
        got = f"shape {list(each.shape)} {each.dtype}" if isinstance(each, Tensor) else described(each)
        raise ValueError(f"loss: expected one floating-point number an example, shape [{examples}], got {got}")
    if not each.requires_grad:
        raise ValueError("loss: expected a number that depends on the model's output, got one without a gradient")
    return each
