"""Every number, flag, word and path that a public function takes: a wrong one is refused by its name.

The parameters are read from the signatures, so that a new one fails here until its range is written down.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

import symground as sg
from symground import analysis
from symground.analysis import ImageQuestions
from tests.reports.conftest import results

#: function → a valid call of it: positional arguments, then keywords that make it quick.
CALLS: dict[str, str] = {
    "ImageQuestions.mismatched": "asked",
    "ImageQuestions.on_picture": "asked, 0, ones",
    "ImageQuestions.picture": "asked, 0",
    "Probes.mismatched": "probes",
    "Probes.with_span": "probes, 0",
    "TunedLens.fit": "model, corpus, steps=2, batch_size=2, length=8",
    "TunedLens.load": "lens_file",
    "TunedLens.save": "lens, new",
    "ablate": "model, [(0, 1)]",
    "answers": "sees, asked",
    "attention": "model, ids[:2, :9]",
    "attention_memory": "model, ids[:2, :9]",
    "cooccurrence": "corpus, ['book', 'ball']",
    "cooccurrence_r2": "gains, counts",
    "draw_patches": "picture, [picture[..., 0]]",
    "emergence": "contexts",
    "find_heads": "trace",
    "gain": "scores",
    "gain_interval": "gains",
    "head_shares": "trace",
    "image_questions": "processor, questions",
    "intervene": "model, few, draws=2",
    "TunedLens.read": "lens, model, ids[:2, :9]",
    "lens_gain": "model, few",
    "lens_read": "model, ids[:2, :9]",
    "load": "saved",
    "load_processor": "saved_processor",
    "load_tokenizer": "saved_processor",
    "monitor": "model, probes",
    "observe": "model, {'some': ids[:2, :9] > 6}",
    "over_training": "gains",
    "probes": "tokenizer, ['book', 'ball']",
    "report": "study",
    "score": "model, few",
    "score_to_parquet": "model, few, new",
    "share_table": "trace, trace",
    "stability": "trace, draws=3",
    "steer": "model, [(0, 1)], 2.0",
    "steering": "model, few, [2.0], draws=2",
    "surprisal": "model, ['it is a <ENV> book'], tokenizer, bos=False",
    "sweep_heads": "model, few",
    "trace": "model, few",
    "trace_memory": "model, 9",
    "view": "seen",
}
ANY: tuple[Any, ...] = ()
COUNT, SHARE, WORD = (0, -1), (0.0, -0.1, 1.001), ("other", "")
#: A parameter, of every function or of one → values of its type that are out of its range.
BEYOND: dict[str, tuple[Any, ...]] = {
    "among": WORD, "cue": WORD, "denominator": WORD, "kind": WORD, "match": WORD, "method": WORD, "mode": WORD,
    "positions": WORD, "selection": WORD, "device": WORD, "dtype": ("other", "int8", torch.int8),
    "batch_size": COUNT, "draws": COUNT, "examples": COUNT, "length": COUNT, "max_megapixels": COUNT, "memory": COUNT,
    "steps": COUNT, "window": COUNT, "step": (-1,), "seed": (-1,), "i": (10**6, -(10**6)), "span": (-1, 10**6),
    "mismatches": ("other", 0, -1, 2), "level": (0.0, 1.0, -0.1), "threshold": SHARE, "share": SHARE, "warmup": SHARE,
    "emergence.threshold": ANY, "factor": ANY, "learning_rate": (-1e-9,), "weight_decay": (-1e-9,), "width": (0.0, -1),
    "contexts": ("/missing",), "separator": ANY, "joint": ANY, "system": ANY, "instruction": ANY, "said": ANY,
    "rows": WORD, "reduce": WORD, "topk": (0, -1, 10**6), "observe.topk": (0, -1), "block": COUNT,
    "texts": ("", " "), "limit": (-1,), "every": COUNT, "last": COUNT,
    "prompt": ("", " "), "score.probes": ("", " "), "answer": ("said",), "max_new_tokens": COUNT, "top": COUNT,
    "example": (-1, 10**6), "title": ANY, "path": ANY, "out": ANY, "acquisition": ANY,
}  # fmt: skip
WRONG = ("5", 1.5, 2.0, True, None, math.nan, math.inf, np.float64(1.5), [5], b"x", object(), torch.tensor(2))


def _functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function, and every method of a public class."""
    for name in sorted({*sg.__all__, *analysis.__all__} - {"ops"}):
        found = getattr(sg, name) if name in sg.__all__ else getattr(analysis, name)
        if inspect.isclass(found):
            methods = [m for m in vars(found) if not m.startswith("_") and inspect.isfunction(getattr(found, m))]
            yield from ((f"{name}.{method}", getattr(found, method)) for method in methods)
        else:
            yield name, found


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


FUNCTIONS = dict(_functions())
SCALARS = [
    (name, parameter.name, _kinds(get_type_hints(function)[parameter.name]))
    for name, function in FUNCTIONS.items()
    for parameter in inspect.signature(function).parameters.values()
    if parameter.name != "self"
    and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    and {int, float, bool, str} & set(_kinds(get_type_hints(function)[parameter.name]))
]


def _fits(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether a value is of one of the types, as the docstrings have them: no bool is a number, no NaN either."""
    if isinstance(value, (bool, np.bool_)):
        return bool in kinds
    if isinstance(value, Real):
        whole = int in kinds and isinstance(value, Integral)
        return whole or (float in kinds and math.isfinite(value))
    return any(isinstance(value, kind) for kind in (str, NoneType) if kind in kinds)


def _arguments(own: SimpleNamespace, name: str) -> dict[str, Any]:
    def bound(*given: Any, **more: Any) -> dict[str, Any]:
        return inspect.signature(FUNCTIONS[name]).bind(*given, **more).arguments

    found: dict[str, Any] = eval(f"bound({CALLS[name]})", {**vars(own), "bound": bound})
    return found


def _call(name: str, arguments: dict[str, Any]) -> Any:
    return FUNCTIONS[name](**arguments)


@pytest.fixture(scope="module")
def scalars(own: SimpleNamespace, llava_folder: Path, asked: ImageQuestions, tmp_path_factory: Any) -> SimpleNamespace:
    """Valid arguments by name, beside those of ``own``."""
    folder = tmp_path_factory.mktemp("scalars")
    own.model.save_pretrained(folder / "model")
    gains = sg.gain(sg.score(own.model, own.few)).assign(model="m", seed=0, step=1)
    lens = sg.TunedLens.fit(own.model, own.ids, steps=1)
    return SimpleNamespace(
        **vars(own), asked=asked, sees=sg.load(llava_folder / "model"), processor=asked.processor,
        questions=asked.questions[:2], saved=folder / "model", saved_processor=llava_folder / "model", lens=lens,
        lens_file=lens.save(folder / "lens.safetensors"), gains=gains, study=results(folder / "study"),
        counts=sg.cooccurrence(own.corpus, list(own.few.nouns)), picture=np.ones((8, 8, 3)),
        seen=sg.trace(own.model, own.few, rows=True), ones=np.ones(len(asked.prompts[0].ids)),
        contexts=analysis.gain_by_context(own.scores).assign(model="m", seed=0, step=1), np=np,
    )  # fmt: skip


def test_every_scalar_parameter_has_a_row() -> None:
    kinds = {name: None for name, _, _ in SCALARS}
    assert CALLS.keys() == kinds.keys()
    for name, parameter, of in SCALARS:
        if {int, float, str} & set(of):
            assert f"{name}.{parameter}" in BEYOND or parameter in BEYOND, f"{name}({parameter}) has no row in BEYOND"


@pytest.mark.parametrize(("name", "parameter", "kinds"), SCALARS, ids=[f"{n}({p})" for n, p, _ in SCALARS])
def test_a_scalar_that_does_not_fit_is_refused_by_its_name(
    scalars: SimpleNamespace, name: str, parameter: str, kinds: tuple[Any, ...], tmp_path: Path
) -> None:
    own = SimpleNamespace(**vars(scalars), new=tmp_path / "new")
    beyond = BEYOND.get(f"{name}.{parameter}", BEYOND.get(parameter, ANY))
    arguments = _arguments(own, name)
    for value in (*(value for value in WRONG if not _fits(value, kinds)), *beyond):
        with pytest.raises((ValueError, FileNotFoundError), match=rf"^{parameter}: (expected .*got |.* not exist)"):
            _call(name, {**arguments, parameter: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in CALLS if name != "report"])  # a page takes seconds, and has one flag
def test_numbers_of_numpy_are_numbers(scalars: SimpleNamespace, name: str, tmp_path: Path) -> None:
    arguments = _arguments(SimpleNamespace(**vars(scalars), new=tmp_path / "new"), name)
    defaults = {n: p.default for n, p in inspect.signature(FUNCTIONS[name]).parameters.items()}
    numpys = {bool: np.bool_, int: np.int64, float: np.float64}
    given = {n: numpys[type(x)](x) for n, x in {**defaults, **arguments}.items() if type(x) in numpys}
    found, expected = (re.sub("0x[0-9a-fA-F]+", "", repr(_call(name, {**arguments, **how}))) for how in (given, {}))
    assert found == expected
