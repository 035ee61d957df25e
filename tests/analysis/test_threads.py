"""Every analysis in several threads at once on one model returns what it returns alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from transformers import PreTrainedModel

import symground as sg
from symground.data import Corpus
from symground.models import create, mixers
from symground.models.passes.activation_memory import frozen
from tests.analysis.spelled import spelled


@pytest.fixture(scope="module", params=["gpt2-4l", "mamba2-4l"])
def model(request: pytest.FixtureRequest, corpus: Corpus) -> PreTrainedModel:
    return create(request.param, len(corpus.tokenizer), positions=48).eval()


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Switch threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def numbers(found: Any) -> list[np.ndarray]:
    if isinstance(found, xr.Dataset):
        return [x.values for x in found.data_vars.values()]
    if isinstance(found, xr.DataArray):
        return [found.values, found.first_order.values]
    if isinstance(found, pd.DataFrame):
        return [found.select_dtypes("number").to_numpy()]
    return [x.detach().numpy() for x in ([found] if isinstance(found, torch.Tensor) else [found.weight, found.bias])]


def analyses(model: PreTrainedModel, corpus: Corpus) -> dict[str, Callable[[], Any]]:
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 4])
    examples = probes.matched()
    ids, targets = examples.input_ids, examples.targets
    lens = sg.TunedLens.fit(model, ids, steps=2, batch_size=4)

    def ablated(mode: str) -> torch.Tensor:
        with torch.no_grad(), sg.ablate(model, [(1, 0), (2, 1)], mode, None if mode == "zero" else ids):
            return model(ids).logits

    def observed() -> xr.Dataset:
        with sg.observe(model, rows="all", received=True) as seen, torch.no_grad():
            model(ids)
        return seen.dataset()

    return {
        "attention": lambda: sg.attention(model, probes, received=True, batch_size=4),
        "observe": observed,
        "trace": lambda: sg.trace(model, ids, targets, rows=True, batch_size=4),
        "trace, checkpoint": lambda: sg.trace(model, probes, checkpoint=True),
        "score": lambda: sg.score(model, probes),
        "surprisal": lambda: sg.surprisal(model, *spelled(probes)),
        "sweep": lambda: sg.sweep_heads(model, probes),
        "intervene": lambda: sg.intervene(model, probes, draws=3, match="norm"),
        "lens": lambda: sg.TunedLens.fit(model, ids, steps=3, batch_size=4),
        "lens gain": lambda: sg.lens_gain(model, probes, lens),
        "lens read": lambda: lens.read(model, ids),
        "monitor": lambda: sg.monitor(model, probes).examples,
        "steering": lambda: sg.steering(model, probes, [0.0, 2.0], draws=2),
        "ablate": lambda: ablated("zero"),
        "resample": lambda: ablated("resample"),
        "plain": lambda: model(ids).logits,
    }


@pytest.mark.filterwarnings("ignore:.*cannot (be read again|go on)")
def test_at_once_is_one_after_the_other(model: PreTrainedModel, corpus: Corpus) -> None:
    asked = analyses(model, corpus)
    expected = {name: numbers(function()) for name, function in asked.items()}
    before = [set(vars(m)) for m in model.modules()]
    barrier = threading.Barrier(len(asked))

    def run(name: str) -> list[np.ndarray]:
        barrier.wait()
        return numbers(asked[name]())

    with ThreadPoolExecutor(len(asked)) as pool:
        found = dict(zip(asked, pool.map(run, asked), strict=True))
    for name in asked:
        for got, wanted in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-4, err_msg=name)
    assert [set(vars(m)) for m in model.modules()] == before
    assert all(not m._forward_hooks for m in model.modules())
    assert all(mixer.tap.idle for mixer in mixers(model))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def test_weights_are_given_back_when_the_last_block_ends(model: PreTrainedModel) -> None:
    kept = next(model.parameters())
    first, second = frozen(model), frozen(model)
    kept.requires_grad_(False)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(p.requires_grad for p in model.parameters())
    second.__exit__(None, None, None)
    assert [p.requires_grad for p in model.parameters()] == [p is not kept for p in model.parameters()]
    kept.requires_grad_(True)
