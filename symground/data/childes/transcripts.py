"""CHILDES: reads transcripts from folders and archives into a corpus, in parallel, and accounts for every utterance."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symground import errors
from symground.data.childes.chat import ChatSettings, Unreadable, decode, is_utf8, main_tiers, parse
from symground.data.childes.workers import Died, Worker, workers
from symground.data.files import LeftOut, Limits, file_names, files_in
from symground.data.sequences import CorpusBuilder, share_of
from symground.errors import ENDS, check_kind, flag, integer
from symground.running import progress

#: Bytes of transcripts that a process gets at once.
_BATCH = 1 << 20
#: The categories in which main tiers are counted; each main tier is in one.
_OUTCOMES = ("utterances", "silent", "other_speakers", "in_left_out_files", "in_set_aside_files")


@dataclass
class _Parsed:
    """The result for one transcript from a process: a document, or the reason why there is none."""

    counts: dict[str, int] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    tokens: NDArray[np.int32] | None = None
    starts: NDArray[np.int64] | None = None
    lemmas: Counter[tuple[str, str]] = field(default_factory=Counter)
    line: int = 0
    reason: str = ""


def add_transcripts(
    builder: CorpusBuilder, paths: Sequence[str | Path], settings: ChatSettings, *, validation: float = 0.0,
    strict: bool = False, jobs: int | None = None, limits: Limits | None = None,
) -> dict[str, str]:  # fmt: skip
    """Add every transcript under ``paths`` (.cha files, and folders or archives of them), a document each.

    A transcript that cannot be read is set aside, with its line and reason in ``builder.statistics["chat"]``, which
    also accounts for every utterance. A transcript that crashes the process reading it is set aside too, if there are
    several processes. A file that is reached twice, or that has the name and content of another, is read once, and
    listed there as not read. The corpus does not depend on ``jobs``.

    Args:
        builder: collects the documents, grouped by corpus (:func:`corpora_of`).
        paths: are read one file at a time; archives are not unpacked.
        settings: which transcripts, tiers and words are read.
        validation: the share of documents kept from training, chosen by their names.
        strict: raise for the first transcript that cannot be read, instead of setting it aside.
        jobs: the number of processes; None is the number of processors. The caller's script needs no main guard.
        limits: how large files may be, and whether links are followed.

    Returns:
        form → lemma, for the builder; empty unless ``settings.lemmas``.

    Raises:
        FileNotFoundError: a path or the file of lemmas does not exist.
        ValueError: a path is neither a transcript, a folder nor an archive; an archive is damaged, or has a member that
            is a link or leads out of it; a file is above a limit, or a link leads out of its folder (names the option);
            there is no transcript, or none with enough ENV tiers; the file of lemmas has another format; or with
            ``strict``, a transcript cannot be read.
    """
    check_kind(builder, CorpusBuilder, "builder")
    check_kind(settings, ChatSettings, "settings")
    validation, strict = errors.number("validation", validation, "[0, 1)"), flag("strict", strict)
    jobs = None if jobs is None else integer("jobs", jobs, 1)
    lemmas = {} if settings.lemmas in (None, "mor") else read_lemmas(settings.lemmas or "")
    left_out: LeftOut = []
    names = file_names(paths, ".cha", limits, left_out)
    corpora = corpora_of(names)
    account = _Account(settings, left_out)
    merged: Counter[tuple[str, str]] = Counter()
    with progress("transcripts", len(names), quick=True) as bar:
        for name, parsed in _results(_without_copies(files_in(paths, ".cha", limits=limits), left_out), settings, jobs):
            account.add(corpora[name], name, parsed, strict)
            if parsed.tokens is not None and parsed.starts is not None:
                builder.add_encoded(
                    parsed.words, parsed.tokens, parsed.starts, name, group=corpora[name],
                    validation=share_of(name) < validation,
                )  # fmt: skip
                merged.update(parsed.lemmas)
            bar.advance()
    builder.statistics["chat"] = account.statistics()
    account.check(paths)
    return _most_frequent(merged) if settings.lemmas == "mor" else lemmas


def corpora_of(names: Iterable[str]) -> dict[str, str]:
    """The corpus of each file: its first two folders below those that all files share (Eng-NA/Brown)."""
    folders = {name: PurePosixPath(name).parts[:-1] for name in names}
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders.values(), strict=False))
    # If there is one corpus only, all files share its folder, but this is still the corpus's name.
    depth = min(len(list(shared)), max(0, min(map(len, folders.values()), default=0) - 1))
    return {name: "/".join(parts[depth : depth + 2]) or "." for name, parts in folders.items()}


def read_lemmas(path: str | Path) -> dict[str, str]:
    """form → lemma from a file of lines 'form TAB lemma'.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or a line has another format (names the line).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"lemmas: expected 'mor' or a file, {path} does not exist")
    found = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split("\t")
        if len(parts) != 2 or not all(parts):
            raise ValueError(f"lemmas: {path}, line {number}: expected 'form TAB lemma', got {line!r}")
        found[parts[0]] = parts[1]
    return found


class _Account:
    """Counts every file and every utterance by its outcome."""

    def __init__(self, settings: ChatSettings, left_out: LeftOut) -> None:
        self._settings, self._left_out = settings, left_out
        self._corpora: dict[str, Counter[str]] = {}
        self._skipped: list[dict[str, Any]] = []

    def add(self, corpus: str, name: str, parsed: _Parsed, strict: bool) -> None:
        of_corpus = self._corpora.setdefault(corpus, Counter())
        of_corpus.update({"files": 1, **parsed.counts})
        if parsed.reason:
            if strict:
                raise ValueError(f"paths: {name}, line {parsed.line}: {parsed.reason}")
            of_corpus["files_set_aside"] += 1
            self._skipped.append({"file": name, "line": parsed.line, "reason": parsed.reason})

    def statistics(self) -> dict[str, Any]:
        keys = (
            "files",
            "files_kept",
            "files_left_out",
            "files_set_aside",
            "latin_1",
            "main_tiers",
            *_OUTCOMES,
            "env_tiers",
        )
        total: Counter[str] = Counter()
        for of_corpus in self._corpora.values():
            total.update(of_corpus)
        corpora = {
            name: {key: of_corpus[key] for key in keys} for name, of_corpus in sorted(self._corpora.items())
        }  # fmt: skip
        not_read = [{"file": name, "line": 0, "reason": reason} for name, reason in self._left_out]
        skipped = sorted([*self._skipped, *not_read], key=lambda entry: str(entry["file"]))
        return {
            **{key: total[key] for key in keys}, "files_not_read": len(not_read),
            "skipped": skipped, "corpora": corpora, "settings": asdict(self._settings),
        }  # fmt: skip

    def check(self, paths: Iterable[str | Path]) -> None:
        found = self.statistics()
        if not found["files"]:
            raise ValueError(f"paths: no .cha file in {', '.join(map(str, paths))}")
        if not found["files_kept"]:
            first = next((f"; {len(self._skipped)} could not be read, the first: {s['file']}, line {s['line']}: "
                          f"{s['reason']}" for s in self._skipped), "")  # fmt: skip
            tiers = ", ".join("%" + tier for tier in self._settings.env_tiers)
            of = f" of the speakers {', '.join(self._settings.speakers)}" if self._settings.speakers else ""
            raise ValueError(
                f"paths: none of {found['files']} transcripts has {self._settings.min_env_tiers} or more of the tiers "
                f"{tiers} and a turn{of}{first}"
            )


def _without_copies(files: Iterable[tuple[str, bytes]], left_out: LeftOut) -> Iterator[tuple[str, bytes]]:
    """The files, without those whose name and content equal an earlier file's."""
    seen: set[tuple[str, bytes]] = set()
    for name, content in files:
        key = (name, blake2b(content, digest_size=16).digest())
        if key in seen:
            left_out.append((name, "is a copy of a file of the same name, which is read"))
        else:
            seen.add(key)
            yield name, content


def _results(
    files: Iterable[tuple[str, bytes]], settings: ChatSettings, jobs: int | None
) -> Iterator[tuple[str, _Parsed]]:
    """(name, result) in the order of the files; enough batches are in progress to keep the processes busy."""
    batches = _batches(files)
    first = list(islice(batches, 4))
    jobs = jobs or os.cpu_count() or 1
    if jobs == 1 or len(first) < 4:  # faster than starting a process
        for batch in (*first, *batches):
            yield from zip((name for name, _ in batch), _parse_batch((batch, settings)), strict=True)
        return
    with workers(jobs) as free, ThreadPoolExecutor(jobs) as threads:
        waiting: deque[tuple[list[str], Future[list[_Parsed]]]] = deque()

        def in_a_worker(batch: list[tuple[str, bytes]]) -> list[_Parsed]:
            worker = free.get()
            try:
                return _ask(worker, batch, settings)
            finally:
                free.put(worker)

        for batch in (b for part in (first, batches) for b in part):
            waiting.append(([name for name, _ in batch], threads.submit(in_a_worker, batch)))
            if len(waiting) > 2 * jobs:
                names, future = waiting.popleft()
                yield from zip(names, future.result(), strict=True)
        for names, future in waiting:
            yield from zip(names, future.result(), strict=True)


def _ask(worker: Worker, batch: list[tuple[str, bytes]], settings: ChatSettings) -> list[_Parsed]:
    """A worker's results for a batch. If its process dies, files are tried one by one to find the one that kills it."""
    try:
        found: list[_Parsed] = worker.ask(_parse_batch, (batch, settings))
    except Died as died:
        if len(batch) > 1:
            return [parsed for file in batch for parsed in _ask(worker, [file], settings)]
        return [_set_aside(batch[0][1], 1, f"the process that read it died ({died})")]
    return found


def _batches(files: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for name, content in files:
        batch.append((name, content))
        size += len(content)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _parse_batch(request: tuple[list[tuple[str, bytes]], ChatSettings]) -> list[_Parsed]:
    batch, settings = request
    return [_parse_one(content, settings) for _, content in batch]


def _set_aside(content: bytes, line: int, reason: str) -> _Parsed:
    count = main_tiers(content)
    return _Parsed({"main_tiers": count, "in_set_aside_files": count}, line=line, reason=reason)


def _parse_one(content: bytes, settings: ChatSettings) -> _Parsed:
    try:
        transcript = parse(decode(content), settings)
    except Unreadable as error:
        return _set_aside(content, error.line, error.reason)
    except ENDS:
        raise
    except BaseException as error:  # a Rust library's panic is no Exception
        return _set_aside(content, 1, f"{type(error).__name__}: {error}")
    latin = int(not is_utf8(content))
    tiers = {"main_tiers": transcript.main_tiers, "env_tiers": transcript.env_tiers, "latin_1": latin}
    if transcript.env_tiers < settings.min_env_tiers or not transcript.turns:
        return _Parsed({**tiers, "files_left_out": 1, "in_left_out_files": transcript.main_tiers})
    words: dict[str, int] = {}
    tokens = [words.setdefault(token, len(words)) for turn in transcript.turns for token in turn]
    lengths = [len(turn) for turn in transcript.turns]
    outcomes = {"utterances": len(lengths), "silent": transcript.silent, "other_speakers": transcript.other_speakers}
    return _Parsed(
        {**tiers, **outcomes, "files_kept": 1}, list(words), np.array(tokens, np.int32),
        np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64), transcript.lemmas,
    )  # fmt: skip


def _most_frequent(found: Counter[tuple[str, str]]) -> dict[str, str]:
    """form → its most frequent lemma; of equally frequent ones, the first in alphabetical order."""
    best: dict[str, tuple[int, str]] = {}
    for (form, lemma), count in found.items():
        if form not in best or (-count, lemma) < best[form]:
            best[form] = (-count, lemma)
    return {form: lemma for form, (_, lemma) in sorted(best.items()) if lemma != form}
