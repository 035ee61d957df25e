"""Schedules of checkpoints and learning rates, and settings that are refused."""

from __future__ import annotations

import itertools

import pytest

from symground.training import Hardware, TrainSettings
from symground.training.schedule import checkpoint_schedule, learning_rate


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("0,1,2,4,…,16,every 10", [0, 1, 2, 4, 8, 10, 16, 20, 25]),
        ("3,...,24", [3, 6, 12, 24, 25]),
        ("0", [0, 25]),
        ("every 100", [25]),
    ],
)
def test_schedule(text: str, steps: list[int]) -> None:
    assert checkpoint_schedule(text, 25) == steps


@pytest.mark.parametrize("text", ["", "one", "every", "every 0", "…,4", "0,…,8", "1,-2"])
def test_a_schedule_that_does_not_parse_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^checkpoints: "):
        TrainSettings(checkpoints=text)


def test_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    rates = [learning_rate(step, 1.0, 10, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize(("decay", "half", "end"), [("linear", 0.55, 0.1), ("cosine", 0.55, 0.1), ("constant", 1, 1)])
def test_ways_of_decay(decay: str, half: float, end: float) -> None:
    assert learning_rate(60, 1.0, 10, 110, decay) == pytest.approx(half)
    assert learning_rate(110, 1.0, 10, 110, decay) == pytest.approx(end)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "steep"}, "decay: expected one of 'cosine', 'linear', 'constant'; got 'steep'"),
        ({"precision": "float16"}, "precision: expected one of 'float32', 'bfloat16'; got 'float16'"),
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="accumulate: expected an integer of at least 1, got 0"):
        Hardware(accumulate=0)
