"""Building the extension's CUDA part: what it is compiled for, what it needs, and what is refused. No GPU is needed."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import cpp_extension

from symground.ops.common import build, extension
from tests.ops.common.host import compiled_for_the_host

#: What nvcc 13.0 prints.
KNOWN = "sm_75\nsm_80\nsm_86\nsm_87\nsm_88\nsm_89\nsm_90\nsm_100\nsm_110\nsm_103\nsm_120\nsm_121\n"


def a_torch(folder: Path, cuda: str | None) -> Path:
    """A folder like torch's, built for this CUDA."""
    (folder / "torch").mkdir()
    text = f"__all__ = ['cuda', 'hip']\ncuda: Optional[str] = {cuda!r}\nhip: Optional[str] = '6.4'\n"
    (folder / "torch" / "version.py").write_text(text, encoding="utf-8")
    return folder / "torch"


def an_nvcc(folder: Path, release: str, *lines: str) -> str:
    """A command that tells its release as nvcc does, and runs ``lines`` of shell where it is asked to compile."""
    script = folder / "nvcc"
    told = f'case "$*" in --version) echo "{release}"; exit;; --list-gpu-code) echo "{KNOWN}"; exit;; esac'
    script.write_text("\n".join(["#!/bin/sh", told, *lines, ""]), encoding="utf-8")
    script.chmod(0o755)
    return str(script)


RELEASE = "Cuda compilation tools, release {}, V{}.88"


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Puts a torch for ``cuda`` and an nvcc that says ``release`` in the place of this machine's."""

    def put(cuda: str | None, release: str = RELEASE.format("13.0", "13.0"), *lines: str) -> str:
        folder, command = a_torch(tmp_path, cuda), an_nvcc(tmp_path, release, *lines)
        monkeypatch.setattr(build, "torch_folder", lambda: folder)
        monkeypatch.setattr(build, "nvcc", lambda: command)
        monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
        return command

    return put


def test_the_cuda_of_a_torch_is_what_torch_says() -> None:
    folder = build.torch_folder()
    assert folder is not None
    assert build.torch_cuda(folder) == torch.version.cuda
    assert build.torch_cuda(folder / "no such folder") is None


def test_a_missing_part_is_named(tmp_path: Path, given: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    given("13.0", RELEASE, "echo 'gate.cu(1): error: what is this' >&2", "exit 2")
    with pytest.raises(FileNotFoundError, match="expected sources in"):
        build.build_cuda(tmp_path, sources=tmp_path)
    monkeypatch.setattr(build, "nvcc", lambda: None)
    with pytest.raises(FileNotFoundError, match="no nvcc found"):
        build.build_cuda(tmp_path)


@pytest.mark.parametrize("here", [False, True])
def test_a_torch_for_no_cuda_is_named(
    here: bool, tmp_path: Path, given: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ROCm's torch is not for CUDA either."""
    given(None)
    if not here:
        monkeypatch.setattr(build, "torch_folder", lambda: None)
    with pytest.raises(FileNotFoundError, match="no torch for CUDA is installed"):
        build.build_cuda(tmp_path)


def test_what_nvcc_says_is_passed_on_and_nothing_is_left(tmp_path: Path, given: Callable[..., str]) -> None:
    release = RELEASE.format("13.2", "13.2")  # minor versions of one CUDA fit each other
    given("13.0", release, "echo 'gate.cu(1): error: what is this' >&2", "exit 2")
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match=r"failed: gate\.cu\(1\): error: what is this"):
        build.build_cuda(out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("cuda", "release", "got"),
    [
        ("13.0", RELEASE.format("12.8", "12.8"), "release 12.8"),
        ("12.6", RELEASE.format("13.0", "13.0"), "release 13.0"),
        ("1.3", RELEASE.format("13.0", "13.0"), "release 13.0"),
        ("13.0", "clang version 20", "one that does not tell its release"),
    ],
)
def test_an_nvcc_of_another_cuda_is_refused(
    cuda: str, release: str, got: str, tmp_path: Path, given: Callable[..., str]
) -> None:
    command = given(cuda, release)
    major, _, _ = cuda.partition(".")
    said = f"expected nvcc of CUDA {major}, as torch is built for {cuda}; got {got} ({command}). Set CUDA_HOME to a"
    with pytest.raises(RuntimeError, match=re.escape(said)):
        build.build_cuda(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cuda_part_for_another_cuda_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / build.CUDA_FILE).touch()
    operators = SimpleNamespace(version=lambda: build.VERSION, cuda=lambda: 12)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(torch.ops, "built_elsewhere", operators, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extension.load(tmp_path / build.CUDA_FILE, "built_elsewhere", "12.8") is operators
    said = r"_CUDA\.so is not used, .*: it is built for CUDA 12, and torch for CUDA 13\.0\. To rebuild: symground build"
    with pytest.warns(RuntimeWarning, match=said):
        assert extension.load(tmp_path / build.CUDA_FILE, "built_elsewhere", "13.0") is None
    operators.version = lambda: build.VERSION - 1
    with pytest.warns(RuntimeWarning, match="it is version .* of the sources, the package expects"):
        assert extension.load(tmp_path / build.CUDA_FILE, "built_elsewhere", "12.8") is None


@pytest.mark.skipif(build.nvcc() is None or build.compiler() is None, reason="no nvcc, whose headers this needs")
def test_the_cuda_part_tells_what_it_was_built_from(tmp_path: Path) -> None:
    source = (build.SOURCES / "common" / "versions.cu").read_text(encoding="utf-8")
    library = compiled_for_the_host(source, tmp_path, f"-DSYMGROUND_VERSION={build.VERSION}")
    code = "import sys, torch; torch.ops.load_library(sys.argv[1]); c = torch.ops.symground_CUDA"
    command = [sys.executable, "-c", f"{code}; print(c.version(), c.cuda())", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = subprocess.run([str(build.nvcc()), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"release (\d+)", said.stdout)
    assert found
    assert done.stdout.split() == [str(build.VERSION), found[1]]
