"""Questions about images as ids: where each part of the prompt is, and the first token of the answer."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, processors

from symground.data.vision import Prompt, processed, prompt_text, read_prompt
from tests.data.vision.inputs import SYSTEM, TEXT, llava_with, noise


def text_of_part(processor: Any, prompt: Prompt, name: str) -> str:
    return str(processor.tokenizer.decode([prompt.ids[i] for i in prompt.spans[name]]))


@pytest.mark.parametrize("size", [(24, 18), (20, 30), (16, 16)])
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_the_spans_of_a_prompt_are_its_parts(
    processor: Any, form: str, system: str | None, size: tuple[int, int]
) -> None:
    picture = noise(*size)
    prompt = read_prompt(processor, picture, TEXT, system=system, answer="Yes")
    inputs = processed(processor, picture, prompt_text(processor, TEXT, system))
    assert list(prompt.ids) == inputs["input_ids"][0].tolist()
    own = (inputs["input_ids"][0] == processor.image_token_id).nonzero()[:, 0].tolist()
    assert list(prompt.spans["image"]) == own
    assert list(prompt.spans) == ["system", "image", "question"]
    assert text_of_part(processor, prompt, "question") == TEXT
    turn = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n<|vision_start|>" if form == "qwen" else "{} USER: "
    written = {"qwen": "You are a helpful assistant.", "llava": "", "next": ""}[form] if system is None else system
    assert text_of_part(processor, prompt, "system") == turn.format(written).lstrip()
    places = [i for name in prompt.spans for i in prompt.spans[name]]
    assert len(places) == len(set(places))
    assert sum(part.places.size for part in prompt.maps) <= len(own)
    # The first token of the answer is that of the finished conversation as the processor encodes it.
    whole = processed(processor, picture, prompt_text(processor, TEXT, system, answer="Yes"))["input_ids"][0].tolist()
    assert whole[: len(prompt.ids)] == list(prompt.ids)
    assert prompt.answer == whole[len(prompt.ids)]
    assert processor.tokenizer.decode([prompt.answer]) in (" Yes", "Y", "Yes")


@pytest.mark.parametrize("answer_prefix", ["The image", "Yes", "The image shows "])
def test_the_beginning_of_an_answer_ends_the_prompt(processor: Any, answer_prefix: str) -> None:
    picture = noise(20, 30)
    prompt = read_prompt(processor, picture, TEXT, answer_prefix=answer_prefix, system=SYSTEM)
    assert list(prompt.spans) == ["system", "image", "question", "answer"]
    assert text_of_part(processor, prompt, "answer").strip() == answer_prefix.strip()
    assert text_of_part(processor, prompt, "question") == TEXT
    assert prompt.spans["answer"][-1] == len(prompt.ids) - 1
    bare = read_prompt(processor, picture, TEXT, system=SYSTEM)
    assert prompt.ids[: len(bare.ids)] == bare.ids
    assert bare.answer is prompt.answer is None


def test_the_first_token_of_an_answer_after_its_beginning(llava_processor: Any) -> None:
    decode = llava_processor.tokenizer.decode
    prompt = read_prompt(llava_processor, noise(16, 16), TEXT, answer_prefix="A", answer="zebra")
    assert decode([prompt.answer]) == " zebra"
    prompt = read_prompt(llava_processor, noise(16, 16), TEXT, answer="zebra")
    assert decode([prompt.answer]) == " zebra"


@pytest.mark.parametrize("question", ["A", "ASSISTANT", "user", "Yes", "zebra", " a ", SYSTEM])
def test_a_question_is_found_if_its_words_occur_elsewhere_too(processor: Any, form: str, question: str) -> None:
    prompt = read_prompt(processor, noise(16, 16), question, answer_prefix="Yes zebra", system=SYSTEM)
    assert text_of_part(processor, prompt, "question").strip() == question.strip()
    assert min(prompt.spans["question"]) > max(prompt.spans["image"])
    assert max(prompt.spans["question"]) < min(prompt.spans["answer"])
    after = processor.tokenizer.decode(prompt.ids[max(prompt.spans["question"]) + 1 :])
    assert after.strip().startswith("<|im_end|>" if form == "qwen" else "ASSISTANT:")


def test_a_question_may_come_before_the_image(llava_processor: Any) -> None:
    template = "{{ messages[0]['content'][1]['text'] }}: <image> A:"
    processor = llava_with(llava_processor, template=template)
    prompt = read_prompt(processor, noise(16, 16), TEXT)
    assert text_of_part(processor, prompt, "question").rstrip(":") == TEXT
    assert max(prompt.spans["question"]) < min(prompt.spans["image"])
    assert prompt.spans["system"] == ()


def with_bos(processor: Any) -> Any:
    """The processor's tokenizer, with <s> before each text as LLaVA's."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(processor.tokenizer.backend_tokenizer.to_str()), pad_token="<pad>",
        bos_token="<s>",
    )  # fmt: skip
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair=None, special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def test_an_opening_token_occurs_once(llava_processor: Any) -> None:
    """Either the tokenizer or the template adds it, and it belongs to the system part."""
    tokenizer = with_bos(llava_processor)
    plain = read_prompt(llava_processor, noise(16, 16), TEXT, answer="No", answer_prefix="Yes")
    for template in (llava_processor.chat_template, "{{ bos_token }}" + llava_processor.chat_template):
        processor = llava_with(llava_processor, tokenizer, template)
        prompt = read_prompt(processor, noise(16, 16), TEXT, answer="No", answer_prefix="Yes")
        assert prompt.ids == (tokenizer.bos_token_id, *plain.ids)
        assert prompt.spans["system"][0] == 0
        assert {n: tuple(i - 1 for i in s) for n, s in prompt.spans.items() if n != "system"} == {
            n: s for n, s in plain.spans.items() if n != "system"
        }
        assert prompt.answer == plain.answer
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TEXT}]}]
        plain_prompt = read_prompt(processor, noise(16, 16), TEXT)
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        messages[0]["content"][0] = {"type": "image", "image": noise(16, 16)}
        given = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert prompt_text(processor, TEXT) == text
        assert given["input_ids"][0].tolist() == list(plain_prompt.ids)


def test_the_tokenizers_template_is_used_if_the_processor_has_none(llava_processor: Any) -> None:
    tokenizer = with_bos(llava_processor)
    tokenizer.chat_template = llava_processor.chat_template
    processor = llava_with(llava_processor, tokenizer)
    expected = read_prompt(processor, noise(16, 16), TEXT, answer="No")
    processor.chat_template = None
    found = read_prompt(processor, noise(16, 16), TEXT, answer="No")
    assert (found.ids, found.spans, found.answer) == (expected.ids, expected.spans, expected.answer)
