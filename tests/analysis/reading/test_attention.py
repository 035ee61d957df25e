"""`sg.attention` against the attentions of transformers' eager attention, over drawn models, paddings and requests."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import symground as sg
from benchmarks.common.twins import twins
from tests.models.attachment.builders import SIZES, ids, llama, mamba2
from tests.models.attachment.test_drawn import DRAWN, drawn_ids, drawn_mask, drawn_models
from tests.models.attachment.test_vision_language import FAMILIES, batch, pair
from tests.ops.common.oracles import matrix


def read_off(a: Tensor, masks: tuple[Tensor, Tensor], topk: int, block: int) -> dict[str, Tensor]:
    """What `sg.attention` returns, from the matrices a [N,L,H,T,T] in float64."""
    a, (queries, keys), length = a.double(), (mask.double() for mask in masks), a.shape[-1]
    seen = a.sum(-1) > 0
    distance = torch.arange(length - a.shape[-2], length)[:, None] - torch.arange(length)
    ranked = a.sort(dim=-1, descending=True, stable=True)
    blocks = [part.split(block, -1) for part in a.split(block, -2)]
    return {
        "mass": torch.einsum("gni,nlhij,knj->nlhgk", queries, a, keys),
        "received": torch.einsum("gni,nlhij->nlhgj", queries, a),
        "entropy": -(a * a.clamp(min=1e-300).log()).sum(-1),
        "weight": a.amax(-1), "distance": (a * distance).sum(-1),
        "weight_key": torch.where(seen, a.argmax(-1), -1),
        "topk_weight": ranked.values[..., :topk],
        "topk_key": torch.where(ranked.values > 0, ranked.indices, -1)[..., :topk],
        "pooled": torch.stack([torch.stack([x.sum((-2, -1)) for x in row], -1) for row in blocks], -2),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_asked_is_eagers(name: str, seed: int) -> None:
    rng = random.Random(f"reading {name} {seed}")
    eager, ours, size = drawn_models(rng, name)
    texts, length = rng.randint(1, 4), rng.randint(2, 20)
    mask = drawn_mask(rng, texts, length)
    torch.manual_seed(seed)
    given, places = drawn_ids(name, mask)
    valid, p = mask.bool(), (mask * torch.arange(length)).argmax(-1)
    with torch.no_grad():
        attentions = eager(given, attention_mask=mask, output_attentions=True, **places).attentions
    a = torch.stack(attentions, 1)[..., :length] * valid[:, None, None, :, None]  # rows of padding mean nothing
    groups = {"first": torch.arange(length).expand(texts, -1) < 2, "others": torch.arange(length).expand(texts, -1) > 3}
    at_p = torch.arange(length) == p[:, None]
    keys = torch.stack([m & valid for m in groups.values()])
    queries = torch.stack([at_p, *(m & valid & ~at_p for m in groups.values())])
    topk, block = rng.randint(1, length), rng.randint(1, 6)
    wanted = read_off(a, (queries, keys), topk, block)
    found = sg.attention(
        ours, given, mask, rows="last", groups=groups, received=True, summary=True, topk=topk, block=block,
        batch_size=rng.randint(1, texts), **places,
    )  # fmt: skip
    described = f"window {size} {mask.tolist()} {topk} {block}"
    rows = torch.stack([a[i, :, :, p[i]] for i in range(texts)])
    np.testing.assert_allclose(found.rows[:, :, :, 0], rows, atol=1e-5, rtol=1e-3, err_msg=described)
    assert found.row_position.values[:, 0].tolist() == p.tolist()
    assert found.query_group.values.tolist() == ["prediction", "first", "others"]
    seen = valid[:, None, None].numpy()
    for each in ("mass", "received"):
        np.testing.assert_allclose(found[each], wanted[each], atol=1e-4, rtol=1e-3, err_msg=f"{each} {described}")
    for each in ("entropy", "weight", "distance"):
        np.testing.assert_allclose(
            found[each] * seen, wanted[each] * seen, atol=1e-4, rtol=1e-3, err_msg=f"{each} {described}"
        )
    np.testing.assert_allclose(
        found.topk_weight * seen[..., None], wanted["topk_weight"] * seen[..., None], atol=1e-5, rtol=1e-3,
        err_msg=described,
    )  # fmt: skip
    # Of almost equal weights, rounding may choose another key: the weight of the key found is compared.
    for keys_found, weights in ((found.weight_key.values[..., None], wanted["weight"][..., None]),
                                (found.topk_key.values, wanted["topk_weight"])):  # fmt: skip
        at_key = torch.from_numpy(keys_found)
        of_key = torch.where(at_key < 0, 0.0, a.double().gather(-1, at_key.clamp(min=0)))
        np.testing.assert_allclose(of_key * seen[..., None], weights * seen[..., None], atol=1e-5, rtol=1e-3)
    np.testing.assert_allclose(found.pooled, wanted["pooled"], atol=1e-4, rtol=1e-3, err_msg=described)
    alone = sg.attention(ours, given, mask, rows=None, received=True, batch_size=rng.randint(1, texts), **places)
    np.testing.assert_allclose(alone.received[:, :, :, 0], a.double().sum(-2), atol=1e-4, rtol=1e-3, err_msg=described)


def test_rows_are_those_asked_for_and_memory_is_what_was_said() -> None:
    model = sg.attach(llama())
    length = ids().shape[1]
    whole = sg.attention(model, ids(), rows="all")
    assert whole.rows.dims == ("example", "layer", "head", "query", "key")
    np.testing.assert_allclose(whole.rows.sum("key"), 1, atol=1e-5)
    some = sg.attention(model, ids(), rows=torch.tensor([[0, 3, 3], [1, 2, length - 1]]))
    for example, rows in enumerate(([0, 3, 3], [1, 2, length - 1])):
        np.testing.assert_array_equal(some.rows[example], whole.rows[example].isel(query=rows))
    how: dict[str, Any] = {"rows": "all", "received": True, "summary": True, "topk": 2, "block": 4}
    found = sg.attention(model, ids(), **how)
    needed = sg.attention_memory(model, ids(), **how)
    assert needed == sum(x.nbytes for x in found.data_vars.values())
    with pytest.raises(ValueError, match=rf"limit: the result needs {needed} bytes in host memory, got a limit of 99"):
        sg.attention(model, ids(), limit=99, **how)
    assert set(sg.attention(model, ids(), limit=needed, rows=None, received=True).data_vars) == {"received"}


def test_embeddings_in_place_of_ids_and_heads_that_are_silenced() -> None:
    model = sg.attach(llama())
    expected = sg.attention(model, ids(), rows="all")
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids())
    found = sg.attention(model, inputs_embeds=embeds, rows="all")
    np.testing.assert_allclose(found.rows, expected.rows, atol=1e-6)
    with sg.ablate(model, [(0, 1)]):  # the weights of its own layer stay, those of later layers change
        silenced = sg.attention(model, ids(), rows="all")
    np.testing.assert_allclose(silenced.rows.sel(layer=0), expected.rows.sel(layer=0), atol=1e-6)
    assert float(abs(silenced.rows - expected.rows).sel(layer=1).max()) > 1e-6
    assert all(mixer.tap.idle for mixer in sg.models.mixers(model))


@pytest.mark.parametrize("name", ["LLaVA-1.5", "Qwen2.5-VL"])
def test_the_parts_of_a_text_with_images_are_groups(name: str) -> None:
    family = FAMILIES[name]
    eager, twin = pair(family)
    ours, given = sg.attach(twin), batch(family, None)
    with torch.no_grad():
        attentions = eager(**given, output_attentions=True).attentions
    a = torch.stack(attentions, 1)
    image = given["input_ids"] == ours.config.image_token_id
    answers = torch.zeros_like(image)
    answers[:, -2:] = True
    at = torch.arange(image.shape[1])
    first = image.int().argmax(-1, keepdim=True)
    masks = {"system": at < first, "image": image, "question": (at > first) & ~image & ~answers, "answer": answers}
    found = sg.attention(ours, rows=None, assistant_masks=answers, **given)
    assert found.query_group.values.tolist() == ["prediction", *masks]
    for n, mask in enumerate(masks.values()):
        expected = (a[..., -1, :] * mask[:, None, None]).sum(-1)
        np.testing.assert_allclose(found.mass[..., 0, n], expected, atol=1e-5)
    sizes = sg.attention(ours, rows=None, **given).group_size.values[0].tolist()
    question = (at > first) & ~image
    assert sizes == [1, int(masks["system"][0].sum()), int(image[0].sum()), int(question[0].sum()) - 1, 0]


def test_questions_are_read_and_drawn_onto_their_pictures(twins: Any, asked: sg.analysis.ImageQuestions) -> None:
    found = sg.attention(twins.ours, asked, received=True)
    for i in range(0, len(asked), 3):
        given = twins.given(asked, i)
        with torch.no_grad():
            a = torch.stack(twins.eager(**given, output_attentions=True).attentions, 1)[0]  # [L,H,T,T]
        length = a.shape[-1]
        np.testing.assert_allclose(found.rows[i, :, :, 0, :length], a[:, :, -1], atol=1e-5)
        image = given["input_ids"][0] == twins.processor.image_token_id
        into_image = found.mass[i].sel(query_group="prediction", key_group="image")
        np.testing.assert_allclose(into_image, a[:, :, -1, image].sum(-1), atol=1e-5)
        heat = asked.on_picture(i, found.rows[i].sum(("layer", "head")).isel(query=0).values)
        assert heat.shape == asked.picture(i).size[::-1]
        assert float(heat.sum()) == pytest.approx(float(a[:, :, -1, image].sum()), rel=1e-4)


def test_probes_have_their_own_groups(own: Any) -> None:
    model, probes = own.model, own.few
    examples = probes.matched()
    found = sg.attention(model, probes, rows="last", received=True)
    whole = sg.attention(model, examples.input_ids, rows="all")
    for i, p in enumerate(examples.prediction.tolist()):
        np.testing.assert_allclose(found.rows[i, :, :, 0], whole.rows[i, :, :, p], atol=1e-6)
        for key, mask in examples.key_masks.items():
            wanted = (whole.rows[i, :, :, p] * mask[i].numpy()).sum("key")
            np.testing.assert_allclose(found.mass[i].sel(query_group="prediction", key_group=key), wanted, atol=1e-5)
    assert found.query_group.values.tolist() == list(examples.query_masks)
    assert sg.attention(model, examples).equals(sg.attention(model, probes))
    with pytest.raises(ValueError, match="groups: probes and questions contain their own groups"):
        sg.attention(model, probes, groups={"a": torch.ones(2, 9)})


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_layers_of_mamba_are_read_by_the_absolute_value_of_their_matrix(hybrid: bool, padded: bool) -> None:
    """M is made by hand of the step sizes, decays, B and C that the mixer is given; padding on the left is left out."""
    if hybrid:
        config = transformers.BambaConfig(
            **{**SIZES, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
               "mamba_n_groups": 1, "mamba_expand": 2, "num_key_value_heads": 2}
        )  # fmt: skip
        model = sg.attach(twins(transformers.BambaForCausalLM, config)[1])
    else:
        model = sg.attach(mamba2())
    mask, texts = torch.ones_like(ids()), ids()
    mask[0, : 3 * padded] = 0
    first = (torch.arange(texts.shape[1]) < 5).expand(2, -1)
    layers = sg.models.mixers(model)
    chosen = next(n for n, mixer in enumerate(layers) if mixer.kind == "mamba2")
    seen: list[tuple[Any, ...]] = []
    how: dict[str, Any] = {"rows": "all", "received": True, "summary": True, "groups": {"first": first}}
    found = sg.attention(model, texts, mask if padded else None, **how).isel(layer=chosen)
    with layers[chosen].tapped(read_scan=(lambda *given: seen.append(given),)), torch.no_grad():
        model(texts, attention_mask=mask if padded else None, use_cache=False)
    ((dt, decay, b, c, key_range),) = seen
    m = matrix({"dt": dt, "A": decay, "B": b, "C": c, "key_range": key_range}).abs().double()
    m = m * mask[:, None, :, None]  # rows of padding mean nothing
    heads = m.shape[1]
    valid = mask.bool()[:, None, :, None].numpy()
    np.testing.assert_allclose(found.rows[:, :heads] * valid, m, atol=1e-5, rtol=1e-4)
    keys, last = (first & mask.bool()), torch.arange(texts.shape[1]) == texts.shape[1] - 1
    wanted = torch.einsum("i,bhij,bj->bh", last.double(), m, keys.double())
    np.testing.assert_allclose(found.mass[:, :heads, 0, 0], wanted, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(found.received[:, :heads, 0], m[:, :, -1], atol=1e-5, rtol=1e-4)
    assert bool(np.isnan(found.entropy).all())
    assert bool((found.weight_key == -1).all())
    assert f"layers [{', '.join(str(x.layer) for x in layers if x.kind == 'mamba2')}] are of |M|" in found.attrs["note"]


WRONG: dict[str, dict[str, Any]] = {
    "rows: expected one of 'last', 'all'; got 'first'": {"rows": "first"},
    "groups: 'prediction' is the prediction position itself": {"groups": {"prediction": torch.ones(2, 9).bool()}},
    r"rows: expected positions \[B,R\] = \[2, any\], got \[1, 1\]": {"rows": torch.zeros(1, 1).long()},
    "rows: expected positions from 0 to 8, got 9": {"rows": torch.tensor([[9], [0]])},
    "groups: expected masks that do not overlap": {"groups": {name: torch.ones(2, 9).bool() for name in "ab"}},
    r"groups\['a'\]: expected shape \[2, 9\]": {"groups": {"a": torch.ones(2, 8).bool()}},
    "rows: expected something to read": {"rows": None},
    "use_cache: expected False": {"use_cache": True},
    "topk: expected an integer from 1 to 9, got 10": {"topk": 10},
    "block: expected an integer of at least 1, got 0": {"block": 0},
    "reduce: expected": {"block": 2, "reduce": "mean"},
    "input_ids: expected ids .* or None with inputs_embeds .*; got both or neither": {"input_ids": None},
    "batch_size: expected an integer of at least 1": {"batch_size": 0},
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message: str) -> None:
    model = sg.attach(llama())
    with pytest.raises(ValueError, match=message):
        sg.attention(model, **{"input_ids": ids(), **WRONG[message]})


def test_models_that_cannot_be_read_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model: expected one made traceable by symground\.attach"):
        sg.attention(llama(), ids())
    with pytest.raises(TypeError, match=r"symground\.attention: 'gruops' is neither .*did you mean 'groups'"):
        sg.attention(sg.attach(llama()), ids(), gruops={})
    model = sg.attach(llama()).train()
    model.config.attention_dropout = 0.1
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="dropout"):
        sg.attention(model, ids())


def test_some_layers_alone() -> None:
    model = sg.attach(llama())
    whole = sg.attention(model, ids(), rows="all", received=True)
    for layers in ([1], (0,), [1, 0], np.array([1])):
        some = sg.attention(model, ids(), rows="all", received=True, layers=layers)
        assert some.layer.values.tolist() == sorted(int(n) for n in layers)
        np.testing.assert_array_equal(some.rows, whole.rows.sel(layer=some.layer))
        how: dict[str, Any] = {"rows": "all", "received": True, "layers": layers}
        assert sg.attention_memory(model, ids(), **how) == some.rows.nbytes + some.received.nbytes
    with sg.observe(model, rows="all", layers=[1]) as seen, torch.no_grad():
        model(ids())
    np.testing.assert_allclose(seen.dataset().rows[0], whole.rows.sel(layer=[1]), atol=1e-6)
    for wrong in ([2], [-1], [], 0.5, [True], "1", 1):
        with pytest.raises(ValueError, match=r"layers: expected a list of numbers of layers among \[0, 1\], got"):
            sg.attention(model, ids(), layers=wrong)  # type: ignore[arg-type]
