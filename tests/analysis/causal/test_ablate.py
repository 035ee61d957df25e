"""Silencing heads: the replacements, their positions, and that the model is unchanged afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import symground as sg
from symground.data import Corpus
from symground.models import create, mixers
from symground.models.architectures.lstm import LSTMForCausalLM
from symground.models.hooks.mixers import head_outputs


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 101, (3, 6), generator=torch.Generator().manual_seed(0))


def without(model: GPT2LMHeadModel, pairs: list[tuple[int, int]], ids: torch.Tensor) -> torch.Tensor:
    """Logits with the heads' rows of the output projection (a transposed Conv1D) set to zero."""
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for layer, head in pairs:
            model.transformer.h[layer].attn.c_proj.weight[head * 8 : (head + 1) * 8] = 0
        logits = model(ids).logits
        model.load_state_dict(saved)
    return logits


def test_ablating_is_zeroing_rows_of_the_output_projection(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    gpt2 = gpt2.double()
    for pairs in ([(0, 1)], [(0, 0), (0, 2), (2, 1)], [(1, h) for h in range(3)], []):
        with sg.ablate(gpt2, pairs):
            got = gpt2(ids).logits
        torch.testing.assert_close(got, without(gpt2, pairs, ids), atol=1e-6, rtol=1e-6)


def test_a_set_per_example(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    sets = [frozenset({(0, 1), (2, 2)}), frozenset(), [(1, 0)]]
    with sg.ablate(gpt2, sets):
        got = gpt2(ids).logits
        with pytest.raises(ValueError, match="heads: each of 3 examples has its own silenced heads; this pass has 2"):
            gpt2(ids[:2])
    for i, pairs in enumerate(sets):
        torch.testing.assert_close(got[i], without(gpt2, list(pairs), ids[i : i + 1])[0], atol=1e-5, rtol=1e-5)


def test_iterators_arrays_and_numpy_integers_name_heads_too(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    pairs = [(0, 0), (0, 1), (2, 2)]
    expected = without(gpt2, pairs, ids)
    for heads in (
        iter(pairs),
        (p for p in pairs),
        np.array(pairs),
        torch.tensor(pairs),
        [tuple(p) for p in np.array(pairs)],
    ):
        with sg.ablate(gpt2, heads):  # type: ignore[arg-type]
            torch.testing.assert_close(gpt2(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_nested_blocks_add_up_and_everything_is_undone(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    before = gpt2(ids).logits
    with sg.ablate(gpt2, [(0, 0)]):
        with sg.ablate(gpt2, [(0, 1)]):
            both = gpt2(ids).logits
        one = gpt2(ids).logits
    torch.testing.assert_close(both, without(gpt2, [(0, 0), (0, 1)], ids), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one, without(gpt2, [(0, 0)], ids), atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match="on purpose"), sg.ablate(gpt2, [(1, 1)]):
        raise RuntimeError("on purpose")
    assert torch.equal(gpt2(ids).logits, before)
    assert all(mixer.tap.idle for mixer in mixers(gpt2))


def test_one_context_serves_blocks_after_and_within_each_other(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    before, silent = gpt2(ids).logits, sg.ablate(gpt2, [(1, 1)])
    assert torch.equal(gpt2(ids).logits, before)  # not entered yet
    with silent:
        once = gpt2(ids).logits
        with silent:
            assert torch.equal(gpt2(ids).logits, once)
        with pytest.raises(RuntimeError, match="on purpose"), silent:
            raise RuntimeError("on purpose")
        assert torch.equal(gpt2(ids).logits, once)
    assert torch.equal(gpt2(ids).logits, before)
    with silent:
        assert torch.equal(gpt2(ids).logits, once)
    assert all(mixer.tap.idle for mixer in mixers(gpt2))


@pytest.mark.parametrize(
    ("message", "heads"),
    [
        (r"\(3, 0\) does not exist; the model has layers 0 to 2", [(3, 0)]),
        (r"\(1, 3\) does not exist; .* with 3 heads in layer 1", [(1, 3)]),
        (r"\(0, -1\) does not exist", [[(0, -1)]]),
        ("expected .* pairs", [[(0, 1, 2)]]),
        ("expected .* pairs", ["ab"]),
    ],
)
def test_heads_that_do_not_exist_are_named_and_the_model_left_as_it_was(
    gpt2: GPT2LMHeadModel, ids: torch.Tensor, message: str, heads: object
) -> None:
    before = gpt2(ids).logits
    with pytest.raises(ValueError, match=message), sg.ablate(gpt2, heads):  # type: ignore[arg-type]
        pass
    with (
        pytest.raises(ValueError, match="mode: expected one of 'zero', 'mean', 'resample'; got 'median'"),
        sg.ablate(gpt2, [], mode="median"),
    ):
        pass
    assert torch.equal(gpt2(ids).logits, before)


def outputs(model: GPT2LMHeadModel, ids: torch.Tensor, **inputs: torch.Tensor) -> dict[int, torch.Tensor]:
    with torch.no_grad(), head_outputs(mixers(model)) as found:
        model(ids, **inputs)
    return dict(found)


def test_mean_is_over_all_valid_positions_of_the_reference(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    reference = torch.randint(2, 101, (70, 5), generator=torch.Generator().manual_seed(1))  # more than one batch
    mask = torch.ones_like(reference)
    mask[::3, 3:] = 0
    heads = outputs(gpt2, reference, attention_mask=mask)
    with sg.ablate(gpt2, [(1, 2)], "mean", {"input_ids": reference, "attention_mask": mask}):
        found = outputs(gpt2, ids)
    mean = heads[1][mask.bool()][:, 2].mean(0)  # [D]
    torch.testing.assert_close(found[1][:, :, 2], mean.expand(3, 6, -1), atol=1e-6, rtol=1e-5)
    assert torch.equal(found[1][:, :, :2], outputs(gpt2, ids)[1][:, :, :2])
    with sg.ablate(gpt2, [(1, 2)], "mean", reference):
        unmasked = outputs(gpt2, ids)
    torch.testing.assert_close(unmasked[1][0, 0, 2], outputs(gpt2, reference)[1][:, :, 2].mean((0, 1)))


def test_resampling_takes_the_same_head_and_position_of_the_paired_row(
    gpt2: GPT2LMHeadModel, ids: torch.Tensor
) -> None:
    paired = ids.flip(0).roll(1, 1)
    with sg.ablate(gpt2, [[(1, 2)], [], [(1, 0)]], "resample", paired):
        found = outputs(gpt2, ids)
        with pytest.raises(ValueError, match="fill: expected a shape that broadcasts"):
            gpt2(ids[:, :4])
    own, other = outputs(gpt2, ids)[1], outputs(gpt2, paired)[1]
    expected = own.clone()
    expected[0, :, 2], expected[2, :, 0] = other[0, :, 2], other[2, :, 0]
    torch.testing.assert_close(found[1], expected)


def test_probes_bring_their_own_reference(corpus: Corpus) -> None:
    model, probes = create("gpt2-4l", len(corpus.tokenizer), positions=32).eval(), sg.probes(corpus.tokenizer)
    matched, mismatched = probes.matched(), probes.mismatched()
    with sg.ablate(model, [(2, 1)], "resample", probes):
        found = outputs(model, matched.input_ids)
    torch.testing.assert_close(found[2][:, :, 1], outputs(model, mismatched.input_ids)[2][:, :, 1])
    with sg.ablate(model, [(2, 1)], "mean", probes):
        found = outputs(model, matched.input_ids)
    valid = torch.arange(matched.input_ids.shape[1]) <= matched.prediction[:, None]
    expected = outputs(model, matched.input_ids)[2][:, :, 1][valid].mean(0)
    torch.testing.assert_close(found[2][0, 0, 1], expected, atol=1e-6, rtol=1e-5)


def test_only_at_the_given_positions(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    where = torch.zeros(3, 6, dtype=torch.bool)
    where[0, 2], where[1, 4:] = True, True
    plain = outputs(gpt2, ids)[1]
    with sg.ablate(gpt2, [(1, 0)], positions=where):
        found = outputs(gpt2, ids)[1]
        with pytest.raises(ValueError, match=r"positions: expected shape \[B,T\] = \[3, 5\] or \[T\], got \[3, 6\]"):
            gpt2(ids[:, :5])
    expected = plain.clone()
    expected[..., 0, :][where] = 0
    assert torch.equal(found, expected)
    with sg.ablate(gpt2, [(1, 0)], positions=torch.arange(6) < 9), sg.ablate(gpt2, [(0, 1)]):
        everywhere = gpt2(ids).logits
    torch.testing.assert_close(everywhere, without(gpt2, [(1, 0), (0, 1)], ids), atol=1e-5, rtol=1e-5)


def test_the_inner_block_comes_after_the_outer(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    with sg.ablate(gpt2, [(1, 0)]), sg.ablate(gpt2, [(1, 0)], "resample", ids):
        inner = outputs(gpt2, ids)[1]  # resampled from itself within the outer block, where it is silenced
    assert not inner[:, :, 0].any()
    with sg.ablate(gpt2, [(1, 0)], "resample", ids.flip(0)), sg.ablate(gpt2, [(1, 0)]):
        assert not outputs(gpt2, ids)[1][:, :, 0].any()
    with sg.ablate(gpt2, [(1, 0)]), sg.ablate(gpt2, [(1, 0)], "mean", ids):
        assert not outputs(gpt2, ids)[1][:, :, 0].any()


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_a_trace_within_carries_the_gates(gpt2: GPT2LMHeadModel, ids: torch.Tensor, mode: str) -> None:
    targets, groups = torch.tensor([5, 6, 7]), {"env": torch.arange(6).expand(3, 6) == 2}
    where = torch.arange(6) != 5 if mode == "mean" else None
    with sg.ablate(gpt2, [(1, 0)], mode, None if mode == "zero" else ids, positions=where):
        traced = sg.trace(gpt2, ids, targets, groups=groups)
    silent = traced.flow.sel(layer=1, head=0)
    assert float(silent.sel(query_group="env").max()) == 0
    assert (float(silent.sel(query_group="prediction").max()) > 0) == (mode == "mean")  # a mean is not silent
    assert float(traced.flow.sel(layer=1, head=1).min()) > 0


def test_grouped_keys_and_other_models_are_not_disturbed(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=101, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, pad_token_id=None, bos_token_id=None, eos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    llama, before = sg.attach(LlamaForCausalLM(config).eval().double()), gpt2(ids).logits
    with sg.ablate(llama, [(1, 3), (0, 0)]):
        got = llama(ids).logits
        assert torch.equal(gpt2(ids).logits, before)
    with torch.no_grad():
        for layer, head in ((1, 3), (0, 0)):
            llama.model.layers[layer].self_attn.o_proj.weight[:, head * 8 : (head + 1) * 8] = 0
    torch.testing.assert_close(got, llama(ids).logits, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("message", "mode", "reference"),
    [
        ("reference: mode 'zero' takes none", "zero", torch.zeros(1, 2)),
        ("reference: mode 'mean' needs one", "mean", None),
        (r"reference: expected input_ids of shape \[N,T\], got shape \[3\]", "mean", torch.zeros(3)),
        (r"reference: expected input_ids of shape \[N,T\], got none", "resample", {"ids": torch.zeros(1, 2)}),
    ],
)
def test_a_reference_that_does_not_fit_is_named(
    gpt2: GPT2LMHeadModel, message: str, mode: str, reference: object
) -> None:
    with pytest.raises(ValueError, match=message), sg.ablate(gpt2, [(0, 0)], mode, reference):  # type: ignore[arg-type]
        pass
    assert all(mixer.tap.idle for mixer in mixers(gpt2))


def test_an_lstm_has_no_heads(lstm: LSTMForCausalLM) -> None:
    with pytest.raises(ValueError, match="LSTMForCausalLM has no heads to silence"), sg.ablate(lstm, []):
        pass
