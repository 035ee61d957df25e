"""``symground probe``: the study's questions of a model that was trained elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import symground as sg
from symground.analysis.results import read_table
from symground.analysis.run import ANALYSES, MeasureSettings, Subject, analyses, costs, estimated
from symground.cli import main
from symground.recipes import pretrained
from tests.analysis.subwords import subword_tokenizer, tiny
from tests.study.cli.tiny_study import fails

NOUNS = ("book", "ball", "cup")
CONTEXTS = [["the child holds a {}", "look at the"], ["where is the {}", "this is the"], ["a {} is there", "take the"]]
FEW = ["--draws", "2", "--lens-fit", "2", "--threshold", "0.2", "--map-nouns", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = subword_tokenizer()
    tiny("Llama", len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path.parent / "nouns.txt").write_text("\n".join(NOUNS))
    named = [dict(zip(("env", "lan"), pair, strict=True)) for pair in CONTEXTS]
    (path.parent / "contexts.json").write_text(json.dumps(named))
    return path


def options(folder: Path, out: Path, *more: str) -> list[str]:
    given = ["--nouns", str(folder.parent / "nouns.txt"), "--contexts", str(folder.parent / "contexts.json")]
    return ["probe", str(folder), *given, "--out", str(out), *FEW, *more]


@pytest.fixture(scope="module")
def probed(folder: Path, tmp_path_factory: Any) -> Path:
    out: Path = tmp_path_factory.mktemp("runs") / "tiny-llama"
    assert main(options(folder, out)) == 0
    return out


def test_every_analysis_fills_its_tables_under_the_models_name(probed: Path) -> None:
    for tables in ANALYSES.values():
        for name in tables:
            table = read_table(probed, name)
            if name == "r2":  # there is no training corpus to count in
                assert table.empty
                continue
            assert set(table["model"]) == {"tiny-llama"}, name
            assert set(table["seed"]) == set(table["step"]) == {0}, name
    table = read_table(probed, "interventions")
    assert table[["selection", "match"]].to_numpy().tolist() == [["held-out", "none"], ["held-out", "layer"]]
    assert table["examples"].eq(len(NOUNS) * len(CONTEXTS)).all()
    assert (probed / "report.html").is_file()
    assert not any(probed.glob("results/partial/*"))


def test_the_gain_is_that_of_the_words_in_transformers_own_model(probed: Path, folder: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def surprisal(env: str, lan: str, noun: str, target: str) -> float:
        before = tokenizer(f"{env.format(noun)}. {lan}", add_special_tokens=False)["input_ids"]
        whole = tokenizer(f"{env.format(noun)}. {lan} {target}", add_special_tokens=False)["input_ids"]
        assert whole[: len(before)] == before
        with torch.no_grad():
            logp = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return -sum(float(logp[i - 1, whole[i]]) for i in range(len(before), len(whole)))

    found = read_table(probed, "gain").set_index("target")
    for target in NOUNS:
        each = [[surprisal(env, lan, noun, target) for env, lan in CONTEXTS] for noun in NOUNS]
        matched = np.mean(each[NOUNS.index(target)])
        mismatched = np.mean([x for noun, x in zip(NOUNS, each, strict=True) if noun != target])
        assert found.loc[target, "matched"] == pytest.approx(matched, abs=1e-4)
        assert found.loc[target, "gain"] == pytest.approx(mismatched - matched, abs=1e-4)


def test_a_second_call_computes_nothing(probed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(pretrained, "load", loaded)
    assert main(options(folder, probed)) == 0


def test_an_interrupted_intervention_keeps_its_finished_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: Path
) -> None:
    asked: list[Any] = []
    real = analyses.intervene

    def interrupted(*args: Any, **more: Any) -> pd.DataFrame:
        asked.append(more["match"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(analyses, "intervene", interrupted)
    out = tmp_path / "again"
    assert main(options(folder, out, "--what", "interventions")) == 1
    assert read_table(out, "interventions").empty
    assert main(options(folder, out, "--what", "interventions")) == 0
    assert asked == [None, "layer", "layer"]
    found, whole = (read_table(x, "interventions") for x in (out, probed))
    pd.testing.assert_frame_equal(found, whole)


def test_plan_says_the_time_of_each_analysis_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(folder, tmp_path / "out", "--plan")) == 0
    said = capsys.readouterr().err
    for name in ANALYSES:
        assert f"{name} 0:" in said
    assert not (tmp_path / "out").exists()


def test_the_estimate_counts_what_the_analyses_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that ticks once for each token that the model reads, estimates are the numbers of tokens."""
    model, tokenizer = sg.load(folder), sg.load_tokenizer(folder)
    probes = sg.probes(tokenizer, [*NOUNS, *(f"{a}{b}" for a in NOUNS for b in ("s", "case", "mark"))], CONTEXTS)
    settings = MeasureSettings(
        draws=7,
        threshold=0.2,
        match=("none", "layer"),
        spans=(0,),
        lens_fit=1,
        kinds=("aggregate",),
        denominators=("row",),
    )
    subject = Subject(
        tmp_path, "tiny", 0, 0, probes, None, settings, lambda: model, lambda: None, lambda ids: [str(i) for i in ids]
    )  # type: ignore[arg-type, return-value]
    ticks = 0.0

    def read(_: Any, args: Any, given: Any) -> None:
        nonlocal ticks
        ticks += (given["input_ids"] if "input_ids" in given else args[0]).numel()

    model.model.register_forward_pre_hook(read, with_kwargs=True)
    monkeypatch.setattr(costs.time, "perf_counter", lambda: ticks)
    expected = estimated(subject)
    for name in ("saliency", "interventions", "monitor"):  # the others do not call the model as a whole
        before = ticks
        analyses.RUN[name][1](subject)
        assert expected[name] == pytest.approx(ticks - before, rel=0.25), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--categories", "beasts"], "categories: expected some of"),
        (["--nouns", "nowhere.txt"], "nouns: expected 'study', 'cdi' or a file, nowhere.txt does not exist"),
        (["--contexts", "nowhere.json"], "contexts: nowhere.json does not exist"),
        (["--text", "nowhere.txt"], "text: nowhere.txt does not exist"),
        (["--text", "."], "text: expected a file, got the folder ."),
        (["--text", "BLANK"], "text: expected a file with words, got "),
        (["--intervene-contexts", "1"], "contexts: interventions with --selection held-out need at least two"),
        (["--spoken", "nowhere.json"], "spoken: nowhere.json does not exist"),
        (["--device", "tpu"], "device: "),
        (["--nouns", "."], "nouns: expected 'study', 'cdi' or a file, . is a folder"),
        (["--spoken", "SPOKEN", '["cup"]'], "the file: expected"),
        (["--spoken", "SPOKEN", '{"book": 1}'], "spoken: expected words, got int 1"),
        (["--spoken", "SPOKEN", '{"book": " "}'], "spoken: expected words, got str ' '"),
        (["--spoken", "SPOKEN", '{"zebra": "z"}'], "spoken: expected only nouns of the list as names, got 'zebra'"),
        (["--out", "FILE"], "out: expected a folder, or a name for one, got the file"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_weights_load(
    folder: Path, tmp_path: Path, change: list[str], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(pretrained, "load", lambda *_, **__: pytest.fail("the weights were loaded"))
    if "SPOKEN" in change:
        *change, text = change
        (tmp_path / "spoken.json").write_text(text)
    (tmp_path / "file").write_text("mine")
    places = {"SPOKEN": str(tmp_path / "spoken.json"), "FILE": str(tmp_path / "file"), "BLANK": str(tmp_path / "blank")}
    (tmp_path / "blank").write_text(" \n\n")
    assert said in fails(options(folder, tmp_path / "out", *(places.get(x, x) for x in change)), capsys)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "out").exists()
    assert "limit: expected an integer of at least 2" in fails(options(folder, tmp_path, "--limit", "1"), capsys, 2)


def models() -> dict[str, Any]:
    """Models that see a word before it is predicted, read their text by an encoder, or have too few positions."""
    vocabulary = len(subword_tokenizer())
    small = {"vocab_size": vocabulary, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16}  # fmt: skip
    two = {"vocab_size": vocabulary, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
           "encoder_attention_heads": 2, "decoder_attention_heads": 2}  # fmt: skip
    t5 = transformers.T5Config(vocab_size=vocabulary, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    short = transformers.GPT2Config(vocab_size=vocabulary, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    return {
        "sees later tokens": transformers.BertForMaskedLM(transformers.BertConfig(**small)),
        "is an encoder-decoder": transformers.BartForConditionalGeneration(transformers.BartConfig(**two)),
        "expected a causal language model": transformers.T5ForConditionalGeneration(t5),
        "expected at most 8 tokens, the model's positions": transformers.GPT2LMHeadModel(short),
    }


@pytest.mark.parametrize("said", models())
def test_a_model_that_cannot_be_probed(
    said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models()[said].save_pretrained(tmp_path / "model")
    subword_tokenizer().save_pretrained(tmp_path / "model")
    asked = options(folder, tmp_path / "out")
    asked[1] = str(tmp_path / "model")
    error = fails(asked, capsys)
    assert said in error
    assert len(error) < 600
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_results_is_refused(
    probed: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "other settings: threshold is 0.2 there, 0.5 here" in fails(
        options(folder, probed, "--threshold", "0.5"), capsys
    )
    assert "limit is 20 there, 2 here; another nouns" in fails(
        options(folder, probed, "--limit", "2", "--again"), capsys
    )
    (tmp_path / "notes.txt").write_text("mine")
    assert "has other files" in fails(options(folder, tmp_path), capsys)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_again_takes_other_settings_of_an_analysis(probed: Path, folder: Path, tmp_path: Path) -> None:
    out = shutil.copytree(probed, tmp_path / "out")
    assert main(options(folder, out, "--draws", "3", "--what", "interventions", "--again")) == 0
    assert read_table(out, "interventions")["draws"].eq(3).all()
    for name in ("gain", "sweep"):
        pd.testing.assert_frame_equal(read_table(out, name), read_table(probed, name))


def test_words_that_stand_for_others(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "spoken.json").write_text('{"book": "cup", "ball": "book", "cup": "ball"}')
    out = tmp_path / "out"
    assert main(options(folder, out, "--spoken", str(tmp_path / "spoken.json"), "--what", "surprisal")) == 0
    expected = sg.gain(sg.score(sg.load(folder), sg.probes(
        sg.load_tokenizer(folder), NOUNS, CONTEXTS, spoken={"book": "cup", "ball": "book", "cup": "ball"}
    )))  # fmt: skip
    found = read_table(out, "gain").set_index("target")["gain"]
    assert found.to_dict() == pytest.approx(expected.set_index("target")["gain"].to_dict(), abs=1e-5)
