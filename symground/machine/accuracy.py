"""An implementation against the reference in float64, beside the reference in the same dtype; and twenty repeats."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from symground import ops
from symground.machine.cases import Case, cases
from symground.machine.finding import Finding, said_by

REPEATS = 20
#: Implementations whose results are to repeat to the bit. The others are packages, which do not promise it.
_REPEAT = ("cpu", "flash", "triton", "torch", "cuda")
#: An error is allowed up to this many of eager's, or up to this many roundings of the largest number.
_OF_EAGER, _ROUNDINGS = 4, 8


def has(op: str, impl: str) -> bool:
    """Whether an op has an implementation of this name."""
    table = sys.modules[getattr(ops, op).__module__].IMPLEMENTATIONS
    return hasattr(table.get(impl), op)


def names(impl: str) -> Iterator[str]:
    """The calls that are compared, in each dtype."""
    return (_name(case) for case in cases() if has(case.op, impl))


def _name(case: Case) -> str:
    return f"{case.op} ({case.form})"


def compared(impl: str, device: str, dtype: torch.dtype) -> Iterator[Finding | dict[str, Any]]:
    """Before each case its name and dtype, so that both are known if the process ends; then what was found."""
    kind = str(dtype).removeprefix("torch.")
    for case in cases():
        if has(case.op, impl):
            yield {"begins": (_name(case), kind)}
            try:
                yield _compared(case, impl, device, dtype)
            except Exception as error:  # the next case may run all the same
                yield Finding(impl, device, "wrong", said_by(error), _name(case), kind)


def _compared(case: Case, impl: str, device: str, dtype: torch.dtype) -> Finding:
    kind = str(dtype).removeprefix("torch.")
    worst = Finding(impl, device, "right", "", _name(case), kind, error=0.0, eager=0.0)
    exact = _results(case, "reference", "cpu", dtype, torch.float64)
    with _as_promised(impl):
        try:
            found = _results(case, impl, device, dtype, dtype)
        except (ValueError, RuntimeError) as refusal:
            said = str(refusal)
            if f"impl '{impl}'" in said or f"impl: '{impl}'" in said:  # refused by us, not by a kernel
                return worst._replace(status="absent", said=said, error=None, eager=None)
            raise
        repeats = impl not in _REPEAT or all(
            all(torch.equal(a, b) for a, b in zip(_results(case, impl, device, dtype, dtype).values(), found.values(),
                                                  strict=True))
            for _ in range(REPEATS)
        )  # fmt: skip
    eager = _results(case, "reference", device, dtype, dtype)
    for key, right in exact.items():
        error, of_eager = error_of(found[key], right), error_of(eager[key], right)
        if not error <= allowed(of_eager, dtype):
            said = f"{key} is off by {error:.2g} of its largest number; plain PyTorch by {of_eager:.2g}"
            return worst._replace(status="wrong", said=said, error=error, eager=of_eager)
        if error > (worst.error or 0.0):
            worst = worst._replace(error=error, eager=of_eager)
    if not repeats:
        return worst._replace(status="wrong", said=f"{REPEATS} repeats do not give the same bits")
    return worst


@contextmanager
def _as_promised(impl: str) -> Iterator[None]:
    """Flash attention repeats to the bit where deterministic algorithms are required."""
    before = torch.are_deterministic_algorithms_enabled()
    if impl != "flash" or before:  # the setting is left alone, since torch imports its compiler to change it
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _results(case: Case, impl: str, device: str, rounded: torch.dtype, dtype: torch.dtype) -> dict[str, Tensor]:
    """Results and gradients by name, of inputs that are rounded and then given in ``dtype``."""
    wide = torch.promote_types(dtype, torch.float32)

    def placed(name: str, x: Any) -> Any:
        if isinstance(x, tuple):  # a probe
            return torch.zeros(1, dtype=wide, device=device).expand(x).requires_grad_()
        if not isinstance(x, Tensor):
            return x
        return x.to(device) if not x.is_floating_point() else x.to(device, wide)

    given = {
        n: (x.float().to(wide) if n == "lse" else x.to(rounded).to(dtype)).to(device) for n, x in case.floats.items()
    }
    for name in case.leaves:
        given[name] = given[name].requires_grad_()
    others = {n: placed(n, x) for n, x in case.others.items()}
    of = {**{n: given[n] for n in case.leaves}, **{n: x for n, x in others.items() if n.endswith("_probe")}}
    out = getattr(ops, case.op)(**given, **others, impl=impl)
    results = {f"result {i}": x for i, x in enumerate(out if isinstance(out, tuple) else (out,)) if x is not None}
    outputs = [x for x in results.values() if x.requires_grad]
    if outputs and of:
        drawn = torch.Generator().manual_seed(1)
        grads = [
            torch.randn(x.shape, dtype=torch.float64, generator=drawn).to(rounded).to(x.dtype).to(device)
            for x in outputs
        ]
        found = torch.autograd.grad(outputs, list(of.values()), grads, materialize_grads=True)
        results |= {f"gradient of {n}": x for n, x in zip(of, found, strict=True)}
    return {n: x.detach() for n, x in results.items()}


def allowed(of_eager: float, dtype: torch.dtype) -> float:
    """The largest error that is no fault, where eager's is ``of_eager``."""
    return _OF_EAGER * of_eager + _ROUNDINGS * torch.finfo(dtype).eps


def error_of(found: Tensor, right: Tensor) -> float:
    """The largest difference as a part of the largest number; NaN counts as infinitely wrong."""
    found, right = found.double().cpu(), right.double()
    off = torch.where(found == right, 0.0, (found - right).abs()).nan_to_num(nan=math.inf)
    finite = right[right.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return float(off.max()) / (largest or 1.0) if off.numel() else 0.0
