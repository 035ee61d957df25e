"""Every field of the settings of every command: a value of a wrong type or out of its range is refused by its name.

The classes are those of the commands, what they extend and what they contain; the types are those of the fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from symground.cli import COMMANDS, TESTBED, _class_of

#: What a class needs to be made.
NEEDED = {"corpus": ("generated",), "dial": "gap", "paths": ("x",), "pairs": "x", "study": "x"}
ANY: tuple[Any, ...] = ()
COUNT, AT_LEAST_0, CHANCE, WORD = (0, -1), (-1,), (-0.1, 1.1), ("other", "")
#: A field, of every class or of one → values of its type that are out of its range.
BEYOND: dict[str, tuple[Any, ...]] = {
    "accumulate": COUNT, "batch_size": COUNT, "checked": COUNT, "checkpoints_per_job": COUNT, "draws": COUNT,
    "grid": COUNT, "homonyms": (*COUNT, 60), "intervene_contexts": COUNT, "jobs": COUNT, "lens_fit": COUNT,
    "limit": COUNT, "map_contexts": COUNT, "map_nouns": COUNT, "max_file_mb": COUNT, "max_megapixels": COUNT,
    "max_objects": COUNT, "max_unpack_ratio": COUNT, "min_noun_count": COUNT, "min_word_count": COUNT,
    "parts": (*COUNT, 5), "rounds": COUNT, "scenes": COUNT, "scenes_per_document": COUNT, "seeds": COUNT,
    "size": (*COUNT, 17), "steps": COUNT, "synonyms": COUNT, "threads": COUNT, "width": COUNT, "window": COUNT,
    "gap": AT_LEAST_0, "max_distractors": AT_LEAST_0, "min_env_tiers": AT_LEAST_0, "pictures": AT_LEAST_0,
    "seed": AT_LEAST_0, "warmup": AT_LEAST_0, "spans": ((), (-1,)), "intervene_steps": ((-1,),),
    "lens_steps": ((-1,),), "saliency_steps": ((-1,),), "gaps": ((), (-1,), (0, 0)), "max_talk": (1,),
    "nouns": (1, 101), "length": (1, 0), "PaperSettings.steps": (3,), "PopeSettings.images": COUNT,
    "GeneratedSettings.seed": ANY, "per_image": (0, 3),
    "background": CHANCE, "category_talk": CHANCE, "clutter": CHANCE, "partner": CHANCE, "position": CHANCE,
    "repeat": CHANCE, "silent_scenes": CHANCE, "talk_alone": CHANCE, "unsupported": CHANCE, "unseen": (-0.1, 0.6),
    "validation": (-0.1, 1.0), "threshold": (0.0, 1.1, math.inf), "tolerance": (-0.1,), "beta2": (-0.1, 1.0),
    "clip": (0.0, -math.inf), "learning_rate": (0.0, math.inf), "noise": (-0.1, math.inf), "zipf": (math.inf,),
    "resume_every": (-1.0, -math.inf), "weight_decay": (-0.1, math.inf), "factors": ((), (math.inf,)),
    "backend": WORD, "cue": WORD, "decay": WORD, "dial": WORD, "kinds": ((), ("other",)), "match": ((), ("other",)),
    "mode": ((), ("other",)), "models": (("other",),), "positions": ((), ("other",)), "precision": WORD, "scale": WORD,
    "selection": ((), ("other",)), "DialsSettings.scenes": WORD, "strategy": ((), ("other",)), "what": (("other",),),
    "TrainSettings.model": WORD, "checkpoints": ("other", "0,other"), "env_tiers": (("*act",),),
    "speakers": (("*CHI",),), "dials": (("other",), ("gap",)), "values": (("other",), ("1", "1")),
    "max_new_tokens": COUNT, "PretrainedSettings.limit": (1, -1), "denominators": ((), ("other",)),
    "TextTrace.groups": (("phrase",),), "silence": (("first",),),
    # Text, and what is looked up where it is used: files, devices, models of the hub.
    **dict.fromkeys(
        ("acquisition", "captions", "contexts", "corpus", "CorpusSettings.nouns", "device", "device_map", "dtype",
         "images", "instances", "instruction", "lemmas", "model", "noun_categories", "out", "pairs", "path", "paths",
         "study", "system", "TextTrace.text", "answer", "instead", "categories", "spoken", "PretrainedSettings.nouns",
         "PretrainedSettings.text"), ANY,
    ),
}  # fmt: skip
WRONG = (3, 1.5, "x", True, None, math.nan, [3], {"a": "b"}, b"x", object(), np.int64(3))


def _classes() -> Iterator[type]:
    """The classes of all commands, those that they extend and those of their fields."""
    left = [_class_of(command) for command in (*COMMANDS.values(), TESTBED)]
    while left:
        found = left.pop()
        if is_dataclass(found):
            yield found
            left += [*found.__bases__, *get_type_hints(found).values()]


CLASSES = {each.__name__: each for each in _classes() if fields(each)}
FIELDS = [(each, field.name) for each in CLASSES for field in fields(CLASSES[each])]


def _fits(value: Any, kind: Any) -> bool:
    if get_args(kind) and get_origin(kind) not in (tuple, dict):
        return any(_fits(value, each) for each in get_args(kind))
    if kind is float:
        return type(value) in (int, float, np.int64) and not math.isnan(value)
    if get_origin(kind) is tuple:
        return isinstance(value, list) and _fits(value[0], get_args(kind)[0])
    return type(value) in {int: (int, np.int64), str: (str,), bool: (bool,), NoneType: (NoneType,)}.get(kind, ())


def _made(name: str, **given: Any) -> Any:
    needed = {f.name: NEEDED.get(f.name, "x") for f in fields(CLASSES[name])
              if f.default is MISSING and f.default_factory is MISSING}  # fmt: skip
    return CLASSES[name](**{**needed, **given})


def _beyond(name: str, field: str) -> tuple[Any, ...]:
    owners = [each.__name__ for each in CLASSES[name].__mro__]
    return next((BEYOND[key] for key in (*(f"{owner}.{field}" for owner in owners), field) if key in BEYOND), None)


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=[f"{n}.{f}" for n, f in FIELDS])
def test_a_field_refuses_what_does_not_fit(name: str, field: str) -> None:
    kind = get_type_hints(CLASSES[name])[field]
    beyond = ANY if kind is bool or is_dataclass(kind) or get_origin(kind) is dict else _beyond(name, field)
    assert beyond is not None, f"{name}.{field} has no row in BEYOND"
    _made(name)
    for value in (*(value for value in WRONG if not _fits(value, kind)), *beyond):
        with pytest.raises(ValueError, match=rf"^{field}: expected .*got "):
            _made(name, **{field: value})


@pytest.mark.parametrize("name", CLASSES)
def test_numbers_of_numpy_become_pythons(name: str) -> None:
    plain, numpys = _made(name), {bool: np.bool_, int: np.int64, float: np.float32}
    scalars = {f.name: getattr(plain, f.name) for f in fields(plain) if type(getattr(plain, f.name)) in numpys}
    made = _made(name, **{field: numpys[type(value)](value) for field, value in scalars.items()})
    for field, value in scalars.items():
        assert type(getattr(made, field)) is type(value)
        assert getattr(made, field) == pytest.approx(value)
