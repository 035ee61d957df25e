"""Sentence probes and questions about images as token ids, and the model's surprisal and answers."""

from symground.analysis.probing.answering import AMONG, Choices, answers, choices, pope_scores
from symground.analysis.probing.contexts import (
    Context,
    context_of,
    joined,
    of_images,
    read_contexts,
    separator_after,
    with_gap,
)
from symground.analysis.probing.encoding import ProbeImages
from symground.analysis.probing.examples import IMAGE, PATCHES, Examples, padded
from symground.analysis.probing.probe_checks import check_asked, check_fits
from symground.analysis.probing.prompting import answered, check_prompt
from symground.analysis.probing.questions import Asked, ImageQuestions, image_questions
from symground.analysis.probing.running_text import surprisal
from symground.analysis.probing.scan import MEMORY
from symground.analysis.probing.scoring import score, score_to_parquet
from symground.analysis.probing.sentence_probes import Probes, probes, split_contexts
from symground.analysis.probing.targets import Targets, targets_at, targets_of_span

__all__ = [
    "AMONG",
    "IMAGE",
    "MEMORY",
    "PATCHES",
    "Asked",
    "Choices",
    "Context",
    "Examples",
    "ImageQuestions",
    "ProbeImages",
    "Probes",
    "Targets",
    "answered",
    "answers",
    "check_asked",
    "check_fits",
    "check_prompt",
    "choices",
    "context_of",
    "image_questions",
    "joined",
    "of_images",
    "padded",
    "pope_scores",
    "probes",
    "read_contexts",
    "score",
    "score_to_parquet",
    "separator_after",
    "split_contexts",
    "surprisal",
    "targets_at",
    "targets_of_span",
    "with_gap",
]
