"""What a call of each op costs the host, without a GPU: everything up to a launch, beside PyTorch's attention.

    python -m benchmarks launch-cost --out benchmarks/results/launch-cost.json      # half a minute
    python -m benchmarks launch-cost --before benchmarks/results/launch-cost.json   # what has changed since

Where the shapes are small, a GPU waits for the host. So the numbers are a thread's processor time, in microseconds.
Kernels are specialised for sm_90 and looked up as on a GPU, and then not launched (`common/absent_gpu.py`). PyTorch's
attention is that of its CPU, at one position: its checks, dispatch, autograd and allocations are those of a GPU, and
there is next to nothing to compute. Neither side has the time of the driver's launches, of which each has its own.

Each op runs whole, without Triton's part of the launches, with an implementation that returns ready tensors, and with
the checks alone. The differences say where the time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["TRITON_INTERPRET"] = "0"

import torch  # noqa: E402
import triton  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.common import alone  # noqa: E402
from benchmarks.common.absent_gpu import absent_gpu  # noqa: E402
from benchmarks.common.options import integer, json_file, new_file  # noqa: E402
from symground import ops  # noqa: E402
from symground.kernels.common.launch import Launch  # noqa: E402
from symground.ops.attention import api as attention  # noqa: E402
from symground.ops.attention import autograd as attention_autograd  # noqa: E402
from symground.ops.attention import triton as attention_triton  # noqa: E402
from symground.ops.common import needs  # noqa: E402
from symground.ops.ssd import api as ssd  # noqa: E402
from symground.ops.ssd import autograd as ssd_autograd  # noqa: E402
from symground.ops.ssd import triton as ssd_triton  # noqa: E402
from symground.ops.vocabulary import api as vocabulary  # noqa: E402
from symground.ops.vocabulary import autograd as vocabulary_autograd  # noqa: E402
from symground.ops.vocabulary import triton as vocabulary_triton  # noqa: E402

Run = Callable[[], Any]
FAMILIES: dict[ModuleType, tuple[ModuleType, ModuleType]] = {
    attention: (attention_autograd, attention_triton),
    ssd: (ssd_autograd, ssd_triton),
    vocabulary: (vocabulary_autograd, vocabulary_triton),
}
#: The peer of each measurement that has one.
PEERS = {
    "attention, no gradient": "SDPA, no gradient",
    "attention, forward": "SDPA, forward",
    "attention, backward": "SDPA, backward",
    "attention, backward with saliency": "SDPA, backward",
    "attention, forward and backward": "SDPA, forward and backward",
    "attention, forward and backward with saliency": "SDPA, forward and backward",
}
#: What is measured of an op with Triton kernels, from all of it to least.
STAGES = ("whole", "without Triton", "ready results", "checks")


class Measured(NamedTuple):
    """A call, and the module whose implementations it uses; None for another library's, which has no stages."""

    make: Callable[[str], Run]
    api: ModuleType | None = None


def peers() -> dict[str, Measured]:
    sdpa = torch.nn.functional.scaled_dot_product_attention
    plain = [torch.randn(1, 2, 1, 64, dtype=torch.bfloat16) for _ in range(4)]
    q, k, v = (x.clone().requires_grad_() for x in plain[:3])
    out = sdpa(q, k, v, is_causal=True)
    grad = plain[3]

    def both() -> None:
        torch.autograd.grad(sdpa(q, k, v, is_causal=True), (q, k, v), grad)

    return {
        "SDPA, no gradient": Measured(lambda _: lambda: sdpa(*plain[:3], is_causal=True)),
        "SDPA, forward": Measured(lambda _: lambda: sdpa(q, k, v, is_causal=True)),
        "SDPA, backward": Measured(lambda _: lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)),
        "SDPA, forward and backward": Measured(lambda _: both),
    }


def attention_ops() -> dict[str, Measured]:
    *plain, grad = (torch.randn(1, 2, 1, 64, dtype=torch.bfloat16) for _ in range(4))
    leaves = [x.clone().requires_grad_() for x in plain]
    probe = torch.zeros(1).expand(1, 1, 1).requires_grad_()
    lse, ids, rows = torch.zeros(1, 2, 1), torch.zeros(1, 1).long(), torch.zeros(1, 1).long()

    def forward(impl: str, with_probe: bool = False) -> Tensor:
        return ops.attention(*leaves, saliency_probe=probe if with_probe else None, impl=impl)[0]

    def backward(impl: str, with_probe: bool) -> Run:
        out, inputs = forward(impl, with_probe), (*leaves, probe) if with_probe else leaves
        return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)

    def both(impl: str, with_probe: bool) -> Run:
        inputs = (*leaves, probe) if with_probe else leaves
        return lambda: torch.autograd.grad(forward(impl, with_probe), inputs, grad)

    calls: dict[str, Callable[[str], Run]] = {
        "attention, no gradient": lambda impl: lambda: ops.attention(*plain, impl=impl),
        "attention, forward": lambda impl: lambda: forward(impl),
        "attention, backward": lambda impl: backward(impl, False),
        "attention, backward with saliency": lambda impl: backward(impl, True),
        "attention, forward and backward": lambda impl: both(impl, False),
        "attention, forward and backward with saliency": lambda impl: both(impl, True),
        "attention_saliency": lambda impl: lambda: ops.attention_saliency(*plain, grad, lse, impl=impl),
        "attention_saliency_rows": lambda impl: lambda: ops.attention_saliency_rows(*plain, grad, lse, rows, impl=impl),
        "attention_flow": lambda impl: lambda: ops.attention_flow(*plain, grad, lse, ids, ids, 1, 1, impl=impl),
    }
    return {name: Measured(make, attention) for name, make in calls.items()}


def other_ops() -> dict[str, Measured]:
    x, grad = (torch.randn(1, 16, 2, 16, dtype=torch.bfloat16) for _ in range(2))
    B, C = (torch.randn(1, 16, 1, 16, dtype=torch.bfloat16) for _ in range(2))
    scan = (x, torch.rand(1, 16, 2), -torch.rand(2), B, C)
    leaves = [z.clone().requires_grad_() for z in scan]
    hidden, weight = (torch.randn(n, 16, dtype=torch.bfloat16) for n in (2, 32))
    candidates, targets = torch.tensor([3, 7]), torch.tensor([1, 2])
    head = [z.clone().requires_grad_() for z in (hidden, weight)]
    heads, gate = torch.randn(1, 1, 2, 8, dtype=torch.bfloat16), torch.ones(2)

    def through_ssd(impl: str) -> Run:
        return lambda: torch.autograd.grad(ops.ssd(*leaves, impl=impl), leaves, grad)

    def through_loss(impl: str) -> Run:
        return lambda: torch.autograd.grad(ops.linear_cross_entropy(*head, targets, impl=impl), head)

    return {
        "ssd, no gradient": Measured(lambda impl: lambda: ops.ssd(*scan, impl=impl), ssd),
        "ssd, forward and backward": Measured(through_ssd, ssd),
        "ssd_saliency": Measured(lambda impl: lambda: ops.ssd_saliency(*scan, grad, impl=impl), ssd),
        "candidate_surprisal": Measured(
            lambda impl: lambda: ops.candidate_surprisal(hidden, weight, candidates, impl=impl), vocabulary
        ),
        "linear_cross_entropy, forward and backward": Measured(through_loss, vocabulary),
        "gate_heads (cpu)": Measured(lambda _: lambda: ops.gate_heads(heads, gate, impl="cpu")),
    }


@contextmanager
def stage(name: str, api: ModuleType | None) -> Iterator[str]:
    """Within the block, ops of ``api`` run in this stage with the implementation of the name that is yielded."""
    with ExitStack() as stack:
        if name == "without Triton":
            stack.enter_context(mock.patch.object(Launch, "__call__", _launch_nothing))
        if name in ("ready results", "checks") and api is not None:
            autograd, implementation = FAMILIES[api]
            ready = type(implementation.backend)(*map(_ready, implementation.backend))
            made = autograd.register("ready", ready, needs.nothing)
            stack.enter_context(mock.patch.dict(api.IMPLEMENTATIONS, {"ready": made}))
            if name == "checks":
                found: dict[str, Any] = {}
                choose = api.choose  # type: ignore[attr-defined]
                stack.enter_context(
                    mock.patch.object(
                        api, "choose", lambda op, *rest: found.setdefault(op, _once(choose(op, *rest))), create=True
                    )
                )
            yield "ready"
        else:
            yield "triton"


def _launch_nothing(launch: Launch, *tensors: Tensor | None) -> None: ...


def _ready(function: Any) -> Any:
    """``function``, which after its first call returns new tensors of the same shapes, computing nothing."""
    made: Any = None

    def run(*args: Any) -> Any:
        nonlocal made
        if made is None:
            made = function(*args)
        if isinstance(made, Tensor):
            return torch.empty_like(made)
        new = (None if x is None else torch.empty_like(x) for x in made)
        return type(made)(*new) if hasattr(made, "_fields") else tuple(new)

    return None if function is None else run


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, whose first result is returned at every call."""
    made: list[Any] = []
    return lambda *args: made[0] if made else made.append(function(*args)) or made[0]


def measure(rounds: int, calls: int) -> dict[str, dict[str, list[float]]]:
    """Name → stage → microseconds of a call, of each round; all take turns."""
    everything = {**peers(), **attention_ops(), **other_ops()}
    jobs: list[tuple[str, str]] = []
    for name, measured in everything.items():
        # A backward pass alone has no checks, and what is left of another with ready checks is not a pass.
        stages = STAGES[:1] if measured.api is None else STAGES[:3] if "backward" in name else STAGES
        jobs += [(name, of) for of in stages]
    found: dict[str, dict[str, list[float]]] = {name: {of: [] for n, of in jobs if n == name} for name in everything}
    for _ in range(rounds):
        for name, of in jobs:
            with stage(of, everything[name].api) as impl:
                run = everything[name].make(impl)
                for _ in range(3):
                    run()
                start = time.thread_time_ns()
                for _ in range(calls):
                    run()
                found[name][of].append((time.thread_time_ns() - start) / calls / 1e3)
    return found


def rows_of(found: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    least = {name: {of: min(values) for of, values in stages.items()} for name, stages in found.items()}
    rows = []
    for name, stages in least.items():
        row: dict[str, Any] = {"name": name, "us": stages["whole"], "median": statistics.median(found[name]["whole"])}
        if name in PEERS:
            row["of peer"] = stages["whole"] / least[PEERS[name]]["whole"]
        if len(stages) > 1:
            checks = stages.get("checks", 0.0)
            row |= {
                "checks": checks if "checks" in stages else None,
                "torch": stages["ready results"] - checks,
                "launchers": stages["without Triton"] - stages["ready results"],
                "Triton": stages["whole"] - stages["without Triton"],
            }
        rows.append({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
    return rows


def table(rows: list[dict[str, Any]], before: dict[str, float]) -> str:
    """The least of each measurement, which other work on the machine disturbs least."""
    head = ["call", *(["before"] if before else []), "µs", "median", "÷ SDPA", "checks", "torch", "launchers", "Triton"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for row in rows:
        cells = [row["name"], *([_cell(before.get(row["name"]))] if before else []), _cell(row["us"])]
        cells += [_cell(row["median"]), f"{row['of peer']:.1f}" if "of peer" in row else ""]
        cells += [_cell(row.get(part)) for part in ("checks", "torch", "launchers", "Triton")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=new_file, help="a JSON file of the numbers")
    parser.add_argument(
        "--before", type=json_file("a JSON file that an earlier run wrote with --out", "rows"),
        help="a JSON file of an earlier run, to show beside these",
    )  # fmt: skip
    parser.add_argument("--rounds", type=integer(), default=60, help="of which the least counts; default: %(default)s")
    parser.add_argument(
        "--calls", type=integer(), default=10, help="in a round, of which the mean is taken; default: %(default)s"
    )
    arguments = parser.parse_args()
    before = {}
    if arguments.before:
        before = {row["name"]: row["us"] for row in json.loads(arguments.before.read_text())["rows"]}
    torch.set_num_threads(1)
    with absent_gpu("sm_90"):
        rows = rows_of(measure(arguments.rounds, arguments.calls))
    print(table(rows, before))
    if arguments.out:
        found = {"machine_info": alone.machine(), "triton": triton.__version__, "rows": rows}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
