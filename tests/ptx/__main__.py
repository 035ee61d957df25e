"""All tests of the Triton kernels, on compiled kernels that the emulator runs.

    python -m tests.ptx                        # every file for each architecture → tests/ptx/results
    python -m tests.ptx --architecture sm_90 --file ssd
    python -m tests.ptx --table                # the page from the files

A run of one file takes up to an hour on one core, most of it in Triton's compiler. A file's counts are written when its
tests have passed, so that a run goes on where it was stopped; remove them to run it again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
ARCHITECTURES = ("sm_80", "sm_90")
#: What is counted of a kernel.
COUNTS = ("compiled", "launches", "programs")
FILES = {
    "attention": "tests/ops/attention/test_triton.py",
    "options": "tests/ops/attention/test_triton_options.py",
    "shapes": "tests/ops/attention/test_triton_shapes.py",
    "weights": "tests/ops/attention/test_triton_weights.py",
    "ssd": "tests/ops/ssd/test_triton.py",
    "vocabulary": "tests/ops/vocabulary/test_triton.py",
    "drawn": "tests/ops/common/test_kinds_triton.py",
    "planted": "tests/ptx/planted.py",
}


def environment(architecture: str, counts: Path) -> dict[str, str]:
    """The variables of a process in which pytest has `tests/ptx/plugin.py`."""
    return {
        "SYMGROUND_EMULATE": architecture, "SYMGROUND_EMULATE_COUNTS": str(counts), "TRITON_INTERPRET": "0",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip


def run(architecture: str, name: str) -> bool:
    """Run a file's tests; whether they passed."""
    counts = RESULTS / f"{name}.{architecture}.json"
    if counts.exists():
        print(f"{name} for {architecture}: {counts} is there")
        return True
    RESULTS.mkdir(exist_ok=True)
    partial = counts.with_suffix(".partial")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.ptx.plugin", FILES[name]]
    done = subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, **environment(architecture, partial)})
    if done.returncode == 0:
        partial.replace(counts)
    else:
        partial.unlink(missing_ok=True)
    return done.returncode == 0


def table() -> str:
    """The page: for each kernel and architecture the compiled kernels, launches and programs that ran."""
    kernels: dict[tuple[str, str], Counter[str]] = {}
    tests: Counter[str] = Counter()
    opcodes: dict[str, Counter[str]] = {}
    tiles: dict[tuple[str, str], set[tuple[str | int, ...]]] = {}
    for file in sorted(RESULTS.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        tests[found["architecture"]] += found["tests"]
        opcodes.setdefault(found["architecture"], Counter()).update(found["instructions"])
        for name, of in found["kernels"].items():
            key = name, found["architecture"]
            kernels.setdefault(key, Counter()).update({count: of[count] for count in COUNTS})
            tiles.setdefault(key, set()).update(map(tuple, of["tiles"]))
    lines = ["# Compiled kernels that have run on the emulator", ""]
    for architecture, count in tests.items():
        ran = [of for (_, on), of in kernels.items() if on == architecture]
        total = {key: sum(of[key] for of in ran) for key in COUNTS}
        lines.append(
            f"{architecture}: {count} tests passed; {len(ran)} kernels, compiled {total['compiled']} times, "
            f"{total['launches']:,} launches of {total['programs']:,} programs, "
            f"{opcodes[architecture].total():,} instructions of {len(opcodes[architecture])} kinds. No faults.\n"
        )
    lines += ["| kernel | architecture | compiled for | tiles | launches | programs |", "|---" * 6 + "|"]
    lines += [
        f"| {key[0].removesuffix('_kernel')} | {key[1]} | {of['compiled']} | {len(tiles[key])} | {of['launches']:,} | "
        f"{of['programs']:,} |"
        for key, of in sorted(kernels.items())
    ]
    return "\n".join([*lines, "", "Written by `python -m tests.ptx --table`."]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--file", nargs="+", choices=FILES, default=FILES)
    parser.add_argument("--table", action="store_true", help="write results/README.md, and run nothing")
    arguments = parser.parse_args()
    failed = [] if arguments.table else [
        f"{name} for {on}" for on in arguments.architecture for name in arguments.file if not run(on, name)
    ]  # fmt: skip
    (RESULTS / "README.md").write_text(table(), encoding="utf-8")
    print("\n".join(["failed:", *failed]) if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
