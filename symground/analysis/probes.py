"""Probes: sentence pairs in which an ENV noun stands and a LAN noun is to be predicted.

A context is ``<CHI>`` + an ENV sentence with a slot for the noun + ``<CHI>`` + the LAN words up to the noun; the
surprisal of ``noun:<LAN>`` is read at its last token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.data import STUDY_NOUNS, env, lan, speaker
from symground.data.words import PADDING, env_tokens, lan_tokens

SLOT = "{}"


class Context(NamedTuple):
    """One sentence pair; ``{}`` in the ENV sentence is the noun."""

    env: str
    lan: str


class Examples(NamedTuple):
    """Rows ready for a model, right-padded. N examples."""

    input_ids: Tensor
    """[N,T]"""
    prediction: Tensor
    """[N] p, the last context token."""
    targets: Tensor
    """[N] ids of the LAN nouns."""
    context: list[int]
    noun: list[str]
    query_masks: dict[str, Tensor]
    """name → [N,T]: "prediction" and "env" (the noun's own position)."""
    key_masks: dict[str, Tensor]
    """name → [N,T]: "env" (the noun and its span) and "event"."""


@dataclass(frozen=True)
class Probes:
    """Contexts × ENV nouns × target nouns, as token ids."""

    nouns: tuple[str, ...]
    contexts: tuple[Context, ...]
    span: int
    input_ids: Tensor
    """[C,V,T] right-padded: context c with noun v in its ENV slot."""
    lengths: tuple[int, ...]
    """Tokens of each context."""
    env_positions: tuple[int, ...]
    """e: where the ENV noun stands in each context."""
    target_ids: Tensor
    """[V] ids of the LAN nouns."""

    def __len__(self) -> int:
        return len(self.contexts) * len(self.nouns)

    def with_span(self, span: int) -> Probes:
        """The same probes with another span (tokens after the ENV noun that count as it)."""
        _check_span(span, self.lengths, self.env_positions)
        return replace(self, span=span)

    def take_contexts(self, indices: Sequence[int]) -> Probes:
        """Only the contexts at ``indices``."""
        index = list(indices)
        kept: dict[str, Any] = {
            name: tuple(getattr(self, name)[i] for i in index) for name in ("contexts", "lengths", "env_positions")
        }
        return replace(self, input_ids=self.input_ids[index], **kept)

    def matched(self) -> Examples:
        """Every context with every noun both as ENV and as target; context by context."""
        contexts, nouns, length = self.input_ids.shape
        index = torch.arange(contexts).repeat_interleave(nouns)  # context of each example
        position = torch.arange(length)
        prediction = torch.tensor(self.lengths)[index] - 1
        e = torch.tensor(self.env_positions)[index][:, None]
        query = {"prediction": position == prediction[:, None], "env": position == e}
        key = {
            "env": (position >= e) & (position <= e + self.span),
            "event": position < e,  # the ENV utterance is the first
        }
        return Examples(
            self.input_ids.reshape(-1, length), prediction, self.target_ids.repeat(contexts),
            index.tolist(), list(self.nouns) * contexts, query, key,
        )  # fmt: skip


def probes(
    tokenizer: Any,
    nouns: Sequence[str] | None = None,
    contexts: Iterable[Sequence[str]] | str | Path | None = None,
    span: int = 0,
) -> Probes:
    """Build the probes of a vocabulary.

    Args:
        tokenizer: a word-level tokenizer (anything with ``get_vocab()``).
        nouns: the nouns, each both ENV noun and target; None takes those of the study's 100 that the vocabulary holds
            in both forms.
        contexts: pairs (ENV sentence with ``{}`` for the noun, LAN words up to the noun), or a JSON file of them;
            None takes the ten that come with the package.
        span: how many tokens after the ENV noun count as the noun when flow from it is measured.

    Raises:
        ValueError: a word that is not in the vocabulary (all are named), fewer than two nouns, a context without
            ``{}``, or a span that does not fit.
    """
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    chosen = read_contexts(contexts)
    if nouns is None:
        nouns = [noun for noun in STUDY_NOUNS if env(noun) in vocabulary and lan(noun) in vocabulary]
    if len(set(nouns)) != len(nouns):
        raise ValueError("nouns: expected each noun once")
    missing = sorted(
        {t for n in nouns for t in (env(n), lan(n)) if t not in vocabulary}
        | {t for c in chosen for t in missing_tokens(c, vocabulary)}
    )
    if missing:
        raise ValueError(f"vocabulary: these words of the probes are not in it: {', '.join(missing)}")
    if len(nouns) < 2:
        raise ValueError(f"nouns: expected at least two, so that there are mismatches; got {len(nouns)}")
    rows, lengths, positions = [], [], []
    for context in chosen:
        before, after = _tokens(context)
        positions.append(len(before))
        lengths.append(len(before) + 1 + len(after))
        rows.append([[vocabulary[t] for t in (*before, env(noun), *after)] for noun in nouns])
    _check_span(span, lengths, positions)
    ids = torch.full((len(rows), len(nouns), max(lengths)), vocabulary.get(PADDING, 0))
    for c, row in enumerate(rows):
        ids[c, :, : lengths[c]] = torch.tensor(row)
    targets = torch.tensor([vocabulary[lan(noun)] for noun in nouns])
    return Probes(
        tuple(nouns), tuple(chosen), span, ids, tuple(lengths), tuple(positions), targets
    )  # fmt: skip


def read_contexts(contexts: Iterable[Sequence[str]] | str | Path | None) -> list[Context]:
    """Contexts from pairs, from a JSON file (a list of {"env", "lan"}, or {"env": […], "lan": […]}), or the package's.

    Raises:
        FileNotFoundError, ValueError: a file that is missing or has another form, a context without exactly one ``{}``.
    """
    source = "contexts"
    if contexts is None:
        loaded = json.loads((files("symground.data") / "resources" / "contexts.json").read_text(encoding="utf-8"))
    elif isinstance(contexts, (str, Path)):
        source = f"contexts: {contexts}"
        if not Path(contexts).is_file():
            raise FileNotFoundError(f"{source} does not exist")
        try:
            loaded = json.loads(Path(contexts).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}: not JSON ({error})") from None
    else:
        loaded = [{"env": pair[0], "lan": pair[1]} for pair in contexts]
    try:
        if isinstance(loaded, dict):
            pairs = [Context(*pair) for pair in zip(loaded["env"], loaded["lan"], strict=True)]
        else:
            pairs = [Context(item["env"], item["lan"]) for item in loaded]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{source}: expected a list of {{"env": …, "lan": …}}; {error!r}') from None
    if not pairs:
        raise ValueError(f"{source}: expected at least one context, got none")
    for pair in pairs:
        if pair.env.count(SLOT) != 1 or SLOT in pair.lan or not lan_tokens(pair.lan):
            raise ValueError(f"{source}: expected one {SLOT} in the ENV sentence and words in the LAN part; got {pair}")
    return pairs


def missing_tokens(context: Context, vocabulary: Mapping[str, int]) -> list[str]:
    """The context's own tokens that the vocabulary lacks."""
    before, after = _tokens(context)
    return [token for token in (*before, *after) if token not in vocabulary]


def split_contexts(tokenizer: Any, contexts: Iterable[Context]) -> tuple[list[Context], dict[Context, list[str]]]:
    """The contexts whose words are all in the vocabulary, and the others with the words they lack."""
    vocabulary = tokenizer.get_vocab()
    lacking = {context: missing_tokens(context, vocabulary) for context in contexts}
    return [c for c, words in lacking.items() if not words], {c: words for c, words in lacking.items() if words}


def _tokens(context: Context) -> tuple[list[str], list[str]]:
    """The context's tokens before and after the ENV noun."""
    before, after = context.env.split(SLOT)
    said = [speaker("CHI"), *lan_tokens(context.lan)]
    return [speaker("CHI"), *env_tokens(before)], [*env_tokens(after), *said]


def _check_span(span: int, lengths: Sequence[int], positions: Sequence[int]) -> None:
    room = min(length - 1 - position for length, position in zip(lengths, positions, strict=True))
    if not 0 <= span < room:
        raise ValueError(f"span: expected 0 to {room - 1} (the prediction position stays outside), got {span}")
