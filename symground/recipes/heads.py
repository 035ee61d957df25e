"""Aggregate heads of a vision-language model over image-question pairs: search, causal test, and use as a detector."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro

from symground.analysis.causal import enough, intervene, steering
from symground.analysis.heads import monitor, share_table, stability
from symground.analysis.probing import ImageQuestions, answers, image_questions, pope_scores
from symground.analysis.tracing import trace
from symground.data.questions import read_questions
from symground.data.vision import MAX_MEGAPIXELS
from symground.errors import check_device, check_types, integer, number
from symground.files import differences, read_json, replacing, write_json
from symground.models import load, load_processor
from symground.reports.patches import draw_patches
from symground.running import progress


@dataclass(frozen=True, kw_only=True)
class HeadsSettings:
    """The questions, and the analyses of the model on them."""

    pairs: str
    """Questions about images: POPE's JSON lines, or rows with image, question and answer."""
    images: str | None = None
    """Folder of the images; by default the folder of the questions."""
    anywhere: bool = False
    """Allow images whose names lead out of that folder (../)."""
    max_megapixels: int = MAX_MEGAPIXELS
    """Largest size of a picture in million pixels; larger ones are refused."""
    limit: int | None = None
    """Number of questions to read, from the first; all by default."""
    system: str | None = None
    """A system prompt; the chat template's own by default."""
    instruction: str = ""
    """Text after each question, such as " Answer with yes or no."."""
    threshold: float = 0.30
    """Smallest share of flow from the image into the prediction of an aggregate head."""
    checked: int | None = 200
    """Number of questions for interventions and amplification, which need a forward pass for each draw."""
    draws: int = 100
    """Draws of random control heads."""
    factors: tuple[float, ...] = (0.0, 1.5, 2.0, 3.0)
    """Factors by which the outputs of the aggregate heads are multiplied."""
    pictures: int = 0
    """Number of questions whose saliency is drawn over their pictures."""
    seed: int = 0
    """Seed of halves, controls and mismatched pictures."""
    batch_size: int = 8
    """Questions per pass."""
    checkpoint: bool = False
    """Keep only each layer's input, and recompute the layer in the backward pass: less memory, a third slower."""
    dtype: str | None = None
    """Dtype of the weights, such as bfloat16; as stored by default."""
    device: str | None = None
    """Device of the model: cuda or cpu."""
    device_map: str | None = None
    """"auto" spreads the model over all devices; needs accelerate."""

    def __post_init__(self) -> None:
        check_types(self)
        least = {
            "max_megapixels": 1, "limit": 1, "checked": 1, "draws": 1, "pictures": 0, "batch_size": 1, "seed": 0,
        }  # fmt: skip
        for name in least:
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), least[name])
        number("threshold", self.threshold, "(0, 1]")
        if not self.factors:
            raise ValueError("factors: expected at least one, got none")
        for factor in self.factors:
            number("factors", factor)


#: Settings that do not change a result.
_NOT_RESULTS = ("anywhere", "batch_size", "checkpoint", "device", "device_map", "max_megapixels", "pictures")


def find_model_heads(model: str, out: str | Path, settings: HeadsSettings) -> Path:
    """Write the tables of a model and a set of questions into ``out``; existing tables are not recomputed.

    The tables are Parquet files: answers (a row per question); pope (for yes/no answers); heads (every head's share of
    flow from the image, and its null in the same questions with other pictures); stability; flow (of the aggregate
    heads, a row per question); detectors and calibration (of wrong answers); interventions; steering. Pictures are PNG
    files. A summary is printed.

    Raises:
        ValueError: a device that does not exist; a folder with other files, or with tables of another model, other
            questions or other settings; questions that all have one picture or one answer; and whatever an analysis
            refuses.
    """
    folder = Path(out)
    if settings.device is not None:
        check_device(settings.device)
    asked = {field.name: getattr(settings, field.name) for field in fields(HeadsSettings)}
    key = {
        "model": str(model),
        **{n: x for n, x in asked.items() if n not in _NOT_RESULTS},
        "factors": list(settings.factors),
    }
    known = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not {"model", "pairs"} <= known.keys() and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"out: {folder} has other files; choose another folder")
    other = differences(known, key)
    if other and any(folder.glob("*.parquet")):  # settings may change if no table is there yet
        raise ValueError(f"out: {folder} has results with other settings: {'; '.join(other)}. Choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", key)
    study = _Study(model, folder, settings)
    with progress("heads", len(study.parts)) as bar:
        for part in study.parts:
            bar.note(part.__name__.strip("_"))
            part()
            bar.advance()
    print(summary(folder), file=sys.stderr)
    return folder


class _Study:
    """The analyses of one model; it is loaded when the first missing table needs it."""

    def __init__(self, path: str, folder: Path, settings: HeadsSettings) -> None:
        self._path, self._folder, self._settings = path, folder, settings
        self._loaded: tuple[Any, ImageQuestions] | None = None
        self.parts: list[Callable[[], None]] = [
            self._answers, self._heads, self._detectors, self._interventions, self._steering, self._pictures,
        ]  # fmt: skip

    @property
    def _model(self) -> tuple[Any, ImageQuestions]:
        if self._loaded is None:
            s = self._settings
            # Checks come first, since loading weights takes long.
            questions = read_questions(s.pairs, s.images, anywhere=s.anywhere)[: s.limit]
            asked = image_questions(
                load_processor(self._path), questions, system=s.system, instruction=s.instruction,
                max_megapixels=s.max_megapixels,
            )  # fmt: skip
            some = _first(asked, s.checked)
            for name, found in (("picture", some.contexts), ("answer", {q.answer for q in some.questions})):
                if len(found) < 2:
                    raise ValueError(f"pairs: all of the {len(some)} checked questions have the same {name}")
            if s.pictures and not all(prompt.maps for prompt in _first(asked, s.pictures).prompts):
                raise ValueError("pictures: the position of this model's image tokens in a picture is unknown")
            self._loaded = load(self._path, device=s.device, dtype=s.dtype, device_map=s.device_map), asked
        return self._loaded

    @property
    def _how(self) -> dict[str, Any]:
        return {"batch_size": self._settings.batch_size, "checkpoint": self._settings.checkpoint}

    def _missing(self, *names: str) -> bool:
        return not all((self._folder / f"{name}.parquet").is_file() for name in names)

    def _write(self, **tables: pd.DataFrame) -> None:
        for name, table in tables.items():
            with replacing(self._folder / f"{name}.parquet") as partial:
                table.to_parquet(partial, index=False)

    def _checked(self) -> ImageQuestions:
        """The questions of interventions and amplification."""
        _, questions = self._model
        return _first(questions, self._settings.checked)

    def _answers(self) -> None:
        if self._missing("answers"):
            model, questions = self._model
            found = answers(model, questions, batch_size=self._settings.batch_size)
            if set(found["answer"]) <= {"yes", "no"}:
                self._write(pope=pope_scores(found))
            self._write(answers=found)

    def _heads(self) -> None:
        if self._missing("heads", "stability"):
            model, questions = self._model
            threshold = self._settings.threshold
            matched = trace(model, questions, saliency=False, **self._how)
            other = trace(model, questions.mismatched(self._settings.seed), saliency=False, **self._how)
            self._write(
                heads=share_table(matched, other, threshold),
                stability=stability(matched, threshold, seed=self._settings.seed),
            )

    def _detectors(self) -> None:
        if self._missing("detectors", "calibration"):
            model, questions = self._model
            found = monitor(
                model, questions, threshold=self._settings.threshold, seed=self._settings.seed, **self._how
            )  # fmt: skip
            self._write(flow=found.examples, calibration=found.calibration, detectors=found.detectors)

    def _interventions(self) -> None:
        if self._missing("interventions"):
            s = self._settings
            table = intervene(
                self._model[0], self._checked(), selection=("example", "held-out"), threshold=s.threshold,
                draws=s.draws, seed=s.seed, **self._how,
            )  # fmt: skip
            self._write(interventions=table)

    def _steering(self) -> None:
        if self._missing("steering"):
            s = self._settings
            table = steering(
                self._model[0], self._checked(), s.factors, threshold=s.threshold, draws=s.draws, seed=s.seed,
                **self._how,
            )  # fmt: skip
            self._write(steering=table)

    def _pictures(self) -> None:
        said = pd.read_parquet(self._folder / "answers.parquet")["said"].head(self._settings.pictures)
        paths = [self._folder / f"picture-{i:04}.png" for i in range(len(said))]
        if all(path.is_file() for path in paths):
            return
        model, questions = self._model
        some = _first(questions, len(said))
        traced = trace(model, some, saliency=False, rows=True, **self._how)
        at_p = abs(traced.rows.sum("head")).sum("layer").values  # [example,key]
        for i, (question, path) in enumerate(zip(some.questions, paths, strict=True)):
            title = f"{question.text}\nright: {question.answer}, said: {said[i]}"
            figure = draw_patches(some.picture(i), [some.on_picture(i, at_p[i])], [title])
            with replacing(path) as partial:
                figure.savefig(partial, format="png", dpi=150)


def _first(questions: ImageQuestions, count: int | None) -> ImageQuestions:
    return questions if count is None else questions.take(range(min(count, len(questions))))


def _three_digits(value: float) -> str:
    """A number with three digits, without a minus before a zero."""
    return f"{round(value, 3) + 0.0:.3f}"


def summary(folder: Path) -> str:
    """A summary of the tables as text."""
    read = {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}
    lines: list[str] = []
    for name, title in _TITLES.items():
        if name in read:
            table = read[name]
            if {"control", "short"} <= set(table.columns):
                table = _compared(table)
            if name == "heads":
                table = table[table["denominator"] == "row"].sort_values("share", ascending=False).head(8)
            kept = [column for column in _SHOWN.get(name, table.columns) if column in table]
            lines += [title, table[kept].to_string(index=False, float_format=_three_digits, na_rep="-"), ""]
    return "\n".join(lines)


def _compared(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose control columns are NaN in rows with too few control heads."""
    rows = table[["short", "examples"]].itertuples(index=False)
    few = [not enough(short, examples) for short, examples in rows]
    shown = table.copy()
    for name in table.columns:
        if name.startswith("control") or name.endswith("_control"):
            shown[name] = table[name].mask(np.array(few, dtype=bool))
    return shown


_TITLES = {
    "pope": "Answers, judged as in POPE",
    "heads": "Heads with the largest share of flow from the image into the prediction (null: with another picture)",
    "stability": "Are they the same heads in both halves of the pictures?",
    "interventions": "Surprisal of the right answer (nats) with aggregate heads silenced, and with as many random ones",
    "detectors": "Is the answer wrong? AUROC of the detectors",
    "steering": "How often the answer is right if the heads' outputs are multiplied",
}
_SHOWN = {
    "heads": ["layer", "head", "share", "null", "selected", "null_selected", "examples"],
    "stability": ["denominator", "rank", "rank_low", "rank_high", "overlap", "between", "heads", "heads_per_example"],
    "interventions": [
        "selection", "denominator", "heads_per_example", "mean_layer", "original", "control", "control_sd",
        "intervened", "p_holm", "gain_original", "gain_control", "gain_intervened", "gain_p", "examples", "short",
    ],
    "detectors": ["detector", "auroc", "auroc_low", "auroc_high", "brier", "wrong", "examples"],
    "steering": ["factor", "accuracy", "control", "control_sd", "p", "heads_per_example", "examples", "short"],
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Heads(HeadsSettings):
    """``symground heads``."""

    model: tyro.conf.Positional[str]
    """A folder in Hugging Face layout with its processor, or a model's name on the hub."""
    out: str | None = None
    """Folder of the tables; runs/heads by default."""

    def run(self) -> Path:
        return find_model_heads(self.model, self.out or "runs/heads", self)
