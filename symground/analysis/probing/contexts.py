"""The sentence pairs of probes, from the package, from a file or from the caller."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from symground.data.files import parse_json
from symground.data.scenes import Utterance, distractor
from symground.data.words import IMAGE, TIERS, WORD
from symground.errors import described

SLOT = "{}"
#: The end of a sentence that needs no full stop.
_ENDED = re.compile(r"""[.!?…。！？]['"”’»)\]]*$""")


class Context(NamedTuple):
    """One sentence pair; ``{}`` in the ENV sentence is the slot for the noun."""

    env: str
    lan: str
    between: tuple[Utterance, ...] = ()
    """The utterances between the two."""
    speakers: tuple[str, str] = ("CHI", "CHI")
    """The speakers of the ENV sentence and of the LAN words."""
    cue: str = "env"
    """The tier of the first sentence. "lan" makes it and its noun spoken, the control for plain recall. "image"
    replaces it by an image of the noun, and only the LAN words are used."""

    def __str__(self) -> str:
        return f"{self.env!r} … {self.lan!r}"

    def around(self) -> tuple[str, str]:
        """The ENV sentence before and after the noun."""
        before, after = self.env.split(SLOT)
        return before, after


def separator_after(sentence: str, separator: str | None = None) -> str:
    """What stands between a sentence of plain text and the next: by default a full stop and a space.

    A sentence that ends in a mark of its own gets no second one.
    """
    if separator is not None:
        return separator
    return " " if _ENDED.search(sentence) else ". "


def joined(context: Context, joint: str | None = None) -> tuple[str, str]:
    """The LAN words of plain text, and what stands between them and the target: by default one space."""
    if joint is None:
        joint = "" if context.lan.endswith(("\n", "\t")) else " "
    return context.lan.rstrip(" ") if joint.startswith(" ") else context.lan, joint


def context_of(values: Sequence[Any]) -> Context:
    """A context from JSON values: its parts in order, at least two; ``between`` holds (speaker, tier, text)."""
    found = Context(*values)
    first, second = found.speakers
    return found._replace(between=tuple(Utterance(*u) for u in found.between), speakers=(first, second))


def of_images(contexts: Iterable[Context]) -> list[Context]:
    """The contexts with an image in place of the ENV sentence; contexts that are then equal are kept once."""
    return list(dict.fromkeys(context._replace(env=SLOT, cue=IMAGE) for context in contexts))


def with_gap(contexts: Iterable[Context], gap: int, seed: int = 0) -> list[Context]:
    """The contexts with ``gap`` utterances of the generated corpus, which name no object, between their two sentences.

    A model that was trained with a gap is probed across the same gap, so that its probes resemble its training text.
    """
    found = []
    for number, context in enumerate(contexts):
        rng = random.Random(f"{seed}, context {number}")
        found.append(context._replace(between=tuple(distractor(rng) for _ in range(gap))))
    return found


def read_contexts(contexts: Iterable[Sequence[Any]] | str | Path | None, own: str = "contexts.json") -> list[Context]:
    """Contexts from pairs, from a JSON file (a list of {"env", "lan"}, or {"env": […], "lan": […]}), or the package's
    own file of a name.

    Further parts are optional: "between", a list of (speaker, "env" or "lan", text); "speakers", those of the ENV
    sentence and of the LAN words; "cue", the tier of the first sentence.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another form, or a context does not have exactly one ``{}``.
    """
    source = "contexts"
    if contexts is None:
        loaded = json.loads((files("symground.data") / "resources" / own).read_text(encoding="utf-8"))
    elif isinstance(contexts, (str, Path)):
        source = f"contexts: {contexts}"
        if not Path(contexts).is_file():
            raise FileNotFoundError(f"{source} does not exist")
        try:
            loaded = parse_json(Path(contexts).read_bytes())
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    else:
        given = list(contexts) if isinstance(contexts, Iterable) and getattr(contexts, "ndim", 1) != 0 else [contexts]
        wrong = next((x for x in given if isinstance(x, str) or not isinstance(x, Sequence) or len(x) < 2), None)
        if wrong is not None:
            raise ValueError(
                f"contexts: expected pairs (ENV sentence with {SLOT}, LAN words up to the noun), got {described(wrong)}"
            )
        loaded = [dict(zip(Context._fields, pair, strict=False)) for pair in given]
    if not loaded:
        raise ValueError(f"{source}: expected at least one context, got none")
    found = []
    for number, item in enumerate(_items(loaded, source), 1):
        try:
            found.append(_checked(item))
        except ValueError as error:
            raise ValueError(f"{source}, context {number}: {error}") from None
    return found


def _items(loaded: Any, source: str) -> list[Any]:
    """A JSON object for each context."""
    if isinstance(loaded, dict) and all(isinstance(loaded.get(name), list) for name in ("env", "lan")):
        if len(loaded["env"]) != len(loaded["lan"]):
            raise ValueError(
                f"{source}: expected as many ENV sentences as LAN words, got {len(loaded['env'])} and "
                f"{len(loaded['lan'])}"
            )
        return [{"env": env, "lan": lan} for env, lan in zip(loaded["env"], loaded["lan"], strict=True)]
    if not isinstance(loaded, list):
        raise ValueError(
            f'{source}: expected a list of {{"env": …, "lan": …}} or {{"env": […], "lan": […]}}, got '
            f"{described(loaded)}"
        )
    return loaded


def _checked(item: Any) -> Context:
    """A context from a JSON object, with the type and form of each part checked."""
    if not isinstance(item, dict):
        raise ValueError(f'expected {{"env": …, "lan": …}}, got {described(item)}')
    for name in ("env", "lan"):
        if name not in item:
            raise ValueError(f"has no {name!r}")
    parts: dict[str, Any] = {name: item.get(name, Context._field_defaults.get(name)) for name in Context._fields}
    for name in ("env", "lan"):
        if not isinstance(parts[name], str):
            raise ValueError(f"{name}: expected text, got {described(parts[name])}")
    for name, form, size in (("between", "(speaker, 'env' or 'lan', text)", 3), ("speakers", "two speakers", 2)):
        rows = parts[name] if name == "between" else [parts[name]]
        if not _is_list(rows):
            raise ValueError(f"{name}: expected a list of {form}, got {described(rows)}")
        for row in rows:
            if not (_is_list(row) and len(row) == size and all(isinstance(x, str) for x in row)):
                raise ValueError(f"{name}: expected {form}, got {described(row)}")
    context = context_of(list(parts.values()))
    if context.env.count(SLOT) != 1 or SLOT in context.lan or not WORD.search(context.lan):
        raise ValueError(f"expected one {SLOT} in the ENV sentence and words in the LAN part; got {context}")
    if context.cue not in (*TIERS, IMAGE):
        raise ValueError(f"cue: expected 'env', 'lan' or 'image', got {described(context.cue)}")
    for utterance in context.between:
        if utterance.tier not in ("env", "lan") or SLOT in utterance.text:
            raise ValueError(f"between: expected (speaker, 'env' or 'lan', text) without {SLOT}, got {utterance}")
    return context


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
