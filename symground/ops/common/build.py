"""Builds the C++/CUDA extension with one call of each compiler. setup.py reads this file too, possibly without torch.

The sources use only torch's stable ABI, so the result works with every Python and with every torch from 2.11 on.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

FILE, CUDA_FILE = "_C.so", "_CUDA.so"
VERSION = 8  # of the operators; raised with each change of their arguments or behaviour

HERE = Path(__file__).resolve().parent.parent
SOURCES = HERE.parent / "csrc"
_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
# -ffp-contract=fast allows fused multiply-add. No option here changes infinities or NaN.
FLAGS = (
    "-O3 -std=c++20 -fPIC -shared -fvisibility=hidden -ffp-contract=fast -fopenmp-simd -fno-math-errno "
    f"-fno-trapping-math {_ABI}"
)
CUDA_FLAGS = f"-O3 -std=c++20 -DUSE_CUDA {_ABI} -Xcompiler -fPIC,-fvisibility=hidden"
#: Used on a machine without a GPU if SYMGROUND_CUDA_ARCHITECTURES is unset; later GPUs use the last one's PTX.
CUDA_ARCHITECTURES = ("80", "86", "90", "100")


def compiler() -> list[str] | None:
    """$CXX, or the first C++ compiler found; None if there is none."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    return [found] if found else None


def torch_folder() -> Path | None:
    """Where torch is installed, without importing it."""
    spec = importlib.util.find_spec("torch")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def nvcc() -> str | None:
    """CUDA's compiler: $NVCC, on the PATH, in $CUDA_HOME or in its default folder; None if it is in none of these."""
    homes = [home for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    places = [os.environ.get("NVCC"), "nvcc", *(f"{home}/bin/nvcc" for home in homes)]
    return next((found for place in places if place and (found := shutil.which(place))), None)


def torch_cuda(torch: Path) -> str | None:
    """The CUDA that the torch in this folder is built for, such as "13.0", without importing it; None for none."""
    file = torch / "version.py"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    found = re.search(r"^cuda\b.*= *['\"](\d+\.\d+)", text, re.MULTILINE)
    return found[1] if found else None


def build(folder: Path = HERE, sources: Path = SOURCES) -> Path:
    """Compile the .cpp files of csrc/ to ``folder``/_C.so and return its path.

    Raises:
        FileNotFoundError: no compiler, no torch, or no sources.
        RuntimeError: the compiler failed; the message has its first error.
    """
    files = sorted(sources.rglob("*.cpp"))
    command, torch = compiler(), torch_folder()
    if not files:
        raise FileNotFoundError(f"the extension: expected C++ sources in {sources}, found none")
    if torch is None:
        raise FileNotFoundError("the extension: torch is not installed in this Python")
    if command is None or shutil.which(command[0]) is None:
        tried = "c++, g++ or clang++; CXX names another" if command is None else f"CXX={command[0]}"
        raise FileNotFoundError(f"the extension: no C++ compiler found ({tried})")
    flags = [*FLAGS.split(), f"-DSYMGROUND_VERSION={VERSION}", f"-I{torch / 'include'}"]
    return _compile(command, flags, [*map(str, files), f"-L{torch / 'lib'}", "-ltorch_cpu"], folder / FILE)


def build_cuda(folder: Path = HERE, sources: Path = SOURCES) -> Path:
    """Compile the .cu files of csrc/ to ``folder``/_CUDA.so, beside _C.so, and return its path.

    Raises:
        FileNotFoundError: no nvcc, no torch for CUDA, or no sources.
        RuntimeError: nvcc is of another CUDA than torch, or it failed; the message has its first error.
    """
    files = sorted(sources.rglob("*.cu"))
    command, torch = nvcc(), torch_folder()
    if not files:
        raise FileNotFoundError(f"the CUDA part: expected sources in {sources}, found none")
    cuda = None if torch is None else torch_cuda(torch)
    if torch is None or cuda is None:
        raise FileNotFoundError("the CUDA part: no torch for CUDA is installed in this Python")
    if command is None:
        raise FileNotFoundError("the CUDA part: no nvcc found (on the PATH, in CUDA_HOME, or as NVCC)")
    _check_same_cuda(command, cuda)
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-ltorch_cuda"]
    flags = cuda_flags(torch, cuda_architectures(command))
    return _compile([command], flags, ["-shared", *map(str, files), *libraries], folder / CUDA_FILE)


def _check_same_cuda(command: str, cuda: str) -> None:
    """Refuse an nvcc of another major version than torch's CUDA: only within one do runtimes and drivers fit."""
    found, major = re.search(r"release (\d+)\.\d+", _printed(command, "--version")), cuda.partition(".")[0]
    if found is None or found[1] != major:
        got = "one that does not tell its release" if found is None else found[0]
        raise RuntimeError(
            f"the CUDA part: expected nvcc of CUDA {major}, as torch is built for {cuda}; got {got} ({command}). Set "
            f"CUDA_HOME to a toolkit of CUDA {major}, NVCC to its nvcc, or install torch for the CUDA that is here"
        )


def cuda_flags(torch: Path, architectures: Sequence[str]) -> list[str]:
    """nvcc's options: machine code for each architecture, and PTX for the last; the caller adds the kind of output."""
    codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    codes.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    host = compiler() if os.environ.get("CXX") else None
    by = ["-ccbin", host[0]] if host else []
    return [*CUDA_FLAGS.split(), *codes, *by, f"-DSYMGROUND_VERSION={VERSION}", f"-I{torch / 'include'}"]


def cuda_architectures(command: str) -> list[str]:
    """Those in SYMGROUND_CUDA_ARCHITECTURES, else those of this machine's GPUs, else the usual ones that nvcc knows."""
    asked = os.environ.get("SYMGROUND_CUDA_ARCHITECTURES", "").split()
    present = _printed("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").replace(".", "").split()
    known = _printed(command, "--list-gpu-code").split()
    usual = [name for name in CUDA_ARCHITECTURES if f"sm_{name}" in known] or list(CUDA_ARCHITECTURES)
    return asked or sorted(set(present), key=int) or usual


def _printed(*command: str) -> str:
    """The command's output; empty if it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _compile(command: list[str], flags: list[str], files: list[str], target: Path) -> Path:
    # Built beside its target, then moved: a process that has loaded the old file keeps its own copy.
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run([*command, *flags, *files, "-o", str(fresh)], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            first = next((line for line in lines if "error" in line), lines[-1])
            raise RuntimeError(f"the extension: {shlex.join(command)} failed: {first}")
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    return target
