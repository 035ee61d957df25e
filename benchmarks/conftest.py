"""Timing in rounds that peers share, and the machine in result files: its processor and versions, without host name."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.measure import in_turns as measured_in_turns
from benchmarks.common.options import integer
from symground.ops.common import extension

#: "stage: peer" that cannot run on this machine → the reason.
MISSING: dict[str, str] = {}


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--complete", action="store_true", help="also measure compiled peers, and memory at every length")
    parser.addoption("--layers", type=integer(), default=12, help="layers of the traced GPT-2; the goals are for 12")
    parser.addoption("--length", type=integer(), default=1024, help="tokens of the traced examples")


class Replay:
    """A timer for pytest-benchmark that replays durations which have been measured already.

    pytest-benchmark would run all rounds of one peer and then all rounds of the next. Here the peers are timed in
    turns, round by round, and pytest-benchmark gets the durations.
    """

    __name__ = "measured in turns"

    def __init__(self) -> None:
        self.ticks: Iterator[float] = iter(())

    def load(self, durations: list[float]) -> None:
        self.ticks = iter([tick for duration in durations for tick in (0.0, duration)])

    def __call__(self) -> float:
        return next(self.ticks, 0.0)


REPLAY = Replay()


@pytest.fixture
def in_turns(benchmark: Any) -> Callable[..., None]:
    """``in_turns(key, name, runs, rounds, device)``: times all of ``runs()`` once per key, and reports ``name``."""

    def report(key: str, name: str, runs: Callable[[], dict[str, Callable[[], Any]]], rounds: int, device: str) -> None:
        if _Measured.key != key:
            _Measured.key, _Measured.seconds = key, measured_in_turns(runs(), rounds, device)
        REPLAY.load(_Measured.seconds[name])
        benchmark.group = key
        benchmark.pedantic(lambda: None, rounds=len(_Measured.seconds[name]))

    return report


class _Measured:
    """The latest set of peers. Earlier sets are not kept, since each holds its inputs."""

    key = ""
    seconds: dict[str, list[float]] = {}  # noqa: RUF012


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=REPLAY))


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    cpu = machine_info["cpu"]
    machine_info.clear()
    machine_info["cpu"] = {"brand": cpu.get("brand_raw"), "cores": cpu.get("count"), "arch": cpu.get("arch")}
    machine_info["python"] = platform.python_version()
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["extension"] = extension.library is not None  # without it, CPU results are those of plain PyTorch
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["commit_info"] = {key: output_json["commit_info"].get(key) for key in ("id", "time", "dirty")}
    output_json["missing"] = MISSING
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)
        entry.pop("params", None)  # it has addresses of objects
