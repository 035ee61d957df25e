"""Answers and POPE's measures of them: by hand, by counting, and with denominators of 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import symground as sg
from symground.data import Question, read_questions


def table(answers: str, said: str, kinds: str | None = None) -> pd.DataFrame:
    words = {"y": "yes", "n": "no"}
    columns = {"answer": [words[x] for x in answers], "said": [words[x] for x in said]}
    return pd.DataFrame(columns if kinds is None else {**columns, "kind": list(kinds)})


MEASURES = ["questions", "accuracy", "precision", "recall", "f1", "yes_ratio", "hallucinated"]


def test_by_hand() -> None:
    found = sg.pope_scores(table("yyyynnnn", "yyynynyn", "aabbaabb"))
    assert found.columns.tolist() == ["kind", *MEASURES]
    assert found["kind"].tolist() == ["a", "b", "all"]
    # a: yes, yes if the object is there; yes, no if it is not. b: yes, no; yes, no.
    np.testing.assert_allclose(found[MEASURES].iloc[0], [4, 3 / 4, 2 / 3, 1, 4 / 5, 3 / 4, 1 / 2])
    np.testing.assert_allclose(found[MEASURES].iloc[1], [4, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2])
    np.testing.assert_allclose(found[MEASURES].iloc[2], [8, 5 / 8, 3 / 5, 3 / 4, 2 / 3, 5 / 8, 1 / 2])


def test_one_kind_or_none_is_one_row() -> None:
    assert sg.pope_scores(table("yn", "yn"))["kind"].tolist() == ["all"]
    assert sg.pope_scores(table("yn", "yn", "aa"))["kind"].tolist() == ["a"]
    without = sg.pope_scores(table("yn", "yn").assign(kind=""))
    assert without["kind"].tolist() == ["all"]
    assert without["accuracy"].tolist() == [1.0]


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("yn"), st.sampled_from("yn"), st.sampled_from(["a", "b", "", None, np.nan])),
        min_size=1,
        max_size=9,
    )
)
def test_no_question_is_dropped(rows: list[tuple[str, str, object]]) -> None:
    """All questions are in the row "all", or in the only row, whatever their kinds, and even if some have no kind."""
    asked = table("".join(a for a, _, _ in rows), "".join(s for _, s, _ in rows)).assign(kind=[k for _, _, k in rows])
    found = sg.pope_scores(asked).set_index("kind")
    kinds = {kind for _, _, kind in rows if kind in ("a", "b")}
    without = any(kind not in ("a", "b") for _, _, kind in rows)
    assert set(found.index) == (kinds if len(kinds) == 1 and not without else kinds | {"all"})
    for kind in found.index:
        chosen = [(a, s) for a, s, k in rows if k == kind or kind == "all"]
        assert found.loc[kind, "questions"] == len(chosen)
        assert found.loc[kind, "accuracy"] == pytest.approx(np.mean([a == s for a, s in chosen]))


@pytest.mark.parametrize(
    ("answers", "said", "expected"),
    [
        ("yynn", "nnnn", [4, 0.5, np.nan, 0, 0, 0, 0]),  # never says yes
        ("yynn", "nnyy", [4, 0, 0, 0, 0, 0.5, 1]),  # always wrong
        ("nn", "nn", [2, 1, np.nan, np.nan, np.nan, 0, 0]),  # no object there, none named
        ("nn", "yn", [2, 0.5, 0, np.nan, 0, 0.5, 0.5]),  # no object there
        ("yy", "yn", [2, 0.5, 1, 0.5, 2 / 3, 0.5, np.nan]),  # all objects there
    ],
)
def test_where_there_is_nothing_to_divide_by(answers: str, said: str, expected: list[float]) -> None:
    np.testing.assert_allclose(sg.pope_scores(table(answers, said))[MEASURES].iloc[0].astype(float), expected)


@given(pairs=st.lists(st.tuples(st.sampled_from("yn"), st.sampled_from("yn")), min_size=1, max_size=12))
def test_it_is_counting(pairs: list[tuple[str, str]]) -> None:
    row = sg.pope_scores(table("".join(a for a, _ in pairs), "".join(s for _, s in pairs))).iloc[0]
    count = {f"{a}{s}": pairs.count((a, s)) for a in "yn" for s in "yn"}
    for name, part, whole in (
        ("accuracy", count["yy"] + count["nn"], len(pairs)),
        ("precision", count["yy"], count["yy"] + count["ny"]),
        ("recall", count["yy"], count["yy"] + count["yn"]),
        ("f1", 2 * count["yy"], 2 * count["yy"] + count["yn"] + count["ny"]),
        ("yes_ratio", count["yy"] + count["ny"], len(pairs)),
        ("hallucinated", count["ny"], count["ny"] + count["nn"]),
    ):
        assert row[name] == pytest.approx(part / whole if whole else np.nan, nan_ok=True), name


def test_other_answers_are_refused_by_name() -> None:
    wrong = table("yn", "yn").assign(answer=["yes", "a dog"], said=["maybe", "no"])
    with pytest.raises(ValueError, match="table: expected the answers yes and no, got 'a dog', 'maybe'"):
        sg.pope_scores(wrong)


def test_of_several_answers_the_likeliest_is_said(llava_folder: Path) -> None:
    model = sg.load(llava_folder / "model")
    found = read_questions(llava_folder / "questions.json")
    named = [Question(question.image, "What is it?", str(question.about)) for question in found[:8]]
    asked = sg.image_questions(sg.load_processor(llava_folder / "model"), named)
    answered = sg.answers(model, asked)
    assert {*answered["said"]} <= {*answered["answer"]}
    assert (answered["right"] == (answered["said"] == answered["answer"])).all()
    assert answered["about"].isna().all()
    assert (answered["probability"] >= 1 / 4).all()
    assert (answered["entropy"] <= np.log(4) + 1e-6).all()
    assert (answered["kind"] == "").all()
    # The candidates are the answers of the given questions, so two questions have two candidates.
    two = sg.answers(model, asked.take([0, 1]))
    assert {*two["said"]} <= {"zebra", "boat"}
    np.testing.assert_allclose(two["surprisal"], answered["surprisal"][:2], rtol=1e-5)
