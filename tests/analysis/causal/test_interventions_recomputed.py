"""The causal table's numbers against numbers that are recomputed here from the surprisals of every draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from transformers import PreTrainedModel

import symground as sg
from symground.analysis.causal import head_steering, intervention
from symground.analysis.causal.silenced import Behaviour
from symground.analysis.heads.finding import head_shares
from symground.analysis.probing.answering import choices
from symground.analysis.probing.sentence_probes import Probes
from symground.data import Corpus
from symground.models import create, mixers

DRAWS, SEED = 7, 3


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> PreTrainedModel:
    torch.manual_seed(1)
    model = create("gpt2-4l", len(corpus.tokenizer), positions=32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


@pytest.fixture(scope="module")
def probes(corpus: Corpus) -> Probes:
    return sg.probes(corpus.tokenizer).take_contexts([0, 2, 4])


@pytest.fixture(scope="module")
def ran(model: PreTrainedModel, probes: Probes) -> tuple[dict[str, Any], list[tuple[Any, Behaviour]]]:
    """The table's row, and the plans and the result of each call of ``behaviour``."""
    calls, real = [], intervention.behaviour

    def recorded(model: Any, examples: Any, plans: Any, *more: Any) -> Behaviour:
        found = real(model, examples, plans, *more)
        calls.append((plans, found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervention, "behaviour", recorded)
        table = sg.intervene(
            model, probes, denominator="row", threshold=0.2, draws=DRAWS, seed=SEED, mode="zero", batch_size=64
        )
    (row,) = table.to_dict("records")
    return row, calls


def test_draws_differ(ran: Any) -> None:
    _, calls = ran
    assert [len(plans) for plans, _ in calls] == [1, 1, 1 + DRAWS, 1 + DRAWS]
    for plans, _ in calls[2:]:
        (own,), *drawn = plans
        assert len({tuple(silenced.heads) for (silenced,) in drawn}) == DRAWS
        for (silenced,) in drawn:
            assert [len(heads) for heads in silenced.heads] == [len(heads) for heads in own.heads]
            assert not any(heads & mine for heads, mine in zip(silenced.heads, own.heads, strict=True))
    assert calls[2][0] is calls[3][0]  # the same heads in the mismatched contexts


def test_columns_are_those_of_the_draws(ran: Any, probes: Probes) -> None:
    row, calls = ran
    before, before_mis, matched, mismatched = (found.target for _, found in calls)
    context = calls[2][1].context
    difference = matched[0] - before[0]
    control = matched[1:].mean(axis=1)
    expected = {
        "original": before.mean(), "intervened": matched[0].mean(), "control": control.mean(),
        "control_sd": np.sqrt(((control - control.mean()) ** 2).sum() / (DRAWS - 1)), "effect": difference.mean(),
        "d": difference.mean() / difference.std(ddof=1),
        "p_random": (1 + sum(x >= matched[0].mean() for x in control)) / (1 + DRAWS),
        "mismatched_original": before_mis.mean(), "mismatched_intervened": mismatched[0].mean(),
        "mismatched_control": mismatched[1:].mean(), "gain_original": before_mis.mean() - before.mean(),
        "gain_intervened": mismatched[0].mean() - matched[0].mean(),
        "gain_control": mismatched[1:].mean() - matched[1:].mean(), "context_original": calls[0][1].context.mean(),
        "context_intervened": context[0].mean(), "context_control": context[1:].mean(),
    }  # fmt: skip
    n = len(difference)
    t = difference.mean() / (difference.std(ddof=1) / np.sqrt(n))
    expected["p"] = expected["p_holm"] = 2 * stats.t.sf(abs(t), n - 1)
    change = (mismatched[0] - matched[0]) - (before_mis[0] - before[0])
    nouns = np.array(probes.matched().noun)
    by_noun = np.array([change[nouns == noun].mean() for noun in sorted(set(nouns))])
    t = by_noun.mean() / (by_noun.std(ddof=1) / np.sqrt(len(by_noun)))
    expected["gain_p"] = 2 * stats.t.sf(abs(t), len(by_noun) - 1)
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-9), name
    assert len(by_noun) < n / 2
    for name, statistic in (("effect", np.mean), ("d", lambda x, axis=-1: x.mean(axis) / x.std(axis, ddof=1))):
        found = stats.bootstrap(
            (difference,), statistic, n_resamples=2000, rng=np.random.default_rng(SEED), vectorized=True
        ).confidence_interval
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((found.low, found.high)), name
    (own,) = calls[2][0][0]
    layers = [layer for heads in own.heads for layer, _ in heads]
    assert row["heads_per_example"] == pytest.approx(len(layers) / n)
    assert row["mean_layer"] == pytest.approx(sum(layers) / len(layers))
    assert (row["short"], row["draws"], row["examples"], row["span"]) == (0, DRAWS, n, 0)


def test_short_counts_examples_with_too_few_controls(model: PreTrainedModel, probes: Probes) -> None:
    """At a threshold that most heads reach, most examples have too few other heads; they are counted here."""
    row = sg.intervene(model, probes, denominator="row", threshold=0.02, draws=2).iloc[0]
    selected = sg.find_heads(sg.trace(model, probes), threshold=0.02)
    heads = sum(mixer.heads for mixer in mixers(model))
    short = sum(len(own) > heads - len(own) for own in selected)
    assert row["short"] == short > 0
    assert row["heads_per_example"] == pytest.approx(np.mean([len(own) for own in selected]))


def test_steering_by_heads_of_the_other_half(
    model: PreTrainedModel, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steered heads, the random heads and the effects of both are recomputed here."""
    calls: list[tuple[list[frozenset[tuple[int, int]]], float]] = []
    real, seed, threshold = head_steering.gates_of, 5, 0.1

    def recorded(model: Any, heads: Any, factor: float) -> Any:
        calls.append((list(heads), factor))
        return real(model, heads, factor)

    monkeypatch.setattr(head_steering, "gates_of", recorded)
    table = head_steering.steering(model, probes, (0.0, 3.0), threshold=threshold, draws=4, seed=seed).set_index(
        "factor"
    )
    traced = sg.trace(model, probes, saliency=False)
    shares, context = head_shares(traced, "aggregate", "row").values, traced.context.values
    first = np.random.default_rng(seed).permutation(np.unique(context))[:1]
    examples = probes.matched()
    plain = choices(model, examples)
    per_factor = [calls[:5], calls[5:]]
    assert [factor for _, factor in calls] == [0.0] * 5 + [3.0] * 5
    for factor, ((own, _), *drawn) in zip((0.0, 3.0), per_factor, strict=True):
        for half in (True, False):
            here = np.isin(context, first) == half
            mean = shares[~here].mean(0)
            expected = {(int(i), int(j)) for i, j in np.argwhere(mean >= threshold)}
            assert expected
            assert {frozenset(own[i]) for i in np.flatnonzero(here)} == {frozenset(expected)}
        row = table.loc[factor]
        ours = choices(model, examples, gates=real(model, own, factor))
        assert row["accuracy"] == pytest.approx(ours.right.mean())
        assert row["surprisal"] == pytest.approx(ours.surprisal.mean())
        random = np.array(
            [choices(model, examples, gates=real(model, heads, factor)).right.mean() for heads, _ in drawn]
        )
        assert row["control"] == pytest.approx(random.mean())
        assert row["control_sd"] == pytest.approx(random.std(ddof=1))
        for heads, _ in drawn:
            assert not any(a & b for a, b in zip(heads, own, strict=True))
        short = max(sum(len(a) < len(b) for a, b in zip(heads, own, strict=True)) for heads, _ in drawn)
        assert row["short"] == short
        gained, lost = ((~plain.right & ours.right).sum(), (plain.right & ~ours.right).sum())
        if gained + lost:
            assert row["p"] == pytest.approx(stats.binomtest(int(gained), int(gained + lost)).pvalue)
        assert row["heads_per_example"] == pytest.approx(np.mean([len(heads) for heads in own]))


def test_of_no_other_heads_there_is_no_control(model: PreTrainedModel, probes: Probes) -> None:
    table = head_steering.steering(model, probes, (0.0,), threshold=1e-9, draws=2)
    assert table[["control", "control_sd"]].isna().all(axis=None)
    assert (table["short"] == len(probes)).all()
    assert np.isfinite(table["accuracy"]).all()
    assert pd.Series(table["factor"]).tolist() == [0.0, 1.0]
