"""The style of figures, and how they are written: as SVG in the page, and as PNG and PDF."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogFormatter
from numpy.typing import ArrayLike

from symground.files import replacing
from symground.reports.hover import called, series_of
from symground.reports.template import attribute_json

MATCHED, MISMATCHED = "#0b6e8a", "#b4532a"
PALETTE = ("#0b6e8a", "#b4532a", "#5a7d2a", "#7a4fa3", "#8a6d0b", "#5b6b7a")
GRID, INK = "#e4e4e4", "#000000"
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
    "svg.hashsalt": "symground",  # same data, same bytes
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, in the report's style."""
    matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]
    return Figure(figsize=(width, height), layout="constrained")


class CountFormatter(LogFormatter):
    """Counts on a logarithmic axis in digits; matplotlib's own labels are formulas (10³)."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:,.0f}" if super().__call__(x, pos) else ""


@contextmanager
def words_are_no_formulas(figure: Figure) -> Iterator[None]:
    """Within the block, no text of the figure is parsed as mathematics, since words and names may have dollar signs."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with matplotlib.rc_context({"text.parse_math": False}):  # for texts that are created while it is drawn
        yield


def svg_of(figure: Figure, name: str = "") -> str:
    """The figure as SVG.

    With a name, the SVG is for a page: its colours are the page's, in light and dark mode, and its identifiers begin
    with the name, so that one page can have several figures. The values of its points are in the attribute
    ``data-series``, as `series_of` gives them, for the page's tooltips.
    """
    text = io.StringIO()
    with words_are_no_formulas(figure):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]
    if not name:
        return svg
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--line)")
    for i, colour in enumerate(PALETTE):
        svg = svg.replace(colour, f"var(--c{i})")
    # Without this, text would be black in dark mode too.
    svg = svg.replace("<svg ", '<svg fill="currentColor" ', 1)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)  # the page scales it by its width
    return svg.replace("<svg ", f"<svg data-series='{attribute_json(series_of(figure))}' ", 1)


def write_figures(figures: Iterable[tuple[str, Figure]], folder: Path) -> list[Path]:
    """Write each figure as PNG (300 dots per inch) and PDF; returns the paths."""
    written = []
    for name, figure in figures:
        for kind, more in (("png", {"dpi": 300}), ("pdf", {"metadata": {"CreationDate": None}})):
            path = folder / f"{name}.{kind}"
            with words_are_no_formulas(figure), replacing(path) as partial:
                figure.savefig(partial, format=kind, **more)
            written.append(path)
    return written


def colours() -> Iterator[str]:
    """The palette's colours, repeated without end, since there may be more lines than colours."""
    return cycle(PALETTE)


def band(axes: Axes, x: ArrayLike, frame: pd.DataFrame, name: str, colour: str, label: str) -> None:
    """Draw the column ``name`` as a line with its 95 % interval, over seeds if there are several, else over nouns."""
    seeds = f"{name}_seed_low"
    ends = ("seed_low", "seed_high") if seeds in frame and frame[seeds].notna().any() else ("low", "high")
    low, high = (frame[f"{name}_{end}"].fillna(frame[name]) for end in ends)
    axes.plot(x, frame[name], color=colour, linewidth=1.4, marker=".", markersize=4, label=label)
    axes.fill_between(np.asarray(x, dtype=float), low, high, color=colour, alpha=0.18, linewidth=0)


def over_steps(axes: Axes, steps: ArrayLike) -> None:
    """Make the horizontal axis one of training steps, to scale.

    A logarithmic axis is linear up to its first step after 0, so that a checkpoint at step 0 has a place.
    """
    first = logarithmic_from(steps)
    if first is not None:
        axes.set_xscale("symlog", linthresh=first)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.minorticks_off()
        axes.set_xlim(left=max(axes.get_xlim()[0], -first / 4))  # no ticks at steps below 0
    axes.set_xlabel("step" if first is None else f"step (logarithmic from {first:,.0f} on)")


def logarithmic_from(steps: ArrayLike) -> float | None:
    """The first step after 0 if more than half of the checkpoints are in the first tenth of the training, else None."""
    at = np.unique(np.asarray(steps, dtype=float))
    early = at[at <= at.max(initial=0) / 10]
    return float(early[early > 0].min()) if 2 * len(early) > len(at) and early.any() else None


def heat_map(axes: Axes, table: pd.DataFrame, largest: float | None = None) -> QuadMesh:
    """Draw a table [layers or depths, training steps] as colours.

    A column reaches halfway to the checkpoints beside it, so that it is as wide as its stretch of the training.
    """
    steps, rows = table.columns.to_numpy(float), table.index.to_list()
    between = (steps[1:] + steps[:-1]) / 2
    image = axes.pcolormesh(
        np.concatenate([steps[:1], between, steps[-1:]]), np.arange(len(rows) + 1) - 0.5, table.to_numpy(float),
        cmap="viridis", vmin=0, vmax=largest, rasterized=True,
    )  # fmt: skip
    over_steps(axes, steps)
    axes.set_yticks(np.arange(len(rows)), [str(row) for row in rows])
    axes.grid(visible=False)
    return called(image, names=[f"step {step:,.0f}, {table.index.name} {row}" for row in rows for step in steps])
