"""Gather and aggregate heads: which they are, how far they exceed chance, and what they predict about the output."""

from symground.analysis.heads.agreement import stability
from symground.analysis.heads.finding import DENOMINATORS, KINDS, HeadSet, find_heads, head_shares
from symground.analysis.heads.monitoring import monitor
from symground.analysis.heads.null_shares import share_table
from symground.analysis.heads.selection import INTERVENED, POSITIONS, SELECTIONS, SilencedHeads, silenced_heads

__all__ = [
    "DENOMINATORS",
    "INTERVENED",
    "KINDS",
    "POSITIONS",
    "SELECTIONS",
    "HeadSet",
    "SilencedHeads",
    "find_heads",
    "head_shares",
    "monitor",
    "share_table",
    "silenced_heads",
    "stability",
]
