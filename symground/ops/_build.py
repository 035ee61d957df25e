"""Builds the C++ extension: one call of the compiler. setup.py reads this file too, where there may be no torch.

The sources see torch's stable ABI only: the result serves every Python, and every torch from 2.11 on.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
from pathlib import Path

FILE = "_C.so"
VERSION = 4  # of the operators' signatures: one more with each change, so that an older build is not called

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent / "csrc"
# contract: a·b + c may be one instruction; no option here touches infinities or NaN.
FLAGS = (
    "-O3 -std=c++20 -fPIC -shared -fvisibility=hidden -ffp-contract=fast -fopenmp-simd -fno-math-errno "
    "-fno-trapping-math -DTORCH_TARGET_VERSION=0x020b000000000000"
)


def compiler() -> list[str] | None:
    """$CXX, or the first C++ compiler found; None where there is none."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    return [found] if found else None


def torch_folder() -> Path | None:
    """Where torch is installed, without importing it."""
    spec = importlib.util.find_spec("torch")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def build(folder: Path = HERE, sources: Path = SOURCES) -> Path:
    """Compile csrc/*.cpp to ``folder``/_C.so and return its path.

    Raises:
        FileNotFoundError: no compiler, no torch, or no sources.
        RuntimeError: the compiler failed; the message has its first error.
    """
    files = sorted(sources.glob("*.cpp"))
    command, torch = compiler(), torch_folder()
    if not files:
        raise FileNotFoundError(f"the extension: expected C++ sources in {sources}, found none")
    if torch is None:
        raise FileNotFoundError("the extension: torch is not installed in this Python")
    if command is None or shutil.which(command[0]) is None:
        tried = "c++, g++ or clang++; CXX names another" if command is None else f"CXX={command[0]}"
        raise FileNotFoundError(f"the extension: no C++ compiler found ({tried})")
    # Beside its place first, then moved: a process that has loaded the old one keeps it whole.
    target, fresh = folder / FILE, folder / f"{FILE}.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [*command, *FLAGS.split(), f"-DSYMGROUND_VERSION={VERSION}", f"-I{torch / 'include'}", *map(str, files)]
    arguments += [f"-L{torch / 'lib'}", "-ltorch_cpu", "-o", str(fresh)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            first = next((line for line in lines if "error" in line), lines[-1])
            raise RuntimeError(f"the extension: {shlex.join(command)} failed: {first}")
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    return target
