"""Vision towers beside text decoders: both traced, against transformers' eager attention and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import symground as sg
from tests.models.attachment.test_vision_language import FAMILIES, TARGETS, batch, pair, places

#: name → how many pictures or tiles an example has
TOWERS = {"LLaVA-1.5": 1, "InternVL": 1, "PaliGemma": 1, "Gemma-3 with images": 1, "LLaVA-NeXT": 3}


def eager_attentions(tower: PreTrainedModel, kept: list[torch.Tensor]) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that keep the weights that each attention of a tower returns."""

    def keep(module: torch.nn.Module, args: object, output: object) -> None:
        assert isinstance(output, tuple)
        kept.append(output[1])

    return [m.register_forward_hook(keep) for m in tower.modules() if type(m).__name__.endswith("Attention")]


@pytest.mark.parametrize("name", TOWERS)
def test_both_parts_are_eagers(name: str) -> None:
    eager, twin = pair(FAMILIES[name])
    ours, given = sg.attach(twin, parts=("text", "vision")), batch(FAMILIES[name], "left")
    tower, images = eager.get_encoder(modality="image"), TOWERS[name]
    kept: list[torch.Tensor] = []
    hooks = eager_attentions(tower, kept)
    out = eager(**given, **places(eager, given), output_attentions=True)
    for hook in hooks:
        hook.remove()
    p = given["attention_mask"].shape[1] - 1
    surprisal = -out.logits[torch.arange(2), p].log_softmax(-1)[torch.arange(2), TARGETS]
    flat = [*out.attentions, *kept]
    gradients = torch.autograd.grad(surprisal.sum(), flat, allow_unused=True)
    # Those without a gradient are of a pooling head, which no text reads.
    signed = [(a * g).detach() for a, g in zip(flat, gradients, strict=True) if g is not None]
    of_text, of_tower = signed[: len(out.attentions)], signed[len(out.attentions) :]
    for batch_size in (2, 1):
        traced = sg.trace(ours, targets=TARGETS, rows=True, batch_size=batch_size, **given)
        np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4, rtol=1e-4)
        seen = given["attention_mask"].bool()[:, None, :, None].numpy()
        expected = torch.stack([s.sum(1).abs() for s in of_text], 1).detach() * seen
        np.testing.assert_allclose(traced.saliency * seen, expected, atol=1e-5, rtol=1e-3)
        assert traced.vision_saliency.dims == ("example", "image", "vision_layer", "patch_query", "patch")
        found = traced.vision_saliency.values.reshape(2 * images, *traced.vision_saliency.shape[2:])
        np.testing.assert_allclose(
            found, torch.stack([s.sum(1).abs() for s in of_tower], 1).detach(), atol=1e-5, rtol=1e-3
        )
        total = torch.stack([s.abs().sum((-1, -2)) for s in of_tower], 1).detach()
        found = traced.vision_matrix_total.values.reshape(2 * images, len(of_tower), -1)[..., : total.shape[2]]
        np.testing.assert_allclose(found, total, atol=1e-5, rtol=1e-3)
    layers = len(of_text)
    assert traced.layer.values.tolist() == list(range(layers))
    assert traced.vision_layer.values.tolist() == list(range(layers, layers + len(of_tower)))
    assert set(traced.part.values) == {"text"}
    assert set(traced.vision_part.values) == {"vision"}
    assert "image" in traced.key_group.values
    patches = traced.sizes["patch"]
    side = int(patches**0.5)
    assert traced.patch_row.values[-1] == traced.patch_column.values[-1] == side - 1
    assert (traced.patch_row.values == -1).sum() == patches - side * side  # the class token


def test_a_silenced_head_of_the_tower_and_what_it_does_not_take() -> None:
    eager, twin = pair(FAMILIES["LLaVA-1.5"])
    ours, given = sg.attach(twin, parts=("text", "vision")), batch(FAMILIES["LLaVA-1.5"], None)
    tower = eager.get_encoder(modality="image")
    attention = next(m for m in tower.modules() if type(m).__name__.endswith("Attention"))
    with torch.no_grad():
        before = ours(**given).logits
        with sg.ablate(ours, [(2, 1)]):
            found = ours(**given).logits
        attention.out_proj.weight[:, attention.head_dim : 2 * attention.head_dim] = 0
        expected = eager(**given).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, before, atol=1e-3)
    text = sg.trace(ours, given["input_ids"][:, -4:], TARGETS)
    assert "vision_saliency" not in text  # no picture was given
    assert [mixer.layer for mixer in sg.models.mixers(ours)] == [0, 1]  # those that probes and sweeps ask
    sg.attach(ours)  # stays as it is
    assert "vision_saliency" in sg.trace(ours, targets=TARGETS, **given)
    sg.attach(ours, parts=("text",))
    assert "vision_saliency" not in sg.trace(ours, targets=TARGETS, **given)
    sg.detach(ours)
    assert ours.get_encoder(modality="image").config._attn_implementation != "symground"


def test_parts_that_a_model_lacks_are_named() -> None:
    _, vlm = pair(FAMILIES["LLaVA-1.5"])
    for parts in ("vision", ("vision",), ("text", "audio"), ()):
        with pytest.raises(ValueError, match=r'parts: expected \("text",\) or \("text", "vision"\), got'):
            sg.attach(vlm, parts=parts)
    text = vlm.model.language_model
    with pytest.raises(ValueError, match="parts: LlamaModel has no vision tower beside a text decoder"):
        sg.attach(text, parts=("text", "vision"))
    _, packed = pair(FAMILIES["Qwen2-VL"])
    ours = sg.attach(packed, parts=("text", "vision"))
    with pytest.raises(ValueError, match="expected layers that mix the same positions of each example once"):
        sg.trace(ours, targets=TARGETS, **batch(FAMILIES["Qwen2-VL"], None))
