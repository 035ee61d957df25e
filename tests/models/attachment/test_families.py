"""Tiny decoders of transformers with random weights: which can be traced, and which are refused by name."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

import symground
import symground as sg
from symground.analysis.probing.answering import choices
from symground.data import Corpus
from symground.models.architectures.masks import _is_window
from symground.models.attachment import verifying
from tests.models.attachment import test_written_out
from tests.models.attachment.eagers import TARGETS, check_logits_and_saliency
from tests.models.attachment.eagers import padded as batch
from tests.models.attachment.families import FAMILIES, GROUPED, REFUSED, SIZES, pair


def _takes_positions(model: PreTrainedModel) -> bool:
    return not isinstance(model, (transformers.OPTForCausalLM, transformers.RobertaForCausalLM))


@pytest.fixture(params=FAMILIES, ids=str)
def models(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    eager, twin = pair(*FAMILIES[request.param])
    return eager, sg.attach(twin)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_saliency_are_eagers(models: tuple[PreTrainedModel, PreTrainedModel], side: str) -> None:
    eager, ours = models
    ids, mask = batch(side)
    places = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if _takes_positions(eager) else {}
    check_logits_and_saliency(eager, ours, ids, mask, places, {}, 1e-4)


def test_a_padded_batch_is_its_single_rows(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    _, ours = models
    for side, there in (("left", slice(3, None)), ("right", slice(0, 6))):
        ids, mask = batch(side)
        with torch.no_grad():
            together, alone = ours(ids, attention_mask=mask).logits[0, there], ours(ids[:1, there]).logits[0]
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_generation_is_eagers_and_with_a_head_silenced_step_by_step(
    models: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    """The key-value cache grows beyond the window."""
    eager, ours = models
    ids, mask = batch("left")
    made = [m.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False) for m in (eager, ours)]
    assert made[0].tolist() == made[1].tolist()
    one = ids[1:]
    with sg.ablate(ours, [(0, 1), (1, 2)]), torch.no_grad():
        found = ours.generate(one, attention_mask=torch.ones_like(one), max_new_tokens=6, do_sample=False)
        for _ in range(6):
            # transformers' generation counts RoBERTa's positions from 0.
            roberta = isinstance(eager, transformers.RobertaForCausalLM)
            places = {"position_ids": torch.arange(one.shape[1])[None]} if roberta else {}
            one = torch.cat([one, ours(one, use_cache=False, **places).logits[:, -1:].argmax(-1)], 1)
    assert found.tolist() == one.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_it_is_no_further_off_than_eager(
    models: tuple[PreTrainedModel, PreTrainedModel], dtype: torch.dtype
) -> None:
    """Rotary positions give float32 queries and keys, but values of the lower dtype. The oracle is float32 eager."""
    eager, ours = models
    if isinstance(eager, transformers.Gemma3nForCausalLM) and dtype is torch.float16:
        with torch.autocast("cpu", dtype), pytest.raises(ValueError, match="float16 overflows in this model"):
            sg.trace(ours, batch("left")[0], TARGETS)  # with gradients 1024 times as large, eager's overflow too
        return
    exact, theirs, found = [], [], []
    for side in ("left", "right"):
        ids, mask = batch(side)
        places = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if _takes_positions(eager) else {}
        exact += _attended(eager, ids, mask, places)
        with torch.autocast("cpu", dtype):
            theirs += _attended(eager, ids, mask, places)
            traced = sg.trace(ours, ids, TARGETS, mask, rows=True)
            assert ours(ids, attention_mask=mask).logits.dtype == eager(ids, attention_mask=mask, **places).logits.dtype
            with sg.ablate(ours, [(0, 1), (1, 2)]), torch.no_grad():
                silenced = ours(ids, attention_mask=mask).logits
        with sg.ablate(ours, [(0, 1), (1, 2)]), torch.no_grad():
            whole = ours(ids, attention_mask=mask).logits[mask.bool()]
        assert (silenced[mask.bool()] - whole).norm() < 0.1 * whole.norm()
        seen = mask.bool()[:, None, :, None].numpy()
        found += [traced.surprisal.values, traced.saliency.values * seen, traced.rows.values]
    for i, name in enumerate(("surprisal", "saliency", "rows")):
        of = [np.concatenate([np.asarray(x[j]).ravel() for j in (i, i + 3)]) for x in (found, theirs, exact)]
        off = [np.linalg.norm(x - of[2]) / np.linalg.norm(of[2]) for x in of[:2]]
        # With so few numbers, either error may vary by chance by half a unit in the last place.
        assert off[0] < 2 * off[1] + torch.finfo(dtype).eps / 2, name


def _attended(model: PreTrainedModel, ids: Tensor, mask: Tensor, places: dict[str, Tensor]) -> list[Any]:
    """Surprisal [2], layer saliency [2,L,T,T] without rows of padding, and signed rows at the prediction [2,L,H,T]."""
    out = model(ids, attention_mask=mask, output_attentions=True, **places)
    p, each = (mask * torch.arange(9)).argmax(-1), torch.arange(2)
    surprisal = -out.logits[each, p].float().log_softmax(-1)[each, TARGETS]
    with torch.autocast("cpu", enabled=False):
        gradients = torch.autograd.grad(surprisal.sum(), out.attentions)
    signed = torch.stack([a.float() * g for a, g in zip(out.attentions, gradients, strict=True)], 1).detach()
    saliency = signed.sum(2).abs() * mask.bool()[:, None, :, None]
    return [surprisal.detach(), saliency, torch.stack([signed[i, :, :, p[i]] for i in range(2)])]


def test_gradients_are_eagers_with_and_without_checkpointing(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    eager, ours = models
    ids, mask = batch("left")
    places = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if _takes_positions(eager) else {}
    labels = ids.masked_fill((mask == 0) | (mask.roll(1) == 0), -100)  # padding predicts nothing
    eager(ids, attention_mask=mask, labels=labels, **places).loss.backward()
    expected = {name: p.grad for name, p in eager.named_parameters() if p.grad is not None}
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("attention_dropout", "attn_pdrop", "dropout"):
        for module in (*ours.modules(), ours.config):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    for checkpointing in (False, True) if ours.supports_gradient_checkpointing else (False,):  # JetMoe has none
        ours.zero_grad()
        if checkpointing:
            ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        ours.train()(ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
        for name, p in ours.named_parameters():
            if name in expected:
                assert p.grad is not None, name
                torch.testing.assert_close(p.grad, expected[name], atol=1e-4, rtol=1e-3)


def test_a_cache_of_fixed_size(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """The cache has more keys than tokens, in the prompt, in padding and in generation."""
    eager, ours = models
    if not eager._can_compile_fullgraph or getattr(eager.config, "alibi", False):
        return  # transformers has no such cache for it, or its own code fails with one
    ids, mask = batch("left")
    how = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "cache_implementation": "static",
           "disable_compile": True}  # fmt: skip
    assert eager.generate(ids, **how).tolist() == ours.generate(ids, **how).tolist()
    with sg.ablate(ours, [(0, 1), (1, 2)]):
        found = [ours.generate(ids, **{**how, "cache_implementation": x}).tolist() for x in ("static", "dynamic")]
    assert found[0] == found[1] != ours.generate(ids, **how).tolist()


@pytest.mark.parametrize("fixed", [False, True])
def test_a_mask_longer_than_what_has_been_read(models: tuple[PreTrainedModel, PreTrainedModel], fixed: bool) -> None:
    """The mask is as long as the cache will be, and positions are those of the tokens in the call."""
    eager, ours = models
    if fixed and not _takes_positions(eager):  # eager refuses such a mask itself
        return
    ids, _ = batch("left")
    long = torch.ones(2, 16, dtype=torch.long)
    name = next(n for n in ("cache", "past_key_values") if n in inspect.signature(eager.forward).parameters)
    found = []
    for model in (eager, ours):
        kind = transformers.StaticCache if fixed else transformers.DynamicCache
        cache = kind(config=model.config, **({"max_cache_len": 16} if fixed else {}))
        with torch.no_grad():
            pieces = [
                model(ids[:, a:b], attention_mask=long[:, : 16 if fixed else b], use_cache=True, **{name: cache}).logits
                for a, b in ((0, 5), (5, 9))
            ]
        found.append(torch.cat(pieces, 1))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compiled_without_a_mask() -> None:
    """Under torch.compile, transformers alone would build a mask for texts packed into one row."""
    eager, ours = pair(*FAMILIES["Llama"])
    sg.attach(ours)
    ids, _ = batch("left")
    compiled = torch.compile(ours, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, eager(ids).logits, atol=1e-4, rtol=1e-4)
    ours.model = torch.compile(ours.model, backend="aot_eager")
    traced = sg.trace(ours, ids, TARGETS)
    surprisal = -eager(ids).logits[torch.arange(2), -1].log_softmax(-1)[torch.arange(2), TARGETS]
    np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4)


def test_positions_that_begin_after_the_paddings_stay_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    # RoBERTa is refused for its logits, so that check is disabled; the test is about its positions.
    monkeypatch.setattr(verifying, "verified_readout", lambda model: None)
    settings = transformers.RobertaConfig(**{**SIZES, "pad_token_id": 1, "is_decoder": True})
    torch.manual_seed(0)
    eager = transformers.RobertaForCausalLM._from_config(copy.deepcopy(settings), attn_implementation="eager").eval()
    ours = transformers.RobertaForCausalLM(copy.deepcopy(settings)).eval()
    ours.load_state_dict(eager.state_dict())
    sg.attach(ours)
    ids, mask = batch("right")
    ids = ids.clamp(min=2).masked_fill(mask == 0, 1)
    with torch.no_grad():
        found, expected = (m(ids, attention_mask=mask).logits[mask.bool()] for m in (ours, eager))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_by_name(name: str) -> None:
    model, config, more, why = REFUSED[name]
    _, twin = pair(model, config, more)
    with pytest.raises(ValueError, match=why):
        sg.attach(twin)


def test_which_masks_are_windows() -> None:
    assert _is_window(sliding_window_causal_mask_function(4), 4, 9, 9)
    assert not _is_window(sliding_window_causal_mask_function(5), 4, 9, 9)
    assert not _is_window(causal_mask_function, 4, 9, 9)
    assert not _is_window(lambda *_: None, 4, 9, 9)


def check_sweep(ours: PreTrainedModel, probes: Any, swept: Any) -> None:
    """A sweep's change of surprisal is that of silencing the head."""
    examples = probes.matched()
    original = choices(ours, examples).surprisal
    for layer, head in ((0, 1), (1, 3)):
        with sg.ablate(ours, [(layer, head)]):
            silenced = choices(ours, examples).surprisal
        np.testing.assert_allclose(swept.sel(layer=layer, head=head), silenced - original, atol=1e-4)


@pytest.mark.parametrize("window", [3, 6])
def test_scores_and_sweeps_keep_to_the_window(corpus: Corpus, window: int) -> None:
    """Contexts are longer than the window, also in passes from a cache and from a middle layer."""
    size = {"vocab_size": len(corpus.tokenizer)}
    eager, ours = pair("Mistral", "Mistral", {**GROUPED, **size, "sliding_window": window})
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 5])
    expected = sg.score(eager, probes)
    sg.attach(ours)
    np.testing.assert_allclose(sg.score(ours, probes)["surprisal"], expected["surprisal"], atol=1e-4)
    wide = sg.attach(pair("Mistral", "Mistral", {**GROUPED, **size, "sliding_window": 64})[1])
    assert abs(sg.score(wide, probes)["surprisal"] - expected["surprisal"]).max() > 1e-2  # the window has an effect
    with pytest.warns(RuntimeWarning, match="cannot be read again from the middle"):
        swept = sg.sweep_heads(ours, probes, per_example=True)
    check_sweep(ours, probes, swept)


@pytest.mark.parametrize("name", ["Gemma-2 without capped logits", "GPT-OSS", "DeepSeek-V3"])
def test_scores_and_sweeps_have_the_cap_the_sink_and_the_widths(name: str, corpus: Corpus) -> None:
    """Also in passes from a cache and from a middle layer, which attend in ways of their own."""
    model, config, more = FAMILIES[name]
    size = {"vocab_size": len(corpus.tokenizer), "max_position_embeddings": 256}
    size |= {"sliding_window": 256} if "sliding_window" in more else {}  # a cache and a middle layer lack windows
    eager, ours = pair(model, config, {**more, **size})
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 5])
    expected = sg.score(eager, probes)
    sg.attach(ours)
    np.testing.assert_allclose(sg.score(ours, probes)["surprisal"], expected["surprisal"], atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it cannot be read again from the middle
        swept = sg.sweep_heads(ours, probes, per_example=True)
    check_sweep(ours, probes, swept)


def test_the_documented_families_are_the_tested_ones() -> None:
    page = (Path(symground.__file__).resolve().parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    parts = re.split(r"^## ", page, flags=re.M)
    decoders, _seeing, refused = (re.findall(r"^\| ([^|-]+[^|]*?) \|", part, re.M)[1:] for part in parts[:3])
    elsewhere = {"GPT-2", "Mamba-2", "LSTM (symground's)", *test_written_out.FAMILIES}
    assert set(decoders) - elsewhere == set(FAMILIES)
    assert set(refused) >= set(REFUSED)
