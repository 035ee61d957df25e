"""Attach and detach: a model is made traceable in place, and restored."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from symground.models.architectures import (
    NAME,
    PACKED,
    UNPADDED,
    LSTMForCausalLM,
    MambaMixer,
    fuse_gelu,
    give_back_mamba,
    is_packed,
    is_written_out,
    pack,
    watch,
    write_out_gelu,
)
from symground.models.attachment.call_arguments import hook_calls
from symground.models.attachment.lookup import (
    ATTACHED,
    OURS,
    UNTRACED,
    WHOLE,
    check_in_use,
    check_layers,
    check_model,
    instead,
    is_attached,
    remember,
)
from symground.models.attachment.support import mixers_of, untraced_of
from symground.models.attachment.verifying import Outputs, check_function, mixes_otherwise, outputs_of, verify
from symground.models.hooks import (
    WITH_VISION,
    Mixer,
    asked_of,
    body,
    forget_when_checkpointing,
    is_encoder_decoder,
    stacks,
    vision_tower,
)

M = TypeVar("M", bound=PreTrainedModel)
_BEFORE = f"{OURS}before"


class _Before(NamedTuple):
    """What `detach` restores, apart from the modules that it recognises by their class."""

    configs: tuple[tuple[PreTrainedConfig, str | None], ...]
    """Each configuration and its attention implementation."""
    hooks: tuple[RemovableHandle, ...] = ()
    pools: tuple[tuple[Any, PreTrainedConfig], ...] = ()
    """Modules that have a configuration of their own meanwhile, and the one that they had."""


def attach(model: M, parts: Sequence[str] | None = None) -> M:
    """Make a Hugging Face model traceable in place, and return it.

    Its layers mix positions by softmax attention or Mamba-2. A causal or masked language model is traced from a word's
    surprisal; any other, such as a classifier of texts or pictures, from a loss of the caller's
    (:func:`symground.trace`).

    The attention implementation becomes ``symground``, also of other models that were built from the same configuration
    object. In a vision-language model, only the text decoder changes, and the vision tower keeps its own, unless
    ``parts`` says otherwise. If a mask [B,S] is passed without ``position_ids``, they are derived from the mask, so
    that a padded batch equals its single rows. A GELU that is written out in several operations becomes one. Mamba-2's
    mixers become `MambaMixer`, in a hybrid beside its attention; where one layer has both, its Mamba-2 is numbered on
    after all layers. A warning names what else mixes positions in a model, since it is not traced. An LSTM is accepted
    and has no mixers. Attaching twice equals attaching once. Checkpoints of an attached model equal those of the
    original. :func:`symground.detach` restores the model.

    If the model has a vocabulary head, a trial of a few tokens finds out what gives the logits from its last hidden
    states: their product with the head, or the model's own forward pass from them on. Others find out whether each
    layer has as many heads as it says, whether attention that is written out equals ours, and whether anything else
    mixes positions. If weights are on the meta device, the first trace does the first of these alone.

    Args:
        model: a model of transformers.
        parts: ("text",), or ("text", "vision") to trace the layers of a vision tower too, which are numbered on after
            those of the text; None is as it is attached, or at first the text alone.

    Raises:
        ValueError: the model is not one of Hugging Face, it has no vision tower, its attention heads cannot be located,
            or symground does not support its attention or its logits (the message names them). The model is then
            unchanged.
    """
    check_model(model)
    again = is_attached(model)
    with_vision = getattr(model, WITH_VISION, False) if parts is None else _with_vision(model, parts)
    if isinstance(model, LSTMForCausalLM):
        remember(model, ())
        return model
    if again and with_vision != getattr(model, WITH_VISION, False):
        detach(model)
        again = False
    own: Outputs = []
    if not again:
        before = tuple((config, config._attn_implementation) for config in _configs(model))
        object.__setattr__(model, _BEFORE, _Before(before))
    object.__setattr__(model, WITH_VISION, with_vision)
    try:
        found = mixers_of(model)
        if with_vision and all(mixer.kind != "vision" for mixer in found):
            raise ValueError(f"parts: the vision tower of {type(model).__name__} has no heads of softmax attention")
        if not again:
            with _in_evaluation(model):  # with dropout, the trial's passes would differ
                own = outputs_of(model, getattr(model, _BEFORE).configs)
            check_function(model, bool(own))
        written_out = [mixer for mixer in found if is_written_out(mixer.module)]
        calling = [m for m in found if not isinstance(m.module, MambaMixer) and m not in written_out]
        if calling:
            _set_implementation(model, calling)
            _leave_others(model, calling, bool(written_out))
        packed = [mixer.module for mixer in found if mixer.kind == "vision" and is_packed(mixer.module)]
        pictures = pack(vision_tower(model), packed) if packed else ()
        check_in_use(model, found, "takes no attention function of transformers")
        _check_numbers(model, found)
        check_layers(model, found, "are not in the order of their numbers (layer_idx)")
        if not again:
            hooks = (*hook_calls(model, bool(written_out)), *watch(written_out), *pictures)
            object.__setattr__(model, _BEFORE, getattr(model, _BEFORE)._replace(hooks=hooks))
        for part in stacks(model).values():
            fuse_gelu(part)
        remember(model, found)
        names = untraced_of(model, found)
        untried = model.main_input_name == "input_ids" and any(parameter.is_meta for parameter in model.parameters())
        if not again:
            object.__setattr__(model, WHOLE, not own and not untried and model.get_output_embeddings() is not None)
        # Others are traced from a loss of the caller's, or have inputs that a trial does not know.
        if own or (again and model.main_input_name == "input_ids" and not untried and not getattr(model, WHOLE)):
            with _in_evaluation(model):
                verify(model, found, written_out, own)
                decodes = model.get_output_embeddings() is not None and not is_encoder_decoder(model)
                if decodes and not names and mixes_otherwise(model, found):
                    names = ("layers that symground does not know",)
        _name_untraced(model, names)
    except Exception:
        if not again:
            detach(model)
        raise
    return model


def _with_vision(model: PreTrainedModel, parts: Sequence[str]) -> bool:
    """Whether the parts to trace include the vision tower; they always include the text."""
    if isinstance(parts, str) or not {"text"} <= set(parts) <= {"text", "vision"}:
        raise ValueError(f'parts: expected ("text",) or ("text", "vision"), got {parts!r}')
    with_vision = "vision" in parts
    if with_vision and (is_encoder_decoder(model) or vision_tower(model) is None):
        raise ValueError(f"parts: {type(model).__name__} has no vision tower beside a text decoder")
    return with_vision


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
    """Restore a model in place to its state before :func:`symground.attach`, and return it.

    Its attention implementation, activations and Mamba-2 mixers are restored, and no hook or attribute of symground's
    is left. Its outputs equal those before attaching to the bit. An attention implementation that was set after
    attaching is kept. A model that is not attached is unchanged.

    Raises:
        ValueError: the model is not one of Hugging Face, or is in a block such as :func:`symground.ablate`.
    """
    check_model(model)
    if asked_of(body(model)) or any(not mixer.tap.idle for mixer in getattr(model, ATTACHED, ())):
        raise ValueError(
            "model: expected none of its heads silenced, traced or observed meanwhile; leave those blocks first"
        )
    before: _Before | None = getattr(model, _BEFORE, None)
    if before is not None:
        for handle in before.hooks:
            handle.remove()
        for module, config in before.pools:
            module.config = config
        for config, implementation in before.configs:
            if config._attn_implementation in (NAME, UNPADDED, PACKED):
                config._attn_implementation_internal = implementation
        for part in stacks(model).values():
            write_out_gelu(part)
        give_back_mamba(model)
        forget_when_checkpointing(model)
    for module in model.modules():
        for name in [name for name in vars(module) if name.startswith(OURS)]:
            object.__delattr__(module, name)
    return model


def _set_implementation(model: PreTrainedModel, calling: Sequence[Mixer]) -> None:
    """Set the attention implementation of the parts that are traced, whose ``calling`` layers look it up."""
    model.set_attn_implementation(_of_decoder(model))
    modules: list[Any] = [mixer.module for mixer in calling]
    if any(module.config._attn_implementation != NAME for module in modules):
        for part in stacks(model).values():  # their configurations are copies of the model's
            for config in _configs(part):
                config._attn_implementation = NAME


def _leave_others(model: PreTrainedModel, calling: Sequence[Mixer], written_out: bool) -> None:
    """Leave the masks of attention that symground does not compute to the implementation from before.

    It is that of modules which pool by torch's own attention (Siglip-2's), and of attention that is written out.
    """
    before: _Before = getattr(model, _BEFORE)
    given = {id(config): implementation for config, implementation in before.configs}
    used = {id(mixer.module.config) for mixer in calling}
    for config in _configs(model) if written_out else ():
        if id(config) not in used and id(config) in given:
            config._attn_implementation_internal = given[id(config)]
    known, pools = {module for module, _ in before.pools}, list(before.pools)
    module: Any
    for module in (module for of in stacks(model).values() for module in of.modules()):
        own: Any = getattr(module, "config", None)
        pooling = any(isinstance(part, nn.MultiheadAttention) for part in module.children())
        if pooling and module not in known and id(own) in used:
            pools.append((module, own))
            module.config = copy.copy(own)
            module.config._attn_implementation_internal = given[id(own)]
    object.__setattr__(model, _BEFORE, before._replace(pools=tuple(pools)))


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    """The configurations of a model and its parts."""
    found = [getattr(module, "config", None) for module in model.modules()]
    return list({id(config): config for config in found if isinstance(config, PreTrainedConfig)}.values())


def _of_decoder(model: PreTrainedModel) -> str | dict[str, str]:
    """The attention implementation to set: only for the parts that are traced, if the model has others."""
    if is_encoder_decoder(model):
        return NAME
    configs = [part.config for part in stacks(model).values()]
    names = [name for name in model.config.sub_configs if getattr(model.config, name, None) in configs]
    return dict.fromkeys(names, NAME) if len(names) == len(configs) else NAME


def _name_untraced(model: PreTrainedModel, names: tuple[str, ...]) -> None:
    """Store what is not traced, and warn of it once."""
    if names and getattr(model, UNTRACED, None) != names:
        warnings.warn(
            f"{type(model).__name__} also mixes positions by {', '.join(names)}, which symground does not trace: what "
            "passes through these layers is in no saliency, flow or head",
            stacklevel=3,
        )
    object.__setattr__(model, UNTRACED, names)


def _check_numbers(model: PreTrainedModel, found: tuple[Mixer, ...]) -> None:
    if len({mixer.layer for mixer in found}) < len(found):
        raise ValueError(
            f"model: several layers of {type(model).__name__} have the same number: heads cannot be told apart; "
            f"{instead(model)}"
        )
