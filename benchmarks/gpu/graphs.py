"""CUDA graphs of attention, saliency and flow beside the same calls without one: a part of the GPU record."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import measure
from benchmarks.common.inputs import Inputs, Shape
from benchmarks.gpu.context import NEEDS_CUDA, Context
from benchmarks.peers.attention import find
from symground import ops

Results = tuple[Tensor, ...]
#: Calls in a row, for the time of a call to which launching it belongs.
CALLS = 50


def runs(x: Inputs) -> dict[str, Callable[[], Results]]:
    """Name → a call that returns all its results."""
    q, k, v = x.leaves

    def layer() -> Results:
        out, lse = ops.attention(q, k, v, impl=x.impl)
        return (out.detach(), lse, *torch.autograd.grad(out, (q, k, v), x.grad))

    def probed() -> Results:
        probes = x.saliency_probe(), x.flow_probe()
        out, lse = ops.attention(
            q, k, v, saliency_probe=probes[0], flow_probe=probes[1], query_groups=x.groups, key_groups=x.groups,
            impl=x.impl,
        )  # fmt: skip
        return (out.detach(), lse, *torch.autograd.grad(out, (q, k, v, *probes), x.grad))

    def alone(stage: str, name: str) -> Callable[[], Results]:
        run = find(stage, name).prepare(x)

        def results() -> Results:
            found = run()
            return tuple(y for y in (found if isinstance(found, tuple) else (found,)) if y is not None)

        return results

    return {
        "forward and backward": layer, "forward and backward, saliency and flow": probed,
        "saliency": alone("saliency", "symground"), "flow": alone("flow", "symground, all rows in 3 groups"),
        "rows": alone("rows", "symground"),
    }  # fmt: skip


def graphs(c: Context) -> None:
    """Each call eagerly and as a graph: whether their results are equal to the bit, and the times of both."""
    shapes = [Shape(8, 12, T, 64, dtype) for dtype in c.dtypes for T in (4096, 1024)]
    if c.dry:
        shapes = [Shape(1, 2, 17, 16)]
        c.record["missing"]["CUDA graphs"] = NEEDS_CUDA
    for i, shape in enumerate(shapes):
        if c.left < 0:
            c.record.write(not_reached=[str(s) for s in shapes[i:]])
            return
        for name, call in runs(Inputs(shape, c.device, c.impl)).items():
            row: dict[str, Any] = {"stage": f"graph: {name}", "peer": "symground", **shape.row}
            try:
                row |= _compared(call, not c.dry)
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:600]
            if "error" in row or not row["equal"]:
                c.write_failure(f"{name}, {shape}: {row.get('error', 'a graph gives other bits than the call')}")
            c.record.add(**row)


def _compared(call: Callable[[], Results], on_gpu: bool) -> dict[str, Any]:
    expected = [x.clone() for x in call()]
    if not on_gpu:
        return {"equal": _equal(call(), expected), "seconds": measure.seconds(call)}
    replay, results = _captured(call)
    replay()
    equal = _equal(results, expected)
    return {
        "equal": equal, "seconds": measure.gpu_seconds(call), "graph_seconds": measure.gpu_seconds(replay),
        "seconds_in_a_row": _in_a_row(call), "graph_seconds_in_a_row": _in_a_row(replay),
    }  # fmt: skip


def _captured(call: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
    """A replay of the call, and the tensors into which it writes the results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what a first call sets up is not captured
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph.replay, results


def _equal(found: Results, expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def _in_a_row(run: Callable[[], Any]) -> float:
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / CALLS
