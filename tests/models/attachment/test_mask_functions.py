"""Masks that transformers puts together: packed texts, chunks and blocks, read and compared with what they show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import masking_utils as masks

import symground as sg
from symground import ops
from symground.models.architectures.masks import key_range_mask, read
from symground.ops.attention.mixing import Mixing
from tests.models.attachment.families import FAMILIES, pair

LENGTH = 90
PACKED = torch.tensor([[0] * 20 + [1] * 1 + [2] * 69, [0] * 80 + [1] * 10])
POSITIONS = torch.tensor([[*range(20), 0, *range(69)], [*range(80), *range(10)]])
BLOCKS = torch.tensor([[0] * 10 + [-1] * 80, [-1] * 30 + [3] * 20 + [-1] * 10 + [4] * 30])


def remapped(function: object) -> object:
    return masks.remap_positions_for_packed_sequence(function, POSITIONS)


WINDOW = masks.sliding_window_causal_mask_function(7)
SHOWN = {
    "causal": masks.causal_mask_function,
    "window": WINDOW,
    "packed": masks.and_masks(remapped(masks.causal_mask_function), masks.packed_sequence_mask_function(PACKED)),
    "packed, window": masks.and_masks(remapped(WINDOW), masks.packed_sequence_mask_function(PACKED)),
    "chunks": masks.chunked_causal_mask_function(16, torch.tensor([0, 5])),
    "blocks": masks.or_masks(masks.causal_mask_function, masks.blockwise_overlay(BLOCKS)),
    "blocks, window": masks.or_masks(WINDOW, masks.blockwise_overlay(BLOCKS)),
    "blocks within a window of 30": masks.and_masks(
        masks.or_masks(masks.causal_mask_function, masks.blockwise_overlay(BLOCKS)), masks.sliding_window_overlay(30)
    ),
    "packed, blocks": masks.and_masks(
        masks.or_masks(remapped(masks.causal_mask_function), masks.blockwise_overlay(BLOCKS)),
        masks.packed_sequence_mask_function(PACKED),
    ),
    "packed chunks": masks.and_masks(
        remapped(masks.chunked_causal_mask_function(16, torch.tensor([0, 0]))),
        masks.packed_sequence_mask_function(PACKED),
    ),
    "all positions": masks.or_masks(masks.causal_mask_function, lambda *of: torch.tensor(True)),
    "window on both sides": masks.or_masks(WINDOW, lambda b, h, q, k: abs(q - k) < 7),
    "a wider window on both sides than 30": masks.or_masks(WINDOW, lambda b, h, q, k: abs(q - k) < 30),
}
REFUSED = {
    "a window on both sides beyond none": masks.or_masks(masks.causal_mask_function, lambda b, h, q, k: abs(q - k) < 7),
    "a narrower window on both sides": masks.or_masks(WINDOW, lambda b, h, q, k: abs(q - k) < 5),
    "a window of one head": masks.or_masks(WINDOW, lambda b, h, q, k: (abs(q - k) < 7) & (h == 0)),
    "what it encloses": masks.or_masks(WINDOW, lambda b, h, q, k, w=BLOCKS: abs(q - k) < w[b].max() + 8),
    "a window of blocks": masks.and_masks(SHOWN["blocks"], masks.sliding_window_overlay(7)),
    "blocks beside chunks": masks.or_masks(SHOWN["chunks"], masks.blockwise_overlay(BLOCKS)),
    "of its own": lambda b, h, q, k: (k <= q) & (k % 2 == 0),
    "packed, of its own": masks.and_masks(lambda b, h, q, k: k <= q, masks.packed_sequence_mask_function(PACKED)),
}


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize(("first", "padding"), [(0, 0), (0, 3), (40, 3)])
def test_a_mask_is_read_as_what_it_shows(name: str, first: int, padding: int) -> None:
    """Of all queries, or of the last ones; with padding at the left of one example."""
    function, queries = SHOWN[name], LENGTH - first
    window = 30 if "30" in name else 7 if "window" in name else None
    valid = torch.ones(2, LENGTH, dtype=torch.long)
    valid[1, :padding] = 0
    made = key_range_mask(
        2, queries, LENGTH, first, 0, function, valid if padding else None, local_size=window, device="cpu"
    )
    q, k = torch.zeros(2, 1, queries, 1), torch.zeros(2, 1, LENGTH, 1)
    mask = read(torch.nn.Identity(), made, q, k, True, window)
    causal = mask.causal is not False
    found = Mixing(causal, None, mask.key_range, window, segments=mask.segments, blocks=mask.blocks).valid(q, k)
    b, i, j = torch.arange(2)[:, None, None], torch.arange(first, LENGTH)[:, None], torch.arange(LENGTH)
    expected = function(b, torch.tensor(0), i, j) & valid.bool()[:, None]
    assert torch.equal(found[:, 0].expand(2, -1, -1), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_another_mask_is_refused(name: str) -> None:
    which = (
        "expected blocks that fit into the sliding window of 7"
        if name == "a window of blocks"
        else "symground supports"
    )
    with pytest.raises(ValueError, match=f"attention_mask: {which}"):
        key_range_mask(2, LENGTH, LENGTH, 0, 0, REFUSED[name], None, local_size=7 if "window" in name else None)


def packed_row(*lengths: int) -> tuple[list[Tensor], Tensor, Tensor]:
    torch.manual_seed(1)
    texts = [torch.randint(1, 101, (1, n)) for n in lengths]
    return texts, torch.cat(texts, 1), torch.cat([torch.arange(n) for n in lengths])[None]


@pytest.mark.parametrize(
    "name", ["Llama", "Mistral, sliding window", "Qwen3", "Gemma-3, sliding window", "Llama-4, chunks"]
)
def test_packed_texts_are_the_texts_alone(name: str) -> None:
    """Position ids that begin again, without a mask and a cache, pack texts.

    GPT-OSS is not among them: in transformers its masks do not see the position ids.
    """
    eager, ours = pair(*FAMILIES[name])
    sg.attach(ours)
    texts, ids, positions = packed_row(9, 1, 12)
    logits = ours(ids, position_ids=positions, use_cache=False).logits
    logits.square().sum().backward()
    alone = torch.cat([eager(text).logits for text in texts], 1)
    alone.square().sum().backward()
    torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)
    for (key, a), b in zip(ours.named_parameters(), eager.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-3, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")


def test_packed_texts_beyond_a_window_are_kept_apart() -> None:
    """A boundary far from the edges of the window counts too."""
    model, config, more = FAMILIES["Mistral, sliding window"]
    eager, ours = pair(model, config, {**more, "max_position_embeddings": 256})
    sg.attach(ours)
    texts, ids, positions = packed_row(120, 30)
    with torch.no_grad():
        found = ours(ids, position_ids=positions, use_cache=False).logits
        alone = torch.cat([eager(text).logits for text in texts], 1)
    np.testing.assert_allclose(found, alone, atol=1e-4)


def test_ops_and_masks_agree_on_ids() -> None:
    """The ids of a mask are what the op takes."""
    made = key_range_mask(2, LENGTH, LENGTH, 0, 0, SHOWN["packed, blocks"], None)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 1, LENGTH, 4) for _ in range(3))
    mask = read(torch.nn.Identity(), made, q, k, True, None)
    out, _ = ops.attention(q, k, v, segments=mask.segments, blocks=mask.blocks)
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    seen = SHOWN["packed, blocks"](torch.arange(2)[:, None, None], torch.tensor(0), i, j)
    expected = (q @ k.mT / 2).masked_fill(~seen[:, None], float("-inf")).softmax(-1) @ v
    torch.testing.assert_close(out, expected)
