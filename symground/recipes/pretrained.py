"""The study's questions of a pretrained model, without training."""

from __future__ import annotations

import json
import shlex
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
from symground.analysis.probing import check_fits
from symground.analysis.results import Table
from symground.analysis.run import ANALYSES, MeasureSettings, Subject, estimated, measure
from symground.data import noun_list
from symground.data.files import json_typed, parse_json
from symground.data.words import text_of
from symground.errors import check_device, check_path, check_types, integer
from symground.files import differences, held, is_run, read_json, write_json
from symground.models import load, load_tokenizer, told_encoder_decoder
from symground.models.trials import looks_ahead, positions_of
from symground.recipes.prepare import say
from symground.recipes.study import summarise
from symground.reports import report
from symground.reports.views.pieces import pieces_of
from symground.training.provenance import machine, versions

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
    """JSON file of an object, noun → the word that is expected for it, such as its translation; a noun that it lacks is
    its own word."""
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
        ValueError: words or files that do not fit, a device that does not exist, a model that sees later tokens or has
            too few positions, or a folder with other files or with tables of another model or other settings.
        BlockingIOError: another process fills this folder.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: expected a folder, or a name for one, got the file {folder}")
    if settings.device is not None:
        check_device(settings.device)
    if is_run(model):
        raise ValueError(
            f"model: {model} is a run of a study, which symground analyze analyses; expected another model"
        )
    if told_encoder_decoder(model):
        raise ValueError(f"model: expected a causal language model, {model} is an encoder-decoder")
    text = None if settings.text is None else text_of(_file(settings.text, "text"))
    tokenizer = load_tokenizer(model)
    if text is not None and not text.strip():
        raise ValueError(f"text: expected a file with words, got {settings.text} without any")
    asked = _probes(tokenizer, settings)
    _check_halves(asked, settings.measure)
    config = _config(model, asked, settings)
    _check_same(folder, config, settings.measure.again)

    def own_text() -> Tensor:
        return _written(subject.model, tokenizer) if text is None else _rows(tokenizer, text)

    subject = Subject(
        folder, _name(model), 0, 0, asked, None, settings.measure,
        lambda: load(model, device=settings.device, dtype=settings.dtype), own_text,
        lambda ids: pieces_of(tokenizer, ids),
    )  # fmt: skip
    due = [name for name in settings.measure.what if settings.measure.again or not _done(subject, name)]
    if due:
        say(f"{subject.name}: loading it, and timing some of its passes")
        _check_reads(subject.model, asked)
        say(_plan(subject, due))
    if settings.plan:
        return None
    with held(folder, "probes a model"):
        if due:
            write_json(folder / "config.json", {**config, **_provenance(subject.model)})
        measure(f"probe {subject.name}", folder, [(subject, due)])
    summarise(folder)
    return report(folder)


def _check_halves(asked: Probes, how: MeasureSettings) -> None:
    """Refuse interventions with heads that are selected on the other half of the contexts, if there is only one."""
    count = len(asked.contexts[: how.intervene_contexts])
    if count < 2 and "interventions" in how.what and "held-out" in how.selection:
        raise ValueError(
            f"contexts: interventions with --selection held-out need at least two to make halves of, got {count}; "
            "--selection example needs one"
        )


def _check_reads(model: Any, asked: Probes) -> None:
    """Refuse a model that cannot read the probes, or that sees a word before it predicts it."""
    check_fits(model, asked)
    if looks_ahead(model):
        raise ValueError(f"model: expected a causal language model, {type(model).__name__} sees later tokens")


def _provenance(model: Any) -> dict[str, Any]:
    """What the page says of where its numbers come from."""
    command = shlex.join(["symground", *sys.argv[1:]]) if Path(sys.argv[0]).name == "symground" else None
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "machine": machine(model.device)["device"],
        "versions": versions(), "command": command,
    }  # fmt: skip


def _name(model: str) -> str:
    return Path(model).name.removesuffix(".gguf")


def _file(path: str, name: str) -> Path:
    file = check_path(path, name)
    if file.is_dir():
        raise ValueError(f"{name}: expected a file, got the folder {path}")
    if not file.is_file():
        raise FileNotFoundError(f"{name}: {path} does not exist")
    return file


def _probes(tokenizer: Any, settings: PretrainedSettings) -> Probes:
    listed = noun_list(settings.nouns, settings.categories)
    nouns, spoken = listed[: settings.limit], {}
    if settings.spoken is not None:
        try:
            spoken = json_typed(parse_json(_file(settings.spoken, "spoken").read_bytes()), dict, "the file")
        except ValueError as error:
            raise ValueError(f"spoken: {settings.spoken}: {error}") from None
        other = [noun for noun in spoken if noun not in listed]
        if other:
            raise ValueError(f"spoken: expected only nouns of the list as names, got {', '.join(map(repr, other[:5]))}")
    return probes(tokenizer, nouns, settings.contexts, spoken=spoken)


def _config(model: str, asked: Probes, settings: PretrainedSettings) -> dict[str, Any]:
    """What identifies the tables: the model, its probes, and the settings that change a result."""
    own = {name: value for name, value in asdict(settings).items() if name not in _NOT_RESULTS}
    how = {name: value for name, value in own.pop("measure").items() if name not in ("what", "again")}
    spoken = {noun: word for noun, word in zip(asked.nouns, asked.spoken, strict=True) if noun != word}
    found: dict[str, Any] = json.loads(json.dumps({
        "pretrained": str(model), "settings": own, "measure": how, "nouns": asked.nouns, "spoken": spoken,
        "contexts": asked.contexts,
    }))  # fmt: skip
    return found


def _check_same(folder: Path, config: Mapping[str, Any], again: bool) -> None:
    """Refuse a folder of something else, or with tables of another model, other probes or other settings.

    With ``again`` the settings of the analyses may change.
    """
    if not folder.exists():
        return
    known = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "pretrained" not in known and any(folder.iterdir()):
        raise ValueError(f"out: expected an empty folder or one of symground probe, {folder} has other files")
    if not any(folder.glob("results/**/*.parquet")):
        return
    asked = ("settings",) if again else ("settings", "measure")
    differing = [text for part in asked for text in differences(known.get(part), config[part])]
    differing += [f"another {name}" for name in ("nouns", "spoken", "contexts") if known.get(name) != config[name]]
    if known.get("pretrained") != config["pretrained"]:
        differing.insert(0, f"the model is {known.get('pretrained')} there")
    if differing:
        raise ValueError(
            f"out: {folder} has results with other settings: {'; '.join(differing)}. Choose another folder; with "
            "--again the settings of the analyses may change"
        )


def _done(subject: Subject, analysis: str) -> bool:
    return Table(subject.study, ANALYSES[analysis][-1]).has(subject.name, subject.seed, subject.step)


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
    more = min(_LENGTH, positions_of(model) or _LENGTH) - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # The model's own settings of sampling would narrow it to its likeliest words.
        written: Tensor = model.generate(
            start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            repetition_penalty=1.0, min_new_tokens=more, max_new_tokens=more, pad_token_id=first,
        )  # fmt: skip
    return written.cpu()


@dataclass(frozen=True, kw_only=True)
class Probe(PretrainedSettings):
    """``symground probe``."""

    model: tyro.conf.Positional[str]
    """A folder or a .gguf file of a causal language model with its tokenizer, or a name on the hub."""
    out: str | None = None
    """Folder of the tables and the report; runs/ and the model's name by default."""

    def run(self) -> Path | int:
        return probe(self.model, self.out or f"runs/{_name(self.model)}", self) or 0
