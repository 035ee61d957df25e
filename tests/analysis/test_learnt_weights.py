"""A model with learnt weights: what random weights hide, such as heads that do something and words that are likely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import symground as sg
from benchmarks.learnt.induction import surprisal_without, texts
from symground.analysis import head_shares

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def learnt(smollm2: Path) -> tuple[Any, Any]:
    return sg.load(smollm2), sg.load_tokenizer(smollm2)


def test_a_spans_trace_is_eagers_in_all_layers(learnt: tuple[Any, Any], smollm2: Path) -> None:
    model, tokenizer = learnt
    ids = tokenizer("Anna has a red ball. Ben asks her: what do you have? She says: a red ball", return_tensors="pt")[
        "input_ids"
    ]
    span = torch.zeros_like(ids, dtype=torch.bool)
    span[0, -2:] = True
    traced = sg.trace(model, ids, span=span, rows=True)
    eager = AutoModelForCausalLM.from_pretrained(smollm2, attn_implementation="eager")
    out = eager(ids, output_attentions=True, use_cache=False)
    p = ids.shape[1] - 3
    surprisal = -out.logits[0].log_softmax(-1)[torch.tensor([p, p + 1]), ids[0, -2:]].sum()
    expected = [(a * g)[0] for a, g in zip(
        out.attentions, torch.autograd.grad(surprisal, out.attentions), strict=True
    )]  # fmt: skip
    assert float(traced.surprisal[0]) == pytest.approx(surprisal.item(), rel=1e-5)
    assert surprisal.item() < 5  # the words are likely here, and ten nats each in a model of random weights
    assert traced.sizes["layer"] == len(expected) == 30
    for layer, s in enumerate(expected):
        for found, of_eager in (
            (traced.saliency[0, layer].values, s.sum(0).abs()), (traced.rows[0, layer].values, s[:, [p, p + 1]].sum(1)),
        ):  # fmt: skip
            np.testing.assert_allclose(found, of_eager.detach(), atol=1e-5 * float(s.abs().max()), rtol=1e-3)


def test_the_heads_with_most_flow_on_repeated_tokens_are_induction_heads(learnt: tuple[Any, Any]) -> None:
    model, _ = learnt
    ids, targets, induced = (x[:16] for x in texts(model.config))
    traced = sg.trace(model, ids, targets, groups={"env": induced}, saliency=False)
    flow = head_shares(traced).mean("example").values
    most = [divmod(int(i), flow.shape[1]) for i in np.argsort(-flow.ravel())[:8]]
    attended = sg.attention(model, ids, groups={"env": induced}).mass.sel(query_group="prediction", key_group="env")
    assert sum(float(attended.mean("example")[at]) > 0.5 for at in most) >= 5

    def surprisal(heads: list[tuple[int, int]]) -> float:
        return surprisal_without(model, ids, targets, heads)

    rng, others = np.random.default_rng(0), [at for at in np.ndindex(flow.shape) if at not in most]
    random = [surprisal([others[i] for i in rng.choice(len(others), 8, replace=False)]) for _ in range(10)]
    assert surprisal(most) - surprisal([]) > 2 * (np.median(random) - surprisal([]))


def test_a_chats_answer_is_the_models_own(learnt: tuple[Any, Any]) -> None:
    model, tokenizer = learnt
    turns = [{"role": "user", "content": "Say the word ball and nothing else."}]
    traced = sg.trace(model, prompt=turns, tokenizer=tokenizer, max_new_tokens=6, per_token=True, saliency=False)
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        said = model.generate(**asked, max_new_tokens=6, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert traced.target_token[0].values.tolist() == said.tolist()
    assert "ball" in tokenizer.decode(said).lower()
