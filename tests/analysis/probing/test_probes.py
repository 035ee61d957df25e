"""Probes, their scores and the gain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

import symground as sg
from symground.analysis import gain_interval
from symground.analysis.probing.contexts import Context, context_of, read_contexts, with_gap
from symground.data import Corpus
from symground.data.vision import prompts
from symground.models import create


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> PreTrainedModel:
    return create("gpt2-4l", len(corpus.tokenizer), positions=32).eval()


def test_a_probe_is_the_studys_form(corpus: Corpus) -> None:
    probes = sg.probes(corpus.tokenizer, ["book", "ball"], [("takes {} from MOT", "what's that a")])
    text = corpus.tokenizer.decode(probes.rows[0][0].ids)
    assert text == "<CHI> takes:<ENV> book:<ENV> from:<ENV> MOT:<ENV> <CHI> what's:<LAN> that:<LAN> a:<LAN>"
    assert corpus.tokenizer.decode(probes.targets[0]) == "book:<LAN>"
    examples = probes.with_span(1).matched()
    assert examples.prediction.tolist() == [8, 8]
    assert examples.key_masks["env"][0].nonzero().flatten().tolist() == [2, 3]
    assert examples.key_masks["event"][0].nonzero().flatten().tolist() == [0, 1]
    assert examples.query_masks["env"][0].nonzero().flatten().tolist() == [2]


def test_default_probes_are_the_packages_contexts_and_the_known_nouns(corpus: Corpus) -> None:
    probes = sg.probes(corpus.tokenizer)
    assert probes.nouns == ("box", "book", "ball", "hand", "paper", "table")
    assert len(probes.contexts) == 10
    assert len(probes) == 60


def test_missing_words_are_all_named(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"not in it: unicorn:<ENV>, unicorn:<LAN>, zaps:<ENV>$"):
        sg.probes(corpus.tokenizer, ["book", "unicorn"], [("zaps {}", "a")])
    with pytest.raises(ValueError, match="at least two"):
        sg.probes(corpus.tokenizer, ["book"])
    with pytest.raises(ValueError, match="contexts: expected each context once, got .takes"):
        sg.probes(corpus.tokenizer, contexts=[("takes {}", "a"), ("puts {}", "a"), ("takes {}", "a")])
    with pytest.raises(ValueError, match="span: expected an integer from 0 to"):
        sg.probes(corpus.tokenizer, span=99)


def test_contexts_from_a_file(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "contexts.json"
    path.write_text(json.dumps({"env": ["looks at {}"], "lan": ["that's a"]}))
    assert sg.probes(corpus.tokenizer, contexts=path).contexts == (Context("looks at {}", "that's a"),)
    for bad in ("[", "[]", '[{"env": "x"}]', '[{"env": "no slot", "lan": "a"}]'):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"contexts: .*contexts\.json"):
            sg.probes(corpus.tokenizer, contexts=path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        sg.probes(corpus.tokenizer, contexts=tmp_path / "none.json")


def test_score_is_minus_log_softmax_one_pair_at_a_time(corpus: Corpus, model: PreTrainedModel) -> None:
    probes = sg.probes(corpus.tokenizer)
    scores = sg.score(model, probes)
    assert list(scores.columns) == ["context", "env", "target", "surprisal"]
    assert len(scores) == 10 * 6 * 6
    vocabulary = corpus.tokenizer.get_vocab()
    for row in scores.sample(25, random_state=0).itertuples():
        ids = torch.tensor(probes.rows[row.context][probes.nouns.index(row.env)].ids)
        log_p = torch.log_softmax(model(ids[None]).logits[0, -1].double(), -1)
        assert row.surprisal == pytest.approx(-log_p[vocabulary[f"{row.target}:<LAN>"]].item(), abs=1e-4)
    one_by_one = sg.score(model, probes, batch_size=1)
    np.testing.assert_allclose(one_by_one["surprisal"], scores["surprisal"], atol=1e-5)


def test_scores_refuse_what_the_model_cannot_read(corpus: Corpus, gpt2: GPT2LMHeadModel) -> None:
    probes = sg.probes(corpus.tokenizer)
    with pytest.raises(ValueError, match="is outside the model's vocabulary of 101"):
        sg.score(gpt2, probes)
    short = create("gpt2-4l", len(corpus.tokenizer), positions=5)
    with pytest.raises(ValueError, match="probes: expected at most 5 tokens, the model.s positions, got"):
        sg.score(short, probes)
    broken = create("gpt2-4l", len(corpus.tokenizer), positions=32)
    torch.nn.init.constant_(broken.transformer.ln_f.weight, float("nan"))
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel gives NaN for 'box' after context \d \('"):
        sg.score(broken, probes)


def test_gain_by_hand() -> None:
    scores = pd.DataFrame(
        [
            (0, "a", "a", 1.0), (0, "b", "a", 3.0), (0, "c", "a", 5.0),
            (0, "a", "b", 7.0), (0, "b", "b", 2.0), (0, "c", "b", 2.0),
            (1, "a", "a", 2.0), (1, "b", "a", 4.0), (1, "c", "a", 6.0),
            (1, "a", "b", 8.0), (1, "b", "b", 3.0), (1, "c", "b", 1.0),
        ],
        columns=["context", "env", "target", "surprisal"],
    )  # fmt: skip
    table = sg.gain(scores).set_index("target")
    means = ["matched", "mismatched", "gain"]
    assert table.loc["a", means].tolist() == [1.5, 4.5, 3.0]
    assert table.loc["b", means].tolist() == [2.5, 4.5, 2.0]
    assert table.loc["a", ["gain_low", "gain_high"]].tolist() == [3.0, 3.0]  # the same in both contexts
    for name, (low, high) in {"matched": (2, 3), "gain": (1.5, 2.5)}.items():  # in one context and in the other
        assert low <= table.loc["b", f"{name}_low"] < table.loc["b", name] < table.loc["b", f"{name}_high"] <= high
    of_one = sg.gain(scores[scores["context"] == 0]).set_index("target")
    assert of_one.loc["a", "gain"] == 3.0
    assert of_one[["gain_low", "matched_high"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="no matched or no mismatched score for b"):
        sg.gain(scores[(scores["target"] == "a") | (scores["env"] != "b")])
    with pytest.raises(ValueError, match="expected a column 'env'"):
        sg.gain(scores.drop(columns="env"))


def test_the_interval_holds_the_mean_and_covers() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(40):
        mean, low, high = gain_interval(pd.DataFrame({"gain": rng.normal(1.0, 1.0, 40)}))
        assert low < mean < high
        covered += low < 1.0 < high
    assert covered >= 34


def test_what_comes_between_stands_between(corpus: Corpus) -> None:
    contexts = with_gap([Context("takes {}", "what's that a"), Context("drops {}", "see the")], 2)
    plain = sg.probes(corpus.tokenizer, ["book", "ball"], [Context("takes {}", "what's that a")])
    probes = sg.probes(corpus.tokenizer, ["book", "ball"], contexts)
    words, before = (corpus.tokenizer.decode(p.rows[0][0].ids).split() for p in (probes, plain))
    assert words[:3] == before[:3] == ["<CHI>", "takes:<ENV>", "book:<ENV>"]
    assert words[-4:] == before[-4:]
    between = [word for utterance in contexts[0].between for word in utterance.tokens()]
    assert words[3:-4] == between
    assert sum(word.startswith("<") for word in between) == 2
    assert not any(word.rpartition(":")[0] in probes.nouns for word in between)
    # A context always has the same gap; another context has another.
    assert with_gap([Context("takes {}", "what's that a")], 2) == contexts[:1]
    assert contexts[0].between != contexts[1].between


def test_a_gap_from_a_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "contexts.json"
    contexts = with_gap([Context("takes {}", "what's that a")], 3)
    path.write_text(json.dumps([{"env": c.env, "lan": c.lan, "between": c.between} for c in contexts]))
    assert read_contexts(path) == contexts
    assert [context_of(json.loads(json.dumps(c))) for c in contexts] == contexts
    for bad in (["CHI", "both", "hello"], ["CHI", "lan", "the {}"]):
        path.write_text(json.dumps([{"env": "takes {}", "lan": "a", "between": [bad]}]))
        with pytest.raises(ValueError, match=r"between: expected \(speaker, 'env' or 'lan', text\) without {}"):
            read_contexts(path)


WRONG = (None, True, 1, 1.5, float("inf"), "", [], [1, 2], ["a"], {}, {"ka": 1}, 10**30)
WHOLE = {"env": "takes {}", "lan": "the", "between": [["MOT", "lan", "a b"]], "speakers": ["MOT", "CHI"], "cue": "env"}
#: A place in a file of contexts → how to fill it, the words of its error, and values of WRONG that are valid there.
PLACES: dict[str, tuple[Callable[[Any], Any], str, list[Any]]] = {
    "file": (lambda x: x, "(expected a list of|expected at least one context|context 1: expected)", []),
    "context": (lambda x: [WHOLE, x], 'context 2: (expected {"env"|has no .env)', []),
    "env": (lambda x: [{**WHOLE, "env": x}], "context 1: (env: expected text|expected one {})", []),
    "lan": (lambda x: [{**WHOLE, "lan": x}], "context 1: (lan: expected text|expected one {})", []),
    "between": (lambda x: [{**WHOLE, "between": x}], "between: expected .*speaker, .* got", [[]]),
    "utterance": (lambda x: [{**WHOLE, "between": [x]}], "between: expected .*speaker, .* got", []),
    "who": (lambda x: [{**WHOLE, "between": [[x, "lan", "a b"]]}], "between: expected .*speaker, .* got", [""]),
    "tier": (lambda x: [{**WHOLE, "between": [["MOT", x, "a b"]]}], "between: expected .*speaker, .* got", []),
    "said": (lambda x: [{**WHOLE, "between": [["MOT", "lan", x]]}], "between: expected .*speaker, .* got", [""]),
    "speakers": (lambda x: [{**WHOLE, "speakers": x}], "speakers: expected two speakers, got", []),
    "speaker": (lambda x: [{**WHOLE, "speakers": ["MOT", x]}], "speakers: expected two speakers, got", [""]),
    "cue": (lambda x: [{**WHOLE, "cue": x}], "cue: expected 'env', 'lan' or 'image', got", []),
    "columns": (lambda x: {"env": x, "lan": ["the"]}, "expected", []),
    "of a column": (lambda x: {"env": ["a {}", x], "lan": ["the", "a"]}, "context 2: (env: expected|expected one)", []),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_every_place_of_a_file_of_contexts_at_every_wrong_type(tmp_path: Path, place: str) -> None:
    path = tmp_path / "contexts.json"
    put, message, right = PLACES[place]
    path.write_text(json.dumps([WHOLE]))
    assert [list(json.loads(json.dumps(context)))[:2] for context in read_contexts(path)] == [["takes {}", "the"]]
    for value in WRONG:
        path.write_text(json.dumps(put(value)))
        if value in right:
            assert len(read_contexts(path)) == 1
        else:
            with pytest.raises(ValueError, match=rf"^contexts: {path}.*{message}"):
                read_contexts(path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000], ids=["cut", "encoding", "deep"])
def test_a_file_of_contexts_that_is_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "contexts.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^contexts: .*contexts\.json: not JSON"):
        read_contexts(tmp_path / "contexts.json")


def test_a_spoken_cue_is_the_control_for_recall(corpus: Corpus) -> None:
    contexts = [Context("looks at the {}", "what's that a")]
    with pytest.raises(ValueError, match="not in it: looks:<LAN>$"):
        sg.probes(corpus.tokenizer, ["book", "ball"], [Context("looks at the {}", "what's that a")], cue="lan")
    contexts = [Context("look at the {}", "what's that a")]
    probes = sg.probes(corpus.tokenizer, ["book", "ball"], contexts, cue="lan")
    text = corpus.tokenizer.decode(probes.rows[0][0].ids)
    assert text == "<CHI> look:<LAN> at:<LAN> the:<LAN> book:<LAN> <CHI> what's:<LAN> that:<LAN> a:<LAN>"
    assert probes.contexts[0].cue == "lan"
    assert probes.matched().key_masks["env"][0].nonzero().flatten().tolist() == [4]
    assert context_of(json.loads(json.dumps(probes.contexts[0]))) == probes.contexts[0]
    with pytest.raises(ValueError, match="cue: expected one of 'env', 'lan', 'image'; got 'both'"):
        sg.probes(corpus.tokenizer, cue="both")


def test_a_noun_may_be_called_otherwise(corpus: Corpus, model: PreTrainedModel) -> None:
    contexts = [Context("takes {} from MOT", "what's that a")]
    plain = sg.probes(corpus.tokenizer, ["book", "ball", "hand"], contexts)
    probes = sg.probes(corpus.tokenizer, ["book", "ball", "hand"], contexts, spoken={"book": "ball"})
    assert probes.spoken == ("ball", "ball", "hand")
    assert [corpus.tokenizer.decode(ids) for ids in probes.targets] == ["ball:<LAN>", "ball:<LAN>", "hand:<LAN>"]
    assert probes.rows == plain.rows
    # Book and ball share a spoken word, so neither is a mismatch of the other.
    assert probes.pairs.tolist() == [[True, False, True], [False, True, True], [True, True, True]]
    scores = sg.score(model, probes)
    assert len(scores) == 7
    assert set(sg.gain(scores)["target"]) == {"book", "ball", "hand"}
    assert probes.fingerprint() != plain.fingerprint()
    with pytest.raises(ValueError, match="not in it: unicorn:<LAN>"):
        sg.probes(corpus.tokenizer, ["book", "ball"], contexts, spoken={"book": "unicorn"})
    with pytest.raises(ValueError, match="spoken: expected at least two different words"):
        sg.probes(corpus.tokenizer, ["book", "ball"], contexts, spoken={"book": "ball"})


def test_a_tokenizer_that_panics_names_the_text() -> None:
    """Rust's panics are not Exceptions in Python; this regular expression panics on a long word."""
    model = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model)
    long = "a" * 30 + "b"
    with pytest.raises(ValueError, match=f"tokenizer: it fails on 'see {long}.*retry-limit"):
        sg.probes(tokenizer, ["a", long], [("see {}", "the")])
    processor = SimpleNamespace(tokenizer=tokenizer)
    with pytest.raises(ValueError, match=f"processor: its tokenizer fails on '{long}'.*retry-limit"):
        prompts._tokens(processor, long)
