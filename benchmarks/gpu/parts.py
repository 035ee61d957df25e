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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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


BUILD = """
import sys
from symground.ops.common import build
for make in (build.build, build.build_cuda):
    try:
        print("built", make().name)
    except (FileNotFoundError, RuntimeError) as error:
        print("missing", error)
"""


def gate(c: Context) -> None:
    """Build both parts of the extension for all later parts; then measure gate_heads: tests, error, speed.

    A dry run builds nothing, because it must not change the folder.
    """
    if not c.dry:
        _, output = _run(c, [sys.executable, "-W", "ignore", "-c", BUILD])
        said = [line.partition(" ")[::2] for line in output.splitlines() if line.startswith(("built ", "missing "))]
        lacking = [text for kind, text in said if kind == "missing"]
        c.record.write(built=[text for kind, text in said if kind == "built"], output_tail=output[-TAIL:])
        if len(said) != 2 or lacking:
            reason = "; ".join(lacking) or "the build did not end"
            raise Missing("the extension's CUDA part", reason)
        code, output = _run(c, [*PYTEST, "tests/ops/gate/test_cuda.py"])
        c.record.write(tests=output[-TAIL:])
        if code != 0:
            c.write_failure(f"tests/ops/gate/test_cuda.py ended with {code}")
    # Imported after the build, because an extension that is imported already is not loaded again.
    from benchmarks.gpu import timings

    timings.gate(c)


# tests


PYTEST = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"]


def tests(c: Context) -> None:
    """Run the kernels' tests in a few processes, because most of their time is compilation on one core.

    A dry run only collects them; the suite itself runs them.
    """
    tests = (
        "attention/test_triton.py", "attention/test_triton_shapes.py", "attention/test_flash.py",
        "vocabulary/test_triton.py", "ssd/test_triton.py", "common/test_packages.py",
    )  # fmt: skip
    files = [f"tests/ops/{name}" for name in tests if (ROOT / "tests/ops" / name).exists()]
    if not files:
        raise Missing("tests/ops/attention/test_triton.py", "no such file")
    code, output = _run(c, [*PYTEST, "--collect-only", *files])
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
    for name in ("memcheck", "racecheck", "initcheck"):
        start = time.monotonic()
        code, output = _run(c, [tool, "--tool", name, "--error-exitcode", "86", *script])
        status = {0: "clean", 86: "errors found", None: "timed out"}.get(code, f"ended with {code}")
        c.record.add(tool=name, status=status, seconds=round(time.monotonic() - start, 1), output_tail=output[-2500:])
        if code not in (0, None):
            c.write_failure(f"{name}: {status}")
        if c.left < 3:
            break


# determinism


def determinism(c: Context) -> None:
    """Check that every repeat gives the same bits, by torch.equal, for which NaN is not equal to NaN."""
    import torch

    from benchmarks.gpu.every_op import CASES, results

    repeats = 2 if c.dry else 100
    for dtype in c.dtypes:
        for name, case in CASES.items():
            if c.dry and name != "tiny":
                continue
            inputs = case(dtype, c.device)
            first = results(inputs, c.impl)
            different: dict[str, int] = {}
            done = 0
            while done < repeats and c.left > 0:
                for key, value in results(inputs, c.impl).items():
                    if not torch.equal(value, first[key]):
                        different[key] = different.get(key, 0) + 1
                done += 1
            finite = all(bool(x.isfinite().all()) for key, x in first.items() if key != "lse")
            c.record.add(
                case=name, dtype=dtype, repeats=done, asked=repeats, compared=list(first), different=different,
                finite=finite,
            )  # fmt: skip
            if different or not finite:
                c.write_failure(f"{name} {dtype}: different {different}, all finite: {finite}")
