"""Parallel jobs in processes of this machine or of a Ray cluster. A job that fails or dies does not stop the others."""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from symground.errors import require
from symground.files import held, read_json, write_json

Job = Callable[[], None]
BACKENDS = ("processes", "ray")
_POLL = 0.5  # seconds


def run_jobs(jobs: Mapping[str, Job], records: Path, workers: int = 1, backend: str = "processes") -> dict[str, str]:
    """Run every job, and record each result when it ends: ``records``/NAME.json, with the error if it failed.

    Finished jobs are run again, so a job must check itself whether it is finished. A job whose process dies is tried
    once more in a process of its own.

    Args:
        jobs: name → job, which must be picklable.
        records: a folder that all workers can access.
        workers: the number of jobs at once; with 1 and "processes", all run in this process.
        backend: "processes", or "ray": the cluster in RAY_ADDRESS, else a new one on this machine.

    Returns:
        The failed jobs: name → error.

    Raises:
        BlockingIOError: another process runs jobs with these records (says which).
    """
    with held(records, "runs jobs"):
        return _all(jobs, records, workers, backend)


def _all(jobs: Mapping[str, Job], records: Path, workers: int, backend: str) -> dict[str, str]:
    files = {name: records / f"{_slug(name)}.json" for name in jobs}
    for file in files.values():
        file.unlink(missing_ok=True)
    if workers == 1 and backend == "processes":
        with _telling(files):
            for name, job in jobs.items():
                _do(name, job, files[name])
        return _failed(files)
    with _telling(files), _backend(backend):
        died = _together(jobs, files, workers)
        while died:
            lost = [name for name in jobs if _status(files[name]) == "started"]
            left = [name for name in jobs if _status(files[name]) is None]
            if not lost and not left:
                break
            for name in lost:  # any of them may have killed the process, so each gets its own now
                files[name].unlink()
                alone = _together({name: jobs[name]}, files, 2)
                if _status(files[name]) in (None, "started"):
                    _write(files[name], name, "failed", error=f"its process died: {alone}")
            died = _together({name: jobs[name] for name in left}, files, workers) if left else None
    return _failed(files)


def _together(jobs: Mapping[str, Job], files: Mapping[str, Path], workers: int) -> str | None:
    """Run jobs in the processes of joblib's backend; returns the error of the processes themselves, if any."""
    joblib = require("joblib", "jobs side by side", "joblib")
    try:
        joblib.Parallel(n_jobs=workers, batch_size=1)(
            joblib.delayed(_do)(name, job, files[name]) for name, job in jobs.items()
        )
    except Exception as error:  # each backend has its own kind
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return None


def _do(name: str, job: Job, file: Path) -> None:
    since = time.monotonic()
    _write(file, name, "started")
    try:
        job()
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        _write(file, name, "failed", error=text, seconds=round(time.monotonic() - since, 1))
    else:
        _write(file, name, "done", seconds=round(time.monotonic() - since, 1))


def _write(file: Path, name: str, status: str, **more: Any) -> None:
    write_json(file, {"job": name, "status": status, **more})


def _status(file: Path) -> str | None:
    return str(read_json(file)["status"]) if file.is_file() else None


def _failed(files: Mapping[str, Path]) -> dict[str, str]:
    records = {name: read_json(file) for name, file in files.items()}
    return {name: record["error"] for name, record in records.items() if record["status"] == "failed"}


def _slug(name: str) -> str:
    """A file name for a job's name; different names give different file names."""
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


@contextmanager
def _backend(backend: str) -> Iterator[None]:
    if backend == "processes":
        with require("joblib", "jobs side by side", "joblib").parallel_config(backend="loky"):
            yield
        return
    require("ray.util.joblib", "jobs on a cluster", "symground[cluster]").register_ray()
    ray = require("ray", "jobs on a cluster", "symground[cluster]")
    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, log_to_driver=True)
    try:
        with require("joblib", "jobs side by side", "joblib").parallel_config(backend="ray"):
            yield
    finally:
        if own:
            ray.shutdown()


@contextmanager
def _telling(files: Mapping[str, Path]) -> Iterator[None]:
    """While the block runs, report how each job ended."""
    reported: set[str] = set()
    over = threading.Event()

    def tell() -> None:
        for name in _ended(files, reported):
            reported.add(name)
            record = read_json(files[name])
            why = f": {record['error']}" if record["status"] == "failed" else ""
            print(f"{len(reported)}/{len(files)} {name}: {record['status']}{why}", file=sys.stderr, flush=True)

    def watch() -> None:
        while not over.wait(_POLL):
            tell()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell()


def _ended(files: Mapping[str, Path], reported: Iterable[str]) -> list[str]:
    return [name for name in files if name not in reported and _status(files[name]) in ("done", "failed")]
