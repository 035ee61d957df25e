"""A sweep of any texts, against one head of one text silenced at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel

import symground as sg
from symground.models import mixers
from tests.models.attachment.builders import SIZES, gpt2, llama, mamba2, mistral

LENGTHS = (5, 9, 7, 9)


def drawn(side: str) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, span) of four texts, two of which have one length; spans with gaps, some up to the last token."""
    rng = np.random.default_rng(3)
    ids, mask = torch.full((4, 9), 1), torch.zeros(4, 9, dtype=torch.long)
    span = torch.zeros(4, 9, dtype=torch.bool)
    for i, (n, at) in enumerate(zip(LENGTHS, ([2, 4], [1], [3, 6], [4, 5, 8]), strict=True)):
        first = 9 - n if side == "left" else 0
        ids[i, first : first + n], mask[i, first : first + n] = torch.from_numpy(rng.integers(2, 100, n)), 1
        span[i, [first + t for t in at]] = True
    return ids, mask, span


@torch.no_grad()
def surprisal(model: PreTrainedModel, ids: Tensor, at: list[int], words: list[int]) -> float:
    log_p = model(ids[None], use_cache=False).logits[0].double().log_softmax(-1)
    return -sum(float(log_p[p, w]) for p, w in zip(at, words, strict=True))


@pytest.mark.filterwarnings("ignore:.*cannot be read again")
@pytest.mark.parametrize("build", [gpt2, llama, mistral, mamba2])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["span", "targets"])
@pytest.mark.parametrize(("positions", "mode"), [("all", "zero"), ("prediction", "zero"), ("all", "mean")])
def test_each_head_of_each_text_alone(build: Any, side: str, kind: str, positions: str, mode: str) -> None:
    model = sg.attach(build())
    ids, mask, span = drawn(side)
    asked: dict[str, Any] = {"span": span} if kind == "span" else {"targets": torch.tensor([7, 8, 9, 10])}
    found = sg.sweep_heads(
        model, ids, attention_mask=mask, positions=positions, mode=mode, per_example=True, memory=10**5, **asked
    )
    assert found.dims == ("example", "layer", "head")
    texts = []
    for i in range(4):
        text = ids[i][mask[i].bool()]
        if kind == "span":
            at = [t - 1 for t in span[i][mask[i].bool()].nonzero()[:, 0].tolist()]
            texts.append((text[: at[-1] + 1], at, [int(text[p + 1]) for p in at]))
        else:
            texts.append((text, [len(text) - 1], [7 + i]))
    reference = None
    if mode == "mean":
        most = max(len(text) for text, _, _ in texts)
        rows = [torch.cat([text, text[-1:].expand(most - len(text))]) for text, _, _ in texts]
        there = torch.tensor([[t < len(text) for t in range(most)] for text, _, _ in texts]).long()
        reference = {"input_ids": torch.stack(rows), "attention_mask": there}
    for i, (text, at, words) in enumerate(texts):
        before = surprisal(model, text, at, words)
        for mixer in mixers(model):
            for head in range(0, mixer.heads, 3):
                where = None
                if positions == "prediction":
                    where = torch.zeros(len(text), dtype=torch.bool)
                    where[at] = True
                with sg.ablate(model, [(mixer.layer, head)], mode, reference, positions=where):
                    after = surprisal(model, text, at, words)
                ours = float(found.sel(example=i, layer=mixer.layer, head=head))
                assert ours == pytest.approx(after - before, abs=2e-4)
    whole = sg.sweep_heads(model, ids, attention_mask=mask, positions=positions, mode=mode, **asked)
    np.testing.assert_allclose(whole, found.mean("example"), atol=1e-5)
    first = whole.first_order.values
    assert np.corrcoef(first[np.isfinite(first)], whole.values[np.isfinite(first)])[0, 1] > 0.5


def test_bad_input() -> None:
    model, (ids, mask, span) = sg.attach(llama()), drawn("left")
    for given, message in (
        ({}, "targets: expected the ids"),
        ({"targets": ids[:, 0], "span": span}, "span: expected None with targets"),
        ({"span": span, "mode": "resample"}, "mode: expected 'zero' or 'mean' of texts"),
        ({"span": ~mask.bool()}, "span: expected"),
        ({"span": span[:, :3]}, "span: expected shape"),
        ({"targets": ids[:2, 0]}, "targets: expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            sg.sweep_heads(model, ids, attention_mask=mask, **given)  # type: ignore[arg-type]
    both = sg.attach(BertLMHeadModel(BertConfig(**{**SIZES, "bos_token_id": 0, "eos_token_id": 1})).eval())
    with pytest.raises(ValueError, match="span: BertLMHeadModel sees later tokens"):
        sg.sweep_heads(both, ids, span=torch.arange(9).expand(4, 9) > 6)


def test_probes_have_their_own(corpus: Any) -> None:
    from symground.models import create

    model, probes = create("gpt2-4l", len(corpus.tokenizer)).eval(), sg.probes(corpus.tokenizer, ["book", "ball"])
    for name in ("targets", "attention_mask", "span"):
        with pytest.raises(ValueError, match=f"{name}: probes and questions contain their own {name}"):
            sg.sweep_heads(model, probes, **{name: torch.zeros(2, 3)})
