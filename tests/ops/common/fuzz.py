"""A configuration of the fuzz from its number: an op, arguments, an implementation, autocast, and a kind of derivative.

`python -m tests.ops.common.fuzz 0 10000` runs many; each failure is printed with its number, and
`python -m tests.ops.common.fuzz 4711` repeats that one.
"""

from __future__ import annotations

import random
import sys
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from tests.ops.common.drawing import HALF
from tests.ops.common.drawn import (
    DIFFERENTIABLE,
    OPS,
    Case,
    call,
    came,
    close,
    draw,
    exactly,
    expected,
    implementation,
    leaves_of,
    on_a_cpu,
)
from tests.ops.common.oracles import ORACLES

MODES = ("backward", "backward", "backward", "no grad", "inference", "second", "forward")


class WrongError(Exception):
    """A result differs from the oracle's."""


def configuration(number: int) -> str | None:
    """Run configuration ``number``; returns its error, or None."""
    rng = random.Random(number)
    op = rng.choice(OPS)
    impl = rng.choice(on_a_cpu(op))
    mode = rng.choice(MODES if op in DIFFERENTIABLE else ("no grad", "inference", "leaves"))
    case = draw(op, number, zeros=rng.choice((0.0, 0.0, 0.1, 0.3)))
    autocast = _autocast(case, rng), rng.choice((False, True))
    setting = f"{number}: impl={impl}, {mode}, autocast={autocast}, {case!r}"
    try:
        check(case, impl, mode, *autocast)
    except WrongError as wrong:
        return f"{setting}: {wrong}"
    except Exception as error:
        return f"{setting}: {type(error).__name__}: {error}"
    return None


def _autocast(case: Case, rng: random.Random) -> torch.dtype | None:
    """A dtype for autocast, but never the other half precision, where torch's own backward pass of a split fails."""
    halves = {x.dtype for x in case.given.values() if isinstance(x, Tensor) and x.dtype in HALF} or set(HALF)
    return rng.choice((None, *sorted(halves, key=str)))


def check(
    case: Case, impl: str, mode: str = "backward", autocast: torch.dtype | None = None, on_the_way_back: bool = False
) -> None:
    """Compare a case with its oracle: results, and gradients or the forward-mode derivative.

    Raises:
        WrongError: they differ.
    """
    dtype = _lowest(case)
    around = torch.autocast("cpu", autocast) if autocast is not None else nullcontext()
    back = torch.autocast("cpu", autocast) if autocast is not None and on_the_way_back else nullcontext()
    grad_mode = {"no grad": torch.no_grad(), "inference": torch.inference_mode()}.get(mode, nullcontext())
    leaves = leaves_of(case)
    with implementation(impl) as name:
        if mode == "forward":
            _forward_mode(case, name, dtype)
            return
        with around, grad_mode:
            results = call(case, name, **leaves)
        grads = came(case, results, 1) if case.op in DIFFERENTIABLE else ()
        wanted, gradients = expected(case, grads)
        _compare("result", results, wanted, dtype)
        outputs = [(x, g) for x, g in zip(results, grads, strict=False) if x is not None and x.requires_grad]
        if not outputs:
            assert mode != "backward" or not leaves
            return
        with back:
            found = torch.autograd.grad(
                [x for x, _ in outputs], list(leaves.values()), [g for _, g in outputs], materialize_grads=True,
                create_graph=mode == "second",
            )  # fmt: skip
        for name, got, right in zip(case.leaves, found, gradients, strict=True):
            if got.dtype != case.given[name].dtype:
                raise WrongError(f"gradient of {name}: dtype {got.dtype}")
            _compare(f"gradient of {name}", (got,), (right,), dtype)
        if mode == "second":
            _second(case, impl, dict(zip(case.leaves, found, strict=True)), leaves, grads, dtype)


def _second(
    case: Case, impl: str, found: dict[str, Tensor], leaves: dict[str, Tensor], grads: tuple[Tensor, ...],
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """The gradient of Σ g² over the gradients g of all leaves, or of one, is the oracle's, or refused by name."""
    names = [n for n in leaves if "probe" not in n]
    if len(names) < len(leaves):  # the gradient of a probe has no derivative in this test
        return
    z = exactly(case)
    first = sum((x * g.double()).sum() for x, g in zip(ORACLES[case.op](z).results, grads, strict=False))
    leading = [torch.zeros_like(z[n]) for n in names]
    if isinstance(first, Tensor) and first.requires_grad:
        leading = torch.autograd.grad(first, [z[n] for n in names], create_graph=True, materialize_grads=True)
    of = dict(zip(names, leading, strict=True))
    for chosen in (names, *([n] for n in names)):
        try:
            penalty = sum(found[n].double().square().sum() for n in chosen)
            if not isinstance(penalty, Tensor) or not penalty.requires_grad:
                continue
            again = torch.autograd.grad(penalty, [leaves[n] for n in names], materialize_grads=True, retain_graph=True)
        except NotImplementedError as refusal:
            known = impl == "reference" or (case.op == "linear_cross_entropy" and dtype not in HALF)
            if known or "second derivative" not in str(refusal):
                raise
            continue
        total = sum((of[n].square().sum() for n in chosen), torch.zeros(()))
        right = [torch.zeros_like(z[n]) for n in names]
        if total.requires_grad:
            right = list(torch.autograd.grad(total, [z[n] for n in names], materialize_grads=True, retain_graph=True))
        if dtype in (torch.float32, torch.float64):
            for n, a, b in zip(names, again, right, strict=True):
                _compare(f"derivative in {n} of the gradients of {', '.join(chosen)}", (a,), (b,), dtype)


def _forward_mode(case: Case, impl: str, dtype: torch.dtype) -> None:
    """The directional derivative agrees with the gradients, or is refused."""
    names = [n for n in case.leaves if n != "flow_probe"]
    if "flow_probe" in case.leaves or not names:
        return
    given = [case.given[n].detach().clone(memory_format=torch.contiguous_format) for n in names]  # torch requires it
    tangents = [torch.ones_like(x) for x in given]

    def run(*leaves: Tensor) -> tuple[Any, ...]:
        return tuple(x for x in call(case, impl, **dict(zip(names, leaves, strict=True)))[:1])

    try:
        results, changes = torch.func.jvp(run, tuple(given), tuple(tangents))
    except NotImplementedError:
        if impl == "reference":
            raise
        return
    if impl != "reference":
        raise WrongError("forward mode neither refused nor known")
    ones = (torch.ones_like(results[0]),) + ((torch.zeros_like(call(case, impl)[1]),) if case.op == "ssd" else ())
    _, gradients = expected(case, ones)
    right = sum(g.sum() for n, g in zip(case.leaves, gradients, strict=True) if n in names)
    terms = 1 + max((g.abs().sum() for g in gradients), default=torch.zeros(()))
    if dtype in (torch.float32, torch.float64) and abs(changes[0].double().sum() - right) > 1e-4 * terms:
        raise WrongError(f"forward mode gives {changes[0].double().sum()}, the gradients {right}")


def _lowest(case: Case) -> torch.dtype:
    """The coarsest dtype among the arguments, which determines the rounding error."""
    dtypes = {x.dtype for x in case.given.values() if isinstance(x, Tensor) and x.is_floating_point()}
    return max(dtypes, key=lambda d: torch.finfo(d).eps)


def _compare(what: str, got: tuple[Any, ...], wanted: tuple[Any, ...], dtype: torch.dtype) -> None:
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if a is None or b is None:
            if a is not b:
                raise WrongError(f"{what} {i}: expected {b}, got {a}")
        elif not close(a, b, dtype):
            off = (a.detach().double() - b).abs().max() if a.shape == b.shape and a.numel() else "-"
            raise WrongError(f"{what} {i}: shape {list(a.shape)}, expected {list(b.shape)}, off by {off}")


def main(first: int, last: int) -> int:
    """Run configurations [first, last), print their errors, and return how many failed."""
    found = 0
    for number in range(first, last):
        print(number, file=sys.stderr, end="\r")  # the last one printed is that of a fault
        wrong = configuration(number)
        if wrong is not None:
            found += 1
            print(wrong, flush=True)
    print(f"{last - first} configurations, {found} findings")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    numbers = [int(n) for n in sys.argv[1:]]
    sys.exit(bool(main(numbers[0], numbers[1] if len(numbers) > 1 else numbers[0] + 1)))
