"""Trials by which attaching verifies a model: its logits, its heads, and what else mixes its positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from symground.errors import is_about
from symground.models.architectures import twins_pass
from symground.models.attachment.lookup import instead
from symground.models.hooks import (
    Mixer,
    Tap,
    device_of,
    head_outputs,
    is_encoder_decoder,
    runs_once,
    tapped,
    untapped,
)
from symground.models.trials import agree, positions_of, trial_ids, verified_readout

#: Configurations of a model and its parts, each with its attention implementation.
Implementations: TypeAlias = Sequence[tuple[PreTrainedConfig, str | None]]


def verify(
    model: PreTrainedModel, found: tuple[Mixer, ...], written_out: Sequence[Mixer], before: Implementations
) -> bool:
    """Verify the readout and heads; False if the model does not run on words alone, with its own attention neither.

    ``before`` is the attention that it had before attaching.

    Raises:
        ValueError: they are others, or the model's own code does not take our mask or attention.
    """
    try:
        if not is_encoder_decoder(model):
            verified_readout(model)
        _verify_heads(model, found, written_out)
    except Exception as error:
        if is_about(error, "model", "heads"):
            raise
        if not _runs_on_words(model, before):
            return False
        if is_about(error, "attention_mask"):  # which the model made, since none was given to it
            raise ValueError(
                f"model: {type(model).__name__} makes a mask that symground's attention does not take ({error}); "
                f"{instead(model)}"
            ) from error
        raise ValueError(
            f"model: {_raised_in(error)} of {type(model).__name__} reads its mask or its attention's result otherwise "
            f"than symground gives it ({type(error).__name__}: {error}); {instead(model)}"
        ) from error
    return True


@torch.no_grad()
def _runs_on_words(model: PreTrainedModel, before: Implementations) -> bool:
    """Whether the model runs on a few tokens with the attention that it had before attaching."""
    ours = [(config, config._attn_implementation) for config, _ in before]
    ids = trial_ids(model, 4).to(device_of(model))
    try:
        for config, implementation in before:
            config._attn_implementation_internal = implementation
        with untapped():
            model(input_ids=ids, **({"decoder_input_ids": ids} if is_encoder_decoder(model) else {}))
    except Exception:
        return False
    finally:
        for config, implementation in ours:
            config._attn_implementation_internal = implementation
    return True


def _raised_in(error: BaseException) -> str:
    """Class name of the innermost module, but for torch's own, whose forward pass raised an error."""
    name, trace = "the forward pass", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and not type(module).__module__.startswith("torch."):
            name = type(module).__name__
        trace = trace.tb_next
    return name


@torch.no_grad()
def _verify_heads(model: PreTrainedModel, found: tuple[Mixer, ...], written_out: Sequence[Mixer]) -> None:
    """Refuse a model with other numbers of heads than its layers say, or whose own attention gives other logits."""
    name = type(model).__name__
    with untapped():
        ids = trial_ids(model, 4).to(device_of(model)).expand(2, -1)
        given = {"input_ids": ids, **({"decoder_input_ids": ids} if is_encoder_decoder(model) else {})}
        own = model(**given).logits if written_out else None
        try:
            with head_outputs(found) as outputs, runs_once(model, found) as check, twins_pass():
                ours = model(**given).logits
            check()
        except ValueError as error:  # what a layer does that symground's attention does not
            raise ValueError(f"{error}; {instead(model)}") from error
    for mixer in found:
        seen = outputs[mixer.layer].shape[2] if mixer.layer in outputs else mixer.heads
        if seen != mixer.heads:
            raise ValueError(
                f"model: layer {mixer.layer} of {name} mixes positions by {seen} heads in place of {mixer.heads}, as "
                f"if each token chose its heads, which symground does not support; {instead(model)}"
            )
    if own is not None and not agree(ours, own):
        kinds = ", ".join(sorted({type(mixer.module).__name__ for mixer in written_out}))
        raise ValueError(f"model: {kinds} of {name} is no softmax attention as symground computes it; {instead(model)}")


@torch.no_grad()
def mixes_otherwise(model: PreTrainedModel, found: tuple[Mixer, ...]) -> bool:
    """Whether the logits of a position depend on another token, before or after it, even if all heads are silenced."""
    most = (positions_of(model) or 24) - 2  # RoBERTa counts from the padding's id on
    length, device = min(24, most), device_of(model)
    middle = min(5, length // 2)
    if middle < 1:
        return False
    ids = trial_ids(model, length).to(device).repeat(2, 1)
    ids[1, middle] = ids[0, middle - 1]
    taps = {mixer: Tap(gate=torch.zeros(mixer.heads, device=device_of(mixer.module))) for mixer in found}
    with untapped(), tapped(taps):
        one, other = model(input_ids=ids).logits
    others = torch.arange(ids.shape[1], device=one.device) != middle
    return bool(((one - other).norm(dim=-1) > 1e-3 * one.norm(dim=-1))[others].any())
