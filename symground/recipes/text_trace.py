"""A text and a model's answer as a page: which words speak for each word of the answer, and by which heads."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
import xarray as xr
from transformers import PreTrainedModel

from symground.analysis.causal import ablate
from symground.analysis.tracing import trace
from symground.errors import check_device, check_file, check_types, integer
from symground.models import load, load_tokenizer, mixers, told_heads
from symground.reports.views import view

#: Each token of the answer by itself, with the rows that a view shows.
_EACH: dict[str, Any] = {"per_token": True, "rows": True, "saliency": False}


@dataclass(frozen=True, kw_only=True)
class TextTrace:
    """``symground trace``."""

    model: tyro.conf.Positional[str]
    """A folder, a .gguf file or a run of a causal language model with its tokenizer, or a name on the hub."""
    text: tyro.conf.Positional[str]
    """What the model reads before its answer."""
    answer: str | None = None
    """The answer that is traced, which begins with a space if it is another word; the model's own by default."""
    chat: bool = False
    """Give the text to the model as a user's turn, in the tokenizer's chat template."""
    system: str | None = None
    """The system's turn before it, with --chat."""
    groups: tuple[str, ...] = ()
    """Groups of words as NAME=PHRASE, each a phrase of the text, whose sums are shown."""
    instead: str | None = None
    """Another text that is shown beside the first, with the same answer."""
    silence: tuple[str, ...] = ()
    """Heads as LAYER.HEAD; the trace with them silenced is shown beside the first."""
    max_new_tokens: int = 32
    """The most tokens of the model's own answer."""
    out: str = "trace.html"
    """The page."""
    dtype: str | None = None
    """Dtype of the weights, such as bfloat16; as stored by default."""
    device: str | None = None
    """Device of the model: cuda or cpu."""

    def __post_init__(self) -> None:
        check_types(self)
        integer("max_new_tokens", self.max_new_tokens, 1)
        if self.system is not None and not self.chat:
            raise ValueError("system: expected --chat too, whose first turn it is")
        if self.instead is not None and self.silence:
            raise ValueError("silence: expected no --instead, since two texts are shown beside each other")
        for group in self.groups:
            if not re.fullmatch(r"[^=]+=.+", group, re.S):
                raise ValueError(f"groups: expected NAME=PHRASE, got {group!r}")
        for head in self.silence:
            if not re.fullmatch(r"\d+\.\d+", head):
                raise ValueError(f"silence: expected heads as LAYER.HEAD, such as 3.0, got {head!r}")

    def run(self) -> Path:
        """Trace the answer token by token, and write the page."""
        out = check_file(self.out, "out")
        if self.device is not None:
            check_device(self.device)
        told = told_heads(self.model) if self.silence else None
        if told is not None:  # before the weights are loaded
            self._silenced(dict.fromkeys(range(told[0]), told[1]))
        tokenizer = load_tokenizer(self.model)
        model = load(self.model, device=self.device, dtype=self.dtype)
        heads = self._silenced({mixer.layer: mixer.heads for mixer in mixers(model)})
        first = self._traced(model, tokenizer, self.text, self.answer)
        said = str(tokenizer.decode(first.target_token[0].values.tolist()))
        print(f"{said.strip()}  ({first.surprisal.item():.2f} nats)", file=sys.stderr)
        beside, names = None, ("the text", "instead")
        if self.instead is not None:
            beside = self._traced(model, tokenizer, self.instead, said, grouped=False)
        elif heads:
            with ablate(model, heads):
                beside = _again(model, first)
            names = "as it is", f"{', '.join(self.silence)} silenced"
        title = f"{Path(self.model).name}: {said.strip()}"
        return view(first, tokenizer, beside=beside, names=names, title=title).save(out)

    def _silenced(self, known: Mapping[int, int]) -> list[tuple[int, int]]:
        """The heads to silence, each of a layer that has so many."""
        heads = [(int(layer), int(head)) for layer, head in (head.split(".") for head in self.silence)]
        wrong = [f"{layer}.{head}" for layer, head in heads if head >= known.get(layer, 0)]
        if wrong:
            raise ValueError(f"silence: expected heads of the layers {sorted(known)} of the model, got {wrong[0]}")
        return heads

    def _traced(
        self, model: PreTrainedModel, tokenizer: Any, text: str, answer: str | None, grouped: bool = True
    ) -> xr.Dataset:
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        prompt: Any = [*turns, {"role": "user", "content": text}] if self.chat else text
        groups: Any = dict(group.split("=", 1) for group in self.groups) if grouped and self.groups else None
        return trace(
            model,
            prompt=prompt,
            answer=answer,
            tokenizer=tokenizer,
            groups=groups,
            max_new_tokens=self.max_new_tokens,
            **_EACH,
        )


def _again(model: PreTrainedModel, traced: xr.Dataset) -> xr.Dataset:
    """The same trace of the model as it is now."""
    ids, group = (torch.from_numpy(traced[name].values.copy()) for name in ("token", "group"))
    span = torch.zeros_like(ids, dtype=torch.bool)
    span[0, torch.from_numpy(traced.prediction.values[0] + 1)] = True
    groups = {str(name): group == i for i, name in enumerate(traced.key_group.values)}
    return trace(model, ids, span=span, groups=groups, **_EACH)
