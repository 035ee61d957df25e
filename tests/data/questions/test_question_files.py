"""Files of questions about images: POPE's and other rows, the paths of the images, errors, and writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symground.data.questions import Question, read_questions, write_questions

POPE = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a hot dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there an oven in the image?", "label": "no"},
    {"question_id": 3, "image": "b.jpg", "text": "Is there a dog in the image?", "label": "no"},
]
READ = [
    Question("a.jpg", "Is there a hot dog in the image?", "yes", "hot dog"),
    Question("a.jpg", "Is there an oven in the image?", "no", "oven"),
    Question("b.jpg", "Is there a dog in the image?", "no", "dog"),
]


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(**fields: Any) -> dict[str, Any]:
    return {"image": "a.jpg", "text": "What is it?", "label": "a dog", **fields}


def test_popes_files_are_lines_or_a_list(tmp_path: Path) -> None:
    assert read_questions(lines(tmp_path / "lines.json", *POPE)) == READ
    listed = tmp_path / "list.json"
    listed.write_text("\n" + json.dumps(POPE, indent=4))
    assert read_questions(str(listed)) == READ
    saved = tmp_path / "windows.json"
    saved.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(entry).encode() for entry in POPE) + b"\r\n")
    assert read_questions(saved) == READ
    # The end of a line in Unicode, but not in JSON.
    saved.write_text(json.dumps(row(text="Who?\u2028Where?"), ensure_ascii=False), encoding="utf-8")
    assert read_questions(saved)[0].text == "Who?\u2028Where?"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image": "a.jpg", "question": "Is it?", "answer": "No "}, Question("a.jpg", "Is it?", "no")),
        ({"image": "a.jpg", "question": "Who?", "answer": " A Dog"}, Question("a.jpg", "Who?", "A Dog")),
        (row(object="dog", kind="popular"), Question("a.jpg", "What is it?", "a dog", "dog", "popular")),
        (row(about="dog", category="colour"), Question("a.jpg", "What is it?", "a dog", "dog", "colour")),
        (row(object=None, category=None), Question("a.jpg", "What is it?", "a dog")),
        (row(object=" "), Question("a.jpg", "What is it?", "a dog")),
        # If a row has both names of a field, the first counts.
        (row(question="Who?", answer="cat", object="dog", about="cat", kind="x", category="y"),
         Question("a.jpg", "What is it?", "a dog", "dog", "x")),
        # An object that is null is not read from the text either.
        (row(text="Is there a cat in the image?", object=None),
         Question("a.jpg", "Is there a cat in the image?", "a dog")),
    ],
)  # fmt: skip
def test_other_names_of_fields(tmp_path: Path, fields: dict[str, Any], expected: Question) -> None:
    assert read_questions(lines(tmp_path / "q.jsonl", fields)) == [expected]


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("is there an Apple in the image?\nAnswer in one word.", "Apple"),
        ("Is there a hole in the image in the image?", "hole in the image"),
        ("Is there a dog in the image? Or a cat in the image?", "dog"),
        ("Is there a  dog in the image?", "dog"),
        ("Is there a dog?", None),
        ("Is there any dog in the image?", None),
        ("Look: Is there a dog in the image?", None),
        ("Are there dogs in the image?", None),
    ],
)
def test_the_object_is_read_from_popes_wording(tmp_path: Path, text: str, about: str | None) -> None:
    assert read_questions(lines(tmp_path / "q.jsonl", row(text=text)))[0].about == about


def test_images_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "val").mkdir(parents=True)
    for name in ("a.jpg", "val/b.jpg"):
        (folder / name).touch()
    path = lines(tmp_path / "q.jsonl", row(), row(image="val/b.jpg"), row(image="/once/here/a.jpg"))
    found = [question.image for question in read_questions(path, folder)]
    assert found == [str(folder / name) for name in ("a.jpg", "val/b.jpg", "a.jpg")]
    # Each image counts once, and a folder is no image.
    rows = [row(image=name) for name in ("v.jpg", "w.jpg", "v.jpg", "a.jpg", "val", "z.jpg")]
    with pytest.raises(FileNotFoundError, match=r"images: 4 of 5 are not in .*images: v\.jpg, w\.jpg, val, …$"):
        read_questions(lines(path, *rows), folder)
    with pytest.raises(FileNotFoundError, match=r"images: 1 of 2 are not in .*images: z\.jpg$"):
        read_questions(lines(path, row(), row(image="z.jpg")), folder)
    with pytest.raises(FileNotFoundError, match="images: expected a folder, got .*nowhere"):
        read_questions(path, tmp_path / "nowhere")


def test_images_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    (tmp_path / "study" / "folder").mkdir()
    absolute = f"{tmp_path}/./b.jpg"
    long = "x" * 5000
    path = lines(
        tmp_path / "study" / "q.jsonl", *(row(image=name) for name in ("a.jpg", "b.jpg", absolute, long, "folder"))
    )
    found = [question.image for question in read_questions(path)]
    assert found == [str(tmp_path / "study" / "a.jpg"), "b.jpg", absolute, long, "folder"]
    monkeypatch.chdir(tmp_path)
    assert read_questions("study/q.jsonl")[0].image == "study/a.jpg"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"text": "Who?", "label": "yes"}, "has no 'image'"),
        ({"image": "a.jpg", "label": "yes"}, "has no 'text' or 'question'"),
        ({"image": "a.jpg", "question": "Who?"}, "has no 'label' or 'answer'"),
        (row(label=True), "label: expected text, got True"),
        (row(image=3), "image: expected text, got 3"),
        (row(image=" "), "image: expected text, got ' '"),
        (row(text=None), "text: expected text, got None"),
        (row(object=["dog"]), r"object: expected text, got \['dog'\]"),
        (row(category=2), "category: expected text, got 2"),
        (["a.jpg", "Who?", "yes"], "expected an object with image, text and label, got list"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, bad: Any, reason: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps(row())}\n\n{json.dumps(bad)}\n")
    with pytest.raises(ValueError, match=rf"path: .*q\.jsonl, line 3: {reason}"):
        read_questions(path)
    path.write_text(json.dumps([row(), bad], indent=1))
    with pytest.raises(ValueError, match=rf"path: .*q\.jsonl, entry 2: {reason}"):
        read_questions(path)


@pytest.mark.parametrize(
    "name", ["image", "text", "question", "label", "answer", "object", "about", "kind", "category"]
)
def test_every_field_of_a_row_refuses_every_wrong_type(tmp_path: Path, name: str) -> None:
    optional = name in ("object", "about", "kind", "category")
    others = {x: y for x, y in row().items() if x != {"question": "text", "answer": "label"}.get(name)}
    for value in (None, True, 1, 1.5, float("inf"), "", [], [1, 2], ["ka"], {}, {"ka": 1}, 10**30):
        path = lines(tmp_path / "q.jsonl", {**others, name: value})
        if optional and value in (None, ""):
            assert len(read_questions(path)) == 1
        else:
            with pytest.raises(ValueError, match=rf"^path: .*q\.jsonl, line 1: {name}: expected text, got "):
                read_questions(path)


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    with pytest.raises(FileNotFoundError, match=r"path: .*q\.json does not exist"):
        read_questions(path)
    for content, message in (
        (json.dumps(row()) + "\nimage,text\n", r"q\.json, line 2: expected JSON lines or a JSON list"),
        ("{\n", r"q\.json, line 1: expected JSON lines"),
        ('[{"image":\n', r"q\.json: not JSON .*line 2"),
        ("[" * 100_000, r"q\.json: not JSON"),
        ("\n \n", r"path: no question in .*q\.json"),
        ("[]", r"path: no question in .*q\.json"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_questions(path)
    path.write_bytes(b'{"image": "\xff.jpg"}\n')
    with pytest.raises(ValueError, match=r"q\.json: not UTF-8"):
        read_questions(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": ""}, "image: expected text, got ''"),
        ({"image": Path("a.jpg")}, r"image: expected text, got PosixPath\('a.jpg'\)"),
        ({"text": "\n"}, "text: expected text"),
        ({"about": ""}, "about: expected text"),
        ({"answer": "Yes"}, "answer: expected 'yes', got 'Yes'"),
        ({"answer": "a dog "}, "answer: expected 'a dog', got 'a dog '"),
    ],
)
def test_a_question_with_bad_fields_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Question(**{"image": "a.jpg", "text": "Who?", "answer": "yes", **fields})


TEXT = st.text(min_size=1).filter(str.strip)
QUESTIONS = st.builds(
    Question,
    image=TEXT.map(lambda name: f"{name}.jpg"),
    text=TEXT | TEXT.map(lambda noun: f"Is there a {noun} in the image?"),
    answer=st.sampled_from(["yes", "no"]) | TEXT.map(str.strip).filter(lambda word: word.lower() not in ("yes", "no")),
    about=st.none() | TEXT,
    kind=st.sampled_from(["random", "popular", "adversarial", ""]) | st.text(),
)


@given(questions=st.lists(QUESTIONS, min_size=1, max_size=6))
def test_written_questions_are_read_back(tmp_path_factory: pytest.TempPathFactory, questions: list[Question]) -> None:
    path = tmp_path_factory.getbasetemp() / "written" / "q.json"
    write_questions(path, iter(questions))
    assert read_questions(path) == questions
    assert [json.loads(line)["question_id"] for line in path.read_text().splitlines()] == [
        number + 1 for number in range(len(questions))
    ]


def test_written_lines_are_popes(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    write_questions(path, READ)
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [{key: entry[key] for key in POPE[0]} for entry in written] == POPE
    assert set(written[0]) - set(POPE[0]) == {"object", "category"}
    assert [file.name for file in tmp_path.iterdir()] == ["q.json"]
    with pytest.raises(ValueError, match="questions: expected at least 1, got none"):
        write_questions(path, [])
    assert read_questions(path) == READ


@pytest.mark.parametrize("name", ["../a.png", "in/../../a.png", "..\\\\a.png"])
@pytest.mark.parametrize("inside", [True, False])
def test_an_image_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str, inside: bool) -> None:
    (tmp_path / "in" / "in").mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(b"x")
    path = tmp_path / "in" / "q.json"
    path.write_text(f'{{"image": "{name}", "text": "Is it?", "label": "yes"}}')
    images = tmp_path / "in" if inside else None
    with pytest.raises(ValueError, match=r"line 1: image: '.*a\.png' leads out of its folder \(anywhere=True allows"):
        read_questions(path, images)
    if "/" in name:
        assert len(read_questions(path, images, anywhere=True)) == 1
