"""Candidate tiles of each attention kernel, timed one after the other: a part of the GPU record.

The candidates are the shipped tiles and those that `python -m benchmarks forecast --candidates` ranks first. Each one
computes the op's results, which are compared with those of the shipped tiles, and is then timed alone.
`python -m benchmarks forecast --beside FOLDER` prints the rows beside the forecasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.common import measure
from benchmarks.common.inputs import Inputs, Shape
from benchmarks.gpu.context import Context
from benchmarks.peers.attention import find
from symground.kernels.common.configs import Config, architecture_of, shipped, tables

#: Kernel → the tiles to try beside the shipped ones, for bfloat16 heads of 64 on sm_90.
CANDIDATES: dict[str, tuple[Config, ...]] = {
    "attention_forward": (Config(128, 128, 8, 3), Config(128, 32, 4, 2), Config(128, 128, 4, 3)),
    "dq": (Config(128, 128, 8, 2), Config(128, 64, 8, 3), Config(128, 32, 4, 3)),
    "dkdv": (Config(64, 128, 8, 3), Config(32, 64, 4, 2), Config(32, 128, 4, 2)),
    "dq_flow": (Config(128, 64, 8, 3), Config(128, 32, 4, 3), Config(64, 64, 4, 2)),
    "attention_saliency": (Config(128, 64, 8, 2), Config(64, 128, 8, 3), Config(64, 64, 4, 3)),
    "attention_flow": (Config(128, 64, 8, 3), Config(128, 32, 4, 2), Config(64, 64, 4, 3)),
}
#: Kernel → (stage, peer) of a run that launches it.
RUNS = {
    "attention_forward": ("forward", "symground"), "dq": ("backward", "symground"), "dkdv": ("backward", "symground"),
    "dq_flow": ("backward", "symground + flow of 3 groups"), "attention_saliency": ("saliency", "symground"),
    "attention_flow": ("flow", "symground, all rows in 3 groups"),
}  # fmt: skip
#: Kernel → the products of T×T×D that it computes, each with its causal half only.
PRODUCTS = {
    "attention_forward": 2, "dq": 3, "dkdv": 4, "dq_flow": 3, "attention_saliency": 2, "attention_flow": 2,
}  # fmt: skip
#: For the interpreter, which is slow.
SMALL = Shape(1, 2, 40, 16)
Measure = Callable[[Callable[[], Any]], float]


def shape_of(T: int, dtype: str = "bfloat16") -> Shape:
    return Shape(8, 12, T, 64, dtype)


def tiles(c: Context) -> None:
    shapes = [shape_of(T) for T in (4096, 1024)]
    if c.dry:
        shapes = [SMALL]
    for i, shape in enumerate(shapes):
        x = Inputs(shape, c.device, c.impl)
        for kernel in CANDIDATES:
            if c.left < 0:
                c.record.write(not_reached=[f"{kernel}, {s}" for s in shapes[i:] for kernel in CANDIDATES])
                return
            for row in rows(kernel, x, measure.seconds if c.dry else measure.gpu_seconds):
                c.record.add(**row)
                if row["shipped"] and "error" in row:
                    c.write_failure(f"{kernel}, {shape}: {row['error']}")


def rows(kernel: str, x: Inputs, seconds: Measure) -> Iterator[dict[str, Any]]:
    """A row for each candidate, the shipped one first: its time and its results' error, or why there is none."""
    element = x.shape.element
    architecture = architecture_of(torch.device(x.device))
    own = shipped(kernel, tables(), architecture, x.shape.D, element.itemsize)
    expected: tuple[Tensor, ...] = ()
    for config in dict.fromkeys((own, *CANDIDATES[kernel])):
        row: dict[str, Any] = {
            "kernel": kernel, "architecture": architecture, "dtype": x.shape.dtype, "size": x.shape.D,
            "config": list(config), "T": x.shape.T, "shipped": config == own,
        }  # fmt: skip
        times: list[float] = []
        try:
            with chosen(kernel, config, lambda run, times=times: times.append(seconds(run))):
                found = _results(kernel, x)
            if not times:
                raise RuntimeError(f"the run of {RUNS[kernel]} launches no {kernel}")
            expected = expected or found
            row["relative_error"] = max(map(measure.relative_error, found, expected))
            row |= {"seconds": times[0], "speed": operations(kernel, x.shape) / times[0] / 1e12}
        except Exception as error:  # it does not compile, or does not fit the device
            row["error"] = f"{type(error).__name__}: {error}"[:600]
        yield row


def _results(kernel: str, x: Inputs) -> tuple[Tensor, ...]:
    """The results of the op that launches the kernel, copied; its preparation launches the kernel too."""
    found = find(*RUNS[kernel]).prepare(x)()
    return tuple(y.detach().clone() for y in (found if isinstance(found, tuple) else (found,)) if y is not None)


def operations(kernel: str, shape: Shape) -> float:
    """Floating-point operations of the products. Each product of float32 is computed as three of TF32."""
    parts = 3 if shape.dtype == "float32" else 1
    return parts * PRODUCTS[kernel] * 2.0 * shape.B * shape.H * shape.T**2 * shape.D / 2


@contextmanager
def chosen(kernel: str, config: Config, launched: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """Within the block ``kernel`` has this configuration, and ``launched`` receives each launch of it beforehand."""
    from symground.kernels.attention import backward, flow, forward, saliency

    with ExitStack() as stack:
        for module in (backward, flow, forward, saliency):

            def config_of(
                asked: str, tables: Any, x: Tensor, call: Any, run: Callable[[Config], Any], lighter: bool = False,
                before: Callable[..., Config] = module.config_of,
            ) -> Config:  # fmt: skip
                if asked != kernel:
                    return before(asked, tables, x, call, run, lighter)
                launched(partial(run, config))
                return config

            stack.enter_context(mock.patch.object(module, "config_of", config_of))
        yield
