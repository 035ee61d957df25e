"""Text and images as sequences of ENV and LAN tokens: transcripts, dialogues, generated scenes, image questions."""

from symground.data.childes import ChatSettings, add_transcripts
from symground.data.questions import Question, pope_questions, read_questions, write_questions
from symground.data.scenes import GeneratedSettings, add_scenes
from symground.data.sequences import Corpus, CorpusBuilder
from symground.data.visdial import DialogSettings, add_dialogues
from symground.data.words import STUDY_NOUNS, env, lan, noun_list, nouns_over_threshold, speaker

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
