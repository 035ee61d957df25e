"""Text to ENV/LAN sequences: generated scenes, CHAT transcripts, the word-level tokenizer and the token arrays."""

from symground.data.chat import ChatSettings, add_transcripts
from symground.data.corpus import Corpus, CorpusBuilder
from symground.data.generated import GeneratedSettings, add_scenes
from symground.data.nouns import STUDY_NOUNS, nouns_over_threshold
from symground.data.words import env, lan, speaker

__all__ = [
    "STUDY_NOUNS",
    "ChatSettings",
    "Corpus",
    "CorpusBuilder",
    "GeneratedSettings",
    "add_scenes",
    "add_transcripts",
    "env",
    "lan",
    "nouns_over_threshold",
    "speaker",
]
