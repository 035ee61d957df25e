"""Lists of nouns: the study's, the CDI's by category, a Wordbank file, the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from symground.data import STUDY_NOUNS, noun_list, nouns_over_threshold


def test_lists_of_the_study_and_of_the_cdi() -> None:
    assert noun_list() == list(STUDY_NOUNS)
    assert len(noun_list("cdi")) == 343
    assert noun_list("study", ["toys"]) == ["book", "ball", "toy", "doll", "puzzle", "block", "pencil", "game"]
    assert set(noun_list("study", ["animals"])) < set(noun_list("cdi", ["animals"]))
    assert {"dog", "elephant"} <= set(noun_list("cdi", ["animals"]))
    assert "table" not in noun_list("cdi", ["animals", "toys"])


def test_a_wordbank_file(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        "itemID,category,definition\n1,animals,chicken (animal)\n2,food_drink,soda/pop\n3,sounds,baa baa\n"
        "4,food_drink,ice cream\n5,food_drink,chicken (food)\n6,body_parts,owie*\n7,action_words,run\n"
    )
    assert noun_list(str(path)) == ["chicken", "soda", "owie"]
    assert noun_list(str(path), ["food_drink"]) == ["soda"]
    path.write_text("word,category\nx,animals\n")
    with pytest.raises(ValueError, match=r"items\.csv: expected the columns 'definition' .*, got word, category"):
        noun_list(str(path))


def test_a_file_of_words(tmp_path: Path) -> None:
    path = tmp_path / "nouns.txt"
    path.write_text("dog\nice cream\n\n dog \nball\n")
    assert noun_list(str(path)) == ["dog", "ice cream", "ball"]
    assert noun_list(str(path), ["animals"]) == ["dog"]
    with pytest.raises(ValueError, match=r"nouns: expected words of vehicles in .*nouns\.txt, got none"):
        noun_list(str(path), ["vehicles"])


def test_bad_input_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match="nouns: expected 'study', 'cdi' or a file, nowhere does not exist"):
        noun_list("nowhere")
    with pytest.raises(ValueError, match=r"categories: expected some of animals, .*; got beasts"):
        noun_list("cdi", ["beasts"])


def test_the_error_of_the_threshold_lists_the_closest_nouns() -> None:
    counts = {"box:<ENV>": 7, "box:<LAN>": 9, "book:<ENV>": 3, "book:<LAN>": 3}
    assert nouns_over_threshold(counts, 3) == ["box", "book"]
    with pytest.raises(
        ValueError, match=r"nouns: expected two that occur at least 10 times .* got none; .* box \(7\), book \(3\)"
    ):
        nouns_over_threshold(counts, 10)
    with pytest.raises(
        ValueError, match="expected two that occur at least 5 times both as ENV and as LAN, got only 'box'"
    ):
        nouns_over_threshold(counts, 5)


@pytest.mark.real_data
def test_the_real_wordbank_file_is_the_list_of_the_package(real_data: Path) -> None:
    found = set(noun_list(str(real_data / "wordbank" / "English_American_WS_items.csv")))
    assert found ^ set(noun_list("cdi")) == {"tv", "TV"}
