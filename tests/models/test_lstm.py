"""The LSTM in Hugging Face form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import symground as sg
from symground.models import PRESETS, create
from symground.models.lstm import LSTMForCausalLM


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_single_rows(lstm: LSTMForCausalLM, side: str) -> None:
    rows = [torch.randint(2, 101, (n,)) for n in (2, 6)]
    ids, mask = torch.full((2, 6), 1), torch.zeros(2, 6, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(6 - len(row), 6) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    batched = lstm(ids, attention_mask=mask).logits
    for i, row in enumerate(rows):
        torch.testing.assert_close(batched[i][mask[i].bool()], lstm(row[None]).logits[0])


def test_is_causal(lstm: LSTMForCausalLM) -> None:
    ids = torch.randint(2, 101, (1, 6))
    other = ids.clone()
    other[:, 4:] = 7
    torch.testing.assert_close(lstm(ids).logits[:, :4], lstm(other).logits[:, :4])


def test_saves_loads_and_generates(lstm: LSTMForCausalLM, tmp_path: Path) -> None:
    lstm.save_pretrained(tmp_path)
    again = sg.load(tmp_path)
    ids = torch.randint(2, 101, (2, 4))
    assert torch.equal(again(ids).logits, lstm(ids).logits)
    assert again.lm_head.weight is again.model.embedding.weight
    generated = again.generate(ids, max_new_tokens=3, do_sample=False)
    for _ in range(3):
        ids = torch.cat([ids, lstm(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert generated.tolist() == ids.tolist()


def test_has_no_heads(lstm: LSTMForCausalLM) -> None:
    with pytest.raises(ValueError, match="no heads to silence"), sg.ablate(lstm, [(0, 0)]):
        pass
    with pytest.raises(ValueError, match="no mixing matrix"):
        sg.trace(lstm, torch.zeros(1, 3).long(), torch.zeros(1).long())


@pytest.mark.parametrize("preset", [name for name in PRESETS if "768" not in name])
def test_presets_are_seeded_and_leave_the_global_generator_alone(preset: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (create(preset, 50, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"expected one of gpt2-4l, .*; got 'gpt5'"):
        create("gpt5", 50)
