"""The tuned lens and the logit lens, and the residual stream that they read."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import symground as sg
from symground.analysis.tracing.lenses.tuned_lens import TunedLens, lens_gain
from symground.data import Corpus
from symground.models import create
from symground.models.passes.residual_states import final_norm, residual_stream
from symground.models.trials.output_head import hidden_states

PRESETS = ("gpt2-4l", "mamba2-4l", "lstm-4l")


@pytest.fixture(scope="module", params=PRESETS)
def model(request: pytest.FixtureRequest, corpus: Corpus) -> PreTrainedModel:
    return create(request.param, len(corpus.tokenizer), positions=64).eval()


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=101, hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return sg.attach(LlamaForCausalLM(config).eval())


def test_the_stream_is_transformers_hidden_states(gpt2: PreTrainedModel) -> None:
    ids = torch.randint(2, 101, (2, 7))
    for each in (gpt2, llama()):
        with torch.no_grad():
            expected = each(ids, output_hidden_states=True).hidden_states
            found = residual_stream(each, ids)
        torch.testing.assert_close(found[:-1], torch.stack(expected[:-1]))
        torch.testing.assert_close(final_norm(each)(found[-1]), expected[-1])  # the last hidden state is after the norm


def test_the_norm_of_the_last_is_what_the_head_reads(model: PreTrainedModel) -> None:
    ids = torch.randint(2, 50, (2, 7))
    with torch.no_grad():
        stream = residual_stream(model, ids)
        torch.testing.assert_close(final_norm(model)(stream[-1]), hidden_states(model, ids))
    assert stream.shape[:3] == (5, 2, 7)


def test_fitting_comes_nearer_and_leaves_the_model(model: PreTrainedModel, corpus: Corpus, tmp_path: Path) -> None:
    before = copy.deepcopy(model.state_dict())
    lens = TunedLens.fit(model, corpus, steps=40, batch_size=4, length=32, share=0.5)
    first, last = lens.divergence
    assert all(b < a for a, b in zip(first, last, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    again = TunedLens.fit(model, corpus, steps=40, batch_size=4, length=32, share=0.5)
    assert torch.equal(lens.weight, again.weight)
    loaded = TunedLens.load(lens.save(tmp_path / "lens.safetensors"))
    assert torch.equal(loaded.weight, lens.weight)
    assert torch.equal(loaded.bias, lens.bias)
    assert loaded.divergence == lens.divergence


def test_the_divergence_is_the_kl_to_the_final_distribution(gpt2: PreTrainedModel) -> None:
    ids = torch.randint(2, 101, (1, 9))
    lens = TunedLens.fit(gpt2, ids, steps=1, batch_size=3, share=1.0)
    with torch.no_grad():
        stream = residual_stream(gpt2, ids)[:, 0]
        logits = gpt2.lm_head(gpt2.transformer.ln_f(stream)).double().log_softmax(-1)  # [L+1,T,V]
    kl = (logits[-1].exp() * (logits[-1] - logits[:-1])).sum(-1).mean(-1)
    np.testing.assert_allclose(lens.divergence[0], kl.numpy(), rtol=1e-4)


def test_a_lens_can_undo_what_is_affine() -> None:
    """The last layer of this model is affine in the residual stream, so its translator converges to it."""
    torch.manual_seed(0)
    model = llama()

    class Affine(nn.Module):
        attention_type = "full_attention"

        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(24, 24)

        def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
            return hidden_states + self.map(hidden_states)

    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        affine = Affine()
        model.model.layers[2].mlp = nn.Identity()
        model.model.layers[2].post_attention_layernorm = affine.map
        for layer in model.model.layers[:2]:
            layer.self_attn.o_proj.weight.mul_(10)
    ids = torch.randint(2, 101, (200, 8))
    lens = TunedLens.fit(model, ids, steps=400, batch_size=32, share=1.0, learning_rate=5e-3, weight_decay=0.0)
    first, last = lens.divergence
    assert last[2] < 0.02 * first[2]
    assert last[1] > 5 * last[2]


def test_gain_at_the_last_depth_is_the_models(model: PreTrainedModel, corpus: Corpus) -> None:
    probes = sg.probes(corpus.tokenizer, mismatches=2)
    gains = sg.gain(sg.score(model, probes)).set_index("target")
    for lens in (None, TunedLens.fit(model, corpus, steps=2, batch_size=2, length=32)):
        read = lens_gain(model, probes, lens, batch_size=7)
        assert sorted(set(read["depth"])) == [0, 1, 2, 3, 4]
        last = read[read["depth"] == 4].set_index("target")
        for name in ("matched", "mismatched", "gain"):
            np.testing.assert_allclose(last[name], gains.loc[last.index, name], atol=1e-4)


def test_a_lens_of_zeros_is_the_logit_lens(gpt2: PreTrainedModel, corpus: Corpus) -> None:
    model = create("gpt2-4l", len(corpus.tokenizer), positions=64).eval()
    probes = sg.probes(corpus.tokenizer)
    zero = TunedLens(torch.zeros(4, 128, 128), torch.zeros(4, 128))
    a, b = lens_gain(model, probes, zero), lens_gain(model, probes)
    np.testing.assert_allclose(a["matched"], b["matched"], atol=1e-5)


def test_bad_input(gpt2: PreTrainedModel, corpus: Corpus, tmp_path: Path) -> None:
    ids = torch.randint(2, 101, (4, 8))
    for name, value in (("steps", 0), ("batch_size", 0), ("share", 0.0), ("share", 1.5), ("warmup", 2.0)):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            TunedLens.fit(gpt2, ids, **{name: value})
    for data in (ids[0], ids.float(), [1, 2]):
        with pytest.raises(ValueError, match="data: expected a Corpus or ids"):
            TunedLens.fit(gpt2, data, steps=1)
    gpt2.train()
    gpt2.transformer.drop.p = 0.1
    with pytest.raises(ValueError, match="eval"):
        TunedLens.fit(gpt2, ids, steps=1)
    probes = sg.probes(corpus.tokenizer)
    model = create("gpt2-4l", len(corpus.tokenizer), positions=64).eval()
    with pytest.raises(ValueError, match=r"lens: expected translators \[4,128,128\]"):
        lens_gain(model, probes, TunedLens(torch.zeros(3, 24, 24), torch.zeros(3, 24)))
    with pytest.raises(FileNotFoundError, match="no such file"):
        TunedLens.load(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="expected a tuned lens, got x"):
        TunedLens.load(tmp_path / "other.safetensors")
