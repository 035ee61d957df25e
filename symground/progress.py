"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from symground.optional import require

_PLAIN_EVERY = 30.0  # seconds between plain lines


class Bar:
    """Counts steps of one task."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self._label, self._total, self._done, self._note = label, total, done, ""
        self._live = None
        self._last = time.monotonic()
        if sys.stderr.isatty():
            rich = require("rich.progress", "progress bars")
            console = require("rich.console", "progress bars").Console(stderr=True)
            columns = [*rich.Progress.get_default_columns(), rich.TextColumn("{task.fields[note]}")]
            self._live = rich.Progress(*columns, console=console)
            self._task = self._live.add_task(label, total=total, completed=done, note="")
            self._live.start()

    def note(self, text: str) -> None:
        """Text beside the bar."""
        self._note = text

    def advance(self) -> None:
        self._done += 1
        if self._live is not None:
            self._live.update(self._task, advance=1, note=self._note)
        elif time.monotonic() - self._last > _PLAIN_EVERY or self._done == self._total:
            self._last = time.monotonic()
            print(f"{self._label}: {self._done}/{self._total} {self._note}".rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Bar]:
    bar = Bar(label, total, done)
    try:
        yield bar
    finally:
        bar.close()
