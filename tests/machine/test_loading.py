"""An extension that is there and does not load: why, without ending what asks, and how to build it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from symground.machine.loading import loaded
from symground.machine.parts import LOADED, run_one
from symground.ops.common import build, extension


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"junk as long as a header" * 9, "invalid ELF header"), (b"", "short")],
)
def test_the_loader_says_why(content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert loaded("extension") == ("absent", "it is not built: symground build")
    (tmp_path / build.FILE).write_bytes(content)
    status, why = loaded("extension")
    assert status == "wrong"
    assert said in why
    assert "symground build" in why


@pytest.mark.skipif(extension.library is None, reason="the extension is not built: symground build")
def test_one_that_ends_the_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (build.HERE / build.FILE).read_bytes()
    (tmp_path / build.FILE).write_bytes(whole[: len(whole) // 10])
    code = f"from pathlib import Path\nfrom symground.ops.common import build\nbuild.HERE = Path({str(tmp_path)!r})"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (found,), _ = run_one(LOADED[0], 1)
    assert (found.part, found.status) == ("extension", "wrong")
    assert "symground build" in found.said


@pytest.mark.parametrize("off", ["", "triton"])
def test_building_does_not_load_what_is_there(off: str) -> None:
    code = """
import os
from symground.machine.building import Build
before = dict(os.environ)
try:
    Build().run()
except FileNotFoundError as error:
    print(error)
assert dict(os.environ) == before
from symground.ops.common import extension
assert extension.library is None
"""
    environment = {**os.environ, "CXX": "no-such-compiler", "SYMGROUND_DISABLE": off}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CXX=no-such-compiler" in done.stdout
