"""A view of one text: the tokens in colour, a map of layers and heads, and the rows of what is chosen."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from symground.analysis import ImageQuestions
from symground.errors import check_file, check_kind, described
from symground.files import replacing
from symground.reports.template import render, script_json
from symground.reports.views.drawn import heads_figure, text_figure
from symground.reports.views.packed import BUDGET, packed
from symground.reports.views.panel import Panel, panel_of, scales_of

#: The largest side of a picture in a page, in pixels.
_WIDEST = 640


class View:
    """What :func:`symground.view` makes: a page, and the same as figures. A notebook shows it by itself."""

    def __init__(self, panels: tuple[Panel, ...], title: str, picture: dict[str, Any] | None) -> None:
        self._panels, self._title, self._picture = panels, title, picture

    def __repr__(self) -> str:
        of = " beside ".join(f"{len(p.tokens)} tokens, {len(p.targets)} targets" for p in self._panels)
        layers, heads = self._panels[0].rows.shape[1:3]
        return f"View: {of}, {layers} layers of {heads} heads; .save(path) writes its page"

    @property
    def html(self) -> str:
        """The page: one HTML text that needs neither a network nor another file."""
        values = {
            "title": self._title, "picture": self._picture, "scales": scales_of(self._panels),
            "panels": [packed(panel, BUDGET // len(self._panels)) for panel in self._panels],
        }  # fmt: skip
        return render("view.html.jinja", title=self._title, data=script_json(values), picture=self._picture)

    def save(self, path: str | Path) -> Path:
        """Write the page; returns its path.

        Raises:
            ValueError: ``path`` is none, a folder, or in a folder that does not exist.
        """
        file = check_file(path, "path")
        with replacing(file) as partial:
            partial.write_text(self.html, encoding="utf-8")
        return file

    def _repr_html_(self) -> str:
        # A page of its own, whose scripts and styles cannot reach the notebook's.
        return (
            f'<iframe srcdoc="{escape(self.html, quote=True)}" sandbox="allow-scripts" title="{escape(self._title)}" '
            'style="width:100%;height:44rem;border:1px solid #8888"></iframe>'
        )

    def text_figure(self, target: int = 0, layer: int | None = None, head: int | None = None) -> Figure:
        """The tokens in the colours of the page, for a target, of all layers, a layer or a head.

        Raises:
            ValueError: there is no such target, layer or head.
        """
        return text_figure(self._panels, target, layer, head)

    def heads_figure(self, target: int = 0) -> Figure:
        """The map of layers and heads for a target: the sum of each head's absolute saliency, or its largest weight.

        Raises:
            ValueError: there is no such target.
        """
        return heads_figure(self._panels, target)


def view(
    traced: xr.Dataset,
    tokenizer: Any = None,
    *,
    beside: xr.Dataset | None = None,
    names: tuple[str, str] = ("first", "second"),
    example: int = 0,
    title: str = "symground",
    questions: ImageQuestions | None = None,
) -> View:
    """A page to look at one text: which word of it speaks for a word that is predicted, and by which heads.

    The tokens are coloured by their signed saliency in nats at the prediction position, summed over layers and heads:
    blue ones lower the surprisal of the target, orange ones raise it. Of attention weights, the mean over layers and
    heads. A click on a target shows its row; one on a head of the map, or on a layer, shows that row on the text; and
    one on a token shows which heads read it. The colour scale of each kind of row is one for all targets and both
    texts, so that colours can be compared.

    Args:
        traced: from :func:`symground.trace` with ``rows=True``, best of a span with ``per_token=True``; or from
            :func:`symground.attention` with rows.
        tokenizer: the model's, or a list of the texts of all tokens; None shows the ids.
        beside: a second one that is shown beside the first, of the same layers: a mismatched text, a model with heads
            silenced.
        names: of the two.
        example: which example is shown.
        title: of the page.
        questions: the questions about images that were traced, all of them; the picture of this example is shown with
            the values of its patches over it.

    Returns:
        A `View`: ``save(path)`` writes the page, a notebook shows it, ``text_figure()`` and ``heads_figure()`` are the
        same as matplotlib figures. The page has the rows of the heads with the largest sums, as many as 7 MB hold.

    Raises:
        ValueError: a trace without rows, or of embeddings, an example or a tokenizer that does not fit, or two traces
            of other layers.

    Source: Wang et al. 2023 (saliency); the colours are those of ColorBrewer's PuOr, which are told apart with any
    colour vision.
    """
    check_kind(title, str, "title")
    if not isinstance(names, (tuple, list)) or len(names) != 2 or not all(isinstance(n, str) for n in names):
        raise ValueError(f"names: expected a name for each of the two texts, got {described(names)}")
    panels = [panel_of(traced, tokenizer, example, "" if beside is None else names[0], "traced")]
    if beside is not None:
        panels.append(panel_of(beside, tokenizer, example, names[1], "beside"))
        if panels[0].layers != panels[1].layers or panels[0].signed != panels[1].signed:
            raise ValueError("beside: expected the same layers and the same kind of rows as traced has")
        counts = [len(panel.targets) for panel in panels]
        if counts[0] != counts[1]:
            raise ValueError(f"beside: expected as many targets as traced has, {counts[0]}, got {counts[1]}")
    picture = None if questions is None else _picture_of(questions, example, traced.sizes["example"])
    return View(tuple(panels), title, picture)


def _picture_of(questions: Any, example: int, examples: int) -> dict[str, Any]:
    """The picture of a question as PNG, and which token's patch lies where: boxes of [rows][columns] of tokens."""
    if not isinstance(questions, ImageQuestions):
        raise ValueError(f"questions: expected what symground.image_questions makes, got {described(questions)}")
    if len(questions) != examples:
        raise ValueError(f"questions: expected the {examples} questions that were traced, got {len(questions)}")
    prompt, picture = questions.prompts[example], questions.picture(example).convert("RGB")
    if not prompt.maps:
        raise ValueError("questions: expected a model whose image tokens lie in the picture in a known way")
    picture.thumbnail((_WIDEST, _WIDEST))
    written, places = io.BytesIO(), np.array(prompt.spans["image"])
    picture.save(written, "PNG")
    return {
        "source": f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}",
        "width": picture.width, "height": picture.height,
        "maps": [{"places": places[grid].tolist(), "box": list(box)} for grid, box in prompt.maps],
    }  # fmt: skip
