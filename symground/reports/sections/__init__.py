"""The sections of the report. Each is made from the results of a study."""

from symground.reports.sections.behaviour import behaviour
from symground.reports.sections.beside import beside
from symground.reports.sections.causal import causal
from symground.reports.sections.cooccurrence import cooccurrence
from symground.reports.sections.heads import heads
from symground.reports.sections.layers import layers
from symground.reports.sections.monitor import monitor

#: In the order of the page, after behaviour, which also takes ages of acquisition.
SECTIONS = (cooccurrence, layers, heads, causal, monitor)

__all__ = ["SECTIONS", "behaviour", "beside"]
