"""Making a model traceable, in place."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from symground.models.architectures.attention import NAME, UNPADDED
from symground.models.architectures.gelu import fuse_gelu, write_out_gelu
from symground.models.architectures.lstm import LSTMForCausalLM
from symground.models.architectures.mamba2 import MambaMixer, give_back_mamba, mamba_mixers
from symground.models.hooks.mixers import Mixer
from symground.models.hooks.scopes import forget_when_checkpointing, remember_when_checkpointing
from symground.models.trials.output_head import verified_readout

M = TypeVar("M", bound=PreTrainedModel)
_OURS = "_symground_"
_ATTACHED, _BEFORE = f"{_OURS}mixers", f"{_OURS}before"
#: Models that have ALiBi without a word of it in their configuration.
_ALIBI = ("Bloom", "Mpt")
#: Of a head, as `ops.attention` takes it.
_WIDEST = 256
#: Parts of a layer that mix positions, by the names that transformers gives their classes.
_MIXES = re.compile("attention|attn|mixer|delta|recurrent|lightning|ssm|lstm|mamba|rwkv", re.IGNORECASE)
_INSTEAD = (
    "symground.score takes the model as transformers loads it, without symground.attach or symground.load, and "
    "docs/models.md lists those that can be traced"
)


class _Before(NamedTuple):
    """What `detach` gives back, beside what is told by its class."""

    configs: tuple[tuple[PreTrainedConfig, str | None], ...]
    """Each configuration and its attention implementation."""
    hooks: tuple[RemovableHandle, ...]


def attach(model: M) -> M:
    """Make a Hugging Face causal language model traceable in place, and return it.

    Its attention becomes ``symground``; of a vision-language model that of its text decoder, while the vision tower
    keeps its own. Where a mask [B,S] is given without ``position_ids`` they are derived from the mask, so that a padded
    batch equals its single rows. A GELU that is written out in several operations becomes one. Mamba-2's mixers become
    `MambaMixer`. An LSTM is accepted and has no mixers. Attaching twice is attaching once.
    Checkpoints of an attached model are those of the model it was. :func:`symground.detach` undoes it.

    Two tokens go through the model, to see that its logits are its head's product with its last hidden states, unless
    weights of it are on the meta device (then a trace sees to it).

    Raises:
        ValueError: not a Hugging Face model, or one whose attention heads cannot be located, or with an attention or
            logits that symground does not support (by its name). The model is then as it was.
    """
    check_model(model)
    again = hasattr(model, _ATTACHED)
    if isinstance(model, LSTMForCausalLM):
        object.__setattr__(model, _ATTACHED, ())
        return model
    if not again:
        configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
        before = tuple((config, config._attn_implementation) for config in configs.values())
        object.__setattr__(model, _BEFORE, _Before(before, ()))
    try:
        found = mamba_mixers(model) or _attention_layers(model)
        if not isinstance(found[0].module, MambaMixer):
            model.set_attn_implementation(_of_decoder(model))
        _check_in_use(model, found, "takes no attention function of transformers")
        _check_numbers(model, found)
        _check_layers(model, found, "do not stand in the order of their numbers (layer_idx)")
        if not again:
            object.__setattr__(model, _BEFORE, _Before(before, _hooked(model)))
        fuse_gelu(model.get_decoder())
        object.__setattr__(model, _ATTACHED, found)
        if not any(parameter.is_meta for parameter in model.parameters()):
            with _in_evaluation(model):  # dropout would make the two passes of the trial differ
                verified_readout(model)
    except Exception:
        if not again:
            detach(model)
        raise
    return model


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def detach(model: M) -> M:
    """Give a model back as it was before :func:`symground.attach`, in place, and return it.

    Its attention implementation, its activations and Mamba-2's mixers are its own again, and no hook or note of
    symground's is left; its outputs are what they were, to the bit. An attention implementation that was chosen after
    attaching stays. A model that is not attached stays as it is.

    Raises:
        ValueError: not a Hugging Face model, or one within a block of :func:`symground.ablate` and its kind.
    """
    check_model(model)
    if any(not mixer.tap.idle for mixer in getattr(model, _ATTACHED, ())):
        raise ValueError("model: expected none of its heads silenced or traced meanwhile; leave those blocks first")
    before: _Before | None = getattr(model, _BEFORE, None)
    if before is not None:
        for handle in before.hooks:
            handle.remove()
        for config, implementation in before.configs:
            if config._attn_implementation in (NAME, UNPADDED):
                config._attn_implementation_internal = implementation
        write_out_gelu(model.get_decoder())
        give_back_mamba(model)
        forget_when_checkpointing(model)
    for module in model.modules():
        for name in [name for name in vars(module) if name.startswith(_OURS)]:
            object.__delattr__(module, name)
    return model


def check_model(model: Any) -> None:
    """Refuse what is no model of transformers, and say where it is when something wraps it.

    Raises:
        ValueError: it is none.
    """
    if isinstance(model, PreTrainedModel):
        return
    got = f"model: expected a model of transformers (PreTrainedModel), got {type(model).__name__}"
    if hasattr(type(model), "get_base_model"):
        got += "; peft's wrapper holds one, with its adapters: model.get_base_model()"
    elif hasattr(model, "_orig_mod"):
        got += "; torch.compile's wrapper holds one: compile model.model, or what is in model._orig_mod, instead"
    elif isinstance(getattr(model, "module", None), PreTrainedModel):
        got += "; this wrapper holds one: model.module"
    elif isinstance(model, str):
        got += f"; symground.load({model!r}) loads one"
    raise ValueError(got)


def _hooked(model: PreTrainedModel) -> tuple[RemovableHandle, ...]:
    # RoBERTa's and its kin's positions begin after the padding's, and they find them in the ids.
    counted = any(
        isinstance(part, nn.Embedding) and name.endswith("position_embeddings") and part.padding_idx is not None
        for name, part in model.base_model.named_modules()
    )
    names = tuple(inspect.signature(model.base_model.forward).parameters)
    derive = not counted and "position_ids" in names
    return (
        model.register_forward_pre_hook(_check_call, with_kwargs=True),
        model.base_model.register_forward_pre_hook(partial(_prepare, names, derive), with_kwargs=True),
    )


def _check_in_use(model: nn.Module, found: tuple[Mixer, ...], why: str) -> None:
    """Refuse a model some of whose layers would silently pass a tap by."""
    for mixer in found:
        if isinstance(mixer.module, MambaMixer):
            continue
        used = getattr(mixer.module.config, "_attn_implementation", None)
        if used != NAME:
            raise ValueError(
                f"model: layer {mixer.layer} of {type(model).__name__} runs its attention as {used!r}, which shows no "
                f"heads: {type(mixer.module).__name__} {why}; {_INSTEAD}"
            )


def mixers(model: nn.Module) -> tuple[Mixer, ...]:
    """The model's mixers, by layer; empty for an LSTM.

    Raises:
        ValueError: the model was not attached, or has been given another attention implementation or other layers
            since.
    """
    check_model(model)
    found: tuple[Mixer, ...] | None = getattr(model, _ATTACHED, None)
    if found is None:
        raise ValueError(
            f"model: expected one made traceable by symground.attach or symground.load, got {type(model).__name__} "
            "without it; symground.attach(model)"
        )
    _check_in_use(
        model, found, "was given another attention implementation after symground.attach; attach the model again"
    )
    _check_layers(model, found, "are no longer those that symground.attach saw; attach the model again")
    return found


def _check_numbers(model: PreTrainedModel, found: tuple[Mixer, ...]) -> None:
    if len({mixer.layer for mixer in found}) < len(found):
        raise ValueError(
            f"model: several layers of {type(model).__name__} have the same number: heads cannot be told apart; "
            f"{_INSTEAD}"
        )


def _check_layers(model: Any, found: tuple[Mixer, ...], why: str) -> None:
    """Refuse a model whose mixers are others than these: a tap would act on a layer that is gone, or on another one."""
    if found:
        kinds = {type(mixer.module) for mixer in found}
        there = [module for module in _parts(model.get_decoder()) if type(module) in kinds]
        if [id(module) for module in there] != [id(mixer.module) for mixer in found]:
            raise ValueError(f"model: the layers of {type(model).__name__} {why}")


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Modules within a module, in their order, each as often as it stands there."""
    for part in module._modules.values():
        if part is not None:
            yield part
            yield from _parts(part)


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
        raise ValueError(
            f"model: {name} has an encoder and cross-attention, which symground does not support; {_INSTEAD}"
        )
    if getattr(model.config.get_text_config(), "alibi", False) or type(model).__name__.startswith(_ALIBI):
        raise ValueError(
            f"model: {name} biases its scores by distance (ALiBi), which symground does not support; {_INSTEAD}"
        )
    found = []
    for module in model.get_decoder().modules():
        layer = getattr(module, "layer_idx", None)
        if not type(module).__name__.endswith("Attention") or not isinstance(layer, int):
            continue
        config = getattr(module, "config", None)
        for applies, variant in _unlike(module, config):
            if applies:
                raise ValueError(f"model: {name} {variant}, which symground does not support; {_INSTEAD}")
        heads = getattr(module, "num_heads", None) or getattr(config, "num_attention_heads", None)
        if config is None or not isinstance(heads, int):
            raise ValueError(_unknown(model, [type(module).__name__]))
        found.append(Mixer(layer, heads, module))
    if not found:
        raise ValueError(_unknown(model, _what_mixes(model)))
    return tuple(sorted(found, key=lambda mixer: mixer.layer))


def _unknown(model: PreTrainedModel, parts: Sequence[str]) -> str:
    return (
        f"model: the layers of {type(model).__name__} mix positions by {', '.join(parts)}: symground sees no heads "
        "there, since this is no attention with heads, or one that takes no attention function of transformers "
        f"(attn_implementation); {_INSTEAD}"
    )


def _what_mixes(model: PreTrainedModel) -> list[str]:
    """Classes of a decoder's parts that mix positions, as far as names tell; of its layers where they do not."""
    decoder = model.get_decoder()
    layers = [part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part)]
    inside = {type(part).__name__ for stack in layers for layer in stack for part in layer.modules()}
    named = sorted(name for name in inside if _MIXES.search(name) and not name.endswith(("Layer", "Block")))
    return (
        named or sorted({type(layer).__name__ for stack in layers[:1] for layer in stack}) or [type(decoder).__name__]
    )


def _unlike(module: nn.Module, config: Any) -> Iterator[tuple[bool, str]]:
    """Whether an attention module is unlike what `ops.attention` computes, and how."""
    kind = type(module)
    crosses = getattr(module, "is_cross_attention", False) or "CrossAttention" in kind.__name__
    yield crosses, "has cross-attention"
    yield getattr(module, "attn_logit_softcapping", None) is not None, "has capped scores (softcap)"
    yield getattr(module, "sinks", None) is not None, "has sinks (s_aux)"
    encodes = getattr(config, "is_decoder", True) is False
    follows = "lets text see what follows it" + (" (is_decoder=False in its configuration)" if encodes else "")
    yield getattr(module, "is_causal", True) is False, follows
    keys, values = (getattr(module, size, None) for size in ("qk_head_dim", "v_head_dim"))
    yield keys is not None and values not in (None, keys), "has values of another width than its keys (MLA)"
    yield (getattr(module, "head_dim", None) or 0) > _WIDEST, f"has heads wider than {_WIDEST}"
    yield kind.__name__.startswith("DiffLlama"), "has two attention matrices a head"
    window = getattr(config, "sliding_window", None)
    told = "sliding_window" in inspect.getsource(kind.forward)
    yield window is not None and not told, "has a sliding window that its layers do not tell their attention function"


def _check_call(module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what a call asks that the attention which is set cannot do: matrices of ours, heads of another."""
    asked = kwargs.get("output_attentions") or getattr(module.config, "output_attentions", False)
    implementation = module.get_decoder().config._attn_implementation
    if implementation in (NAME, UNPADDED):
        if asked:
            raise ValueError(
                "output_attentions: symground never builds the attention matrix; use symground.trace instead"
            )
    elif not torch.compiler.is_compiling():
        for mixer in getattr(module, _ATTACHED, ()):
            if not isinstance(mixer.module, MambaMixer) and not mixer.tap.idle:
                raise ValueError(
                    f"model: its attention was set to {implementation!r} within a block that silences or traces heads "
                    f"of layer {mixer.layer}, and would pass the block by; leave the block first"
                )


def _prepare(
    names: tuple[str, ...], derive: bool, module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What the model is given, with the positions that its mask means. Nothing while it has another attention."""
    remember_when_checkpointing(module)
    implementation = module.get_decoder().config._attn_implementation
    if implementation not in (NAME, UNPADDED):
        return None
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    inputs = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    cache = next((given[n] for n in ("cache", "past_key_values", "cache_params") if given.get(n) is not None), None)
    mask = given.get("attention_mask")
    if mask is None and cache is None and isinstance(inputs, Tensor) and torch.compiler.is_compiling():
        # While it compiles, transformers cannot tell texts packed into a row from a single one, and masks for those.
        if implementation == NAME and "attention_mask" not in names[: len(args)]:
            kwargs = {**kwargs, "attention_mask": inputs.new_ones(inputs.shape[:2], dtype=torch.long)}
        return args, kwargs
    if not isinstance(mask, Tensor) or not derive or mask.ndim != 2 or inputs is None:
        return None
    if given.get("position_ids") is not None or "position_ids" in names[: len(args)]:
        return None
    read, new = 0 if cache is None else int(cache.get_seq_length()), inputs.shape[1]
    positions = (mask.bool().long().cumsum(-1) - 1).clamp(min=0)  # a number above 1 is a valid token too
    # A mask may be as long as a cache of fixed size, or no longer than what is new.
    positions = positions[:, read : read + new] if mask.shape[1] >= read + new else positions[:, -new:]
    if hasattr(module, "get_rope_index"):  # the positions of images have three axes, which the model finds by itself
        if read or any(given.get(name) is not None for name in ("image_grid_thw", "video_grid_thw")):
            return None
        positions = positions.expand(3, -1, -1)
    return args, {**kwargs, "position_ids": positions}
