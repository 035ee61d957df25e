"""Every analysis of texts refuses those longer than the model's positions, and takes those that are as long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import symground as sg
from symground.models.trials import positions_of
from tests.analysis.subwords import CONTEXTS, subword_tokenizer

TOKENIZER = subword_tokenizer()
LIMIT = 24
_SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENIZER), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_WIDER: dict[str, Any] = {**_SIZES, "intermediate_size": 24}


def built(name: str, limit: int = LIMIT) -> PreTrainedModel:
    """A model whose positions are rotary, learnt, learnt after rows of padding, stretched, or distances."""
    torch.manual_seed(0)
    model: Any
    if name == "learnt":
        config = transformers.GPT2Config(**_SIZES, n_positions=limit)
        model = transformers.GPT2LMHeadModel(config)
    elif name == "padded":  # position 0 is row 2 of RoBERTa's table, and row 1 that of padding
        config = transformers.RobertaConfig(
            **_WIDER, max_position_embeddings=limit + 2, pad_token_id=1, is_decoder=True
        )
        model = transformers.RobertaForCausalLM(config)
    elif name == "distances":
        model = transformers.BloomForCausalLM(transformers.BloomConfig(
            vocab_size=len(TOKENIZER), hidden_size=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None,
        ))  # fmt: skip
    else:
        rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0} if name == "stretched" else None
        more = {"max_position_embeddings": limit, "pad_token_id": None, "rope_parameters": rope}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_WIDER, **more))
    return sg.attach(model.eval())


def _text(count: int) -> str:
    """A text of so many tokens."""
    text = "a" * count
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == count
    return text


def _ids(count: int) -> Tensor:
    return torch.full((1, count), 5)


def _last(count: int) -> Tensor:
    return (torch.arange(count) == count - 1)[None]


def _longest(probes: sg.Probes) -> int:
    return probes.longest[0]


def _ablated(model: PreTrainedModel, reference: Any) -> None:
    with sg.ablate(model, [(0, 0)], mode="mean", reference=reference):
        pass


#: The argument that is too long → calls (model, number of tokens).
CALLS: dict[str, tuple[str, Callable[[PreTrainedModel, int], Any]]] = {
    "trace": ("input_ids", lambda m, n: sg.trace(m, _ids(n), torch.tensor([3]))),
    "trace of a span": ("input_ids", lambda m, n: sg.trace(m, _ids(n), span=_last(n))),
    "trace of a loss": ("input_ids", lambda m, n: sg.trace(m, _ids(n), loss=lambda out: out.logits[:, -1, 0])),
    "trace of a prompt": ("prompt", lambda m, n: sg.trace(m, prompt="a", answer=_text(n - 1), tokenizer=TOKENIZER)),
    "attention": ("input_ids", lambda m, n: sg.attention(m, _ids(n))),
    "attention of vectors": ("inputs_embeds", lambda m, n: sg.attention(m, inputs_embeds=torch.ones(1, n, 16))),
    "attention_memory": ("input_ids", lambda m, n: sg.attention_memory(m, _ids(n))),
    "lens_read": ("input_ids", lambda m, n: sg.lens_read(m, _ids(n))),
    "TunedLens.fit": ("data", lambda m, n: sg.TunedLens.fit(m, _ids(n), steps=1, batch_size=1)),
    "sweep_heads": ("probes", lambda m, n: sg.sweep_heads(m, _ids(n), torch.tensor([3]))),
    "ablate": ("reference", lambda m, n: _ablated(m, _ids(n))),
    "surprisal": ("texts", lambda m, n: sg.surprisal(m, ["a", _text(n)], TOKENIZER)),
    "score of words": ("probes", lambda m, n: sg.score(m, _text(n - 1), ["a"], tokenizer=TOKENIZER, joint="")),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["rotary", "learnt", "padded"])
def test_texts_end_with_the_positions(name: str, call: str) -> None:
    argument, run = CALLS[call]
    model = built(name)
    run(model, LIMIT)
    with pytest.raises(ValueError) as caught:
        run(model, LIMIT + 1)
    wanted = f"{argument}: expected at most {LIMIT} tokens, the model's positions, got {LIMIT + 1}"
    assert str(caught.value).startswith(wanted)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["distances", "stretched"])
def test_positions_without_an_end_take_any_text(name: str, call: str) -> None:
    model = built(name)
    assert positions_of(model) is None
    CALLS[call][1](model, LIMIT + 7)


@pytest.mark.parametrize("run", [
    sg.trace, sg.score, sg.sweep_heads, sg.lens_gain, sg.intervene, sg.monitor, sg.attention, sg.steering, _ablated,
])  # fmt: skip
def test_probes_end_with_the_positions(run: Callable[[PreTrainedModel, Any], Any]) -> None:
    probes = sg.probes(TOKENIZER, ["book", "ball", "notebook"], CONTEXTS)
    longest = _longest(probes)
    run(built("rotary", longest), probes)
    with pytest.raises(
        ValueError, match=f"expected at most {longest - 1} tokens, the model's positions, got {longest} in"
    ):
        run(built("rotary", longest - 1), probes)
