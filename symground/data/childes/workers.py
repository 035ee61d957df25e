"""Processes that work for this one; if one dies, only its current piece of work fails.

A process of `concurrent.futures` imports the caller's script again, so the script needs a main guard, and if the
process dies, all work in progress fails. These processes import nothing of the caller's, and are started again.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

_COMMAND = "import sys; sys.path[:] = {path}; from symground.data.childes.workers import serve; serve()"


class Died(Exception):  # noqa: N818 - what became of the process
    """A worker's process ended before it answered; the message says how."""


class Worker:
    """One process. It is started at the first request, and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """The result of a function at a module's top level for an argument; both must be picklable.

        Raises:
            Died: the process ended before it answered.
            OSError: no process could be started.
        """
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018 - pipes, both
        try:
            pickle.dump((function, argument), process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            self.close()
            code = process.returncode
            how = f"signal {-code}, {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise Died(how) from None

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.communicate()  # it ends when its input is closed

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _COMMAND.format(path=ascii(sys.path))]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.read(1) != b"\n":
            raise OSError(f"a worker process could not be started (exit code {process.wait()})")
        self._process = process
        return process


@contextmanager
def workers(count: int) -> Iterator[SimpleQueue[Worker]]:
    """This many workers. A thread takes one from the queue and puts it back; they end with the block."""
    every = [Worker() for _ in range(count)]
    free: SimpleQueue[Worker] = SimpleQueue()
    for worker in every:
        free.put(worker)
    try:
        yield free
    finally:
        for worker in every:
            worker.close()


def serve() -> None:
    """Answer requests until there are no more. Output that libraries print goes to stderr, not among the answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent handles it
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        answers.write(b"\n")
        answers.flush()
        while True:
            try:
                function, argument = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            pickle.dump(function(argument), answers)
            answers.flush()
