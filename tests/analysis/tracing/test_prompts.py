"""A prompt and its answer, given or generated, as the span of a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

import symground as sg
from symground.analysis.probing import answered
from tests.analysis.subwords import subword_tokenizer, tiny

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    found = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(subword_tokenizer().backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
    )
    names = [(name, found.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=names)
    found.chat_template = TEMPLATE
    return found


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> Any:
    return sg.attach(tiny("Llama", len(tokenizer)))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


@pytest.mark.parametrize("prompt", ["look at the", [{"role": "user", "content": "look at the"}]])
@pytest.mark.parametrize("answer", [" book and ball", None])
@pytest.mark.parametrize("per_token", [False, True])
def test_the_answer_is_the_span(model: Any, tokenizer: Any, prompt: Any, answer: str | None, per_token: bool) -> None:
    """A text has the token that opens it and none that closes it; a chat has what its template writes."""
    given: dict[str, Any] = {"tokenizer": tokenizer, "per_token": per_token, "rows": True, "max_new_tokens": 5}
    traced = sg.trace(model, prompt=prompt, answer=answer, **given)
    chat = not isinstance(prompt, str)
    before = ids_of(tokenizer, "<user>look at the\n<a>" if chat else "look at the")
    if not chat:
        before = [tokenizer.bos_token_id, *before]
    if answer is None:
        with torch.no_grad():
            said = model.generate(torch.tensor([before]), max_new_tokens=5, do_sample=False)[0, len(before) :].tolist()
    else:
        said = ids_of(tokenizer, answer)
    ids = torch.tensor([[*before, *said]])
    span = torch.arange(ids.shape[1])[None] >= len(before)
    expected = sg.trace(model, ids, groups={"prompt": ~span, "answer": span}, span=span, rows=True, per_token=per_token)
    xr.testing.assert_allclose(traced, expected)
    assert traced.token[0].values.tolist() == [*before, *said]
    assert traced.key_group.values.tolist() == ["prompt", "answer"]


def test_what_ends_a_generated_answer_is_not_in_it(model: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        first = sg.trace(model, prompt="look at the", tokenizer=tokenizer, max_new_tokens=6, saliency=False)
    said = first.target_token[0].values.tolist()
    ends = next(i for i in range(1, 6) if said[i] not in said[:i])  # a word that the answer says for the first time
    model.generation_config.eos_token_id = said[ends]
    shorter = sg.trace(model, prompt="look at the", tokenizer=tokenizer, max_new_tokens=6, saliency=False)
    assert shorter.target_token[0].values.tolist() == said[:ends]
    model.generation_config.eos_token_id = [7, said[0]]
    with pytest.raises(ValueError, match="answer: expected one, since the model ends the text at once"):
        sg.trace(model, prompt="look at the", tokenizer=tokenizer)


def test_a_loaded_model_has_its_own_tokenizer(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = sg.load(tmp_path)
    own, given = (
        sg.trace(loaded, prompt="look at the", answer=" ball", tokenizer=which).surprisal for which in (None, tokenizer)
    )
    xr.testing.assert_allclose(own, given)


def test_a_phrase_is_the_tokens_that_spell_it(model: Any, tokenizer: Any) -> None:
    """Of all phrases of a text: the letters of a group's tokens are those of its phrase, or it is refused."""
    text = "look, at the notebook “today”: naïve 你好."
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    refused = 0
    for start in range(len(text)):
        for stop in range(start + 1, len(text) + 1):
            phrase = text[start:stop]
            if text.count(phrase) > 1 or not phrase.strip():
                continue
            found = answered(model, text, " ball", tokenizer, 1)
            spelling = [(a, b) for a, b in places if any(start <= c < stop for c in range(a, b))]
            letters = {c for a, b in spelling for c in range(a, b) if text[c].isalnum()}
            if letters <= set(range(start, stop)):
                mask = found.groups_of({"it": phrase})["it"][0]
                assert [place for place, here in zip(found.places, mask, strict=False) if here] == spelling
            else:
                refused += 1
                with pytest.raises(ValueError, match=r"groups\['it'\]: expected a phrase of whole tokens, got"):
                    found.groups_of({"it": phrase})
    assert refused > 20


def test_bad_prompts(model: Any, tokenizer: Any) -> None:
    bare = subword_tokenizer()
    chat = [{"role": "user", "content": "look"}]
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"prompt": ""}, "prompt: expected a text with at least one word"),
        ({"prompt": 3}, "prompt: expected a text, or a chat's turns with role and content, got int 3"),
        ({"prompt": [{"role": "user"}]}, "prompt: expected a text, or a chat's turns"),
        ({"prompt": chat, "tokenizer": bare}, "prompt: expected a text, since the tokenizer has no chat template"),
        ({"prompt": "look at the boo", "answer": "k"}, "answer: the tokenizer joins 'k' with the end of the text"),
        ({"prompt": "look", "answer": " "}, "answer: expected a text with at least one word, or None"),
        ({"prompt": "the " * 80}, r"prompt: expected at most 64 tokens, the model's positions, got \d+"),
        (
            {"prompt": "the " * 20, "answer": " the" * 60},
            r"prompt: expected at most 64 tokens, the model.s positions, got \d+ with its answer",
        ),
        ({"prompt": "look", "input_ids": torch.ones(1, 3).long()}, "input_ids: expected None with a prompt"),
        ({"prompt": "look", "span": torch.ones(1, 3).bool()}, "span: expected None with a prompt"),
        ({"prompt": "look", "max_new_tokens": 0}, "max_new_tokens: expected an integer of at least 1"),
        ({"answer": "a"}, "answer: expected None without a prompt"),
        ({"tokenizer": tokenizer}, "tokenizer: expected None without a prompt"),
    )
    for given, message in wrong:
        with pytest.raises(ValueError, match=message):
            sg.trace(model, **({"tokenizer": tokenizer} if "prompt" in given else {}) | given)
