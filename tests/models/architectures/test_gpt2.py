"""A transformers GPT-2 under ``attn_implementation="symground"``: same numbers, and padding does not leak."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import symground as sg
from symground.models import mixers


def eager(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    twin = GPT2LMHeadModel._from_config(copy.deepcopy(model.config), attn_implementation="eager")
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def test_logits_are_eagers(gpt2: GPT2LMHeadModel) -> None:
    ids = torch.randint(2, 101, (3, 9))
    torch.testing.assert_close(gpt2(ids).logits, eager(gpt2)(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("gated", [False, True])
def test_a_padded_batch_equals_its_single_rows(gpt2: GPT2LMHeadModel, side: str, gated: bool) -> None:
    lengths = (3, 7, 5)
    rows = [torch.randint(2, 101, (n,)) for n in lengths]
    ids, mask = torch.full((3, 7), 1), torch.zeros(3, 7, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(7 - len(row), 7) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    with sg.ablate(gpt2, [(1, 0)] if gated else []):
        batched = gpt2(ids, attention_mask=mask).logits
        for i, row in enumerate(rows):
            alone = gpt2(row[None]).logits[0]
            torch.testing.assert_close(batched[i][mask[i].bool()], alone, atol=1e-5, rtol=1e-5)


def test_generate_with_left_padding_equals_single_rows(gpt2: GPT2LMHeadModel) -> None:
    rows = [torch.randint(2, 101, (n,)) for n in (3, 6)]
    ids, mask = torch.full((2, 6), 1), torch.zeros(2, 6, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    batched = gpt2.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    for i, row in enumerate(rows):
        alone = gpt2.generate(row[None], max_new_tokens=5, do_sample=False)
        assert batched[i, -5:].tolist() == alone[0, -5:].tolist()


def test_generate_under_ablation_equals_decoding_without_a_cache(gpt2: GPT2LMHeadModel) -> None:
    ids = torch.randint(2, 101, (1, 4))
    with sg.ablate(gpt2, [(0, 1), (2, 2)]):
        got = gpt2.generate(ids, max_new_tokens=5, do_sample=False)
        for _ in range(5):
            ids = torch.cat([ids, gpt2(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert got.tolist() == ids.tolist()


def test_trains_with_attention_dropout_and_refuses_to_analyse_with_it(gpt2: GPT2LMHeadModel) -> None:
    for block in gpt2.transformer.h:
        block.attn.attn_dropout.p = 0.5
    ids = torch.randint(2, 101, (2, 6))
    gpt2.train()
    first, second = gpt2(ids).logits, gpt2(ids).logits
    assert not torch.equal(first, second)
    first.sum().backward()
    gpt2(ids, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])).logits.sum().backward()
    with pytest.raises(ValueError, match=r"model\.eval\(\), or an attention dropout of 0"), sg.ablate(gpt2, [(0, 0)]):
        gpt2(ids)
    gpt2.eval()
    assert torch.equal(gpt2(ids).logits, gpt2(ids).logits)


def test_attach_twice_is_once_and_checkpoints_are_the_models_own(gpt2: GPT2LMHeadModel, tmp_path: Path) -> None:
    assert sg.attach(gpt2) is gpt2
    assert [(m.layer, m.heads) for m in mixers(gpt2)] == [(0, 3), (1, 3), (2, 3)]
    gpt2.save_pretrained(tmp_path)
    ids = torch.randint(2, 101, (1, 5))
    plain = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(plain(ids).logits, gpt2(ids).logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(sg.load(tmp_path)(ids).logits, gpt2(ids).logits)


def test_a_copy_does_not_disturb_the_original(gpt2: GPT2LMHeadModel) -> None:
    ids = torch.randint(2, 101, (1, 5))
    before = gpt2(ids).logits
    with sg.ablate(copy.deepcopy(gpt2), [(0, 0), (1, 1)]):
        assert torch.equal(gpt2(ids).logits, before)


def test_gqa_model_is_attached_too() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    ids, mask = torch.randint(0, 50, (2, 6)), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    expected = model(ids, attention_mask=mask).logits
    sg.attach(model)
    got = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


def test_a_model_whose_attention_was_changed_is_refused_until_attached_again(gpt2: GPT2LMHeadModel) -> None:
    gpt2.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="runs its attention as 'sdpa'"), sg.ablate(gpt2, [(0, 0)]):
        pass
    ids = torch.randint(2, 101, (1, 5))
    whole = sg.attach(gpt2)(ids).logits
    with sg.ablate(gpt2, [(0, 0)]):
        assert not torch.allclose(gpt2(ids).logits, whole)


def test_paths_that_are_no_model_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", "runs/demo/gpt2/seed0", "nowhere"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            sg.load(path)


def test_what_is_not_supported_is_refused_by_name(gpt2: GPT2LMHeadModel) -> None:
    with pytest.raises(ValueError, match="expected a model of transformers .PreTrainedModel., got Linear"):
        sg.attach(torch.nn.Linear(1, 1))  # type: ignore[type-var]
    crossed = sg.attach(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, add_cross_attention=True)))
    with pytest.raises(ValueError, match="encoder_hidden_states: expected None"):
        crossed(torch.zeros(1, 3).long(), encoder_hidden_states=torch.zeros(1, 2, 8))
    with pytest.raises(ValueError, match="contiguous"):
        gpt2(torch.zeros(1, 3).long(), attention_mask=torch.tensor([[1, 0, 1]]))
    with pytest.raises(ValueError, match="symground.attention and symground.observe"):
        gpt2(torch.zeros(1, 3).long(), output_attentions=True)
