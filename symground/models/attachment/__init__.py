"""Attach makes a model traceable in place; lookup returns its mixers."""

from symground.models.attachment.attaching import attach, detach
from symground.models.attachment.call_arguments import leave_positions
from symground.models.attachment.lookup import check_model, is_attached, mixers, reads_whole, untraced

__all__ = ["attach", "check_model", "detach", "is_attached", "leave_positions", "mixers", "reads_whole", "untraced"]
