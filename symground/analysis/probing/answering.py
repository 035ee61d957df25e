"""The word that a model is about to name, its answers to questions about images, and POPE's hallucination measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import check_frame
from symground.analysis.probing.examples import Examples, Ids
from symground.analysis.probing.probe_checks import check_fits
from symground.analysis.probing.questions import ImageQuestions
from symground.errors import choice, described, integer
from symground.models.passes import check_weights, gated
from symground.models.trials import Readout, check_deterministic, check_lengths, hidden_states, verified_readout

_OVERALL = "all"
AMONG = ("targets", "vocabulary")


class Choices(NamedTuple):
    """The likeliest words after N examples."""

    ids: NDArray[np.int64]
    """[N] the likeliest word; of one with several tokens, the first."""
    right: NDArray[np.bool_]
    """[N] whether it is the example's target, which is the word in the scene."""
    probability: NDArray[np.float64]
    """[N] probability of the likeliest word."""
    entropy: NDArray[np.float64]
    """[N] entropy of the distribution, nats."""
    surprisal: NDArray[np.float64]
    """[N] surprisal of the target in the whole vocabulary, nats."""
    words: tuple[Ids, ...]
    """The likeliest words; among the vocabulary, a token each."""


@torch.no_grad()
def choices(
    model: PreTrainedModel,
    examples: Examples,
    among: str = "targets",
    gates: Mapping[int, Tensor] | None = None,
    batch_size: int = 256,
) -> Choices:
    """The likeliest word after each example.

    Args:
        model: attached, in evaluation.
        examples: N of them.
        among: the words to choose from: "targets", all target words of the examples, each with the probability of all
            its tokens; or the whole "vocabulary", of which a target of several tokens is right if each of them is the
            likeliest after those before it.
        gates: layer → [H] or [N,H] factors for the heads' outputs.
        batch_size: examples per pass.

    Raises:
        ValueError: an unknown ``among``, a model whose passes differ (dropout), or texts that it cannot read in one
            batch.
    """
    choice("among", among, AMONG)
    check_deterministic(model)
    check_lengths(model, examples.lengths, examples.input_ids.shape[1])
    examples, head = examples.read_by(model), verified_readout(model)
    asked, said, parts = sorted(set(examples.words)), list[Ids](), list[tuple[Tensor, ...]]()
    for start in range(0, len(examples.input_ids), batch_size):
        part = slice(start, min(start + batch_size, len(examples.input_ids)))
        of_part = {layer: gate if gate.ndim == 1 else gate[part] for layer, gate in (gates or {}).items()}
        with gated(model, of_part):
            whole, surprisal, greedy = _after(model, head, examples.part(part))
            seen = _of_words(model, head, examples.part(part), asked, whole) if among == "targets" else whole
        top, chosen = seen.max(-1)
        entropy = -(seen.exp() * seen).sum(-1)
        if among == "targets":
            words = [asked[i] for i in chosen.tolist()]
            greedy = torch.tensor([a == b for a, b in zip(words, examples.part(part).words, strict=True)])
        else:
            words = [(i,) for i in chosen.tolist()]
        said += words
        parts.append((greedy, top.exp().double(), entropy.double(), surprisal.double()))
    right, *numbers = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return Choices(np.array([word[0] for word in said]), right, numbers[0], numbers[1], numbers[2], tuple(said))


def _after(model: PreTrainedModel, head: Readout, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    """Of each context: log-probabilities [B,V] of the next token, the target's surprisal [B], whether it is greedy [B].

    A target is greedy if each of its tokens is the likeliest after those before it.
    """
    states = _states(model, head, examples)
    whole = _log(head, states[torch.arange(len(states), device=states.device), examples.prediction.to(states.device)])
    if examples.further is None:
        targets = examples.targets.to(whole.device)
        return whole, -whole.gather(1, targets[:, None])[:, 0], whole.argmax(-1) == targets
    wanted = examples.wanted
    surprisal = wanted.surprisal(lambda rows, ids: -_log(head, rows).gather(1, ids), states)
    others = wanted.surprisal(lambda rows, ids: (_log(head, rows).argmax(-1, keepdim=True) != ids).float(), states)
    return whole, surprisal.sum(1), others.sum(1) == 0


def _of_words(model: PreTrainedModel, head: Readout, examples: Examples, words: Sequence[Ids], whole: Tensor) -> Tensor:
    """[B,K] log-probabilities of the words among each other; those of one token from ``whole`` [B,V]."""
    found = whole[:, torch.tensor([word[0] for word in words], device=whole.device)]
    for k, word in enumerate(words):
        if len(word) > 1:
            found[:, k] = -_after(model, head, examples.with_words([word] * len(whole)))[1]
    return found.log_softmax(-1)


def _states(model: PreTrainedModel, head: Readout, examples: Examples) -> Tensor:
    """[B,T,D] on the head's device."""
    device = head.weight.device
    given = examples.given(slice(0, len(examples.input_ids)), device)
    return hidden_states(model, examples.input_ids.to(device), **given).to(device)


def _log(head: Readout, states: Tensor) -> Tensor:
    return head.logits(states).float().log_softmax(-1)


def answers(
    model: PreTrainedModel,
    questions: ImageQuestions,
    gates: Mapping[int, Tensor] | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """The model's answer to each question: the likeliest of all the questions' answers, by its first token.

    Args:
        model: attached, in evaluation.
        questions: from :func:`symground.image_questions`.
        gates: layer → [H] or [N,H] factors for the heads' outputs.
        batch_size: questions per pass.

    Returns:
        A DataFrame with a row per question. Its columns:

        - image, text, about, kind, answer (the correct one): of the question;
        - said: the model's answer; right (bool): whether it is correct;
        - probability, entropy (nats): of the model's answer, and of the distribution, among the answers;
        - surprisal: of the correct answer in the whole vocabulary, nats.

    Raises:
        ValueError: the questions all have the same answer, so there is no choice.
    """
    check_weights(model)
    if not isinstance(questions, ImageQuestions):
        raise ValueError(
            f"questions: expected what symground.image_questions(processor, …) makes, got {described(questions)}"
        )
    check_fits(model, questions, images=True, name="questions")
    batch_size = integer("batch_size", batch_size, 1)
    asked = {question.answer for question in questions.questions}
    if len(asked) < 2:
        raise ValueError(f"questions: expected two answers to choose from, all of these have {asked.pop()!r}")
    examples = questions.matched()
    found = choices(model, examples, "targets", gates, batch_size)
    words = dict(zip(examples.targets.tolist(), (q.answer for q in questions.questions), strict=True))
    return pd.DataFrame(
        {
            "image": [q.image for q in questions.questions], "text": [q.text for q in questions.questions],
            "about": [q.about for q in questions.questions], "kind": [q.kind for q in questions.questions],
            "answer": [q.answer for q in questions.questions], "said": [words[i] for i in found.ids.tolist()],
            "right": found.right, "probability": found.probability, "entropy": found.entropy,
            "surprisal": found.surprisal,
        }
    )  # fmt: skip


def pope_scores(table: pd.DataFrame) -> pd.DataFrame:
    """POPE's measures of yes/no answers.

    Args:
        table: with the columns answer and said ("yes" or "no"), and perhaps kind.

    Returns:
        A DataFrame with a row per kind, and a row "all" if there are several kinds or questions without one. Its
        columns: kind; questions, their number; accuracy; precision, recall and f1 of "yes"; yes_ratio, the share of
        questions that the model answers with yes; hallucinated, that share among questions whose answer is no. A
        ratio whose denominator is 0 is NaN.

    Raises:
        ValueError: answers other than yes and no.

    Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models".
    """
    check_frame(table, "table", ("answer", "said"), "symground.answers(model, questions)")
    others = sorted({*table["answer"], *table["said"]} - {"yes", "no"}, key=str)
    if others:
        raise ValueError(f"table: expected the answers yes and no, got {', '.join(map(repr, others[:5]))}")
    known = table[table["kind"].notna() & (table["kind"] != "")] if "kind" in table else table[:0]
    kinds = dict(list(known.groupby("kind"))) if len(known) else {}
    parts = kinds if len(kinds) == 1 and len(known) == len(table) else {**kinds, _OVERALL: table}
    return pd.DataFrame([{"kind": kind, **_scores(frame)} for kind, frame in parts.items()])


def _scores(frame: pd.DataFrame) -> dict[str, float]:
    there, said = frame["answer"] == "yes", frame["said"] == "yes"
    hits = int((there & said).sum())
    precision, recall = _share(hits, said.sum()), _share(hits, there.sum())
    return {
        "questions": len(frame), "accuracy": float((there == said).mean()), "precision": precision, "recall": recall,
        "f1": _share(2 * hits, said.sum() + there.sum()), "yes_ratio": float(said.mean()),
        "hallucinated": _share((said & ~there).sum(), (~there).sum()),
    }  # fmt: skip


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else np.nan
