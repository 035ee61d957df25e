"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from symground.errors import require

_PLAIN_EVERY = 30.0  # seconds between plain lines


class _Display:
    """The terminal's only live display; a nested bar is a second line of it."""

    shown: Any = None
    bars = 0
    lock = threading.RLock()


class Bar:
    """Counts the steps of one task."""

    def __init__(self, label: str, total: int, done: int, quick: bool, alike: bool) -> None:
        self._alike = alike
        self._label, self._total, self._done, self._note = label, total, done, ""
        self._since, self._begun = time.monotonic(), done
        self._last = self._since
        self._live = sys.stderr.isatty()
        # A nested bar is a second line on a terminal; elsewhere it prints only if it takes long.
        with _Display.lock:
            self._inner = quick or _Display.bars > 0
            _Display.bars += 1
            if self._live:
                if _Display.shown is None:
                    rich = require("rich.progress", "progress bars")
                    console = require("rich.console", "progress bars").Console(stderr=True)
                    columns = [*rich.Progress.get_default_columns(), rich.TextColumn("{task.fields[note]}")]
                    _Display.shown = rich.Progress(*columns, console=console)
                    _Display.shown.start()
                self._task = _Display.shown.add_task(label, total=total, completed=done, note="")

    def note(self, text: str) -> None:
        """Show a text beside the bar."""
        self._note = text

    def advance(self) -> None:
        self._done += 1
        if self._live:
            _Display.shown.update(self._task, advance=1, note=self._note)
        elif time.monotonic() - self._last > _PLAIN_EVERY or (self._done == self._total and not self._inner):
            self._last = time.monotonic()
            said = [part for part in (self._note, self._left()) if part]
            print(f"{self._label}: {self._done}/{self._total} {', '.join(said)}".rstrip(), file=sys.stderr, flush=True)

    def _left(self) -> str:
        """The remaining time at this pace; empty at the end."""
        done, left = self._done - self._begun, self._total - self._done
        if not done or left <= 0 or not self._alike:
            return ""
        seconds = round((self._last - self._since) / done * left)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"

    def close(self) -> None:
        with _Display.lock:
            _Display.bars -= 1
            if self._live:
                if _Display.bars:
                    _Display.shown.remove_task(self._task)
                else:
                    _Display.shown.stop()
                    _Display.shown = None


@contextmanager
def progress(label: str, total: int, done: int = 0, quick: bool = False, alike: bool = True) -> Iterator[Bar]:
    """Show the progress of a task of ``total`` steps, of which ``done`` are finished, while the block runs.

    A ``quick`` task prints plain lines only if it takes long. If the steps do not take ``alike`` long, no time that is
    left is printed.
    """
    bar = Bar(label, total, done, quick, alike)
    try:
        yield bar
    finally:
        bar.close()
