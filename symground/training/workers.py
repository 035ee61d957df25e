"""The processes that train one model together: torchrun's, or only this one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, distributed

from symground.errors import check_device


@dataclass
class Workers:
    """One of these processes."""

    rank: int
    world: int
    device: torch.device
    asked: int = 0
    """The signal that told this process to stop; 0 if there was none."""

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, rows: Tensor, accumulate: int = 1) -> list[Tensor]:
        """This worker's rows of a step's [B,…], on its device, split into the parts of gradient accumulation."""
        own = rows.chunk(self.world)[self.rank].to(self.device, non_blocking=True)
        return list(own.chunk(accumulate))

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all workers; every worker must call it."""
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def wait(self) -> None:
        """Wait until all workers are here."""
        if self.world > 1:
            distributed.barrier()

    def stops(self) -> bool:
        """Whether any worker was told to stop; every worker must call it."""
        return bool(self.sum(torch.tensor(float(self.asked > 0), device=self.device)) > 0)

    def end(self) -> NoReturn:
        """Raise as the signal would."""
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def workers(device: str | None) -> Iterator[Workers]:
    """This process among the workers, for the block; SIGTERM and Ctrl-C make :meth:`Workers.stops` true.

    Args:
        device: of each worker; None uses a GPU if there is one, and of several the one of torchrun's local rank.

    Raises:
        ValueError: the device is not available.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        device = f"cuda:{torch.cuda.current_device()}"
    opened = world > 1 and not distributed.is_initialized()
    if opened:
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    found = Workers(rank, world, torch.device(device))
    before = _noting_signals(found)
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if opened:
            distributed.destroy_process_group()


def _noting_signals(found: Workers) -> dict[int, Any]:
    """Record the first SIGTERM or SIGINT and obey the second; returns the previous handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}  # signals cannot be handled here
    before: dict[int, Any] = {}

    def note(number: int, _: FrameType | None) -> None:
        found.asked = number
        signal.signal(number, before[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, note)
    return before
