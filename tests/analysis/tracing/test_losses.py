"""Traces back from a number of the caller's: encoders of texts and pictures against eager autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import symground as sg
from benchmarks.common.twins import twins

_TEXT = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
_PICTURE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 12,
    "patch_size": 4,
}  # fmt: skip


class Case(NamedTuple):
    kind: str
    config: Callable[[], Any]
    inputs: Callable[[], dict[str, Tensor]]
    loss: Callable[[Any], Tensor]
    positions: int


def _words() -> dict[str, Tensor]:
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, 6:] = 0
    return {"input_ids": torch.randint(1, 101, (3, 9)) * mask, "attention_mask": mask}


def _pictures() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(3, 3, 12, 12)}


def _padded_pictures() -> dict[str, Tensor]:
    """Of twelve, twelve and nine patches of 4 × 4 points."""
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[2, 9:] = 0
    shapes = torch.tensor([[3, 4], [2, 6], [3, 3]])
    return {"pixel_values": torch.randn(3, 12, 48), "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _a_class(out: Any) -> Tensor:
    return out.logits[:, 1]


def _masked_word(out: Any) -> Tensor:
    return -out.logits[:, 2].log_softmax(-1)[:, 7]


def _of_the_pool(out: Any) -> Tensor:
    return out.pooler_output.square().sum(-1)


def _of_the_states(out: Any) -> Tensor:
    return out.last_hidden_state[:, 0].sin().sum(-1)


CASES = {
    "BERT, a class": Case(
        "BertForSequenceClassification", lambda: transformers.BertConfig(**_TEXT), _words, _a_class, 9
    ),
    "RoBERTa, a class": Case(
        "RobertaForSequenceClassification", lambda: transformers.RobertaConfig(**_TEXT), _words, _a_class, 9
    ),
    "BERT, a masked word": Case("BertForMaskedLM", lambda: transformers.BertConfig(**_TEXT), _words, _masked_word, 9),
    "BERT without a head": Case("BertModel", lambda: transformers.BertConfig(**_TEXT), _words, _of_the_states, 9),
    "Llama, a class": Case(
        "LlamaForSequenceClassification", lambda: transformers.LlamaConfig(**_TEXT), _words, _a_class, 9
    ),
    "ViT": Case("ViTForImageClassification", lambda: transformers.ViTConfig(**_PICTURE), _pictures, _a_class, 10),
    "DINOv2": Case(
        "Dinov2Model", lambda: transformers.Dinov2Config(**{**_PICTURE, "mlp_ratio": 2}), _pictures, _of_the_pool, 10
    ),
    "DINOv3": Case("DINOv3ViTModel", lambda: transformers.DINOv3ViTConfig(**_PICTURE), _pictures, _of_the_pool, 10),
    "SigLIP": Case(
        "SiglipVisionModel", lambda: transformers.SiglipVisionConfig(**_PICTURE), _pictures, _of_the_states, 9
    ),
    "SigLIP-2, pictures of several sizes": Case(
        "Siglip2VisionModel",
        lambda: transformers.Siglip2VisionConfig(
            **{name: _PICTURE[name] for name in _PICTURE if name != "image_size"}, num_patches=16
        ),
        _padded_pictures,
        _of_the_pool,
        12,
    ),
    "Whisper's encoder, a class": Case(
        "WhisperForAudioClassification",
        lambda: transformers.WhisperConfig(
            vocab_size=101,
            d_model=32,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=4,
            encoder_ffn_dim=48,
            num_mel_bins=8,
            max_source_positions=10,
            pad_token_id=0,
        ),
        lambda: {"input_features": torch.randn(3, 8, 20)},
        _a_class,
        10,
    ),
    "CLIP's vision tower": Case(
        "CLIPVisionModel", lambda: transformers.CLIPVisionConfig(**_PICTURE), _pictures, _of_the_states, 10
    ),
}


def models(case: Case) -> tuple[PreTrainedModel, PreTrainedModel]:
    config, kind = case.config(), getattr(transformers, case.kind)
    eager, twin = twins(kind, config)
    return eager, sg.attach(twin)


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_traced_as_by_eager_autograd(name: str) -> None:
    case = CASES[name]
    eager, ours = models(case)
    torch.manual_seed(1)
    inputs = case.inputs()
    out = eager(**inputs, output_attentions=True)
    each = case.loss(out)
    signed = torch.stack(
        [a * g for a, g in zip(out.attentions, torch.autograd.grad(each.sum(), out.attentions), strict=True)], 1
    ).detach()  # [B,L,H,T,T]
    first = torch.zeros(3, case.positions, dtype=torch.bool)
    first[:, 0] = True
    groups = {"first": first, "rest": ~first}
    traced = sg.trace(ours, inputs, loss=case.loss, groups=groups, batch_size=2)
    np.testing.assert_allclose(traced.loss, each.detach(), atol=1e-4, rtol=1e-4)
    mask = next((x for name, x in inputs.items() if name.endswith("attention_mask")), torch.ones(3, case.positions))
    seen = mask[:, None, :, None].bool().numpy()
    np.testing.assert_allclose(traced.saliency * seen, signed.sum(2).abs().numpy() * seen, atol=1e-5, rtol=1e-3)
    flow = signed.abs()[..., 0, 1:].sum(-1)  # from the first position to the others
    found = traced.flow.sel(query_group="first", key_group="rest")
    np.testing.assert_allclose(found, flow, atol=1e-5, rtol=1e-3)
    if bool((mask == 1).all()):
        np.testing.assert_allclose(traced.matrix_total, signed.abs().sum((-1, -2)), atol=1e-5, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize("name", ["BERT, a class", "ViT"])
def test_silenced_heads_change_what_eager_changes(name: str) -> None:
    case = CASES[name]
    eager, ours = models(case)
    inputs = case.inputs()
    wanted, size = [], 8  # a head's columns of the output projection are 0
    for h in (0, 3):
        twin = copy.deepcopy(eager)
        layer = next(
            m for n, m in twin.named_modules() if n.endswith(("0.attention.output.dense", "0.attention.o_proj"))
        )
        with torch.no_grad():
            layer.weight[:, h * size : (h + 1) * size] = 0
            wanted.append(case.loss(twin(**inputs)))
    for h, expected in zip((0, 3), wanted, strict=True):
        with sg.ablate(ours, [(0, h)]), torch.no_grad():
            torch.testing.assert_close(case.loss(ours(**inputs)), expected, atol=1e-5, rtol=1e-4)


def test_a_causal_models_loss_is_its_surprisal() -> None:
    torch.manual_seed(0)
    model = sg.attach(transformers.LlamaForCausalLM(transformers.LlamaConfig(**_TEXT)).eval())
    ids, targets = torch.randint(1, 101, (2, 7)), torch.tensor([5, 9])

    def surprisal(out: Any) -> Tensor:
        return -out.logits[:, -1].log_softmax(-1)[torch.arange(2), targets]

    found, wanted = sg.trace(model, ids, loss=surprisal), sg.trace(model, ids, targets)
    np.testing.assert_allclose(found.loss, wanted.surprisal, rtol=1e-5)
    np.testing.assert_allclose(found.saliency, wanted.saliency, atol=1e-7, rtol=1e-4)
    np.testing.assert_allclose(found.matrix_total, wanted.matrix_total, rtol=1e-4)


def test_what_is_no_loss_is_named() -> None:
    _, model = models(CASES["BERT, a class"])
    inputs = _words()
    for loss, said in (
        (
            lambda out: out.logits,
            r"loss: expected one floating-point number an example, shape \[3\], got shape \[3, 2\]",
        ),
        (lambda out: out.logits.sum(), r"loss: expected one floating-point number an example, .* got shape \[\]"),
        (lambda out: out.logits.argmax(-1), "loss: expected one floating-point number an example"),
        (lambda out: 1.0, r"loss: expected one floating-point number an example, shape \[3\], got float 1\.0"),
        (lambda out: out.logits[:, 0].detach(), "loss: expected a number that depends on the model's output"),
        (
            lambda out: torch.ones(len(out.logits), requires_grad=True).sin(),
            "loss: expected a number that depends on the model's output, got one that depends on no layer",
        ),
        (lambda out: out.logits[:, 0] * torch.nan, "model: the loss of example 0 of a batch is not finite"),
        ("logit", "loss: expected a function of the model's output, got str 'logit'"),
    ):
        with pytest.raises(ValueError, match=said):
            sg.trace(model, inputs, loss=loss)
    with pytest.raises(ValueError, match="targets: a loss has no prediction position; leave targets out"):
        sg.trace(model, inputs, torch.tensor([1, 2, 3]), loss=_a_class)
    with pytest.raises(ValueError, match="rows: a loss has no prediction position; leave rows out"):
        sg.trace(model, inputs, loss=_a_class, rows=True)
    with pytest.raises(ValueError, match=r"groups\['noun'\]: expected shape \[3, 9\], got \[3, 4\]"):
        sg.trace(model, inputs, loss=_a_class, groups={"noun": torch.ones(3, 4)})
    with pytest.raises(TypeError, match="'pixels' is neither an argument of it nor an input of BertForSequence"):
        sg.trace(model, inputs, loss=_a_class, pixels=torch.zeros(3))
    with pytest.raises(ValueError, match="position_ids: expected its first dimension to be that of 3 examples"):
        sg.trace(model, inputs, loss=_a_class, position_ids=torch.arange(9)[None], batch_size=2)
    with pytest.raises(ValueError, match="got none"):
        sg.trace(model, {}, loss=_a_class)
    with pytest.raises(ValueError, match="input_ids: expected ids from 0 to 100, the model's vocabulary, got 101"):
        sg.trace(model, torch.tensor([[5, 101]]), loss=_a_class)


def test_in_training_mode_without_dropout_it_is_the_same() -> None:
    _, ours = models(CASES["ViT"])
    inputs = _pictures()
    expected = sg.trace(ours, inputs, loss=_a_class)
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = sg.trace(ours.train(), {"pixel_values": inputs["pixel_values"].numpy()}, loss=_a_class)
    np.testing.assert_allclose(found.saliency, expected.saliency, atol=1e-7)
    next(module for module in ours.modules() if isinstance(module, torch.nn.Dropout)).p = 0.1
    with pytest.raises(ValueError, match=r"expected model.eval\(\), or no dropout"):
        sg.trace(ours, inputs, loss=_a_class)


@pytest.mark.parametrize("kind", ["Swin", "Beit", "Data2VecVision"])
def test_a_bias_for_each_pair_of_positions_is_refused_when_attaching(kind: str) -> None:
    of = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2} if kind == "Swin" else _PICTURE
    more = {"image_size": 16, "patch_size": 4} | ({} if kind == "Swin" else {"use_relative_position_bias": True})
    config = getattr(transformers, f"{kind}Config")(**{**of, **more})
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    pictures = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = model(pictures).logits
        with pytest.raises(ValueError, match=f"{kind}RelativePositionBias of .* adds a number for each pair"):
            sg.attach(model)
        assert torch.equal(model(pictures).logits, before)


def test_inputs_that_show_nothing_or_are_no_texts_are_named() -> None:
    _, model = models(CASES["BERT, a class"])
    inputs = _words()
    inputs["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="attention_mask: expected at least one valid token in each example"):
        sg.trace(model, inputs, loss=_a_class)
    with pytest.raises(ValueError, match=r"input_ids: expected shape \[B,T\], got \[9\]"):
        sg.trace(model, {"input_ids": inputs["input_ids"][0]}, loss=_a_class)


def _perceiver() -> tuple[PreTrainedModel, dict[str, Tensor], Callable[[Any], Tensor]]:
    sizes = {"d_latents": 32, "d_model": 32, "num_latents": 6, "num_blocks": 1, "num_self_attends_per_block": 2}
    heads = {"num_self_attention_heads": 4, "num_cross_attention_heads": 4}
    config = transformers.PerceiverConfig(**sizes, **heads, vocab_size=101, max_position_embeddings=16)
    inputs = {"input_ids": torch.randint(1, 101, (2, 16))}
    return transformers.PerceiverForMaskedLM(config), inputs, lambda out: out.logits[:, 0, 0]


def _vjepa2() -> tuple[PreTrainedModel, dict[str, Tensor], Callable[[Any], Tensor]]:
    predictor = {"pred_hidden_size": 32, "pred_num_attention_heads": 4, "pred_num_hidden_layers": 2}
    config = transformers.VJEPA2Config(**_PICTURE, crop_size=12, frames_per_clip=4, **predictor)
    return transformers.VJEPA2Model(config), {"pixel_values_videos": torch.randn(2, 4, 3, 12, 12)}, _of_the_states


def _clipseg() -> tuple[PreTrainedModel, dict[str, Tensor], Callable[[Any], Tensor]]:
    decoder = {"reduce_dim": 16, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 32}
    text = {**_TEXT, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPSegConfig(
        text_config=text, vision_config=_PICTURE, projection_dim=16, extract_layers=[0, 1], **decoder
    )
    inputs = {"input_ids": torch.randint(1, 101, (2, 5)), "pixel_values": torch.randn(2, 3, 12, 12)}
    return transformers.CLIPSegForImageSegmentation(config), inputs, lambda out: out.logits.flatten(1)[:, 0]


def _vilt() -> tuple[PreTrainedModel, dict[str, Tensor], Callable[[Any], Tensor]]:
    model = transformers.ViltForQuestionAnswering(transformers.ViltConfig(**_TEXT, image_size=12, patch_size=4))
    inputs = {"input_ids": torch.randint(1, 101, (2, 5)), "pixel_values": torch.randn(2, 3, 12, 12)}
    return model, inputs, lambda out: out.logits[:, 0]


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (_perceiver, "layers that mix different positions"),
        (_vjepa2, "layers that mix different positions"),
        (_clipseg, r"not that of layer 2 \(CLIPSegAttention\), .* run without gradients"),
        (_vilt, "or as if the pass were random"),
    ],
)
def test_a_model_that_cannot_be_traced_is_refused_by_its_reason(
    made: Callable[[], tuple[PreTrainedModel, dict[str, Tensor], Callable[[Any], Tensor]]], said: str
) -> None:
    """Latents; a predictor beside the encoder; a vision tower under no_grad; patches in a random order."""
    torch.manual_seed(0)
    model, inputs, loss = made()
    ours = sg.attach(model.eval(), ("text", "vision") if made is _clipseg else None)
    with pytest.raises(ValueError, match=said):
        sg.trace(ours, inputs, loss=loss)


def test_a_pooling_head_has_the_mask_that_it_had_before_attaching() -> None:
    """Siglip-2's head makes a mask by the configuration of its tower, for torch's own attention."""
    case = CASES["SigLIP-2, pictures of several sizes"]
    eager, ours = models(case)
    config, inputs = ours.config, case.inputs()
    with torch.no_grad():
        expected = eager(**inputs).pooler_output
        torch.testing.assert_close(sg.attach(ours)(**inputs).pooler_output, expected, atol=1e-5, rtol=1e-4)
    sg.detach(ours)
    assert all(part.config is config for part in ours.modules() if hasattr(part, "config"))
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).pooler_output, expected, atol=1e-5, rtol=1e-4)
