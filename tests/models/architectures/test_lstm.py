"""The LSTM in Hugging Face form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import symground as sg
from symground.analysis.tracing.regions import saliency_by_region
from symground.models import PRESETS, create
from symground.models.architectures.lstm import LSTMForCausalLM


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
    traced = sg.trace(lstm, torch.zeros(1, 3).long(), torch.zeros(1).long())
    assert "gradient × input, no saliency, no heads" in traced.attrs["note"]
    assert {"saliency", "flow", "row_total"}.isdisjoint(traced)
    for refused in (sg.find_heads, saliency_by_region):
        with pytest.raises(
            ValueError, match=r"trace: expected one with .* LSTMForCausalLM mixes positions by no matrix"
        ):
            refused(traced)


def test_trace_is_gradient_times_input_of_every_position(lstm: LSTMForCausalLM) -> None:
    ids, targets = torch.randint(2, 101, (2, 6)), torch.tensor([5, 9])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 0]])
    first = torch.arange(6).expand(2, -1) == 2
    traced = sg.trace(lstm, ids, targets, mask, groups={"noun": first})
    assert traced.input_x_gradient.dims == ("example", "key")
    assert traced.group.values.tolist() == [[-1, -1, 0, -1, -1, -1]] * 2
    for i, row in enumerate((slice(0, 6), slice(2, 5))):
        embedded = lstm.model.embedding(ids[i : i + 1, row]).detach().requires_grad_()
        hidden = lstm.model.norm(lstm.model.lstm(embedded)[0])[:, -1]
        surprisal = -lstm.lm_head(hidden).log_softmax(-1)[0, targets[i]]
        (grad,) = torch.autograd.grad(surprisal, embedded)
        found = torch.from_numpy(traced.input_x_gradient.values[i])
        torch.testing.assert_close(found[row], (embedded * grad).sum(-1)[0])
        assert float(traced.surprisal[i]) == pytest.approx(surprisal.item(), rel=1e-5)
        outside = [t for t in range(6) if not row.start <= t < row.stop]
        assert not found[outside].any()


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
    with pytest.raises(ValueError, match=r"preset: expected one of 'gpt2-4l', .*; got 'gpt5'"):
        create("gpt5", 50)
