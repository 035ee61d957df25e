"""The parts of the check, and the processes that run them."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TextIO

from symground.errors import DISABLE, switched_off
from symground.machine.finding import Finding

#: Seconds without a line from a part after which it counts as hung. Before its first line it imports torch, which may
#: lie on a slow disk, and between two lines it compiles the kernels of one case.
PATIENCE = 120
_HALVES = ("bfloat16", "float16")
_BUILT = ("extension", "cuda")
#: What a part does, for the lines of progress.
_DOES = {
    "torch": "importing", "loads": "loading", "driver": "asking", "accuracy": "comparing", "picked": "choosing",
    "time": "timing",
}  # fmt: skip


class Part(NamedTuple):
    """An implementation on a device, in some dtypes; or something else to look at."""

    name: str
    device: str = "cpu"
    what: str = "accuracy"
    impl: str = ""
    dtypes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """What is switched off, so that the part is this implementation and no other."""
    package: str = ""
    """What must be installed."""


#: What is tried first: whether it loads. `import symground.ops` would load the extension, which may end the process.
LOADED = (
    Part("extension", what="loads", without=("extension",)),
    *(
        Part(name, what="loads", without=("extension",), package=name)
        for name in ("triton", "flash_attn", "mamba_ssm", "causal_conv1d")
    ),
)
LOADED_ON_A_GPU = (Part("cuda", what="loads", without=("cuda",)),)


def accuracy_parts(device: str | None) -> list[Part]:
    """Every implementation by itself: on the CPU, and on the accelerator if there is one."""
    every = ("float32", *_HALVES)
    parts = [
        Part("extension", "cpu", impl="cpu", dtypes=every),
        Part("cpu", "cpu", impl="cpu", dtypes=every, without=("extension",)),
        Part("torch", "cpu", impl="torch", dtypes=every),
    ]
    if device is None:
        return parts
    if device == "cuda":
        parts += [Part("triton", device, impl="triton", dtypes=(dtype,)) for dtype in every]  # each compiles its own
        parts += [
            Part("flash_attn", device, impl="flash", dtypes=_HALVES, without=("triton",)),
            Part("flash", device, impl="flash", dtypes=_HALVES, without=("triton", "flash_attn")),
            Part("cuda", device, impl="cuda", dtypes=every),
            Part("mamba_ssm", device, impl="mamba_ssm", dtypes=_HALVES),
            Part("causal_conv1d", device, impl="causal_conv1d", dtypes=every),
        ]
    return [*parts, Part("torch", device, impl="torch", dtypes=every)]


def run(
    parts: Iterable[Part], at_once: int, without: Iterable[str] = (), progress: TextIO | None = None
) -> Iterator[tuple[list[Finding], dict[str, Any]]]:
    """Run parts side by side, ``without`` what ends processes; yields the findings and further lines of each, in order.

    A line for each part goes to ``progress`` when it ends.
    """
    threads = max(1, (os.cpu_count() or 1) // at_once)
    one = partial(run_one, threads=threads, without=tuple(without), progress=progress)
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(one, parts)


def run_one(
    part: Part, threads: int, without: tuple[str, ...] = (), progress: TextIO | None = None
) -> tuple[list[Finding], dict[str, Any]]:
    """Run a part in its own process. That it fails, or does less than it was to do, is one of its findings."""
    switched = switched_off(os.environ.get(DISABLE, ""))
    if part.name in switched:
        return [finding(part, "absent", f"switched off by {DISABLE}")], {}
    if part.impl in switched:
        return [finding(part, "absent", f"it serves {part.impl!r}, which is switched off by {DISABLE}")], {}
    if part.package and importlib.util.find_spec(part.package) is None:
        return [finding(part, "absent", "it is not installed")], {}
    job = {"name": part.name, "what": part.what, "device": part.device, "impl": part.impl, "dtypes": list(part.dtypes)}
    environment = {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic algorithms require it of matrix products
        "OMP_NUM_THREADS": str(threads), **os.environ,
        DISABLE: ",".join(dict.fromkeys([*switched, *part.without, *without])),
    }  # fmt: skip
    start = time.monotonic()
    lines, code, errors = _output([sys.executable, "-m", "symground.machine.child", json.dumps(job)], environment)
    findings, more = _found(part, _read(part, lines), code, errors)
    if progress is not None:
        name = ", ".join([part.name, part.device, *part.dtypes])
        wrong = ", something is wrong" if any(found.status == "wrong" for found in findings) else ""
        told = f"symground check: {_DOES[part.what]}: {name}: {time.monotonic() - start:.0f} s{wrong}"
        print(told, file=progress, flush=True)
    return findings, more


def finding(part: Part, status: str, said: str) -> Finding:
    """What is said of a part as a whole."""
    return Finding(part.name, part.device, status, said, dtype=", ".join(part.dtypes))


def _output(command: list[str], environment: dict[str, str]) -> tuple[list[str], int | None, str]:
    """The lines that a process prints, its exit code, or None if it said nothing for too long, and its errors."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            encoding="utf-8", errors="replace",
        )  # fmt: skip

        def read(output: TextIO) -> None:
            with output:
                for line in output:
                    lines.put(line)
            lines.put(None)

        assert process.stdout is not None
        threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
        found, code = [], None
        try:
            while (line := lines.get(timeout=PATIENCE)) is not None:
                found.append(line)
            code = process.wait(PATIENCE)
        except (queue.Empty, subprocess.TimeoutExpired):
            code = process.poll()  # it may have left a process of its own behind, which holds its output open
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        return found, code, errors.read().decode(errors="replace")


class _Told(NamedTuple):
    """What a process has told."""

    findings: list[Finding]
    """Under the part's own name."""
    more: dict[str, Any]
    begun: tuple[str, str]
    """Name and dtype of the case that had begun and has no finding; two empty strings for none."""
    plan: list[str]
    """The cases to be tried in each dtype."""
    ended: bool
    """Whether it did all that it was to do."""
    raised: str


def _read(part: Part, lines: Iterable[str]) -> _Told:
    findings: list[Finding] = []
    more: dict[str, Any] = {}
    plan: list[str] = []
    begun, ended, raised = ("", ""), False, ""
    for line in lines:
        try:
            given = json.loads(line)
        except ValueError:
            continue  # what a library prints
        if not isinstance(given, dict):
            continue
        if "finding" in given:
            found = Finding(**given["finding"])
            findings.append(found._replace(part=part.name) if part.what == "accuracy" else found)
            begun = ("", "")
        elif "begins" in given:
            begun = (given["begins"][0], given["begins"][1])
        else:
            plan = given.pop("plan", plan)
            ended = given.pop("ended", ended)
            raised = given.pop("raised", raised)
            more |= given
    return _Told(findings, more, begun, plan, ended, raised)


def _found(part: Part, told: _Told, code: int | None, errors: str) -> tuple[list[Finding], dict[str, Any]]:
    """The findings of a process, how it ended if it did so early, and the calls that it therefore left out."""
    findings = list(told.findings)
    case, dtype = told.begun
    tried = {(found.op, found.dtype) for found in findings}
    left = [(op, of) for of in part.dtypes for op in told.plan if (op, of) not in {*tried, (case, dtype)}]
    if code is None:
        why = f"it said nothing for {PATIENCE} seconds"
    elif told.raised:
        why = told.raised
    elif code:
        why = _ending(code, errors)
    elif not told.ended or case or left:
        why = _ending(code, "")
    else:
        return findings, told.more
    if part.what == "loads":
        why += " when it was loaded" + ("; a new build may load: symground build" if part.name in _BUILT else "")
    if part.what == "driver":
        why += " when the driver was asked, so everything runs on the CPU: install it again; nvidia-smi says more"
    found = finding(part, "wrong", why)._replace(more={"process": "ended"})
    findings.append(found._replace(op=case, dtype=dtype) if case else found)
    findings += [Finding(part.name, part.device, "untried", "its process had ended", *call) for call in left]
    return findings, told.more


def _ending(code: int, errors: str) -> str:
    """How a process ended: by a signal, or with an exception before it could tell which."""
    if code < 0:
        return f"its process was ended by {_signal(-code)}"
    lines = errors.rpartition("Traceback (most recent call last):")[2].splitlines()
    early = f"its process ended early (exit code {code})"
    return next((line.strip() for line in lines if re.match(r"\S", line)), early)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the signals for real time have no names
        return f"signal {number}"
