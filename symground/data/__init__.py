"""Text as ENV/LAN sequences: generated scenes, CHAT transcripts, the word-level tokenizer and the token arrays."""

from symground.data.builder import CorpusBuilder
from symground.data.chat import ChatSettings
from symground.data.childes import add_transcripts
from symground.data.corpus import Corpus
from symground.data.generated import GeneratedSettings, add_scenes
from symground.data.nouns import STUDY_NOUNS, noun_list, nouns_over_threshold
from symground.data.pope import pope_questions
from symground.data.questions import Question, read_questions, write_questions
from symground.data.visdial import DialogSettings, add_dialogues
from symground.data.words import env, lan, speaker

__all__ = [
    "STUDY_NOUNS",
    "ChatSettings",
    "Corpus",
    "CorpusBuilder",
    "DialogSettings",
    "GeneratedSettings",
    "Question",
    "add_dialogues",
    "add_scenes",
    "add_transcripts",
    "env",
    "lan",
    "noun_list",
    "nouns_over_threshold",
    "pope_questions",
    "read_questions",
    "speaker",
    "write_questions",
]
