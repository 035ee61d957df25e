"""The parts of the check, and the processes that run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from symground.machine.finding import Finding

VARIABLE = "SYMGROUND_DISABLE"  # as in ops/common/disabled.py, which would import torch here
#: Seconds after which a part counts as hung. Compiling kernels takes the longest.
PATIENCE = 300
_HALVES = ("bfloat16", "float16")


class Part(NamedTuple):
    """An implementation on a device, in some dtypes; or something else to look at."""

    name: str
    device: str = "cpu"
    what: str = "accuracy"
    impl: str = ""
    dtypes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """What is switched off, so that the part is this implementation and no other."""


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


def run(parts: Iterable[Part], at_once: int) -> Iterator[tuple[list[Finding], dict[str, Any]]]:
    """Run parts side by side; yields the findings and the further lines of each, in order."""
    threads = max(1, (os.cpu_count() or 1) // at_once)
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(partial(run_one, threads=threads), parts)


def run_one(part: Part, threads: int) -> tuple[list[Finding], dict[str, Any]]:
    """Run a part in its own process. That it fails is one of its findings."""
    switched = off()
    if part.name in switched or part.impl in switched:
        return [_finding(part, "absent", f"switched off by {VARIABLE}")], {}
    job = {"name": part.name, "what": part.what, "device": part.device, "impl": part.impl, "dtypes": list(part.dtypes)}
    environment = {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic algorithms require it of matrix products
        "OMP_NUM_THREADS": str(threads), **os.environ, VARIABLE: ",".join([*switched, *part.without]),
    }  # fmt: skip
    command = [sys.executable, "-m", "symground.machine.child", json.dumps(job)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        text, code, errors = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as hung:
        text, code, errors = _text(hung.stdout), None, ""
    findings, more, begun = _read(part, text)
    if code != 0:
        at = f" in {begun}" if begun else ""
        why = f"it did not end within {PATIENCE} seconds{at}" if code is None else f"{_ending(code, errors)}{at}"
        findings.append(_finding(part, "wrong", why))
    return findings, more


def off() -> list[str]:
    """The names that the user has switched off."""
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


def _finding(part: Part, status: str, said: str) -> Finding:
    return Finding(part.name, part.device, status, said, dtype=", ".join(part.dtypes))


def _read(part: Part, text: str) -> tuple[list[Finding], dict[str, Any], str]:
    """The findings under the part's own name, the further lines, and the case that had begun and has no finding."""
    findings: list[Finding] = []
    more: dict[str, Any] = {}
    begun = ""
    for line in text.splitlines():
        try:
            given = json.loads(line)
        except ValueError:
            continue  # what a library prints
        if not isinstance(given, dict):
            continue
        if "finding" in given:
            found = Finding(**given["finding"])
            findings.append(found._replace(part=part.name) if part.what == "accuracy" else found)
            begun = ""
        else:
            begun = given.pop("begins", begun)
            more |= given
    return findings, more, begun


def _ending(code: int, errors: str) -> str:
    """How a process ended: by a signal, or with an exception, whose last line says which."""
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return next((line for line in reversed(errors.strip().splitlines()) if line.strip()), f"exit code {code}")


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
