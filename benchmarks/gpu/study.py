"""The trainer and the analyses on a GPU, on a study prepared on another machine: a part of the GPU record."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import Context, Missing

#: Steps of training: enough to measure rates, but not to learn the link.
STEPS = 300


def study(c: Context) -> None:
    """Train the study's 12-layer GPT-2 for some steps with the study's settings, then score, trace and intervene.

    ``--data`` is the folder of a study that `symground data` or `symground run` made on another machine.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = _generated(Path(place)) if c.dry else c.data
        if folder is None:
            raise Missing("study", "no data: give --data FOLDER of a study prepared on another machine")
        _train_and_analyse(c, folder, Path(place))


def _train_and_analyse(c: Context, folder: Path, place: Path) -> None:
    run = _train(c, folder, place)
    try:
        import pandas  # noqa: F401
        import xarray  # noqa: F401
    except ImportError as error:
        c.record["missing"]["analyses"] = f"do not import: {error}"
        c.record.write()
        return
    _analyse(c, folder, run)


def _train(c: Context, folder: Path, place: Path) -> Path:
    from symground.data import Corpus
    from symground.training import Hardware, TrainSettings, train

    settings = TrainSettings(
        model="gpt2-4l" if c.dry else "gpt2-12l-768", steps=2 if c.dry else STEPS, batch_size=8,
        length=32 if c.dry else 512, learning_rate=5e-5, warmup=1 if c.dry else 30, decay="linear",
        precision="float32" if c.dry else "bfloat16", checkpoints="0",
    )  # fmt: skip
    corpus, run = Corpus.load(folder / "data", folder).part("train"), place / "runs" / settings.model / "seed0"
    steps: list[dict[str, Any]] = []
    start = time.monotonic()
    train(corpus, settings, run, Hardware(device=c.device), trackers=[steps.append])
    last = steps[-1]
    c.record.add(
        stage="training on arrays", peer="symground", model=settings.model, steps=settings.steps,
        seconds=time.monotonic() - start, tokens_per_second=last["tokens_per_second"], loss=last["loss"],
    )  # fmt: skip
    return run


def _analyse(c: Context, folder: Path, run: Path) -> None:
    import symground as sg
    from symground.analysis.probing import context_of
    from symground.files import read_json

    config = read_json(folder / "config.json")
    model = sg.load(run).to(c.device)
    contexts = [context_of(parts) for parts in config["contexts"]]
    probes = sg.probes(sg.load_tokenizer(folder), config["nouns"], contexts, spoken=config.get("spoken"))
    measured = {
        "score": lambda: sg.gain(sg.score(model, probes))["gain"].mean(),
        "trace": lambda: float(sg.trace(model, probes).surprisal.mean()),
        "intervene": lambda: sg.intervene(model, probes, draws=2 if c.dry else 20)["original"].iloc[0],
    }
    for name, analysis in measured.items():
        if c.left < 0:
            c.record.write(not_reached=list(measured)[list(measured).index(name) :])
            return
        start = time.monotonic()
        value = float(analysis())
        c.record.add(stage=name, peer="symground", seconds=time.monotonic() - start, examples=len(probes), value=value)


def _generated(place: Path) -> Path:
    """A small study of a generated corpus, for a dry run."""
    from symground.data import GeneratedSettings
    from symground.recipes import CorpusSettings, prepare

    folder = place / "study"
    prepare(["generated"], folder, CorpusSettings(generated=GeneratedSettings(scenes=200, nouns=3), min_noun_count=5))
    return folder
