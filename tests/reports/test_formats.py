"""Numbers as text: each function at the values where its form changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from symground.reports.formats import (
    FEW,
    control_cell,
    corpus_size,
    interval,
    number,
    p_value,
    percent,
    scene_share,
    signed,
    stars,
    table_html,
    told_apart,
    with_deviation,
    with_interval,
)

NAN = np.nan
CONTROL = {"control": 1.234, "control_sd": 0.567, "short": 1, "examples": 10}
#: (function, its arguments, its text)
WRITTEN: list[tuple[Callable[..., Any], tuple[Any, ...], Any]] = [
    (number, (1.256,), "1.26"), (number, (-0.004,), "-0.004"), (number, (1.256, 1), "1.3"), (number, (NAN,), "–"),
    (signed, (1.256,), "+1.26"), (signed, (-1.2,), "-1.20"), (signed, (-0.004,), "-0.004"),
    (signed, (-0.0,), "+0.00"), (signed, (7e-15,), "+0.00"), (signed, (3e-9,), "+3e-09"), (signed, (NAN,), "–"),
    (with_deviation, (1.256, 0.5), "1.26 ± 0.50"), (with_deviation, (1.256, 0.5, 1), "1.3 ± 0.5"),
    (with_deviation, (1.256, NAN), "1.26"), (with_deviation, (NAN, 0.5), "–"), (with_deviation, (NAN, NAN), "–"),
    (control_cell, (CONTROL,), "1.23 ± 0.57"), (control_cell, (CONTROL, 1), "1.2 ± 0.6"),
    (control_cell, (CONTROL | {"short": 2},), FEW), (control_cell, (CONTROL | {"control": NAN},), "–"),
    (p_value, (NAN,), "–"), (p_value, (0.00099,), "< 0.001"), (p_value, (0.001,), "0.001"), (p_value, (1.0,), "1.000"),
    (stars, (0.00099,), "***"), (stars, (0.001,), "**"), (stars, (0.0099,), "**"), (stars, (0.01,), "*"),
    (stars, (0.049,), "*"), (stars, (0.05,), ""), (stars, (NAN,), ""),
    (interval, (0.123, 4.567), "[0.12, 4.57]"), (interval, (NAN, 4.0), "–"),
    (number, (0.0036,), "0.004"), (number, (0.000031,), "0.00003"), (number, (-7e-15,), "0.00"),
    (number, (-2e-8,), "-2e-08"), (number, (0.0004, 3), "0.0004"),
    (interval, (-0.0015, 0.0003), "[-0.0015, 0.0003]"), (interval, (-0.0015, 7.0), "[-0.002, 7.00]"),
    (with_interval, (-0.0008, -0.0015, -0.0003), "-0.0008 [-0.0015, -0.0003]"),
    (with_interval, (0.02, 0.0, 0.04), "0.02 [0.00, 0.04]"), (with_interval, (0.5, 0.001, 1.0), "0.50 [0.001, 1.00]"),
    (with_interval, (0.0, -2e-5, 0.01), "0.00 [-0.00002, 0.01]"), (with_interval, (0.0, 0.0, 0.0), "0.00 [0.00, 0.00]"),
    (with_deviation, (0.0123, 0.0002), "0.0123 ± 0.0002"), (percent, (0.004,), "0.4%"), (percent, (0.0,), "0%"),
    (percent, (0.456,), "46%"),
    (told_apart, ([0.0123, 0.0119, 0.0119, -0.5],), ["0.0123", "0.0119", "0.0119", "-0.5000"]),
    (told_apart, ([0.3, 0.2, NAN],), ["0.30", "0.20", "–"]), (told_apart, ([],), []),
    (with_interval, (1.0, 0.123, 4.567), "1.00 [0.12, 4.57]"), (with_interval, (1.0, NAN, NAN), "1.00"),
    (scene_share, ({"tokens": 200, "env_tokens": 50},), 0.25),
    (scene_share, ({"tokens": 200, "env_tokens": 50, "patches": 4},), 0.25),
    (scene_share, ({"tokens": 200, "env_tokens": 50, "documents_with_image": 5, "patches": 4},), 0.35),
    (corpus_size, ({"tokens": 2000, "env_tokens": 500},), "2,000 tokens, 25% of them ENV"),
    (corpus_size, ({"tokens": 200, "env_tokens": 50, "documents_with_image": 5, "patches": 4},),
     "200 tokens, 35% of them patches of images"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "given", "written"), WRITTEN)
def test_by_hand(function: Callable[..., Any], given: tuple[Any, ...], written: Any) -> None:
    assert function(*given) == written


@pytest.mark.parametrize(
    ("column", "value", "written"),
    [
        ("x", 0.00099, "0.001"), ("p", 0.00099, "&lt; 0.001"), ("p (Holm)", 0.00099, "&lt; 0.001"),
        ("gain p", 0.00099, "&lt; 0.001"), ("step", 0.0, "0.00"), ("x", np.inf, "never"), ("p", np.nan, "–"),
        ("x", 99.0, "99.00"), ("x", 100.0, "100"), ("x", -100.0, "-100"), ("x", 100.5, "100.50"),
        ("x", 12345.0, "12,345"), ("x", True, "yes"), ("x", False, "no"), ("x", None, "–"), ("x", 7, "7"),
        ("x", "a<b", "a&lt;b"),
    ],
)  # fmt: skip
def test_a_cell_of_a_table(column: str, value: object, written: str) -> None:
    html = table_html(pd.DataFrame({column: pd.Series([value], dtype=object)}))
    assert f"<td>{written}</td>" in html
    assert '<th scope="col">' in html
