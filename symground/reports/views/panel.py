"""What a view shows of one example of a trace or of attention weights: a panel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from symground.analysis.probing import IMAGE
from symground.errors import described, integer
from symground.reports.views.pieces import pieces_of

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Target:
    """A token whose row is shown: one that is predicted, or one that attends."""

    at: int
    """Where it stands in the text; -1 for a target that does not."""
    said: str
    """Its own text."""
    surprisal: float
    """nats; NaN of attention."""


class Run(NamedTuple):
    """Tokens [start, stop) that are shown as one, by the sum of their values."""

    start: int
    stop: int
    text: str


@dataclass(frozen=True)
class Panel:
    """T tokens, and for R targets the rows of every layer and head over them."""

    name: str
    tokens: tuple[str, ...]
    targets: tuple[Target, ...]
    layers: tuple[int, ...]
    rows: Numbers
    """[R,L,H,T] signed saliency in nats, or attention weights; NaN for heads that a layer lacks."""
    signed: bool
    groups: tuple[str, ...] = ()
    group: tuple[int, ...] = ()
    """Of each token its group, -1 for none."""
    runs: tuple[Run, ...] = ()
    """Placeholders of an image that stand beside each other."""

    @property
    def parts(self) -> list[Run]:
        """The text as it is shown: each token, and each run in place of its tokens."""
        run_at, inside = {run.start: run for run in self.runs}, {i for run in self.runs for i in range(*run[:2])}
        return [
            run_at.get(i) or Run(i, i + 1, token)
            for i, token in enumerate(self.tokens)
            if i in run_at or i not in inside
        ]

    @property
    def of_layers(self) -> Numbers:
        """[R,L,T]: the sum over heads, of attention the mean."""
        sums: Numbers = np.nansum(self.rows, 2) if self.signed else np.nanmean(self.rows, 2)
        return sums

    @property
    def of_all(self) -> Numbers:
        """[R,T]: the sum over layers of the layers' saliency with its sign, of attention the mean over layers."""
        found: Numbers = self.of_layers.sum(1) if self.signed else self.of_layers.mean(1)
        return found

    @property
    def totals(self) -> Numbers:
        """[R,L,H]: the sum of each head's absolute saliency, of attention its largest weight."""
        found: Numbers = np.abs(self.rows).sum(-1) if self.signed else self.rows.max(-1)
        return found


def scales_of(panels: Sequence[Panel]) -> dict[str, float]:
    """What the end of the colour scale stands for in each kind of row, one for all targets and panels.

    A few rows are many times as large as the others (those onto a text's first token), so that the scales of layers,
    heads and totals end where 99 % of the rows do.
    """

    def end(largest: Iterable[Numbers], share: float) -> float:
        values = np.sort(np.concatenate([each.ravel() for each in largest]))
        values = values[values > 0]  # NaN, of heads that a layer lacks, is not
        return float(values[min(len(values) - 1, int(share * len(values)))]) if len(values) else 1.0

    return {
        "all": end((np.abs(panel.of_all).max(-1) for panel in panels), 1.0),
        "layer": end((np.abs(panel.of_layers).max(-1) for panel in panels), 0.99),
        "head": end((np.abs(panel.rows).max(-1) for panel in panels), 0.99),
        "total": end((panel.totals for panel in panels), 0.99),
    }


def panel_of(traced: Any, tokenizer: Any, example: int, name: str, argument: str) -> Panel:
    """The panel of an example of what `symground.trace` or `symground.attention` returned.

    Raises:
        ValueError: it has no rows or no token ids, not so many examples, or layers that mix other positions than a
            text's; the message begins with ``argument``.
    """
    if not isinstance(traced, xr.Dataset):
        raise ValueError(
            f"{argument}: expected what symground.trace(…, rows=True) or symground.attention gives, got "
            f"{described(traced)}"
        )
    if of_several := sorted(
        {str(name).partition("_")[0] for name in traced.variables} & {"cross", "encoder", "vision"}
    ):
        kind = "an encoder-decoder" if "encoder" in of_several else f"a model with {of_several[0]} layers too"
        raise ValueError(f"{argument}: expected a trace of a decoder, whose rows are of one text; got one of {kind}")
    if "rows" not in traced:
        there = ", ".join(map(str, traced.data_vars)) or "nothing"
        raise ValueError(
            f"{argument}: expected rows to show, as symground.trace(…, rows=True) and symground.attention give them; "
            f"it has {there}"
        )
    if "token" not in traced.coords or "key" not in traced.rows.dims:
        raise ValueError(f"{argument}: expected the ids of a text (the coordinate token); embeddings have none")
    one = traced.isel(example=integer("example", example, 0, traced.sizes["example"] - 1))
    ids = one.token.values
    places = np.flatnonzero(ids >= 0)
    first, stop = int(places[0]), int(places[-1]) + 1  # without padding
    pieces = pieces_of(_fitting(tokenizer, first, stop, len(ids)), ids[first:stop].tolist())
    attends = "row_position" in one.coords
    rows, targets = (_attending if attends else _predicting)(one, _Text(ids, first, pieces, tokenizer))
    rows = np.asarray(rows[..., first:stop], np.float32)
    layers = tuple(int(layer) for layer in one.layer.values)
    groups, group = list[str](), [-1] * (stop - first)
    if "key_group" in one and "group" in one:
        groups, group = list(map(str, one.key_group.values)), one.group.values[first:stop].tolist()
    runs = _runs(ids[first:stop].tolist(), pieces, tokenizer, [g >= 0 and groups[g] == IMAGE for g in group])
    return Panel(name, tuple(pieces), targets, layers, rows, not attends, tuple(groups), tuple(group), runs)


def _runs(ids: Sequence[int], pieces: Sequence[str], tokenizer: Any, image: Sequence[bool]) -> tuple[Run, ...]:
    """Where several placeholders stand beside each other: of an image, of one special token, or beyond the words."""
    special = set(getattr(tokenizer, "all_special_ids", ()))
    kinds = [
        "image" if of_image or piece == f"[{i}]" else i if i in special else None
        for i, piece, of_image in zip(ids, pieces, image, strict=True)
    ]
    found = []
    for kind, of_kind in groupby(range(len(kinds)), key=kinds.__getitem__):
        start, *others = of_kind
        if kind is not None and others:
            text = "[image]" if kind == "image" else pieces[start].strip()
            found.append(Run(start, others[-1] + 1, f" {text}×{len(others) + 1}"))
    return tuple(found)


def _fitting(tokenizer: Any, first: int, stop: int, length: int) -> Any:
    """Texts of all tokens without those of padding; a tokenizer as it is."""
    given = isinstance(tokenizer, (list, tuple)) and len(tokenizer) == length
    return tokenizer[first:stop] if given else tokenizer


class _Text(NamedTuple):
    ids: NDArray[np.int64]
    """With padding at the ends, which is -1."""
    first: int
    """The first place without padding."""
    pieces: list[str]
    tokenizer: Any

    def said(self, place: int, token: int) -> tuple[int, str]:
        """Where a token stands that is predicted before that place, and its text; -1 if the text lacks it."""
        at = int(place) - self.first
        if 0 <= at < len(self.pieces) and self.ids[place] == token:
            return at, self.pieces[at]
        tokenizer = None if isinstance(self.tokenizer, (list, tuple)) else self.tokenizer
        return -1, pieces_of(tokenizer, [token])[0]


def _attending(one: xr.Dataset, text: _Text) -> tuple[NDArray[Any], tuple[Target, ...]]:
    """Rows [R,L,H,T] and their tokens."""
    of_row = "row" if "row" in one.rows.dims else "query"
    at = [int(p) - text.first for p in one.row_position.values]
    targets = tuple(Target(p, text.pieces[p] if 0 <= p < len(text.pieces) else "", np.nan) for p in at)
    return one.rows.transpose(of_row, "layer", "head", "key").values, targets


def _predicting(one: xr.Dataset, text: _Text) -> tuple[NDArray[Any], tuple[Target, ...]]:
    """Rows [R,L,H,T] and targets of a trace: one, or each token of a span by itself."""
    positions, tokens = (np.atleast_1d(one[name].values).astype(int) for name in ("prediction", "target_token"))
    there = positions >= 0  # an example may have fewer targets than others
    each = [text.said(p + 1, i) for p, i in zip(positions[there], tokens[there].tolist(), strict=True)]
    if "target" in one.rows.dims:
        rows = one.rows.transpose("target", "layer", "head", "key").values[there]
        surprisals = one.token_surprisal.values[there]
    else:  # the words of the span as one
        rows, surprisals = one.rows.transpose("layer", "head", "key").values[None], [one.surprisal.item()]
        each = [(each[0][0], "".join(said for _, said in each))]
    return rows, tuple(Target(at, said, float(s)) for (at, said), s in zip(each, surprisals, strict=True))
