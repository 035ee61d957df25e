"""A trace back from any number that a caller computes of a model's output: of classifiers, encoders, vision models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import tensor_of
from symground.analysis.tracing.backward import DIMS, Loss, Results, coordinates_of, run_pass
from symground.analysis.tracing.trace_input import group_ids, inputs_of, masks_of
from symground.errors import described
from symground.models import Mixer
from symground.models.attachment import untraced
from symground.models.hooks import device_of, head_outputs
from symground.models.passes import check_names
from symground.models.trials import check_deterministic
from symground.running import progress


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
    given = dict(given) if isinstance(given, Mapping) else {"input_ids": tensor_of(given, "input_ids")}
    given |= {**beside, **({} if attention_mask is None else {"attention_mask": attention_mask})}
    check_names(model, given, "symground.trace", ("loss", "groups", "saliency", "batch_size", "checkpoint", "offload"))
    count = next((len(x) for x in given.values() if isinstance(x, Tensor) and x.ndim), 0)
    if not count:
        raise ValueError("input_ids: expected the model's inputs as tensors of at least one example, got none")
    if "use_cache" in inspect.signature(type(model).forward).parameters:
        given.setdefault("use_cache", False)
    inputs, device = inputs_of(given, None, count, batch_size), device_of(model)

    def output(at: slice) -> Any:
        return model(**{n: x.to(device) if isinstance(x, Tensor) else x for n, x in inputs(at).items()})

    check_deterministic(model)
    none = torch.full((count, _length(model, layers, output)), -1)
    masks = masks_of(groups or {}, none)
    of_groups = group_ids(masks, none)
    results = Results(layers, count, none.shape[1], (len(masks), len(masks)), saliency, False)
    weight = next(model.parameters())
    with progress("trace", -(-count // batch_size), quick=True) as bar:
        for start in range(0, count, batch_size):
            at = slice(start, min(start + batch_size, count))

            def of(at: slice = at) -> Tensor:
                return _checked(loss(output(at)), at.stop - at.start)

            both = (of_groups[at], of_groups[at])
            run_pass(model, Loss(of, "loss", weight), layers, both, results, at, checkpoint, offload)
            bar.advance()
    names = list(masks)
    variables = {name: (DIMS[name], value) for name, value in results.arrays("loss").items()}
    return xr.Dataset(
        {**variables, "group": (("example", "key"), of_groups.numpy())},
        {**coordinates_of(layers), "key_group": names, "query_group": names},
        attrs={"untraced": ", ".join(untraced(model))},
    )


@torch.no_grad()
def _length(model: PreTrainedModel, layers: tuple[Mixer, ...], output: Callable[[slice], Any]) -> int:
    """How many positions the layers mix; all of them as many."""
    with head_outputs(layers) as found:
        try:
            output(slice(0, 1))
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


def _checked(each: Any, examples: int) -> Tensor:
    if not isinstance(each, Tensor) or each.shape != (examples,) or not each.is_floating_point():
        got = f"shape {list(each.shape)} {each.dtype}" if isinstance(each, Tensor) else described(each)
        raise ValueError(f"loss: expected one floating-point number an example, shape [{examples}], got {got}")
    if not each.requires_grad:
        raise ValueError("loss: expected a number that depends on the model's output, got one without a gradient")
    return each
