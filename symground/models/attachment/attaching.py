"""Making a model traceable, in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from symground.models.architectures import (
    NAME,
    UNPADDED,
    LSTMForCausalLM,
    MambaMixer,
    fuse_gelu,
    give_back_mamba,
    mamba_mixers,
    write_out_gelu,
)
from symground.models.attachment.call_arguments import hook_calls
from symground.models.attachment.lookup import (
    ATTACHED,
    INSTEAD,
    OURS,
    check_in_use,
    check_layers,
    check_model,
    remember,
)
from symground.models.attachment.support import attention_layers
from symground.models.hooks import Mixer, forget_when_checkpointing
from symground.models.trials import verified_readout

M = TypeVar("M", bound=PreTrainedModel)
_BEFORE = f"{OURS}before"


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
    again = hasattr(model, ATTACHED)
    if isinstance(model, LSTMForCausalLM):
        remember(model, ())
        return model
    if not again:
        configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
        before = tuple((config, config._attn_implementation) for config in configs.values())
        object.__setattr__(model, _BEFORE, _Before(before, ()))
    try:
        found = mamba_mixers(model) or attention_layers(model)
        if not isinstance(found[0].module, MambaMixer):
            model.set_attn_implementation(_of_decoder(model))
        check_in_use(model, found, "takes no attention function of transformers")
        _check_numbers(model, found)
        check_layers(model, found, "do not stand in the order of their numbers (layer_idx)")
        if not again:
            object.__setattr__(model, _BEFORE, _Before(before, hook_calls(model)))
        fuse_gelu(model.get_decoder())
        remember(model, found)
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
    if any(not mixer.tap.idle for mixer in getattr(model, ATTACHED, ())):
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
        for name in [name for name in vars(module) if name.startswith(OURS)]:
            object.__delattr__(module, name)
    return model


def _of_decoder(model: PreTrainedModel) -> str | dict[str, str]:
    """What to set, so that a vision tower keeps the attention it has."""
    text = model.get_decoder().config
    for name in model.config.sub_configs:
        if getattr(model.config, name, None) is text:
            return {name: NAME}
    return NAME


def _check_numbers(model: PreTrainedModel, found: tuple[Mixer, ...]) -> None:
    if len({mixer.layer for mixer in found}) < len(found):
        raise ValueError(
            f"model: several layers of {type(model).__name__} have the same number: heads cannot be told apart; "
            f"{INSTEAD}"
        )
