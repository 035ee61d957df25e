"""Trials by which attaching verifies a model: its logits, its heads, and what else mixes its positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from symground.errors import is_about
from symground.models.architectures import twins_pass
from symground.models.attachment.call_arguments import leave_positions
from symground.models.attachment.lookup import instead
from symground.models.hooks import (
    Mixer,
    Tap,
    device_of,
    head_outputs,
    is_encoder_decoder,
    runs_once,
    stacks,
    tapped,
    untapped,
)
from symground.models.trials import agree, positions_of, trial_ids, verified_readout

#: Calls of a model on a few words, and what it may compute of them.
Outputs: TypeAlias = Sequence[tuple[dict[str, Tensor], Sequence[Tensor]]]
#: Configurations of a model and its parts, each with its attention implementation.
Implementations: TypeAlias = Sequence[tuple[PreTrainedConfig, str | None]]


@torch.no_grad()
def outputs_of(model: PreTrainedModel, before: Implementations) -> Outputs:
    """What a model computes of a few words without a mask, and if it takes one with a mask; nothing if it fails.

    It is computed with its attention ``before`` and, if that is another one of transformers' own, with eager attention,
    since these may differ: sdpa without a mask goes by what a layer says, and Falcon's eager attention adds its bias
    twice (transformers 5.24).
    """
    found: list[tuple[dict[str, Tensor], list[Tensor]]] = []
    if model.main_input_name != "input_ids" or any(parameter.is_meta for parameter in model.parameters()):
        return found
    given = _words(model)
    known = [config for config, name in before if name is not None and _owner(name) == "transformers"]
    ways = [[]] if all(config._attn_implementation == "eager" for config in known) else [known, []]
    for more in ({}, {"attention_mask": torch.ones_like(given["input_ids"])}):
        several = []
        for eager in ways:
            with suppress(Exception), _as_eager(eager):
                several.append(_first(model(**given, **more)))
        if not several:
            break
        found.append(({**given, **more}, several))
    return found


def _words(model: PreTrainedModel) -> dict[str, Tensor]:
    """A few words of two equal examples, as inputs of the model."""
    ids = trial_ids(model, 4).to(device_of(model)).expand(2, -1)
    return {"input_ids": ids, **({"decoder_input_ids": ids} if is_encoder_decoder(model) else {})}


@contextmanager
def _as_eager(configs: Sequence[PreTrainedConfig]) -> Iterator[None]:
    names = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation_internal = "eager"
    try:
        yield
    finally:
        for config, name in zip(configs, names, strict=True):
            config._attn_implementation_internal = name


def _owner(name: str) -> str:
    """The package of an attention function; of "eager", which has no function by its name, transformers."""
    function = ALL_ATTENTION_FUNCTIONS.get(name)
    module: str | None = getattr(getattr(function, "func", function), "__module__", None)
    return "transformers" if function is None or module is None else module.partition(".")[0]


def _first(out: Any) -> Tensor:
    """The logits, or what else a model's output begins with."""
    return next(x for x in out.to_tuple() if isinstance(x, Tensor) and x.is_floating_point())


def check_function(model: PreTrainedModel, compared: bool) -> None:
    """Refuse an attention function of other code unless its outputs in full precision were ``compared`` with ours.

    The model is as before attaching.
    """
    exact = all(p.dtype in (torch.float32, torch.float64) for p in model.parameters() if p.is_floating_point())
    for part in stacks(model).values():
        name = getattr(part, "config", model.config)._attn_implementation
        owner = "transformers" if name is None else _owner(name)
        if owner not in ("transformers", "symground") and not (compared and exact):
            raise ValueError(
                f"model: the attention of {type(model).__name__} is {name!r}, a function of {owner}, which symground's "
                "would replace; model.set_attn_implementation('sdpa') chooses transformers' own, and a language model "
                "in float32 is compared"
            )


def verify(model: PreTrainedModel, found: tuple[Mixer, ...], written_out: Sequence[Mixer], own: Outputs) -> None:
    """Verify that the model computes the same as before attaching (``own``), its readout and its heads.

    Raises:
        ValueError: they are others, or the model's own code does not take our mask or attention.
    """
    try:
        if model.get_output_embeddings() is not None and not is_encoder_decoder(model):
            verified_readout(model)
        _verify_heads(model, found, written_out)
        _compare(model, own)
    except Exception as error:
        if is_about(error, "model", "heads"):
            raise
        if is_about(error, "attention_mask"):  # which the model made, since none was given to it
            raise ValueError(
                f"model: {type(model).__name__} makes a mask that symground's attention does not take ({error}); "
                f"{instead(model)}"
            ) from error
        raise ValueError(
            f"model: {_raised_in(error)} of {type(model).__name__} reads its mask or its attention's result otherwise "
            f"than symground gives it ({type(error).__name__}: {error}); {instead(model)}"
        ) from error


@torch.no_grad()
def _compare(model: PreTrainedModel, own: Outputs) -> None:
    """Refuse a model that computes something else than before attaching.

    With a mask, its positions may count otherwise than the mask does: then they are left to the model.
    """
    with untapped():
        for given, expected in own:
            masked = "attention_mask" in given
            try:
                same = _agree(model, given, expected)
                if not same and masked:
                    leave_positions(model)
                    same = _agree(model, given, expected)
            except Exception:
                if masked:  # a call with a mask says so
                    return
                raise
            if not same:
                raise ValueError(
                    f"model: {type(model).__name__} computes something else with symground's attention than before"
                    + (" if a mask is given; " if masked else "; ")
                    + instead(model)
                )


def _agree(model: PreTrainedModel, given: dict[str, Tensor], several: Sequence[Tensor]) -> bool:
    """Whether a call gives one of several results; true of a random model, which a trace refuses.

    In half precision, rounding may send a token to another expert.
    """
    found = _first(model(**given))
    exact = found.dtype in (torch.float32, torch.float64) and torch.get_float32_matmul_precision() == "highest"
    tolerance = 1e-4 if exact else 0.3
    if any(not (found - expected).norm() > tolerance * expected.norm() for expected in several):
        return True
    return not torch.equal(found, _first(model(**given)))


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
        given = _words(model)
        own = _first(model(**given)) if written_out else None
        try:
            with head_outputs(found) as outputs, runs_once(model, found) as check, twins_pass():
                ours = _first(model(**given))
            check()
        except ValueError as error:
            if not is_about(error, "model"):
                raise
            # What a layer does that symground's attention does not.
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
    length, device = min(24, positions_of(model) or 24), device_of(model)
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
