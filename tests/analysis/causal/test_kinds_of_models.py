"""Every analysis of heads on models of several kinds: hybrids, attention that is written out, ALiBi, windows.

The oracle of each number is one ablation, or one plain pass of the model, at a time.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

import symground as sg
from benchmarks.common.twins import twins
from symground.analysis.causal.silenced import behaviour
from symground.analysis.probing.sentence_probes import Probes
from symground.data import Corpus
from tests.models.attachment.test_vision_language import FAMILIES

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 8}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 1,
}  # fmt: skip
#: name → (class, settings, the heads of each layer that is traced)
MODELS: dict[str, tuple[str, dict[str, Any], dict[int, int]]] = {
    "attention and Mamba-2": ("Bamba", {**_MAMBA, "attn_layer_indices": [1]}, {0: 8, 1: 4}),
    "attention beside what is not traced": ("Qwen3Next", _LINEAR, {1: 4}),
    "ALiBi, written out": ("Bloom", {"n_layer": 2, "n_head": 4}, {0: 4, 1: 4}),
    "windows, written out": (
        "GPTNeo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
        {0: 4, 1: 4},
    ),
    "sinks and windows": (
        "GptOss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4}, {0: 4, 1: 4},
    ),
    "learnt positions from a mask": (
        "Bart", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}, {0: 4, 1: 4},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def probes(corpus: Corpus) -> Probes:
    return sg.probes(corpus.tokenizer).take_contexts([0, 1, 5])


@pytest.fixture(params=MODELS, ids=str)
def model(request: pytest.FixtureRequest, corpus: Corpus) -> tuple[PreTrainedModel, dict[int, int]]:
    name, settings, heads = MODELS[request.param]
    config = getattr(transformers, f"{name}Config")(
        **{"vocab_size": len(corpus.tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
           "bos_token_id": 0, "eos_token_id": 0, **settings}
    )  # fmt: skip
    torch.manual_seed(0)
    found = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is not traced
        return sg.attach(found), heads


def test_a_sweep_is_one_ablation_after_the_other(model: tuple[PreTrainedModel, dict[int, int]], probes: Probes) -> None:
    ours, heads = model
    examples = probes.matched()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a model whose layers cannot be rerun is run whole
        swept = sg.sweep_heads(ours, probes, method="exact", per_example=True)
    original = behaviour(ours, examples, [[]]).target[0]
    assert swept.layer.values.tolist() == list(heads)
    for layer, count in heads.items():
        for head in range(count):
            with sg.ablate(ours, [(layer, head)]):
                effect = behaviour(ours, examples, [[]]).target[0] - original
            np.testing.assert_allclose(swept.sel(layer=layer, head=head), effect, atol=2e-4)
        assert np.isnan(swept.sel(layer=layer).values[..., count:]).all()


def test_found_heads_are_those_of_the_flow_and_an_intervention_silences_them(
    model: tuple[PreTrainedModel, dict[int, int]], probes: Probes
) -> None:
    ours, heads = model
    traced = sg.trace(ours, probes)
    assert traced.layer.values.tolist() == list(heads)
    found = sg.find_heads(traced, threshold=0.1)
    share = traced.flow.sel(query_group="prediction", key_group="env") / traced.row_total.sel(query_group="prediction")
    for example, chosen in enumerate(found):
        expected = {
            (int(layer), int(head))
            for layer in share["layer"].values for head in share["head"].values
            if float(share.sel(layer=layer, head=head)[example]) >= 0.1
        }  # fmt: skip
        assert set(chosen) == expected
    assert any(found)
    table = sg.intervene(ours, probes, threshold=0.1, draws=3)
    examples = probes.matched()
    with sg.ablate(ours, found):
        silenced = behaviour(ours, examples, [[]]).target[0]
    original = behaviour(ours, examples, [[]]).target[0]
    assert abs(silenced.mean() - original.mean()) > 1e-3
    assert np.isfinite(table.intervened).all()


def test_a_lens_reads_every_depth_and_the_last_is_the_model(
    model: tuple[PreTrainedModel, dict[int, int]], probes: Probes
) -> None:
    ours, _ = model
    read = sg.lens_gain(ours, probes)
    last = read[read.depth == read.depth.max()].set_index("target").gain
    expected = sg.gain(sg.score(ours, probes)).set_index("target").gain
    assert read.depth.nunique() == 3
    np.testing.assert_allclose(last.reindex(expected.index), expected, atol=1e-4, rtol=1e-4)


def test_a_sweep_of_a_model_whose_positions_have_three_axes(corpus: Corpus, probes: Probes) -> None:
    """Qwen2-VL hands its layers positions of as many rows as it has texts; heads at once are more."""
    family = FAMILIES["Qwen2-VL"]
    settings = family.config()
    text = {**settings["text_config"], "vocab_size": len(corpus.tokenizer)}
    config = transformers.Qwen2VLConfig(**{**settings, "text_config": text})
    model = sg.attach(twins(transformers.Qwen2VLForConditionalGeneration, config)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        swept = sg.sweep_heads(model, probes, method="exact", per_example=True)
    original = behaviour(model, probes.matched(), [[]]).target[0]
    for layer, head in ((0, 1), (1, 3)):
        with sg.ablate(model, [(layer, head)]):
            effect = behaviour(model, probes.matched(), [[]]).target[0] - original
        np.testing.assert_allclose(swept.sel(layer=layer, head=head), effect, atol=2e-4)
