"""Result tables: tidy Parquet files of a study, in which every row has its model, seed and step."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from symground.files import replacing

TABLES = (
    "surprisal", "contexts", "gain", "r2", "saliency", "heads", "shares", "maps", "lens", "interventions", "sweep",
    "monitor", "calibration", "steering",
)  # fmt: skip
KEYS = ["model", "seed", "step"]


def results_folder(study: str | Path) -> Path:
    return Path(study) / "results"


def partial_scores(study: str | Path, model: str, seed: int, step: str = "*", probes: str = "*") -> list[Path]:
    """The folders of scores of interrupted analyses; with a step and probes, the folder of that name."""
    folder = results_folder(study) / "partial"
    name = f"{model}-seed{seed}-step{step}-{probes}"
    return sorted(folder.glob(name)) if "*" in name else [folder / name]


def read_table(study: str | Path, name: str, **only: Collection[str] | Collection[int]) -> pd.DataFrame:
    """The table ``name`` of a study; it is empty if that analysis has not been run.

    Args:
        study: its folder.
        name: of the table.
        only: column → the values to select; other rows are not read from disk.
    """
    filters = [(column, "in", list(values)) for column, values in only.items()]
    return _read(results_folder(study) / f"{name}.parquet", filters=filters or None)


def _read(path: Path, columns: list[str] | None = None, filters: list[Any] | None = None) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=KEYS)
    # Opened once here: pandas opens a path twice, and another process may replace the table in between.
    with path.open("rb") as file:
        try:
            frame = pd.read_parquet(file, columns=columns, filters=filters)
        except Exception as error:  # pyarrow raises many types
            raise ValueError(
                f"{path}: expected a table of results, got a file that cannot be read ({error})"
            ) from error
    if not set(KEYS) <= set(frame.columns):
        raise ValueError(f"{path}: expected the columns {', '.join(KEYS)}, got {', '.join(map(str, frame.columns))}")
    return frame


def _keys(frame: pd.DataFrame) -> set[tuple[str, int, int]]:
    return set(frame[KEYS].drop_duplicates().itertuples(index=False, name=None))


class Table:
    """A table that is being filled: new rows of a (model, seed, step) replace the old ones."""

    def __init__(self, study: str | Path, name: str) -> None:
        self._path = results_folder(study) / f"{name}.parquet"
        self._keys = _keys(_read(self._path, KEYS))
        self._new: list[pd.DataFrame] = []
        self._replaced: list[tuple[str, int, int]] = []

    def has(self, model: str, seed: int, step: int) -> bool:
        return (model, seed, step) in self._keys

    def add(self, frame: pd.DataFrame, model: str, seed: int, step: int) -> None:
        """Replace the rows of (model, seed, step) by ``frame``, which may be empty."""
        self._replaced.append((model, seed, step))
        if len(frame):
            keys = pd.DataFrame({"model": model, "seed": seed, "step": step}, index=frame.index)
            self._new.append(pd.concat([keys, frame], axis=1))

    def drop(self, model: str, seed: int) -> None:
        """Remove every row of a run."""
        self._replaced += [key for key in self._keys if key[:2] == (model, seed)]

    def save(self) -> None:
        """Write the table under a temporary name, then rename it; rows saved by another process meanwhile are kept."""
        if not self._replaced:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_suffix(".lock")):
            there = _read(self._path)
            if len(there):
                there = there[~pd.MultiIndex.from_frame(there[KEYS]).isin(self._replaced)]
            parts = [part for part in (there, *self._new) if len(part)]
            frame = pd.concat(parts, ignore_index=True) if parts else there
            with replacing(self._path) as partial:
                frame.sort_values(KEYS, kind="stable").to_parquet(partial, index=False)
        self._keys = _keys(frame)
        self._new, self._replaced = [], []
