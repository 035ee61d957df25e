"""Progress bars: one live display on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from symground.running import progress

CODE = """
from symground.running import progress
for _ in range(2):
    with progress("outer", 2) as outer:
        for _ in range(2):
            with progress("inner", 3) as inner:
                for _ in range(3):
                    inner.note("loss 1.0"); inner.advance()
            outer.advance()
print("done")
"""


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("count", 3, done=1) as bar:
        for value in range(2):
            bar.note(f"loss {value}")
            bar.advance()
    assert capsys.readouterr().err == "count: 3/3 loss 1\n"


def test_plain_lines_tell_how_long_the_rest_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("symground.running.progress_bar.time.monotonic", lambda: clock[0])
    with progress("count", 200, done=100) as bar:
        for _ in range(10):
            clock[0] += 40.0
            bar.advance()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "count: 101/200 1:06:00 left"
    assert said[-1] == "count: 110/200 1:00:00 left"


def test_bars_nest_on_a_terminal() -> None:
    parent, child = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", CODE], stderr=child, stdout=subprocess.PIPE, text=True)
    os.close(child)
    shown = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    assert process.communicate()[0] == "done\n"
    assert process.returncode == 0
    assert b"outer" in shown
    assert b"inner" in shown
    assert b"Traceback" not in shown
