"""Do the tests notice? One-place changes of a module, each tried against the tests that should notice it.

    python -m benchmarks.mutants symground.analysis.r2 tests/analysis/test_estimates.py --count 40

A change is a comparison, an operator, a number, a condition, a name of a column, a reduction (mean for sum, max for
min) or a dropped keyword argument. What only the eye sees (sizes and colours of figures), annotations and the words of
errors are left as they are. Everything heavy is imported once; each change runs in a fork, with that module's code put
in its place when it is imported, so that no file is touched. A change that no test notices is printed with its line.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult,
}  # fmt: skip
_NAMES = {
    "mean": "sum", "sum": "mean", "max": "min", "min": "max", "any": "all", "all": "any", "first": "last", "std": "var",
    "head": "tail", "argmax": "argmin", "low": "high", "high": "low",
}  # fmt: skip
#: Calls whose arguments are looks, or do nothing that a test could see.
_LOOKS = {
    "figure_of", "set", "axvline", "axhline", "colorbar", "legend", "fill_between", "hlines", "grid", "set_xticks",
    "set_yticks", "tick_params", "annotate", "pcolormesh", "scatter", "barh", "require", "progress", "simplefilter",
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """Of the node with this number, in the order of `ast.walk`."""

    node: int
    kind: str
    part: int = 0


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _left_alone(tree: ast.Module) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(tree):
        roots: list[ast.AST] = [
            part for part in (getattr(node, "annotation", None), getattr(node, "returns", None)) if part
        ]
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _called(node) in _LOOKS):
            roots.append(node)
        elif isinstance(node, ast.Call) and _called(node) in ("plot", "band", "zip"):
            roots += node.keywords
        elif isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant) and node.operand.value == 1:
            roots.append(node)  # -1, the last axis
        found |= {id(inner) for root in roots for inner in ast.walk(root)}
    return found


def changes(tree: ast.Module) -> Iterator[Change]:
    """Every place that can be changed, and how."""
    alone = _left_alone(tree)
    conditions = {id(node.test) for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp)}
    for i, node in enumerate(ast.walk(tree)):
        if id(node) in alone:
            continue
        match node:
            case ast.Compare(ops=ops):
                yield from (Change(i, "comparison", j) for j, op in enumerate(ops) if type(op) in _COMPARISONS)
            case ast.BinOp(op=op) if type(op) in _OPERATORS:
                yield Change(i, "operator")
            case ast.BoolOp():
                yield Change(i, "and or")
            case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()) if id(node) not in conditions:
                yield Change(i, "sign")
            case ast.Constant(value=bool() | int() | float()):
                yield Change(i, "number")
            case ast.Attribute(attr=name) | ast.Name(id=name, ctx=ast.Load()) if name in _NAMES:
                yield Change(i, "name")
            case ast.Subscript(slice=ast.Constant(value=str()), ctx=ast.Load()) if len(_columns(tree)) > 1:
                yield Change(i, "column")
            case ast.If() | ast.IfExp():
                yield Change(i, "condition")
            case ast.Call(keywords=keywords):
                yield from (Change(i, "keyword", j) for j, k in enumerate(keywords) if k.arg and id(k) not in alone)


def _columns(tree: ast.Module) -> list[str]:
    found = [node.slice.value for node in ast.walk(tree)
             if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)]  # fmt: skip
    return list(dict.fromkeys(value for value in found if isinstance(value, str)))


def changed(tree: ast.Module, change: Change) -> tuple[ast.Module, str]:
    """The tree with the change, and the change in words."""
    other = copy.deepcopy(tree)
    node: Any = list(ast.walk(other))[change.node]
    before = ast.unparse(node)
    if change.kind == "comparison":
        node.ops[change.part] = _COMPARISONS[type(node.ops[change.part])]()
    elif change.kind == "operator":
        node.op = _OPERATORS[type(node.op)]()
    elif change.kind == "and or":
        node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
    elif change.kind == "sign":
        # Twice: -x becomes x, not x becomes x.
        node.operand = ast.UnaryOp(type(node.op)(), node.operand)
    elif change.kind == "number":
        value = node.value
        node.value = (
            not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 1.5 * value + 0.01
        )
    elif change.kind == "name":
        field = "attr" if isinstance(node, ast.Attribute) else "id"
        setattr(node, field, _NAMES[getattr(node, field)])
    elif change.kind == "column":
        others = [name for name in _columns(tree) if name != node.slice.value]
        node.slice.value = random.Random(str(change)).choice(others)
    elif change.kind == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        del node.keywords[change.part]
    words = f"line {getattr(node, 'lineno', '?')}, {change.kind}: {before[:100]}  →  {ast.unparse(node)[:100]}"
    return ast.fix_missing_locations(other), " ".join(words.split())


class _InPlace(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from code."""

    def __init__(self, name: str, code: CodeType, path: Path) -> None:
        self._name, self._code, self._path = name, code, path

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        inside = self._path.name == "__init__.py"
        return importlib.util.spec_from_loader(fullname, self, origin=str(self._path), is_package=inside)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)


def trial(name: str, tree: ast.Module, path: Path, tests: Sequence[str], seconds: int) -> tuple[int, float]:
    """(pytest's exit status, seconds of processor time) of the tests with this tree as the module."""
    child = os.fork()
    if child == 0:
        status = 99
        folder = tempfile.mkdtemp()
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            sys.meta_path.insert(0, _InPlace(name, compile(tree, str(path), "exec"), path))
            sys.dont_write_bytecode = True
            import pytest

            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--basetemp", f"{folder}/t", *tests]))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(status)
    _, waited, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(waited), usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module")
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--count", type=int, help="so many changes at random; all of them by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further change after these")
    asked = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    path = ROOT / asked.module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for heavy in ("torch", "transformers", "pandas", "scipy.stats", "statsmodels.formula.api", "matplotlib.figure",
                  "hypothesis", "pytest", "xarray", "pyarrow.parquet", "tyro"):  # fmt: skip
        importlib.import_module(heavy)
    status, clean = trial(asked.module, tree, path, asked.tests, 3600)
    if status:
        raise SystemExit(f"{asked.module}: its tests fail as it is (pytest's exit status {status})")
    places = list(changes(tree))
    chosen = random.Random(asked.seed).sample(places, min(asked.count or len(places), len(places)))
    began, noticed, survivors = time.monotonic(), 0, list[str]()
    for change in chosen:
        if time.monotonic() - began > asked.seconds:
            break
        other, words = changed(tree, change)
        status, _ = trial(asked.module, other, path, asked.tests, int(3 * clean) + 20)
        if status:
            noticed += 1
        else:
            survivors.append(words)
            print(f"  {words}", flush=True)
    tried = noticed + len(survivors)
    print(f"{asked.module}: {len(places)} places, {tried} tried, {noticed} noticed, {len(survivors)} not", flush=True)


if __name__ == "__main__":
    main()
