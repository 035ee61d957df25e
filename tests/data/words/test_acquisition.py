"""Ages of acquisition from Wordbank's table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from symground.data.words import age_of_acquisition


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def logistic(half: float, slope: float, months: range) -> str:
    return ",".join(f"{1 / (1 + np.exp(-slope * (month - half))):.9f}" for month in months)


def test_the_age_at_which_half_of_the_children_say_a_word(tmp_path: Path) -> None:
    months = range(16, 31)
    head = "definition,category," + ",".join(map(str, months))
    path = written(
        tmp_path / "x.csv", head, f"ball,toys,{logistic(18.5, 0.4, months)}",
        f"chicken (animal),animals,{logistic(25, 0.3, months)}", f"chicken (food),food,{logistic(22, 0.3, months)}",
        f"camera,household,{logistic(34, 0.2, months)}", "odd,toys," + ",".join(["0.5"] * 15),
        "falls,toys," + ",".join(f"{0.9 - i / 50}" for i in range(15)),
    )  # fmt: skip
    found = age_of_acquisition(path)
    assert found == {
        "ball": pytest.approx(18.5, abs=1e-3), "chicken": pytest.approx(22, abs=1e-3),
        "camera": pytest.approx(34, abs=1e-2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shares", "age"),
    [((), None), ((0.25,), None), ((0.25, 0.75), 18.0), ((0.5, 0.5), None), ((0.75, 0.25), None)], ids=str
)  # fmt: skip
def test_two_months_are_enough_for_an_age(tmp_path: Path, shares: tuple[float, ...], age: float | None) -> None:
    """A proportion of 0.25 at 16 months and of 0.75 at 20: half at 18. An empty cell is no measurement."""
    cells = [*map(str, shares), "", ""][:2]
    found = age_of_acquisition(written(tmp_path / "a.csv", "definition,16,20", f"ball,{','.join(cells)}"))
    assert found == ({} if age is None else {"ball": pytest.approx(age, abs=1e-6)})


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        age_of_acquisition(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="expected the columns 'definition'"):
        age_of_acquisition(written(tmp_path / "a.csv", "word,16,17", "ball,0.1,0.2"))
    with pytest.raises(ValueError, match="line 3: expected proportions from 0 to 1"):
        age_of_acquisition(written(tmp_path / "b.csv", "definition,16,17", "ball,0.1,0.2", "dog,0.1,20"))
    with pytest.raises(ValueError, match="line 2: could not convert"):
        age_of_acquisition(written(tmp_path / "c.csv", "definition,16,17", "ball,x,0.2"))


@pytest.mark.parametrize(
    ("share", "taken"), [("0", True), ("1", True), ("", True), ("1.001", False), ("-0.001", False)]
)
def test_a_proportion_is_from_0_to_1(tmp_path: Path, share: str, taken: bool) -> None:
    path = written(tmp_path / "a.csv", "definition,16,17,18,19", f"ball,{share},0.3,0.6,0.9")
    if taken:
        assert set(age_of_acquisition(path)) <= {"ball"}  # a falling curve gives no age
    else:
        with pytest.raises(ValueError, match="line 2: expected proportions from 0 to 1"):
            age_of_acquisition(path)


@pytest.mark.real_data
def test_real_proportions_of_wordbank(real_data: Path) -> None:
    found = age_of_acquisition(real_data / "wordbank" / "child_american_english_proportions.csv")
    assert len(found) > 600
    assert found["ball"] < found["dog"] < found["elephant"] < found["camera"]
