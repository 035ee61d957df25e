"""What each depth says at each position, against the norm and the head applied by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import PreTrainedModel

import symground as sg
from symground.analysis import TunedLens
from symground.models.passes import residual_stream
from tests.models.attachment.builders import gpt2, ids, llama, mamba2


def by_hand(
    model: PreTrainedModel, given: torch.Tensor, lens: TunedLens | None, inputs: dict[str, Any]
) -> torch.Tensor:
    """[B,L+1,T,V] log-probabilities."""
    stream = residual_stream(model, given, **inputs)
    base = model.base_model
    norm = getattr(base, "ln_f", None) or getattr(base, "norm_f", None) or base.norm
    found = []
    for depth, h in enumerate(stream):
        if lens is not None and depth < len(stream) - 1:
            h = h + h @ lens.weight[depth].T + lens.bias[depth]
        found.append(model.get_output_embeddings()(norm(h)).double().log_softmax(-1))
    return torch.stack(found, 1).detach()


@pytest.mark.parametrize("build", [gpt2, llama, mamba2])
@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("tuned", [False, True])
def test_each_depth_says_what_norm_and_head_make_of_it(build: Any, side: str, tuned: bool) -> None:
    model, given = sg.attach(build()), ids()
    mask = torch.ones_like(given)
    if side != "none":
        mask[0, slice(0, 3) if side == "left" else slice(6, 9)] = 0
    lens = None
    if tuned:
        torch.manual_seed(0)
        depths, width = len(residual_stream(model, given)) - 1, model.get_output_embeddings().weight.shape[1]
        lens = TunedLens(0.3 * torch.randn(depths, width, width), 0.3 * torch.randn(depths, width))
    asked = None if side == "none" else mask
    found = sg.lens_read(model, given, asked, lens=lens, top=3, batch_size=1)
    log_p = by_hand(model, given, lens, {} if asked is None else {"attention_mask": mask})
    valid = mask.bool().numpy()[:, None]
    best = log_p.topk(3)
    seen = found.probability.values * valid[..., None]
    np.testing.assert_allclose(seen, best.values.exp().numpy() * valid[..., None], atol=1e-5, rtol=1e-3)
    at_token = log_p.gather(-1, torch.from_numpy(found.token.values)).exp().numpy()
    np.testing.assert_allclose(seen, at_token * valid[..., None], atol=1e-5, rtol=1e-3)
    entropy = -(log_p.exp() * log_p).sum(-1).numpy()
    np.testing.assert_allclose(found.entropy.values * valid, entropy * valid, atol=1e-4, rtol=1e-3)
    for i in range(len(given)):
        there = mask[i].nonzero()[:, 0].tolist()
        for t, following in itertools.pairwise(there):
            expected = -log_p[i, :, t, given[i, following]].numpy()
            np.testing.assert_allclose(found.surprisal[i, :, t], expected, atol=1e-4, rtol=1e-3)
        assert bool(found.surprisal[i, :, there[-1]].isnull().all())
    logits = model(given, **({} if asked is None else {"attention_mask": mask})).logits
    own = logits.argmax(-1).numpy()
    assert (found.token.values[:, -1, :, 0] == own)[valid[:, 0]].all()
    if lens is not None:
        xr.testing.assert_identical(
            lens.read(model, given, asked, 3), sg.lens_read(model, given, asked, lens=lens, top=3)
        )


def test_bad_input() -> None:
    model, given = sg.attach(llama()), ids()
    other = TunedLens(torch.zeros(9, 3, 3), torch.zeros(9, 3))
    for call, message in (
        (lambda: sg.lens_read(model, given, lens=3), "lens: expected a TunedLens, or None"),
        (lambda: sg.lens_read(model, given, lens=other), "lens: expected translators"),
        (lambda: sg.lens_read(model, given, top=0), "top: expected an integer"),
        (lambda: sg.lens_read(model, given, top=10**6), "top: expected an integer"),
        (lambda: sg.lens_read(model, given * 0 - 1), "input_ids: expected ids"),
        (lambda: sg.lens_read(model, given[0]), "input_ids: expected shape"),
        (lambda: sg.lens_read(model, given, torch.ones(1, 2)), "attention_mask: expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
