"""Visual Dialog with captions: both forms of file, dialogues that are set aside, captions from COCO."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from symground.data import CorpusBuilder, DialogSettings, add_dialogues
from symground.data.visdial.dialogue_files import Dialogue, coco_captions, dialogues

PLAIN = [
    {"img": "a.jpg", "dialog": ["A dog on a bed", "is it big? yes, it is", "what color? Brown"]},
    {"img": "b.jpg", "dialog": ["two cats", "how many? 2"]},
]
OFFICIAL: dict[str, Any] = {
    "version": "1.0", "split": "val2018",
    "data": {
        "questions": ["is it big", "what color"], "answers": ["yes, it is", "brown"],
        "dialogs": [
            {"image_id": 7, "caption": "a dog on a bed",
             "dialog": [{"question": 0, "answer": 0, "answer_options": [0, 1]}, {"question": 1, "answer": 1},
                        {"question": 0}]},
        ],
    },
}  # fmt: skip


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def read(path: Path, **settings: Any) -> tuple[str, dict[str, Any]]:
    builder = CorpusBuilder()
    add_dialogues(builder, [path], DialogSettings(**settings))
    corpus = builder.build()
    return corpus.tokenizer.decode(corpus.tokens), corpus.statistics["visdial"]


DOG = (
    "<CAP> a:<ENV> dog:<ENV> on:<ENV> a:<ENV> bed:<ENV> "
    "<QUE> is:<LAN> it:<LAN> big:<LAN> <ANS> yes:<LAN> it:<LAN> is:<LAN> <QUE> what:<LAN> color:<LAN> <ANS> brown:<LAN>"
)
CATS = "<CAP> two:<ENV> cats:<ENV> <QUE> how:<LAN> many:<LAN> <ANS> 2:<LAN>"


def test_both_forms_give_the_caption_and_then_the_turns(tmp_path: Path) -> None:
    text, statistics = read(save(tmp_path / "plain.json", PLAIN))
    assert text == f"{DOG} {CATS}"
    assert (statistics["files"], statistics["dialogues"], statistics["turns"]) == (1, 2, 3)
    assert read(save(tmp_path / "official.json", OFFICIAL))[0] == DOG
    assert list(dialogues(tmp_path / "official.json")) == [
        Dialogue("7", "a dog on a bed", (("is it big", "yes, it is"), ("what color", "brown")))
    ]


def test_settings_and_archives(tmp_path: Path) -> None:
    path = save(tmp_path / "plain.json", PLAIN)
    assert read(path, rounds=1)[0] == f"{DOG[: DOG.index(' <QUE> what')]} {CATS}"
    assert "A:<ENV>" in read(path, fold_case=False)[0]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "x/plain.json")
    assert read(tmp_path / "a.zip")[0] == read(path)[0]
    with pytest.raises(ValueError, match="rounds: expected an integer of at least 1, got 0"):
        DialogSettings(rounds=0)


def test_captions_from_coco(tmp_path: Path) -> None:
    del OFFICIAL["data"]["dialogs"][0]["caption"]
    try:
        path = save(tmp_path / "official.json", OFFICIAL)
    finally:
        OFFICIAL["data"]["dialogs"][0]["caption"] = "a dog on a bed"
    with pytest.raises(ValueError, match="has no caption, and no COCO caption of image 7 was given"):
        read(path)
    annotations = [{"id": 5, "image_id": 7, "caption": "Later"}, {"id": 2, "image_id": 7, "caption": "A dog on a bed"}]
    captions = save(tmp_path / "captions.json", {"annotations": annotations})
    assert coco_captions(captions) == {7: "A dog on a bed"}
    builder = CorpusBuilder()
    add_dialogues(builder, [path], DialogSettings(captions=str(captions)))
    corpus = builder.build()
    assert corpus.tokenizer.decode(corpus.tokens) == DOG
    for content, message in (([], "expected COCO's annotations with id"), ({"annotations": [{"id": 1}]}, "image_id")):
        with pytest.raises(ValueError, match=message):
            coco_captions(save(tmp_path / "bad.json", content))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"img": "c.jpg"}, "has no 'dialog'"),
        ({"dialog": ["a dog", "no mark here"]}, "has a turn without a question mark: 'no mark here'"),
        ({"dialog": ["a dog"]}, "has no turns"),
        ({"dialog": ["...", "is it? no"]}, "has a caption without words"),
        ({"dialog": 3}, "dialog: expected a list, got 3"),
        ("text", "the JSON: expected an object with 'dialog', got \"text\""),
        ({"dialog": []}, "dialog: expected a caption and turns, got an empty list"),
    ],
)
def test_a_dialogue_that_cannot_be_read_is_set_aside(tmp_path: Path, entry: Any, reason: str) -> None:
    path = save(tmp_path / "plain.json", [PLAIN[1], entry])
    text, statistics = read(path)
    assert text == CATS
    assert statistics["dialogues_set_aside"] == 1
    assert statistics["skipped"][0]["file"] == "plain.json#1"
    assert statistics["skipped"][0]["reason"].startswith(reason)
    with pytest.raises(ValueError, match=r"plain\.json#1: (has|dialog: expected|the JSON: expected)"):
        add_dialogues(CorpusBuilder(), [path], DialogSettings(), strict=True)


def test_a_file_of_another_form_is_set_aside(tmp_path: Path) -> None:
    save(tmp_path / "a.json", PLAIN)
    (tmp_path / "b.json").write_text('[{"img": \n')
    save(tmp_path / "c.json", {"info": 1})
    _, statistics = read(tmp_path)
    assert (statistics["files"], statistics["files_set_aside"], statistics["dialogues"]) == (3, 2, 2)
    assert [entry["file"] for entry in statistics["skipped"]] == ["b.json", "c.json"]
    assert "line 2" in statistics["skipped"][0]["reason"]
    (tmp_path / "a.json").unlink()
    with pytest.raises(ValueError, match=r"no dialogue could be read; the first, b\.json: not JSON"):
        read(tmp_path)


def test_an_index_outside_its_pool_is_refused(tmp_path: Path) -> None:
    content = json.loads(json.dumps(OFFICIAL))
    content["data"]["dialogs"][0]["dialog"][1]["answer"] = 9
    with pytest.raises(ValueError, match=r"official\.json#0: answers: expected an index into a pool of 2, got 9"):
        list(dialogues(save(tmp_path / "official.json", content)))


# A field of any wrong type: the dialogue is set aside, with the field's place and what was expected.

WRONG = (None, True, 1, 1.5, float("inf"), "ka", [], [1, 2], {}, {"ka": 1}, 10**30, -1)


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in a JSON value."""
    if at:
        yield at
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield from places(value, (*at, key))


def changed(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return copy


def read_or_refused(read: Callable[[], Any], known: str) -> str:
    """The error of an input that is refused, which has the text `known`; "" if the input is read."""
    try:
        read()
    except ValueError as error:
        assert known in str(error)  # noqa: PT017 - it may be read as well
        return str(error)
    return ""


#: Fields that are not read, so that any value will do.
UNREAD = {"version", "split", "answer_options", "info", "iscrowd"}


@pytest.mark.parametrize("form", ["plain", "official"])
def test_a_field_of_a_wrong_type_is_set_aside(tmp_path: Path, form: str) -> None:
    content = {"plain": PLAIN, "official": OFFICIAL}[form]
    path = tmp_path / f"{form}.json"
    for at in places(content):
        right = content
        for key in at:
            right = right[key]
        for value in WRONG:
            save(path, changed(content, at, value))
            builder = CorpusBuilder()
            with suppress(ValueError):
                add_dialogues(builder, [path], DialogSettings())
            reasons = [entry["reason"] for entry in builder.statistics["visdial"]["skipped"]]
            if type(value) is not type(right) and not UNREAD.intersection(at):
                assert reasons, (at, value)
            assert all("expected" in reason or "has " in reason for reason in reasons), (at, value, reasons)
            assert not {word for word in builder.counts() if word.startswith(("none:", "true:"))}, (at, value)


COCO = {
    "info": {},
    "annotations": [{"id": 5, "image_id": 7, "caption": "ka"}, {"id": 2, "image_id": 7, "caption": "lo"}],
}


def test_a_caption_of_a_wrong_type_is_refused(tmp_path: Path) -> None:
    for at in places(COCO):
        for value in WRONG:
            path = save(tmp_path / "c.json", changed(COCO, at, value))
            error = read_or_refused(partial(coco_captions, path), "captions: ")
            right = {"id": int, "image_id": int, "caption": str, "annotations": list}.get(at[-1], dict)
            assert "info" in at or type(value) is right or "expected" in error, (at, value)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "{", b"\xff", "[NaN", "1" * 5000, "", '{"data": 1}', "null", "[null]"]
)
def test_invalid_json_is_refused_by_name(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    for read_it, known in ((coco_captions, "captions: "), (lambda p: list(dialogues(p)), "paths: "), (read, "paths: ")):
        with pytest.raises(ValueError, match=known) as raised:
            read_it(path)  # type: ignore[operator]
        assert "d.json" in str(raised.value)


def test_an_image_is_in_training_or_in_validation_whatever_its_name(tmp_path: Path) -> None:
    names = ("{n}.jpg", "val2018/VisualDialog_val2018_{n:012d}.jpg", "COCO_train2014_{n:012d}.png", "{n:06d}")
    for i, name in enumerate(names):
        dialogs = [{"img": name.format(n=n), "dialog": [f"i{n}", "big? yes"]} for n in range(1, 41)]
        save(tmp_path / f"{i}.json", dialogs)
    builder = CorpusBuilder()
    add_dialogues(builder, sorted(tmp_path.glob("*.json")), DialogSettings(), validation=0.4)
    corpus = builder.build()
    seen = {}
    for split in ("train", "validation"):
        words = corpus.tokenizer.convert_ids_to_tokens(corpus.part(split).tokens.tolist())
        seen[split] = [word for word in words if word.startswith("i") and word.endswith(":<ENV>")]
    assert not set(seen["train"]) & set(seen["validation"])
    assert len(seen["train"]) + len(seen["validation"]) == 160
    assert 0 < len(seen["validation"]) < 160
    assert len(set(seen["train"]) | set(seen["validation"])) == 40


@pytest.mark.real_data
def test_real_dialogues(real_data: Path) -> None:
    plain, official = (real_data / "visdial" / name for name in
                       ("chatir_VisDial_v1.0_queries_val.json", "mtn_visdial_1.0_val_50.json"))  # fmt: skip
    found = list(dialogues(plain))
    assert (len(found), {len(d.turns) for d in found}) == (2064, {10})
    fifty = list(dialogues(official))
    assert len(fifty) == 50
    by_caption = {d.caption: d for d in found}
    # The same dialogues in the two forms, apart from the question mark.
    for dialogue in fifty[:10]:
        assert by_caption[dialogue.caption].turns == tuple((q, f" {a}") for q, a in dialogue.turns)
