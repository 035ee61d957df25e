"""Every op once against float64, and repeats to the bit: the first part of the GPU record after compilation."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.context import Context
from benchmarks.gpu.every_op import CASES, ON_GPU, Problem, results
from symground.machine import accuracy

REPEATS = 25
Made = dict[tuple[str, str], tuple[Problem, dict[str, Tensor]]]


def correctness(c: Context) -> None:
    """Errors of all cases first, beside those of eager PyTorch in the same dtype; then the repeats of all."""
    made: Made = {}
    for dtype in c.dtypes:
        for name in ("tiny",) if c.dry else ON_GPU:
            problem = CASES[name](dtype, c.device)
            made[name, dtype] = problem, results(problem, c.impl)
            _errors(c, name, dtype, *made[name, dtype])
    for (name, dtype), (problem, first) in made.items():
        _repeats(c, name, dtype, problem, first)


def _errors(c: Context, name: str, dtype: str, problem: Problem, found: dict[str, Tensor]) -> None:
    """The largest difference of each result, as a part of its largest number."""
    exact, eager = results(problem.double(), "reference"), results(problem, "reference")
    errors, wrong = {}, {}
    for key, right in exact.items():
        ours, eagers = (accuracy.error_of(x[key], right) for x in (found, eager))
        errors[key] = [ours, eagers]
        if not ours <= accuracy.allowed(eagers, getattr(torch, dtype)):
            wrong[key] = [ours, eagers]
    c.record.add(check="errors, and eager's", case=name, dtype=dtype, errors=errors, wrong=wrong)
    if wrong:
        c.write_failure(f"{name} {dtype}: off, and eager: {wrong}")


def _repeats(c: Context, name: str, dtype: str, problem: Problem, first: dict[str, Tensor]) -> None:
    """Every repeat gives the same bits by torch.equal, for which NaN is not equal to NaN."""
    different: dict[str, int] = {}
    asked, done = 2 if c.dry else REPEATS, 0
    while done < asked and c.left > 0:
        for key, value in results(problem, c.impl).items():
            if not torch.equal(value, first[key]):
                different[key] = different.get(key, 0) + 1
        done += 1
    finite = all(bool(x.isfinite().all()) for key, x in first.items() if key != "lse")
    c.record.add(
        check="repeats", case=name, dtype=dtype, repeats=done, asked=asked, compared=list(first), different=different,
        finite=finite,
    )  # fmt: skip
    if different or not finite:
        c.write_failure(f"{name} {dtype}: different {different}, all finite: {finite}")
