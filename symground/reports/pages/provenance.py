"""Where the numbers of a page come from: versions, models, machines and commands, as far as they were recorded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open

from symground.files import checkpoint_folder, checkpoint_steps, read_json
from symground.reports.sections.parts import StudyResults
from symground.training.provenance import versions

UNKNOWN = "unknown"


def runs_table(study: StudyResults) -> tuple[pd.DataFrame, list[str]]:
    """A row for each model and seed with results (its size, machine and versions), and what no run recorded."""
    runs = _all_runs(study)
    unknown = [str(name) for name in runs if len(runs) and (runs[name] == UNKNOWN).all()]
    return runs.drop(columns=unknown), unknown


def _all_runs(study: StudyResults) -> pd.DataFrame:
    if study.pretrained:
        made, size = study.config.get("versions"), study.config.get("parameters")
        return pd.DataFrame([{
            "model": study.pretrained, "parameters": f"{size:,}" if isinstance(size, int) else UNKNOWN,
            "machine": study.config.get("machine") or UNKNOWN, **_software(made if isinstance(made, dict) else {}),
        }])  # fmt: skip
    rows = []
    for model, seed in study.runs:
        run = study.folder / model / f"seed{seed}"
        config = _config(run)
        hardware, made = config.get("hardware", {}), config.get("versions", {})
        size = _parameters(run)
        rows.append({
            "model": model, "seed": seed, "parameters": f"{size:,}" if size else UNKNOWN,
            "machine": hardware.get("device") or UNKNOWN, "threads": hardware.get("threads") or UNKNOWN,
            "precision": config.get("settings", {}).get("precision") or UNKNOWN,
            **_software(made),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _software(made: Mapping[str, Any]) -> dict[str, str]:
    return {"symground": _symground(made), **{name: made.get(name) or UNKNOWN for name in ("torch", "transformers")}}


def commands(study: StudyResults) -> list[tuple[str, str]]:
    """(what was made, its command or how to find it): the commands that the recorded settings amount to."""
    if study.pretrained:
        asked = f"symground probe {study.pretrained} --out {study.place} (with the settings in config.json)"
        return [("tables", study.command or asked), ("page", f"symground report {study.place}")]
    found = [("data", f"{UNKNOWN}; its settings are in config.json")]
    for model, seed in study.runs:
        settings = _config(study.folder / model / f"seed{seed}").get("settings")
        found.append((f"{model}, seed {seed}", _train(study.place, settings) if settings else UNKNOWN))
    found.append(("tables", f"{UNKNOWN}; each figure and table names the command that fills it"))
    found.append(("page", f"symground report {study.place}"))
    return found


def page_made_by() -> str:
    """The versions of the software that wrote the page."""
    made = versions()
    return f"symground {_symground(made)}, Python {made['python']}"


def corpus_of(study: StudyResults) -> str:
    """The corpus and the size of its text; empty for a model that was trained elsewhere."""
    if study.pretrained:
        return ""
    named = study.config.get("corpus") or [UNKNOWN]
    assert isinstance(named, list)
    statistics = study.statistics
    return ", ".join(map(str, named)) + (f"; {statistics['tokens']:,} tokens" if statistics else "")


def _symground(made: Mapping[str, Any]) -> str:
    version, revision = str(made.get("symground") or UNKNOWN), str(made.get("revision") or "")
    return f"{version}, revision {revision[:10]}{'+' * revision.endswith('+')}" if revision else version


def _config(run: Path) -> dict[str, Any]:
    try:
        return read_json(run / "config.json")
    except (FileNotFoundError, ValueError):
        return {}


def _parameters(run: Path) -> int | None:
    """The number of weights in the run's last checkpoint; None if that is not there. Tied weights are saved once."""
    steps = checkpoint_steps(run)
    files = sorted(checkpoint_folder(run, steps[-1]).glob("*.safetensors")) if steps else []
    total = 0
    try:
        for file in files:
            with safe_open(file, "np") as weights:
                total += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return total or None


def _train(place: str, settings: Mapping[str, Any]) -> str:
    options = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in sorted(settings.items())]
    return f"symground train {place} {' '.join(options)}"
