"""The layout of a study and its runs on disk. Only names: neither models nor data are read.

STUDY/                        config.json, tokenizer.json, data/, results/*.parquet, report.html
STUDY/images/                 the image set of a study whose scenes are images; or data/images.json says where it is
STUDY/MODEL/seedN/            config.json, metrics.jsonl, checkpoints/step-00002000/
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from symground.files.disk import read_json

_STEP = re.compile(r"step-(\d{8})$")


def checkpoint_folder(run: str | Path, step: int) -> Path:
    return Path(run) / "checkpoints" / f"step-{step:08d}"


def checkpoint_steps(run: str | Path) -> list[int]:
    """The steps of the run's finished checkpoints, in order."""
    found = (_STEP.search(str(path)) for path in (Path(run) / "checkpoints").glob("step-*") if path.is_dir())
    return sorted(int(match[1]) for match in found if match)


def is_run(folder: str | Path) -> bool:
    return (Path(folder) / "config.json").is_file() and (Path(folder) / "checkpoints").is_dir()


def runs_of(study: str | Path) -> list[Path]:
    """The runs of a study, or the run itself if ``study`` is one.

    Raises:
        FileNotFoundError: the folder does not exist, or is neither a study nor a run.
    """
    study = Path(study)
    if not study.is_dir():
        raise FileNotFoundError(f"{study} does not exist")
    found = [study] if is_run(study) else sorted(path for path in study.glob("*/seed*") if is_run(path))
    if not found:
        raise FileNotFoundError(
            f"{study} is neither a study nor a run: it has no checkpoints/ beside a config.json, "
            "and no MODEL/seedN folder that has them"
        )
    return found


def study_of(run: str | Path) -> Path:
    """The study that a run belongs to."""
    return Path(run).resolve().parent.parent


def model_and_seed(run: str | Path) -> tuple[str, int]:
    """MODEL and N of a run's folder STUDY/MODEL/seedN; ValueError if it has another form."""
    run = Path(run).resolve()
    if not re.fullmatch(r"seed\d+", run.name):
        raise ValueError(f"{run}: expected a run's folder to be STUDY/MODEL/seedN")
    return run.parent.name, int(run.name.removeprefix("seed"))


def images_of(data: str | Path) -> Path | None:
    """The image set that a study's data folder names; None if it names none."""
    named = Path(data) / "images.json"
    return Path(data) / str(read_json(named)["folder"]) if named.is_file() else None


def differences(known: object, wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Which settings of a folder are not the wanted ones: "length is 16 there, 8 here". What is not known is None."""
    there = known if isinstance(known, Mapping) else {}
    changed = [(name, there.get(name), value) for name, value in wanted.items() if there.get(name) != value]
    return [f"{prefix}{name} is {before!r} there, {now!r} here" for name, before, now in changed]


def evenly(steps: Sequence[int], most: int) -> list[int]:
    """At most this many of the steps, evenly spread, including the first and the last; empty if there are none."""
    if not steps:
        return []
    return sorted({steps[round(i * (len(steps) - 1) / max(1, most - 1))] for i in range(most)})
