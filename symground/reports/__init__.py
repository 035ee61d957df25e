"""Tables and figures, and the page that shows them."""

from symground.reports.pages.study import report
from symground.reports.patches import draw_patches
from symground.reports.views import View, view

__all__ = ["View", "draw_patches", "report", "view"]
