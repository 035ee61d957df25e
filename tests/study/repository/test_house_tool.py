"""tools/house.py on a toy house whose figures are known by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import symground

TOOL = Path(symground.__file__).resolve().parent.parent / "tools" / "house.py"
FILES = {
    "symground/__init__.py": "",
    "symground/ops/__init__.py": "from symground.ops.api import double as double\n",
    "symground/ops/api.py": """
        from symground.ops import checks
        from symground.ops.fast import fast

        def made(forward, back):
            return forward

        IMPLEMENTATIONS = {"plain": lambda x, by: x * by, "fast": fast, "slow": made(forward=fast, back=checks.slow)}

        def double(x, by=2):
            checks.number(by)
            values = [x, x]
            return choose(IMPLEMENTATIONS, "fast")(values, by)

        def choose(table, name):
            return table[name]
    """,
    "symground/ops/checks.py": """
        def number(by):
            assert _is(by)

        def _is(by):
            return isinstance(by, int)

        def slow(x, by):
            return x
    """,
    "symground/ops/fast.py": """
        from symground.ops.made import made

        def fast(x, by):
            from symground.kernels.times import times  # arrow that a function makes

            return times(by, values=x)

        def _never(x):  # fmt: skip
            return made
    """,
    "symground/ops/made.py": "from . import fast\n\nmade = fast\n",
    "kernels/times.py": "def times(by, values):\n    return [x * by for x in values]\n",
    "tests/test_toy.py": "import symground.ops.api\n",
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("\n".join(line.removeprefix("        ") for line in text.split("\n")))
    (root / "symground" / "kernels").symlink_to(root / "kernels")  # counted once
    return root


def said(toy: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-I", str(TOOL), "--tree", str(toy), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_rooms_arrows_circles_and_functions(toy: Path) -> None:
    head, *lines, _, circles, circle = said(toy)
    rooms = {line.split()[0]: line.split()[1:] for line in lines}
    # files, in a folder, arrows inside and out, functions, median, of at most 6, private, used once, fmt: skip
    assert rooms["ops"] == ["5", "5", "5", "1", "8", "2", "100%", "2", "1", "1"]
    assert rooms["kernels"] == ["1", "1", "0", "0", "1", "2", "100%", "0", "0", "0"]
    assert rooms["tests"] == ["1", "1", "0", "1", "0", "0", "0%", "0", "0", "0"]
    assert rooms["all"][:5] == ["8", "5", "7", "0", "9"]
    assert head.split()[:2] == ["room", "files"]
    assert circles == "circles: 1"
    assert circle.strip() == "symground.ops.fast, symground.ops.made"


def test_the_way_of_a_parameter(toy: Path) -> None:
    assert said(toy, "way", "ops.double", "x", "fast") == [
        "ops.double x: 3 files, 4 functions",
        "  symground/ops/api.py: double, choose",
        "  symground/ops/fast.py: fast",
        "  kernels/times.py: times",
    ]
    assert said(toy, "way", "ops.double", "x", "slow", "back") == [
        "ops.double x: 2 files, 4 functions",
        "  symground/ops/api.py: double, choose, made",
        "  symground/ops/checks.py: slow",
    ]
    way = said(toy, "way", "ops.double", "by")
    assert way[0] == "ops.double by: 4 files, 8 functions"
    assert way[2] == "  symground/ops/checks.py: number, _is, slow"


def test_no_module_of_the_repository_imports_itself_by_a_circle() -> None:
    """Kernels, benchmarks, tools and tests too, which import-linter does not see; imports in functions count."""
    done = subprocess.run([sys.executable, "-I", str(TOOL)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "circles: 0"


def test_bad_input(toy: Path) -> None:
    command = [sys.executable, str(TOOL), "--tree", str(toy), "way", "ops.nothing", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected a function of symground, such as ops.attention; got ops.nothing" in done.stderr
