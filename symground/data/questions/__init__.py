"""Questions about images with their answers: reading and writing them, and making POPE's."""

from symground.data.questions.pope import Pope, PopeSettings, pope_questions
from symground.data.questions.question_files import Question, read_questions, write_questions

__all__ = [
    "Pope",
    "PopeSettings",
    "Question",
    "pope_questions",
    "read_questions",
    "write_questions",
]
