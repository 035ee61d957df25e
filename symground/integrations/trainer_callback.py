"""Attention in the log of transformers' Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from symground.analysis import Observation, observe
from symground.errors import flag, integer
from symground.integrations.metrics import ALL, _quantiles, attention_metrics
from symground.models import attach, detach
from symground.models.attachment import is_attached

FIRST, OTHER = "first", "other"


class AttentionCallback(TrainerCallback):
    """Log what attention does while transformers' Trainer trains: ``Trainer(…, callbacks=[AttentionCallback()])``.

    In every ``every``-th optimiser step the forward passes are read (:func:`symground.observe`), and what
    :func:`symground.integrations.attention_metrics` makes of them goes into the Trainer's own log of that step: to
    ``state.log_history`` and to every reporter (TensorBoard, W&B, Trackio). The positions of each text are parted into
    "first", its first token, the groups asked for, and "other", the rest of its words; the last word asks for itself,
    as "prediction". The training is the same as without the callback: the weights are those before dropout, and a
    recompute of activation checkpointing is not read. With several processes, each reads its own part of the batch,
    and the first one's is logged.

    Args:
        every: read every so many optimiser steps.
        groups: a function of the inputs of a pass, by their names, that returns names → [B,T] masks of further groups.
        by: "layer", "head" or quantiles, as in `attention_metrics`.
        saliency: log the flow between groups too, from the training's own backward pass; it needs an attention dropout
            of 0.
        prefix: of the names in the log.

    A model that is not attached (:func:`symground.attach`) is attached while it trains. A step that ends by an
    exception leaves its block open: `close` ends it.

    Raises:
        ValueError: an argument has a wrong type or is out of its range.
    """

    def __init__(
        self, every: int = 50, groups: Callable[[Mapping[str, Any]], Mapping[str, Tensor]] | None = None,
        by: str | Sequence[float] = "layer", saliency: bool = False, prefix: str = "attention",
    ) -> None:  # fmt: skip
        self.every, self.by, self.prefix = integer("every", every, 1), by, prefix
        _quantiles(by)
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
        self._found = {}
        if not is_attached(model):
            self._attached = attach(model)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self.close()
        if (state.global_step + 1) % self.every == 0 and state.is_world_process_zero:
            self._block = observe(model, self.groups_of, rows=None, summary=True, flow=self.saliency)
            self._block.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        block = self._block
        self.close()
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
        if self._attached is not None:
            detach(self._attached)
            self._attached = None

    def close(self) -> None:
        """Stop reading, if a step was read."""
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(None, None, None)

    def groups_of(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The groups of a pass, which part the words of each text."""
        given = next(inputs[name] for name in ("input_ids", "inputs_embeds") if inputs.get(name) is not None)
        mask = inputs.get("attention_mask")
        whole = torch.ones(given.shape[:2], dtype=torch.bool)
        valid = mask.bool().cpu() if isinstance(mask, Tensor) and mask.shape == whole.shape else whole
        first = valid & (valid.cumsum(-1) == 1)
        asked = {} if self.groups is None else dict(self.groups(inputs))
        taken = {FIRST, OTHER, ALL} & asked.keys()
        if taken:
            raise ValueError(f"groups: {taken.pop()!r} is a group of the callback itself; choose another name")
        others = {name: mask.bool().cpu() & valid & ~first for name, mask in asked.items()}
        rest = valid & ~first
        for mask in others.values():
            rest = rest & ~mask
        return {FIRST: first, **others, OTHER: rest}


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
