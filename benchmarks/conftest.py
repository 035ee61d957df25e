"""What every result file says of the machine: its processor and versions, and no host name."""

from __future__ import annotations

import platform
from typing import Any

import torch


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    cpu = machine_info["cpu"]
    machine_info.clear()
    machine_info["cpu"] = {"brand": cpu.get("brand_raw"), "cores": cpu.get("count"), "arch": cpu.get("arch")}
    machine_info["python"] = platform.python_version()
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["commit_info"] = {key: output_json["commit_info"].get(key) for key in ("id", "time", "dirty")}
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)
