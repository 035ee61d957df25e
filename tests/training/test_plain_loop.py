"""Training against a loop in plain PyTorch and float64: transformers' model, with AdamW and the rate written out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import GPT2LMHeadModel

from symground.data import Corpus
from symground.data.sequences import RowSampler
from symground.files import checkpoint_folder
from symground.models import create
from symground.training import Hardware, TrainSettings, loop, train

pytestmark = pytest.mark.trains

SETTINGS = TrainSettings(
    model="gpt2-4l", steps=10, batch_size=4, length=40, learning_rate=3e-3, warmup=3, weight_decay=0.4, beta2=0.95,
    clip=1.5, checkpoints="0,1,5", seed=3,
)  # fmt: skip


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW divides by the gradient's size, so float32's rounding of a gradient near 0 would become a whole step."""
    monkeypatch.setattr(loop, "create", lambda *a, **k: create(*a, **k).double())


def rate_at(step: int, settings: TrainSettings) -> float:
    """The learning rate after ``step`` steps, by the documentation of the settings."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    share = (step - settings.warmup) / (settings.steps - settings.warmup)
    left = {"cosine": (1 + math.cos(math.pi * share)) / 2, "linear": 1 - share, "constant": 1.0}[settings.decay]
    return settings.learning_rate * (0.1 + 0.9 * left)


def plain(corpus: Corpus, settings: TrainSettings, start: Path) -> tuple[dict[int, dict[str, Tensor]], list[Any]]:
    """Weights after each step, starting from ``start``, and each step's (loss, norm of the gradient, rate)."""
    config = create(settings.model, len(corpus.tokenizer), settings.seed, positions=settings.length).config
    config._attn_implementation = "eager"
    model = GPT2LMHeadModel(config).double().train()
    model.load_state_dict(load_file(start / "model.safetensors"), strict=False)
    model.tie_weights()
    names, weights = zip(*model.named_parameters(), strict=True)
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    sampler = RowSampler.of(corpus, settings.batch_size, settings.length, settings.seed)
    after, told = {}, []
    for step in range(settings.steps):
        ids, targets = sampler.batch(step)
        logits = model(input_ids=ids).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())  # the mean over tokens that count
        gradients = torch.autograd.grad(loss, weights)
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        rate, n = rate_at(step, settings), step + 1
        with torch.no_grad():
            for w, g, m, v in zip(weights, gradients, first, second, strict=True):
                g = g * min(1.0, settings.clip / (float(norm) + 1e-6))
                if w.ndim >= 2:  # no decay of biases and norms
                    w.mul_(1 - rate * settings.weight_decay)
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(settings.beta2).addcmul_(g, g, value=1 - settings.beta2)
                w.sub_(rate * (m / (1 - 0.9**n)) / ((v / (1 - settings.beta2**n)).sqrt() + 1e-8))
        after[n] = {name: w.detach().clone() for name, w in zip(names, weights, strict=True)}
        told.append((float(loss.detach()), float(norm), rate))
    return after, told


@pytest.mark.parametrize(
    ("changes", "accumulate"),
    [({}, 1), ({"decay": "linear", "warmup": 0}, 2), ({"decay": "constant", "clip": 1e9, "beta2": 0.99}, 4)],
)
@pytest.mark.usefixtures("in_float64")
def test_one_step_and_ten_are_those_of_a_plain_loop(
    corpus: Corpus, tmp_path: Path, changes: dict[str, Any], accumulate: int
) -> None:
    settings = replace(SETTINGS, **changes)
    train(corpus, settings, tmp_path, Hardware(accumulate=accumulate))
    after, told = plain(corpus, settings, checkpoint_folder(tmp_path, 0))
    for step in (1, 5, 10):
        found = load_file(checkpoint_folder(tmp_path, step) / "model.safetensors")
        for name, wanted in after[step].items():
            torch.testing.assert_close(found[name], wanted, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 5, 10]
    for line in lines:
        loss, norm, rate = told[line["step"] - 1]
        assert (line["loss"], line["gradient_norm"], line["learning_rate"]) == pytest.approx((loss, norm, rate), 1e-6)
        assert line["tokens"] == line["step"] * settings.tokens_per_step
    # In this case each part of a step matters.
    norms = [norm for _, norm, _ in told]
    assert (min(norms) < settings.clip < max(norms)) == ("clip" not in changes)
    rows = RowSampler.of(corpus, settings.batch_size, settings.length, settings.seed)
    padded = [(rows.batch(step)[1] == -100).sum(1).tolist() for step in range(settings.steps)]
    assert any(len(set(counts)) > 1 for counts in padded), "rows with padding and rows without"
