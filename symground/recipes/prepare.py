"""Builds a study's folder from a corpus: tokenizer, token arrays, nouns, contexts, and a page about the corpus."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from symground.analysis.probing import Context, of_images, read_contexts, split_contexts, with_gap
from symground.data import (
    ChatSettings,
    Corpus,
    CorpusBuilder,
    DialogSettings,
    GeneratedSettings,
    add_dialogues,
    add_scenes,
    add_transcripts,
    noun_list,
    nouns_over_threshold,
)
from symground.data.files import Limits
from symground.data.scenes import GeneratedImagesSettings, add_image_scenes
from symground.data.sequences import Shown, share_of
from symground.data.words import IMAGE, normalized, noun_tokens, replace_words, shown
from symground.errors import WrongUsageError, check_types, integer, number
from symground.files import differences, held, read_json, sync_all, write_json
from symground.reports.formats import scene_share
from symground.reports.pages.corpus import corpus_page

GENERATED, GENERATED_IMAGES, CHILDES, VISDIAL = "generated", "generated-images", "childes", "visdial"
KINDS = (GENERATED, GENERATED_IMAGES, CHILDES, VISDIAL)
PROBE_IMAGES = "probe_images.json"


@dataclass(frozen=True)
class CorpusSettings:
    """The settings of a corpus and of its nouns and contexts."""

    chat: Annotated[tyro.conf.OmitArgPrefixes[ChatSettings], tyro.conf.arg(name="transcript")] = field(
        default_factory=ChatSettings
    )
    visdial: DialogSettings = field(default_factory=DialogSettings)
    generated: GeneratedSettings = field(default_factory=GeneratedSettings)
    images: GeneratedImagesSettings = field(default_factory=GeneratedImagesSettings)
    min_word_count: int = 5
    """Rarer tokens become [UNK] (not in the generated corpus)."""
    validation: float = 0.01
    """Share of documents held out from training (not in the generated corpus)."""
    nouns: str = "study"
    """Nouns to probe: 'study' (the study's 100), 'cdi', a Wordbank item list (.csv), or a file with a word per line."""
    noun_categories: tuple[str, ...] = ()
    """Use only nouns in these categories of the CDI (animals toys …)."""
    min_noun_count: int = 100
    """Smallest count of a probed noun, both as ENV and as LAN (the study's rule)."""
    contexts: str | None = None
    """JSON file of sentence pairs; by default the package's ten for this kind of corpus."""
    strict: bool = False
    """Stop at the first file that cannot be read; by default such files are skipped and listed."""
    jobs: int | None = None
    """Number of processes that read transcripts; by default the number of processors."""
    limits: Annotated[tyro.conf.OmitArgPrefixes[Limits], tyro.conf.arg(name="file")] = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("min_word_count", "min_noun_count", "jobs"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)
        number("validation", self.validation, "[0, 1)")


#: The values of settings that are younger than some studies, for folders whose config.json lacks them.
_BEFORE: dict[str, Any] = {"validation": 0.0, "nouns_from": "study", "noun_categories": []}


def kind_of(corpus: Sequence[str]) -> tuple[str, list[str]]:
    """(kind, paths) of a corpus on the command line; paths alone are transcripts.

    Raises:
        ValueError: a kind without paths, or a generated corpus with paths.
    """
    kind, paths = (corpus[0], list(corpus[1:])) if corpus and corpus[0] in KINDS else (CHILDES, list(corpus))
    if _is_generated(kind) == bool(paths):
        expected = f"nothing after {kind!r}" if paths else f"paths after {kind!r}"
        raise ValueError(f"corpus: expected {expected}, got {' '.join(corpus) or 'nothing'}")
    return kind, paths


def _is_generated(kind: str) -> bool:
    return kind in (GENERATED, GENERATED_IMAGES)


def prepare(corpus: Sequence[str], out: str | Path, settings: CorpusSettings) -> Corpus:
    """Build a study's folder from ``corpus`` (a kind and its paths), or load the existing one.

    Writes ``data/`` (see `symground.data.sequences.corpus`), ``tokenizer.json``, ``corpus.html`` and, last,
    ``config.json``; for generated scenes with images also the image set ``images/``.

    Raises:
        BlockingIOError: another process is preparing this study (the message says which).
        ValueError: the folder has a study of another corpus, no noun reaches the threshold, or every context has a word
            that the vocabulary lacks.
    """
    study = Path(out)
    kind, paths = kind_of(corpus)
    wanted = _wanted(kind, corpus, settings)
    if not (study / "config.json").is_file():
        try:
            with held(study, "prepares the corpus"):
                if not (study / "config.json").is_file():  # the previous holder may have built it
                    return _made_or_nothing(study, kind, paths, settings, wanted)
        finally:
            with suppress(OSError):  # removes only an empty folder
                study.rmdir()
    _check_same(study, wanted)
    return Corpus.load(study / "data", study)


def _made_or_nothing(
    study: Path, kind: str, paths: Sequence[str], settings: CorpusSettings, wanted: Mapping[str, Any]
) -> Corpus:
    try:
        return _made(study, kind, paths, settings, wanted)
    except BaseException:
        shutil.rmtree(study / "images", ignore_errors=True)
        shutil.rmtree(study / "images.partial", ignore_errors=True)
        raise


def _made(study: Path, kind: str, paths: Sequence[str], settings: CorpusSettings, wanted: Mapping[str, Any]) -> Corpus:
    builder = CorpusBuilder(study)
    contexts = _contexts(kind, settings)
    listed = noun_list(settings.nouns, settings.noun_categories)
    lemmas, seen, empty = _fill(builder, kind, paths, settings, study, listed, len(contexts))
    minimum = 1 if _is_generated(kind) else settings.min_word_count
    chosen = [_adapted(c, _folds(kind, settings), lemmas) for c in contexts]
    candidates = dict.fromkeys(_word(noun, _folds(kind, settings), lemmas) for noun in listed)
    spoken, cue = (settings.generated.spoken if _is_generated(kind) else {}), contexts[0].cue
    tokenizer = builder.tokenizer(minimum, lemmas)
    vocabulary = tokenizer.get_vocab()
    seen_images = {"images": {shown(noun): len(images) for noun, images in builder.shown.items()}}
    everything = builder.counts_by_group(lemmas) | (seen_images if cue == IMAGE else {})
    # A corpus in which no noun is frequent enough is refused before its vocabulary is checked.
    nouns_over_threshold(_total(everything), settings.min_noun_count, list(candidates), spoken, cue)
    counts = {
        group: {token: n for token, n in of_group.items() if token in vocabulary or group == "images"}  # others: [UNK]
        for group, of_group in everything.items()
    }
    kept, lacking = split_contexts(tokenizer, chosen)
    for context, words in lacking.items():
        say(f"context left out, not in the vocabulary {', '.join(words)}: {context.env!r}, {context.lan!r}")
    if not kept:
        raise ValueError("contexts: the vocabulary lacks words of every one of them; give others with --contexts")
    nouns = nouns_over_threshold(_total(counts), settings.min_noun_count, list(candidates), spoken, cue)
    place = (settings.visdial.images or study / "images") if cue == IMAGE else None
    built = builder.write(study / "data", minimum, lemmas, place)
    built.tokenizer.save_pretrained(study)
    if cue == IMAGE:
        probed = seen or {noun: probe_images(builder, noun, len(kept)) for noun in nouns}
        write_json(study / "data" / PROBE_IMAGES, {"of": {noun: probed[noun] for noun in nouns}, "empty": empty})
    corpus_page(study, built.statistics, counts, noun_tokens(nouns, spoken, cue), settings.min_noun_count)
    # Written last, after everything else is on the disk: a folder with a config.json is a complete study.
    sync_all(study)
    asked = {} if _is_generated(kind) else {"asked": {"nouns": len(candidates), "contexts": len(contexts)}}
    write_json(study / "config.json", {**wanted, **asked, "nouns": nouns, "spoken": spoken, "contexts": kept})
    _summarise(study, built.statistics, nouns, kept)
    return Corpus.load(study / "data", study)


def probe_images(builder: CorpusBuilder, noun: str, count: int) -> list[Shown]:
    """``count`` images to probe a noun with, in random order, those held out from training first."""
    among = dict.fromkeys(builder.shown[noun])
    order = sorted(among, key=lambda i: (i not in builder.validation_images, share_of(f"{noun} {i}")))
    return [Shown(image) for image in order[:count]]


def _total(counts: Mapping[str, Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for of_group in counts.values():
        total.update(of_group)
    return total


def _wanted(kind: str, corpus: Sequence[str], settings: CorpusSettings) -> dict[str, Any]:
    """The entries of config.json that identify the corpus."""
    wanted: dict[str, Any] = {
        "corpus": list(corpus), "min_noun_count": settings.min_noun_count, "contexts_file": settings.contexts,
        "nouns_from": settings.nouns, "noun_categories": settings.noun_categories,
    }  # fmt: skip
    if _is_generated(kind):
        wanted["generated"] = asdict(settings.generated)
        wanted |= {"images": asdict(settings.images)} if kind == GENERATED_IMAGES else {}
    else:
        own = {"chat": settings.chat} if kind == CHILDES else {"visdial": settings.visdial}
        wanted |= {name: asdict(value) for name, value in own.items()}
        wanted |= {"min_word_count": settings.min_word_count, "validation": settings.validation}
    loaded: dict[str, Any] = json.loads(json.dumps(wanted))  # as in config.json, where tuples are lists
    return loaded


def _check_same(study: Path, wanted: Mapping[str, Any]) -> None:
    found = {**_BEFORE, **read_json(study / "config.json")}
    known: dict[str, Any] = {
        "generated": GeneratedSettings(), "images": GeneratedImagesSettings(), "chat": ChatSettings(),
        "visdial": DialogSettings(),
    }  # fmt: skip
    for name, settings in known.items():
        if isinstance(found.get(name), dict):  # settings younger than the study have their defaults
            found[name] = {**json.loads(json.dumps(asdict(settings))), **found[name]}
    differing = differences(found, wanted)
    if differing:
        raise ValueError(f"{study} holds another study: {'; '.join(differing)}. Choose another folder (--out).")


def _fill(
    builder: CorpusBuilder, kind: str, paths: Sequence[str], settings: CorpusSettings, study: Path,
    nouns: Sequence[str], contexts: int,
) -> tuple[dict[str, str], dict[str, list[Shown]], int | None]:  # fmt: skip
    """Add the documents to the builder; returns form → lemma, and the images generated for probes: noun → images that
    show it, and an image that shows none."""
    if kind == GENERATED:
        add_scenes(builder, settings.generated)
        return {}, {}, None
    if kind == GENERATED_IMAGES:
        shutil.rmtree(study / "images", ignore_errors=True)  # left by an interruption
        return {}, *add_image_scenes(builder, study / "images", settings.generated, settings.images, contexts)
    validation, strict = settings.validation, settings.strict
    if kind == VISDIAL:
        add_dialogues(
            builder, paths, settings.visdial, validation=validation, strict=strict, nouns=nouns, limits=settings.limits
        )
        return {}, {}, None
    lemmas = add_transcripts(
        builder, paths, settings.chat, validation=validation, strict=strict, jobs=settings.jobs, limits=settings.limits
    )
    return lemmas, {}, None


def _contexts(kind: str, settings: CorpusSettings) -> list[Context]:
    chosen = read_contexts(settings.contexts, "contexts_visdial.json" if kind == VISDIAL else "contexts.json")
    if kind == GENERATED:
        chosen = [context._replace(cue=settings.generated.cue) for context in chosen]
    if _is_generated(kind) and settings.generated.gap:
        chosen = with_gap(chosen, settings.generated.gap)
    seen = kind == GENERATED_IMAGES or (kind == VISDIAL and settings.visdial.images is not None)
    return of_images(chosen) if seen else chosen


def _folds(kind: str, settings: CorpusSettings) -> bool:
    return {CHILDES: settings.chat.fold_case, VISDIAL: settings.visdial.fold_case}.get(kind, False)


def _adapted(context: Context, fold: bool, lemmas: Mapping[str, str]) -> Context:
    """The context with its words case-folded and lemmatised as those of the corpus."""
    between = tuple(u._replace(text=_words(u.text, fold, lemmas)) for u in context.between)
    before, after = (_words(part, fold, lemmas) for part in context.around())
    return context._replace(env=f"{before}{{}}{after}", lan=_words(context.lan, fold, lemmas), between=between)


def _words(text: str, fold: bool, lemmas: Mapping[str, str]) -> str:
    return replace_words(text, lambda word: _word(word, fold, lemmas))


def _word(word: str, fold: bool, lemmas: Mapping[str, str]) -> str:
    word = normalized(word.lower() if fold else word)
    return lemmas.get(word, word)


def _summarise(study: Path, statistics: Mapping[str, Any], nouns: Sequence[str], contexts: Sequence[Context]) -> None:
    images = statistics.get("documents_with_image", 0)
    what = f"patches of {images:,} images" if images else "ENV"
    say(
        f"{study}: {statistics['tokens']:,} tokens ({scene_share(statistics):.0%} {what}), "
        f"vocabulary {statistics['vocabulary']:,}, {len(nouns)} nouns, {len(contexts)} contexts"
    )
    for of_kind in (statistics.get("chat", {}), statistics.get("visdial", {})):
        for skipped in of_kind.get("skipped", []):
            where = f"{skipped['file']}, line {skipped['line']}" if skipped.get("line") else skipped["file"]
            what = "not read" if skipped.get("line") == 0 else "set aside"
            say(f"{what}: {where}: {skipped['reason']}")


def say(text: str) -> None:
    """Print a line beside the output, which is the path of what was written."""
    print(text, file=sys.stderr, flush=True)


def check_named(corpus: Sequence[str]) -> None:
    """Raise WrongUsageError for a command without a corpus."""
    if not corpus:
        raise WrongUsageError("CORPUS: expected 'generated', or 'childes' or 'visdial' and paths; got nothing")


@dataclass(frozen=True, kw_only=True)
class Data(CorpusSettings):
    """``symground data``."""

    corpus: tyro.conf.Positional[tuple[str, ...]]
    """'generated'; 'generated-images', whose scenes are images; 'childes' and .cha files, folders, .zip or .tar.*
    archives of them; 'visdial' and .json files, folders or archives of them. Paths alone are transcripts."""
    out: str
    """Folder of the study."""

    def run(self) -> Path:
        check_named(self.corpus)
        prepare(self.corpus, self.out, self)
        return Path(self.out)
