"""Views of one text: what a model's heads read of it, as an HTML page and as figures."""

from symground.reports.views.page import View, view

__all__ = ["View", "view"]
