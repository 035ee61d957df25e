"""The steps at which checkpoints are saved, and the learning rate at each step."""

from __future__ import annotations

import math

DECAYS = ("cosine", "linear", "constant")


def checkpoint_schedule(text: str, steps: int) -> list[int]:
    """The steps given by ``text``, up to ``steps``, which is always the last.

    ``"0,1,2,4,…,64,every 100"`` is 0, 1, 2, 4, 8, 16, 32, 64 and every multiple of 100. ``...`` is ``…``.

    Raises:
        ValueError: the text cannot be parsed; names the part.
    """
    found = {steps}
    parts = [part.strip() for part in text.replace("...", "…").split(",")]
    for i, part in enumerate(parts):
        if part == "…":
            before, after = _number(parts, i - 1, text), _number(parts, i + 1, text)
            if before < 1:
                raise ValueError(f"checkpoints: doubling must start above 0, in {text!r}")
            while before < after:
                found.add(before)
                before *= 2
        elif part.startswith("every"):
            period = part.removeprefix("every").strip()
            if not period.isdigit() or int(period) == 0:
                raise ValueError(f"checkpoints: expected 'every N', got {part!r} in {text!r}")
            found.update(range(int(period), steps + 1, int(period)))
        else:
            found.add(_number(parts, i, text))
    return sorted(step for step in found if step <= steps)


def _number(parts: list[str], i: int, text: str) -> int:
    if not 0 <= i < len(parts) or not parts[i].isdigit():
        raise ValueError(f"checkpoints: expected numbers, 'every N' or '…' between two numbers; got {text!r}")
    return int(parts[i])


def learning_rate(step: int, peak: float, warmup: int, steps: int, decay: str = "cosine") -> float:
    """Linear warm-up to ``peak``, then down to a tenth of it at ``steps``, along a cosine or a line, or constant."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[decay]
    return peak * (0.1 + 0.9 * left)
