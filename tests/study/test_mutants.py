"""The tester of the tests: each change is one, and what no test reads survives."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import symground

sys.path.insert(0, str(Path(symground.__file__).resolve().parent.parent))

from benchmarks.mutants import ROOT, changed, changes, trial

TOY = """
def larger(a: int, b: int = 1) -> int:
    if not a:
        return -b
    return max(a, b) if a > 0 and b > 0 else a + b

def unread(row):
    return row["x"] - row["y"]
"""


def test_every_change_is_one_and_compiles() -> None:
    tree = ast.parse(TOY)
    found = {change: changed(tree, change) for change in changes(tree)}
    texts = [ast.unparse(other) for other, _ in found.values()]
    assert len(set(texts)) == len(texts)
    assert ast.unparse(tree) not in texts
    kinds = {change.kind for change in found}
    assert kinds == {"comparison", "operator", "and or", "sign", "number", "name", "column", "condition"}
    assert any(words.endswith("column: row['x'] → row['y']") for _, words in found.values())
    for text in texts:
        compile(text, "toy", "exec")
    for module in ("analysis/r2.py", "reports/sections/causal.py"):
        tree = ast.parse((ROOT / "symground" / module).read_text(encoding="utf-8"))
        places = list(changes(tree))
        assert len(places) > 20
        assert all(ast.unparse(changed(tree, place)[0]) != ast.unparse(tree) for place in places[::7])


@pytest.mark.parametrize(("before", "after", "noticed"), [("a > 0", "a >= 0", False), ("max(a, b)", "min(a, b)", True)])
def test_a_change_is_noticed_where_a_test_reads_it(tmp_path: Path, before: str, after: str, noticed: bool) -> None:
    test = tmp_path / "test_toy.py"
    test.write_text("import toy_of_mutants\n\n\ndef test_it():\n    assert toy_of_mutants.larger(3, 2) == 3\n")
    of_change = TOY.replace(before, after)
    assert of_change != TOY
    for source, fails in ((TOY, False), (of_change, noticed)):
        status, seconds = trial("toy_of_mutants", ast.parse(source), tmp_path / "toy.py", [str(test)], 60)
        assert (status != 0) == fails
        assert seconds > 0
