"""Surprisal of every target noun after every context with every ENV noun, as a table in memory or streamed to disk."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from symground.analysis.probing.probe_checks import check_asked, check_fits
from symground.analysis.probing.scan import scan
from symground.analysis.probing.sentence_probes import Probes
from symground.analysis.probing.word_scores import score_words
from symground.errors import check_path, described, integer
from symground.files import read_json, replacing, write_json
from symground.models.passes import check_weights
from symground.running import progress

_KEY = "_scores.json"  # readers of a folder of Parquet files ignore names with a leading underscore
_PARTS = "part-*.parquet"
_WORDS_AT_ONCE = 64
_FLUSH_SECONDS, _FLUSH_ROWS = 10.0, 2**16  # work that an interruption may lose; rows held in memory


def score(
    model: PreTrainedModel, probes: Probes | str, words: Sequence[str] | None = None, tokenizer: Any = None, *,
    joint: str | None = None, memory: int | None = None, batch_size: int | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Score the probes. One forward pass over each context with each ENV noun scores all targets, and a prefix that
    contexts share runs once.

    Args:
        model: any causal language model of transformers, or one of ours.
        probes: from :func:`symground.probes`; or one context as text, after which ``words`` are scored.
        words: of a text: each is scored as what follows it, also with several tokens.
        tokenizer: a fast one, of a text; None loads that of the folder or name that the model came from.
        joint: between the text and each word; None is one space, whether or not the text ends in one, and nothing if it
            ends in a line break or a tab.
        memory: approximate bytes that the model's caches and activations may take; it limits the size of batches. None:
            64 MiB on a CPU, where more is not faster, and 2 GiB on a GPU.
        batch_size: rows per pass, in place of ``memory``.

    Returns:
        A DataFrame, context by context: context (its index), env, target (nouns), surprisal (nats, computed in
        float32 or wider whatever the model's dtype). The rows of a batch have one length, so a score does not depend on
        padding or batch size. Of a text, its columns are target (the words), surprisal and tokens, the number of each
        word's; the text runs once.

    Raises:
        ValueError: a context longer than the model's positions, an id outside its vocabulary, dropout that is on, or a
            surprisal that is NaN (the message names the context and the model); no words, or one that the tokenizer
            joins to the text.
    """
    _check_sizes(memory, batch_size)
    if isinstance(probes, str):
        return score_words(model, probes, words, tokenizer, joint, batch_size or _WORDS_AT_ONCE)
    for name, value in (("words", words), ("tokenizer", tokenizer), ("joint", joint)):
        if value is not None:
            raise ValueError(f"{name}: expected None with probes, got {described(value)}")
    tables = {c: _table(probes, c, values) for c, values in _scores(model, probes, memory, batch_size)}
    return pd.concat([tables[c] for c in sorted(tables)], ignore_index=True)


def score_to_parquet(
    model: PreTrainedModel,
    probes: Probes,
    path: str | Path,
    *,
    memory: int | None = None,
    batch_size: int | None = None,
) -> Path:
    """Score the probes into a folder of Parquet files, which ``pandas.read_parquet(path)`` reads as one table.

    Memory does not grow with the number of contexts. If the call is interrupted, the scores so far are kept; the same
    call resumes from them and repeats none.

    Args:
        model: as for :func:`symground.score`.
        probes: as for :func:`symground.score`.
        path: the folder.
        memory: as for :func:`symground.score`.
        batch_size: as for :func:`symground.score`.

    Returns:
        ``path``.

    Raises:
        ValueError: what :func:`symground.score` refuses, or a folder with other files, or with scores of another model
            or of other probes.
    """
    check_weights(model)
    check_asked(probes)
    _check_sizes(memory, batch_size)
    folder = check_path(path, "path")
    key = {"probes": probes.fingerprint(), "model": _fingerprint(model)}
    done = _done(folder, key)
    write_json(folder / _KEY, key)
    left = [c for c in range(len(probes.contexts)) if c not in done]
    if not left:
        return folder
    held: list[pd.DataFrame] = []
    part, since = _next_part(folder), time.monotonic()
    try:
        for c, values in _scores(model, probes.take_contexts(left), memory, batch_size, names=left):
            held.append(_table(probes, c, values))
            if time.monotonic() - since > _FLUSH_SECONDS or sum(map(len, held)) >= _FLUSH_ROWS:
                _write(part, held)
                held, part, since = [], _next_part(folder), time.monotonic()
    finally:
        # After an interruption between _write and _next_part, the same part is written again, not a further one.
        _write(part, held)
    return folder


def _check_sizes(memory: int | None, batch_size: int | None) -> None:
    for name, value in (("memory", memory), ("batch_size", batch_size)):
        if value is not None:
            integer(name, value, 1)


def _scores(
    model: PreTrainedModel, probes: Probes, memory: int | None, batch_size: int | None, names: list[int] | None = None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(context, surprisals [ENV nouns, targets], NaN for pairs that are not scored) as they are done."""
    check_fits(model, probes)
    with progress("score", len(probes.contexts)) as bar:
        for c, values in scan(model, probes, memory, batch_size):
            number = c if names is None else names[c]
            wrong = np.isnan(values) & probes.pairs.numpy()
            if wrong.any():
                u, v = (int(i[0]) for i in wrong.nonzero())
                raise ValueError(
                    f"model: {model.name_or_path or type(model).__name__} gives NaN for {probes.nouns[v]!r} after "
                    f"context {number} ({probes.contexts[c]}) with {probes.nouns[u]!r}"
                )
            bar.advance()
            yield number, values


def _table(probes: Probes, context: int, values: NDArray[np.float32]) -> pd.DataFrame:
    u, v = probes.pairs.numpy().nonzero()
    nouns = np.array(probes.nouns, dtype=object)
    return pd.DataFrame({"context": context, "env": nouns[u], "target": nouns[v], "surprisal": values[u, v]})


def _done(folder: Path, key: dict[str, str]) -> set[int]:
    """The contexts whose scores the folder has."""
    if not folder.exists() or not any(folder.iterdir()):
        return set()
    if not (folder / _KEY).is_file():
        raise ValueError(f"path: {folder} holds other things than scores; choose another folder")
    known = read_json(folder / _KEY)
    for what in ("probes", "model"):
        if known.get(what) != key[what]:
            raise ValueError(f"path: {folder} holds scores of other {what}; choose another folder, or remove this one")
    return {c for part in sorted(folder.glob(_PARTS)) for c in _contexts(part)}


def _contexts(part: Path) -> list[int]:
    try:
        return pd.read_parquet(part, columns=["context"])["context"].unique().tolist()
    except Exception as error:  # pyarrow raises many types
        raise ValueError(f"path: {part} is damaged ({error}); remove it, and its contexts are scored again") from error


def _next_part(folder: Path) -> Path:
    last = max((int(part.stem.removeprefix("part-")) for part in folder.glob(_PARTS)), default=-1)
    return folder / f"part-{last + 1:06d}.parquet"


def _write(part: Path, tables: list[pd.DataFrame]) -> None:
    """Write a file of scores under a temporary name first, so that a reader never sees half of it."""
    if tables:
        with replacing(part) as partial:
            pd.concat(tables, ignore_index=True).to_parquet(partial, index=False)


def _fingerprint(model: PreTrainedModel) -> str:
    """A hash of the model's class and of the sums of its weights, which differ for other weights."""
    sums = [(name, list(p.shape), float(p.detach().sum(dtype=torch.float64))) for name, p in model.named_parameters()]
    return hashlib.sha256(json.dumps([type(model).__name__, sums]).encode()).hexdigest()
