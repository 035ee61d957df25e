"""A prompt and its answer as one text of tokens, whose answer is a span to trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import check_mapping
from symground.analysis.probing.encoding import check_tokenizer, own_tokenizer, takes_opening
from symground.analysis.probing.examples import Ids
from symground.errors import described, integer, panics_named
from symground.models.hooks import device_of
from symground.models.passes import check_length, check_words
from symground.models.trials import check_deterministic, positions_of

Prompt = str | Sequence[Mapping[str, Any]]


class Answered(NamedTuple):
    """One text of T tokens: a prompt, then its answer."""

    ids: Tensor
    """[1,T]"""
    answer: Tensor
    """[1,T] bool, where the answer is."""
    prompt: str
    """With what a chat template has written."""
    places: tuple[tuple[int, int], ...]
    """Where each token of the prompt is in it, [start, stop)."""

    def groups_of(self, asked: Mapping[str, Any] | None) -> dict[str, Any]:
        """The groups that are asked for, phrases of the prompt as masks; None: the prompt and the answer.

        Raises:
            ValueError: a phrase that the prompt does not have, or has several times, or that begins or ends within a
                token which has other letters or digits too.
        """
        if asked is None:
            return {"prompt": ~self.answer, "answer": self.answer}
        named = check_mapping(asked, "groups").items()
        return {name: self._spelling(name, of) if isinstance(of, str) else of for name, of in named}

    def _spelling(self, name: str, phrase: str) -> Tensor:
        times = self.prompt.count(phrase) if phrase.strip() else 0
        if times != 1:
            raise ValueError(
                f"groups[{name!r}]: expected a phrase that the prompt has once, got {phrase!r}, {times} times"
            )
        start = self.prompt.index(phrase)
        stop = start + len(phrase)
        mask = torch.zeros_like(self.answer)
        for i, (a, b) in enumerate(self.places):
            if not (a < stop and b > start and b > a):
                continue
            mask[0, i], beside = True, self.prompt[a:start] + self.prompt[stop:b]
            if any(map(str.isalnum, beside)):
                raise ValueError(
                    f"groups[{name!r}]: expected a phrase of whole tokens, got {phrase!r}, which begins or ends within "
                    f"the token {self.prompt[a:b]!r}"
                )
        return mask


def answered(
    model: PreTrainedModel, prompt: Prompt, answer: str | None, tokenizer: Any, max_new_tokens: int
) -> Answered:
    """The tokens of a prompt and its answer; None generates the answer greedily.

    Raises:
        ValueError: what is no prompt or no answer, one that the tokenizer joins to the prompt, an answer that is empty,
            or a text longer than the model's positions.
    """
    check_prompt(prompt)
    tokenizer = own_tokenizer(model) if tokenizer is None else tokenizer
    check_tokenizer(tokenizer)
    max_new_tokens = integer("max_new_tokens", max_new_tokens, 1)
    text, special = _text_of(tokenizer, prompt)
    before, places = ids_of_text(tokenizer, text, special)
    if not before:
        raise ValueError("prompt: expected at least one token, got none")
    check_words(model, max(before), "tokenizer")
    if answer is None:
        check_length(model, len(before) + 1, "prompt")
        room = (positions_of(model) or len(before) + max_new_tokens) - len(before)
        said = _generated(model, tokenizer, before, min(max_new_tokens, room))
    else:
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(
                f"answer: expected a text with at least one word, or None to generate it; got {described(answer)}"
            )
        said = following(tokenizer, text, before, answer, special)
    check_length(model, len(before) + len(said), "prompt", " with its answer")
    check_words(model, max(said), "tokenizer")
    ids = torch.tensor([[*before, *said]])
    return Answered(ids, torch.arange(ids.shape[1])[None] >= len(before), text, places)


def check_prompt(prompt: Any, argument: str = "prompt") -> None:
    """Refuse anything but a text or the turns of a chat.

    Raises:
        ValueError: names ``argument``.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"{argument}: expected a text with at least one word, got {described(prompt)}")
        return
    turns = list(prompt) if isinstance(prompt, Sequence) else []
    if not turns or not all(isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in turns):
        raise ValueError(
            f"{argument}: expected a text, or a chat's turns with role and content, got {described(prompt)}"
        )


def _text_of(tokenizer: Any, prompt: Prompt) -> tuple[str, bool]:
    """The prompt as text, and whether the tokenizer adds the tokens that open a text."""
    if isinstance(prompt, str):
        return prompt, takes_opening(tokenizer, prompt)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("prompt: expected a text, since the tokenizer has no chat template; got turns of a chat")
    return str(tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)), False


def ids_of_text(tokenizer: Any, text: str, special: bool) -> tuple[Ids, tuple[tuple[int, int], ...]]:
    """Ids without the special tokens that close a text, and where each is in it."""
    with panics_named("tokenizer: it fails on the prompt"):
        found = tokenizer(
            text, add_special_tokens=special, return_special_tokens_mask=True, return_offsets_mapping=True,
            truncation=False,
        )  # fmt: skip
    ids, added = list(found["input_ids"]), list(found["special_tokens_mask"])
    while special and ids and added[-1]:
        ids.pop(), added.pop()
    return tuple(ids), tuple((int(a), int(b)) for a, b in found["offset_mapping"][: len(ids)])


def following(tokenizer: Any, text: str, before: Ids, answer: str, special: bool, argument: str = "answer") -> Ids:
    """The ids of what follows a text, whose own ids are ``before``.

    Raises:
        ValueError: the tokenizer joins it with the text; the message begins with ``argument``.
    """
    whole, _ = ids_of_text(tokenizer, text + answer, special)
    if whole[: len(before)] != before or len(whole) == len(before):
        raise ValueError(
            f"{argument}: the tokenizer joins {answer[:20]!r} with the end of the text before it, which is then other "
            "tokens; let it begin with a space, or the text end before one"
        )
    return whole[len(before) :]


@torch.no_grad()
def _generated(model: PreTrainedModel, tokenizer: Any, before: Ids, most: int) -> Ids:
    check_deterministic(model)
    ids = torch.tensor([before], device=device_of(model))
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    out = model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, num_beams=1, pad_token_id=pad
    )
    said = out[0, len(before) :].tolist()
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    closing = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    while said and said[-1] in closing:
        said.pop()
    if not said:
        raise ValueError("answer: expected one, since the model ends the text at once")
    return tuple(said)
