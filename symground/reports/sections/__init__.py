"""The sections of the report. Each is made from the results of a study."""

from __future__ import annotations

from collections.abc import Mapping

from symground.reports.sections.behaviour import behaviour
from symground.reports.sections.beside import beside
from symground.reports.sections.causal import causal
from symground.reports.sections.cooccurrence import cooccurrence
from symground.reports.sections.elsewhere import without_training
from symground.reports.sections.heads import heads
from symground.reports.sections.layers import layers
from symground.reports.sections.monitor import monitor
from symground.reports.sections.parts import Section, StudyResults

#: In the order of the page, after behaviour, which also takes ages of acquisition.
SECTIONS = (cooccurrence, layers, heads, causal, monitor)

__all__ = ["SECTIONS", "behaviour", "beside", "sections_of"]


def sections_of(study: StudyResults, ages: Mapping[str, float] | None = None) -> list[Section]:
    """The sections of a study's page. Those of a model that was trained elsewhere do not speak of training."""
    sections = [section(study) for section in SECTIONS if not (study.pretrained and section is cooccurrence)]
    sections = [behaviour(study, ages), *sections]
    return [without_training(section) for section in sections] if study.pretrained else sections
