"""POPE from COCO's annotations: objects worked out by hand, properties that hold for any file, and bad input."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from symground.data.questions import read_questions, write_questions
from symground.data.questions.pope import STRATEGIES, pope_questions, wording

# Image → its objects. Images with each: person 5, cup 4, dog 3, cat 3, bed 2, car 2, apple 1, oven 1, zebra 0.
SHOWN = {
    "1.jpg": ["person", "dog", "car"],
    "2.jpg": ["person", "dog", "cup"],
    "3.jpg": ["person", "cup", "oven", "apple"],
    "4.jpg": ["cat", "bed"],
    "5.jpg": ["cat", "bed"],
    "6.jpg": ["person", "cat"],
    "7.jpg": ["person", "cup"],
    "8.jpg": ["dog", "cup", "car"],
}
CATEGORIES = ["zebra", "person", "cup", "dog", "cat", "bed", "car", "apple", "oven"]


def coco(shown: dict[str, list[str]], categories: list[str], crowd: bool = False) -> dict[str, Any]:
    """Numbered from 11, as COCO's categories have gaps too; each object annotated twice."""
    return {
        "images": [{"id": 100 + i, "file_name": name, "width": 4} for i, name in enumerate(shown)],
        "annotations": [
            {"id": i, "image_id": 100 + list(shown).index(name), "category_id": 11 + categories.index(category),
             "iscrowd": int(crowd)}
            for i, (name, category) in enumerate((n, c) for n, there in shown.items() for c in there * 2)
        ],
        "categories": [{"id": 11 + i, "name": name, "supercategory": "any"} for i, name in enumerate(categories)],
    }  # fmt: skip


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    return save(tmp_path / "instances.json", coco(SHOWN, CATEGORIES))


def absent(instances: Path, strategy: str, image: str, **settings: Any) -> list[str | None]:
    questions = pope_questions(instances, strategy, None, **settings)
    return [question.about for question in questions if (question.image, question.answer) == (image, "no")]


def test_popular_objects_are_those_of_most_images(instances: Path) -> None:
    # Ties are broken by name.
    assert absent(instances, "popular", "1.jpg") == ["cup", "cat", "bed"]
    assert absent(instances, "popular", "8.jpg") == ["person", "cat", "bed"]
    assert absent(instances, "popular", "3.jpg") == ["cat", "dog", "bed"]


def test_adversarial_objects_are_those_that_cooccur_most_with_the_images_own(instances: Path) -> None:
    # 8.jpg: person with dog, cup, car 2 + 3 + 1; then apple and oven, each with cup 1; nothing else with any.
    assert absent(instances, "adversarial", "8.jpg") == ["person", "apple", "oven"]
    # 1.jpg: cup with person, dog, car 3 + 2 + 1; cat with person 1, as apple and oven.
    assert absent(instances, "adversarial", "1.jpg") == ["cup", "apple", "cat"]
    # 4.jpg: person with cat, once; the rest never, by name.
    assert absent(instances, "adversarial", "4.jpg", per_image=4, least=2) == ["person", "apple"]


def test_random_objects_are_any_that_are_absent(instances: Path) -> None:
    seen = [absent(instances, "random", "8.jpg", seed=seed) for seed in range(60)]
    assert set().union(*seen) == set(CATEGORIES) - set(SHOWN["8.jpg"])
    assert len({tuple(three) for three in seen}) > 30


def test_images_that_show_too_few_categories_are_left_out(instances: Path) -> None:
    def images_of(**settings: Any) -> set[str]:
        return {question.image for question in pope_questions(instances, images=None, **settings)}

    assert images_of() == {"1.jpg", "2.jpg", "3.jpg", "8.jpg"}
    assert images_of(per_image=2) == {"1.jpg", "2.jpg", "3.jpg", "8.jpg"}
    assert images_of(least=4) == {"3.jpg"}
    assert images_of(per_image=8) == {"3.jpg"}
    assert images_of(per_image=4, least=1) == set(SHOWN)


def test_images_that_lack_too_few_categories_are_left_out(tmp_path: Path) -> None:
    shown = {"1.jpg": ["a", "b", "c", "d"], "2.jpg": ["a", "b", "c"]}
    path = save(tmp_path / "i.json", coco(shown, ["a", "b", "c", "d", "e"]))
    assert {question.image for question in pope_questions(path, images=None, per_image=4)} == {"2.jpg"}
    assert {question.image for question in pope_questions(path, images=None, per_image=2)} == set(shown)


def test_strategies_share_images_and_objects_and_fewer_are_the_first_of_more(instances: Path) -> None:
    whole = {strategy: pope_questions(instances, strategy, None, seed=3) for strategy in STRATEGIES}
    positives = [[(q.image, q.about) for q in questions[::2]] for questions in whole.values()]
    assert positives[0] == positives[1] == positives[2]
    for strategy, questions in whole.items():
        assert pope_questions(instances, strategy, 2, seed=3) == questions[:12]
        assert {question.kind for question in questions} == {strategy}
    orders = {tuple(q.image for q in pope_questions(instances, images=4, seed=seed)) for seed in range(10)}
    assert len(orders) > 3


def test_crowds_count_as_objects(tmp_path: Path, instances: Path) -> None:
    path = save(tmp_path / "crowd.json", coco(SHOWN, CATEGORIES, crowd=True))
    assert pope_questions(path, images=None) == pope_questions(instances, images=None)


def test_annotations_of_images_that_are_not_listed_do_not_count(tmp_path: Path) -> None:
    content = coco({"0.jpg": ["bed", "apple"], **SHOWN}, CATEGORIES)
    del content["images"][0]
    path = save(tmp_path / "cut.json", content)
    assert absent(path, "adversarial", "8.jpg") == ["person", "apple", "oven"]
    # If 0.jpg counted, bed would come before cat.
    assert absent(path, "popular", "1.jpg") == ["cup", "cat", "bed"]
    assert "0.jpg" not in {question.image for question in pope_questions(path, images=None, per_image=2, least=1)}


@st.composite
def scenes(draw: st.DrawFn) -> tuple[dict[str, list[str]], list[str]]:
    categories = [f"thing {i}" for i in range(draw(st.integers(2, 9)))]
    shown = draw(st.lists(st.lists(st.sampled_from(categories), unique=True), min_size=1, max_size=8))
    return {f"{i}.jpg": there for i, there in enumerate(shown)}, categories


@given(
    scenes=scenes(), strategy=st.sampled_from(STRATEGIES), per_image=st.sampled_from([2, 4, 6]),
    least=st.integers(1, 4), seed=st.integers(0, 5), shuffle=st.randoms(use_true_random=False),
)  # fmt: skip
def test_answers_are_right_and_balanced_and_do_not_depend_on_the_files_order(
    tmp_path_factory: pytest.TempPathFactory, scenes: tuple[dict[str, list[str]], list[str]], strategy: str,
    per_image: int, least: int, seed: int, shuffle: random.Random,
) -> None:  # fmt: skip
    shown, categories = scenes
    each = per_image // 2
    fit = {name for name, there in shown.items() if max(least, each) <= len(there) <= len(categories) - each}
    assume(fit)
    content = coco(shown, categories)
    path = save(tmp_path_factory.getbasetemp() / "instances.json", content)
    questions = pope_questions(path, strategy, None, per_image, seed, least=least)
    assert {question.image for question in questions} == fit
    for start in range(0, len(questions), per_image):
        some = questions[start : start + per_image]
        assert [question.answer for question in some] == ["yes", "no"] * each
        assert len({question.image for question in some}) == 1
        assert len({question.about for question in some}) == per_image
        for question in some:
            assert (question.about in shown[question.image]) == (question.answer == "yes")
            assert question.about in categories
    for entries in content.values():
        shuffle.shuffle(entries)
    save(path, dict(reversed(content.items())))
    assert pope_questions(path, strategy, None, per_image, seed, least=least) == questions


def test_the_text_names_the_object(tmp_path: Path, instances: Path) -> None:
    questions = pope_questions(instances, images=None)
    assert {"Is there an oven in the image?", "Is there a dog in the image?"} <= {
        question.text for question in questions
    }
    path = tmp_path / "pope.json"
    write_questions(path, questions)
    assert read_questions(path) == questions
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["object"]
    assert read_questions(save(path, rows)) == questions


@pytest.mark.parametrize(
    ("article", "nouns"),
    [
        ("an", "apple airplane elephant oven orange umbrella urn undershirt usher hourglass heirloom x-ray SUV onion "
               "unidentified unimportant uninhabited honour"),
        ("a", "person tv hair_drier horse house skis unicycle uniform unit urinal utensil ukulele user u-turn ewe "
              "one-way onesie European hotdog honeycomb fork yacht"),
    ],
)  # fmt: skip
def test_articles_go_by_sound(article: str, nouns: str) -> None:
    for noun in nouns.split():
        assert wording(noun) == f"Is there {article} {noun} in the image?"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "hard"}, "strategy: expected one of 'random', 'popular', 'adversarial'; got 'hard'"),
        ({"per_image": 5}, "per_image: expected an even number, at least 2, got 5"),
        ({"per_image": 0}, "per_image: expected an even number, at least 2, got 0"),
        ({"images": 0}, "images: expected an integer of at least 1, got 0"),
        ({"least": 0}, "least: expected an integer of at least 1, got 0"),
        ({"images": 5}, r"images: expected 5 of .* that show at least 3 of its 9 categories and lack 3, got 4"),
        ({"images": None, "least": 5}, "images: expected any of .* that show at least 5 .* got 0"),
        ({"images": 2, "per_image": 8}, "that show at least 4 of its 9 categories and lack 4, got 1"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(instances: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pope_questions(instances, **settings)


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    with pytest.raises(FileNotFoundError, match=r"instances: .*captions\.json does not exist"):
        pope_questions(path)
    captions = {"images": [{"id": 1, "file_name": "a.jpg"}],
                "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}]}  # fmt: skip
    unknown = coco(SHOWN, CATEGORIES)
    unknown["annotations"][3]["category_id"] = 999
    for content, message in (
        (captions, r"has no 'categories'; expected COCO's instances: .*a captions file"),
        ({**captions, "categories": []}, r"annotations\[0\]: has no 'category_id'; expected"),
        (unknown, r"annotations\[3\]\.category_id: expected an id of the categories, got 999"),
        ([captions], "the JSON: expected an object with 'categories', got a list of 1"),
        ({"images": 1, "annotations": [], "categories": []}, "images: expected a list, got 1"),
        ("", "the JSON: expected an object with 'categories', got \"\""),
    ):
        with pytest.raises(ValueError, match=rf"instances: .*captions\.json: {message}"):
            pope_questions(save(path, content))
    path.write_text("{")
    with pytest.raises(ValueError, match=r"instances: .*captions\.json is not JSON"):
        pope_questions(path)


@pytest.mark.parametrize("value", [None, True, 1.5, float("inf"), "ka", [], [1], {}, {"ka": 1}])
def test_a_field_of_a_wrong_type_is_refused_by_name(tmp_path: Path, value: object) -> None:
    right = {"id": int, "name": str, "file_name": str, "image_id": int, "category_id": int}
    for part in ("categories", "images", "annotations"):
        for name in (None, *right):
            content = coco(SHOWN, CATEGORIES)
            if name is None:
                content[part] = value
            elif name in content[part][0] and (part, name) != ("annotations", "id"):
                content[part][0][name] = value
            else:
                continue
            if type(value) is (list if name is None else right[name]):
                continue
            path = tmp_path / "c.json"
            path.write_text(json.dumps(content))
            with pytest.raises(ValueError, match=rf"instances: .*c\.json: {part}.*: expected"):
                pope_questions(path)
