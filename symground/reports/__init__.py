"""Tables and figures of a study, as one HTML file."""

from symground.reports.page import report

__all__ = ["report"]
