"""`sg.observe` against the attentions that transformers' eager attention returns for the same passes."""

from __future__ import annotations

import inspect
import random
import threading
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import symground as sg
from benchmarks.common.twins import twins
from symground.models import mixers
from tests.models.attachment.builders import SIZES, gpt2, ids, llama, mamba2, mistral
from tests.models.attachment.test_drawn import DRAWN, drawn_ids, drawn_models
from tests.models.attachment.test_vision_language import FAMILIES, IMAGE, batch, pair

DECODERS = [name for name in DRAWN if not name.endswith("masked")]
EVERYTHING: dict[str, Any] = {"rows": "last", "received": True, "summary": True, "topk": 2}


def left_padded(rng: random.Random, texts: int, length: int) -> Tensor:
    """A mask [B,T] with padding on the left of some texts."""
    first = torch.tensor([rng.choice([0, rng.randint(0, length - 1)]) for _ in range(texts)])
    return (torch.arange(length) >= first[:, None]).long()


def whole(attentions: tuple[Tensor, ...], total: int) -> Tensor:
    """The attentions of a pass's layers [B,H,T,kept keys] over all positions so far: [B,L,H,T,total].

    A cache of a window keeps the last keys, and one of a fixed size has room for later ones.
    """
    layers = []
    for a in attentions:
        a = a[..., :total]
        layers.append(torch.nn.functional.pad(a, (total - a.shape[-1], 0)))
    return torch.stack(layers, 1).double()


def check_pass(found: Any, a: Tensor, masks: Tensor, valid: Tensor, described: str) -> None:
    """A pass's Dataset against its matrices a [B,L,H,T,S]; masks [B,S] is the group, valid [B,T] the queries' words."""
    queries, keys = a.shape[-2:]
    past = keys - queries
    last = (valid * torch.arange(queries)).argmax(-1)
    a = a * valid[:, None, None, :, None]  # rows of padding mean nothing
    at_p = (torch.arange(queries) == last[:, None]).double()
    within = masks[:, past:].double() * valid * (1 - at_p)
    close: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-3, "err_msg": described}
    rows = torch.stack([x[:, :, i] for x, i in zip(a, last, strict=True)])
    np.testing.assert_allclose(found.rows[:, :, :, 0], rows, **close)
    assert found.row_position.values[:, 0].tolist() == (last + past).tolist()
    of_query = torch.stack([at_p, within], 1)
    received = torch.einsum("bgi,blhij->blhgj", of_query, a)
    np.testing.assert_allclose(found.received, received, **close)
    np.testing.assert_allclose(found.mass[..., 0], torch.einsum("blhgj,bj->blhg", received, masks.double()), **close)
    seen = valid[:, None, None].numpy()
    np.testing.assert_allclose(found.entropy * seen, -(a * a.clamp(min=1e-300).log()).sum(-1), **close)
    np.testing.assert_allclose(found.weight * seen, a.amax(-1), **close)
    distance = past + torch.arange(queries)[:, None] - torch.arange(keys)
    np.testing.assert_allclose(found.distance * seen, (a * distance).sum(-1), atol=1e-3, rtol=1e-3, err_msg=described)
    for keys_found, ranks in ((found.key.values[..., None], 1), (found.topk_key.values, min(2, keys))):
        at_key = torch.from_numpy(keys_found)[..., :ranks]
        of_key = torch.where(at_key < 0, 0.0, a.gather(-1, at_key.clamp(min=0)))
        wanted = a.sort(dim=-1, descending=True).values[..., :ranks]
        np.testing.assert_allclose(of_key * seen[..., None], wanted, **close)


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cache", ["growing", "static", "none"])
def test_generation_is_read_step_by_step_as_eager_attention_returns_it(name: str, cache: str) -> None:
    rng = random.Random(f"{name} {cache}")
    eager, ours, size = drawn_models(rng, name, 4)  # with a window of 1, the cache of transformers keeps all keys
    if cache == "static" and (not eager._can_compile_fullgraph or getattr(eager.config, "alibi", False)):
        pytest.skip(f"transformers has no cache of fixed size for {name}")
    mask = left_padded(rng, rng.randint(1, 3), rng.randint(2, 12))
    torch.manual_seed(0)
    given, _ = drawn_ids(name, mask)
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": rng.randint(2, 9), "do_sample": False}
    how |= {"growing": {}, "none": {"use_cache": False},
            "static": {"cache_implementation": "static", "disable_compile": True}}[cache]  # fmt: skip
    out = eager.generate(given, **how, output_attentions=True, return_dict_in_generate=True)
    masks = torch.zeros_like(mask, dtype=torch.bool)
    masks[:, : rng.randint(1, mask.shape[1])] = True
    with sg.observe(ours, {"first": masks}, **EVERYTHING) as seen:
        text = ours.generate(given, **how)
    described = f"{name} window {size} {how} {mask.tolist()}"
    assert text.tolist() == out.sequences.tolist() == ours.generate(given, **how).tolist(), described
    assert len(seen) == len(out.attentions)
    length = mask.shape[1]
    for n, (one, attentions) in enumerate(zip(seen.passes, out.attentions, strict=True)):
        total = length + n
        a = whole(attentions, total)
        queries = a.shape[-2]
        of_all = torch.cat([mask, torch.ones(len(mask), n, dtype=torch.long)], 1).bool()
        group = torch.nn.functional.pad(masks, (0, n)) & of_all
        assert (one.attrs["step"], one.attrs["past"], one.attrs["queries"]) == (n, total - queries, queries)
        check_pass(one, a, group, of_all[:, total - queries :], f"step {n} of {described}")


def test_a_sequence_read_in_pieces_is_the_sequence_read_at_once() -> None:
    """Of a growing cache, a cache of a window, and one of fixed size; whatever the pieces are."""
    for model, fixed in ((llama(), False), (mistral(), False), (llama(), True), (mistral(), True)):
        ours, given = sg.attach(model), ids()
        at_once = sg.attention(ours, given, rows="all", received=True, summary=True)
        for cuts in ((4, 9), (1, 2, 9), (8, 9), tuple(range(1, 10))):
            kind = transformers.StaticCache if fixed else transformers.DynamicCache
            cache = kind(config=ours.config, **({"max_cache_len": 16} if fixed else {}))
            with sg.observe(ours, rows="all", received=True, summary=True) as seen, torch.no_grad():
                for a, b in zip((0, *cuts), cuts, strict=False):
                    ours(given[:, a:b], past_key_values=cache, use_cache=True)
            pieces = seen.passes
            rows = np.concatenate([np.pad(x.rows, [*[(0, 0)] * 4, (0, 9 - x.rows.shape[-1])]) for x in pieces], 3)
            np.testing.assert_allclose(rows, at_once.rows, atol=1e-5)
            for name in ("entropy", "weight", "key", "score", "distance"):
                joined = np.concatenate([x[name] for x in pieces], -1)
                np.testing.assert_allclose(joined, at_once[name], atol=1e-4)
            together = seen.dataset()
            assert together.past.values.tolist() == [0, *cuts[:-1]]
            np.testing.assert_allclose(together.received.sum("step", skipna=True), at_once.received, atol=1e-5)
            assert {"key", "weight"} <= set(together.data_vars)
            assert together.sizes["query"] == max(x.sizes["query"] for x in pieces)


@pytest.mark.parametrize("build", [gpt2, llama, mistral])
@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_training_is_read_and_changes_in_nothing(build: Any, checkpointing: bool | None) -> None:
    """With dropout, accumulated gradients and recomputed layers; the weights are those before dropout."""
    eager, ours = twins(*_class_of(build, dropout=0.0))
    dropped = twins(*_class_of(build, dropout=0.3))[1]
    for model in (ours, dropped):
        sg.attach(model).train()
        if checkpointing is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
    mask = torch.ones_like(ids())
    mask[0, -3:] = 0
    grads = []
    for observes in (False, True):
        dropped.zero_grad()
        torch.manual_seed(0)
        with ExitStack() as stack:
            if observes:
                seen = stack.enter_context(sg.observe(dropped, rows="all"))
            for _ in range(2):
                dropped(ids(), attention_mask=mask, labels=ids(), use_cache=False).loss.backward()
        grads.append([p.grad.clone() for p in dropped.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert len(seen) == 2
    with sg.observe(ours, rows="all") as seen:
        ours(ids(), attention_mask=mask, labels=ids(), use_cache=False).loss.backward()
    eager.eval()
    attentions = torch.stack(eager(ids(), attention_mask=mask, output_attentions=True).attentions, 1).detach()
    valid = mask.bool()[:, None, None, :, None].numpy()
    np.testing.assert_allclose(seen.dataset().rows[0] * valid, attentions * valid, atol=1e-5)


def _class_of(build: Any, dropout: float) -> tuple[Any, Any]:
    model = build()
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout"):
        if hasattr(model.config, name):
            setattr(model.config, name, dropout)
    return type(model), model.config


def test_passes_are_chosen_kept_and_limited() -> None:
    ours = sg.attach(llama())

    def run(times: int) -> None:
        with torch.no_grad():
            for n in range(times):
                ours(ids()[:, : n + 1])

    with sg.observe(ours, every=3, last=2) as seen:
        assert len(seen) == 0
        with pytest.raises(ValueError, match="expected at least one pass of the model in the block, got none"):
            seen.dataset()
        run(8)
        assert seen.dataset().step.values.tolist() == [3, 6]
        assert seen.dataset().queries.values.tolist() == [4, 7]
        run(2)
    assert seen.dataset().step.values.tolist() == [6, 9]
    each = 2 * 2 * 4 * 4  # bytes of a row of one key: examples, layers, heads
    with sg.observe(ours, limit=3 * each) as seen:
        run(2)
        with pytest.raises(ValueError, match=rf"limit: the passes kept need {4 * each} bytes .* a limit of {3 * each}"):
            run(3)
    run(3)  # the block has ended
    with sg.observe(ours, last=1, limit=4 * each) as seen:
        run(4)
    assert len(seen) == 1


def test_several_blocks_and_threads_and_nothing_that_stays() -> None:
    ours = sg.attach(llama())
    before = {name: dict(vars(module)) for name, module in ours.named_modules()}
    with sg.observe(ours) as outer:
        ours(ids())
        with sg.observe(ours, rows=None, summary=True, every=2) as inner:
            for _ in range(2):
                ours(ids())
            elsewhere: list[int] = []

            def other() -> None:
                with sg.observe(ours) as seen:
                    ours(ids()[:1])
                ours(ids())
                elsewhere.append(len(seen))

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        ours(ids())
        with pytest.raises(ValueError, match="silenced, traced or observed meanwhile"):
            sg.detach(ours)
    ours(ids())
    assert (len(outer), len(inner), elsewhere) == (4, 1, [1])
    assert set(inner.dataset().data_vars) == {"entropy", "weight", "key", "score", "distance"}
    after = {name: dict(vars(module)) for name, module in ours.named_modules()}
    assert all(after[name].keys() == of.keys() for name, of in before.items())
    for name, of in before.items():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            assert after[name][hooks] == of[hooks], name
    assert all(mixer.tap.idle for mixer in mixers(ours))


def test_with_heads_silenced_and_within_a_trace() -> None:
    ours = sg.attach(llama())
    with sg.ablate(ours, [(0, 1)]):
        expected = sg.attention(ours, ids(), rows="all")
        with sg.observe(ours, rows="all") as seen, torch.no_grad():
            ours(ids())
    np.testing.assert_allclose(seen.dataset().rows[0], expected.rows, atol=1e-6)
    targets = torch.tensor([3, 4])
    plain = sg.trace(ours, ids(), targets)
    with sg.observe(ours, rows="all") as seen:
        traced = sg.trace(ours, ids(), targets)
    np.testing.assert_array_equal(traced.matrix_total, plain.matrix_total)
    np.testing.assert_allclose(seen.dataset().rows[0], sg.attention(ours, ids(), rows="all").rows, atol=1e-6)


def test_a_function_gives_the_groups_of_each_pass() -> None:
    ours = sg.attach(llama())

    def threes(inputs: Any) -> dict[str, Tensor]:
        return {"threes": inputs["input_ids"] % 3 == 0}

    batches = [ids(), ids()[:1, :5]]
    with sg.observe(ours, threes, rows=None) as seen, torch.no_grad():
        for batch in batches:
            ours(input_ids=batch)
    for one, batch in zip(seen.passes, batches, strict=True):
        expected = sg.attention(ours, batch, rows=None, groups={"threes": batch % 3 == 0})
        np.testing.assert_allclose(one.mass, expected.mass, atol=1e-6)
    names = iter("ab")
    with sg.observe(ours, lambda inputs: {next(names): inputs["input_ids"] > 9}), torch.no_grad():
        ours(ids())
        with pytest.raises(ValueError, match=r"groups: expected the names \['a'\] in every pass, got \['b'\]"):
            ours(ids())


def test_what_mamba_2_reads_of_its_own_pass() -> None:
    ours = sg.attach(mamba2())
    name = next(n for n in ("cache_params", "cache") if n in inspect.signature(ours.forward).parameters)
    at_once = sg.attention(ours, ids(), rows="all", received=True)
    cache = transformers.DynamicCache(config=ours.config)
    with sg.observe(ours, rows="all", received=True) as seen, torch.no_grad():
        ours(ids()[:, :6], use_cache=True, **{name: cache})
        ours(ids()[:, 6:], use_cache=True, **{name: cache})
    first, second = seen.passes
    np.testing.assert_allclose(first.rows, at_once.rows[..., :6, :6], atol=1e-5)
    np.testing.assert_allclose(second.rows[..., 6:], at_once.rows[..., 6:, 6:], atol=1e-5)
    assert second.attrs["past"] == 6
    assert bool(np.isnan(second.rows[..., :6]).all())
    assert "are of |M|" in seen.dataset().attrs["note"]
    with sg.observe(ours), torch.no_grad(), pytest.raises(ValueError, match="does not say how many positions it holds"):
        ours(ids()[:, :1], use_cache=True, **{name: cache})


@pytest.mark.parametrize("place", ["mask", "positions", "one layer"])
def test_a_cache_from_which_keys_were_dropped_is_refused(place: str) -> None:
    ours, cache = sg.attach(llama()), transformers.DynamicCache()
    dropped = cache.layers[-1:] if place == "one layer" else cache.layers
    more: dict[str, Any] = {"position_ids": torch.tensor([[6], [6]])} if place == "positions" else {}
    if place == "mask":
        more = {"attention_mask": torch.ones(2, 7).long()}
    with sg.observe(ours), torch.no_grad():
        ours(ids()[:, :6], past_key_values=cache)
        dropped = cache.layers[-1:] if place == "one layer" else cache.layers
        for layer in dropped:  # as an eviction of keys does
            layer.keys, layer.values = layer.keys[:, :, 2:], layer.values[:, :, 2:]
        with pytest.raises(ValueError, match="keys were dropped from it"):
            ours(ids()[:, 6:7], past_key_values=cache, **more)


def test_a_cache_that_is_cut_and_masks_that_are_as_long_as_the_text_will_be() -> None:
    """As assisted generation and chunks by hand do; both are what one pass is."""
    ours = sg.attach(llama())
    whole = sg.attention(ours, ids(), rows="all")
    cache, mask = transformers.DynamicCache(), torch.ones(2, 9).long()
    with sg.observe(ours, rows="all") as seen, torch.no_grad():
        ours(ids()[:, :6], attention_mask=mask, past_key_values=cache)
        cache.crop(-2)
        ours(ids()[:, 4:], attention_mask=mask, past_key_values=cache)
    np.testing.assert_allclose(seen.passes[1].rows, whole.rows[..., 4:, :], atol=1e-5)
    assert seen.passes[1].attrs["past"] == 4


@pytest.mark.parametrize("every", [1, 2, 3])
def test_passes_that_are_skipped_are_counted_too(every: int) -> None:
    ours = sg.attach(mamba2())
    with sg.observe(ours, every=every) as seen:
        ours.generate(ids(), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert seen.dataset().past.values.tolist() == [0, 9, 10, 11, 12][::every]
    llamas = sg.attach(llama())
    function = sg.observe(llamas, lambda inputs: {"threes": inputs["input_ids"] % 3 == 0}, rows="all", every=every)
    with function as seen:
        text = llamas.generate(ids(), max_new_tokens=5, do_sample=False)
    found = seen.passes[-1]
    total = found.attrs["past"] + found.attrs["queries"]
    of_text = (text[:, :total] % 3 == 0)[:, None, None].numpy()
    np.testing.assert_allclose(found.mass[..., 0, 0], (found.rows[..., -1, :] * of_text).sum("key"), atol=1e-5)


def test_a_pass_that_raises_is_not_complete() -> None:
    ours = sg.attach(llama())
    with sg.observe(ours, rows="all") as seen, torch.no_grad():
        hook = ours.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ours(ids())
        hook.remove()
        ours(ids())
    found = seen.dataset()
    assert found.complete.values.tolist() == [0, 1]
    assert bool(np.isnan(found.rows.isel(step=0, layer=1)).all())
    np.testing.assert_allclose(found.rows[0, :, 0], found.rows[1, :, 0], atol=1e-6)
    assert repr(seen) == "Observation: 2 passes of LlamaForCausalLM"


@pytest.mark.parametrize("name", ["OPT", "BART as a decoder"])
def test_heads_that_call_the_layers_without_the_body(name: str) -> None:
    if name == "OPT":
        config = transformers.OPTConfig(
            vocab_size=101, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        eager, twin = twins(transformers.OPTForCausalLM, config)
    else:
        config = transformers.BartConfig(
            vocab_size=101, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48,
            max_position_embeddings=64, pad_token_id=0, is_decoder=True, is_encoder_decoder=False,
        )  # fmt: skip
        eager, twin = twins(transformers.BartForCausalLM, config)
    ours = sg.attach(twin)
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    out = eager.generate(ids(), **how, output_attentions=True, return_dict_in_generate=True)
    with sg.observe(ours) as seen:
        ours.generate(ids(), **how)
    assert len(seen) == len(out.attentions)
    for one, attentions in zip(seen.passes, out.attentions, strict=True):
        a = torch.stack(attentions, 1)
        np.testing.assert_allclose(one.rows[..., 0, :], a[..., -1, :], atol=1e-5)


def test_the_mask_of_all_pairs_says_what_is_padding() -> None:
    ours = sg.attach(llama())
    valid = torch.arange(9) < torch.tensor([[9], [5]])
    pairs = (torch.arange(9)[:, None] >= torch.arange(9)) & valid[:, None, None]
    for mask in (pairs, torch.zeros(2, 1, 9, 9).masked_fill(~pairs, torch.finfo(torch.float32).min)):
        with sg.observe(ours, received=True) as seen, torch.no_grad():
            ours(ids(), attention_mask=mask)
        expected = sg.attention(ours, ids(), valid.long(), received=True)
        found = seen.dataset().isel(step=0)
        np.testing.assert_allclose(found.rows, expected.rows, atol=1e-5)
        np.testing.assert_allclose(found.received, expected.received, atol=1e-5)
        assert found.row_position.values[:, 0].tolist() == [8, 4]


MASKS = torch.ones(2, 9).bool()
WRONG: dict[str, dict[str, Any]] = {
    "rows: expected one of 'last', 'all', None; got 'first'": {"rows": "first"},
    "groups: expected masks that do not overlap": {"groups": {"a": MASKS, "b": MASKS}},
    r"groups: expected masks \[B,P\] of one shape": {"groups": {"a": MASKS, "b": MASKS[:1]}},
    "groups: 'prediction' is the prediction position itself": {"groups": {"prediction": MASKS}},
    "groups: expected a mapping from names": {"groups": [MASKS]},
    "topk: expected an integer of at least 1, got 0": {"topk": 0},
    "block: expected an integer of at least 1, got 0": {"block": 0},
    "every: expected an integer of at least 1, got 0": {"every": 0},
    "last: expected an integer of at least 1, got 0": {"last": 0},
    "limit: expected an integer of at least 0, got -1": {"limit": -1},
    "reduce: expected one of 'sum', 'max'": {"reduce": "mean"},
    "received: expected True or False": {"received": "yes"},
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sg.observe(sg.attach(llama()), **WRONG[message])


def test_bad_passes_are_named() -> None:
    ours = sg.attach(llama())
    with sg.observe(ours, {"a": MASKS}), pytest.raises(ValueError, match=r"groups\['a'\]: .* 1 examples of the pass"):
        ours(ids()[:1])
    with sg.observe(ours, lambda inputs: 3), pytest.raises(ValueError, match="groups: expected a function"):
        ours(ids())
    with pytest.raises(ValueError, match=r"model: expected one made traceable by symground\.attach"):
        sg.observe(llama())
    block = sg.observe(ours)
    with block, pytest.raises(ValueError, match="entered once at a time"):
        block.__enter__()
    with block:
        ours(ids())
    assert len(block) == 1


@pytest.mark.parametrize("name", ["LLaVA-1.5", "PaliGemma"])
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_where_a_model_looks_at_each_word_that_it_generates_of_a_picture(name: str, cache: bool, every: int) -> None:
    """The parts of a text are found by themselves, also of words that follow; PaliGemma's positions begin at 1."""
    eager, twin = pair(FAMILIES[name])
    ours, given = sg.attach(twin), batch(FAMILIES[name], None)
    how: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "use_cache": cache}
    out = eager.generate(**given, **how, output_attentions=True, return_dict_in_generate=True)
    with sg.observe(ours, rows=None, every=every) as seen:
        for _ in range(2):
            ours.generate(**given, **how)
    image = given["input_ids"] == IMAGE
    passes = [*out.attentions, *out.attentions]
    for one in seen.passes:
        total = one.attrs["past"] + one.attrs["queries"]
        a = whole(passes[one.attrs["step"]], total)[..., -1, :]
        assert one.key_group.values.tolist() == ["system", "image", "question", "answer"]
        into = (a[..., : image.shape[1]] * image[:, None, None]).sum(-1)
        np.testing.assert_allclose(one.mass[..., 0, 1], into, atol=1e-5)
        np.testing.assert_allclose(one.mass[..., 0, 3], a[..., image.shape[1] :].sum(-1), atol=1e-5)


def test_a_prompt_in_pieces_needs_masks() -> None:
    ours, given = sg.attach(pair(FAMILIES["LLaVA-1.5"])[1]), batch(FAMILIES["LLaVA-1.5"], None)
    with sg.observe(ours), pytest.raises(ValueError, match="whether they are of the prompt or the answer is not known"):
        ours.generate(**given, max_new_tokens=2, do_sample=False, prefill_chunk_size=8)


def test_a_hybrid_generates_with_both_kinds_of_layers() -> None:
    settings = {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
                "mamba_n_groups": 1, "mamba_expand": 2, "num_key_value_heads": 2}  # fmt: skip
    config = transformers.BambaConfig(**{**SIZES, **settings})
    eager, twin = twins(transformers.BambaForCausalLM, config)
    ours: PreTrainedModel = sg.attach(twin)
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    out = eager.generate(ids(), **how, output_attentions=True, return_dict_in_generate=True)
    with sg.observe(ours) as seen:
        ours.generate(ids(), **how)
    (attends,) = [n for n, mixer in enumerate(mixers(ours)) if mixer.kind == "attention"]
    for n, (one, attentions) in enumerate(zip(seen.passes, out.attentions, strict=True)):
        (a,) = [x for x in attentions if x is not None]
        heads = a.shape[1]
        np.testing.assert_allclose(one.rows[:, attends, :heads, 0], a[:, :, -1, : 9 + n], atol=1e-5)


@pytest.mark.parametrize("checkpointing", [None, True, False])
@pytest.mark.parametrize("build", [gpt2, llama, mamba2])
def test_the_flow_of_a_training_step_is_that_of_a_trace(build: Any, checkpointing: bool | None) -> None:
    """The loss is the surprisal that a trace goes back from, so both are of one backward pass."""
    kind, config = _class_of(build, dropout=0.0)
    model = sg.attach(kind(config).eval())
    groups = {"first": torch.arange(9).expand(2, -1) < 3, "next": torch.arange(9).expand(2, -1) == 4}
    targets = torch.tensor([3, 4])
    expected = sg.trace(model, ids(), targets, groups=groups)
    model.train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
    with sg.observe(model, groups, rows=None, flow=True) as seen:
        logits = model(ids(), use_cache=False).logits[:, -1]
    assert bool(np.isnan(seen.dataset().flow).all())
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()  # after the block
    found = seen.dataset().isel(step=0)
    for name in ("flow", "row_total"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=1e-4)
    model.eval()
    kept = sg.attention(model, ids(), groups=groups)
    np.testing.assert_allclose(found.mass, kept.mass, atol=1e-5)
