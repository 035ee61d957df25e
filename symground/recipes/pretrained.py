"""The study's questions of a pretrained model, without training."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from symground.analysis import Probes, probes
from symground.analysis.results import read_table
from symground.analysis.run import ANALYSES, MeasureSettings, Subject, estimated, measure
from symground.data import noun_list
from symground.data.files import parse_json
from symground.data.words import text_of
from symground.errors import check_device, check_path, check_types, integer
from symground.files import held, read_json, write_json
from symground.models import load, load_tokenizer
from symground.recipes.study import summarise
from symground.reports import report
from symground.reports.views.pieces import pieces_of

#: Rows and tokens of the text that lenses are fitted on.
_ROWS, _LENGTH = 64, 128
#: Settings that do not change a result.
_NOT_RESULTS = ("device", "plan", "out")


@dataclass(frozen=True, kw_only=True)
class PretrainedSettings:
    """What a pretrained model is asked."""

    nouns: str = "study"
    """Nouns to probe: 'study' (the study's 100), 'cdi', a Wordbank item list (.csv), or a file with a word per line."""
    categories: tuple[str, ...] = ()
    """Use only nouns in these categories of the CDI (animals toys …)."""
    limit: int | None = 20
    """Number of nouns, from the first; None for all. The time grows with it."""
    contexts: str | None = None
    """JSON file of sentence pairs; by default the package's six in plain English."""
    spoken: str | None = None
    """JSON file of an object, noun → the word that is expected for it (its translation, for example)."""
    text: str | None = None
    """File of text to fit lenses on; by default the model writes one itself."""
    measure: tyro.conf.OmitArgPrefixes[MeasureSettings] = field(
        default_factory=lambda: MeasureSettings(
            spans=(0,), intervene_contexts=4, kinds=("aggregate",), denominators=("row",), selection=("held-out",),
            match=("none", "layer"), lens_fit=30,
        )
    )  # fmt: skip
    dtype: str | None = None
    """Dtype of the weights, such as bfloat16; as stored by default."""
    device: str | None = None
    """Device of the model: cuda or cpu."""
    plan: bool = False
    """Only say how long each analysis will take."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.limit is not None:
            integer("limit", self.limit, 2)


def probe(model: str, out: str | Path, settings: PretrainedSettings) -> Path | None:
    """Ask a pretrained model the study's questions; returns the path of the report, or None if only planned.

    The tables are those of a study with one model, the seed 0 and the step 0. The same call goes on with an interrupted
    one.

    Args:
        model: a folder or a .gguf file of a causal language model with its tokenizer, or a name on the hub.
        out: folder of the tables and the report.
        settings: the nouns and contexts, and what is measured.

    Raises:
        FileNotFoundError: a file or the model does not exist.
        ValueError: words or files that do not fit, a device that does not exist, or a folder with other files or with
            tables of another model or other settings.
        BlockingIOError: another process fills this folder.
    """
    folder = Path(out)
    if settings.device is not None:
        check_device(settings.device)
    text = None if settings.text is None else text_of(_file(settings.text, "text"))
    tokenizer = load_tokenizer(model)
    asked = _probes(tokenizer, settings)
    config = _config(model, asked, settings)
    _check_same(folder, config)

    def own_text() -> Tensor:
        return _written(subject.model, tokenizer) if text is None else _rows(tokenizer, text)

    subject = Subject(
        folder, Path(model).name.removesuffix(".gguf"), 0, 0, asked, None, settings.measure,
        lambda: load(model, device=settings.device, dtype=settings.dtype), own_text,
        lambda ids: pieces_of(tokenizer, ids),
    )  # fmt: skip
    due = [name for name in settings.measure.what if settings.measure.again or not _done(folder, name)]
    if due:
        _say(_plan(subject, due))
    if settings.plan:
        return None
    with held(folder, "probes a model"):
        write_json(folder / "config.json", config)
        measure(f"probe {subject.name}", folder, [(subject, due)])
    summarise(folder)
    return report(folder)


def _file(path: str, name: str) -> Path:
    file = check_path(path, name)
    if not file.is_file():
        raise FileNotFoundError(f"{name}: {path} does not exist")
    return file


def _probes(tokenizer: Any, settings: PretrainedSettings) -> Probes:
    nouns = noun_list(settings.nouns, settings.categories)[: settings.limit]
    spoken: Any = None
    if settings.spoken is not None:
        try:
            spoken = parse_json(_file(settings.spoken, "spoken").read_bytes())
        except ValueError as error:
            raise ValueError(f"spoken: {settings.spoken}: {error}") from None
    return probes(tokenizer, nouns, settings.contexts, spoken=spoken)


def _config(model: str, asked: Probes, settings: PretrainedSettings) -> dict[str, Any]:
    own = {name: value for name, value in asdict(settings).items() if name not in _NOT_RESULTS}
    own["measure"] = {name: value for name, value in own["measure"].items() if name not in ("what", "again")}
    spoken = {noun: word for noun, word in zip(asked.nouns, asked.spoken, strict=True) if noun != word}
    found: dict[str, Any] = json.loads(json.dumps({"pretrained": str(model), "settings": own, "nouns": asked.nouns,
                                                   "spoken": spoken, "contexts": asked.contexts}))  # fmt: skip
    return found


def _check_same(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder of something else, or with tables of another model or other settings."""
    if not folder.exists():
        return
    known = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "pretrained" not in known and any(folder.iterdir()):
        raise ValueError(f"out: expected an empty folder or one of symground probe, {folder} has other files")
    differing = [name for name in config if known.get(name) != config[name]]
    if differing and any(folder.glob("results/**/*.parquet")):
        raise ValueError(f"out: {folder} has results with another {', '.join(differing)}; choose another folder")


def _done(folder: Path, analysis: str) -> bool:
    return not read_table(folder, ANALYSES[analysis][-1]).empty


def _plan(subject: Subject, due: list[str]) -> str:
    seconds = {name: x for name, x in estimated(subject).items() if name in due}
    each = ", ".join(f"{name} {_clock(x)}" for name, x in seconds.items())
    return (
        f"{subject.name}: {len(subject.probes)} contexts with a noun; about {_clock(sum(seconds.values()))} ({each}); "
        "smaller --limit, --intervene-contexts and --draws shorten it"
    )


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _rows(tokenizer: Any, text: str) -> Tensor:
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    length = min(_LENGTH, len(ids))
    if length < 2:
        raise ValueError(f"text: expected at least two tokens to fit lenses on, got {length}")
    return ids[: len(ids) // length * length].view(-1, length)


def _written(model: Any, tokenizer: Any) -> Tensor:
    """Rows of text that the model itself writes: a sample of what it was trained on, with no other text at hand."""
    first = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
    start = torch.full((_ROWS, 1), first, device=model.device)
    more = min(_LENGTH, getattr(model.config, "max_position_embeddings", None) or _LENGTH) - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # The model's own settings of sampling would narrow it to its likeliest words.
        written: Tensor = model.generate(
            start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            repetition_penalty=1.0, min_new_tokens=more, max_new_tokens=more, pad_token_id=first,
        )  # fmt: skip
    return written.cpu()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Probe(PretrainedSettings):
    """``symground probe``."""

    model: tyro.conf.Positional[str]
    """A folder or a .gguf file of a causal language model with its tokenizer, or a name on the hub."""
    out: str | None = None
    """Folder of the tables and the report; runs/ and the model's name by default."""

    def run(self) -> Path | int:
        name = Path(self.model).name.removesuffix(".gguf")
        return probe(self.model, self.out or f"runs/{name}", self) or 0
