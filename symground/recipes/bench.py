"""The benchmark suite of a clone, from the command line."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

from symground.optional import require

#: Where the package lies in a clone, the suite lies beside it; it is no part of what is installed.
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class BenchSettings:
    """What is measured, and against which older result."""

    only: tuple[str, ...] = ()
    """Suites: gate, mamba, lens, training, score, surprisal, attention, trace, sweep; all by default."""
    out: str = "runs/bench"
    """Folder of the results: a file for each suite, and bench.json, bench.md and bench.svg of all."""
    compare: str | None = None
    """An older bench.json: what has become slower since is told."""
    again: bool = False
    """Measure what the folder holds already of this revision."""


def run_benchmarks(settings: BenchSettings) -> int:
    """Run the suite and print its table; 0 where all of it ran.

    Raises:
        FileNotFoundError: the package is not in a clone of its repository.
        ValueError: a suite that there is not.
        ImportError: what measures is not installed (says what to install).
    """
    if not (ROOT / "benchmarks" / "bench.py").is_file():
        raise FileNotFoundError(f"bench: {ROOT} has no benchmarks/: the suite is in a clone of symground's repository")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    require("pytest_benchmark", "benchmarks", "symground[test]")
    suite = importlib.import_module("benchmarks.bench")
    return int(suite.bench(settings.only, Path(settings.out).resolve(), settings.compare, settings.again))
