"""Making a model traceable, in place."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from symground.models.activations import fuse_gelu
from symground.models.interface import NAME, UNPADDED, is_key_range, padding_of
from symground.models.lstm import LSTMForCausalLM
from symground.models.mamba2 import MambaMixer, mamba_mixers
from symground.models.mixers import Mixer

M = TypeVar("M", bound=PreTrainedModel)
_ATTACHED = "_symground_mixers"
#: Models that have ALiBi without a word of it in their configuration.
_ALIBI = ("Bloom", "Mpt")
#: Of a head, as `ops.attention` takes it.
_WIDEST = 256


def attach(model: M) -> M:
    """Make a Hugging Face causal language model traceable in place, and return it.

    Its attention becomes ``symground``; of a vision-language model that of its text decoder, while the vision tower
    keeps its own. Where a mask is given without ``position_ids`` they are derived from the mask, so that a padded batch
    equals its single rows. A GELU that is written out in several operations becomes one. Mamba-2's mixers become
    `symground.models.mamba2.MambaMixer`. An LSTM is accepted and has no mixers. Attaching twice is attaching once.
    Checkpoints of an attached model are those of the model it was.

    Raises:
        ValueError: not a Hugging Face model, or one whose attention heads cannot be located, or with an attention that
            symground does not support (by its name).
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"model: expected a transformers PreTrainedModel, got {type(model).__name__}")
    if isinstance(model, LSTMForCausalLM):
        object.__setattr__(model, _ATTACHED, ())
        return model
    found = mamba_mixers(model) or _attention_layers(model)
    if not isinstance(found[0].module, MambaMixer):
        model.set_attn_implementation(_of_decoder(model))
    _check_in_use(model, found)
    if not hasattr(model, _ATTACHED):
        model.register_forward_pre_hook(_refuse_output_attentions, with_kwargs=True)
        # RoBERTa's and its kin's positions begin after the padding's, and they find them in the ids.
        counted = any(
            isinstance(part, nn.Embedding) and name.endswith("position_embeddings") and part.padding_idx is not None
            for name, part in model.base_model.named_modules()
        )
        derive = not counted and "position_ids" in inspect.signature(model.base_model.forward).parameters
        model.base_model.register_forward_pre_hook(partial(_prepare, derive), with_kwargs=True)
    fuse_gelu(model.get_decoder())
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


def _of_decoder(model: PreTrainedModel) -> str | dict[str, str]:
    """What to set, so that a vision tower keeps the attention it has."""
    text = model.get_decoder().config
    for name in model.config.sub_configs:
        if getattr(model.config, name, None) is text:
            return {name: NAME}
    return NAME


def _attention_layers(model: PreTrainedModel) -> tuple[Mixer, ...]:
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"model: {name} has an encoder and cross-attention, which symground does not support")
    if getattr(model.config.get_text_config(), "alibi", False) or type(model).__name__.startswith(_ALIBI):
        raise ValueError(f"model: {name} biases its scores by distance (ALiBi), which symground does not support")
    found = []
    for module in model.get_decoder().modules():
        layer = getattr(module, "layer_idx", None)
        if not type(module).__name__.endswith("Attention") or not isinstance(layer, int):
            continue
        config = getattr(module, "config", None)
        for applies, variant in _unlike(module, config):
            if applies:
                raise ValueError(f"model: {name} {variant}, which symground does not support")
        heads = getattr(module, "num_heads", None) or getattr(config, "num_attention_heads", None)
        if config is None or not isinstance(heads, int):
            raise ValueError(f"model: cannot tell how many heads {type(module).__name__} has")
        found.append(Mixer(layer, heads, module))
    if not found:
        raise ValueError(f"model: found no attention layers with heads in {name}")
    if len({mixer.layer for mixer in found}) < len(found):
        raise ValueError(f"model: several attention layers of {name} have the same number")
    return tuple(sorted(found, key=lambda mixer: mixer.layer))


def _unlike(module: nn.Module, config: Any) -> Iterator[tuple[bool, str]]:
    """Whether an attention module is unlike what `ops.attention` computes, and how."""
    kind = type(module)
    crosses = getattr(module, "is_cross_attention", False) or "CrossAttention" in kind.__name__
    yield crosses, "has cross-attention"
    yield getattr(module, "attn_logit_softcapping", None) is not None, "has capped scores (softcap)"
    yield getattr(module, "sinks", None) is not None, "has sinks (s_aux)"
    yield getattr(module, "is_causal", True) is False, "lets text see what follows it"
    keys, values = (getattr(module, size, None) for size in ("qk_head_dim", "v_head_dim"))
    yield keys is not None and values not in (None, keys), "has values of another width than its keys (MLA)"
    yield (getattr(module, "head_dim", None) or 0) > _WIDEST, f"has heads wider than {_WIDEST}"
    yield kind.__name__.startswith("DiffLlama"), "has two attention matrices a head"
    window = getattr(config, "sliding_window", None)
    told = "sliding_window" in inspect.getsource(kind.forward)
    yield window is not None and not told, "has a sliding window that its layers do not tell their attention function"


def _refuse_output_attentions(module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    asked = kwargs.get("output_attentions") or getattr(module.config, "output_attentions", False)
    # One that was given back to eager attention has matrices to give.
    if asked and module.get_decoder().config._attn_implementation in (NAME, UNPADDED):
        raise ValueError("output_attentions: symground never builds the attention matrix; use symground.trace instead")


def _prepare(derive: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the model is given, a mask of all pairs as one of keys, and with the positions that the mask means."""
    inputs = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if inputs is None and args:
        inputs = args[0]
    cache = next((kwargs[n] for n in ("cache", "past_key_values", "cache_params") if kwargs.get(n) is not None), None)
    mask = kwargs.get("attention_mask")
    if mask is None and cache is None and isinstance(inputs, Tensor) and torch.compiler.is_compiling():
        # While it compiles, transformers cannot tell texts packed into a row from a single one, and masks for those.
        if module.get_decoder().config._attn_implementation == NAME:  # type: ignore[operator]
            kwargs = {**kwargs, "attention_mask": inputs.new_ones(inputs.shape[:2], dtype=torch.long)}
        return args, kwargs
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 4 and not is_key_range(mask):
        mask = padding_of(mask)
        kwargs = {**kwargs, "attention_mask": mask}
    if not derive or mask.ndim != 2 or kwargs.get("position_ids") is not None or inputs is None:
        return args, kwargs
    read, new = 0 if cache is None else int(cache.get_seq_length()), inputs.shape[1]
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    # A mask may be as long as a cache of fixed size, or no longer than what is new.
    positions = positions[:, read : read + new] if mask.shape[1] >= read + new else positions[:, -new:]
    if hasattr(module, "get_rope_index"):  # the positions of images have three axes, which the model finds by itself
        if read or any(kwargs.get(name) is not None for name in ("image_grid_thw", "video_grid_thw")):
            return args, kwargs
        positions = positions.expand(3, -1, -1)
    return args, {**kwargs, "position_ids": positions}
