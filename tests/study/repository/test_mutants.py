"""Mutation testing: each mutant is one change, and a change that no test reads survives."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import symground

pytest.importorskip("cosmic_ray", reason="cosmic-ray is not installed: tests of the mutation tester")
sys.path.insert(0, str(Path(symground.__file__).resolve().parent.parent))

from tools.mutants import ROOT, drawn, mutant, places, trial

TOY = """
def larger(a: int | None, b: int = 1) -> int | None:
    if not a:
        raise ValueError(f"{a + 1} is too few")
    return max(a, b) if a > 0 and b > 0 else a + b
"""
ASKED = "import toy_of_mutants; assert toy_of_mutants.larger(1, 2) == 2"


def test_every_mutant_is_one_change_of_what_counts() -> None:
    found = [made for place in places(TOY) if (made := mutant(TOY, place))]
    assert {entry["line"] for _, entry in found} == {2, 3, 5}  # not the words of the error
    for other, entry in found:
        compile(other, "toy", "exec")
        assert "int | None" in other  # nor an annotation
        (before, after), *more = [
            pair for pair in zip(TOY.split("\n"), other.split("\n"), strict=True) if pair[0] != pair[1]
        ]
        assert not more
        assert (before.split(), after.split()) == (entry["before"].split(), entry["after"].split())
    after = {" ".join(entry["after"].split()) for _, entry in found}
    assert "return max(a, b) if a > 0 or b > 0 else a + b" in after
    assert "return max(a, b) if a > 0 and b > 0 else a ** b" in after
    assert not any("<<" in text or " is " in text for text in after)
    first, again, other = (list(drawn(TOY, 5, seed)) for seed in (0, 0, 1))
    assert len(first) == 5
    assert first == again != other
    assert len({(entry["line"], entry["after"]) for _, entry in first}) == 5


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize(("before", "after", "noticed"), [("a > 0", "a >= 0", False), ("a, b)", "a, -b)", True)])
def test_a_mutant_is_noticed_where_a_test_reads_it(
    tmp_path: Path, before: str, after: str, noticed: bool, here: bool
) -> None:
    """The module is read in the test's own process, or in a process that the test starts."""
    test = tmp_path / "test_toy.py"
    other_process = f"subprocess.run([sys.executable, '-c', {ASKED!r}], check=True)"
    call = ASKED if here else f"import subprocess, sys; {other_process}"
    test.write_text(f"def test_it():\n    {call}\n")
    of_mutant = TOY.replace(before, after)
    assert of_mutant != TOY
    for source, fails in ((TOY, False), (of_mutant, noticed)):
        by, seconds, imported = trial("toy_of_mutants", source, tmp_path / "toy.py", [str(test)], 60)
        assert (by or "").endswith("test_toy.py::test_it") == fails
        assert (by is None) == (not fails)
        assert seconds > 0
        assert ("toy_of_mutants" in imported) == here


@pytest.mark.slow
def test_a_mutant_of_a_kernel_is_what_the_interpreter_runs() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: kernel tests")
    path = ROOT / "symground" / "kernels" / "common" / "masks.py"
    source = path.read_text(encoding="utf-8")
    before = "first = tl.maximum(0, first_j"
    assert before in source
    # A separate process, which has not imported the kernels.
    code = f"""
from pathlib import Path
from tools.mutants import trial
path = Path({str(path)!r})
source = path.read_text(encoding="utf-8")
for text in (source, source.replace({before!r}, "first = 2 + tl.maximum(0, first_j")):
    print(trial("symground.kernels.common.masks", text, path, ["tests/kernels/test_tiles.py"], 300)[0] is None)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr
    importlib.import_module("symground.kernels.common.masks")
    with pytest.raises(ValueError, match="name: symground.kernels.common.masks is imported already"):
        trial("symground.kernels.common.masks", source, path, ["tests/kernels/test_tiles.py"], 300)


def test_the_table_names_modules_and_tests_that_are_there() -> None:
    for module, asked in tomllib.loads((ROOT / "tools" / "mutants.toml").read_text(encoding="utf-8")).items():
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
        for path, _, test in (name.partition("::") for name in asked if name.startswith("tests/")):
            assert (ROOT / path).exists(), (module, path)
            assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), (module, test)
