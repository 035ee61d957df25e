"""The page of a model that was trained elsewhere has no steps, seeds or emergence: there is one state of it."""

from __future__ import annotations

from dataclasses import replace

from symground.reports.sections.parts import FigurePart, Section, TablePart

#: Parts that are about training, or that say the same as another if there is one state.
_PARTS = ("emergence", "training", "acquisition")
#: Columns of tables that are about training or about several runs.
_COLUMNS = (
    "step", "seed", "seeds", "over seeds", "emergence step", "overlap with the checkpoint before", "sd over seeds",
    "sd of layer over seeds", "sd seed",
)  # fmt: skip
#: The published table is of a training.
_KEPT = ("study",)


def without_training(section: Section) -> Section:
    """The section without parts, columns and captions about training. Downloads keep their columns."""
    parts = [_without(part) for part in section.parts if part.name not in _PARTS]
    return replace(section, parts=parts)


def _without(part: FigurePart | TablePart) -> FigurePart | TablePart:
    if isinstance(part, FigurePart) or part.name in _KEPT:
        return replace(part, of_training=False)
    shown = part.frame if part.shown is None else part.shown
    return replace(part, of_training=False, shown=shown.drop(columns=list(_COLUMNS), errors="ignore"))
