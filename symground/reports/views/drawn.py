"""A view's text and map as matplotlib figures, in the colours of its page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, FuncNorm, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from symground.errors import integer
from symground.reports.figures import figure_of
from symground.reports.views.panel import Numbers, Panel, Run, scales_of

#: Blue lowers the surprisal, orange raises it: hues of ColorBrewer that any colour vision tells apart, as in view.css.
_LOW, _NONE, _HIGH = "#2166ac", "#ffffff", "#b35806"
_SIGNED = LinearSegmentedColormap.from_list("signed", [_LOW, _NONE, _HIGH])
_PLAIN = LinearSegmentedColormap.from_list("plain", [_NONE, _LOW])
_SAYS = "colour by the square root"
_LETTERS = 84
"""of a line of text."""
_LINE, _LETTER, _MARGIN, _TITLE, _BAR = 0.24, 0.0755, 0.15, 0.35, 0.75
"""inches; of a letter that of the font"""


def text_figure(panels: Sequence[Panel], target: int, layer: int | None, head: int | None) -> Figure:
    """The tokens of each panel, coloured by a row."""
    rows = [_row(panel, target, layer, head) for panel in panels]
    signed = panels[0].signed
    most = scales_of(panels)["all" if layer is None else "layer" if head is None else "head"]
    lines = [_lines(panel.parts) for panel in panels]
    heights = [len(of_panel) * _LINE for of_panel in lines]
    width, height = _LETTERS * _LETTER + 2 * _MARGIN, sum(heights) + len(panels) * _TITLE + _BAR
    figure = figure_of(width, height)
    figure.set_layout_engine("none")  # a letter has its own width
    scale = _scale(most, signed)
    top = height
    for panel, row, of_panel, own in zip(panels, rows, lines, heights, strict=True):
        top -= _TITLE + own
        axis = figure.add_axes((_MARGIN / width, top / height, 1 - 2 * _MARGIN / width, own / height))
        _draw(axis, panel, target, row, of_panel, scale)
    bar = figure.add_axes((0.1, 0.45 / height, 0.8, 0.12 / height))
    unit = "nats" if signed else "attention weight"
    figure.colorbar(
        ScalarMappable(scale, _map(signed)),
        cax=bar,
        orientation="horizontal",
        label=f"{unit}, {_what(layer, head, signed)}; {_SAYS}",
        ticks=_ticks(most, signed),
    )
    return figure


def heads_figure(panels: Sequence[Panel], target: int) -> Figure:
    """A map of layers and heads for each panel."""
    values = [panel.totals[integer("target", target, 0, len(panel.targets) - 1)] for panel in panels]
    most = scales_of(panels)["total"]
    layers, heads = values[0].shape
    figure = figure_of(len(panels) * (0.9 + 0.28 * heads) + 0.8, 1.1 + 0.24 * layers)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel, of_panel in zip(axes, panels, values, strict=True):
        shown = axis.imshow(of_panel, cmap=_PLAIN, norm=_scale(most, False), aspect="auto")
        axis.set_xlabel("head")
        axis.set_ylabel("layer")
        axis.set_yticks(
            range(0, layers, max(1, layers // 8)), [panel.layers[i] for i in range(0, layers, max(1, layers // 8))]
        )
        axis.set_xticks(range(0, heads, max(1, heads // 8)))
        axis.grid(False)
        axis.set_title(_title(panel, target), fontsize=10, parse_math=False)
    unit = "sum of |saliency|, nats" if panels[0].signed else "largest attention weight"
    figure.colorbar(shown, ax=list(axes), label=f"{unit};\n{_SAYS}", ticks=_ticks(most, False))
    return figure


def _scale(most: float, signed: bool) -> FuncNorm:
    """The scale of the page: the square root of the share, on both sides of 0; the ends stand for all beyond."""
    root = (lambda x: np.sign(x) * np.sqrt(np.abs(x))), (lambda x: np.sign(x) * np.square(x))
    return FuncNorm(root, -most if signed else 0.0, most, clip=True)


def _ticks(most: float, signed: bool) -> list[float]:
    return [share * most for share in ((-1.0, -0.25, 0.0, 0.25, 1.0) if signed else (0.0, 0.25, 1.0))]


def _row(panel: Panel, target: int, layer: int | None, head: int | None) -> Numbers:
    target = integer("target", target, 0, len(panel.targets) - 1)
    if layer is None:
        if head is not None:
            raise ValueError("layer: expected the head's layer, got None")
        of_all: Numbers = panel.of_all[target]
        return of_all
    if layer not in panel.layers:
        raise ValueError(f"layer: expected one of {list(panel.layers)}, got {layer}")
    at = panel.layers.index(layer)
    if head is None:
        of_layer: Numbers = panel.of_layers[target, at]
        return of_layer
    found: Numbers = panel.rows[target, at, integer("head", head, 0, panel.rows.shape[2] - 1)]
    if not np.isfinite(found).all():
        raise ValueError(f"head: layer {layer} has no head {head}")
    return found


def _what(layer: int | None, head: int | None, signed: bool) -> str:
    if layer is None:
        return "all layers" if signed else "mean over layers and heads"
    return f"layer {layer}" if head is None else f"layer {layer}, head {head}"


def _title(panel: Panel, target: int) -> str:
    of = panel.targets[target]
    said = "" if np.isnan(of.surprisal) else f" ({of.surprisal:.2f} nats)"
    name = f"{panel.name}: " if panel.name else ""
    return f"{name}{'target' if panel.signed else 'read by'} “{of.said.strip()}”{said}"


def _map(signed: bool) -> Colormap:
    return _SIGNED if signed else _PLAIN


def _lines(parts: Sequence[Run]) -> list[list[tuple[Run, int]]]:
    """Lines of (part of the text, first column)."""
    lines: list[list[tuple[Run, int]]] = [[]]
    column = 0
    for part in parts:
        width = len(_shown(part.text))
        if column + width > _LETTERS and lines[-1]:
            lines.append([])
            column = 0
        lines[-1].append((part, column))
        column += width
        if "\n" in part.text:
            lines.append([])
            column = 0
    return [line for line in lines if line]


def _shown(token: str) -> str:
    return token.replace("\n", "↵").replace("\t", "→")[: _LETTERS - 2] or "∅"


def _draw(
    axis: Axes, panel: Panel, target: int, row: Numbers, lines: Sequence[Sequence[tuple[Run, int]]], scale: Normalize
) -> None:
    axis.axis("off")
    axis.set_xlim(0, _LETTERS)
    axis.set_ylim(len(lines), 0)
    axis.set_title(_title(panel, target), fontsize=10, loc="left", parse_math=False)
    colours = _map(panel.signed)
    for y, line in enumerate(lines):
        for (start, stop, text), x in line:
            shown, colour = _shown(text), colours(scale(float(row[start:stop].sum())))
            axis.add_patch(Rectangle((x, y + 0.06), len(shown), 0.88, color=colour, linewidth=0))
            dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.5
            ink, weight = "white" if dark else "black", "bold" if start <= panel.targets[target].at < stop else "normal"
            axis.text(
                x, y + 0.5, shown, color=ink, weight=weight, family="monospace", fontsize=9, va="center",
                parse_math=False,
            )  # fmt: skip
