"""Result tables: tidy Parquet files of a study, every row with its model, seed and step."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

TABLES = ("surprisal", "gain", "r2", "saliency", "heads", "interventions")
KEYS = ["model", "seed", "step"]


def results_folder(study: str | Path) -> Path:
    return Path(study) / "results"


def read_table(study: str | Path, name: str) -> pd.DataFrame:
    """The table ``name`` of a study; empty when that analysis has not been run."""
    path = results_folder(study) / f"{name}.parquet"
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=KEYS)


def keyed(frame: pd.DataFrame, model: str, seed: int, step: int) -> pd.DataFrame:
    """The frame with the columns model, seed and step in front."""
    return pd.concat([pd.DataFrame({"model": model, "seed": seed, "step": step}, index=frame.index), frame], axis=1)


class Table:
    """One table being filled: rows of a (model, seed, step) replace those that were there before."""

    def __init__(self, study: str | Path, name: str) -> None:
        self._path = results_folder(study) / f"{name}.parquet"
        self._frame = read_table(study, name)
        self._new: list[pd.DataFrame] = []

    def has(self, model: str, seed: int, step: int) -> bool:
        there = self._frame
        return bool(((there["model"] == model) & (there["seed"] == seed) & (there["step"] == step)).any())

    def add(self, frame: pd.DataFrame) -> None:
        if len(frame):
            self._new.append(frame)

    def save(self) -> None:
        """Write the table under a temporary name, then rename."""
        if not self._new:
            return
        new = pd.concat(self._new, ignore_index=True)
        there = self._frame
        if len(there):
            replaced = pd.MultiIndex.from_frame(new[KEYS].drop_duplicates())
            there = there[~pd.MultiIndex.from_frame(there[KEYS]).isin(replaced)]
            new = pd.concat([there, new], ignore_index=True)
        self._frame = new.sort_values(KEYS, kind="stable", ignore_index=True)
        self._new = []
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        self._frame.to_parquet(partial, index=False)
        os.replace(partial, self._path)


def save_all(tables: Iterable[Table]) -> None:
    for table in tables:
        table.save()
