"""Attention in the log of transformers' Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from symground.analysis import Observation, observe
from symground.errors import described, flag, integer
from symground.integrations.metrics import ALL, attention_metrics, checked_prefix, quantiles_of
from symground.models import attach, detach, mixers
from symground.models.attachment import is_attached, leave_positions
from symground.models.hooks import is_encoder_decoder
from symground.models.trials import check_dropout

FIRST, OTHER = "first", "other"


class AttentionCallback(TrainerCallback):
    """Log what attention does while transformers' Trainer trains: ``Trainer(…, callbacks=[AttentionCallback()])``.

    In every ``every``-th optimiser step, its training passes are read (:func:`symground.observe`). The step is logged,
    whatever ``logging_steps`` is, and what :func:`symground.integrations.attention_metrics` makes of the passes is in
    its log: in ``state.log_history`` and in every reporter (TensorBoard, W&B, Trackio).

    The words of each text are parted into groups: "first" is its first word, also where several texts are packed into
    a row; then come the groups that are asked for; "other" is the rest. The last word of a row is the query group
    "prediction".

    The attention weights are those before dropout. Passes of generation and evaluation within a step are not read, nor
    is a recompute of activation checkpointing. Reading does not change what a step computes; with ``saliency`` its
    gradients change within rounding. With several processes, each reads its own part of the batch, and the first one's
    is logged.

    A model that is not attached (:func:`symground.attach`) is attached while it trains, so that its attention is
    symground's, equal to its own within rounding. If a step ends by an exception, `close` ends its block and detaches
    the model; training again does so too.

    Args:
        every: read every so many optimiser steps.
        groups: a function of the inputs of a pass, by their names, that returns names → [B,T] masks of further groups.
        by: "layer", "head" or quantiles, as in `attention_metrics`.
        saliency: log the flow between groups too, from the training's own backward pass; it needs an attention dropout
            of 0.
        prefix: of the names in the log; two callbacks need two.

    Raises:
        ValueError: an argument has a wrong type or is out of its range. The training raises it as it begins, for a
            model that is not read: one of pictures alone, or an encoder-decoder.
    """

    def __init__(
        self, every: int = 50, groups: Callable[[Mapping[str, Any]], Mapping[str, Tensor]] | None = None,
        by: str | Sequence[float] = "layer", saliency: bool = False, prefix: str = "attention",
    ) -> None:  # fmt: skip
        self.every, self.by, self.prefix = integer("every", every, 1), by, checked_prefix(prefix)
        quantiles_of(by)
        if groups is not None and not callable(groups):
            raise ValueError("groups: expected a function of the inputs of a pass, since each pass has other texts")
        self.groups, self.saliency = groups, flag("saliency", saliency)
        self._block: Observation | None = None
        self._found: dict[str, float] = {}
        self._attached: PreTrainedModel | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        _go_first(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        _go_first(self)
        self.close()
        self._found, model = {}, _unwrapped(model)
        if isinstance(model, PreTrainedModel) and (is_encoder_decoder(model) or model.main_input_name != "input_ids"):
            raise ValueError(f"model: expected one that reads one text, got {type(model).__name__}")
        if not is_attached(model):
            with _without_autocast(model):
                self._attached = attach(model)
            leave_positions(model)  # they are those of the training without the callback
        self._opened(model, 1)  # refuses what cannot be read
        if self.saliency:
            check_dropout({mixer.layer: mixer.module for mixer in mixers(model)}, "saliency", soon=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self._end()
        if (state.global_step + 1) % self.every == 0 and state.is_world_process_zero:
            self._block = self._opened(_unwrapped(model), args.gradient_accumulation_steps)
            self._block.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        block = self._block
        self._end()
        if block is not None and len(block):
            self._found = attention_metrics(block, self.by, self.prefix)
        if state.global_step % self.every == 0:
            control.should_log = True  # of every process, since logging gathers the loss of all

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if self._found and logs is not None:
            logs.update(self._found)
            state.log_history[-1].update(self._found)
            self._found = {}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading, and detach a model that the callback attached."""
        self._end()
        if self._attached is not None:
            detach(self._attached)
            self._attached = None

    def _end(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(None, None, None)

    def _opened(self, model: Any, passes: int) -> Observation:
        """A block that reads the training passes of a step."""
        block = observe(model, self.groups_of, rows=None, summary=True, flow=self.saliency, last=passes)
        block.only = lambda: bool(model.training) and torch.is_grad_enabled()
        return block

    def groups_of(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The groups of a pass, which part the words of each text."""
        given = next(inputs[name] for name in ("input_ids", "inputs_embeds") if inputs.get(name) is not None)
        mask, at = inputs.get("attention_mask"), inputs.get("position_ids")
        whole = torch.ones(given.shape[:2], dtype=torch.bool)
        valid = mask.bool().cpu() if isinstance(mask, Tensor) and mask.shape == whole.shape else whole
        first = valid & (valid.cumsum(-1) == 1)
        if isinstance(at, Tensor) and at.shape == whole.shape:  # a text begins where positions do not go on
            begins = torch.nn.functional.pad(at.diff(dim=-1) != 1, (1, 0)).cpu()
            first |= valid & begins & (valid.cumsum(-1) > 1)
        others = {name: mask & valid & ~first for name, mask in self._asked(inputs, whole.shape).items()}
        rest = valid & ~first
        for mask in others.values():
            rest = rest & ~mask
        return {FIRST: first, **others, OTHER: rest}

    def _asked(self, inputs: Mapping[str, Any], shape: torch.Size) -> dict[str, Tensor]:
        """What the caller's function says of a pass."""
        if self.groups is None:
            return {}
        asked = self.groups(inputs)
        if not isinstance(asked, Mapping):
            raise ValueError(f"groups: expected a function that returns a mapping from names, got {described(asked)}")
        for name, mask in asked.items():
            if name in (FIRST, OTHER, ALL):
                raise ValueError(f"groups: {name!r} is a group of the callback itself; choose another name")
            if not isinstance(mask, Tensor) or mask.shape != shape:
                got = list(mask.shape) if isinstance(mask, Tensor) else described(mask)
                raise ValueError(f"groups[{name!r}]: expected a mask [B,T] = {list(shape)}, got {got}")
        return {name: mask.bool().cpu() for name, mask in asked.items()}


def _unwrapped(model: Any) -> Any:
    """The model of transformers in peft's wrapper, if it is one; a learnt prompt is refused by what reads the model."""
    prompt = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    return model if prompt or not hasattr(model, "get_base_model") else model.get_base_model()


@contextmanager
def _without_autocast(model: Any) -> Iterator[None]:
    """A block in which the model has the forward function that accelerate wrapped for mixed precision."""
    wrapped, own = vars(model).get("forward"), vars(model).get("_original_forward")
    if wrapped is None or own is None:
        yield
        return
    object.__setattr__(model, "forward", own)
    try:
        yield
    finally:
        object.__setattr__(model, "forward", wrapped)


def _go_first(callback: TrainerCallback) -> None:
    """Put a callback before the others: those that report stand first, and would have logged before it.

    transformers gives a callback neither its Trainer nor the list, so it is taken from the caller's frame.
    """
    frame = inspect.currentframe()
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler) and callback in handler.callbacks:
            handler.callbacks.remove(callback)
            handler.callbacks.insert(0, callback)
            return
        frame = frame.f_back
