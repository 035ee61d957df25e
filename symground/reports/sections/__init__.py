"""The report's sections, in the order of the page; each is made of a study's results."""

from symground.reports.sections.behaviour import behaviour
from symground.reports.sections.beside import beside
from symground.reports.sections.causal import causal
from symground.reports.sections.cooccurrence import cooccurrence
from symground.reports.sections.heads import heads
from symground.reports.sections.layers import layers
from symground.reports.sections.monitor import monitor

#: After behaviour, which is given ages of acquisition too.
SECTIONS = (cooccurrence, layers, heads, causal, monitor)

__all__ = ["SECTIONS", "behaviour", "beside"]
