"""The processes that train one model together: those of torchrun, or this one alone."""

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

from symground.optional import check_device


@dataclass
class Workers:
    """One of them."""

    rank: int
    world: int
    device: torch.device
    asked: int = 0
    """The signal that asked this one to end; 0 where none did."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, rows: Tensor, accumulate: int = 1) -> list[Tensor]:
        """This one's rows of a step's [B,…], in as many parts as gradients are accumulated over, on its device."""
        own = rows.chunk(self.world)[self.rank].to(self.device, non_blocking=True)
        return list(own.chunk(accumulate))

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all; every one of them must ask."""
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            distributed.barrier()

    def stops(self) -> bool:
        """Whether any of them was asked to end; every one of them must ask."""
        return bool(self.sum(torch.tensor(float(self.asked > 0), device=self.device)) > 0)

    def end(self) -> NoReturn:
        """As the signal asked."""
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def workers(device: str | None) -> Iterator[Workers]:
    """This process among the workers, for the block: SIGTERM and Ctrl-C make :meth:`Workers.stops` true.

    Args:
        device: where each trains; None takes a GPU where there is one, of several the one of torchrun's local rank.

    Raises:
        ValueError: a device that there is not.
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
    """Have SIGTERM and SIGINT noted, the second time obeyed; returns what they did before."""
    if threading.current_thread() is not threading.main_thread():
        return {}  # where signals cannot be handled
    before: dict[int, Any] = {}

    def note(number: int, _: FrameType | None) -> None:
        found.asked = number
        signal.signal(number, before[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, note)
    return before
