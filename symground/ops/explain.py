"""Which implementation of an op would run, and why; asked of the code that chooses it (`ops/common/dispatch.py`)."""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

from symground.errors import choice
from symground.ops.attention.api import attention, attention_flow, attention_saliency, attention_saliency_rows
from symground.ops.attention.weights.api import (
    attention_mass,
    attention_pooled,
    attention_received,
    attention_rows,
    attention_summary,
    attention_topk,
)
from symground.ops.common.dispatch import Answer, Question
from symground.ops.gate.api import gate_heads
from symground.ops.mamba2.api import causal_conv1d, mamba2_inner
from symground.ops.ssd.api import ssd, ssd_flow, ssd_saliency
from symground.ops.ssd.weights.api import ssd_mass, ssd_received, ssd_rows
from symground.ops.vocabulary.api import candidate_surprisal, lens_surprisal, linear_cross_entropy

_OPS: dict[str, Any] = {
    op.__name__: op
    for op in (
        attention, attention_saliency, attention_saliency_rows, attention_flow, attention_rows, attention_mass,
        attention_received, attention_summary, attention_pooled, attention_topk, ssd, ssd_saliency, ssd_flow, ssd_rows,
        ssd_mass, ssd_received, candidate_surprisal, lens_surprisal, linear_cross_entropy, causal_conv1d, mamba2_inner,
        gate_heads,
    )
}  # fmt: skip


class Explanation(NamedTuple):
    """Which implementation of an op would run with given arguments. Printed, it is a table."""

    op: str
    #: The name of the implementation; None if the op would raise an error, which the reasons say.
    impl: str | None
    #: Implementation → why it would run, or why not, in the order in which ``impl=None`` tries them.
    reasons: dict[str, str]

    def __str__(self) -> str:
        head = f"{self.op}: " + ("nothing runs, the op refuses" if self.impl is None else f"{self.impl} runs")
        width = max(map(len, self.reasons), default=0) + 4
        return "\n".join(
            [head]
            + [
                textwrap.fill(why, 120, initial_indent=f"  {name}".ljust(width), subsequent_indent=" " * width)
                for name, why in self.reasons.items()
            ]
        )


def explain(*args: Any, impl: str | None = None, **kw: Any) -> Explanation:
    """Which implementation would run with these arguments, and why each other one would not. Nothing is computed.

    The answer holds where it is asked for: within ``torch.func.grad`` and with the dual numbers of forward mode an op
    refuses what has no such derivative. It does not foresee what ``backward()`` may request later, a second derivative,
    or what the norm of a lens returns.

    Args:
        args, kw: the arguments of :func:`symground.ops.attention`; or the name of another op, such as "ssd", and its
            arguments.
        impl: as of the op; with a name, whether this one would run.

    Returns:
        the op, the implementation and a reason for each; it prints as a table.

    Raises:
        ValueError: an argument is wrong, ``impl`` included; as of the op, or "op: …" for a name that is none. An
            implementation that exists and does not run here is no error: the result says so.
        TypeError: an argument is missing or has a name that the op does not know.

    Source: no formula; the rules are those of the implementations: ``refuses``, ``lacks`` and ``declines``.

    Example:
        >>> q = torch.randn(1, 2, 5, 8)
        >>> ops.explain(q, q, q, impl="torch").impl
        'torch'
        >>> ops.explain(q, q, q, impl="flash").reasons["flash"]
        "impl: 'flash' expected float16 or bfloat16, got torch.float32"
        >>> ops.explain("gate_heads", q, torch.ones(5), impl="reference").impl
        'reference'
    """
    name = "attention"
    if args and isinstance(args[0], str):
        name, *args = args  # type: ignore[assignment]
        choice("op", name, _OPS)
    try:
        _OPS[name](*args, **kw, impl=Question(impl))
    except Answer as answer:
        return Explanation(answer.op, answer.impl, answer.reasons)
    raise AssertionError(f"ops.{name} has run in place of being explained")
