"""The parts of the GPU record that do not time kernels. Each adds to its record, and stops when its time is over."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu.context import ROOT, TAIL, Context, Missing

# machine


def machine(c: Context) -> None:
    import torch

    versions = {}
    ours = ("torch", "triton", "transformers", "numpy", "xarray", "pandas")
    for module in (*ours, "flash_attn", "mamba_ssm", "causal_conv1d"):
        try:
            versions[module] = importlib.import_module(module).__version__
        except Exception as error:
            c.record["missing"][module] = f"does not import: {error}"
    c.record.write(versions={"python": platform.python_version(), "cuda": torch.version.cuda, **versions}, git=_git())
    if not c.dry:
        p = torch.cuda.get_device_properties(0)
        c.record.write(
            gpu=p.name, capability=[p.major, p.minor], multiprocessors=p.multi_processor_count, memory=p.total_memory,
            driver=_output("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit",
                           "--format=csv,noheader"),
        )  # fmt: skip
    c.record.write(rates=_rates(c))


def _rates(c: Context) -> dict[str, float]:
    from benchmarks.common import measure

    return measure.machine_rates(c.device)


def _git() -> dict[str, str | None]:
    return {
        "revision": _output("git", "rev-parse", "HEAD"),
        "changed": _output("git", "status", "--porcelain", "--untracked-files=no"),
    }


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# gate


def gate(c: Context) -> None:
    """Measure gate_heads: tests, error, speed. It needs the extension's CUDA part, which is carried and not built."""
    from benchmarks.gpu import timings

    if not c.dry:
        if reason := _cuda_part_lacks():
            raise Missing("the extension's CUDA part", reason)
        code, output = _run(c, [*PYTEST, "tests/ops/gate/test_cuda.py"])
        c.record.write(tests=output[-TAIL:])
        if code != 0:
            c.write_failure(f"tests/ops/gate/test_cuda.py ended with {code}")
    timings.gate(c)


def _cuda_part_lacks() -> str | None:
    """Why the extension's CUDA part cannot be used here; None if it is."""
    import torch

    from symground.ops.common import build, extension

    if extension.cuda is not None:
        return None
    absent = [name for name in (build.FILE, build.CUDA_FILE) if not (build.HERE / name).exists()]
    if absent:
        return f"symground/ops has no {' and no '.join(absent)}: build them with nvcc elsewhere and carry them along"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        extension.load(build.HERE / build.FILE)
        extension.load(build.HERE / build.CUDA_FILE, "symground_CUDA", torch.version.cuda)
    return "; ".join(str(w.message) for w in said) or "it is switched off by SYMGROUND_DISABLE"


# tests


PYTEST = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"]


def tests(c: Context) -> None:
    """Run the kernels' tests in bfloat16 in a few processes, because most of their time is compilation on one core.

    A dry run only collects those in float16, since the interpreter has no right bfloat16; the suite itself runs them.
    """
    tests = ("attention/test_triton.py", "attention/test_flash.py", "vocabulary/test_triton.py", "ssd/test_triton.py")
    files = [f"tests/ops/{name}" for name in tests if (ROOT / "tests/ops" / name).exists()]
    if not files:
        raise Missing("tests/ops/attention/test_triton.py", "no such file")
    code, output = _run(c, [*PYTEST, "--collect-only", "-k", "float16" if c.dry else "bfloat16", *files])
    # -q prints a line for each test.
    names = [line for line in output.splitlines() if "::" in line and line.startswith("tests/")]
    c.record.write(files=files, collected=len(names), collected_only=c.dry, output_tail=output[-2000:])
    if code != 0 or not names:
        c.write_failure(f"pytest ended with {code} and {len(names)} tests collected")
    elif not c.dry:
        _run_tests(c, names, processes=max(1, min(6, (os.cpu_count() or 2) // 2)))


def _run_tests(c: Context, names: list[str], processes: int) -> None:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        junits = [Path(folder) / f"{i}.xml" for i in range(processes)]
        commands = [[*PYTEST, f"--junitxml={junit}", *names[i::processes]] for i, junit in enumerate(junits)]
        done = list(pool.map(lambda command: _run(c, command), commands))
        counts: dict[str, int] = {}
        for (code, output), junit in zip(done, junits, strict=True):
            of_one = _counts(junit)
            for key, n in of_one.items():
                counts[key] = counts.get(key, 0) + n
            c.record.add(exit_status=code, counts=of_one, output_tail=output[-TAIL:])
            if code not in (0, 5):  # 5: this process got no tests
                c.write_failure(f"pytest ended with {'its time limit' if code is None else code}")
    c.record.write(counts=counts, not_run=len(names) - counts.get("tests", 0))


def _counts(junit: Path) -> dict[str, int]:
    try:
        suites = ElementTree.parse(junit).getroot().iter("testsuite")
    except (OSError, ElementTree.ParseError):
        return {}
    names = ("tests", "failures", "errors", "skipped")
    total = dict.fromkeys(names, 0)
    for suite in suites:
        for name in names:
            total[name] += int(suite.get(name, 0))
    return total


def _run(c: Context, command: list[str]) -> tuple[int | None, str]:
    """(exit status, output); the status is None if the time ran out, and then the output is incomplete."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            code: int | None = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=max(c.left, 1.0)
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        log.seek(0)
        return code, log.read()


# sanitizer


#: At once, because they wait for the host most of the time.
TOOLS = ("memcheck", "racecheck", "initcheck")


def sanitizer(c: Context) -> None:
    c.needs_cuda("compute-sanitizer")
    tool = shutil.which("compute-sanitizer") or next(
        (str(p) for p in Path("/usr/local").glob("cuda*/bin/compute-sanitizer")), None
    )
    if tool is None:
        raise Missing("compute-sanitizer", "not found on PATH or under /usr/local/cuda*")
    # The kernels are compiled and cached first, because compiling under the tool is slow. The caching allocator is off,
    # because with it the memory beyond a tensor would count as allocated.
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    script = [sys.executable, "-m", "benchmarks.gpu.every_op"]
    code, output = _run(c, script)
    if code != 0:
        raise RuntimeError(f"every_op ended with {code}: {output[-1500:]}")

    def checked(name: str) -> dict[str, Any]:
        start = time.monotonic()
        code, output = _run(c, [tool, "--tool", name, "--error-exitcode", "86", *script])
        status = {0: "clean", 86: "errors found", None: "timed out"}.get(code, f"ended with {code}")
        seconds = round(time.monotonic() - start, 1)
        return {"tool": name, "status": status, "seconds": seconds, "output_tail": output[-2500:]}

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        for row in pool.map(checked, TOOLS):
            c.record.add(**row)
            if row["status"] not in ("clean", "timed out"):
                c.write_failure(f"{row['tool']}: {row['status']}")
