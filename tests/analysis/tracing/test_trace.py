"""Traces against eager attention matrices and autograd on them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from transformers import GPT2LMHeadModel

import symground as sg
from symground.analysis import saliency_by_region
from symground.data import Corpus
from symground.models import create, mixers

LENGTHS = (3, 7, 5)


def batch(side: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids, mask, targets, p)"""
    torch.manual_seed(1)
    ids, mask = torch.full((3, 7), 1), torch.zeros(3, 7, dtype=torch.long)
    for i, n in enumerate(LENGTHS):
        place = slice(7 - n, 7) if side == "left" else slice(0, n)
        ids[i, place], mask[i, place] = torch.randint(2, 101, (n,)), 1
    p = torch.full((3,), 6) if side == "left" else torch.tensor(LENGTHS) - 1
    return ids, mask, torch.tensor([5, 17, 80]), p


def eager_saliency(
    model: GPT2LMHeadModel, ids: Tensor, mask: Tensor, targets: Tensor, p: Tensor
) -> tuple[Tensor, Tensor]:
    """(surprisal [B], signed S [B,L,H,T,T]) from transformers' own attention matrices."""
    twin = GPT2LMHeadModel._from_config(copy.deepcopy(model.config), attn_implementation="eager").double().eval()
    twin.load_state_dict(model.state_dict())
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = twin(ids, attention_mask=mask, position_ids=positions, output_attentions=True)
    surprisal = -torch.log_softmax(out.logits[torch.arange(3), p], -1)[torch.arange(3), targets]
    grads = torch.autograd.grad(surprisal.sum(), out.attentions)
    return surprisal, torch.stack([a * g for a, g in zip(out.attentions, grads, strict=True)], 1).detach()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_is_eagers_gradient_times_attention(gpt2: GPT2LMHeadModel, side: str, checkpointing: bool) -> None:
    ids, mask, targets, p = batch(side)
    surprisal, s = eager_saliency(gpt2, ids, mask, targets, p)
    position = torch.arange(7)
    first = (mask.cumsum(-1) == 1) & mask.bool()
    groups = {"env": first, "late": (position >= p[:, None] - 1)}
    if checkpointing:
        gpt2.gradient_checkpointing_enable()
        gpt2.train()
    traced = sg.trace(gpt2, ids, targets, mask, groups, rows=True, batch_size=2)
    valid = mask.bool()[:, None, :, None]  # rows of padding queries are undefined
    torch.testing.assert_close(
        torch.from_numpy(traced.surprisal.values).double(), surprisal.detach(), atol=1e-4, rtol=1e-4
    )
    got = torch.from_numpy(traced.saliency.values).double()
    torch.testing.assert_close(got * valid, s.sum(2).abs() * valid, atol=1e-5, rtol=1e-3)
    assert traced.query_group.values.tolist() == ["prediction", "env", "late"]
    assert traced.key_group.values.tolist() == ["env", "late"]
    signed = torch.stack([s[i, :, :, p[i]] for i in range(3)])
    torch.testing.assert_close(torch.from_numpy(traced.rows.values).double(), signed, atol=1e-5, rtol=1e-3)
    s = s.abs() * valid[:, :, None]
    rows = torch.stack([s[i, :, :, p[i]] for i in range(3)])  # [B,L,H,T]
    env = (rows * first[:, None, None]).sum(-1)
    flow = traced.flow.sel(query_group="prediction", key_group="env").values
    torch.testing.assert_close(torch.from_numpy(flow).double(), env, atol=1e-5, rtol=1e-3)
    row_total = traced.row_total.sel(query_group="prediction").values
    torch.testing.assert_close(torch.from_numpy(row_total).double(), rows.sum(-1), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(
        torch.from_numpy(traced.matrix_total.values).double(), s.sum((-1, -2)), atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize("preset", ["gpt2-4l", "mamba2-4l"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("gated", [False, True])
def test_rows_of_heads_add_up_to_the_layers_saliency(preset: str, side: str, gated: bool) -> None:
    """Signed rows sum to the layer's row and absolute rows to the flow, in a padded batch and with a head silenced."""
    ids, mask, targets, p = batch(side)
    torch.manual_seed(0)
    model = create(preset, 101).eval()
    with sg.ablate(model, [(1, 0)] if gated else []):
        traced = sg.trace(model, ids, targets, mask, rows=True)
    at_p = traced.saliency.isel(query=xr.DataArray(p.numpy(), dims="example")).values
    np.testing.assert_allclose(abs(traced.rows.sum("head")).values, at_p, atol=1e-6, rtol=1e-4)
    total = traced.row_total.sel(query_group="prediction").values
    np.testing.assert_allclose(abs(traced.rows).sum("key").values, total, atol=1e-6, rtol=1e-4)
    assert (traced.rows.values < 0).any()
    assert (traced.rows.values > 0).any()


def test_without_groups_saliency_and_totals_stand(gpt2: GPT2LMHeadModel) -> None:
    ids, mask, targets, _ = batch("left")
    plain, grouped = (sg.trace(gpt2, ids, targets, mask, groups) for groups in (None, {"env": mask.bool()}))
    assert "flow" not in plain
    assert plain.query_group.values.tolist() == ["prediction"]
    np.testing.assert_allclose(plain.saliency, grouped.saliency)
    np.testing.assert_allclose(plain.matrix_total, grouped.matrix_total, rtol=1e-5)
    at_p = {"query_group": "prediction"}
    np.testing.assert_allclose(plain.row_total.sel(at_p), grouped.row_total.sel(at_p), rtol=1e-5)
    with pytest.raises(ValueError, match="aggregate heads need the key_group 'env'"):
        sg.find_heads(plain)


def test_leaves_the_model_as_it_was(gpt2: GPT2LMHeadModel) -> None:
    ids, mask, targets, _ = batch("left")
    before = gpt2(ids, attention_mask=mask).logits
    sg.trace(gpt2, ids, targets, mask, {"env": mask.bool()})
    assert torch.equal(gpt2(ids, attention_mask=mask).logits, before)
    assert all(parameter.grad is None for parameter in gpt2.parameters())
    assert all(mixer.tap.idle for mixer in mixers(gpt2))


def test_under_ablation_the_trace_carries_the_gate(gpt2: GPT2LMHeadModel) -> None:
    ids, mask, targets, _ = batch("right")
    with sg.ablate(gpt2, [(1, 2)]):
        traced = sg.trace(gpt2, ids, targets, mask, {"env": mask.bool()})
    assert (traced.matrix_total.sel(layer=1, head=2) == 0).all()
    assert (traced.matrix_total.sel(layer=1, head=1) > 0).all()


def test_probes_bring_their_targets_and_groups(corpus: Corpus) -> None:
    model = create("gpt2-4l", len(corpus.tokenizer), positions=32).eval()
    probes = sg.probes(corpus.tokenizer)
    traced = sg.trace(model, probes, batch_size=17)
    scores = sg.score(model, probes)
    matched = scores[scores["env"] == scores["target"]]
    np.testing.assert_allclose(traced.surprisal, matched["surprisal"], atol=1e-5)
    assert traced.noun.values.tolist() == matched["target"].tolist()
    assert traced.sizes["example"] == 60
    assert traced.query_group.values.tolist() == ["prediction", "env"]
    regions = saliency_by_region(traced)
    at_p = traced.saliency.isel(query=traced.prediction).sum("key").mean("example")
    np.testing.assert_allclose(regions.sum("region"), at_p, rtol=1e-5)
    wider = sg.trace(model, probes.with_span(1), saliency=False)
    assert "saliency" not in wider
    flow = {"query_group": "prediction", "key_group": "env"}
    assert (wider.flow.sel(flow) >= traced.flow.sel(flow) - 1e-7).all()


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("targets: expected shape", {"targets": torch.zeros(2).long()}),
        ("targets: expected the ids", {"targets": None}),
        ("attention_mask: expected shape", {"attention_mask": torch.ones(3, 6)}),
        ("at least one valid token", {"attention_mask": torch.zeros(3, 7)}),
        (r"groups\['env'\]: expected shape", {"groups": {"env": torch.ones(7)}}),
        ("do not overlap", {"groups": {"env": torch.ones(3, 7), "event": torch.ones(3, 7)}}),
        ("choose another name", {"groups": {"prediction": torch.ones(3, 7)}}),
    ],
)
def test_bad_arguments_are_named(gpt2: GPT2LMHeadModel, message: str, changes: dict[str, object]) -> None:
    ids, mask, targets, _ = batch("left")
    good = {"targets": targets, "attention_mask": mask, "groups": {"env": mask.bool()}}
    with pytest.raises(ValueError, match=message):
        sg.trace(gpt2, ids, **{**good, **changes})  # type: ignore[arg-type]


def test_models_that_would_give_wrong_or_random_numbers_are_refused(gpt2: GPT2LMHeadModel) -> None:
    ids, mask, targets, _ = batch("left")
    groups = {"env": mask.bool()}
    gpt2.transformer.drop.p = 0.3
    with pytest.raises(ValueError, match=r"expected model\.eval\(\), or no dropout; transformer\.drop drops 0\.3"):
        sg.trace(gpt2.train(), ids, targets, mask, groups)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        sg.trace(gpt2.eval(), ids, targets, mask, groups)
    with torch.no_grad():
        gpt2.transformer.ln_f.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="the surprisal of example 0 of a batch is not finite"):
        sg.trace(gpt2, ids, targets, mask, groups)


def test_find_heads_by_hand() -> None:
    flow = np.zeros((2, 1, 2, 2, 2))  # example, layer, head, query_group, key_group
    flow[0, 0, 0, 0, 0] = 3.0  # prediction ← env: 3 of a row of 10, of a matrix of 20
    flow[0, 0, 1, 0, 0] = 2.9
    flow[1, 0, 1, 1, 1] = 6.0  # env ← event: 6 of a row of 10
    traced = xr.Dataset(
        {
            "flow": (("example", "layer", "head", "query_group", "key_group"), flow),
            "row_total": (("example", "layer", "head", "query_group"), np.full((2, 1, 2, 2), 10.0)),
            "matrix_total": (("example", "layer", "head"), np.full((2, 1, 2), 20.0)),
        },
        coords={"layer": [4], "head": [0, 1], "query_group": ["prediction", "env"], "key_group": ["env", "event"]},
    )
    assert sg.find_heads(traced) == (frozenset({(4, 0)}), frozenset())
    assert sg.find_heads(traced, denominator="matrix") == (frozenset(), frozenset())
    assert sg.find_heads(traced, threshold=0.15, denominator="matrix") == (frozenset({(4, 0)}), frozenset())
    assert sg.find_heads(traced, kind="gather") == (frozenset(), frozenset({(4, 1)}))
    assert sg.find_heads(traced * 0) == (frozenset(), frozenset())  # without flow the share is 0, not NaN
    with pytest.raises(ValueError, match="gather heads need the key_group 'event'"):
        sg.find_heads(traced.sel(key_group=["env"]), kind="gather")
    with pytest.raises(ValueError, match="expected one of 'aggregate', 'gather'; got 'copy'"):
        sg.find_heads(traced, kind="copy")
    with pytest.raises(ValueError, match="expected one of 'row', 'matrix'; got 'column'"):
        sg.find_heads(traced, denominator="column")
    with pytest.raises(ValueError, match=r"number in \(0, 1\], got 30"):
        sg.find_heads(traced, threshold=30)
