"""The files that pages, comments and docstrings name are there."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path

import symground

ROOT = Path(symground.__file__).resolve().parent.parent
ROOMS = ("symground", "kernels", "csrc", "tests", "tools", "benchmarks", "docs")
#: A path with a folder, of a kind of file that is written by hand.
PATH = re.compile(r"(?<![\w./<{-])((?:[\w.-]+/)+[\w.-]+\.(?:py|md|toml|h|cpp|cu))(?![\w*/])")
#: Words in capitals are placeholders.
PLACEHOLDER = re.compile(r"(?<![A-Za-z])(?!README|CONTRIBUTING|CHANGELOG)[A-Z]{3,}(?![A-Za-z])")


def prose(file: Path) -> Iterable[str]:
    """What is said in a file: code in backticks of a page, comments, and docstrings."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return re.findall(r"`([^`\n]+)`", text)
    if file.suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = [
            ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented)
        ]
        return [token.string for token in tokens if token.type == tokenize.COMMENT] + docstrings
    return re.findall(r"(?:#|//)(.*)", text)


def test_files_that_are_named_are_there() -> None:
    """By their path from the root, from the package, or from a folder around the file that names them."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.*")] + [*ROOT.glob("*.*"), ROOT / "Makefile"]
    found = 0
    for file in files:
        if file.suffix not in (".md", ".py", ".toml", ".h", ".cpp", ".cu", "") or file.is_dir():
            continue
        for path in (path for said in prose(file) for path in PATH.findall(said)):
            if PLACEHOLDER.search(path) or path.startswith("runs/"):
                continue
            places = (ROOT, ROOT / "symground", *file.parents)
            assert any((place / path).exists() for place in places), (str(file.relative_to(ROOT)), path)
            found += 1
    assert found > 150
