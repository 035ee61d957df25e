"""Traces of several tokens of the text itself, together and one by one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import symground as sg
from symground.analysis import saliency_by_region
from symground.models import create

WORDS = 101


def drawn(side: str, seed: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """(ids, mask, span, groups) of three texts: spans of other lengths, with gaps, across the groups' borders."""
    rng = np.random.default_rng(seed)
    ids, mask = torch.full((3, 9), 1), torch.zeros(3, 9, dtype=torch.long)
    span, groups = torch.zeros(3, 9, dtype=torch.bool), torch.zeros(3, 9, dtype=torch.long)
    for i, length in enumerate(rng.permutation([4, 9, 7])):
        first = 9 - length if side == "left" else 0
        place = slice(first, first + length)
        ids[i, place], mask[i, place] = torch.from_numpy(rng.integers(2, WORDS, length)), 1
        chosen = rng.choice(np.arange(first + 1, first + length), rng.integers(1, length), replace=False)
        span[i, chosen] = True
        groups[i, place] = torch.from_numpy(rng.integers(0, 3, length))  # 0 is in no group
    return ids, mask, span, {"one": groups == 1, "two": groups == 2}


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 32}
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    if name == "gemma2":
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        return Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, sliding_window=3, attn_logit_softcapping=2.0)).eval()
    return create(name, WORDS).eval()


def one_by_one(model: Any, ids: Tensor, mask: Tensor, span: Tensor, groups: dict[str, Tensor]) -> list[xr.Dataset]:
    """A trace of each token of a text's span as the target of what stands before it; no span is given."""
    found = []
    for t in span[0].nonzero()[:, 0].tolist():
        of_groups = {name: of[:, :t] for name, of in groups.items()}
        found.append(sg.trace(model, ids[:, :t], ids[:, t], mask[:, :t], of_groups, rows=True))
    return found


@pytest.mark.parametrize("name", ["gpt2-4l", "llama", "gemma2", "mamba2-4l"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", ["plain", "checkpoint"])
def test_each_token_is_the_target_of_what_stands_before_it(name: str, side: str, how: str) -> None:
    model = sg.attach(model_of(name))
    ids, mask, span, groups = drawn(side, seed=len(name))
    asked: dict[str, Any] = {"span": span, "rows": True, "batch_size": 2, "checkpoint": how == "checkpoint"}
    each = sg.trace(model, ids, None, mask, groups, per_token=True, **asked)
    whole = sg.trace(model, ids, None, mask, groups, **asked)
    assert each.flow.dims == ("example", "target", "layer", "head", "query_group", "key_group")
    assert whole.flow.dims == ("example", "layer", "head", "query_group", "key_group")
    for i in range(3):
        part = slice(i, i + 1)
        wanted = one_by_one(model, ids[part], mask[part], span[part], {n: of[part] for n, of in groups.items()})
        ours, count = each.isel(example=i), len(wanted)
        assert ours.prediction.values.tolist() == [int(w.prediction[0]) for w in wanted] + [-1] * (
            each.sizes["target"] - count
        )
        for name_of in ("flow", "row_total", "matrix_total", "saliency", "rows", "token_surprisal"):
            assert bool(ours[name_of].isel(target=slice(count, None)).isnull().all())
        for r, expected in enumerate(wanted):
            got, of, length = ours.isel(target=r), expected.isel(example=0), expected.sizes["key"]
            assert int(got.target_token) == int(ids[i, length])
            xr.testing.assert_allclose(
                got.token_surprisal.drop_vars(got.token_surprisal.coords),
                of.surprisal.drop_vars(of.surprisal.coords),
                rtol=1e-4,
            )
            for name_of in ("flow", "row_total", "matrix_total"):
                np.testing.assert_allclose(got[name_of].values, of[name_of].values, atol=1e-6, rtol=1e-3)
            np.testing.assert_allclose(got.rows.values[..., :length], of.rows.values, atol=1e-6, rtol=1e-3)
            assert not got.rows.values[..., length:].any()
            seen = mask[i, :length].bool().numpy()  # rows of padding queries are undefined
            np.testing.assert_allclose(
                got.saliency.values[:, :length, :length][:, seen], of.saliency.values[:, seen], atol=1e-6, rtol=1e-3
            )
            assert not got.saliency.values[:, length:].any()
        total = sum(float(w.surprisal[0]) for w in wanted)
        assert float(whole.surprisal[i]) == pytest.approx(total, rel=1e-4)
    np.testing.assert_allclose(each.surprisal, whole.surprisal, rtol=1e-6)
    np.testing.assert_allclose(each.token_surprisal, whole.token_surprisal, rtol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(3))
def test_the_sum_is_eagers_gradient_times_attention(gpt2: GPT2LMHeadModel, side: str, seed: int) -> None:
    ids, mask, span, groups = drawn(side, seed)
    twin = GPT2LMHeadModel._from_config(copy.deepcopy(gpt2.config), attn_implementation="eager").double().eval()
    twin.load_state_dict(gpt2.state_dict())
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = twin(ids, attention_mask=mask, position_ids=positions, output_attentions=True)
    logprobs = out.logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    surprisal = -(logprobs * span[:, 1:]).sum(1)
    grads = torch.autograd.grad(surprisal.sum(), out.attentions)
    s = torch.stack([a * g for a, g in zip(out.attentions, grads, strict=True)], 1).detach()  # [B,L,H,T,T]
    traced = sg.trace(gpt2, ids, None, mask, groups, span=span, rows=True)
    valid = mask.bool()[:, None, :, None]
    np.testing.assert_allclose(traced.surprisal, surprisal.detach(), rtol=1e-4)
    np.testing.assert_allclose(traced.saliency * valid.numpy(), s.sum(2).abs() * valid, atol=1e-5, rtol=1e-3)
    at_p = torch.zeros_like(span)
    at_p[:, :-1] = span[:, 1:]
    of_p = at_p[:, None, None, :, None]
    np.testing.assert_allclose(traced.rows, (s * of_p).sum(3), atol=1e-5, rtol=1e-3)
    queries = {"prediction": at_p, **{name: of & ~at_p & mask.bool() for name, of in groups.items()}}
    assert traced.query_group.values.tolist() == list(queries)
    for query, of_query in queries.items():
        rows = (s.abs() * of_query[:, None, None, :, None]).sum(3)  # [B,L,H,T]
        np.testing.assert_allclose(traced.row_total.sel(query_group=query), rows.sum(-1), atol=1e-5, rtol=1e-3)
        for key, of_key in groups.items():
            flow = (rows * (of_key & mask.bool())[:, None, None]).sum(-1)
            found = traced.flow.sel(query_group=query, key_group=key)
            np.testing.assert_allclose(found, flow, atol=1e-5, rtol=1e-3)
    regions = saliency_by_region(traced)
    whole = (s.sum(2).abs() * at_p[:, None, :, None]).sum((2, 3)).mean(0)
    np.testing.assert_allclose(regions.sum("region"), whole, atol=1e-5, rtol=1e-3)


def test_a_decoder_with_cross_attention() -> None:
    """Each token of a span is the target of the decoder's text before it; the encoder's layers have results too."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 16}
    model = sg.attach(BartForConditionalGeneration(BartConfig(vocab_size=WORDS, **sizes, **heads)).eval())
    source, (ids, mask, span, groups) = torch.randint(2, WORDS, (3, 5)), drawn("right", 7)
    of_source = {"first": torch.arange(5).expand(3, 5) < 2}
    given: dict[str, Any] = {"rows": True, "source_groups": of_source}
    decoded = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    each = sg.trace(model, source, None, None, groups, span=span, per_token=True, **given, **decoded)
    whole = sg.trace(model, source, None, None, groups, span=span, **given, **decoded)
    for i in range(3):
        for r, t in enumerate(span[i].nonzero()[:, 0].tolist()):
            part = slice(i, i + 1)
            expected = sg.trace(
                model, source[part], ids[part, t], None, {name: of[part, :t] for name, of in groups.items()},
                **given | {"source_groups": {"first": of_source["first"][part]}}, decoder_input_ids=ids[part, :t],
            ).isel(example=0)  # fmt: skip
            got = each.isel(example=i, target=r)
            assert float(got.token_surprisal) == pytest.approx(float(expected.surprisal), rel=1e-4)
            for name in ("flow", "cross_flow", "encoder_flow", "cross_row_total", "matrix_total", "cross_rows"):
                np.testing.assert_allclose(got[name].values, expected[name].values, atol=1e-6, rtol=1e-3)
            for name, dims in (("rows", ("key",)), ("saliency", ("query", "key")), ("cross_saliency", ("query",))):
                short = got[name].isel(dict.fromkeys(dims, slice(0, t)))
                np.testing.assert_allclose(short.values, expected[name].values, atol=1e-6, rtol=1e-3)
    np.testing.assert_allclose(whole.surprisal, each.token_surprisal.sum("target"), rtol=1e-5)
    np.testing.assert_allclose(whole.cross_rows, each.cross_rows.sum("target", min_count=1), atol=1e-6, rtol=1e-3)


def test_an_lstm_has_gradient_times_input() -> None:
    model = create("lstm-4l", WORDS).eval()
    ids, _, _, _ = drawn("right", 1)
    span = torch.zeros(3, 9, dtype=torch.bool)
    span[:, 4] = span[0, 7] = True
    each, whole = (sg.trace(model, ids, span=span, per_token=per_token) for per_token in (True, False))
    for r, t in enumerate((4, 7)):
        expected = sg.trace(model, ids[:1, :t], ids[:1, t])
        found = each.input_x_gradient.isel(example=0, target=r, key=slice(0, t))
        np.testing.assert_allclose(found, expected.input_x_gradient[0], atol=1e-6, rtol=1e-3)
    assert bool(each.input_x_gradient.isel(example=1, target=1).isnull().all())
    np.testing.assert_allclose(whole.input_x_gradient, each.input_x_gradient.sum("target"), atol=1e-6, rtol=1e-3)


def test_heads_are_found_of_a_span_and_of_one_of_its_tokens(gpt2: GPT2LMHeadModel) -> None:
    ids, mask, span, groups = drawn("right", 3)
    groups = {"env": groups["one"], "event": groups["two"]}
    whole, each = (sg.trace(gpt2, ids, None, mask, groups, span=span, per_token=x) for x in (False, True))
    for traced in (whole, each.isel(target=0)):
        shares = traced.flow.sel(query_group="prediction", key_group="env") / traced.row_total.sel(
            query_group="prediction"
        )
        for i, heads in enumerate(sg.find_heads(traced, threshold=0.2)):
            assert heads == {(int(j), int(h)) for j, h in zip(*np.nonzero(shares[i].values >= 0.2), strict=True)}
    with pytest.raises(ValueError, match=r"trace: expected one flow an example, .* trace.isel\(target=0\)"):
        sg.find_heads(each)


def test_a_model_that_sees_the_span_before_it_predicts_it_is_refused() -> None:
    """A masked language model sees it; one by the same weights that reads from left to right does not."""
    sizes = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids, mask, span, _ = drawn("right", 2)
    for decoder in (False, True):
        torch.manual_seed(0)
        config = BertConfig(**sizes, intermediate_size=16, is_decoder=decoder)
        model = sg.attach(BertLMHeadModel(config).eval())
        if decoder:
            assert bool(sg.trace(model, ids, None, mask, span=span).surprisal.notnull().all())
        else:
            with pytest.raises(ValueError, match="span: BertLMHeadModel sees tokens of the span before it predicts"):
                sg.trace(model, ids, None, mask, span=span)


def test_bad_spans(gpt2: GPT2LMHeadModel) -> None:
    ids, mask, span, _ = drawn("left", 0)
    first = mask.cumsum(-1) == 1
    none, padded, opening = span.clone(), span.clone(), span | (first & mask.bool())
    none[1] = False
    padded[(mask == 0).any(1).nonzero()[0, 0], 0] = True
    for wrong, message in (
        (none, "span: expected at least one token of input_ids in each example"),
        (padded, "span: expected valid tokens, got one where the attention mask is 0"),
        (opening, "span: expected tokens that another stands before"),
        (span[:, :-1], r"span: expected shape \[3, 9\], got \[3, 8\]"),
        (span.int() * 2, "span: expected 0 and 1"),
        ("answer", "span: expected a tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            sg.trace(gpt2, ids, None, mask, span=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="span: expected None with targets"):
        sg.trace(gpt2, ids, ids[:, 0], mask, span=span)
    with pytest.raises(ValueError, match="per_token: expected False without a span"):
        sg.trace(gpt2, ids, ids[:, 0], mask, per_token=True)
    with pytest.raises(ValueError, match="span: a loss has no prediction position"):
        sg.trace(gpt2, ids, span=span, loss=lambda out: out.logits[:, -1, 0])
    with pytest.raises(ValueError, match="targets: expected the ids"):
        sg.trace(gpt2, ids)
