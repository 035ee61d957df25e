"""The numbers of a panel, small enough to be part of a page: bytes with a scale for each row, compressed.

The rows of heads that do not fit are left out, those with the least first.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symground.reports.views.panel import Numbers, Panel

#: The most bytes of the heads' rows of a page.
BUDGET = 7 * 2**20
_LEVELS = 2**15 - 1


def packed(panel: Panel, budget: int) -> dict[str, Any]:
    """A panel as values of JSON.

    Arrays are base64 of what zlib makes of their little-endian bytes. A row is int16; times its scale it is in nats, or
    a weight. ``places`` says at which row of ``rows`` each head's is, -1 where it was left out.
    """
    heads, length = panel.rows.shape[2:]
    rows = panel.rows.reshape(-1, length)
    there = np.isfinite(rows).all(1)
    sizes = np.where(there, np.abs(rows).sum(1), -1.0)
    order = np.argsort(-sizes, kind="stable")[: there.sum()]
    kept, blob = _fitting(rows, order, budget)
    places = np.full(len(rows), -1, np.int32)
    places[kept] = np.arange(len(kept))
    return {
        "name": panel.name, "signed": panel.signed, "tokens": list(panel.tokens), "layers": list(panel.layers),
        "heads": heads, "groups": list(panel.groups), "group": list(panel.group),
        "runs": [list(run) for run in panel.runs],
        "targets": [[t.at, t.said, None if np.isnan(t.surprisal) else round(t.surprisal, 3)]
                    for t in panel.targets],
        "rows": blob, "scales": _zipped(_scales(rows[kept])), "places": _zipped(places),
        "totals": _zipped(panel.totals.astype(np.float32)),
        "of_layers": _of(panel.of_layers.reshape(-1, length)), "of_all": _of(panel.of_all),
        "left_out": int(len(order) - len(kept)),
    }  # fmt: skip


def _fitting(rows: Numbers, order: NDArray[np.intp], budget: int) -> tuple[NDArray[np.intp], str]:
    """The largest of the rows whose bytes fit, in their own order, and these bytes."""
    count = len(order)
    while True:
        kept = np.sort(order[:count])
        blob = _zipped(_levels(rows[kept], _scales(rows[kept])))
        if len(blob) <= budget or not count:
            return kept, blob
        count = min(count - 1, int(count * 0.95 * budget / len(blob)))


def _of(rows: Numbers) -> dict[str, str]:
    scales = _scales(rows)
    return {"rows": _zipped(_levels(rows, scales)), "scales": _zipped(scales)}


def _scales(rows: Numbers) -> Numbers:
    """[M]: what the largest level of each row stands for."""
    largest: Numbers = np.abs(rows).max(1, initial=0.0)
    return largest.astype(np.float32)


def _levels(rows: Numbers, scales: Numbers) -> NDArray[np.int16]:
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(scales[:, None] > 0, rows / scales[:, None], 0.0)
    return np.round(share * _LEVELS).astype(np.int16)


def _zipped(values: NDArray[Any]) -> str:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(zlib.compress(np.ascontiguousarray(little).tobytes(), 6)).decode()
