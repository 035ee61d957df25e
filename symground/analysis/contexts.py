"""The sentence pairs of a probe, from the package, from a file or from the caller."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from symground.analysis.given import told
from symground.data.generated import Utterance, distractor
from symground.data.words import IMAGE, TIERS, WORD

SLOT = "{}"


class Context(NamedTuple):
    """One sentence pair; ``{}`` in the ENV sentence is the noun."""

    env: str
    lan: str
    between: tuple[Utterance, ...] = ()
    """What is done and said between the two."""
    speakers: tuple[str, str] = ("CHI", "CHI")
    """Of the ENV sentence and of the LAN words."""
    cue: str = "env"
    """The tier of the first sentence: "lan" makes it a spoken one, the noun as LAN, the control for plain recall;
    "image" puts an image of the noun in its place, and only the LAN words count."""

    def around(self) -> tuple[str, str]:
        """The ENV sentence before and after the noun."""
        before, after = self.env.split(SLOT)
        return before, after


def context_of(values: Sequence[Any]) -> Context:
    """From what JSON holds of a context: its parts in order, at least two; ``between`` of (speaker, tier, text)."""
    found = Context(*values)
    first, second = found.speakers
    return found._replace(between=tuple(Utterance(*u) for u in found.between), speakers=(first, second))


def of_images(contexts: Iterable[Context]) -> list[Context]:
    """The contexts with an image in the place of the ENV sentence; those that are the same without it once."""
    return list(dict.fromkeys(context._replace(env=SLOT, cue=IMAGE) for context in contexts))


def with_gap(contexts: Iterable[Context], gap: int, seed: int = 0) -> list[Context]:
    """The contexts with so many of the generated corpus' utterances that name no object between their two sentences.

    A model that was trained with a gap is asked across the same gap, or its probes would be texts of another kind.
    """
    found = []
    for number, context in enumerate(contexts):
        rng = random.Random(f"{seed}, context {number}")
        found.append(context._replace(between=tuple(distractor(rng) for _ in range(gap))))
    return found


def read_contexts(contexts: Iterable[Sequence[Any]] | str | Path | None) -> list[Context]:
    """Contexts from pairs, from a JSON file (a list of {"env", "lan"}, or {"env": […], "lan": […]}), or the package's.

    More parts are possible: "between", a list of (speaker, "env" or "lan", text); "speakers", the two of the ENV
    sentence and of the LAN words; "cue", the tier of the first sentence.

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
        given = list(contexts) if isinstance(contexts, Iterable) else [contexts]
        wrong = next((x for x in given if isinstance(x, str) or not isinstance(x, Sequence) or len(x) < 2), None)
        if wrong is not None:
            raise ValueError(
                f"contexts: expected pairs (ENV sentence with {SLOT}, LAN words up to the noun), got {told(wrong)}"
            )
        loaded = [dict(zip(Context._fields, pair, strict=False)) for pair in given]
    try:
        if isinstance(loaded, dict):
            pairs = [Context(*pair) for pair in zip(loaded["env"], loaded["lan"], strict=True)]
        else:
            defaults = Context._field_defaults
            pairs = [
                context_of((item["env"], item["lan"], *(item.get(name, value) for name, value in defaults.items())))
                for item in loaded
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{source}: expected a list of {{"env": …, "lan": …}}; {error!r}') from None
    if not pairs:
        raise ValueError(f"{source}: expected at least one context, got none")
    for pair in pairs:
        if pair.env.count(SLOT) != 1 or SLOT in pair.lan or not WORD.search(pair.lan):
            raise ValueError(f"{source}: expected one {SLOT} in the ENV sentence and words in the LAN part; got {pair}")
        if pair.cue not in (*TIERS, IMAGE):
            raise ValueError(f"{source}: expected 'env', 'lan' or 'image' as the cue; got {pair.cue!r}")
        for utterance in pair.between:
            if utterance.tier not in ("env", "lan") or SLOT in utterance.text:
                raise ValueError(f"{source}: expected (speaker, 'env' or 'lan', text) between; got {utterance}")
    return pairs
