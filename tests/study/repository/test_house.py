"""The house: which room may import which, and the weight of an import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import symground

ROOT = Path(symground.__file__).resolve().parent.parent


def python(code: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_only_ops_knows_the_kernels_and_the_kernels_know_no_room() -> None:
    for file in sorted((ROOT / "symground").rglob("*.py")):
        room = file.relative_to(ROOT / "symground").parts[0]
        if room not in ("ops", "kernels"):
            assert not any(name.startswith("symground.kernels") for name in imports(file)), file
    for file in sorted((ROOT / "kernels").rglob("*.py")):
        assert not any(n.startswith("symground") and not n.startswith("symground.kernels") for n in imports(file)), file
    assert not (ROOT / "kernels" / "__init__.py").exists(), "see kernels/README.md"


@pytest.mark.parametrize("inside", [True, False])
def test_an_installed_package_named_kernels_is_not_shadowed(tmp_path: Path, inside: bool) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("STUB = True\n")
    code = (
        "import kernels, symground.kernels as ours; print(kernels.STUB, list(ours.__path__) != list(kernels.__path__))"
    )
    assert python(code, ROOT if inside else tmp_path.parent, PYTHONPATH=str(tmp_path)) == "True True"


def test_ops_needs_torch_and_numpy_only() -> None:
    code = """
import sys
for name in ("transformers", "pandas", "xarray", "scipy", "pyarrow", "matplotlib", "tokenizers", "safetensors", "rich",
             "tyro", "rustling", "filelock", "triton"):
    sys.modules[name] = None  # not to be found, and an import of it fails
import torch, symground as sg
from symground import ops
q = torch.randn(1, 2, 3, 4, requires_grad=True)
probe = torch.zeros(1).expand(1, 3, 3).requires_grad_()
ops.attention(q, q, q, saliency_probe=probe)[0].sum().backward()
assert probe.grad is not None
try:
    sg.load
except ImportError as error:
    print(error)
"""
    assert "symground.load needs more than torch and numpy" in python(code, ROOT.parent)


def test_importing_the_package_is_light() -> None:
    code = "import sys, symground; print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    assert python(code, ROOT.parent) == "[]"


def test_the_public_surface_is_there() -> None:
    assert set(symground.__all__) <= set(dir(symground))
    for name in symground.__all__:
        assert getattr(symground, name).__doc__, name
    for name in symground.ops.__all__:
        text = getattr(symground.ops, name).__doc__
        assert all(part in text for part in ("Args:", "Returns:", "Raises:", "Source:")), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        symground.nonsense  # noqa: B018


def test_whatever_is_to_last_gets_its_name_in_one_place() -> None:
    """Only symground/files/disk.py renames: it syncs the content first, and keeps the old file until then."""
    for file in sorted((ROOT / "symground").rglob("*.py")):
        if file == ROOT / "symground" / "files" / "disk.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of_os = isinstance(node.func.value, ast.Name) and node.func.value.id in ("os", "shutil")
            renames = of_os and node.func.attr in ("rename", "replace", "renames", "move")
            # The rename of a path, not of a table's columns.
            renames |= node.func.attr == "rename" and len(node.args) == 1 and not isinstance(node.args[0], ast.Constant)
            assert not renames, f"{file}:{node.lineno}"
