"""The inputs of a model by name, whatever it reads, and the positions that its layers mix of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from symground.analysis.checks import ids_of, tensor_of
from symground.analysis.tracing.sides import prefix_of
from symground.errors import is_about
from symground.models import Mixer
from symground.models.architectures import is_learnt, is_written_out, twins_pass
from symground.models.hooks import Tap, device_of, head_outputs, is_encoder_decoder, tapped
from symground.models.passes import check_length, check_names


def inputs_by_name(
    model: PreTrainedModel, given: Any, attention_mask: Any, beside: Mapping[str, Any], function: str,
    keywords: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    """The inputs of the model by name; ``keywords`` are those of the public ``function``.

    Raises:
        ValueError, TypeError: an input that the model does not take, or ids that its embedding lacks.
    """
    inputs = dict(given) if isinstance(given, Mapping) else {"input_ids": tensor_of(given, "input_ids")}
    inputs |= {**beside, **({} if attention_mask is None else {"attention_mask": attention_mask})}
    inputs |= {name: tensor_of(x, name) for name, x in inputs.items() if isinstance(x, (np.ndarray, list))}
    check_names(model, inputs, function, keywords)
    _check_ids(model, inputs)
    if inputs.get("encoder_outputs") is not None:
        raise ValueError("encoder_outputs: expected None, since the encoder's layers are traced; give it its inputs")
    parameters = inspect.signature(type(model).forward).parameters
    passes_on = "kwargs" in parameters and getattr(model.config.get_text_config(), "use_cache", None) is not None
    if "use_cache" in parameters or passes_on:  # a layer that is recomputed would fill a cache again
        inputs.setdefault("use_cache", False)
    return inputs


def _check_ids(model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    """Refuse ids that their embedding lacks, which on a GPU would end the process, and texts beyond its positions."""
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
            check_length(part, inputs[name].shape[-1], name)


def count_of(given: Mapping[str, Any]) -> int:
    """The number of examples.

    Raises:
        ValueError: there is none.
    """
    tensors = [x for x in (given.get("input_ids"), *given.values()) if isinstance(x, Tensor) and x.ndim]
    if not tensors or not len(tensors[0]):
        raise ValueError("input_ids: expected the model's inputs as tensors of at least one example, got none")
    return len(tensors[0])


def run_on(model: PreTrainedModel, given: Mapping[str, Any]) -> Any:
    """The model's output."""
    device = device_of(model)
    return model(**{n: x.to(device) if isinstance(x, Tensor) else x for n, x in given.items()})


def learn_layouts(model: PreTrainedModel, layers: tuple[Mixer, ...], one: Mapping[str, Any], examples: int) -> None:
    """Let layers that write their attention out learn, from two equal examples, where examples and heads are."""
    if any(is_written_out(mixer.module) and not is_learnt(mixer.module) for mixer in layers if mixer.kind != "vision"):
        with head_outputs(layers), twins_pass(), torch.no_grad():
            run_on(model, _twice(one, examples))


@torch.no_grad()
def sizes_of(
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
