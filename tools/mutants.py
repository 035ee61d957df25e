"""Mutation testing: mutants of a module are tried against the tests that should notice them.

    pip install -e .[dev]
    python -m tools.mutants symground.analysis.statistics.r2 symground.data.childes.chat --count 8   # eight of each
    python -m tools.mutants                                                 # all modules of mutants.toml
    python -m tools.mutants symground.analysis.statistics.r2 --survivors   # again those that no test noticed

The mutations are cosmic-ray's. Places are drawn at random, and for each place one of the operators that apply there.
Some places are left out: sizes and colours of figures, annotations, the words of errors, and mutants that say nothing
about the tests (bit operators for arithmetic, which floats do not have; `is` for ==). `mutants.toml` names the tests of
each module. `results/mutants.json` has an entry for each mutant: module, line, operator, the line before and after,
`noticed_by` (the first test that failed, or null) and, for survivors, `why`, which a person fills in.

Other packages that the tests import are imported once. Each mutant runs in a fork that imports the module from the
mutant's source, and so do the processes that its tests start. So no file is changed. The source is also in `linecache`,
from which Triton's interpreter reads the source of a kernel.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.abc
import importlib.util
import json
import linecache
import os
import random
import resource
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"

#: Calls whose arguments change only the appearance, or nothing that a test could see.
_LOOKS = {
    "figure_of", "set", "axvline", "axhline", "colorbar", "legend", "fill_between", "hlines", "grid", "set_xticks",
    "set_yticks", "tick_params", "annotate", "pcolormesh", "scatter", "barh", "require", "progress", "simplefilter",
}  # fmt: skip
_KEYWORDS_ARE_LOOKS = {"plot", "band", "zip", "dataclass"}
_OURS = {"symground", "tests", "benchmarks", "tools", "conftest"}
_BITS = {"RShift", "LShift", "BitOr", "BitAnd", "BitXor"}


@dataclass(frozen=True)
class Place:
    """A place that an operator can change: its `occurrence`-th position in the module."""

    operator: str
    occurrence: int
    line: int
    column: int


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _left_alone(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(start, end) of the parts that must not be changed, each (line, column in bytes)."""
    roots: list[Any] = []
    for node in ast.walk(tree):
        roots += [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _called(node) in _LOOKS):
            roots.append(node)
        elif isinstance(node, ast.Call) and _called(node) in _KEYWORDS_ARE_LOOKS:
            roots += node.keywords
        elif isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant) and node.operand.value == 1:
            roots.append(node)  # -1, the last axis
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            roots.append(node)
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in roots if n]


def _wanted(operator: str) -> bool:
    """Whether an operator is used: it has no arguments, and its mutants say something about the tests."""
    kind, *names = operator.removeprefix("core/").split("_")
    if kind == "ReplaceBinaryOperator":
        return (names[0] in _BITS) == (names[1] in _BITS)
    if kind == "ReplaceComparisonOperator":
        return names[0].startswith("Is") == names[1].startswith("Is")
    return not get_operator(operator).arguments()


def places(source: str) -> Iterator[Place]:
    """All places of a module that cosmic-ray's operators can change, except those that are left out."""
    alone, lines, nodes = _left_alone(ast.parse(source)), source.split("\n"), list(ast_nodes(get_ast(source)))
    for name in filter(_wanted, operator_names()):
        operator = get_operator(name)()
        found = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, (line, column) in enumerate(found):
            at = (line, len(lines[line - 1][:column].encode()))
            if not any(start <= at < end for start, end in alone):
                yield Place(name, occurrence, line, column)


def mutant(source: str, place: Place) -> tuple[str, dict[str, Any]] | None:
    """The mutant's source and its entry; None if the source is not Python or is unchanged."""
    other = mutate_code(source, get_operator(place.operator)(), place.occurrence)
    pair = next(((a, b) for a, b in zip(source.split("\n"), other.split("\n"), strict=False) if a != b), None)
    try:
        compile(other, "mutant", "exec")
    except SyntaxError:
        return None
    if pair is None or ast.dump(ast.parse(other)) == ast.dump(ast.parse(source)):
        return None
    before, after = (" ".join(line.split()) for line in pair)
    entry = {"line": place.line, "operator": place.operator.removeprefix("core/"), "before": before, "after": after}
    return other, entry


def drawn(source: str, count: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Mutants at `count` random places, one for each place."""
    by_place: dict[tuple[int, int], list[Place]] = {}
    for place in places(source):
        by_place.setdefault((place.line, place.column), []).append(place)
    rng = random.Random(seed)
    for at in rng.sample(sorted(by_place), len(by_place)):
        found = mutant(source, rng.choice(by_place[at]))
        if count and found:
            count -= 1
            yield found


class _InPlace(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a source."""

    def __init__(self, name: str, source: str, path: Path) -> None:
        self._name, self._source, self._path = name, source, path
        # Without a modification time, linecache does not read the file again.
        linecache.cache[str(path)] = (len(source), None, source.splitlines(keepends=True), str(path))

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        inside = self._path.name == "__init__.py"
        return importlib.util.spec_from_loader(fullname, self, origin=str(self._path), is_package=inside)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self._path)
        exec(compile(self._source, str(self._path), "exec"), module.__dict__)


#: Imports the mutant also in the processes that tests start.
_SITE = """
import sys
from pathlib import Path
from tools.mutants import _InPlace
sys.meta_path.insert(0, _InPlace({name!r}, Path({mutant!r}).read_text(encoding="utf-8"), Path({path!r})))
"""


class _Notes:
    """Writes the name of the first test that fails or of the file that cannot be imported, and the imported modules."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not (self._folder / "first").exists():
            (self._folder / "first").write_text(report.nodeid, encoding="utf-8")

    pytest_collectreport = pytest_runtest_logreport

    def pytest_sessionfinish(self) -> None:
        (self._folder / "imported").write_text("\n".join(sys.modules), encoding="utf-8")


class Outcome(NamedTuple):
    """The first test that failed (None: no test did), seconds of processor time, and the modules it had imported."""

    noticed_by: str | None
    seconds: float
    imported: list[str]


def trial(name: str, source: str, path: Path, tests: Sequence[str], seconds: float) -> Outcome:
    """Run the tests with this source in place of the module.

    Raises:
        ValueError: the module is imported already, so the tests would use the unchanged one.
    """
    if name in sys.modules:
        raise ValueError(f"name: {name} is imported already; try its mutants in a process of their own")
    with tempfile.TemporaryDirectory() as folder:
        first, imported = Path(folder) / "first", Path(folder) / "imported"
        child = os.fork()
        if child == 0:
            status = 99
            try:
                os.setsid()
                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
                resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
                signal.alarm(int(6 * seconds))
                sys.meta_path.insert(0, _InPlace(name, source, path))
                sys.dont_write_bytecode = True
                (Path(folder) / "mutant").write_text(source, encoding="utf-8")
                site = _SITE.format(name=name, path=str(path), mutant=f"{folder}/mutant")
                (Path(folder) / "sitecustomize.py").write_text(site, encoding="utf-8")
                before = os.environ.get("PYTHONPATH")
                os.environ["PYTHONPATH"] = os.pathsep.join([folder, str(ROOT), *([before] if before else [])])
                import pytest

                asked = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "--basetemp", f"{folder}/t", *tests]
                status = int(pytest.main(asked, plugins=[_Notes(Path(folder))]))
            finally:
                os._exit(status)
        _, waited, usage = os.wait4(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # also the processes that its tests started
        status = os.waitstatus_to_exitcode(waited)
        noticed = first.read_text(encoding="utf-8") if first.exists() else f"exit status {status}" if status else None
        names = imported.read_text(encoding="utf-8").split("\n") if imported.exists() else []
        return Outcome(noticed, usage.ru_utime + usage.ru_stime, names)


def _import_ahead(names: Sequence[str]) -> None:
    """Import the packages that are not part of this repository."""
    for name in names:
        if name not in sys.modules and name.partition(".")[0] not in _OURS:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _again(source: str, entry: dict[str, Any]) -> str | None:
    """The mutant of an entry, in a module that may have changed in the meantime."""
    lines = source.split("\n")
    for place in places(source):
        if place.operator == f"core/{entry['operator']}" and " ".join(lines[place.line - 1].split()) in entry["before"]:
            found = mutant(source, place)
            if found and all(found[1][key] == entry[key] for key in ("before", "after")):
                return found[0]
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--count", type=int, default=8, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--survivors", action="store_true", help="try again those that no test noticed")
    asked = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    tests_of = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text(encoding="utf-8"))
    os.environ.setdefault("TRITON_INTERPRET", "1")  # as tests/conftest.py does, before transformers imports Triton
    entries: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    cleans: dict[tuple[str, ...], float] = {}
    for name in asked.modules or tests_of:
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        source = path.read_text(encoding="utf-8")
        if asked.survivors:
            to_try = [(_again(source, e), e) for e in entries if e["module"] == name and not e["noticed_by"]]
            to_try = [(other, e) for other, e in to_try if other and not str(e["why"]).startswith("equivalent")]
        else:
            to_try = [(other, {"module": name, **e}) for other, e in drawn(source, asked.count, asked.seed)]
        if not to_try:
            continue
        tests = tuple(tests_of[name])
        if tests not in cleans:
            noticed, cleans[tests], imported = trial(name, source, path, tests, 3600)
            if noticed:
                raise SystemExit(f"{name}: its tests fail as it is ({noticed})")
            _import_ahead(imported)
        began, survived = time.monotonic(), 0
        for other, entry in to_try:
            noticed, *_ = trial(name, other, path, tests, 3 * cleans[tests] + 20)
            survived += not noticed
            if asked.survivors and noticed:
                entry["why"] = f"survived; closed by {noticed}"
            entry |= {"noticed_by": noticed} | ({} if "why" in entry else {"why": None})
            if entry not in entries:
                entries.append(entry)
            if not noticed:
                print(
                    f"  line {entry['line']}, {entry['operator']}: {entry['before']}  →  {entry['after']}", flush=True
                )
            RESULTS.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        took = time.monotonic() - began
        print(f"{name}: {len(to_try)} tried, {survived} survived, {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
