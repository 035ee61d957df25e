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
VERSION = 10  # of the operators; raised with each change of their arguments or behaviour

HERE = Path(__file__).resolve().parent.parent
SOURCES = HERE.parent / "csrc"
_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
# -ffp-contract=fast allows fused multiply-add. No option here changes infinities or NaN.
FLAGS = (
    "-O3 -std=c++20 -fPIC -shared -fvisibility=hidden -ffp-contract=fast -fopenmp-simd -fno-math-errno "
    f"-fno-trapping-math {_ABI}"
)
CUDA_FLAGS = f"-O3 -std=c++20 -DUSE_CUDA {_ABI} -Xcompiler -fPIC,-fvisibility=hidden"
#: Used on a machine without a GPU if TORCH_CUDA_ARCH_LIST is unset; later GPUs use the last one's PTX.
CUDA_ARCHITECTURES = ("80", "86", "90", "100")
#: What torch.utils.cpp_extension lets TORCH_CUDA_ARCH_LIST name.
NAMED_ARCHITECTURES = {
    "Volta": "7.0+PTX", "Volta+Tegra": "7.2", "Turing": "7.5+PTX", "Ampere": "8.0;8.6+PTX", "Ampere+Tegra": "8.7",
    "Ada": "8.9+PTX", "Hopper": "9.0+PTX", "Blackwell": "10.0;10.3;12.0;12.1+PTX", "Blackwell+Tegra": "11.0",
    "Rubin": "10.7+PTX",
}  # fmt: skip


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
        ValueError: TORCH_CUDA_ARCH_LIST names what is no architecture, or one that this nvcc does not know.
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
    """nvcc's options for :func:`cuda_architectures`; the caller adds the kind of output."""
    codes = []
    for architecture in architectures:
        number, _, ptx = architecture.partition("+")
        codes += [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in ("sm", "compute")[: 1 + bool(ptx)]]
    host = compiler() if os.environ.get("CXX") else None
    by = ["-ccbin", host[0]] if host else []
    return [*CUDA_FLAGS.split(), *codes, *by, f"-DSYMGROUND_VERSION={VERSION}", f"-I{torch / 'include'}"]


def cuda_architectures(command: str) -> list[str]:
    """What ``command``, an nvcc, is to compile for, such as ["80", "90+PTX"].

    These are the architectures of TORCH_CUDA_ARCH_LIST, which is read as torch reads it ("8.0;9.0+PTX", "Hopper"); the
    dot may be left out. If it is unset or "native", they are those of this machine's GPUs, else the usual ones that
    nvcc knows. PTX of the last is then added, for later GPUs.

    Raises:
        ValueError: TORCH_CUDA_ARCH_LIST has something else, or what this nvcc does not know.
    """
    known = re.findall(r"sm_(\w+)", _printed(command, "--list-gpu-code"))
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;")
    if asked not in ("", "native"):
        return _asked_for(asked, known)
    present = _printed("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    numbers = sorted({major + minor for major, minor in re.findall(r"^(\d+)\.(\d)$", present, re.MULTILINE)}, key=int)
    found = [number for number in numbers if number in known or not known]
    usual = [name for name in CUDA_ARCHITECTURES if name in known] or list(CUDA_ARCHITECTURES)
    *others, last = found or usual
    return [*others, f"{last}+PTX"]


def _asked_for(asked: str, known: Sequence[str]) -> list[str]:
    """The architectures that a list in TORCH_CUDA_ARCH_LIST asks for, each once."""
    words = [word for name in re.findall(r"[^ ;]+", asked) for word in NAMED_ARCHITECTURES.get(name, name).split(";")]
    architectures = []
    for word in words:
        found = re.fullmatch(r"(\d+)\.?(\d)(a?)(\+PTX)?", word)
        if found is None:
            raise ValueError(
                "TORCH_CUDA_ARCH_LIST: expected architectures such as '8.0;9.0+PTX' or '80 90', "
                f"{', '.join(NAMED_ARCHITECTURES)} or native; got {word!r} in {asked!r}"
            )
        if known and found[1] + found[2] not in known:
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST: expected architectures that this nvcc knows, {', '.join(known)}; got {word!r} "
                f"in {asked!r}"
            )
        architectures.append("".join(part or "" for part in found.groups()))
    return list(dict.fromkeys(architectures))


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
