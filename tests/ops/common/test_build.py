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


def codes(architectures: list[str]) -> list[str]:
    return sorted(flag for flag in build.cuda_flags(Path("torch"), architectures) if flag.startswith("-gencode"))


@pytest.mark.parametrize(
    "asked",
    ["9.0", "8.0;9.0+PTX", "8.0 9.0", "8.0 8.6;9.0a", "10.0+PTX", "Hopper", "Ampere", "Ampere+Tegra", "8.0;Hopper"],
)
def test_an_architecture_list_means_what_it_means_to_torch(
    asked: str, given: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = given("13.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert codes(build.cuda_architectures(command)) == cpp_extension._get_cuda_arch_flags()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("90", ["90"]),
        ("80 90+PTX", ["80", "90+PTX"]),
        ("8.0;90", ["80", "90"]),
        ("120;12.1", ["120", "121"]),
        ("8.0;80 8.0", ["80"]),
        (" 8.0 ; 9.0; ", ["80", "90"]),
        ("Blackwell", ["100", "103", "120", "121+PTX"]),
    ],
)
def test_the_dot_may_be_left_out(
    asked: str, expected: list[str], given: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = given("13.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert build.cuda_architectures(command) == expected


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ("8.0;nine", "nine"), ("8.0,9.0", "8.0,9.0"), ("sm_90", "sm_90"), ("9", "9"), ("hopper", "hopper"),
        ("9.0+ptx", "9.0+ptx"), ("8.0;9.0b", "9.0b"), ("Hopper+PTX", "Hopper+PTX"), ("native;8.0", "native"),
    ],
)  # fmt: skip
def test_what_is_no_architecture_is_refused(
    asked: str, word: str, tmp_path: Path, given: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given("13.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    said = f"Hopper, .* or native; got {re.escape(repr(word))} in {re.escape(repr(asked))}"
    with pytest.raises(ValueError, match=f"TORCH_CUDA_ARCH_LIST: expected architectures such as .*{said}"):
        build.build_cuda(tmp_path / "out")


@pytest.mark.parametrize("word", ["7.0", "70", "13.0", "9.1+PTX"])
def test_an_architecture_that_nvcc_does_not_know_is_refused(
    word: str, tmp_path: Path, given: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given("13.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", f"8.0;{word}")
    with pytest.raises(ValueError, match=f"that this nvcc knows, 75, 80, .*; got {re.escape(repr(word))} in '8.0;"):
        build.build_cuda(tmp_path / "out")


@pytest.mark.parametrize("unset", [None, "", "native"])
@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ("9.0\n8.0\n9.0\n", ["80", "90+PTX"]),
        ("8.9\n12.0\n", ["89", "120+PTX"]),
        ("13.0\n", ["80", "86", "90", "100+PTX"]),  # later than this nvcc: PTX is what it can have
        ("[N/A]\n", ["80", "86", "90", "100+PTX"]),
        ("", ["80", "86", "90", "100+PTX"]),
    ],
)
def test_unset_it_is_this_machines_gpus_or_the_usual(
    unset: str | None, present: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    if unset is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", unset)
    monkeypatch.setattr(build, "_printed", lambda *command: present if "nvidia-smi" in command else KNOWN)
    assert build.cuda_architectures("nvcc") == expected
