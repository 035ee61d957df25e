"""`sg.attention` of models with several kinds of layers, and of those that read no text, against eager attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import symground as sg
from benchmarks.common.twins import twins
from tests.analysis.reading.test_attention import read_off
from tests.analysis.reading.test_observe import whole
from tests.analysis.tracing.test_crossings import FAMILIES, inputs, pair
from tests.analysis.tracing.test_vision_towers import TOWERS, eager_attentions
from tests.models.attachment import test_vision_language

EVERYTHING: dict[str, Any] = {"rows": "all", "received": True, "summary": True, "topk": 2, "block": 3}


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_encoder_decoder_and_cross_attention_are_eagers(family: str, batch_size: int) -> None:
    eager, twin = pair(family)
    ours, given = sg.attach(twin), inputs(family)
    with torch.no_grad():
        out = eager(**given, output_attentions=True, use_cache=False)
    text = given["decoder_attention_mask"].bool()
    source = given.get("attention_mask", torch.ones(2, 10)).bool()
    p = torch.tensor([4, 3])
    start, half = torch.arange(5).expand(2, -1) < 5, torch.arange(10).expand(2, -1) < 8
    how: dict[str, Any] = {**EVERYTHING, "groups": {"start": start}, "source_groups": {"half": half}}
    found = sg.attention(ours, batch_size=batch_size, **how, **given)
    assert bool(np.isnan(found.cross_distance).all())
    at_p = torch.arange(5) == p[:, None]
    of_text = torch.stack([at_p, start & text & ~at_p])
    start, half = start & text, half & source
    shown = {
        "encoder_": (out.encoder_attentions, source, (half[None], half[None])),
        "": (out.decoder_attentions, text, (of_text, start[None])),
        "cross_": (out.cross_attentions, text, (of_text, half[None])),
    }
    for kind, (attentions, valid, masks) in shown.items():
        a, seen = torch.stack(attentions, 1) * valid[:, None, None, :, None], valid[:, None, None].numpy()
        heads = a.shape[2]
        wanted = read_off(a, masks, 2, 3)
        close: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-3, "err_msg": kind}
        np.testing.assert_allclose(found[f"{kind}rows"][:, :, :heads] * seen[..., None], a * seen[..., None], **close)
        for name in ("mass", "received", "pooled"):
            np.testing.assert_allclose(found[f"{kind}{name}"][:, :, :heads], wanted[name], **close)
        for name in ("entropy", "weight"):
            np.testing.assert_allclose(found[f"{kind}{name}"][:, :, :heads] * seen, wanted[name] * seen, **close)
        np.testing.assert_allclose(
            found[f"{kind}topk_weight"][:, :, :heads] * seen[..., None],
            wanted["topk_weight"] * seen[..., None],
            **close,
        )
        assert bool(np.isnan(found[f"{kind}rows"][:, :, heads:]).all())
    at = [(0, 4), (1, 3)]
    for i, q in at:
        cross = torch.stack(out.cross_attentions, 1)[i, :, :, q]
        np.testing.assert_allclose(
            found.cross_mass[i, :, : cross.shape[1]].sel(query_group="prediction", source_group="half"),
            (cross * half[i]).sum(-1),
            atol=1e-5,
        )
    assert found.rows.dims == ("example", "layer", "head", "row", "key")
    assert found.cross_rows.dims == ("example", "cross_layer", "head", "cross_row", "source")
    assert found.encoder_received.dims == ("example", "encoder_layer", "head", "source_query_group", "source")
    assert found.cross_entropy.dims == ("example", "cross_layer", "head", "query")
    assert (found.layer.values.tolist(), found.cross_layer.values.tolist()) == ([2, 4], [3, 5])
    with pytest.raises(ValueError, match="decoder_input_ids: expected the ids"):
        sg.attention(ours, **{name: x for name, x in given.items() if not name.startswith("decoder")})
    needed = sg.attention_memory(ours, **how, **given)
    assert needed == sum(x.nbytes for x in found.data_vars.values())
    last = sg.attention(ours, rows="last", layers=[3], **given)
    assert set(last.data_vars) == {"cross_rows"}
    np.testing.assert_array_equal(last.cross_row_position, p[:, None])
    with pytest.raises(ValueError, match=f"limit: the result needs {needed} bytes"):
        sg.attention(ours, limit=9, **how, **given)


@pytest.mark.parametrize("name", TOWERS)
def test_a_vision_tower_beside_its_text_is_eagers(name: str) -> None:
    family = test_vision_language.FAMILIES[name]
    eager, twin = test_vision_language.pair(family)
    ours, given = sg.attach(twin, parts=("text", "vision")), test_vision_language.batch(family, "left")
    tower, images = eager.get_encoder(modality="image"), TOWERS[name]
    kept: list[torch.Tensor] = []
    hooks = eager_attentions(tower, kept)
    with torch.no_grad():
        out = eager(**given, **test_vision_language.places(eager, given), output_attentions=True)
    for hook in hooks:
        hook.remove()
    found = sg.attention(ours, rows="all", summary=True, batch_size=1, **given)
    of_tower = torch.stack(kept[: found.sizes["vision_layer"]], 1)
    patches = found.vision_rows.values.reshape(2 * images, *found.vision_rows.shape[2:])
    np.testing.assert_allclose(patches[:, :, : of_tower.shape[2]], of_tower, atol=1e-5)
    a, seen = torch.stack(out.attentions, 1), given["attention_mask"].bool()[:, None, None, :, None].numpy()
    np.testing.assert_allclose(found.rows[:, :, : a.shape[2]] * seen, a * seen, atol=1e-5)
    assert found.key_group.values.tolist() == ["system", "image", "question", "answer"]
    image = given["input_ids"] == test_vision_language.IMAGE
    into = (a[..., -1, :] * image[:, None, None]).sum(-1)
    np.testing.assert_allclose(
        found.mass[:, :, : a.shape[2]].sel(query_group="prediction", key_group="image"), into, atol=1e-5
    )
    assert found.vision_entropy.dims == ("example", "image", "vision_layer", "head", "patch_query")
    assert found.patch_row.values.max() == found.patch_column.values.max()


def test_a_model_of_pictures_alone() -> None:
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
    )  # fmt: skip
    eager, twin = twins(transformers.ViTForImageClassification, config)
    ours, pixels = sg.attach(twin), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        a = torch.stack(eager(pixels, output_attentions=True).attentions, 1)
    found = sg.attention(ours, pixel_values=pixels, rows="all", received=True, summary=True, batch_size=2)
    np.testing.assert_allclose(found.rows, a, atol=1e-5)
    np.testing.assert_allclose(found.received[..., 0, :], a.sum(-2), atol=1e-5)
    of_class = sg.attention(ours, pixel_values=pixels, rows=torch.zeros(3, 1).long())
    np.testing.assert_allclose(of_class.rows[..., 0, :], a[..., 0, :], atol=1e-5)
    with pytest.raises(ValueError, match="rows: expected 'all', positions .* since no text that asks has a last word"):
        sg.attention(ours, pixel_values=pixels)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_an_encoder_decoder_generates_with_its_cross_attention_read(family: str) -> None:
    eager, twin = pair(family)
    ours, given = sg.attach(twin), inputs(family)
    given = {name: x for name, x in given.items() if not name.startswith("decoder")}
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "num_beams": 1}
    out = eager.generate(**given, **how, output_attentions=True, return_dict_in_generate=True)
    half = torch.arange(10).expand(2, -1) < 5
    with sg.observe(ours, source_groups={"half": half}, summary=True) as seen:
        text = ours.generate(**given, **how)
    assert text.tolist() == out["sequences"][:, -text.shape[1] :].tolist()  # Whisper returns no start
    assert len(seen) == len(out.cross_attentions)
    for n, (one, own, cross) in enumerate(zip(seen.passes, out.decoder_attentions, out.cross_attentions, strict=True)):
        c, total = torch.stack(cross, 1), one.attrs["past"] + one.attrs["queries"]
        a, heads = whole(own, total), c.shape[2]
        np.testing.assert_allclose(one.rows[:, :, :heads, -1], a[..., -1, :], atol=1e-5, err_msg=f"step {n}")
        np.testing.assert_allclose(one.cross_rows[:, :, :heads, -1], c[..., -1, :], atol=1e-5, err_msg=f"step {n}")
        into = one.cross_mass.sel(query_group="prediction", source_group="half")
        np.testing.assert_allclose(into[:, :, :heads], c[..., -1, :5].sum(-1), atol=1e-5)
    together = seen.dataset()
    assert together.cross_entropy.dims == ("step", "example", "cross_layer", "head", "query")
    assert together.cross_rows.sizes["source"] == 10
    with pytest.raises(ValueError, match="source_groups: expected None, since no layer that is read has other keys"):
        sg.observe(ours, source_groups={"half": half}, layers=[2])
    with pytest.raises(ValueError, match="flow: expected groups .* of a text alone, got .* with cross-attention"):
        sg.observe(ours, {"half": half}, flow=True)
