"""Making a model traceable, in place."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from symground.models.interface import NAME, register
from symground.models.lstm import LSTMForCausalLM
from symground.models.mamba2 import MambaMixer, mamba_mixers
from symground.models.mixers import Mixer

M = TypeVar("M", bound=PreTrainedModel)
_ATTACHED = "_symground_mixers"
#: What modules of transformers keep of attention variants that `ops.attention` has no argument for → what it is called.
_VARIANTS = {"attn_logit_softcapping": "capped scores (softcap)", "sinks": "sinks (s_aux)"}


def attach(model: M) -> M:
    """Make a Hugging Face causal language model traceable in place, and return it.

    Its attention becomes ``symground``; where a mask is given without ``position_ids`` they are derived from the mask,
    so that a padded batch equals its single rows. Mamba-2's mixers become `symground.models.mamba2.MambaMixer`. An LSTM
    is accepted and has no mixers. Attaching twice is attaching once. Checkpoints of an attached model are those of the
    model it was.

    Raises:
        ValueError: not a Hugging Face model, or one whose attention heads cannot be located.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"model: expected a transformers PreTrainedModel, got {type(model).__name__}")
    if isinstance(model, LSTMForCausalLM):
        object.__setattr__(model, _ATTACHED, ())
        return model
    found = mamba_mixers(model) or _attention_layers(model)
    if not isinstance(found[0].module, MambaMixer):
        register()
        model.set_attn_implementation(NAME)
    _check_in_use(model, found)
    if not hasattr(model, _ATTACHED):
        model.register_forward_pre_hook(_refuse_output_attentions, with_kwargs=True)
        if "position_ids" in inspect.signature(model.base_model.forward).parameters:
            model.base_model.register_forward_pre_hook(_derive_position_ids, with_kwargs=True)
    object.__setattr__(model, _ATTACHED, found)
    return model


def _check_in_use(model: nn.Module, found: tuple[Mixer, ...]) -> None:
    """Refuse a model some of whose layers would silently pass a tap by."""
    for mixer in found:
        if isinstance(mixer.module, MambaMixer):
            continue
        used = getattr(mixer.module.config, "_attn_implementation", None)
        if used != NAME:
            raise ValueError(
                f"model: layer {mixer.layer} of {type(model).__name__} runs its attention as {used!r}, which shows no "
                f"heads; either this architecture takes no attention function, or it was changed after symground.attach"
            )


def mixers(model: nn.Module) -> tuple[Mixer, ...]:
    """The model's mixers, by layer; empty for an LSTM.

    Raises:
        ValueError: the model was not attached, or has been given another attention implementation since.
    """
    found: tuple[Mixer, ...] | None = getattr(model, _ATTACHED, None)
    if found is None:
        raise ValueError("model: expected a model made traceable by symground.attach or symground.load")
    _check_in_use(model, found)
    return found


def _attention_layers(model: PreTrainedModel) -> tuple[Mixer, ...]:
    found = []
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if not type(module).__name__.endswith("Attention") or not isinstance(layer, int):
            continue
        if getattr(module, "is_cross_attention", False):
            raise ValueError(f"model: {type(model).__name__} has cross-attention, which symground does not support")
        for attribute, variant in _VARIANTS.items():
            if getattr(module, attribute, None) is not None:
                raise ValueError(
                    f"model: the attention of {type(model).__name__} has {variant}, which symground does not support"
                )
        config = getattr(module, "config", None)
        heads = getattr(module, "num_heads", None) or getattr(config, "num_attention_heads", None)
        if config is None or not isinstance(heads, int):
            raise ValueError(f"model: cannot tell how many heads {type(module).__name__} has")
        found.append(Mixer(layer, heads, module))
    if not found:
        raise ValueError(f"model: found no attention layers with heads in {type(model).__name__}")
    return tuple(sorted(found, key=lambda mixer: mixer.layer))


def _refuse_output_attentions(module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("output_attentions") or getattr(module.config, "output_attentions", False):
        raise ValueError("output_attentions: symground never builds the attention matrix; use symground.trace instead")


def _derive_position_ids(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    mask, given = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if mask is None or mask.ndim != 2 or given is not None:
        return None
    inputs = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if inputs is None and args:
        inputs = args[0]
    if inputs is None:
        return None
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
    return args, {**kwargs, "position_ids": positions}
