"""Valid arguments of the analyses; and a tiny LLaVA and its twin with eager attention.

The twin reads one picture at a time. It is the oracle of image questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import symground as sg
from symground.analysis import ImageQuestions
from symground.analysis.probing.examples import Examples
from symground.data import Corpus, Question, read_questions
from symground.data.vision import read_image

Head = tuple[int, int]


class One(NamedTuple):
    """The result of one pass over one question."""

    ids: Tensor
    """[T]"""
    surprisals: Tensor
    """[T,V] surprisals after each token."""
    signed: Tensor
    """[L,H,T,T] saliency of the answer's surprisal."""


@dataclass(frozen=True)
class Twins:
    """A model under our attention and the same with eager attention; the methods use the latter."""

    ours: PreTrainedModel
    eager: PreTrainedModel
    processor: Any

    @staticmethod
    def given(asked: ImageQuestions, i: int, picture: str | None = None) -> dict[str, Tensor]:
        """The inputs for one question from a plain call of the processor."""
        question = asked.questions[i]
        content = [{"type": "image"}, {"type": "text", "text": question.text + asked.instruction}]
        messages = [{"role": "user", "content": content}]
        if asked.system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": asked.system}]})
        text = asked.processor.apply_chat_template(messages, add_generation_prompt=True)
        return dict(asked.processor(images=read_image(picture or question.image), text=text, return_tensors="pt"))

    def picture_of(self, asked: ImageQuestions, examples: Examples, i: int) -> str:
        """The picture of an example, found by its pixels."""
        pixels = examples.given(slice(i, i + 1))["pixel_values"]
        found = []
        for path in asked.contexts:
            own = self.given(asked, i, path)["pixel_values"]
            if own.shape == pixels.shape and torch.equal(own, pixels):
                found.append(path)
        assert len(found) == 1
        return found[0]

    def one(self, inputs: Mapping[str, Tensor], target: int) -> One:
        out = self.eager(**inputs, output_attentions=True)
        scores = -out.logits[0].log_softmax(-1)
        gradients = torch.autograd.grad(scores[-1, target], out.attentions)
        signed = torch.stack([(a * g)[0] for a, g in zip(out.attentions, gradients, strict=True)]).detach()
        return One(inputs["input_ids"][0], scores.detach(), signed)

    @contextmanager
    def _heads_are(self, change: Callable[[Head, Tensor], Tensor]) -> Iterator[None]:
        """Within the block, ``change`` replaces each head's output [T,D] of a single row."""
        heads = self.eager.config.get_text_config().num_attention_heads

        def hook(layer: int) -> Callable[[Any, tuple[Tensor]], Any]:
            def changed(_: Any, arguments: tuple[Tensor]) -> tuple[Tensor]:
                own = arguments[0].unflatten(-1, (heads, -1))[0].unbind(1)
                return (torch.stack([change((layer, h), x) for h, x in enumerate(own)], 1).flatten(1)[None],)

            return changed

        with ExitStack() as stack:
            for i, layer in enumerate(self.eager.get_decoder().layers):
                handle = layer.self_attn.o_proj.register_forward_pre_hook(hook(i))
                stack.callback(handle.remove)
            yield

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[Head, Tensor]:
        """(layer, head) → [T,D]."""
        found: dict[Head, Tensor] = {}

        def keep(head: Head, x: Tensor) -> Tensor:
            found[head] = x
            return x

        with self._heads_are(keep):
            self.eager(**inputs)
        return found

    @torch.no_grad()
    def scores(self, inputs: Mapping[str, Tensor], changed: Mapping[Head, Any] | None = None) -> Tensor:
        """[T,V] surprisals, with heads multiplied by a number or replaced by a tensor."""

        def change(head: Head, x: Tensor) -> Tensor:
            how = (changed or {}).get(head, 1.0)
            return how.expand_as(x) if isinstance(how, Tensor) else x * how

        with self._heads_are(change):
            return -self.eager(**inputs).logits[0].log_softmax(-1)

    def mean_outputs(self, asked: ImageQuestions) -> dict[Head, Tensor]:
        """(layer, head) → [D], over all tokens of all questions."""
        each = [self.outputs(self.given(asked, i)) for i in range(len(asked))]
        return {head: torch.cat([x[head] for x in each]).mean(0) for head in each[0]}

    def of_context(self, ids: Tensor, found: Tensor) -> float:
        """Mean surprisal of the words, each given the tokens before it."""
        image = self.processor.image_token_id
        return float(np.mean([found[t - 1, ids[t]].item() for t in range(1, len(ids)) if ids[t] != image]))

    @staticmethod
    def chosen(asked: ImageQuestions, found: Tensor) -> tuple[int, float, float]:
        """The likeliest answer, its probability among the answers, and their entropy."""
        ids = sorted({prompt.answer for prompt in asked.prompts if prompt.answer is not None})
        among = (-found[-1, ids]).softmax(-1)
        return ids[int(among.argmax())], float(among.max()), float(-(among * among.log()).sum())


@pytest.fixture(scope="session")
def make_twins() -> type[Twins]:
    return Twins


@pytest.fixture(scope="session")
def twins(llava_folder: Path) -> Twins:
    path = llava_folder / "model"
    eager = transformers.LlavaForConditionalGeneration.from_pretrained(path, attn_implementation="eager").eval()
    return Twins(sg.load(path), eager, sg.load_processor(path))


@pytest.fixture(scope="session")
def pairs(llava_folder: Path) -> list[Question]:
    """Questions of several lengths about six pictures; those about one picture are not adjacent."""
    found = read_questions(llava_folder / "questions.json")
    longer = [replace(q, text=f"Look again. {q.text}") for q in found[1::5]]
    return [*found[::3], *longer]


@pytest.fixture(scope="session")
def asked(twins: Twins, pairs: list[Question]) -> ImageQuestions:
    return sg.image_questions(twins.processor, pairs)


@pytest.fixture(scope="session")
def passes(twins: Twins, asked: ImageQuestions) -> list[One]:
    """A pass of the eager model over each question."""
    targets = asked.matched().targets.tolist()
    return [twins.one(twins.given(asked, i), target) for i, target in enumerate(targets)]


@pytest.fixture(scope="module")
def own(corpus: Corpus) -> SimpleNamespace:
    """Valid arguments by name."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(corpus.tokenizer), n_positions=32, n_embd=24, n_layer=2, n_head=3, attn_pdrop=0.0,
        resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=None, eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    plain = GPT2LMHeadModel(config).eval()
    model = sg.attach(GPT2LMHeadModel(config)).eval()
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 1])
    scores = sg.score(model, probes)
    few = sg.probes(corpus.tokenizer, ["book", "ball"]).take_contexts([0, 1])
    return SimpleNamespace(
        model=model, plain=plain, probes=probes, scores=scores, trace=sg.trace(model, probes), corpus=corpus,
        tokenizer=corpus.tokenizer, texts=["a text"], ids=torch.tensor([[5, 6, 7], [8, 9, 10]]), config=config,
        few=few, few_traced=sg.trace(model, few),
    )  # fmt: skip
