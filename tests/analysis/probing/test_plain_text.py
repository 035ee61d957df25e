"""Probes of plain text: the scored text is exactly the requested one, including spaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import symground as sg
from symground.reports.pages.example import example_of

NOUNS = ["dog", "cat", "bird", "elephant"]
OPENS = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer like GPT-2's: it is byte-level, and the token that opens a text also replaces unknown words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[OPENS, "<|said|>"], initial_alphabet=alphabet)
    texts = ["There was a dog here", "She fed the cat", "He saw a bird", "assistant\ndog cat bird", "She saw it"] * 20
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=OPENS, eos_token=OPENS, unk_token=OPENS)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=24, n_layer=2, n_head=3, initializer_range=0.3
    )
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("opened", ["", OPENS])
@pytest.mark.parametrize(
    ("lan", "joint", "between"),
    [
        ("She fed the", None, " "),
        ("She fed the ", None, " "),
        ("She fed the   ", None, " "),
        ("She fed the ", " ", " "),
        ("<|said|>assistant\n", None, ""),
        ("<|said|>assistant\t", None, ""),
        ("assistant<|said|>", "", ""),
        ("She fed the", "\n", "\n"),
        ("She fed the", " ... ", " ... "),
    ],
)
def test_what_is_scored_is_the_text_that_was_asked_for(
    tokenizer: PreTrainedTokenizerFast, model: GPT2LMHeadModel, opened: str, lan: str, joint: str | None, between: str
) -> None:
    """The oracle writes the text out and scores it in one pass."""
    probes = sg.probes(tokenizer, NOUNS, [(f"{opened}There was a {{}} here", lan)], joint=joint)
    scores = sg.score(model, probes).set_index(["env", "target"])["surprisal"]
    for env in NOUNS:
        for target in NOUNS:
            said = lan.rstrip(" ") if between.startswith(" ") else lan
            text = f"{opened}There was a {env} here. {said}"
            before, whole = (
                tokenizer(x, add_special_tokens=False)["input_ids"] for x in (text, f"{text}{between}{target}")
            )
            own = whole[len(before) :]
            assert whole[: len(before)] == before
            skipped = len(own) - len(tokenizer(f"{between if between == ' ' else ''}{target}")["input_ids"])
            with torch.no_grad():
                log_p = model(torch.tensor([whole])).logits[0, :-1].double().log_softmax(-1)
            each = -log_p[torch.arange(len(before) - 1, len(whole) - 1), own]
            if between in (" ", ""):
                assert skipped == 0
            assert scores[env, target] == pytest.approx(each.sum().item(), abs=1e-3), (text, between, target)


def test_what_opens_a_text_is_not_put_before_it_again(tokenizer: PreTrainedTokenizerFast) -> None:
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.post_processor = processors.TemplateProcessing(f"{OPENS} $A", special_tokens=[(OPENS, 0)])
    opening = PreTrainedTokenizerFast(tokenizer_object=own, bos_token=OPENS, unk_token=OPENS)
    written, not_written = (
        sg.probes(opening, NOUNS, [(f"{text}There was a {{}}", "She fed the")]).rows[0][0].ids for text in (OPENS, "")
    )
    assert written == not_written
    assert written[:2].count(0) == 1


def test_unknown_words_are_named_and_their_token_may_be_written() -> None:
    vocabulary = {w: i for i, w in enumerate(["[UNK]", "There", "was", "a", "dog", "cat", "She", "fed", "the", "."])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    with pytest.raises(ValueError, match="not in it: bird, saw$"):
        sg.probes(words, ["dog", "bird"], [("There was a {}", "She saw the")])
    words.add_special_tokens({"bos_token": "[UNK]"})
    assert sg.probes(words, ["dog", "cat"], [("[UNK] There was a {}", "She fed the")]).rows[0][0].ids[0] == 0


def test_a_studys_words_are_joined_by_nothing(corpus: object) -> None:
    with pytest.raises(ValueError, match="joint: the words of a study's vocabulary are tokens"):
        sg.probes(corpus.tokenizer, joint="")  # type: ignore[attr-defined]


def test_examples_of_probes_end_in_no_padding_that_transformers_warns_of(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows have several lengths, and the model has a padding token."""
    contexts = [("There was a {}", "She fed the"), ("He saw it and then there was a {} here", "She saw the")]
    probes = sg.probes(tokenizer, NOUNS[:3], contexts)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **sizes, pad_token_id=0)
    seen: list[torch.Tensor] = []
    ours = sg.attach(transformers.LlamaForCausalLM(config).eval())
    ours.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    traced = sg.trace(ours, probes, batch_size=6)
    assert not any(bool((ids[:, [0, -1]] == config.pad_token_id).any()) for ids in seen[-1:])
    alone = sg.trace(ours, probes.take_contexts([0]))
    np.testing.assert_allclose(traced.surprisal[:3], alone.surprisal, atol=1e-5)


@pytest.mark.parametrize(
    ("end", "separator", "after"),
    [
        ("", None, ". "), (",", None, ". "), (" then", None, ". "), ('"', None, ". "), (".", None, " "),
        ("!", None, " "), ("?", None, " "), ("...", None, " "), ("…", None, " "), ('."', None, " "), ("?”", None, " "),
        (".)", None, " "), ("。", None, " "), ("", "\n", "\n"), ("!", ". ", ". "), ("", "", ""),
    ],
)  # fmt: skip
def test_a_sentence_has_one_mark_at_its_end(
    tokenizer: PreTrainedTokenizerFast, end: str, separator: str | None, after: str
) -> None:
    """After the scene and after each utterance; a separator that is given is used as it is."""
    between = [("CHI", "lan", f"He saw it{end}"), ("CHI", "lan", "She saw it")]
    contexts = [(f"There was a {{}} here{end}", "She fed the", between)]
    asked: dict[str, str] = {} if separator is None else {"separator": separator}
    probes = sg.probes(tokenizer, NOUNS, contexts, **asked)
    last = ". " if separator is None else separator
    for noun, row, length in zip(NOUNS, probes.matched().input_ids, probes.matched().prediction + 1, strict=True):
        wanted = f"There was a {noun} here{end}{after}He saw it{end}{after}She saw it{last}She fed the"
        assert tokenizer.decode(row[:length], skip_special_tokens=True) == wanted
    if separator is None:
        shown = example_of({"nouns": NOUNS, "contexts": contexts, "pretrained": "tiny"})
        assert shown is not None
        wanted = f"There was a dog here{end}{after}He saw it{end}{after}She saw it. She fed the dog"
        assert "".join(piece.text for piece in shown.matched) == wanted
