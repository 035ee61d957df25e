"""Parallel jobs in processes and on a local Ray, with jobs that fail and jobs that die."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from symground.running import run_jobs


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A small local Ray."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(params=["here", "processes", "ray"])
def where(request: pytest.FixtureRequest) -> dict[str, object]:
    if request.param == "ray":
        request.getfixturevalue("ray")
    return {"workers": 1} if request.param == "here" else {"workers": 2, "backend": request.param}


def write(path: Path) -> None:
    path.write_text(str(os.getpid()))


def fail(path: Path) -> None:
    path.write_text("")
    raise ValueError("the data\nis wrong")


def die(path: Path, times: int) -> None:
    """A job that kills its own process ``times`` times."""
    before = int(path.read_text()) if path.exists() else 0
    path.write_text(str(before + 1))
    if before < times:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)


def records(folder: Path) -> dict[str, dict[str, object]]:
    found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    return {record["job"]: record for record in found}


def test_a_failure_is_recorded_and_stops_no_other(
    where: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = {f"write {i}": partial(write, tmp_path / str(i)) for i in range(5)}
    jobs["fail, always"] = partial(fail, tmp_path / "x")
    failed = run_jobs(jobs, tmp_path / "jobs", **where)  # type: ignore[arg-type]
    assert failed == {"fail, always": "the data is wrong"}
    written = [(tmp_path / str(i)).read_text() for i in range(5)]
    assert (set(written) == {str(os.getpid())}) == (where["workers"] == 1)
    found = records(tmp_path / "jobs")
    assert found.keys() == jobs.keys()
    assert {name: record["status"] for name, record in found.items()} == {
        name: "failed" if "fail" in name else "done" for name in jobs
    }
    assert found["fail, always"]["error"] == "the data is wrong"
    said = capfd.readouterr().err
    assert "6/6" in said
    assert "fail, always: failed: the data is wrong" in said
    # A second call runs every job again, since a job must check itself whether it is finished.
    assert run_jobs({"fail, always": partial(write, tmp_path / "x")}, tmp_path / "jobs", **where) == {}  # type: ignore[arg-type]
    assert records(tmp_path / "jobs")["fail, always"]["status"] == "done"


@pytest.mark.parametrize("where", ["processes", "ray"], indirect=True)
def test_a_job_whose_process_dies_is_tried_again_alone(where: dict[str, object], tmp_path: Path) -> None:
    jobs = {f"write {i}": partial(write, tmp_path / str(i)) for i in range(6)}
    jobs = {
        "dies once": partial(die, tmp_path / "once", 1),
        **jobs,
        "dies always": partial(die, tmp_path / "always", 9),
    }
    failed = run_jobs(jobs, tmp_path / "jobs", **where)  # type: ignore[arg-type]
    assert failed.keys() == {"dies always"}
    assert failed["dies always"].startswith("its process died: ")
    assert all((tmp_path / str(i)).exists() for i in range(6))
    assert (tmp_path / "once").read_text() == "2"
    assert records(tmp_path / "jobs")["dies once"]["status"] == "done"
