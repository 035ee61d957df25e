"""CHILDES: CHAT transcripts, read in parallel, as documents of a corpus."""

from symground.data.childes.chat import ChatSettings
from symground.data.childes.transcripts import add_transcripts

__all__ = [
    "ChatSettings",
    "add_transcripts",
]
