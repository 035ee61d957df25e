"""Counts of the house, from the source with ``ast``. Nothing is imported, and only Python is needed.

    python tools/house.py                               # rooms, circles, functions
    python tools/house.py --tree PATH                   # the same for another checkout
    python tools/house.py way ops.attention q           # the files and functions that a parameter passes
    python tools/house.py way ops.attention q triton    # with one entry only of a table, or of keyword arguments
    python tools/house.py way ops.attention q triton forward

A room is a folder under symground/, or kernels/, benchmarks/, tools/, tests/. An arrow is a pair of modules of which
one imports the other, at its top or in a function. The way follows names and calls, not values: a value computed from
the parameter counts as the parameter. For an object that a call returns, it follows the functions among the arguments
of this call. It ends where only a run can tell more: at a method of an unknown object, or at an op of C++.
"""

from __future__ import annotations

import argparse
import ast
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOMS = ("symground", "kernels", "benchmarks", "tools", "tests")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    name: str
    path: Path
    text: str
    defined: dict[str, ast.AST] = field(default_factory=dict)
    """Name → its definition at the top level: a function, a class, or the value of a variable."""
    bound: dict[str, str] = field(default_factory=dict)
    """Name → the dotted name that an import binds it to, at the top or in a function."""
    imports: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.text)
        parts = self.path.parts
        self.room = parts[1] if parts[0] == "symground" and len(parts) > 2 else parts[0]
        for node in self.tree.body:
            if isinstance(node, (*FUNCTION, ast.ClassDef)):
                self.defined[node.name] = node
            elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
                self.defined |= dict.fromkeys(_targets_of(node), node.value)


Targets = Iterator[tuple[Module, Function, int]]
"""Functions that may be called, each with the number of its first parameters that the call leaves out (self)."""


class House:
    def __init__(self, root: Path) -> None:
        self.modules: dict[str, Module] = {}
        for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
            inside = path.relative_to(root)
            if any((root / part).is_symlink() for part in (inside, *inside.parents)):
                continue
            parts = inside.with_suffix("").parts[: -1 if inside.name == "__init__.py" else None]
            name = ".".join(["symground", *parts] if parts[0] == "kernels" else parts)
            self.modules[name] = Module(name, inside, path.read_text(encoding="utf-8"))
        for module in self.modules.values():
            self._read_imports(module)

    def _read_imports(self, module: Module) -> None:
        package = module.name.split(".")[: None if module.path.name == "__init__.py" else -1]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.partition(".")[0]
                    module.bound[alias.asname or first] = alias.name if alias.asname else first
                    module.imports |= {alias.name} & self.modules.keys()
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*above, *filter(None, [node.module])])
                for alias in node.names:
                    whole = f"{source}.{alias.name}"
                    module.bound[alias.asname or alias.name] = whole
                    module.imports |= {whole if whole in self.modules else source} & self.modules.keys()
        module.imports.discard(module.name)

    def find(self, dotted: str, deep: int = 0) -> tuple[Module, ast.AST] | None:
        """Where a dotted name is defined, through modules that hand on what they import."""
        place, _, name = dotted.rpartition(".")
        module = self.modules.get(place)
        if module is None or deep > 9:
            return None
        if name in module.defined:
            return module, module.defined[name]
        return self.find(module.bound[name], deep + 1) if name in module.bound else None

    def dotted(self, module: Module, node: ast.AST) -> str:
        """What a name, or a chain of attributes, in a module stands for; empty for anything else."""
        if isinstance(node, ast.Name):
            return module.bound.get(node.id, f"{module.name}.{node.id}")
        above = self.dotted(module, node.value) if isinstance(node, ast.Attribute) else ""
        return f"{above}.{node.attr}" if isinstance(node, ast.Attribute) and above else ""

    def circles(self) -> list[list[str]]:
        """Sets of modules that import each other, directly or through others."""
        reached: dict[str, set[str]] = {}
        for name in self.modules:
            seen, left = reached.setdefault(name, set()), [name]
            while left:
                new = self.modules[left.pop()].imports - seen
                seen |= new
                left += new
        found = {frozenset(b for b in reached[a] if a in reached[b]) for a in self.modules if a in reached[a]}
        return sorted(map(sorted, found))

    def table(self) -> str:
        """A line for each room, and one for all."""
        nodes = (node for module in self.modules.values() for node in ast.walk(module.tree))
        uses = Counter(getattr(node, "id", getattr(node, "attr", None)) for node in nodes)  # of names and attributes
        rooms: dict[str, list[Module]] = {}
        for module in self.modules.values():
            rooms.setdefault(module.room, []).append(module)
        rows = [("room", "files", "in a folder", "arrows inside", "arrows out", "functions", "median lines",
                 "of at most 6", "private", "used once", "fmt: skip")]  # fmt: skip
        for name, these in [*rooms.items(), ("all", list(self.modules.values()))]:
            arrows = [(a.room, self.modules[b].room) for a in these for b in a.imports]
            inside = len(arrows) if name == "all" else sum(a == b for a, b in arrows)
            lengths = [(node.end_lineno or 0) - node.lineno + 1
                       for module in these for node in ast.walk(module.tree) if isinstance(node, FUNCTION)]  # fmt: skip
            private = [of for module in these for of, node in module.defined.items()
                       if of.startswith("_") and not of.startswith("__") and isinstance(node, FUNCTION)]  # fmt: skip
            figures = (
                len(these), max(Counter(module.path.parent for module in these).values()), inside, len(arrows) - inside,
                len(lengths), f"{statistics.median(lengths or [0]):g}",
                f"{sum(n <= 6 for n in lengths) / max(1, len(lengths)):.0%}", len(private),
                sum(uses[of] == 1 for of in private), sum(module.text.count("# fmt: skip") for module in these),
            )  # fmt: skip
            rows.append((name, *map(str, figures)))
        return "\n".join(f"{row[0]:<12}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows)


class Way:
    """The functions that a parameter passes, by file, in the order of first entry."""

    def __init__(self, house: House, *entries: str) -> None:
        self.house, self.entries = house, entries
        self.passed: dict[Path, dict[str, None]] = {}
        self.seen: set[tuple[int, frozenset[str]]] = set()

    def enter(self, module: Module, function: Function, names: set[str]) -> None:
        key = id(function), frozenset(names)
        if not names or key in self.seen:
            return
        self.seen.add(key)
        self.passed.setdefault(module.path, {})[function.name] = None
        local: dict[str, ast.AST] = {f.name: f for f in ast.walk(function) if isinstance(f, FUNCTION) and f != function}
        names = set(names)
        nodes = [node for node in ast.walk(function) if hasattr(node, "end_lineno")]
        for node in sorted(
            nodes, key=lambda node: (node.end_lineno, node.end_col_offset)
        ):  # arguments, then their call
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value:
                local |= dict.fromkeys(_targets_of(node), node.value)
                names |= _targets_of(node) if _mentions(node.value, names) else set()
            elif isinstance(node, ast.Call):
                given = [x for x in (*node.args, *(word.value for word in node.keywords)) if _mentions(x, names)]
                for where, called, skip in self._called(module, node.func, local) if given else ():
                    self.enter(where, called, _parameters(called, node, given, skip))

    def _called(self, module: Module, node: ast.AST, local: dict[str, ast.AST], deep: int = 0, *texts: str) -> Targets:
        """The functions that an expression may be; for a module, those whose names are among the texts."""
        if deep > 9:
            return
        name = self.house.dotted(module, node)
        found = local.get(node.id) if isinstance(node, ast.Name) else None
        where, node = (module, found) if found else self.house.find(name) or (module, node)
        if isinstance(node, FUNCTION):
            yield where, node, 0
        elif isinstance(node, ast.ClassDef):
            of_call = ("__init__", "__post_init__", "forward")
            yield from ((where, method, 1) for method in node.body
                        if isinstance(method, FUNCTION) and method.name in of_call)  # fmt: skip
        elif isinstance(node, ast.Call):
            maker = self.house.find(self.house.dotted(where, node.func))
            if maker and isinstance(maker[1], FUNCTION):
                self.passed.setdefault(maker[0].path, {})[maker[1].name] = None
            texts = tuple(x.value for x in node.args if isinstance(x, ast.Constant) and isinstance(x.value, str))
            named = self._chosen({word.arg: word.value for word in node.keywords})
            for value in (*node.args, *named):
                yield from self._called(where, value, local, deep + 1, *texts)
        elif isinstance(node, ast.Dict):
            entries = {getattr(key, "value", place): value
                       for place, (key, value) in enumerate(zip(node.keys, node.values, strict=True))}  # fmt: skip
            for value in self._chosen(entries):
                yield from self._called(where, value, {}, deep + 1, *texts)
        elif name in self.house.modules:
            for text in texts:
                yield from self._called(self.house.modules[name], ast.Name(text), {}, deep + 1)
        elif isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred)):
            yield from self._called(where, node.value, local, deep + 1, *texts)

    def _chosen(self, entries: Mapping[Any, ast.expr]) -> Iterable[ast.expr]:
        """The values of the entries that were asked for; all, if none of them is there."""
        return [entries[name] for name in self.entries if name in entries] or entries.values()


def _targets_of(node: ast.Assign | ast.AnnAssign | ast.NamedExpr) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def _mentions(node: ast.AST, names: set[str]) -> bool:
    return any(isinstance(part, ast.Name) and part.id in names for part in ast.walk(node))


def _parameters(function: Function, call: ast.Call, given: list[ast.expr], skip: int) -> set[str]:
    """The parameters that these arguments of a call are bound to, by name or position; all for a starred argument."""
    of = function.args
    order = [x.arg for x in (*of.posonlyargs, *of.args)][skip:]
    every, rest = {*order, *(x.arg for x in of.kwonlyargs)}, {x.arg for x in (of.vararg, of.kwarg) if x}
    named = {word.arg for word in call.keywords if word.value in given}
    if None in named or any(isinstance(value, ast.Starred) for value in given):
        return every | rest
    found = named & every
    for place, value in enumerate(call.args):
        if value in given:
            same = {value.id} & every if isinstance(value, ast.Name) else set()
            found |= same or set(order[place : place + 1]) or rest
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[1], help="a checkout; this one")
    parser.add_argument("way", nargs="*", metavar="way FUNCTION PARAMETER [ENTRY …]")
    asked = parser.parse_args()
    house = House(asked.tree)
    if not asked.way:
        print(house.table())
        found = house.circles()
        print(f"\ncircles: {len(found)}", *(f"  {', '.join(circle)}" for circle in found), sep="\n")
        return 0
    if len(asked.way) < 3 or asked.way[0] != "way":
        parser.error(f"expected nothing, or: way FUNCTION PARAMETER [ENTRY …]; got {' '.join(asked.way)}")
    start = house.find(f"symground.{asked.way[1]}")
    if start is None or not isinstance(start[1], FUNCTION):
        parser.error(f"expected a function of symground, such as ops.attention; got {asked.way[1]}")
    way = Way(house, *asked.way[3:])
    way.enter(*start, {asked.way[2]})
    print(f"{asked.way[1]} {asked.way[2]}: {len(way.passed)} files, {sum(map(len, way.passed.values()))} functions")
    print(*(f"  {path}: {', '.join(names)}" for path, names in way.passed.items()), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
