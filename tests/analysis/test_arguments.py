"""Errors about wrong arguments: each message names the argument, what was expected and what came."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import symground as sg
from symground import analysis
from symground.data import Question

IDS, TARGETS = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([3, 4])


#: (function, its arguments, as values or as names of valid ones in ``own``, the message)
# ruff: noqa: E501
WRONG: list[tuple[str, list[Any], str]] = [
    ("probes", ["'gpt2'"], r"tokenizer: expected one of transformers, got str 'gpt2'; symground.load_tokenizer\('gpt2'\)"),
    ("probes", ["model"], "tokenizer: expected one of transformers, got GPT2LMHeadModel"),
    ("probes", ["tokenizer", "'book'"], r"nouns: expected a list of words, such as .*; got str 'book'"),
    ("probes", ["tokenizer", "[1, 2]"], "nouns: expected words, got int 1"),
    ("probes", ["tokenizer", "['book', 'ball']", "['She saw a {}']"], r"contexts: expected pairs \(ENV .* got str 'She saw"),
    ("probes", ["tokenizer", "['book', 'ball']", "3"], r"contexts: expected pairs .* got int 3"),
    ("gain", ["trace"], r"scores: expected a DataFrame as symground.score\(model, probes\) gives it, got Dataset"),
    ("gain", ["model"], "scores: expected a DataFrame .* got GPT2LMHeadModel"),
    ("gain", ["probes"], "scores: expected a DataFrame .* got Probes"),
    ("score", ["tokenizer", "probes"], r"model: expected a model of transformers \(PreTrainedModel\), got"),
    ("score", ["'gpt2'", "probes"], r"got str; symground.load\('gpt2'\) loads one"),
    ("score", ["model", "'a text'"], "words: expected the words to score after the text, got None"),
    ("score", ["model", "probes", "['book']"], "words: expected None with probes, got list"),
    ("score", ["model", "texts"], r"probes: expected what symground.probes\(tokenizer\) makes, got list"),
    ("score", ["model", "ids"], r"probes: expected what .* makes, got Tensor \[2, 3\]"),
    ("score", ["model", "tokenizer"], "probes: expected what .* makes, got"),
    ("lens_read", ["plain", "ids"], "model: expected one made traceable by symground.attach"),
    ("view", ["scores"], "traced: expected what symground.trace.* got DataFrame"),
    ("view", ["trace"], "traced: expected rows to show"),
    ("surprisal", ["tokenizer", "texts"], r"model: expected a model of transformers \(PreTrainedModel\), got"),
    ("surprisal", ["model", "probes", "tokenizer"], "texts: expected a text or a list of them, got Probes"),
    ("surprisal", ["model", "ids", "tokenizer"], r"texts: expected texts with at least one word, got Tensor \[3\] at 0"),
    ("surprisal", ["model", "texts", "corpus"], "tokenizer: expected one of transformers, got Corpus"),
    ("score_to_parquet", ["model", "texts", "'folder'"], "probes: expected what .* got list"),
    ("score_to_parquet", ["probes", "model", "'folder'"], "model: expected a model .* got Probes"),
    ("trace", ["tokenizer", "ids"], "model: expected a model of transformers .* got"),
    ("trace", ["plain", "ids", "ids"], "model: expected one made traceable by symground.attach .* got GPT2LMHeadModel"),
    ("trace", ["model", "ids"], r"targets: expected the ids \[B\] to predict, or a span of the text; got None"),
    ("trace", ["model", "'a text'", "ids"], r"input_ids: expected what symground.probes\(tokenizer\) or .* got str 'a text'"),
    ("trace", ["model", "texts", "ids"], r"input_ids: expected a tensor, an array or lists of numbers .* got list"),
    ("trace", ["model", "scores", "ids"], "input_ids: expected a tensor, an array or lists .* got DataFrame"),
    ("find_heads", ["model", "probes"], r"trace: expected what symground.trace\(model, …\) gives, got GPT2LMHeadModel"),
    ("find_heads", ["scores"], r"trace: expected what .* gives, got DataFrame"),
    ("head_shares", ["probes"], "trace: expected what .* gives, got Probes"),
    ("stability", ["model"], "traced: expected what .* gives, got GPT2LMHeadModel"),
    ("saliency_by_region", ["scores"], "traced: expected what .* gives, got DataFrame"),
    ("intervene", ["model", "ids"], r"probes: expected what symground.probes\(tokenizer\) or .* got Tensor"),
    ("intervene", ["trace", "probes"], "model: expected a model of transformers .* got Dataset"),
    ("sweep_heads", ["model", "ids"], r"targets: expected the ids \[B\] to predict, or a span of the text; got None"),
    ("sweep_heads", ["model", "scores"], r"probes: expected what .* got DataFrame"),
    ("sweep_heads", ["tokenizer", "probes"], "model: expected a model"),
    ("sweep_heads", ["plain", "probes"], "model: expected one made traceable by symground.attach"),
    ("monitor", ["model", "ids"], "probes: expected what .* got Tensor"),
    ("monitor", ["plain", "probes"], "model: expected one made traceable"),
    ("monitor", ["probes", "model"], "model: expected a model"),
    ("steering", ["model", "trace"], "probes: expected what .* got Dataset"),
    ("steering", ["probes", "model"], "model: expected a model"),
    ("steering", ["model", "probes", "2.0"], "factors: expected a list of at least one number, got float 2.0"),
    ("lens_gain", ["model", "ids"], "probes: expected what .* got Tensor"),
    ("lens_gain", ["model", "probes", "model"], "lens: expected a TunedLens, or None .* got GPT2LMHeadModel"),
    ("TunedLens.fit", ["tokenizer", "corpus"], "model: expected a model"),
    ("TunedLens.fit", ["plain", "corpus"], "model: expected one made traceable"),
    ("TunedLens.fit", ["model", "'runs/demo/data'"], r"data: expected a Corpus or ids \[N,T\], got str 'runs/demo/data'"),
    ("TunedLens.fit", ["model", "ids[0]"], r"data: expected a Corpus or ids \[N,T\], got \[3\] torch.int64"),
    ("TunedLens.fit", ["model", "ids[0, 0]"], r"data: expected a Corpus or ids \[N,T\], got \[\] torch.int64"),
    ("TunedLens.fit", ["model", "ids[:, :0]"], r"data: .* got \[2, 0\] torch.int64"),
    ("TunedLens.fit", ["model", "ids + 10**6"], r"data: expected ids from 0 to \d+, the model's vocabulary, got 1000005"),
    ("TunedLens.fit", ["model", "ids.repeat(1, 20)"], "data: expected at most 32 tokens, the model's positions, got 60"),
    ("TunedLens.fit", ["model", "probes"], "data: expected a Corpus .* got Probes"),
    ("attach", ["'gpt2'"], r"model: expected a model .* got str; symground.load\('gpt2'\) loads one"),
    ("attach", ["config"], "model: expected a model .* got GPT2Config"),
    ("detach", ["tokenizer"], "model: expected a model"),
    ("ablate", ["probes", "[(0, 1)]"], "model: expected a model .* got Probes"),
    ("ablate", ["plain", "[(0, 1)]"], "model: expected one made traceable"),
    ("steer", ["ids", "[(0, 1)]", "2.0"], "model: expected a model .* got Tensor"),
    ("trace_memory", ["tokenizer", "9"], "model: expected a model"),
    ("attention", ["tokenizer", "ids"], "model: expected a model"),
    ("attention", ["plain", "ids"], "model: expected one made traceable"),
    ("attention", ["model", "tokenizer"], "input_ids: expected .* got "),
    ("observe", ["tokenizer"], "model: expected a model"),
    ("observe", ["plain"], "model: expected one made traceable"),
    ("observe", ["model", "ids"], "groups: expected a mapping from names"),
    ("attention_memory", ["plain", "ids"], "model: expected one made traceable"),
    ("load", ["model"], "path: expected a folder, a file or a name on the hub, got GPT2LMHeadModel"),
    ("load", ["None"], "path: expected a folder, a file or a name on the hub, got NoneType"),
    ("load_tokenizer", ["model"], "path: expected a folder"),
    ("load_processor", ["3"], "path: expected a folder"),
    ("cooccurrence", ["'data'", "['book']"], r"corpus: expected a symground.data.Corpus .* got str 'data'"),
    ("cooccurrence", ["corpus", "'book'"], "nouns: expected a list of words"),
    ("image_questions", ["tokenizer", "[]"], "processor: expected a vision-language model's, .* got"),
    ("image_questions", ["processor", "'Is it?'"], "questions: expected those that .* got str 'Is it.'"),
    ("image_questions", ["processor", "['Is it?']"], "questions: expected those that .* got str 'Is it.'"),
    ("answers", ["model", "probes"], r"questions: expected what symground.image_questions\(processor, …\) makes, got Probes"),
    ("answers", ["probes", "model"], "model: expected a model"),
    ("pope_scores", ["model"], r"table: expected a DataFrame as symground.answers\(model, questions\) gives it, got GPT2"),
    ("pope_scores", ["scores"], "table: expected a column 'answer'"),
    ("draw_patches", ["'photo.png'", "[]"], r"picture: expected a PIL image or an array .*, got str 'photo.png'"),
    ("report", ["scores"], "path: expected the folder of a study or a run, got DataFrame"),
]  # fmt: skip


def _function(name: str) -> Callable[..., Any]:
    found: Any = sg if hasattr(sg, name.partition(".")[0]) else analysis
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("name", "given", "says"), WRONG, ids=[f"{n}({', '.join(g)})" for n, g, _ in WRONG])
def test_a_wrong_argument_is_named_with_what_was_expected_and_what_came(
    own: SimpleNamespace, llava_processor: object, name: str, given: list[str], says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = [eval(text, {**vars(own), "processor": llava_processor}) for text in given]
    with pytest.raises(ValueError, match=says):
        _function(name)(*arguments)
    assert not list(tmp_path.iterdir())


#: (function, its arguments, a keyword, the numbers at the ends of its range, those just outside)
BOUNDS: list[tuple[str, str, str, list[float], list[float]]] = [
    ("steering", "model, probes, [2.0]", "draws", [1], [0]),
    ("intervene", "model, probes", "draws", [1], [0]),
    ("stability", "trace", "draws", [1], [0]),
    ("cooccurrence", "corpus, ['book']", "window", [1], [0]),
    ("find_heads", "trace", "threshold", [1e-9, 1.0], [0.0, 1.001]),
    ("trace", "model, probes", "batch_size", [1], [0]),
    ("score", "model, probes", "batch_size", [1], [0]),
    ("surprisal", "model, texts, tokenizer", "batch_size", [1], [0]),
    ("TunedLens.fit", "model, corpus", "steps", [1], [0]),
    ("TunedLens.fit", "model, corpus", "batch_size", [1], [0]),
]


@pytest.mark.parametrize(("name", "given", "argument", "taken", "refused"), BOUNDS)
def test_a_number_is_taken_at_its_bound_and_refused_beyond_it(
    own: SimpleNamespace, name: str, given: str, argument: str, taken: list[float], refused: list[float]
) -> None:
    few = {**vars(own), "probes": own.few, "trace": own.few_traced}
    steps = {"steps": 1} if name == "TunedLens.fit" else {}
    arguments = eval(f"({given},)", few)
    for value in taken:
        _function(name)(*arguments, **{**steps, argument: value})
    for value in refused:
        with pytest.raises(ValueError, match=f"{argument}.*: expected"):
            _function(name)(*arguments, **{**steps, argument: value})


def test_every_public_function_is_tried() -> None:
    tried = {name.partition(".")[0] for name, _, _ in WRONG}
    assert set(sg.__all__) - {"ops"} <= tried
    assert dir(sg) == sorted(sg.__all__)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("group", "groups"), ("mask", "attention_mask"), ("row", "rows"), ("saliancy", "saliency"),
        ("target", "targets"), ("batchsize", "batch_size"), ("attn_mask", "attention_mask"),
        ("checkpoints", "checkpoint"), ("positions", "position_ids"), ("position_id", "position_ids"),
        ("token_types", "token_type_ids"),
    ],
)  # fmt: skip
def test_a_misspelt_keyword_is_refused_with_the_nearest(own: SimpleNamespace, name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"symground.trace: '{name}' is neither .*; did you mean '{meant}'") as refusal:
        sg.trace(own.model, IDS, TARGETS, **{name: None})
    assert "GPT2Model" in str(refusal.value)
    with (
        pytest.raises(TypeError, match=f"reference: '{name}' is neither"),
        sg.ablate(own.model, [(0, 1)], "mean", {"input_ids": IDS, name: IDS}),
    ):
        pass


def test_every_keyword_of_the_models_forward_is_taken_or_refused_by_name(own: SimpleNamespace) -> None:
    """A keyword changes a trace as it changes the model, or the trace refuses it and says why."""
    names = [n for n, x in inspect.signature(own.model.base_model.forward).parameters.items() if x.kind < 4]
    caches = {"past_key_values", "cache"}
    assert {"inputs_embeds", "position_ids"} <= set(names)
    assert caches & set(names)
    for name in set(names) - {"attention_mask"} | {"labels", "logits_to_keep", "whatever"}:
        if name in ("input_ids", "inputs_embeds", "use_cache", *caches):
            with pytest.raises((ValueError, TypeError), match=f"{name}"):
                sg.trace(own.model, IDS, TARGETS, **{name: None})
        elif name in names and name not in ("kwargs", "return_dict"):
            sg.trace(own.model, IDS, TARGETS, **{name: None})
        else:
            with pytest.raises((ValueError, TypeError), match=name):
                sg.trace(own.model, IDS, TARGETS, **{name: None})
    shifted = sg.trace(own.model, IDS, TARGETS, position_ids=torch.tensor([[4, 5, 6]] * 2)).surprisal
    with torch.no_grad():
        log_p = own.plain.__class__.forward(own.model, IDS, position_ids=torch.tensor([[4, 5, 6]] * 2)).logits
    expected = -log_p[:, -1].log_softmax(-1)[torch.arange(2), TARGETS]
    np.testing.assert_allclose(shifted, expected, atol=1e-5)


def test_ids_in_any_form(own: SimpleNamespace) -> None:
    expected = sg.trace(own.model, IDS, TARGETS, groups={"first": IDS == 5})
    mask = [[1, 1, 1]] * 2
    for form in (lambda x: x.tolist(), lambda x: x.numpy(), lambda x: x.numpy().astype("uint8"), lambda x: x.int()):
        found = sg.trace(
            own.model, form(IDS), form(TARGETS), form(torch.tensor(mask)), {"first": form((IDS == 5).long())}
        )
        np.testing.assert_allclose(found.saliency, expected.saliency, atol=1e-6)
        np.testing.assert_allclose(found.flow, expected.flow, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input_ids": IDS + 10**6}, r"input_ids: expected ids from 0 to \d+, the model's vocabulary, got 1000005"),
        ({"input_ids": -IDS}, "input_ids: expected ids from 0 .* got -5"),
        ({"input_ids": IDS.float()}, "input_ids: expected token ids, integers .* got torch.float32"),
        ({"input_ids": IDS[:, :0]}, r"input_ids: expected at least one token and one example, got shape \[2, 0\]"),
        ({"input_ids": IDS[:0]}, r"input_ids: expected at least one token and one example, got shape \[0, 3\]"),
        ({"input_ids": IDS[0]}, r"input_ids: expected shape \[B,T\], got \[3\]"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids: expected a tensor, an array or lists of numbers of one length"),
        ({"input_ids": IDS.repeat(1, 20)}, "input_ids: expected at most 32 tokens, the model's positions, got 60"),
        ({"targets": TARGETS + 10**6}, "targets: expected ids from 0"),
        ({"targets": TARGETS[:1]}, r"targets: expected shape \[B\] = \[2\], got \[1\]"),
        ({"targets": torch.tensor(3)}, r"targets: expected shape \[B\], got \[\]"),
        ({"targets": "dog"}, "targets: expected a tensor, an array or lists .* got str 'dog'"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask: expected shape \[2, 3\], got \[2, 4\]"),
        ({"attention_mask": IDS}, "attention_mask: expected 0 and 1 .* got 5"),
        ({"attention_mask": IDS * 0}, "attention_mask: expected at least one valid token"),
        ({"groups": [IDS == 5]}, "groups: expected a mapping from names, got list"),
        ({"groups": {"a": "x"}}, r"groups\['a'\]: expected a tensor"),
        ({"groups": {"a": IDS[0] == 5}}, r"groups\['a'\]: expected shape \[2, 3\], got \[3\]"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1, got 0"),
        ({"past_key_values": object()}, "past_key_values: symground.trace takes none: a text is traced whole"),
        ({"use_cache": True}, "use_cache: symground.trace takes none"),
        ({"input_ids": None}, r"input_ids: expected ids \[B,T\], probes or questions about images, got None"),
        ({"output_attentions": True}, "output_attentions: symground.trace takes none: symground builds no attention"),
    ],
)
def test_what_cannot_be_traced_is_named(own: SimpleNamespace, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        sg.trace(own.model, **{"input_ids": IDS, "targets": TARGETS, **changes})


def test_nothing_beside_probes_is_passed_over(own: SimpleNamespace) -> None:
    for name, value in (("targets", TARGETS), ("attention_mask", IDS > 0), ("groups", {}), ("position_ids", IDS)):
        with pytest.raises(ValueError, match=f"{name}: probes and questions contain their own {name}; leave it out"):
            sg.trace(own.model, own.probes, **{name: value})


def test_models_that_have_no_numbers_to_trace(own: SimpleNamespace) -> None:
    llama = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )  # fmt: skip
    with torch.device("meta"):
        empty = sg.attach(LlamaForCausalLM(llama).eval())
    small, targets = torch.tensor([[3, 4]]), torch.tensor([5])
    for call in (lambda: sg.trace(empty, small, targets), lambda: sg.score(empty, own.probes)):
        with pytest.raises(ValueError, match="model: its weights are on the meta device, which holds no numbers; load"):
            call()
    quantised = sg.attach(LlamaForCausalLM(llama).eval())
    quantised.lm_head.weight = torch.nn.Parameter(quantised.lm_head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"model: expected a vocabulary head with floating-point .* got torch.int8; quant"
    ):
        sg.trace(quantised, small, targets)
    dynamic = torch.ao.quantization.quantize_dynamic(sg.attach(LlamaForCausalLM(llama).eval()))
    with pytest.raises(ValueError, match="model: expected a vocabulary head .* got Linear"):
        sg.trace(dynamic, small, targets)


def test_a_wrapper_says_where_the_model_is(own: SimpleNamespace) -> None:
    """The wrapper behaves like peft's: it forwards every attribute of the model that it wraps."""

    class Wrapper(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.base_model = model

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("base_model"), name)

        def get_base_model(self) -> torch.nn.Module:
            return self.base_model

    wrapped = Wrapper(own.model)
    for call in (lambda m: sg.trace(m, IDS, TARGETS), sg.attach, lambda m: sg.score(m, own.probes)):
        with pytest.raises(
            ValueError, match=r"got Wrapper; peft's wrapper holds one, with its adapters: model.get_base"
        ):
            call(wrapped)
        call(wrapped.get_base_model())
    with pytest.raises(ValueError, match="torch.compile's wrapper holds one"):
        sg.attach(torch.compile(own.plain))
    with pytest.raises(ValueError, match="this wrapper holds one: model.module"):
        sg.attach(torch.nn.DataParallel(own.plain))


def test_a_prompt_that_peft_has_learnt_is_not_left_out(own: SimpleNamespace) -> None:
    """Its tokens are in the wrapper, so that the model inside would be traced without them."""
    import peft

    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="the prompt that peft has learnt is in this wrapper"):
        sg.attach(peft.get_peft_model(copy.deepcopy(own.plain), settings))


def test_a_model_under_a_real_peft(own: SimpleNamespace) -> None:
    import peft

    model = peft.get_peft_model(own.plain, peft.LoraConfig(target_modules=["c_attn"], init_lora_weights=False))
    with pytest.raises(ValueError, match=r"model.get_base_model\(\)"):
        sg.trace(model, IDS, TARGETS)
    inner = sg.attach(model.get_base_model()).eval()
    with torch.no_grad():
        expected = -model(IDS).logits[:, -1].log_softmax(-1)[torch.arange(2), TARGETS]
    np.testing.assert_allclose(sg.trace(inner, IDS, TARGETS).surprisal, expected, atol=1e-5)
    model.unload()


def test_a_tokenizer_of_another_model(own: SimpleNamespace) -> None:
    torch.manual_seed(0)
    other = sg.attach(GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=24, n_layer=1, n_head=3)).eval())
    for call in (sg.score, sg.trace, sg.sweep_heads, sg.intervene, sg.monitor, sg.steering, sg.lens_gain):
        with pytest.raises(ValueError, match="is outside the model's vocabulary of 20; is this its tokenizer"):
            call(other, own.probes)
    with pytest.raises(
        ValueError, match=r"data: expected ids from 0 to 19, the model's vocabulary, .* is this its token"
    ):
        sg.TunedLens.fit(other, own.corpus)


def test_a_study_of_questions_is_none_of_words(
    own: SimpleNamespace, llava_processor: object, llava_folder: Path
) -> None:
    asked = sg.image_questions(
        llava_processor, [Question(str(llava_folder / "0.png"), "Is it?", a) for a in ("yes", "no")]
    )
    for call in (sg.score, sg.sweep_heads, sg.lens_gain):
        with pytest.raises(
            ValueError, match="probes: expected probes, got questions about images; those are for trace"
        ):
            call(own.model, asked)
    assert isinstance(own.scores, pd.DataFrame)
