"""Two checkouts beside each other: what each call costs before and after a change.

    python -m benchmarks before-after --before PATH
    python -m benchmarks before-after --before PATH --only attention trace --rounds 40

Each checkout has a process of its own, with one thread, and the two take turns call by call. The numbers are processor
time, so other work on the machine hardly counts. The calls use the public interface alone, which a change of the
house leaves as it is. Each side is one process, and where its memory lies counts: a checkout beside itself was measured
at 0.93 to 1.02. A checkout without the C++ extension is measured without it, if both are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Call = Callable[[], object]


def _attention() -> Iterator[tuple[str, Call, int]]:
    import torch

    from symground import ops

    for name, (heads, length, size), repeats in (("T 512", (4, 512, 64), 1), ("T 8", (2, 8, 16), 100)):
        q, k, v, grad = (torch.randn(1, heads, length, size) for _ in range(4))
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        ids = torch.arange(length).expand(1, -1) * 4 // length
        _, lse = ops.attention(q, k, v)

        def layer(leaves: list[torch.Tensor] = leaves, grad: torch.Tensor = grad, length: int = length) -> None:
            probe = torch.zeros(1).expand(1, length, length).requires_grad_()
            out, _ = ops.attention(*leaves, saliency_probe=probe)
            torch.autograd.grad(out, [*leaves, probe], grad)

        after = (q, k, v, grad, lse)
        yield f"attention, {name}", lambda q=q, k=k, v=v: ops.attention(q, k, v), repeats  # type: ignore[misc]
        yield f"attention with its gradients and saliency, {name}", layer, repeats
        yield f"attention_saliency, {name}", lambda a=after: ops.attention_saliency(*a), repeats  # type: ignore[misc]
        yield f"attention_flow, {name}", lambda a=after, i=ids: ops.attention_flow(*a, i, i), repeats  # type: ignore[misc]


def _ssd() -> Iterator[tuple[str, Call, int]]:
    import torch

    from symground import ops

    x, dt, A = torch.randn(1, 512, 8, 32), torch.rand(1, 512, 8), -torch.rand(8)
    B, C, grad = torch.randn(1, 512, 1, 32), torch.randn(1, 512, 1, 32), torch.randn(1, 512, 8, 32)
    leaves = [z.clone().requires_grad_() for z in (x, dt, A, B, C)]
    yield "ssd with its gradients, T 512", lambda: torch.autograd.grad(ops.ssd(*leaves), leaves, grad), 1
    yield "ssd_saliency, T 512", lambda: ops.ssd_saliency(x, dt, A, B, C, grad), 1


def _vocabulary() -> Iterator[tuple[str, Call, int]]:
    import torch

    from symground import ops

    hidden, weight = torch.randn(256, 128).requires_grad_(), torch.randn(8000, 128).requires_grad_()
    candidates, targets = torch.randint(0, 8000, (32,)), torch.randint(0, 8000, (256,))

    def surprisal() -> None:
        with torch.no_grad():
            ops.candidate_surprisal(hidden, weight, candidates)

    def loss() -> None:
        torch.autograd.grad(ops.linear_cross_entropy(hidden, weight, targets), (hidden, weight))

    yield "candidate_surprisal, 256 × 8000", surprisal, 1
    yield "linear_cross_entropy with its gradients, 256 × 8000", loss, 1


def _gate() -> Iterator[tuple[str, Call, int]]:
    import torch

    from symground import ops

    x, gate = torch.randn(4, 256, 12, 64), torch.tensor([0.0, 1.0] * 6)
    small = torch.randn(1, 8, 12, 4)
    yield "gate_heads, T 256", lambda: ops.gate_heads(x, gate), 10
    yield "gate_heads, T 8", lambda: ops.gate_heads(small, gate), 100


def _trace() -> Iterator[tuple[str, Call, int]]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import symground as sg

    config = GPT2Config(
        n_layer=6, n_head=4, n_embd=128, vocab_size=1000, n_positions=256, bos_token_id=0, eos_token_id=0
    )
    model = sg.attach(GPT2LMHeadModel(config).eval())
    for batch, length in ((4, 128), (1, 8)):
        ids, targets = torch.randint(0, 1000, (batch, length)), torch.ones(batch, dtype=torch.int64)
        yield f"trace of 6 layers, {batch} × {length}", lambda i=ids, t=targets: sg.trace(model, i, t), 1  # type: ignore[misc]

    def forward() -> None:
        with torch.no_grad():
            model(ids)

    yield "a forward pass of 6 attached layers, 1 × 8", forward, 10


CALLS = {"attention": _attention, "ssd": _ssd, "vocabulary": _vocabulary, "gate": _gate, "trace": _trace}


def _serve(only: list[str]) -> None:
    """Run a call for each line on the standard input, which has its number, and print the processor time of one."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    calls = [call for name in only for call in CALLS[name]()]
    built = any(library.endswith("_C.so") for library in torch.ops.loaded_libraries)
    print("with" if built else "without", *(name for name, *_ in calls), sep="\t", flush=True)
    for line in sys.stdin:
        _, call, repeats = calls[int(line)]
        start = time.process_time()
        for _ in range(repeats):
            call()
        print((time.process_time() - start) / repeats, flush=True)


class _Checkout:
    def __init__(self, path: Path, only: list[str]) -> None:
        # The package is the checkout's; the calls are this file's, which an earlier checkout may lack.
        run = f"import sys, runpy; sys.path.insert(0, {str(path)!r}); runpy.run_path({__file__!r})['_serve']({only!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=path,
            env={**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.extension, *self.names = self._line().split("\t")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of a checkout ended with {self._process.wait()}")
        return line.rstrip("\n")

    def seconds(self, number: int) -> float:
        assert self._process.stdin is not None
        print(number, file=self._process.stdin, flush=True)
        return float(self._line())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> int:
    from benchmarks.common.options import folder_of  # an earlier checkout, whose process runs this file, may lack it

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks before-after",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    checkout = folder_of("a checkout", "symground/ops")
    parser.add_argument("--before", type=checkout, required=True, help="a checkout of an earlier revision")
    parser.add_argument("--after", type=checkout, default=ROOT, help="this checkout by default")
    parser.add_argument("--only", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    if asked.rounds < 2:
        parser.error(f"--rounds: expected at least 2, for quartiles; got {asked.rounds}")
    sides = [_Checkout(path.resolve(), asked.only) for path in (asked.before, asked.after)]
    try:
        if sides[0].extension != sides[1].extension:
            parser.error(
                "--before: expected the C++ extension in both checkouts or in none (symground build); --before runs "
                f"{sides[0].extension} it, --after {sides[1].extension} it"
            )
        print(f"{'milliseconds: median [quartiles]':<58}{'before':>28}{'after':>28}   after / before")
        for number, name in enumerate(sides[0].names):
            taken: list[list[float]] = [[], []]
            for i in range(asked.rounds + 2):
                for side, into in zip(sides, taken, strict=True):
                    once = side.seconds(number)
                    if i > 1:
                        into.append(once * 1e3)
            cells = []
            for times in taken:
                low, middle, high = statistics.quantiles(times, n=4)
                cells.append(f"{middle:.4g} [{low:.4g}, {high:.4g}]")
            ratio = statistics.median(taken[1]) / statistics.median(taken[0])
            print(f"{name:<58}{cells[0]:>28}{cells[1]:>28}   {ratio:.3f}", flush=True)
    finally:
        for side in sides:
            side.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
