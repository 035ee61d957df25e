"""Turns one dial of the generated corpus or of its images: the same model is trained on each value.

Besides the gain, two controls are scored at every checkpoint. Recall is the gain of a noun that was *said* one sentence
before over another noun that was said, which needs no grounding. If the corpus talks in categories, the second control
is the gain of the category's own word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import tyro

from symground.analysis import Probes, gain, probes, score
from symground.analysis.probing import context_of
from symground.analysis.results import Table, read_table
from symground.analysis.run import AnalysisSettings, analyze
from symground.data import GeneratedSettings
from symground.data.scenes import GeneratedImagesSettings, occurs
from symground.data.words import cdi_categories
from symground.errors import choice
from symground.files import checkpoint_steps, read_json, write_json, write_text
from symground.models import load, load_tokenizer
from symground.recipes.compare import CompareSettings, checkpoints, collected, run_all
from symground.recipes.prepare import GENERATED, GENERATED_IMAGES, CorpusSettings, prepare
from symground.recipes.study import study_images, study_probes
from symground.reports.comparisons.dials import curves, markdown, silenced_heads, silenced_markdown, summary

#: The default values of each dial.
VALUES: dict[str, tuple[Any, ...]] = {
    "gap": (0, 4, 12), "max_distractors": (0, 3, 8), "silent_scenes": (0.0, 0.3, 0.6), "talk_alone": (0.0, 0.3, 0.6),
    "unsupported": (0.0, 0.2, 0.5), "background": (0.0, 0.5, 1.0), "zipf": (0.0, 0.8, 1.5),
    "partner": (0.0, 0.25, 0.5), "synonyms": (1, 2, 4), "homonyms": (1, 2, 4), "category_talk": (0.0, 0.3, 0.6),
    "unseen": (0.0, 0.2, 0.4), "cue": ("env", "lan"),
}  # fmt: skip
IMAGE_VALUES: dict[str, tuple[Any, ...]] = {
    "size": (1, 2, 4), "parts": (1, 2, 4), "noise": (0.5, 1.0, 2.0), "clutter": (0.0, 0.5, 1.0),
    "position": (0.0, 0.5, 1.0), "grid": (3, 4, 6),
}  # fmt: skip
SCENES = ("words", "images")
_OF_IMAGES = {of.name for of in fields(GeneratedImagesSettings)}
#: Pairs of sentences of the generated talk: a noun is said in the first and due at the end of the second.
RECALL = (
    ("look at the {}", "what's that a"), ("where is the {}", "give me the"), ("I like the {}", "do you want the"),
    ("here is your {}", "can you find the"), ("is it a {}", "that's a"),
)  # fmt: skip
CONTROLS = "controls"
_INTERVENE = AnalysisSettings(what=("interventions",), spans=(0,), intervene_contexts=5)


@dataclass(frozen=True)
class DialsSettings(CompareSettings):
    """The dial and its values."""

    dial: str = "gap"
    """A dial of the generated corpus (gap, max_distractors, silent_scenes, talk_alone, unsupported, background, zipf,
    partner, synonyms, homonyms, category_talk, unseen or cue) or of its images (size, parts, noise, clutter, position
    or grid)."""
    values: tuple[str, ...] = ()
    """Values of the dial, one corpus each; the package's default values otherwise."""
    seeds: int = field(default=2)
    """Runs of each model on each corpus, with the seeds 0, 1, …"""
    scenes: str = "words"
    """Form of the scenes: "words" or "images"; always images if the dial is one of images."""
    images: GeneratedImagesSettings = field(default_factory=GeneratedImagesSettings)
    interventions: bool = False
    """Also silence gather and aggregate heads at the last checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("scenes", self.scenes, SCENES)
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"values: expected different ones, got {self.values}")
        self.corpora()

    @property
    def kind(self) -> str:
        """The kind of the corpora."""
        return GENERATED_IMAGES if self.dial in _OF_IMAGES or self.scenes == "images" else GENERATED

    def corpora(self) -> dict[Any, CorpusSettings]:
        """value → the settings of its corpus; raises ValueError for a value that the dial does not take."""
        chosen = values_of(self.dial, self.values)
        made = CorpusSettings(generated=self.generated, images=self.images)
        return {value: turned(made, self.dial, value) for value in chosen}


C = TypeVar("C", bound=CorpusSettings)


def values_of(dial: str, texts: Sequence[str]) -> list[Any]:
    """The values of a dial from their texts; the package's default values if there are no texts.

    Raises:
        ValueError: an unknown dial, or a text that is not a value of its type.
    """
    usual = (VALUES | IMAGE_VALUES).get(dial, ())
    known = {**asdict(GeneratedSettings()), **asdict(GeneratedImagesSettings())}
    if dial not in known or not (texts or usual):
        named = f"one of {', '.join(VALUES | IMAGE_VALUES)}, or another setting of generated corpora with its values"
        raise ValueError(f"dial: expected {named}; got {dial!r}")
    kind = type(known[dial]) if known[dial] is not None else int
    try:
        return [kind(text) for text in texts] or list(usual)
    except ValueError:
        raise ValueError(f"values: expected {kind.__name__} for {dial}, got {tuple(texts)}") from None


def turned(settings: C, dial: str, value: Any) -> C:
    """The settings with a dial set to a value; raises ValueError for a value that it does not take."""
    room = "images" if dial in _OF_IMAGES else "generated"
    return replace(settings, **{room: replace(getattr(settings, room), **{dial: value})})


def turn_dial(out: str | Path, settings: DialsSettings) -> Path:
    """Train and score every model on every value of the dial with every seed; returns the folder of tables and figure.

    Each folder OUT/DIAL-VALUE is a study like any other. Runs that are finished in it are not repeated.

    Raises:
        ValueError: a folder of another comparison.
        RuntimeError: some runs failed (the message has each with its error); the others are in the tables.
    """
    out = Path(out)
    studies = {value: out / f"{settings.dial}-{value}" for value in settings.corpora()}
    for value, corpus in settings.corpora().items():
        prepare([settings.kind], studies[value], corpus)
    failed = run_all(
        settings, studies, settings.dial, out / "jobs", partial(_also, interventions=settings.interventions)
    )
    if any(len(read_table(study, "gain")) for study in studies.values()):
        _write(out, settings, studies)
    if failed:
        raise RuntimeError(f"{len(failed)} of the runs failed, the others are done: {'; '.join(failed)}")
    return out


def _also(study: Path, model: str, seed: int, *, interventions: bool) -> None:
    """Score the controls of a run after its own scores, and run interventions if they are requested."""
    run, asked = study / model / f"seed{seed}", control_probes(study)
    if interventions:
        analyze(run, study_probes(study), pd.DataFrame(), _INTERVENE)
    table = Table(study, CONTROLS)
    for step in checkpoint_steps(run):
        if asked and not table.has(model, seed, step):
            trained = load(run, step)
            rows = [gain(score(trained, of_kind)).assign(kind=kind) for kind, of_kind in asked.items()]
            table.add(pd.concat(rows), model, seed, step)
            table.save()


def control_probes(study: Path) -> dict[str, Probes]:
    """The probes of a study's controls: "recall", and "category" if the corpus talks in categories."""
    config, tokenizer = read_json(study / "config.json"), load_tokenizer(study)
    settings = GeneratedSettings(**config["generated"])
    said = [noun for noun in config["nouns"] if noun not in settings.spoken]
    found = {}
    if settings.category_talk < 1 and len(said) > 1:
        found["recall"] = probes(tokenizer, said, RECALL, cue="lan", images=study_images(study))
    if settings.category_talk:
        categories = cdi_categories()
        contexts = [context_of(parts) for parts in config["contexts"]]
        spoken = {noun: categories[noun] for noun in config["nouns"]}
        found["category"] = probes(tokenizer, config["nouns"], contexts, spoken=spoken, images=study_images(study))
    return found


def _of_unseen(study: Path) -> pd.DataFrame:
    """The gain over pairs of noun and context that never occurred, and over the others: kind, model, seed, step, …"""
    config = read_json(study / "config.json")
    settings = GeneratedSettings(**config["generated"])
    scores = read_table(study, "surprisal")
    if not settings.unseen or scores.empty:
        return pd.DataFrame()
    sentences = [context[0] for context in config["contexts"]]
    pairs = scores[["context", "target"]].drop_duplicates()
    known = {(c, noun): occurs(settings, noun, sentences[c]) for c, noun in pairs.itertuples(index=False)}
    seen = pd.Series([known[key] for key in zip(scores["context"], scores["target"], strict=True)], index=scores.index)
    rows = []
    for kind, part in (("unseen", scores[~seen]), ("seen", scores[seen])):
        for key, frame in part.groupby(["model", "seed", "step"]):
            of_step: dict[str, Any] = dict(zip(("model", "seed", "step"), key, strict=True))
            rows.append(gain(frame).assign(kind=kind, **of_step))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def _write(out: Path, settings: DialsSettings, studies: Mapping[Any, Path]) -> None:
    dial = settings.dial
    gains = collected(settings, studies, dial).assign(kind="grounding")
    controls = collected(settings, studies, dial, CONTROLS)
    unseen = [_of_unseen(study).assign(**{dial: value}) for value, study in studies.items()]
    r2 = collected(settings, studies, dial, "r2")
    table = summary(pd.concat([gains, controls, *unseen], ignore_index=True), r2, dial)
    table["tokens"] = table["step"] * settings.optimization.tokens_per_step
    silenced = collected(settings, studies, dial, "interventions")
    silenced = silenced_heads(silenced, dial) if settings.interventions and len(silenced) else pd.DataFrame()
    write_json(
        out / "dial.json",
        {
            "settings": settings.asked(DialsSettings),
            "checkpoints": checkpoints(settings, studies),
            "rows": table.to_dict("records"),
            "interventions": silenced.to_dict("records"),
        },
    )
    text = markdown(table, dial) + silenced_markdown(silenced, dial)
    write_text(out / "dial.md", text)
    write_text(out / "dial.svg", curves(table, dial))
    print(text)


@dataclass(frozen=True, kw_only=True)
class Dials(DialsSettings):
    """``symground dials``."""

    dial: tyro.conf.Positional[str] = field()  # required here; the settings have a default
    """gap, max_distractors, silent_scenes, talk_alone, unsupported, background, zipf, partner, synonyms, homonyms,
    category_talk, unseen or cue; for images size, parts, noise, clutter, position or grid. symground run --help
    describes each (--generated.…, --images.…)."""
    out: str | None = None
    """Folder of the sweep, with a study for each value, the tables and the figure; runs/DIAL by default."""

    def run(self) -> Path:
        return turn_dial(self.out or f"runs/{self.dial}", self)
