"""Questions about images as examples, against a twin with eager attention that reads one picture at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import symground as sg
from symground.analysis import ImageQuestions, head_shares, share_table
from symground.analysis.causal.fills import aligned
from symground.data import Question
from symground.data.vision import processed, prompt_text, read_image


def test_surprisal_rows_and_flow_are_eagers_one_by_one(twins: Any, asked: ImageQuestions, passes: list[Any]) -> None:
    assert len({len(prompt.ids) for prompt in asked.prompts}) > 1
    traced = sg.trace(twins.ours, asked, rows=True)
    assert traced.key_group.values.tolist() == ["system", "image", "question"]
    assert traced.query_group.values.tolist() == ["prediction", "question"]
    examples = asked.matched()
    for i, found in enumerate(passes):
        p = len(found.ids) - 1
        assert examples.input_ids[i, : p + 1].tolist() == found.ids.tolist()
        assert examples.prediction[i] == p == traced.prediction[i]
        expected = found.surprisals[p, examples.targets[i]]
        np.testing.assert_allclose(traced.surprisal[i], expected, atol=1e-5)
        row = found.signed[:, :, p]
        np.testing.assert_allclose(traced.rows[i, ..., : p + 1], row, atol=1e-5, rtol=1e-4)
        assert (traced.rows[i, ..., p + 1 :] == 0).all()
        layers = found.signed.sum(1).abs()
        np.testing.assert_allclose(traced.saliency[i, :, : p + 1, : p + 1], layers, atol=1e-5, rtol=1e-4)
        flow = found.signed.abs()
        for name, mask in examples.key_masks.items():
            keys = mask[i, : p + 1]
            at_p, at_question = (
                traced.flow[i].sel(query_group=query, key_group=name) for query in ("prediction", "question")
            )
            np.testing.assert_allclose(at_p, (row.abs() * keys).sum(-1), atol=1e-5, rtol=1e-4)
            own = examples.query_masks["question"][i, : p + 1]
            np.testing.assert_allclose(at_question, flow[:, :, own][..., keys].sum((-1, -2)), rtol=1e-4)
        np.testing.assert_allclose(
            traced.row_total[i].sel(query_group="prediction"), row.abs().sum(-1), atol=1e-5, rtol=1e-4
        )
        np.testing.assert_allclose(traced.matrix_total[i], flow.sum((-1, -2)), rtol=1e-4)


def test_how_many_go_together_changes_nothing(twins: Any, asked: ImageQuestions) -> None:
    some = asked.take([0, 8, 2, 12, 5])
    whole = sg.trace(twins.ours, some, rows=True)
    for size in (1, 2, 4):
        parts = sg.trace(twins.ours, some, rows=True, batch_size=size)
        for name in whole:
            np.testing.assert_allclose(parts[name], whole[name], atol=1e-5, rtol=1e-4, err_msg=str(name))
    again = sg.trace(twins.ours, some, rows=True, checkpoint=True)
    np.testing.assert_allclose(again.flow, whole.flow, atol=1e-5, rtol=1e-4)
    alone = sg.trace(twins.ours, some.take([1]))
    np.testing.assert_allclose(alone.flow[0], whole.flow[1], atol=1e-5, rtol=1e-4)
    # A part of the examples has its own pictures.
    examples = some.matched()
    part = sg.trace(twins.ours, examples.part(slice(2, 5)), batch_size=2)
    np.testing.assert_allclose(part.surprisal, whole.surprisal[2:], atol=1e-5, rtol=1e-4)
    assert part.context.values.tolist() == whole.context.values[2:].tolist()


def test_groups_are_what_the_prompt_says(asked: ImageQuestions) -> None:
    examples = asked.matched()
    decode = asked.processor.tokenizer.decode
    assert list(examples.query_masks) == ["prediction", "question"]
    assert list(examples.key_masks) == ["system", "image", "question"]
    for i, (prompt, question) in enumerate(zip(asked.prompts, asked.questions, strict=True)):
        ids = examples.input_ids[i]
        assert decode(ids[examples.key_masks["question"][i]]) == question.text
        assert decode(ids[examples.query_masks["question"][i]]) == question.text
        assert decode(ids[examples.key_masks["system"][i]]) == "USER: "
        assert examples.key_masks["image"][i].sum() == 16
        assert examples.query_masks["prediction"][i].nonzero()[:, 0].tolist() == [len(prompt.ids) - 1]
        assert (ids[len(prompt.ids) :] == prompt.ids[-1]).all()
        assert decode([examples.targets[i]]) == {"yes": " Yes", "no": " No"}[question.answer]
    pictures = asked.contexts
    assert len(pictures) == 6
    assert [pictures[c] for c in examples.context] == [question.image for question in asked.questions]
    assert asked.nouns == tuple(dict.fromkeys(question.about for question in asked.questions))
    assert examples.noun == [question.about for question in asked.questions]
    tokens, number = asked.longest
    assert tokens == examples.input_ids.shape[1] == len(asked.prompts[number].ids)
    assert asked.largest_id == examples.input_ids.max()


def test_a_system_prompt_and_an_instruction_are_part_of_it(twins: Any, pairs: list[Question]) -> None:
    asked = sg.image_questions(
        twins.processor, pairs[:3], system="You look. ", instruction="\nAnswer Yes or No.", say={"yes": "No"}
    )
    assert {*asked.matched().noun} <= {"zebra", "boat", "clock", "umbrella"}
    traced = sg.trace(twins.ours, asked, batch_size=2)
    examples = asked.matched()
    decode = asked.processor.tokenizer.decode
    for i in range(3):
        inputs = twins.given(asked, i)
        found = twins.one(inputs, int(examples.targets[i]))
        assert decode(found.ids[: len(asked.prompts[i].spans["system"])]) == "You look.  USER: "
        assert decode(found.ids[list(asked.prompts[i].spans["question"])]).endswith("image?\nAnswer Yes or No.")
        np.testing.assert_allclose(traced.surprisal[i], found.surprisals[-1, examples.targets[i]], atol=1e-5)
        at_p = found.signed[:, :, -1, : len(asked.prompts[i].spans["system"])].abs().sum(-1)
        np.testing.assert_allclose(
            traced.flow[i].sel(query_group="prediction", key_group="system"), at_p, atol=1e-5, rtol=1e-4
        )
    assert decode([examples.targets[[q.answer for q in asked.questions].index("yes")]]) == " No"


def test_an_answer_that_has_begun_is_a_group_and_goes_on(twins: Any, pairs: list[Question]) -> None:
    """The prediction position is the last token of the beginning; with another picture the text is the same."""
    processor = twins.processor
    asked = sg.image_questions(processor, pairs[:3], said="Yes No", say={"yes": "Yes", "no": "No"})
    examples = asked.matched()
    assert "answer" in examples.key_masks
    for i, question in enumerate(asked.questions):
        text = prompt_text(processor, question.text, answer_prefix="Yes No")
        expected = processed(processor, read_image(question.image), text)
        length = expected["input_ids"].shape[1]
        assert examples.input_ids[i, :length].tolist() == expected["input_ids"][0].tolist()
        begun = examples.input_ids[i][examples.key_masks["answer"][i]]
        assert processor.tokenizer.decode(begun).strip() == "Yes No"
        assert examples.key_masks["answer"][i].nonzero().max() == examples.prediction[i] == length - 1
        one = twins.one(expected, int(examples.targets[i]))
        traced = sg.trace(twins.ours, asked.take([i]), saliency=False, rows=True)
        np.testing.assert_allclose(traced.rows[0], one.signed[:, :, -1], atol=1e-5, rtol=1e-3)
    assert torch.equal(asked.mismatched().key_masks["answer"], examples.key_masks["answer"])


def test_other_answers_are_said_as_they_are_and_stand_for_what_is_asked(twins: Any, pairs: list[Question]) -> None:
    named = [Question(q.image, "What is it?", q.about or "") for q in pairs[:4]]
    asked = sg.image_questions(twins.processor, named)
    examples = asked.matched()
    assert [twins.processor.tokenizer.decode([i]) for i in examples.targets] == [f" {q.answer}" for q in named]
    assert examples.noun == [q.answer for q in named]
    assert asked.nouns == tuple(dict.fromkeys(q.answer for q in named))


def test_mismatched_pictures_differ_and_are_drawn_again_alike(twins: Any, asked: ImageQuestions) -> None:
    matched, mismatched = asked.matched(), asked.mismatched(3)
    assert torch.equal(matched.targets, mismatched.targets)
    assert matched.noun == mismatched.noun
    assert torch.equal(matched.input_ids, mismatched.input_ids)  # LLaVA has equally many placeholders for every picture
    aligned(matched, mismatched)
    assert mismatched.context == matched.context  # the context of the replaced picture
    own, others, again, further = (
        [twins.picture_of(asked, examples, i) for i in range(len(asked))]
        for examples in (matched, mismatched, asked.mismatched(3), asked.mismatched(4))
    )
    assert own == [question.image for question in asked.questions]
    assert others == again
    assert others != further
    assert all(a != b for a, b in zip(own, others, strict=True))
    assert len({*others}) > 2
    traced = sg.trace(twins.ours, mismatched, batch_size=5, saliency=False)
    for i in range(len(asked)):
        inputs = twins.given(asked, i, others[i])
        expected = twins.scores(inputs)[-1, mismatched.targets[i]]
        np.testing.assert_allclose(traced.surprisal[i], expected, atol=1e-5)
    table = share_table(sg.trace(twins.ours, asked), traced)
    assert table["kind"].unique().tolist() == ["aggregate"]
    np.testing.assert_allclose(
        table[table["denominator"] == "row"]["null"], head_shares(traced).mean("example").values.ravel(), rtol=1e-6
    )


def test_take_keeps_questions_with_their_prompts(twins: Any, asked: ImageQuestions) -> None:
    some = asked.take([9, 0, 3])
    assert len(some) == 3
    assert some.questions == tuple(asked.questions[i] for i in (9, 0, 3))
    assert some.prompts == tuple(asked.prompts[i] for i in (9, 0, 3))
    assert some.contexts == tuple(dict.fromkeys(question.image for question in some.questions))
    np.testing.assert_allclose(
        sg.trace(twins.ours, some).surprisal, sg.trace(twins.ours, asked).surprisal[[9, 0, 3]], atol=1e-6
    )


def test_a_heat_map_is_the_saliency_of_the_patches(twins: Any, asked: ImageQuestions) -> None:
    traced = sg.trace(twins.ours, asked, rows=True)
    at_p = abs(traced.rows.sum("head")).sum("layer")
    for i in (0, 1, 9):
        image = asked.picture(i)
        patches = at_p[i].values[list(asked.prompts[i].spans["image"])]
        for values in (at_p[i], at_p[i].values, torch.tensor(at_p[i].values, requires_grad=True)):
            heat = asked.on_picture(i, values)
            assert heat.shape == (image.height, image.width)
            assert heat.sum() == pytest.approx(patches.sum(), rel=1e-5)
        least = min(image.size)
        top, left = (image.height - least) // 2, (image.width - least) // 2
        seen = heat[top : top + least, left : left + least]
        assert seen.sum() == pytest.approx(heat.sum())
        corner = seen[: least // 4, : least // 4]
        assert corner.mean() * (least / 4) ** 2 == pytest.approx(patches[0], rel=1e-5)


def test_half_precision_takes_the_pictures_too(twins: Any, asked: ImageQuestions) -> None:
    half = sg.attach(copy.deepcopy(twins.eager).bfloat16())
    traced = sg.trace(half, asked.take([0, 9]))
    exact = sg.trace(twins.ours, asked.take([0, 9]))
    np.testing.assert_allclose(traced.surprisal, exact.surprisal, atol=0.15)
    assert sg.answers(half, asked.take([0, 1]))["surprisal"].notna().all()


def test_what_cannot_be_asked_is_refused(twins: Any, pairs: list[Question], asked: ImageQuestions) -> None:
    processor = twins.processor
    with pytest.raises(ValueError, match="questions: expected at least one, got none"):
        sg.image_questions(processor, [])
    gone = [pairs[0], replace(pairs[1], image="gone.png"), replace(pairs[2], image="lost.png")]
    with pytest.raises(FileNotFoundError, match=r"image: 2 of 3 do not exist, such as gone\.png"):
        sg.image_questions(processor, gone)
    yes, no = (next(q for q in pairs if q.answer == answer) for answer in ("yes", "no"))
    with pytest.raises(ValueError, match=r"the answers '\w+' and '\w+' begin with the same token \(id \d+\)"):
        sg.image_questions(processor, [yes, no], say={"yes": "Yes", "no": "Yes no"})
    one_picture = [replace(question, image=pairs[0].image) for question in pairs[:4]]
    alone = sg.image_questions(processor, one_picture)
    message = "questions: a mismatched example takes another picture, and all questions have the same"
    with pytest.raises(ValueError, match=message):
        alone.mismatched()
    with pytest.raises(ValueError, match=message):
        sg.intervene(twins.ours, alone, draws=1)
    assert sg.trace(twins.ours, alone).sizes["example"] == 4
    with pytest.raises(ValueError, match="two contexts"):
        sg.steering(twins.ours, alone)
    unknown = replace(asked, prompts=tuple(prompt._replace(maps=()) for prompt in asked.prompts))
    with pytest.raises(ValueError, match="maps: .*it is unknown where this model's image tokens lie in the picture"):
        unknown.on_picture(0, np.zeros(60))


def test_a_large_picture_is_refused_where_no_option_raises_the_limit(
    twins: Any, pairs: list[Question], tmp_path: Path
) -> None:
    Image.new("RGB", (1100, 1000), "red").save(tmp_path / "large.png")
    questions = [pairs[0], replace(pairs[1], image=str(tmp_path / "large.png"))]
    with pytest.raises(ValueError, match=r"large\.png .*1,100 × 1,000 points are more than the limit of 1 million"):
        sg.image_questions(twins.processor, questions, max_megapixels=1)
    asked = sg.image_questions(twins.processor, questions, max_megapixels=2)
    assert asked.picture(1).size == (1100, 1000)
    examples = [asked.matched(), asked.mismatched(), asked.take([1]).matched()]
    assert all(found.inputs(slice(0, 1))["pixel_values"].shape[0] == 1 for found in examples)


def test_prompts_that_do_not_fit_the_model_are_refused(twins: Any, asked: ImageQuestions) -> None:
    config = copy.deepcopy(twins.eager.config)
    config.text_config.max_position_embeddings = 20
    small = sg.attach(transformers.LlavaForConditionalGeneration(config).eval())
    with pytest.raises(
        ValueError, match=r"input_ids: expected at most 20 tokens, the model's positions, got \d+ in context \d+"
    ):
        sg.trace(small, asked)
    config = copy.deepcopy(twins.eager.config)
    config.text_config.vocab_size = config.image_token_id = 200
    config.image_token_id = 2
    other = sg.attach(transformers.LlavaForConditionalGeneration(config).eval())
    with pytest.raises(ValueError, match="is outside the model's vocabulary of 200; is this its tokenizer"):
        sg.trace(other, asked)


def test_the_pixels_are_those_of_the_processor(twins: Any, asked: ImageQuestions) -> None:
    inputs = asked.matched().given(slice(2, 5))
    assert list(inputs) == ["pixel_values"]
    for i in range(3):
        question = asked.questions[2 + i]
        own = processed(twins.processor, read_image(question.image), prompt_text(twins.processor, question.text))
        assert torch.equal(inputs["pixel_values"][i], own["pixel_values"][0])
