"""Co-occurrence against counting by hand, and R² against a case computed by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import symground as sg
from symground.analysis import cooccurrence_r2
from symground.data import Corpus, CorpusBuilder, env, lan

WORDS = [env("a"), env("b"), lan("a"), lan("b"), "<CHI>"]


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), min_size=1, max_size=4), st.integers(1, 6))
def test_counts_pairs_within_the_window_of_one_document(documents: list[list[str]], window: int) -> None:
    builder = CorpusBuilder()
    for document in [*documents, WORDS[:1], WORDS[1:2], WORDS[2:3], WORDS[3:4]]:  # so that every word occurs
        builder.add([document])
    table = sg.cooccurrence(builder.build(), ["a", "b"], window).set_index(["env", "lan"])
    got = table["count"]
    whole = [*documents, *([word] for word in WORDS[:4])]
    flat = [word for document in whole for word in document]
    pairs = sum(
        i != j and abs(i - j) <= window for d in whole for i in range(len(d)) for j in range(len(d))
    )  # fmt: skip
    for v in "ab":
        for w in "ab":
            expected = sum(
                abs(i - j) <= window
                for document in documents
                for i, x in enumerate(document)
                for j, y in enumerate(document)
                if x == env(v) and y == lan(w)
            )
            assert got[(v, w)] == expected
            assert table.loc[(v, w), "env_count"] == flat.count(env(v))
            assert table.loc[(v, w), "lan_count"] == flat.count(lan(w))
            if expected:
                independent = flat.count(env(v)) * flat.count(lan(w)) / len(flat) ** 2
                assert table.loc[(v, w), "pmi"] == pytest.approx(np.log(expected / pairs / independent))
            else:
                assert not table.loc[(v, w), "pmi"] > -np.inf  # NaN if no two positions are that near


def test_unknown_nouns_and_windows_are_named(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="unicorn:<ENV>, unicorn:<LAN>"):
        sg.cooccurrence(corpus, ["book", "unicorn"])
    with pytest.raises(ValueError, match="window: expected an integer of at least 1, got 0"):
        sg.cooccurrence(corpus, ["book"], 0)


def test_r2_by_hand() -> None:
    counts = pd.DataFrame({"env": list("abc"), "lan": list("abc"), "count": np.expm1([0.0, 1.0, 2.0])})
    gains = pd.DataFrame({"target": list("cab"), "gain": [3.0, 1.0, 1.0]})
    row = cooccurrence_r2(gains, counts).iloc[0]
    # x = (0, 1, 2), y = (1, 1, 3): slope 1, explained 2 of the total 8/3.
    assert row["slope"] == pytest.approx(1.0)
    assert row["r2"] == pytest.approx(0.75)
    masked = cooccurrence_r2(gains.assign(gain=-gains["gain"]), counts).iloc[0]
    assert np.isnan(masked["r2"])
    assert masked["mean_gain"] == pytest.approx(-5 / 3)


def test_what_nouns_are_called_and_spoken_cues_are_counted_as_such() -> None:
    builder = CorpusBuilder()
    builder.add([[env("a"), lan("b"), lan("b"), env("b"), lan("a")]])
    corpus = builder.build()
    table = sg.cooccurrence(corpus, ["a", "b"], 1, spoken={"a": "b"}).set_index(["env", "lan"])["count"]
    assert table.to_dict() == {("a", "a"): 1, ("a", "b"): 1, ("b", "a"): 1, ("b", "b"): 1}
    table = sg.cooccurrence(corpus, ["a", "b"], 3, cue="lan").set_index(["env", "lan"])["count"]
    assert table.to_dict() == {("a", "a"): 0, ("a", "b"): 2, ("b", "a"): 2, ("b", "b"): 2}  # none with itself
