"""Heads of questions about images are found, silenced, monitored and amplified, against single passes of eager."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import symground as sg
from symground.analysis import ImageQuestions, head_shares
from symground.analysis.causal.silenced import behaviour
from symground.analysis.heads.selection import halves

Head = tuple[int, int]


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_interventions_are_those_of_single_passes(
    twins: Any, asked: ImageQuestions, passes: list[Any], mode: str
) -> None:
    at = [0, 9, 3, 4, 7]
    some = asked.take(at)
    examples, mismatched = some.matched(), some.mismatched(2)
    share = [
        passes[i].signed[:, :, -1, list(asked.prompts[i].spans["image"])].abs().sum(-1)
        / passes[i].signed[:, :, -1].abs().sum(-1)
        for i in at
    ]
    among = torch.stack(share).flatten().sort().values
    threshold = float(among[len(among) // 2 :][:2].mean())
    heads = [[tuple(pair) for pair in (x >= threshold).nonzero().tolist()] for x in share]
    assert len({len(own) for own in heads}) > 1
    row = sg.intervene(
        twins.ours, some, denominator="row", threshold=threshold, mode=mode, draws=2, seed=2, batch_size=2
    ).iloc[0]  # fmt: skip
    assert row["heads_per_example"] == pytest.approx(np.mean([len(own) for own in heads]))
    mean = twins.mean_outputs(some)
    found: dict[str, list[float]] = {}
    for i, own in enumerate(heads):
        pictures = some.questions[i].image, twins.picture_of(some, mismatched, i)
        both = [twins.given(some, i, picture) for picture in pictures]
        other = [twins.outputs(inputs) for inputs in reversed(both)]
        for name, inputs, paired in zip(("", "mismatched_"), both, other, strict=True):
            change: dict[Head, Any] = {h: {"zero": 0.0, "mean": mean[h], "resample": paired[h]}[mode] for h in own}
            for when, how in (("original", None), ("intervened", change)):
                after = twins.scores(inputs, how)
                found.setdefault(f"{name}{when}", []).append(after[-1, examples.targets[i]].item())
                if not name:
                    found.setdefault(f"context_{when}", []).append(twins.of_context(inputs["input_ids"][0], after))
    for name, values in found.items():
        assert row[name] == pytest.approx(np.mean(values), abs=1e-5), name
    assert abs(row["effect"]) > 1e-3
    gain = np.array(found["mismatched_intervened"]) - found["intervened"]
    assert row["gain_intervened"] == pytest.approx(gain.mean(), abs=1e-5)
    assert (row["examples"], row["kind"], row["mode"], row["span"]) == (5, "aggregate", mode, 0)


def test_the_context_is_the_words_and_no_placeholder(twins: Any, asked: ImageQuestions, passes: list[Any]) -> None:
    found = behaviour(twins.ours, asked.matched(), [[]], batch_size=5)
    for i, own in enumerate(passes):
        assert found.target[0, i] == pytest.approx(own.surprisals[-1, asked.prompts[i].answer].item(), abs=1e-5)
        assert found.context[0, i] == pytest.approx(twins.of_context(own.ids, own.surprisals), abs=1e-5)


def held_out(traced: Any, threshold: float, seed: int, at_least_one: bool) -> list[list[Head]]:
    """The heads of each example that are selected on the other half of the pictures."""
    half, shares = halves(traced, seed), head_shares(traced).values
    sets = {}
    for here in (True, False):
        mean = shares[half != here].mean(0)
        least = min(threshold, mean.max()) if at_least_one else threshold
        sets[here] = [tuple(pair) for pair in np.argwhere(mean >= least).tolist()]
    return [sets[bool(here)] for here in half]


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_the_monitor_sees_what_single_passes_show(
    twins: Any, asked: ImageQuestions, passes: list[Any], threshold: float
) -> None:
    table, detectors, bins = sg.monitor(twins.ours, asked, threshold=threshold, batch_size=5, seed=1)
    traced = sg.trace(twins.ours, asked)
    heads = held_out(traced, threshold, 1, at_least_one=True)
    examples = asked.matched()
    for i, own in enumerate(passes):
        chosen, probability, entropy = twins.chosen(asked, own.surprisals)
        assert table["wrong"][i] == (chosen != examples.targets[i])
        assert table["probability"][i] == pytest.approx(probability, abs=1e-5)
        assert table["entropy"][i] == pytest.approx(entropy, abs=1e-5)
        row = twins.one(twins.given(asked, i), chosen).signed[:, :, -1].abs()
        share = row[..., list(asked.prompts[i].spans["image"])].sum(-1) / row.sum(-1)
        assert table["flow"][i] == pytest.approx(np.mean([share[h].item() for h in heads[i]]), abs=1e-4)
    wrong = table["wrong"].to_numpy()
    assert 0 < wrong.sum() < len(wrong)
    for _, told in detectors.iterrows():
        name = str(told["detector"])
        predicted = table[f"p_{name}" if f"p_{name}" in table else name].to_numpy()
        pairs = predicted[wrong][:, None] - predicted[~wrong]
        assert told["auroc"] == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
        assert told["brier"] == pytest.approx(((predicted - wrong) ** 2).mean())
    assert (detectors["contexts"] == 6).all()
    assert (bins.groupby("detector")["count"].sum() == len(asked)).all()
    assert table["context"].tolist() == examples.context


def test_steering_multiplies_the_heads_of_the_other_half(twins: Any, asked: ImageQuestions) -> None:
    threshold = 0.35
    table = sg.steering(twins.ours, asked, [0.0, 2.5], threshold=threshold, draws=2, batch_size=5).set_index("factor")
    heads = held_out(sg.trace(twins.ours, asked), threshold, 0, at_least_one=False)
    assert table["heads_per_example"].iloc[0] == pytest.approx(np.mean([len(own) for own in heads]))
    assert any(heads)
    targets = asked.matched().targets
    assert table.index.tolist() == [0.0, 1.0, 2.5]
    for factor, row in table.iterrows():
        right, surprisal = [], []
        for i, own in enumerate(heads):
            found = twins.scores(twins.given(asked, i), dict.fromkeys(own, factor))
            right.append(twins.chosen(asked, found)[0] == targets[i])
            surprisal.append(found[-1, targets[i]].item())
        assert row["accuracy"] == pytest.approx(np.mean(right))
        assert row["surprisal"] == pytest.approx(np.mean(surprisal), abs=1e-5)
    assert table["surprisal"].nunique() == 3
    plain = sg.answers(twins.ours, asked)
    assert table.loc[1.0, "accuracy"] == plain["right"].mean()


def test_answers_are_the_likelier_of_those_asked_for(twins: Any, asked: ImageQuestions, passes: list[Any]) -> None:
    table = sg.answers(twins.ours, asked, batch_size=4)
    said = {prompt.answer: q.answer for prompt, q in zip(asked.prompts, asked.questions, strict=True)}
    for i, own in enumerate(passes):
        chosen, probability, entropy = twins.chosen(asked, own.surprisals)
        question = asked.questions[i]
        assert table.loc[i, ["image", "text", "about", "kind", "answer"]].tolist() == [
            question.image, question.text, question.about, question.kind, question.answer,
        ]  # fmt: skip
        assert table["said"][i] == said[chosen]
        assert table["right"][i] == (said[chosen] == question.answer)
        assert table["probability"][i] == pytest.approx(probability, abs=1e-5)
        assert table["entropy"][i] == pytest.approx(entropy, abs=1e-5)
        assert table["surprisal"][i] == pytest.approx(own.surprisals[-1, asked.prompts[i].answer].item(), abs=1e-5)
    # Gates for each question, and gates for all questions.
    gates = {1: torch.ones(len(asked), 4)}
    gates[1][::2, 3] = 0
    changed = sg.answers(twins.ours, asked, gates, batch_size=4)
    for i in range(len(asked)):
        expected = twins.scores(twins.given(asked, i), {} if i % 2 else {(1, 3): 0.0})[-1, asked.prompts[i].answer]
        assert changed["surprisal"][i] == pytest.approx(expected.item(), abs=1e-5)
    alike = sg.answers(twins.ours, asked, {1: torch.tensor([1.0, 1.0, 1.0, 0.0])})
    assert alike["surprisal"][0] == pytest.approx(changed["surprisal"][0], abs=1e-5)
    yes = [i for i, question in enumerate(asked.questions) if question.answer == "yes"]
    with pytest.raises(ValueError, match="questions: expected two answers to choose from, all of these have 'yes'"):
        sg.answers(twins.ours, asked.take(yes))


def test_heads_of_each_question_are_silenced_and_amplified_in_it(twins: Any, asked: ImageQuestions) -> None:
    some = asked.take([1, 9, 4])
    sets: list[list[Head]] = [[(0, 1), (1, 2)], [], [(1, 0)]]
    targets = some.matched().targets
    for block, factor in ((sg.ablate(twins.ours, sets), 0.0), (sg.steer(twins.ours, sets, 3.0), 3.0)):
        with block:
            traced = sg.trace(twins.ours, some)
            with pytest.raises(
                ValueError, match="heads: each of 3 examples has its own silenced heads; this pass has 2"
            ):
                sg.trace(twins.ours, some, batch_size=2)
        for i, own in enumerate(sets):
            expected = twins.scores(twins.given(some, i), dict.fromkeys(own, factor))[-1, targets[i]]
            assert traced.surprisal[i] == pytest.approx(expected.item(), abs=1e-5)
    mean, resampled = twins.mean_outputs(some), some.mismatched(0)
    for mode in ("mean", "resample"):
        with sg.ablate(twins.ours, sets, mode, some), torch.no_grad():
            surprisal = behaviour(twins.ours, some.matched(), [[]]).target[0]
        for i, own in enumerate(sets):
            other = twins.outputs(twins.given(some, i, twins.picture_of(some, resampled, i)))
            fill = {head: mean[head] if mode == "mean" else other[head] for head in own}
            expected = twins.scores(twins.given(some, i), fill)[-1, targets[i]]
            assert surprisal[i] == pytest.approx(expected.item(), abs=1e-5)
