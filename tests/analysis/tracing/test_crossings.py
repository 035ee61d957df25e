"""Traces of models with cross-attention, against transformers' eager attention and autograd."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import symground as sg
from benchmarks.common.twins import twins

BART = {
    "vocab_size": 101, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
WHISPER = {**BART, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 64}
#: Capped scores, and a window in every other layer: on both sides in the encoder.
_OF_T5GEMMA = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
    "max_position_embeddings": 64, "sliding_window": 2, "attn_logit_softcapping": 4.0, "query_pre_attn_scalar": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
T5GEMMA = {
    "encoder": {**_OF_T5GEMMA, "num_attention_heads": 4, "num_key_value_heads": 2},
    "decoder": {**_OF_T5GEMMA, "num_attention_heads": 2, "num_key_value_heads": 1}, "vocab_size": 101,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BART": ("BartForConditionalGeneration", "BartConfig", BART),
    "mBART": ("MBartForConditionalGeneration", "MBartConfig", BART),
    "Marian": ("MarianMTModel", "MarianConfig", BART),
    "Whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER),
    "T5Gemma": ("T5GemmaForConditionalGeneration", "T5GemmaConfig", T5GEMMA),
    "MVP, written out": ("MvpForConditionalGeneration", "MvpConfig", BART),
}  # fmt: skip
TARGETS = torch.tensor([5, 7])


def pair(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    model, config, settings = FAMILIES[family]
    return twins(getattr(transformers, model), getattr(transformers, config)(**settings))


def inputs(family: str) -> dict[str, Tensor]:
    """Sources of 10 positions, the second of 6 and then padding; 5 tokens of the text, the second of 4."""
    torch.manual_seed(1)
    text, mask = torch.randint(3, 101, (2, 5)), torch.ones(2, 5, dtype=torch.long)
    mask[1, 4:] = 0
    given = {"decoder_input_ids": text * mask, "decoder_attention_mask": mask}
    if family == "Whisper":
        return {"input_features": torch.randn(2, 8, 20), **given}
    ids, of_source = torch.randint(3, 101, (2, 10)), torch.ones(2, 10, dtype=torch.long)
    of_source[1, 6:] = 0
    return {"input_ids": ids * of_source, "attention_mask": of_source, **given}


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_all_three_kinds_of_layers_are_eagers(family: str) -> None:
    eager, twin = pair(family)
    ours, given = sg.attach(twin), inputs(family)
    out = eager(**given, output_attentions=True, use_cache=False)
    with torch.no_grad():
        torch.testing.assert_close(ours(**given, use_cache=False).logits[0], out.logits[0], atol=1e-4, rtol=1e-4)
    p = torch.tensor([4, 3])
    surprisal = -out.logits[torch.arange(2), p].log_softmax(-1)[torch.arange(2), TARGETS]
    shown = {"encoder_": out.encoder_attentions, "": out.decoder_attentions, "cross_": out.cross_attentions}
    flat = [a for of_kind in shown.values() for a in of_kind]
    gradients = iter(torch.autograd.grad(surprisal.sum(), flat))
    signed = {
        kind: torch.stack([(a * next(gradients)).detach() for a in of_kind], 1) for kind, of_kind in shown.items()
    }
    first = {"source half": torch.arange(10).expand(2, -1) < 5}
    start = {"start": torch.arange(5).expand(2, -1) < 2}
    traced = sg.trace(
        ours, {k: v for k, v in given.items() if k != "attention_mask"}, TARGETS, given.get("attention_mask"),
        groups=start, source_groups=first, rows=True,
    )  # fmt: skip
    np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4, rtol=1e-4)
    assert traced.prediction.values.tolist() == p.tolist()
    masks = {
        "": given["decoder_attention_mask"].bool(),
        "encoder_": given.get("attention_mask", torch.ones(2, 10)).bool(),
    }
    masks["cross_"] = masks[""]
    for kind, expected in signed.items():
        rows = masks[kind][:, None, :, None].numpy()  # rows of padding are not compared
        saliency = traced[f"{kind}saliency"]
        np.testing.assert_allclose(saliency * rows, expected.sum(2).abs() * rows, atol=1e-5, rtol=1e-3, err_msg=kind)
        total = (expected.abs() * masks[kind][:, None, None, :, None]).sum((-1, -2))
        heads = expected.shape[2]
        np.testing.assert_allclose(traced[f"{kind}matrix_total"][..., :heads], total, atol=1e-5, rtol=1e-3)
        assert np.isnan(traced[f"{kind}matrix_total"].values[..., heads:]).all()
    for kind in ("", "cross_"):
        expected = torch.stack([signed[kind][i, :, :, p[i]] for i in range(2)])
        np.testing.assert_allclose(traced[f"{kind}rows"][:, :, :2], expected, atol=1e-5, rtol=1e-3)
    flow = torch.stack([signed["cross_"][i, :, :, p[i], :5].abs().sum(-1) for i in range(2)])
    found = traced.cross_flow.sel(query_group="prediction", source_group="source half").values[..., :2]
    np.testing.assert_allclose(found, flow, atol=1e-5, rtol=1e-3)
    assert traced.saliency.dims == ("example", "layer", "query", "key")
    assert traced.cross_saliency.dims == ("example", "cross_layer", "query", "source")
    assert traced.encoder_saliency.dims == ("example", "encoder_layer", "source_query", "source")
    assert traced.encoder_layer.values.tolist() == [0, 1]
    assert traced.layer.values.tolist() == [2, 4]
    assert traced.cross_layer.values.tolist() == [3, 5]
    assert set(traced.cross_kind.values) == {"cross"}
    assert set(traced.kind.values) == {"self"}


@pytest.mark.parametrize("family", ["BART", "Whisper"])
def test_a_silenced_head_of_each_kind_is_cut_from_the_output_projection(family: str) -> None:
    eager, twin = pair(family)
    ours, given = sg.attach(twin), inputs(family)
    heads = [(1, 3), (2, 1), (5, 0)]  # of the encoder's second layer, the decoder's first, the last cross-attention
    parts = eager.model.encoder.layers[1].self_attn, eager.model.decoder.layers[0].self_attn
    for (_, head), part in zip(heads, (*parts, eager.model.decoder.layers[1].encoder_attn), strict=True):
        with torch.no_grad():
            part.out_proj.weight[:, head * part.head_dim : (head + 1) * part.head_dim] = 0
    with torch.no_grad():
        expected = eager(**given, use_cache=False).logits
        before = ours(**given, use_cache=False).logits
        with sg.ablate(ours, heads):
            found = ours(**given, use_cache=False).logits
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before[0], found[0], atol=1e-2)


def test_generation_is_eagers_and_detach_restores() -> None:
    eager, twin = pair("BART")
    given = {name: value for name, value in inputs("BART").items() if "decoder" not in name}
    ours = sg.attach(twin)
    made = [m.generate(**given, max_new_tokens=8, do_sample=False, num_beams=1).tolist() for m in (eager, ours)]
    assert made[0] == made[1]
    sg.detach(ours)
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in ours.modules())
    assert ours.config._attn_implementation != "symground"


def test_a_loss_of_an_encoder_decoder() -> None:
    ours, given = sg.attach(pair("BART")[1]), inputs("BART")
    traced = sg.trace(ours, given, loss=lambda out: out.logits[:, 0].logsumexp(-1))
    assert {"loss", "saliency", "cross_saliency", "encoder_saliency", "cross_matrix_total"} <= set(traced.variables)
    assert "rows" not in traced
    in_batches = sg.trace(ours, given, loss=lambda out: out.logits[:, 0].logsumexp(-1), batch_size=1)
    np.testing.assert_allclose(in_batches.cross_saliency, traced.cross_saliency, atol=1e-6, rtol=1e-4)


def test_what_an_encoder_decoder_does_not_take_is_named() -> None:
    ours, given = sg.attach(pair("BART")[1]), inputs("BART")
    source = {"input_ids": given["input_ids"]}
    with pytest.raises(ValueError, match="decoder_input_ids: expected the ids"):
        sg.trace(ours, source, TARGETS)
    with pytest.raises(ValueError, match="targets: expected the ids"):
        sg.trace(ours, given)
    with pytest.raises(ValueError, match=r"source_groups\['a'\]: expected shape \[2, 10\], got \[2, 5\]"):
        sg.trace(ours, given, TARGETS, source_groups={"a": torch.ones(2, 5)})
    with pytest.raises(ValueError, match="groups: 'prediction' is the prediction position"):
        sg.trace(ours, given, TARGETS, groups={"prediction": torch.ones(2, 5)})
    with pytest.raises(ValueError, match="decoder_input_ids: expected ids from 0 to 100, .* got 500"):
        sg.trace(ours, {**given, "decoder_input_ids": torch.full((2, 5), 500)}, TARGETS)
    with pytest.raises(TypeError, match="decoder_input_idz"):
        sg.trace(ours, given, TARGETS, decoder_input_idz=given["decoder_input_ids"])
    llama = transformers.LlamaConfig(
        vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    decoder = sg.attach(transformers.LlamaForCausalLM(llama).eval())
    with pytest.raises(ValueError, match="source_groups: expected None, since no layer reads other positions"):
        sg.trace(decoder, given["input_ids"], TARGETS, source_groups={})


def test_an_encoder_and_a_decoder_that_were_put_together() -> None:
    """ViT and GPT-2, each with a configuration of its own; both attached together and silenced against eager."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **sizes))
    settings = {"vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 2, "add_cross_attention": True}
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(is_decoder=True, **settings))
    model = transformers.VisionEncoderDecoderModel(encoder=vit, decoder=gpt2).eval()
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    eager = copy.deepcopy(model)
    for part in eager.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = "eager"
    before = [getattr(m.config, "_attn_implementation", None) for m in model.modules() if hasattr(m, "config")]
    given = {"pixel_values": torch.randn(2, 3, 8, 8), "decoder_input_ids": torch.randint(3, 101, (2, 5))}
    out = eager(**given, output_attentions=True, use_cache=False)
    surprisal = -out.logits[:, -1].log_softmax(-1)[torch.arange(2), TARGETS]
    shown = {"encoder_": out.encoder_attentions, "": out.decoder_attentions, "cross_": out.cross_attentions}
    traced = sg.trace(sg.attach(model), targets=TARGETS, **given)
    for kind, of_kind in shown.items():
        gradients = torch.autograd.grad(surprisal.sum(), of_kind, retain_graph=True)
        expected = torch.stack([(a * g).sum(1).abs() for a, g in zip(of_kind, gradients, strict=True)], 1).detach()
        np.testing.assert_allclose(traced[f"{kind}saliency"], expected, atol=1e-5, rtol=1e-3, err_msg=kind)
    sg.detach(model)
    assert before == [getattr(m.config, "_attn_implementation", None) for m in model.modules() if hasattr(m, "config")]


def test_inputs_are_keywords_as_a_processor_returns_them() -> None:
    ours, given = sg.attach(pair("Whisper")[1]), inputs("Whisper")
    one, other = sg.trace(ours, given, TARGETS), sg.trace(ours, targets=TARGETS, **given)
    np.testing.assert_array_equal(one.cross_saliency, other.cross_saliency)
    with pytest.raises(ValueError, match="expected the model's inputs as tensors of at least one example, got none"):
        sg.trace(ours, loss=lambda out: out.logits[:, -1, 0])


def test_relative_biases_are_refused_by_name() -> None:
    config = transformers.T5Config(vocab_size=101, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config).eval()
    with pytest.raises(ValueError, match="T5Attention adds a number for each pair of positions to its scores"):
        sg.attach(model)
    assert model.config._attn_implementation != "symground"


def mllama() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Llama-3.2-Vision: a decoder of three layers, the second of which reads an image of up to two tiles."""
    text = {
        "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "pad_token_id": 0,
        "num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1], "bos_token_id": 1,
        "eos_token_id": 2, "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2, "image_size": 28,
        "intermediate_size": 24, "vision_output_dim": 32, "patch_size": 14, "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2]], "intermediate_layers_indices": [0],
    }  # fmt: skip
    config = transformers.MllamaConfig(vision_config=vision, text_config=text, image_token_index=100)
    pair = twins(transformers.MllamaForConditionalGeneration, config)
    for model in pair:
        for name, parameter in model.named_parameters():
            if "gate" in name and parameter.ndim <= 1:  # closed when it is new
                torch.nn.init.constant_(parameter, 0.7)
    return pair


@pytest.mark.parametrize("tiles", [1, 2])
def test_llama_vision_reads_its_image(tiles: int) -> None:
    """With one tile of two, the words before the image see both, those after it one; with two all see both."""
    eager, twin = mllama()
    ours = sg.attach(twin)
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 99, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    ids[:, 2], mask[0, :1] = 100, 0
    shown = torch.tensor([1.0, float(tiles == 2)]).expand(2, 5, 1, 2)
    image = {
        "pixel_values": torch.randn(2, 1, 2, 3, 28, 28), "aspect_ratio_ids": torch.full((2, 1), tiles),
        "aspect_ratio_mask": torch.tensor([[[1, int(tiles == 2)]]] * 2),
        "cross_attention_mask": torch.cat([torch.zeros(2, 2, 1, 2), shown], 1),
    }  # fmt: skip
    places = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    out = eager(ids, attention_mask=mask, **image, **places, output_attentions=True, use_cache=False)
    surprisal = -out.logits[:, -1].log_softmax(-1)[torch.arange(2), TARGETS]
    gradients = torch.autograd.grad(surprisal.sum(), out.attentions)
    signed = [(a * g).detach() for a, g in zip(out.attentions, gradients, strict=True)]
    halves = {"first tile": torch.arange(10).expand(2, -1) < 5}
    traced = sg.trace(ours, ids, TARGETS, mask, rows=True, source_groups=halves, **image, **places)
    np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4, rtol=1e-4)
    rows = mask.bool()[..., None].numpy()
    for found, expected in (
        (traced.saliency[:, 0], signed[0]), (traced.cross_saliency[:, 0], signed[1]), (traced.saliency[:, 1], signed[2])
    ):  # fmt: skip
        np.testing.assert_allclose(found * rows, expected.sum(1).abs() * rows, atol=1e-5, rtol=1e-3)
    np.testing.assert_allclose(traced.cross_rows[:, 0], signed[1][:, :, -1], atol=1e-5, rtol=1e-3)
    flow = traced.cross_flow.sel(query_group="prediction", source_group="first tile")
    np.testing.assert_allclose(flow[:, 0], signed[1][:, :, -1, :5].abs().sum(-1), atol=1e-5, rtol=1e-3)
    assert traced.layer.values.tolist() == [0, 2]
    assert traced.cross_layer.values.tolist() == [1]
    with sg.ablate(ours, [(1, 3)]), torch.no_grad():
        found = ours(ids, attention_mask=mask, **image, use_cache=False).logits
    with torch.no_grad():
        layer = eager.model.language_model.layers[1].cross_attn
        layer.o_proj.weight[:, 3 * layer.head_dim :] = 0
        expected = eager(ids, attention_mask=mask, **image, **places, use_cache=False).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


def test_llama_vision_without_an_image_is_its_other_layers() -> None:
    ours = sg.attach(mllama()[1])
    ids = torch.randint(3, 99, (2, 7))
    traced = sg.trace(ours, ids, TARGETS)
    assert traced.layer.values.tolist() == [0, 2]
    assert "cross_saliency" not in traced
    with pytest.raises(ValueError, match="source_groups: expected None, since no layer reads other positions"):
        sg.trace(ours, ids, TARGETS, source_groups={"image": torch.ones(2, 10)})


@pytest.mark.parametrize("family", ["BART", "Whisper"])
def test_checkpointing_gives_the_same(family: str) -> None:
    ours, given = sg.attach(pair(family)[1]), inputs(family)
    kept, again = (sg.trace(ours, given, TARGETS, rows=True, checkpoint=on) for on in (False, True))
    for name in ("surprisal", "saliency", "cross_saliency", "encoder_saliency", "cross_rows", "matrix_total"):
        np.testing.assert_allclose(again[name], kept[name], atol=1e-6, rtol=1e-4, err_msg=name)


def test_masks_and_numbers_of_examples_that_do_not_fit_are_named() -> None:
    ours, given = sg.attach(pair("BART")[1]), inputs("BART")
    for more, message in (
        ({"attention_mask": torch.ones(2, 7)}, r"attention_mask: expected shape \[2, 10\], as input_ids has, got"),
        ({"decoder_input_ids": torch.ones(3, 5).long()}, "decoder_input_ids: expected 2 examples, as input_ids has"),
        ({"decoder_attention_mask": torch.zeros(2, 5)}, "decoder_attention_mask: expected at least one valid token"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            sg.trace(ours, {**given, **more}, TARGETS)
    with pytest.raises(ValueError, match="model: expected one that reads and continues a text, got BartFor"):
        sg.trace_memory(ours, length=8)
