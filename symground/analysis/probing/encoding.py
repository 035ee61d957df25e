"""Probes as token ids: in the study's vocabulary, in plain text, or with an image in place of the noun."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.probing.contexts import Context, joined, separator_after
from symground.analysis.probing.examples import Ids, Row
from symground.data.sequences import Shown, patch_ids
from symground.data.words import IMAGE, TIERS, env, lan, lan_tokens, speaker
from symground.errors import check_kind, described, panics_named
from symground.models import load_tokenizer

_Rows = tuple[tuple[Row, ...], ...]
#: Model → (its name, the tokenizer of that name).
_OWN: WeakKeyDictionary[PreTrainedModel, tuple[str, Any]] = WeakKeyDictionary()


class Encoder(Protocol):
    """Turns words into ids."""

    def missing(self, contexts: Iterable[Context], nouns: Iterable[str], spoken: Iterable[str]) -> set[str]:
        """The words that the vocabulary lacks, among contexts, nouns in their slots, and spoken nouns."""
        ...

    def row(self, context: Context, noun: str) -> Row: ...

    def target(self, context: Context, noun: str, word: str) -> Ids:
        """The ids of ``word`` after that context, one or several."""
        ...


def encoder_of(tokenizer: Any, separator: str | None = None, joint: str | None = None) -> Encoder:
    """An encoder of the study's form if the vocabulary has ENV or LAN words, else one of plain text.

    Raises:
        ValueError: no tokenizer, a slow one, or a ``joint`` for a vocabulary whose tokens are words.
    """
    _check_kind(tokenizer)
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    if separator is not None:
        check_kind(separator, str, "separator")
    if joint is not None:
        check_kind(joint, str, "joint")
    if any(token.endswith((env(""), lan(""))) for token in vocabulary):
        if joint is not None:
            raise ValueError("joint: the words of a study's vocabulary are tokens, with nothing between them")
        return StudyEncoder(vocabulary)
    return TextEncoder(tokenizer, separator, joint)


def _check_kind(tokenizer: Any) -> None:
    if not hasattr(tokenizer, "get_vocab"):
        hint = ""
        if hasattr(tokenizer, "tokenizer"):
            hint = "; this processor holds one: processor.tokenizer"
        elif isinstance(tokenizer, (str, Path)):
            hint = f"; symground.load_tokenizer({str(tokenizer)!r}) loads one"
        raise ValueError(f"tokenizer: expected one of transformers, got {described(tokenizer)}{hint}")


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse anything but a fast tokenizer of transformers.

    Raises:
        ValueError: names ``tokenizer``.
    """
    _check_kind(tokenizer)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"tokenizer: expected a fast one, which tells where a token is; got {type(tokenizer).__name__}"
        )


def own_tokenizer(model: PreTrainedModel) -> Any:
    """The tokenizer of the folder or the name that a model came from, loaded once for each model.

    Raises:
        ValueError: names ``tokenizer``; there is none.
    """
    name = model.name_or_path
    if name:
        known, found = _OWN.get(model, ("", None))
        if known == name:
            return found
        try:
            found = load_tokenizer(name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"tokenizer: expected one, since none can be loaded from {name!r}, the model's own name ({error})"
            ) from error
        _OWN[model] = name, found
        return found
    raise ValueError("tokenizer: expected one, since the model was not loaded from a folder or a name")


def takes_opening(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer adds the token that opens a text: not a second time to one that begins with it."""
    opens = getattr(tokenizer, "bos_token", None)
    return not (opens and text.startswith(opens))


class StudyEncoder:
    """Speaker + ENV sentence + speaker + LAN words, one id per word (arXiv 2510.13796: both speakers are <CHI>)."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        self._vocabulary = vocabulary

    def missing(self, contexts: Iterable[Context], nouns: Iterable[str], spoken: Iterable[str]) -> set[str]:
        contexts = list(contexts)
        cues = {c.cue for c in contexts} or {"env"}
        asked = {t for c in contexts for part in self._around(c) for t in part}
        asked |= {t for noun in nouns for cue in cues - {IMAGE} for t in TIERS[cue][1](noun)}
        asked |= {t for word in spoken for t in lan_tokens(word)}
        return {token for token in asked if token not in self._vocabulary}

    def row(self, context: Context, noun: str) -> Row:
        """The row of a context; if its cue is an image, it has only the words after it, and `ProbeImages` fills it."""
        before, after = self._around(context)
        if context.cue == IMAGE:
            return Row((), (), self._ids(after))
        return Row(self._ids(before), self._ids(TIERS[context.cue][1](noun)), self._ids(after))

    def target(self, context: Context, noun: str, word: str) -> Ids:
        return self._ids(lan_tokens(word))

    def _around(self, context: Context) -> tuple[list[str], list[str]]:
        before, after = context.around()
        between = [token for utterance in context.between for token in utterance.tokens()]
        first, second = map(speaker, context.speakers)
        spoken = [*between, second, *lan_tokens(context.lan)]
        if context.cue == IMAGE:
            return [], spoken
        tokens = TIERS[context.cue][1]
        return [first, *tokens(before)], [*tokens(after), *spoken]

    def _ids(self, tokens: Sequence[str]) -> Ids:
        return tuple(self._vocabulary[token] for token in tokens)


class TextEncoder:
    """ENV sentence, separator and LAN words as plain text, for tokenizers that may split words into several ids."""

    def __init__(self, tokenizer: Any, separator: str | None, joint: str | None = None) -> None:
        check_tokenizer(tokenizer)
        self._tokenizer, self._separator, self._joint = tokenizer, separator, joint

    def missing(self, contexts: Iterable[Context], nouns: Iterable[str], spoken: Iterable[str]) -> set[str]:
        unknown, written = self._tokenizer.unk_token_id, self._tokenizer.unk_token
        words = {
            w for c in contexts for part in (*c.around(), *(u.text for u in c.between), c.lan) for w in part.split()
        } | {*nouns, *spoken}
        if unknown is None or not words:
            return set()
        with panics_named("tokenizer: it fails on a word of the nouns or contexts"):
            found = self._tokenizer(sorted(words), add_special_tokens=False, return_offsets_mapping=True)
        encoded = zip(sorted(words), found["input_ids"], found["offset_mapping"], strict=True)
        # A context may contain the token for unknown words as text, since in many vocabularies it also opens a text.
        return {
            word
            for word, ids, places in encoded
            if any(i == unknown and word[a:b] != written for i, (a, b) in zip(ids, places, strict=True))
        }

    def row(self, context: Context, noun: str) -> Row:
        ids, (first, last) = self._encode(self._text(context, noun), *self._place(context, noun))
        return Row(ids[:first], ids[first:last], ids[last:])

    def target(self, context: Context, noun: str, word: str) -> Ids:
        text, joint = self._text(context, noun), joined(context, self._joint)[1]
        ids, (first, last) = self._encode(f"{text}{joint}{word}", len(text), len(text) + len(joint) + len(word))
        if ids[:first] != self.row(context, noun).ids or last != len(ids):
            raise ValueError(
                f"tokenizer: it joins {word!r} with the text before it, so it has no surprisal of its own after "
                f"{text!r}"
            )
        return ids[first:last]

    def _text(self, context: Context, noun: str) -> str:
        before, after = context.around()
        said = f"{before}{noun}{after}", *(u.text for u in context.between)
        scenes = "".join(f"{sentence}{separator_after(sentence, self._separator)}" for sentence in said)
        return scenes + joined(context, self._joint)[0]

    def _place(self, context: Context, noun: str) -> tuple[int, int]:
        """The range of the noun and the space before it, which some tokenizers encode as a token of its own."""
        before = context.around()[0]
        return len(before.rstrip(" ")), len(before) + len(noun)

    def _encode(self, text: str, start: int, stop: int) -> tuple[Ids, tuple[int, int]]:
        """Ids without closing special tokens, and the first and one-past-last index of those spelling [start, stop)."""
        with panics_named(f"tokenizer: it fails on {text!r}"):
            encoded = self._tokenizer(
                text,
                add_special_tokens=takes_opening(self._tokenizer, text),
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
            )
        ids, special, places = (list(encoded[name]) for name in ("input_ids", "special_tokens_mask", "offset_mapping"))
        while special and special[-1] and places[len(ids) - 1][0] == places[len(ids) - 1][1]:
            special.pop(), ids.pop()
        spelling = [i for i, (a, b) in enumerate(places[: len(ids)]) if a < stop and b > start and b > a]
        if not spelling:
            raise ValueError(f"tokenizer: it gives no token for {text[start:stop]!r} in {text!r}")
        return tuple(ids), (spelling[0], spelling[-1] + 1)


@dataclass(frozen=True)
class ProbeImages:
    """Images of nouns, from an image set."""

    patches: int
    """Number of patches of an image."""
    of: Mapping[str, Sequence[Shown]]
    """noun → images that show it."""
    shown: Mapping[str, Collection[int]] = field(default_factory=dict)
    """noun → all images that are known to show it, including those of other nouns."""
    empty: int | None = None
    """An image that shows none of the nouns, or None."""

    def chosen(self, noun: str, context: int) -> Shown:
        """The image of a noun in the context with this number."""
        of_noun = self.of[noun]
        return of_noun[context % len(of_noun)]

    def put_into(self, rows: _Rows, contexts: Sequence[Context], nouns: Sequence[str], vocabulary: int) -> _Rows:
        """The rows with images: that of their noun if the context has the cue "image", else the empty one before them.

        Raises:
            ValueError: a noun without images, or a patch outside its image.
        """
        self._check(contexts, nouns)

        def ids(image: int) -> tuple[int, ...]:
            return tuple(patch_ids(image, self.patches, vocabulary).tolist())

        first = () if self.empty is None else ids(self.empty)
        found = []
        for number, (context, of_context) in enumerate(zip(contexts, rows, strict=True)):
            filled = []
            for noun, row in zip(nouns, of_context, strict=True):
                if context.cue == IMAGE:
                    shown = self.chosen(noun, number)
                    row = row._replace(noun=ids(shown.image), patches=shown.patches or tuple(range(self.patches)))
                else:
                    row = row._replace(before=first + row.before, outside=len(first))
                filled.append(row)
            found.append(tuple(filled))
        return tuple(found)

    def also_shown(self, nouns: Sequence[str], contexts: int) -> Tensor:
        """[V,V] bool: whether an image of noun u in one of the contexts is known to show another noun v too."""
        known = [set(self.shown.get(noun, ())) for noun in nouns]
        used = [{self.chosen(noun, c).image for c in range(contexts)} for noun in nouns]
        return torch.tensor(
            [[u != v and bool(used[u] & known[v]) for v in range(len(nouns))] for u in range(len(nouns))]
        )

    def _check(self, contexts: Sequence[Context], nouns: Sequence[str]) -> None:
        if not any(context.cue == IMAGE for context in contexts):
            return
        without = [noun for noun in nouns if not self.of.get(noun)]
        if without:
            raise ValueError(f"images: there is none of {', '.join(without)}")
        for noun in nouns:
            beyond = [p for shown in self.of[noun] for p in shown.patches if not 0 <= p < self.patches]
            if beyond:
                raise ValueError(f"images: expected patches 0 to {self.patches - 1} of {noun!r}, got {beyond[0]}")
