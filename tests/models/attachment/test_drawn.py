"""Texts, padding, windows and masks drawn at random, in decoders and encoders, against transformers' eager attention.

Each draw is of a family with a window or chunks of its own, or none; of the number and length of the texts; of padding
on either side of each text; and of the form in which the mask and the positions are given.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import PreTrainedModel

import symground as sg
from benchmarks.common.twins import twins
from tests.models.attachment import test_masked
from tests.models.attachment.families import FAMILIES, SIZES

#: Name → (class of the model, class of its configuration, settings, the setting of its window and its smallest value).
DRAWN: dict[str, tuple[str, str, dict[str, Any], str | None, int]] = {
    name: (f"{model}ForCausalLM", f"{config}Config", {**SIZES, **more}, window, least)
    for name, window, least in (
        ("Llama", None, 0), ("BLOOM", None, 0), ("Falcon, grouped heads", None, 0),
        ("Mistral, sliding window", "sliding_window", 1), ("Gemma-3, sliding window", "sliding_window", 1),
        ("Qwen2, window in some layers", "sliding_window", 1), ("PhiMoE, sliding window", "sliding_window", 1),
        ("GPT-OSS", "sliding_window", 1), ("Gemma-2", "sliding_window", 1),
        ("Llama-4, chunks", "attention_chunk_size", 1), ("GPT-Neo, local layers", "window_size", 1),
        ("ModernBERT as a decoder", "local_attention", 2),
    )
    for model, config, more in (FAMILIES[name],)
}  # fmt: skip
DRAWN |= {
    f"{name}, masked": (model, f"{config}Config", {**test_masked.SIZES, **more}, window, least)
    for name, window, least in (
        ("BERT", None, 0), ("ModernBERT", "local_attention", 0), ("Gemma-3, all positions", "sliding_window", 1),
    )
    for model, config, more in (test_masked.FAMILIES[name],)
}  # fmt: skip


def drawn_mask(rng: random.Random, texts: int, length: int) -> Tensor:
    """[B,T] with padding on one side of some texts, and at least one valid token in each."""
    mask = torch.zeros(texts, length, dtype=torch.long)
    for row in mask:
        valid = rng.choice([length, rng.randint(1, length)])
        first = rng.choice([0, length - valid])
        row[first : first + valid] = 1
    return mask


def drawn_ids(name: str, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Ids [B,T] of texts in a mask, and their positions by name, which eager attention is told; BLOOM counts none."""
    ids = torch.randint(3, 101, mask.shape) * mask
    return ids, {} if name == "BLOOM" else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def drawn_models(rng: random.Random, name: str, least: int = 0) -> tuple[PreTrainedModel, PreTrainedModel, int | None]:
    """The eager model, the attached one, and the drawn setting of its window, which is at least ``least``."""
    model, config, settings, window, smallest = DRAWN[name]
    least, size = max(least, smallest), None
    if window is not None:
        size = rng.choice([least, rng.randint(least, 8), rng.randint(least, 30)])
        size += size % 2 if window == "local_attention" else 0  # which counts both sides
        settings = {**settings, window: size}
    eager, twin = twins(getattr(transformers, model), getattr(transformers, config)(**settings))
    return eager, sg.attach(twin), size


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_drawn_is_eagers(name: str, seed: int) -> None:
    rng = random.Random(f"{name} {seed}")
    eager, ours, size = drawn_models(rng, name)
    texts, length = rng.randint(1, 4), rng.choice([1, 2, rng.randint(3, 20)])
    mask = drawn_mask(rng, texts, length)
    torch.manual_seed(seed)
    ids, places = drawn_ids(name, mask)
    valid, targets = mask.bool(), torch.randint(3, 101, (texts,))
    # BLOOM's biases are proportional to the mask.
    given = rng.choice([mask, mask.bool(), mask.float(), mask if name == "BLOOM" else mask * 3])
    of_ours = places if rng.random() < 0.5 else {}
    described = f"window {size} {of_ours.keys()} {given.dtype} {mask.tolist()}"
    out = eager(ids, attention_mask=mask, output_attentions=True, **places)
    with torch.no_grad():
        logits = ours(ids, attention_mask=given, **of_ours).logits
        whole = ours(ids).logits if bool(valid.all()) else logits
    for found in (logits, whole):
        torch.testing.assert_close(
            found[valid], out.logits[valid], atol=1e-4, rtol=1e-4, msg=lambda said: f"{described}: {said}"
        )
    p = (mask * torch.arange(length)).argmax(-1)
    surprisal = -out.logits[torch.arange(texts), p].log_softmax(-1)[torch.arange(texts), targets]
    gradients = torch.autograd.grad(surprisal.sum(), out.attentions)
    signed = torch.stack([a * g for a, g in zip(out.attentions, gradients, strict=True)], 1).detach()  # [B,L,H,T,T]
    traced = sg.trace(ours, ids, targets, mask, rows=True, batch_size=rng.randint(1, texts), **of_ours)
    np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4, rtol=1e-4, err_msg=described)
    seen = valid[:, None, :, None].numpy()  # rows of padding are not compared
    expected = signed.sum(2).abs().numpy() * seen
    np.testing.assert_allclose(traced.saliency * seen, expected, atol=1e-5, rtol=1e-3, err_msg=described)
    rows = torch.stack([signed[i, :, :, p[i]] for i in range(texts)])
    np.testing.assert_allclose(traced.rows, rows, atol=1e-5, rtol=1e-3, err_msg=described)
    total = signed.abs() * valid[:, None, None, :, None]
    if bool(valid.all()):
        np.testing.assert_allclose(traced.matrix_total, total.sum((-1, -2)), atol=1e-4, rtol=1e-3, err_msg=described)


#: Decoders that keep a key-value cache, and those that keep packed texts apart.
DECODERS = [name for name in DRAWN if "masked" not in name]
PACKING = [name for name in DECODERS if name not in ("GPT-OSS", "BLOOM")]


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("seed", range(3))
def test_a_text_read_in_pieces_with_a_cache_is_the_whole_text(name: str, seed: int) -> None:
    """But for windows of one key, whose caches keep all keys in transformers 5.24, with masks of fewer."""
    rng = random.Random(f"pieces {name} {seed}")
    eager, ours, size = drawn_models(rng, name, 4 if name.startswith("ModernBERT") else 2)
    texts, length = rng.randint(1, 3), rng.randint(2, 24)
    mask = torch.ones(texts, length, dtype=torch.long)
    for row in mask:
        row[: rng.choice([0, rng.randint(0, length - 1)])] = 0
    torch.manual_seed(seed)
    ids, places = drawn_ids(name, mask)
    cuts = sorted({0, length, *(rng.randint(1, length) for _ in range(rng.randint(1, 4)))})
    with torch.no_grad():
        expected = eager(ids, attention_mask=mask, **places).logits
        cache, found = transformers.DynamicCache(config=ours.config) if rng.random() < 0.5 else None, []
        for start, end in pairwise(cuts):
            at = {key: value[:, start:end] for key, value in places.items()}
            out = ours(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True, **at)
            cache = out.past_key_values
            found.append(out.logits)
    torch.testing.assert_close(
        torch.cat(found, 1)[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4,
        msg=lambda said: f"window {size} {cuts} {mask.tolist()}: {said}",
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize("name", PACKING)
@pytest.mark.parametrize("seed", range(3))
def test_packed_texts_are_the_texts_alone(name: str, seed: int) -> None:
    rng = random.Random(f"packed {name} {seed}")
    eager, ours, size = drawn_models(rng, name)
    lengths = [rng.choice([1, 2, rng.randint(1, 16)]) for _ in range(rng.randint(2, 5))]
    torch.manual_seed(seed)
    texts = [torch.randint(3, 101, (1, length)) for length in lengths]
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        found = ours(torch.cat(texts, 1), position_ids=places, use_cache=False).logits
        alone = torch.cat([eager(text, use_cache=False).logits for text in texts], 1)
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4, msg=lambda said: f"window {size} {lengths}: {said}")
    target = torch.randint(3, 101, (1,))
    whole = sg.trace(ours, torch.cat(texts, 1), target, rows=True, position_ids=places)
    last = sg.trace(ours, texts[-1], target, rows=True)
    np.testing.assert_allclose(whole.surprisal, last.surprisal, atol=1e-4, rtol=1e-4)
    length = lengths[-1]
    np.testing.assert_allclose(whole.saliency[..., -length:, -length:], last.saliency, atol=1e-5, rtol=1e-3)
    np.testing.assert_allclose(whole.rows[..., -length:], last.rows, atol=1e-5, rtol=1e-3)
    assert float(abs(whole.saliency[..., :-length]).sum()) == float(abs(whole.saliency[..., :-length, :]).sum()) == 0


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("padded", [False, True])
def test_a_compiled_model_is_one_graph_of_the_same_values(name: str, padded: bool) -> None:
    rng = random.Random(f"compiled {name}")
    eager, ours, size = drawn_models(rng, name, 2)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    mask = drawn_mask(rng, 2, 12) if padded else torch.ones(2, 12, dtype=torch.long)
    ids, places = drawn_ids(name, mask)
    given = {"attention_mask": mask} if padded else {}
    ours.compile(backend=counter, fullgraph=True)
    with torch.no_grad():
        found, expected = ours(ids, use_cache=False, **given).logits, eager(ids, attention_mask=mask, **places).logits
    assert counter.frame_count == 1
    valid = mask.bool()
    torch.testing.assert_close(
        found[valid], expected[valid], atol=1e-4, rtol=1e-4, msg=lambda said: f"window {size} {mask.tolist()}: {said}"
    )
