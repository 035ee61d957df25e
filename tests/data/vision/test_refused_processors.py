"""Processors and chat templates that hide the parts of a prompt: each is refused, and the error says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from symground.data.vision import read_prompt
from tests.data.vision.inputs import TEXT, llava_with, noise


def joined() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that ignores word boundaries: a frequent sequence of characters is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "<image>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["ASSISTANT: Yes "] * 50, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


QUESTION, ANSWER = "{{ messages[0]['content'][1]['text'] }}", "{{ messages[-1]['content'][0]['text'] }}"


@pytest.mark.parametrize(
    ("message", "template"),
    [
        (r"processor: expected one image token \(id 2\) in 'Is .*', got 0", QUESTION),
        (r"processor: expected one image token \(id 2\) .*, got 2", "<image><image>"),
        (
            r"processor: its chat template does not keep the question 'Is there a zebra in the image\?' as it is",
            "<image>{{ messages[0]['content'][1]['text'] | upper }}",
        ),
        ("does not keep the question", "<image> What is there?"),
        ("does not keep the question", "<image>{{ messages[0]['content'][1]['text'] | replace('a', '') }}"),
        (
            "processor: expected a chat template that continues '.*' with the answer 'Yes', got '",
            f"<image>{QUESTION} A: {{% if add_generation_prompt %}}<think>{{% else %}}{ANSWER}{{% endif %}}",
        ),
        (  # the template has no place for an answer
            r"a chat template that continues '<image>Is there a zebra in the image\?' with the answer 'Yes', got '",
            f"<image>{QUESTION}{{% if not add_generation_prompt %}} A: {ANSWER}{{% endif %}}",
        ),
    ],
)
def test_templates_that_hide_a_part_are_refused(llava_processor: Any, message: str, template: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompt(llava_with(llava_processor, template=template), noise(16, 16), TEXT, answer="Yes")


def test_processors_whose_ids_cannot_be_divided_into_parts_are_refused(llava_processor: Any) -> None:
    picture = noise(16, 16)
    bare = llava_with(llava_processor)
    bare.chat_template = None
    with pytest.raises(ValueError, match="processor: LlavaProcessor has no chat template; set processor.chat_template"):
        read_prompt(bare, picture, TEXT)
    slow = llava_with(llava_processor, transformers.ByT5Tokenizer())
    with pytest.raises(ValueError, match="processor: expected a fast tokenizer, got ByT5Tokenizer"):
        read_prompt(slow, picture, TEXT)
    with pytest.raises(ValueError, match="processor: its tokenizer joins the answer 'Yes' to the text before it"):
        read_prompt(llava_with(llava_processor, joined()), picture, TEXT, answer="Yes")
    nameless = llava_with(llava_processor)
    nameless.image_token_id = None
    with pytest.raises(ValueError, match=r"processor: expected one image token \(id None\)"):
        read_prompt(nameless, picture, TEXT)
    trimming = llava_with(
        llava_processor,
        template="<image>{{ messages[0]['content'][1]['text'] }}\nA: {{ messages[-1]['content'][0]['text'] | lower }}",
    )
    with pytest.raises(
        ValueError, match="final message does not appear|does not keep the beginning 'Yes' of an answer"
    ):
        read_prompt(trimming, picture, TEXT, answer_prefix="Yes")


class Changed:
    """A processor whose output is changed."""

    def __init__(self, processor: Any, change: Any) -> None:
        self._processor, self._change = processor, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, **inputs: Any) -> Any:
        found = self._processor(**inputs)
        return {**found, "input_ids": self._change(found["input_ids"])}


def test_ids_that_are_not_the_tokenizers_are_refused(llava_processor: Any) -> None:
    for change in (lambda ids: ids[:, 1:], lambda ids: ids[:, :-1], lambda ids: torch.cat([ids, ids[:, -1:]], 1)):
        with pytest.raises(
            ValueError, match="processor: expected Changed to keep its tokenizer's ids before and after the image"
        ):
            read_prompt(Changed(llava_processor, change), noise(16, 16), TEXT)
    with pytest.raises(ValueError, match=r"processor: expected image tokens \(id 2\) in the ids of Changed, got none"):
        read_prompt(Changed(llava_processor, lambda ids: ids.masked_fill(ids == 2, 7)), noise(16, 16), TEXT)
