"""Installation: every way gives a package that works and reports missing parts of the extension. The tests download
only the requirements of the build.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import symground
from symground.ops.common import build

ROOT = Path(symground.__file__).resolve().parent.parent
#: The folder of this environment's packages, such as torch.
PACKAGES = next(Path(p) for p in sys.path if p.endswith("site-packages"))

SHIPPED = """
import symground.kernels, symground as sg
from symground.data import STUDY_NOUNS
from symground.analysis.probing import read_contexts
print(sg.__file__, len(STUDY_NOUNS), len(read_contexts(None)), len(list(symground.kernels.__path__)))
"""
WORKS = """
import torch, symground
from symground import ops
from symground.ops.gate import api
x = torch.randn(1, 2, 3, 4)
assert torch.equal(ops.gate_heads(x, torch.tensor([0.0, 1.0, 1.0]))[:, :, 1:], x[:, :, 1:])
print(symground.__file__, api.implementation())
"""


def copy_of_sources(folder: Path) -> Path:
    unwanted = shutil.ignore_patterns(
        ".git", ".venv*", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "*.so", "results"
    )
    shutil.copytree(ROOT, folder, symlinks=True, ignore=unwanted)
    return folder


#: Dependency in pyproject.toml → its first version without a known security hole.
SAFE = {
    "filelock": "3.20.3",  # CVE-2025-68146, CVE-2026-22701: symlinks in the place of lock files
    "jinja2": "3.1.6",  # CVE-2025-27516: out of the sandbox
    "pillow": "12.2",  # CVE-2025-48379 (DDS), CVE-2026-25990 (PSD), CVE-2026-40192 (FITS)
    "playwright": "1.56",  # CVE-2025-59288: browsers fetched without a certificate
    "pyarrow": "23.0.1",  # CVE-2026-25087: use after free in IPC files
    "pytest": "9.0.3",  # CVE-2025-71176: predictable folders in /tmp
    "ray": "2.54",  # CVE-2025-62593, CVE-2026-27482: the dashboard obeys a web page
    "setuptools": "78.1.1",  # CVE-2025-47273: a path out of a folder
    "torch": "2.8",  # CVE-2025-32434: torch.load of weights only
    "transformers": "5.0.0",  # CVE-2025-2099 and others: regular expressions; CVE-2026-1839: a pickled random state
}


def test_no_dependency_may_be_of_a_version_with_a_known_hole() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    listed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    listed += [text for extra in extras.values() for text in extra]
    asked = [Requirement(text) for text in listed]
    assert SAFE.keys() <= {requirement.name for requirement in asked}
    for requirement in asked:
        (least,) = [s.version for s in requirement.specifier if s.operator == ">="] or ["0"]
        assert Version(least) >= Version(SAFE.get(requirement.name, "0")), requirement
        if requirement.name != "symground":
            assert requirement.specifier, f"{requirement}: any version, however old"


class Environment:
    """A fresh virtual environment that has this one's packages, but none of its commands and no compiler."""

    def __init__(self, folder: Path, **variables: str) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.bin = folder / "bin"
        (self.site,) = folder.glob("lib/python*/site-packages")
        # This adds the folder but does not read its .pth files, so this package's editable install is not found.
        (self.site / "packages.pth").write_text(f"{PACKAGES}\n", encoding="utf-8")
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CXX", "NVCC", "CUDA_HOME", "PATH")}
        self.variables = {**kept, "PATH": str(self.bin), **variables}

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.variables, **variables}
        first = str(self.bin / command[0])
        return subprocess.run(
            [first, *command[1:]], cwd=cwd or self.bin, env=environment, capture_output=True, text=True, check=False
        )

    def install(self, *arguments: str, **variables: str) -> str:
        done = self.run("python", "-m", "pip", "install", "-v", "--no-deps", *arguments, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def works(self) -> tuple[str, str]:
        """The package's path, and the implementation of gate_heads; nothing else may be printed."""
        done = self.run("python", "-W", "error::RuntimeWarning", "-c", WORKS)
        assert done.returncode == 0, done.stderr
        where, implementation = done.stdout.strip().split(" ", 1)
        return where, implementation


#: Code that writes a page from all templates.
STUDY = [
    "run", "generated", "--generated.scenes", "600", "--generated.nouns", "4", "--models", "gpt2-4l", "--steps", "2",
    "--batch-size", "2", "--length", "24", "--checkpoints", "0", "--what", "surprisal", "saliency",
]  # fmt: skip


def files_in(folder: Path) -> list[Path]:
    """The files of a package, also behind its symlinks to folders."""
    found = [path for path in folder.iterdir() if path.name != "__pycache__"]
    return [file for path in found for file in (files_in(path) if path.is_dir() else [path])]


@pytest.mark.slow
def test_builds_in_isolation_without_torch_and_the_wheel_is_whole(tmp_path: Path) -> None:
    """A wheel from an isolated build is installed in a fresh virtual environment that has this one's torch."""
    source = tmp_path / "source"
    copy_of_sources(source)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(source)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")  # built from the source distribution
    environment = Environment(tmp_path / "venv")
    environment.install("--no-index", "--ignore-installed", str(wheel))
    done = environment.run("python", "-c", SHIPPED)
    assert done.returncode == 0, done.stderr
    where, nouns, contexts, kernels = done.stdout.split()
    assert str(tmp_path) in where
    assert (nouns, contexts, kernels) == ("100", "10", "1")
    shipped = {str(p.relative_to(next((tmp_path / "venv").rglob("symground")))) for p in Path(where).parent.rglob("*")}
    ours = {str(path.relative_to(source / "symground")) for path in files_in(source / "symground")}
    assert {"py.typed", "reports/pages/explorer.js", "kernels/attention/forward.py", "csrc/gate/gate.cpp"} <= ours
    assert ours <= shipped, "every file of the package, also what it can be built of later"
    assert not any(name.endswith(".so") for name in shipped)
    far = tmp_path / "far"
    far.mkdir()
    done = environment.run("symground", *STUDY, cwd=far, HOME=str(far), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    page = (far / "runs" / "generated" / "report.html").read_text(encoding="utf-8")
    script = (source / "symground" / "reports" / "pages" / "explorer.js").read_text(encoding="utf-8")
    assert script.strip().splitlines()[-1] in page


def types_seen(environment: Environment, cwd: Path) -> str:
    """The type of sg.load that mypy with its defaults sees in a user's file."""
    (environment.site / "packages.pth").unlink()  # it would read all of torch
    (cwd / "mine.py").write_text("import symground as sg\n\nreveal_type(sg.load)\n", encoding="utf-8")
    command = ["-m", "mypy", "--python-executable", str(environment.bin / "python"), "--ignore-missing-imports"]
    done = subprocess.run(
        [sys.executable, *command, "--cache-dir", str(cwd / "cache"), "mine.py"],
        cwd=cwd, env=environment.variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (environment.site / "packages.pth").write_text(f"{PACKAGES}\n", encoding="utf-8")
    return done.stdout.partition('Revealed type is "')[2].partition(",")[0] or done.stdout + done.stderr


def others_found(environment: Environment, source: Path, cwd: Path) -> str:
    """The other folders of the repository that can be imported by their names."""
    names = sorted(path.name for path in source.iterdir() if path.is_dir() and path.name.isidentifier())
    assert "kernels" in names
    found = f"(n for n in {names} if n != 'symground' and '{source}' in str(importlib.util.find_spec(n)))"
    return environment.run("python", "-c", f"import importlib.util; print(set({found}))", cwd=cwd).stdout.strip()


@pytest.mark.slow
def test_installs_in_isolation_without_torch_and_without_a_compiler(tmp_path: Path) -> None:
    # A clone has the package's name, and Python started in the folder above must not import the clone as the package.
    source, environment = copy_of_sources(tmp_path / "symground"), Environment(tmp_path / "venv")
    environment.install("-e", str(source))
    where, inside = environment.works()
    assert (Path(where).resolve(), inside) == (source / "symground" / "__init__.py", "plain PyTorch")
    above = environment.run("python", "-c", "import symground as sg; print(sg.__file__, sg.load)", cwd=tmp_path)
    assert above.stdout.startswith(f"{where} <function load"), above.stderr
    assert others_found(environment, source, tmp_path) == "set()", "transformers looks for a package named kernels"
    assert types_seen(environment, tmp_path) == "def (path: str | pathlib.Path"
    lacking = environment.run("symground", "build")
    assert lacking.returncode == 1
    assert "no C++ compiler found (c++, g++ or clang++; CXX names another)" in lacking.stderr
    lacking = environment.run("symground", "build", CXX="no-such-compiler")
    assert lacking.returncode == 1
    assert "no C++ compiler found (CXX=no-such-compiler)" in lacking.stderr


@pytest.mark.slow
@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
def test_beside_torch_it_is_built_and_a_compiler_that_fails_only_warns(tmp_path: Path) -> None:
    source, environment = copy_of_sources(tmp_path / "source"), Environment(tmp_path / "venv")
    beside = ("--no-build-isolation", "--no-index", "-e", str(source))
    ops = source / "symground" / "ops"
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'gate.cpp:1: error: what is this' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    said = environment.install(*beside, CXX=str(broken))
    assert "gate.cpp:1: error: what is this" in said
    assert not list(ops.glob("*.so*"))
    assert environment.works()[1] == "plain PyTorch"
    failing = environment.run("symground", "build", CXX=str(broken))
    assert failing.returncode == 1
    assert "gate.cpp:1: error: what is this" in failing.stderr
    # The installed compiler without optimisation, which would take half a minute.
    quick = tmp_path / "quick"
    quick.write_text(f'#!/bin/sh\nexec {" ".join(build.compiler() or [])} "$@" -O0\n', encoding="utf-8")
    quick.chmod(0o755)
    real = {"PATH": os.environ["PATH"], "CXX": str(quick)}
    environment.install(*beside, **real)
    assert [file.name for file in ops.glob("*.so*")][:1] == [build.FILE]
    assert environment.works()[1] == "extension"
    (ops / build.FILE).unlink()
    built = environment.run("symground", "build", **real)
    assert built.returncode == 0, built.stderr
    assert built.stdout.split()[0] == str(ops / build.FILE)
    torch = build.torch_folder()
    assert torch is not None
    if build.torch_cuda(torch) is None:
        assert "the CUDA part: no torch for CUDA is installed in this Python" in built.stderr
    assert environment.works()[1] == "extension"


@pytest.mark.slow
def test_the_cuda_part_is_built_and_kept_where_nvcc_and_a_torch_for_cuda_are(tmp_path: Path) -> None:
    """Which files are installed and where, with fake compilers that write empty files."""
    source, environment = copy_of_sources(tmp_path / "source"), Environment(tmp_path / "venv")
    stub = tmp_path / "stub"
    told = 'case "$1" in --*) echo "release 13.0"; exit;; esac'  # what nvcc --version says
    stub.write_text(f'#!/bin/sh\n{told}\nfor last; do :; done\n: > "$last"\n', encoding="utf-8")
    stub.chmod(0o755)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    compilers = {"CXX": str(stub), "NVCC": str(stub), "PYTHONPATH": str(tmp_path)}
    for present in ([build.FILE], [build.CUDA_FILE, build.FILE]):
        environment.install("--no-build-isolation", "--no-index", "-e", str(source), **compilers)
        assert sorted(file.name for file in (source / "symground" / "ops").glob("*.so*")) == sorted(present)
        (tmp_path / "torch" / "version.py").write_text("cuda = '13.0'\n", encoding="utf-8")  # for the second round


SAME = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from symground import ops
from symground.ops.gate import api
assert api.implementation() == "extension", api.implementation()
x = torch.arange(2 * 7 * 3 * 5, dtype=torch.float64).sin().view(2, 7, 3, 5)
gate = torch.tensor([[0.0, 1.0, 0.5], [0.3, 1.0, 0.0]], dtype=torch.float64)
z = ops.gate_heads(x, gate, x[0, 0] * 2)
q = x.transpose(1, 2).contiguous().requires_grad_()
probe = torch.zeros(1, dtype=torch.float64).expand(2, 7, 7).requires_grad_()
out, lse = ops.attention(q, q, q, gate=gate, saliency_probe=probe, impl="cpu")
out.square().sum().backward()
print(json.dumps([torch.__version__, *(t.detach().flatten().tolist() for t in (z, out, lse, q.grad, probe.grad))]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("SYMGROUND_OTHER_PYTHON"),
    reason="SYMGROUND_OTHER_PYTHON names no Python with numpy and another torch, 2.11 or later",
)
@pytest.mark.skipif(not (build.HERE / build.FILE).exists(), reason="the C++ extension is not built: symground build")
def test_one_build_serves_another_torch() -> None:
    found = []
    for interpreter in (sys.executable, os.environ["SYMGROUND_OTHER_PYTHON"]):
        done = subprocess.run(
            [interpreter, "-W", "error::RuntimeWarning", "-c", SAME, str(ROOT)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    (ours, *expected), (theirs, *values) = found
    assert ours != theirs, "another torch, to say something"
    assert values[0] == expected[0], "gate_heads, bit for bit"
    for a, b in zip(values, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-12, abs=1e-14)
