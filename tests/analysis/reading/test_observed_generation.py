"""What `sg.observe` says of generation beyond one text and one cache: past keys, blocks, several texts."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import symground as sg
from symground.integrations import attention_metrics
from tests.models.attachment.builders import SIZES, ids, llama, mamba2, mistral

HOW: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


def hybrid() -> Any:
    torch.manual_seed(0)
    config = transformers.BambaConfig(
        vocab_size=101, hidden_size=32, num_hidden_layers=3, attn_layer_indices=[1], num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=32, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8,
        mamba_chunk_size=4, pad_token_id=None, bos_token_id=None, eos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    return transformers.BambaForCausalLM(config).eval()


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize("build", [mamba2, hybrid])
def test_mamba_2_says_nothing_of_keys_before_its_pass(build: Any) -> None:
    """Onto a group that has some, mass is NaN, never 0 or a part; onto one within the pass it is that of one pass."""
    model, given = sg.attach(build()), ids()
    rows, length = given.shape
    total = length + HOW["max_new_tokens"] - 1
    groups = {"prompt": torch.zeros(rows, total).bool(), "new": torch.zeros(rows, total).bool()}
    groups["prompt"][:, : length - 2], groups["new"][:, length - 2 :] = True, True
    found = {}
    for cache in (True, False):
        with sg.observe(model, groups, rows="last", received=True) as seen:
            text = model.generate(given, use_cache=cache, **HOW)
        found[cache] = seen.passes
    scans = [mixer.layer for mixer in sg.models.mixers(model) if mixer.kind == "mamba2"]
    for n, (pieces, at_once) in enumerate(zip(found[True], found[False], strict=True)):
        ours, theirs = (x.mass.sel(query_group="prediction") for x in (pieces, at_once))
        for layer in ours.layer.values:
            known = n == 0 or layer not in scans
            for key in groups:
                if known:
                    np.testing.assert_allclose(
                        ours.sel(layer=layer, key_group=key),
                        theirs.sel(layer=layer, key_group=key),
                        rtol=1e-3,
                        atol=1e-5,
                    )
                else:
                    assert bool(ours.sel(layer=layer, key_group=key).isnull().all())
    later = torch.zeros(rows, total).bool()
    later[:, length + 1] = True
    with sg.observe(model, {"later": later}) as seen:
        model.generate(given, **HOW)
    of_pass = seen.passes[2].mass.sel(query_group="prediction", key_group="later", layer=scans[0])
    np.testing.assert_allclose(of_pass, seen.passes[2].rows.sel(layer=scans[0])[:, :, 0, length + 1], rtol=1e-4)
    assert text.shape[1] == total + 1


def test_a_log_of_generation_leaves_out_what_is_not_known() -> None:
    model, given = sg.attach(mamba2()), ids()
    groups = {"prompt": torch.arange(given.shape[1]).expand(given.shape) < 4}
    with sg.observe(model, groups) as seen:
        model.generate(given, **HOW)
    logged, first = attention_metrics(seen), attention_metrics(seen.passes[0])
    assert logged["attention/mass/prediction/prompt/layer0"] == pytest.approx(
        first["attention/mass/prediction/prompt/layer0"]
    )


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_blocks_begin_at_the_same_positions_whatever_a_cache_keeps(block: int, reduce: str) -> None:
    """With a cache of a window, whose first key stands anywhere, and beside all that is read with blocks."""
    for build in (mistral, llama):
        model, given = sg.attach(build()), ids()
        asked: dict[str, Any] = {
            "block": block, "reduce": reduce, "rows": "last", "received": True, "summary": True, "topk": 2,
        }  # fmt: skip
        found = []
        for cache in (True, False):
            groups = {"some": torch.arange(given.shape[1]).expand(given.shape) % 2 == 0}
            with sg.observe(model, groups, **asked) as seen:
                model.generate(given, use_cache=cache, **HOW)
            found.append(seen.passes)
        for n, (pieces, at_once) in enumerate(zip(*found, strict=True)):
            total = given.shape[1] + n
            row = at_once.rows[:, :, :, 0].values  # of the last position
            np.testing.assert_allclose(pieces.rows[:, :, :, 0], row, atol=1e-5)
            padded = np.pad(row, [*[(0, 0)] * 3, (0, -total % block)]).reshape(*row.shape[:3], -1, block)
            if n:
                blocks = padded.sum(-1) if reduce == "sum" else padded.max(-1)
                np.testing.assert_allclose(pieces.pooled[:, :, :, 0], blocks, atol=1e-5)
            for name in ("entropy", "weight", "weight_key", "distance", "topk_weight", "topk_key"):
                np.testing.assert_allclose(
                    pieces[name].values[:, :, :, -1], at_once[name].values[:, :, :, -1], atol=1e-4, err_msg=name
                )
            ours, theirs = (x.mass.sel(query_group="prediction") for x in (pieces, at_once))
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("cache", [True, False])
def test_each_pass_says_which_text_it_reads(cache: bool) -> None:
    """Classifier-free guidance reads a second text, whose positions are other words; each is that of its own text."""
    model, given = sg.attach(llama()), ids()[:1]
    with sg.observe(model) as seen:
        text = model.generate(given, guidance_scale=1.5, use_cache=cache, **HOW)
    found = seen.dataset()
    assert len(found.text) == 2 * HOW["max_new_tokens"]
    if not cache:
        assert found.text.values.tolist() == list(range(len(found.text)))  # each pass reads a whole text
        return
    own = found.where(found.text == found.text[0], drop=True)
    assert own.past.values.tolist() == [0, *range(given.shape[1], given.shape[1] + 4)]
    at_once = sg.attention(model, text[:, :-1], rows="all").rows
    for n in range(1, 5):
        total = given.shape[1] + n
        np.testing.assert_allclose(own.rows[n, 0, :, :, 0, :total], at_once[0, :, :, total - 1, :total], atol=1e-5)


def test_texts_of_a_loop_of_ones_own() -> None:
    """A pass goes on with the text of its cache, also where the first pass made the cache by itself."""
    model, given = sg.attach(llama()), ids()
    with sg.observe(model) as seen, torch.no_grad():
        for _ in range(2):
            out = model(given[:, :5], use_cache=True)
            out = model(given[:, 5:6], past_key_values=out.past_key_values, use_cache=True)
            model(given[:, 6:], past_key_values=out.past_key_values, use_cache=True)
        model(given)
    assert seen.dataset().text.values.tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_an_observation_is_not_pickled() -> None:
    model = sg.attach(llama())
    with sg.observe(model) as seen, torch.no_grad():
        model(ids())
    with pytest.raises(TypeError, match=r"pickle what its dataset\(\) returns"):
        pickle.dumps(seen)
    assert pickle.loads(pickle.dumps(seen.dataset())).equals(seen.dataset())


def test_a_block_that_reads_nothing_is_refused() -> None:
    model = sg.attach(llama())
    for groups in (None, {}):
        with pytest.raises(ValueError, match="rows: expected something to read"):
            sg.observe(model, groups, rows=None)


HEADLESS: dict[str, Any] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    "llama": lambda: transformers.LlamaModel(llama().config),
    "a classifier": lambda: transformers.LlamaForSequenceClassification(llama().config),
    "a masked classifier": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)),
    "a text tower": lambda: transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**{**SIZES, "bos_token_id": 0, "eos_token_id": 1})
    ),
}


@pytest.mark.parametrize("name", HEADLESS)
def test_models_without_a_vocabulary_head_are_read_of_words(name: str) -> None:
    torch.manual_seed(0)
    model = HEADLESS[name]().eval()
    model.config.pad_token_id = 0
    given, mask = ids(), torch.ones_like(ids())
    mask[0, 6:] = 0
    model.set_attn_implementation("eager")
    out = model(given, attention_mask=mask, output_attentions=True).attentions
    expected = torch.stack(out, 1).detach()
    found = sg.attention(sg.attach(model), given, mask, rows="all", received=True)
    valid = mask.bool()[:, None, None, :, None].numpy()
    np.testing.assert_allclose(found.rows * valid, expected * valid, atol=1e-5)
    assert sg.attention_memory(model, given, mask, rows="all", received=True) > 0
    with pytest.raises(ValueError, match=r"input_ids: expected ids from 0 to \d+, the model's vocabulary, got 5000"):
        sg.attention(model, given * 0 + 5000)


def test_two_towers_are_read_of_their_inputs_by_name() -> None:
    text = transformers.CLIPTextConfig(**{**SIZES, "bos_token_id": 0, "eos_token_id": 1})
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4
    )
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    ).eval()
    given = {"input_ids": ids(), "pixel_values": torch.randn(len(ids()), 3, 8, 8)}
    model.set_attn_implementation("eager")
    expected = torch.stack(model(**given, output_attentions=True).text_model_output.attentions, 1).detach()
    found = sg.attention(sg.attach(model), rows="all", **given)
    np.testing.assert_allclose(found.rows, expected, atol=1e-5)


@pytest.mark.parametrize("rows", [torch.ones(2, 9).bool(), [[True] * 9] * 2, np.ones((2, 9), bool)])
def test_rows_are_positions_and_no_mask(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"rows: expected positions \[B,R\] = \[2, any\], got \[2, 9\] torch.bool"):
        sg.attention(sg.attach(llama()), ids(), rows=rows)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_refused_by_its_name(name: str) -> None:
    cache = transformers.DynamicCache()
    with pytest.raises(ValueError, match=f"{name}: expected None, since each text is read at once"):
        sg.attention(sg.attach(llama()), ids(), **{name: cache})


def test_padding_between_words_is_named_by_its_example() -> None:
    mask = torch.ones_like(ids())
    mask[1, 4] = 0
    for call in (
        lambda: sg.attention(sg.attach(llama()), ids(), mask),
        lambda: sg.trace(sg.attach(llama()), ids(), ids()[:, 0], mask),
    ):
        with pytest.raises(
            ValueError, match="attention_mask: .*padding at the ends only.*; example 1 has padding between"
        ):
            call()
    with pytest.raises(ValueError, match=r"without padding between them at an \[example, position\]; got \[1, 4\]"):
        sg.attach(llama())(ids(), attention_mask=mask)


@pytest.mark.parametrize("observed", [False, True])
def test_packed_texts_are_trained_with_dropout(observed: bool) -> None:
    """Dropout of attention in packed rows is PyTorch's, by a mask of the texts; nothing of it crosses their border."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=101, n_embd=32, n_layer=2, n_head=4, n_positions=32, attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = sg.attach(transformers.GPT2LMHeadModel(config)).train()
    given, at = ids()[:1], torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    changed = given.clone()
    changed[0, :4] = (changed[0, :4] + 7) % 101
    out = []
    for one in (given, changed):
        torch.manual_seed(5)
        if observed:
            with sg.observe(model, {"second": at[:, :] >= 0}, summary=True) as seen:
                out.append(model(one, position_ids=at, use_cache=False).logits)
            assert seen.dataset().sizes["step"] == 1
        else:
            out.append(model(one, position_ids=at, use_cache=False).logits)
    torch.testing.assert_close(out[0][:, 4:], out[1][:, 4:], atol=1e-5, rtol=1e-5)
    torch.manual_seed(6)
    again = model(given, position_ids=at, use_cache=False).logits
    assert not torch.allclose(again, out[0], atol=1e-3)
    many = torch.stack([model(given, position_ids=at, use_cache=False).logits.detach() for _ in range(300)]).mean(0)
    expected = model.eval()(given, position_ids=at, use_cache=False).logits
    assert float((many - expected).abs().mean()) < 0.1 * float(expected.abs().mean())
