"""Models that are compiled whole or layer by layer: what is asked of a head is asked of that head alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import symground as sg
from symground.models import mixers
from tests.models.attachment.builders import ids, llama, mamba2


def _layers(model: Any) -> None:
    for layer in sg.models.hooks.body(model).layers:
        layer.compile(backend="eager")


HOW: dict[str, Callable[[Any], None]] = {
    "layer by layer": _layers,
    "whole": lambda model: model.compile(backend="eager"),
}


EACH = [(build, how) for build in (llama, mamba2) for how in HOW]


@pytest.fixture(params=EACH, ids=lambda each: f"{each[0].__name__} {each[1]}")
def pair(request: pytest.FixtureRequest) -> Any:
    """The model, and its copy that is compiled and has run before anything is asked."""
    build, how = request.param
    torch._dynamo.reset()
    plain = sg.attach(build())
    compiled = copy.deepcopy(plain)
    HOW[how](compiled)
    with torch.no_grad():
        for _ in range(2):
            compiled(ids())
    yield plain, compiled
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*_call_min_max")
@torch._dynamo.config.patch(recompile_limit=64)  # beyond it, a frame is not compiled
def test_every_head_is_silenced_read_and_traced_as_without_a_compiler(
    pair: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    plain, compiled = pair
    heads = [(mixer.layer, head) for mixer in mixers(plain) for head in (0, mixer.heads - 1)]
    logits = []
    for pair_of_heads in ([], *([head] for head in heads), heads[1:3], []):
        logits = []
        for model in (plain, compiled):
            with sg.ablate(model, pair_of_heads) if pair_of_heads else nullcontext(), torch.no_grad():
                logits.append(model(ids()).logits)
        torch.testing.assert_close(logits[1], logits[0], msg=lambda said, of=pair_of_heads: f"{of}: {said}")
    found = []
    for model in (plain, compiled):
        with sg.observe(model, rows="all", every=2) as seen, torch.no_grad():
            for _ in range(3):
                model(ids())
        found.append(seen.dataset())
    assert found[1].step.values.tolist() == [0, 2]
    np.testing.assert_allclose(found[1].rows, found[0].rows, atol=1e-6)
    groups = {"first": torch.arange(ids().shape[1]).expand(2, -1) < 4}
    traces = [sg.trace(model, ids(), torch.tensor([3, 4]), groups=groups) for model in pair]
    for name in ("surprisal", "saliency", "flow"):
        np.testing.assert_allclose(traces[1][name], traces[0][name], atol=1e-5)
    rows = [sg.attention(model, ids(), rows="all").rows for model in pair]
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-6)
