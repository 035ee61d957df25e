"""The mixers of an attached model, which `attach` stores on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from symground.models.architectures import NAME, PACKED, MambaMixer, is_written_out
from symground.models.hooks import Mixer, is_encoder_decoder, stacks

#: The prefix of attributes that symground sets on modules.
OURS = "_symground_"
ATTACHED, UNTRACED, _HOLDERS = f"{OURS}mixers", f"{OURS}untraced", f"{OURS}holders"
#: Of a model that reads no words alone: it is run whole, with its other inputs.
WHOLE = f"{OURS}whole"
#: Matches the path of a decoder's cross-attention.
_OF_AN_ENCODER = re.compile(r"(^|\.)(encoder_attn|crossattention|cross_attn|cross_attention)(\.|$)")


def instead(model: PreTrainedModel) -> str:
    """What a user can do if a model cannot be traced."""
    listed = "docs/models.md lists those that can be traced"
    if model.get_output_embeddings() is None or is_encoder_decoder(model):
        return listed
    return (
        "symground.score takes any causal language model as transformers loads it, without symground.attach or "
        f"symground.load, and {listed}"
    )


def check_model(model: Any) -> None:
    """Refuse an object that is not a model of transformers; if it wraps one, the message says how to get it.

    Raises:
        ValueError: the object is not a model of transformers.
    """
    if isinstance(model, PreTrainedModel):
        return
    got = f"model: expected a model of transformers (PreTrainedModel), got {type(model).__name__}"
    prompt = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    if prompt:
        got += "; the prompt that peft has learnt is in this wrapper, and symground traces what it wraps, without it"
    elif hasattr(type(model), "get_base_model"):
        got += "; peft's wrapper holds one, with its adapters: model.get_base_model()"
    elif hasattr(model, "_orig_mod"):
        got += "; torch.compile's wrapper holds one: compile model.model, or what is in model._orig_mod, instead"
    elif isinstance(getattr(model, "module", None), PreTrainedModel):
        got += "; this wrapper holds one: model.module"
    elif isinstance(model, str):
        got += f"; symground.load({model!r}) loads one"
    raise ValueError(got)


def mixers(model: nn.Module, vision: bool = False) -> tuple[Mixer, ...]:
    """The model's mixers, ordered by layer; empty for an LSTM. ``vision`` adds those of a vision tower that is traced.

    Raises:
        ValueError: the model is not attached, or its attention implementation or layers changed after attaching.
    """
    check_model(model)
    found: tuple[Mixer, ...] | None = getattr(model, ATTACHED, None)
    if found is None:
        raise ValueError(
            f"model: expected one made traceable by symground.attach or symground.load, got {type(model).__name__} "
            "without it; symground.attach(model)"
        )
    check_in_use(
        model, found, "was given another attention implementation after symground.attach; attach the model again"
    )
    if found and not _as_attached(model):
        check_layers(model, found, "are no longer those that symground.attach saw; attach the model again")
    return found if vision else tuple(mixer for mixer in found if mixer.kind != "vision")


def is_attached(model: nn.Module) -> bool:
    return hasattr(model, ATTACHED)


def reads_whole(model: nn.Module) -> bool:
    """Whether an attached model with a vocabulary does not run on words alone, without its other inputs."""
    return bool(getattr(model, WHOLE, False))


def untraced(model: nn.Module) -> tuple[str, ...]:
    """Class names of the modules of an attached model that mix positions and are not traced."""
    found: tuple[str, ...] = getattr(model, UNTRACED, ())
    return found


def remember(model: PreTrainedModel, found: tuple[Mixer, ...]) -> None:
    """Store the mixers on the model for :func:`mixers`, with the children of every other module."""
    within = {part for mixer in found for part in mixer.module.modules()}
    parts = [part for of in stacks(model).values() for part in of.modules()] if found else []
    holders = [part for part in parts if part not in within]
    object.__setattr__(model, ATTACHED, found)
    object.__setattr__(model, _HOLDERS, tuple((part, tuple(part._modules.values())) for part in holders))


def _as_attached(model: Any) -> bool:
    """Whether the traced parts are still the same, and each of their modules still has the same children."""
    holders: tuple[tuple[nn.Module, tuple[nn.Module | None, ...]], ...] = getattr(model, _HOLDERS)
    known = {part for part, _ in holders}
    return known.issuperset(stacks(model).values()) and all(
        tuple(part._modules.values()) == held for part, held in holders
    )


def check_in_use(model: Any, found: tuple[Mixer, ...], why: str) -> None:
    """Refuse a model with a layer that would ignore its tap."""
    for mixer in found:
        if isinstance(mixer.module, MambaMixer) or is_written_out(mixer.module):
            continue
        used = getattr(mixer.module.config, "_attn_implementation", None)
        if used not in (NAME, PACKED):
            raise ValueError(
                f"model: layer {mixer.layer} of {type(model).__name__} runs its attention as {used!r}, which shows no "
                f"heads: {type(mixer.module).__name__} {why}; {instead(model)}"
            )


def check_layers(model: Any, found: tuple[Mixer, ...], why: str) -> None:
    """Refuse a model with other mixers than these: a tap would act on a layer that was removed or moved."""
    if found:
        kinds = {type(mixer.module) for mixer in found}
        there = [
            module for of in stacks(model).values() for path, module in _parts(of)
            if type(module) in kinds and not is_unused(model, path, module)
        ]  # fmt: skip
        # The Mamba-2 of layers that have attention too is numbered on after all layers.
        beside = [mixer.module for mixer in found if mixer.depth != mixer.layer]
        if sorted(there, key=beside.__contains__) != [m.module for m in found if m.module not in beside] + beside:
            if len(set(there)) < len(there):
                why += f": several of them share one {type(there[0]).__name__}, whose heads have a matrix in each"
            raise ValueError(f"model: the layers of {type(model).__name__} {why}")


def _parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules within a module, in order, with their paths; a module that occurs twice is yielded twice."""
    for name, part in module._modules.items():
        if part is not None:
            yield f"{path}{name}", part
            yield from _parts(part, f"{path}{name}.")


def is_cross_attention(path: str, module: nn.Module) -> bool:
    """Whether a decoder's module reads the states of an encoder, or of a vision tower."""
    return _OF_AN_ENCODER.search(path) is not None or "CrossAttention" in type(module).__name__


def is_unused(model: PreTrainedModel, path: str, module: nn.Module) -> bool:
    """Whether a decoder's module is the cross-attention of a model that has no encoder."""
    return (
        not is_encoder_decoder(model)
        and _OF_AN_ENCODER.search(path) is not None
        and "CrossAttention" not in type(module).__name__
    )
