"""Wrong arguments of the public functions of `symground.data`, and of settings: each is refused by its name."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from symground import data
from symground.data.files import Limits
from symground.data.scenes import GeneratedImagesSettings
from symground.errors import described
from symground.training import Hardware, Optimization, TrainSettings

WRONG: tuple[Any, ...] = (3, None, 1.5, [3], {"a": 1}, b"x", object())
#: Function → the argument that its message names if all are of a wrong type.
FIRST = {
    "add_dialogues": "builder", "add_scenes": "builder", "add_transcripts": "builder", "noun_list": "nouns",
    "nouns_over_threshold": "counts", "pope_questions": "instances", "read_questions": "path",
    "write_questions": "path",
}  # fmt: skip
SETTINGS = (
    data.ChatSettings, data.DialogSettings, data.GeneratedSettings, GeneratedImagesSettings, Limits,
    Optimization, TrainSettings, Hardware,
)  # fmt: skip


def test_every_public_function_is_tried() -> None:
    functions = {name for name in data.__all__ if inspect.isfunction(getattr(data, name))}
    assert functions - {"env", "lan", "speaker"} == FIRST.keys()  # these make tokens of words


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_a_wrong_first_argument_is_named(name: str, value: Any) -> None:
    function = getattr(data, name)
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    if name == "nouns_over_threshold" and isinstance(value, dict):
        value = [value]
    with pytest.raises(ValueError, match=rf"^{FIRST[name]}: expected .*got {type(value).__name__}"):
        function(*[value] * max(1, len(needed)))


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_later_arguments_are_named(tmp_path: Path, value: Any) -> None:
    builder = data.CorpusBuilder()
    for add, settings in (
        (data.add_transcripts, data.ChatSettings()), (data.add_dialogues, data.DialogSettings()),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^settings: expected {type(settings).__name__}, got "):
            add(builder, [tmp_path], value)
        if value != [3]:
            with pytest.raises(ValueError, match="^paths: expected a list of paths, got "):
                add(builder, value, settings)
    with pytest.raises(ValueError, match="^settings: expected GeneratedSettings, got "):
        data.add_scenes(builder, value)
    with pytest.raises(ValueError, match="^folder: expected a path, got "):
        data.Corpus.load(value)
    with pytest.raises(ValueError, match=f"^questions: expected Question, got {described(value)[:20]}"):
        data.write_questions(tmp_path / "q.jsonl", [value])


#: Function → what comes before its numbers, flags and words.
BEFORE: dict[str, tuple[Any, ...]] = {
    "add_dialogues": (data.CorpusBuilder(), ["x"], data.DialogSettings()),
    "add_transcripts": (data.CorpusBuilder(), ["x"], data.ChatSettings()),
    "nouns_over_threshold": ({},), "pope_questions": ("x",), "read_questions": ("x",),
}  # fmt: skip
#: A number or a word → values out of its range.
BEYOND: dict[str, tuple[Any, ...]] = {
    "validation": (-0.1, 1.0), "jobs": (0,), "minimum": (-1,), "cue": ("other",), "strategy": ("other",),
    "images": (0,), "per_image": (0, 3), "seed": (-1,), "least": (0,),
}  # fmt: skip
SCALARS = [
    (name, parameter.name, str(parameter.annotation))
    for name in FIRST
    for parameter in list(inspect.signature(getattr(data, name)).parameters.values())[1:]
    if parameter.annotation in ("int", "int | None", "float", "bool", "str")
]


@pytest.mark.parametrize(("name", "parameter", "kind"), SCALARS)
def test_every_scalar_is_named(name: str, parameter: str, kind: str) -> None:
    kinds = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[kind.partition(" |")[0]]
    wrong = [x for x in (*WRONG, True, "x") if type(x) not in kinds and (x is not None or "None" not in kind)]
    if kind != "bool":
        wrong += [float("nan"), *BEYOND[parameter]]
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^{parameter}: expected .*got "):
            getattr(data, name)(*BEFORE[name], **{parameter: value})


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.__name__)
def test_every_field_of_settings_refuses_every_wrong_type(settings: Any) -> None:
    """Right are only values of the field's type, an integer for a float, and None for an optional field."""
    tried = 0
    for field in fields(settings):
        assert field.default is not MISSING
        optional = "None" in str(field.type)
        for value in (*WRONG, "x", True, float("nan")):
            kind = str(field.type).partition(" |")[0]
            fits = {
                "int": type(value) is int, "float": type(value) in (int, float), "str": isinstance(value, str),
                "bool": isinstance(value, bool), "tuple[str, ...]": False,
            }[kind]  # fmt: skip
            if fits or (optional and value is None):
                continue
            tried += 1
            with pytest.raises(ValueError, match=f"^{field.name}: expected "):
                settings(**{field.name: value})
    assert tried > 5 * len(fields(settings))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.__name__)
def test_settings_refuse_nan_and_infinity(settings: Any) -> None:
    """But ``clip`` and ``resume_every`` may be infinite: then no norm is clipped, and no state is saved."""
    for field in fields(settings):
        if str(field.type) == "float":
            for value in (float("nan"), float("inf"), -float("inf")):
                if value > 0 and field.name in ("clip", "resume_every"):
                    continue
                with pytest.raises(ValueError, match=f"^{field.name}: expected "):
                    settings(**{field.name: value})
