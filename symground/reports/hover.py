"""The values that a finished figure shows, read from its artists, for the tooltips of a page.

An artist counts if it has a label or was given one by `called`; the others (thresholds, diagonals) are guides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_rgba_array
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter
from numpy.typing import NDArray

_DOTS = 72  # per inch, in an SVG of matplotlib
_Numbers = NDArray[np.float64]
_Some = TypeVar("_Some", bound=Artist)


class _Series(NamedTuple):
    artist: Any
    label: str
    places: _Numbers
    """[M,2] in the units of the axes."""
    ends: _Numbers | None = None
    """[M,2] of the interval that is drawn around y."""
    corners: _Numbers | None = None
    """[M,2,2] of cells, the lowest and the highest."""


def called(artist: _Some, label: str = "", names: Sequence[str] = ()) -> _Some:
    """The artist, with what a page calls its points: a label of all of them, and a name of each."""
    artist._called = label, tuple(names)  # type: ignore[attr-defined]
    return artist


def series_of(figure: Figure) -> list[dict[str, Any]]:
    """The series of a figure that was drawn: {of: label, x: label of its axis, y: of the other, points}.

    A point is [x, y, text of x, text of y, name], and a cell [x, y, text, text, name, width, height]. Places are in
    units of the figure's SVG, those of a cell its upper left corner.
    """
    height = figure.get_figheight() * _DOTS
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    shared = next((axes.get_ylabel() for axes in panels if axes.get_ylabel()), "")  # of panels only one has the label
    bars = [artist.colorbar for axes in panels for artist in axes.collections if artist.colorbar is not None]
    found = []
    for axes in panels:
        for series in _series(axes):
            label, names = getattr(series.artist, "_called", ("", ()))
            is_cell = series.corners is not None
            texts = _cells(series.artist) if is_cell else _texts(axes, series)
            points = []
            for i, (place, text) in enumerate(zip(series.places, texts, strict=True)):
                if not np.isfinite(place).all() or not _inside(axes, place):
                    continue
                corners = place[None] if series.corners is None else series.corners[i]
                at = axes.transData.transform(corners) * _DOTS / figure.dpi * (1, -1) + (0, height)
                (left, top), size = at.min(0), np.ptp(at, axis=0)
                name = names[i] if i < len(names) else ""
                points.append(
                    [*np.round((left, top), 1).tolist(), *text, name, *np.round(size, 1).tolist()[: 2 * is_cell]]
                )
            if points:
                parts = dict.fromkeys((axes.get_title(), label or series.label))
                own = getattr(series.artist, "colorbar", None) or (bars[0] if bars and is_cell else None)
                y = own.ax.get_ylabel() if own else axes.get_ylabel() or shared
                found.append({"of": ", ".join(filter(None, parts)), "x": axes.get_xlabel(), "y": y, "points": points})
    return found


def _series(axes: Axes) -> Iterator[_Series]:
    errors = [each for each in axes.containers if isinstance(each, ErrorbarContainer)]
    of_errors = {id(each.lines[0]) for each in errors}
    for line in axes.lines:
        if (label := _label(line)) and id(line) not in of_errors:
            yield _Series(line, label, _pairs(line.get_xdata(), line.get_ydata()), _band(axes, line))
    for each in errors:
        places = _pairs(each.lines[0].get_xdata(), each.lines[0].get_ydata())
        ends = [np.sort([ends[:, 1] for ends in bar.get_segments()], 1) for bar in each.lines[2]]
        yield _Series(each, str(each.get_label()), places, ends[0] if ends else None)
    for bars in axes.containers:
        if isinstance(bars, BarContainer):
            wide = bars.orientation == "horizontal"
            tips = [
                (p.get_x() + p.get_width() * (1 if wide else 0.5), p.get_y() + p.get_height() * (0.5 if wide else 1))
                for p in bars.patches
            ]
            yield _Series(bars, str(bars.get_label()), np.array(tips, float).reshape(-1, 2))
    for artist in axes.collections:
        if isinstance(artist, PathCollection) and (label := _label(artist)):
            yield _Series(artist, label, np.ma.filled(artist.get_offsets(), np.nan).astype(float))
        if isinstance(artist, QuadMesh):
            grid = np.asarray(artist.get_coordinates(), float)
            corners = np.stack([grid[:-1, :-1], grid[1:, 1:]], -2).reshape(-1, 2, 2)
            yield _Series(artist, "", corners.mean(1), corners=corners)


def _label(artist: Artist) -> str:
    given = getattr(artist, "_called", None)
    label = str(artist.get_label())
    return "" if label.startswith("_") and given is None else (given or ("",))[0] or label.lstrip("_")


def _pairs(x: Any, y: Any) -> _Numbers:
    return np.stack([np.asarray(x, float), np.asarray(y, float)], -1)


def _band(axes: Axes, line: Line2D) -> _Numbers | None:
    """The ends [M,2] of the band of the line's colour around it; None if there is none."""
    x, colour = np.asarray(line.get_xdata(), float), to_rgba_array([line.get_color()])[0, :3]
    for artist in axes.collections:
        faces = to_rgba_array(artist.get_facecolor())
        if isinstance(artist, PolyCollection) and len(faces) and (faces[0, :3] == colour).all():
            paths = [np.asarray(path.vertices) for path in artist.get_paths()]  # several where some values are NaN
            edge = np.concatenate([np.empty((0, 2)), *paths])
            if len(edge) and np.isin(edge[:, 0], x).all():
                at = [edge[edge[:, 0] == value, 1] for value in x]
                return np.array([(y.min(), y.max()) if len(y) else (np.nan, np.nan) for y in at])
    return None


def _texts(axes: Axes, series: _Series) -> list[tuple[str, str]]:
    texts = [(_text(axes.xaxis, x), _text(axes.yaxis, y)) for x, y in series.places]
    if series.ends is None:
        return texts
    drawn = [f" [{_number(low)}, {_number(high)}]" if high > low else "" for low, high in series.ends]
    return [(x, y + ends) for (x, y), ends in zip(texts, drawn, strict=True)]


def _cells(mesh: QuadMesh) -> list[tuple[str, str]]:
    values: _Numbers = np.ma.asarray(mesh.get_array(), float).filled(np.nan)
    return [("", _number(value)) for value in values.ravel().tolist()]


def _text(axis: Axis, value: float) -> str:
    """A value, or the label of its tick on an axis of names."""
    names = axis.get_major_formatter()
    if isinstance(axis.get_major_locator(), FixedLocator) and isinstance(names, FuncFormatter):
        ticks = axis.get_majorticklocs()
        return names.format_ticks(list(ticks))[int(np.abs(ticks - value).argmin())]
    return _number(value)


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    value = 0.0 if abs(value) < 1e-12 else float(value)  # the rest of a rounding
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.4g}"


def _inside(axes: Axes, place: _Numbers) -> bool:
    limits = ((place[0], *sorted(axes.get_xlim())), (place[1], *sorted(axes.get_ylim())))
    return all(low - 1e-9 <= value <= high + 1e-9 for value, low, high in limits)
