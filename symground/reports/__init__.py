"""Tables and figures, and the page that shows them."""

from symground.reports.pages.study import report
from symground.reports.patches import draw_patches

__all__ = ["draw_patches", "report"]
