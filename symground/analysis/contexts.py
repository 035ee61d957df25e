"""The sentence pairs of a probe, from the package, from a file or from the caller."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from symground.data.words import WORD

SLOT = "{}"


class Context(NamedTuple):
    """One sentence pair; ``{}`` in the ENV sentence is the noun."""

    env: str
    lan: str

    def around(self) -> tuple[str, str]:
        """The ENV sentence before and after the noun."""
        before, after = self.env.split(SLOT)
        return before, after


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
        if pair.env.count(SLOT) != 1 or SLOT in pair.lan or not WORD.search(pair.lan):
            raise ValueError(f"{source}: expected one {SLOT} in the ENV sentence and words in the LAN part; got {pair}")
    return pairs
