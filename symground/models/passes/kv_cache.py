"""Forward passes over a text in pieces. The state after a prefix is kept, and many continuations share it."""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.models.architectures import LSTMState
from symground.models.hooks import body, untapped
from symground.models.trials import (
    Readout,
    agree,
    check_lengths,
    logits_given_by,
    positions_of,
    readout,
    readout_by,
    stretch_of,
    surprisal_of,
    trial_ids,
    tried,
)

_TRIAL = 16


@dataclass(frozen=True)
class State:
    """A model's state after a prefix, for B rows."""

    ids: Tensor
    """[B,T]"""
    cache: Any
    """The model's own cache of the prefix; None if the model has no cache from which it can continue."""

    def select(self, rows: Tensor) -> State:
        """A new state of N rows, the ``rows`` [N] of this one, which may repeat; this one is unchanged."""
        return State(self.ids[rows.to(self.ids.device)], None if self.cache is None else _selected(self.cache, rows))


class Reader:
    """Surprisal of candidates for the next token, for any causal language model of transformers or of symground.

    It is computed from final hidden states and the vocabulary head, without [N,V] logits if these are a plain product.
    If hooks of other code act on the model, its own logits are used.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.device = readout(model).weight.device
        self._model = model
        self._stretch = stretch_of(model)
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        self._window: int | None = window if isinstance(window, int) else None
        """The sliding window, until a text beyond it has shown that the model goes on from its cache there too."""
        self._head: Readout | None = None
        self._may_cache, self._cache_name = _caches(model)
        self._all_logits = False
        given_by, resumes, self._all_logits = tried(model, "reader", self._trial, self._if_hooked)
        self._head = None if given_by is None else readout_by(model, given_by)
        self._cache_name = self._cache_name if resumes else None

    def _trial(self) -> tuple[str | None, bool, bool]:
        """What gives the logits of hidden states, whether the model resumes from its cache, and needs all logits."""
        given_by: str | None = None
        try:
            given_by = logits_given_by(self._model)
            self._head = readout_by(self._model, given_by)
        except (ValueError, AttributeError):  # or its forward pass returns no logits
            self._head, self._all_logits = None, True  # they may depend on each other, or on where they stand
        return given_by, self._cache_name is not None and self._resumes(), self._all_logits

    def _if_hooked(self) -> tuple[str | None, bool, bool]:
        check_lengths(self._model, torch.tensor([_TRIAL, _TRIAL]), _TRIAL, logits=True)
        return None, False, True

    def read(self, ids: Tensor, state: State | None = None, keep: int = 1) -> tuple[Tensor, State]:
        """Run the model on ``ids`` [B,T], after the prefix of ``state``.

        Returns:
            The input of :meth:`surprisal` for the last ``keep`` positions [B,keep,·], and the state after all ids.
        """
        ids = ids.to(self.device)
        whole = ids if state is None else torch.cat([state.ids, ids], 1)
        on = self.goes_on_to(whole.shape[1])
        kwargs: dict[str, Any] = {"use_cache": on} if self._may_cache else {}
        if state is not None and on:
            assert self._cache_name is not None
            kwargs[self._cache_name] = state.cache
        given = ids if on else whole
        if self._head is None:
            out = self._model(input_ids=given, **({} if self._all_logits else _keeping(self._model, keep)), **kwargs)
            seen = out.logits[:, -keep:]
        else:
            out = body(self._model)(input_ids=given, **kwargs)
            seen = out.last_hidden_state[:, -keep:]
        cache = getattr(out, self._cache_name) if on and self._cache_name is not None else None
        if on and _is_empty(cache):
            hint = "; activation checkpointing in training mode switches it off: model.eval()"
            raise ValueError(
                f"model: {type(self._model).__name__} gave no cache to go on from{hint if self._model.training else ''}"
            )
        return seen, State(whole, cache)

    def goes_on_to(self, length: int) -> bool:
        """Whether the model continues from its cache up to this length; otherwise the whole text is recomputed."""
        if self._stretch is not None and length > self._stretch.limit:
            return False
        window = self._window
        if self._cache_name is not None and window is not None and length > window:
            self._window = None  # the trial reads on too
            most = min(window + 4, positions_of(self._model) or window + 4)
            if not tried(
                self._model, "reader beyond the window", lambda: self._resumes(most, min(window + 1, most - 1))
            ):
                self._cache_name = None
        return self._cache_name is not None

    @property
    def width(self) -> int:
        """The last dimension of what `read` returns: the hidden size, or the size of the vocabulary."""
        weight = readout(self._model).weight
        return weight.shape[1 if self._head is not None else 0]

    @property
    def words(self) -> int:
        """The size of the vocabulary."""
        return readout(self._model).weight.shape[0]

    def logits(self, seen: Tensor) -> Tensor:
        """[N,V] of rows ``seen`` [N,·] of `read`."""
        return seen if self._head is None else self._head.logits(seen)

    def surprisal(self, seen: Tensor, candidates: Tensor) -> Tensor:
        """Surprisal [N,K] in nats, at least float32, of candidates [K] or [N,K], from rows ``seen`` [N,·] of `read`."""
        candidates = candidates.to(self.device)
        if self._head is not None:
            return self._head.surprisal(seen, candidates)
        return surprisal_of(seen, candidates.expand(len(seen), -1))

    def _resumes(self, length: int = 5, cut: int = 2) -> bool:
        """Whether a text in two pieces has the hidden states of one pass, by a trial; warns if it does not."""
        ids = trial_ids(self._model, length)
        try:
            with torch.no_grad(), untapped():
                whole, _ = self.read(ids, keep=3)
                _, state = self.read(ids[:, :cut])
                pieces, _ = self.read(ids[:, cut:], state.select(torch.tensor([0])), keep=3)
            resumes, cause = agree(pieces, whole), "its hidden states are others"
        except Exception as error:  # an unknown form of cache may raise any error
            resumes, cause = False, f"{type(error).__name__}: {error}"
        if not resumes:
            warnings.warn(
                f"{type(self._model).__name__} cannot go on from its own cache ({cause}): shared prefixes are read "
                "again for every row, which is slower and gives the same scores",
                RuntimeWarning,
                stacklevel=5,
            )
        return resumes


def _caches(model: PreTrainedModel) -> tuple[bool, str | None]:
    """Whether the model accepts ``use_cache``, and the name of its cache, as an argument and in its output."""
    parameters = inspect.signature(body(model).forward).parameters
    if "use_cache" not in parameters:
        return False, None
    return True, next((name for name in ("cache", "past_key_values", "cache_params") if name in parameters), None)


def _is_empty(cache: Any) -> bool:
    return cache is None or any(getattr(x, "is_initialized", True) is False for x in getattr(cache, "layers", ()))


def _keeping(model: PreTrainedModel, keep: int) -> dict[str, int]:
    """The argument that limits the logits to the last positions, if the model has it."""
    return {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _selected(cache: Any, rows: Tensor) -> Any:
    """Rows of a cache. `reorder_cache` replaces a layer's tensors, so a shallow copy leaves the original unchanged."""
    if isinstance(cache, LSTMState):
        return cache.select(rows)
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in chosen.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(layer, name, dict(value))
    chosen.reorder_cache(rows)
    return chosen
