"""Training is seeded and resumable, and does not overwrite other runs."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

import symground as sg
from symground.data import Corpus
from symground.data.sequences import RowSampler
from symground.files import checkpoint_folder, checkpoint_steps
from symground.running import free_memory, keep_freed_memory, return_freed_memory
from symground.training import Hardware, TrainSettings, train
from symground.training import step as step_of
from symground.training.checkpoints import resume_folders
from symground.training.step import Done, Trainer

pytestmark = pytest.mark.trains
TINY = TrainSettings(model="lstm-1l", steps=12, batch_size=4, length=16, checkpoints="0,4,8")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def losses(run: Path) -> list[tuple[int, float]]:
    return [(m["step"], m["loss"]) for m in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


@pytest.mark.parametrize("model", ["lstm-1l", "gpt2-4l"])
def test_two_runs_of_one_seed_are_alike_to_the_bit(corpus: Corpus, tmp_path: Path, model: str) -> None:
    settings = replace(TINY, model=model)
    for name in ("a", "b"):
        train(corpus, settings, tmp_path / name / "seed0")
    first, second = (checkpoint_folder(tmp_path / name / "seed0", 12) for name in ("a", "b"))
    assert weights(first) == weights(second)
    assert losses(tmp_path / "a" / "seed0") == losses(tmp_path / "b" / "seed0")
    train(corpus, replace(settings, seed=1), tmp_path / "c" / "seed1")
    assert weights(checkpoint_folder(tmp_path / "c" / "seed1", 12)) != weights(first)


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training resumes from the newest undamaged state, or from the beginning if both are damaged."""
    settings, often = replace(TINY, model="gpt2-4l"), Hardware(resume_every=0)
    train(corpus, settings, tmp_path / "whole")
    step = Trainer.step

    def interrupt(trainer: Trainer, inputs: torch.Tensor, targets: torch.Tensor, rate: float) -> Done:
        if len(resume_folders(tmp_path / "cut")) == 2 and not checkpoint_folder(tmp_path / "cut", 12).exists():
            steps.append(1)
            if len(steps) == 8:
                raise MemoryError
        return step(trainer, inputs, targets, rate)

    steps: list[int] = []
    monkeypatch.setattr(Trainer, "step", interrupt)
    with pytest.raises(MemoryError):
        train(corpus, settings, tmp_path / "cut", often)
    monkeypatch.setattr(Trainer, "step", step)
    assert [path.name for path in resume_folders(tmp_path / "cut")] == ["step-00000008", "step-00000009"]
    for state in resume_folders(tmp_path / "cut")[::-1][:damaged]:
        content = bytearray((state / "state.safetensors").read_bytes())
        content[len(content) // 2] ^= 1
        (state / "state.safetensors").write_bytes(content)
    if damaged:
        checkpoint = checkpoint_folder(tmp_path / "cut", 8) / "model.safetensors"
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    train(corpus, settings, tmp_path / "cut", often)
    said = capsys.readouterr().err
    for number, step_of_state in enumerate(("step-00000009", "step-00000008")):
        text = f"{step_of_state} is damaged (state.safetensors has another checksum"
        assert (number < damaged) == (text in said)
    assert (damaged > 0) == ("step-00000008 is damaged (model.safetensors has another" in said)
    assert (damaged == 2) == ("all resume states are damaged; training starts from step 0 again" in said)
    assert weights(checkpoint_folder(tmp_path / "cut", 12)) == weights(checkpoint_folder(tmp_path / "whole", 12))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_finished_run_is_left_and_another_config_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, TINY, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    train(corpus, TINY, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    with pytest.raises(ValueError, match=r"other settings: length is 16 there, 8 here"):
        train(corpus, replace(TINY, length=8), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["settings"] == asdict(TINY)


def test_a_finished_run_needs_no_resume_state(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, TINY, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    model = train(corpus, TINY, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "resume").exists()
    assert not model.training


def test_checkpoints_load_and_missing_ones_list_those_there_are(corpus: Corpus, tmp_path: Path) -> None:
    trained = train(corpus, TINY, tmp_path)
    ids = torch.from_numpy(np.array(corpus.tokens[None, :8], dtype=np.int64))
    assert torch.equal(sg.load(tmp_path)(ids).logits, trained(ids).logits)
    assert not torch.equal(sg.load(tmp_path, step=4)(ids).logits, trained(ids).logits)
    with pytest.raises(ValueError, match="has checkpoints at 0, 4, 8, 12; got 5"):
        sg.load(tmp_path, step=5)
    damaged = checkpoint_folder(tmp_path, 8) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(ValueError, match="step-00000008: damaged, model.safetensors has another checksum"):
        sg.load(tmp_path, step=8)
    with pytest.raises(ValueError, match="is not a run"):
        sg.load(checkpoint_folder(tmp_path, 4), step=4)


@pytest.mark.parametrize("what", ["loss", "norm"])
def test_a_loss_or_gradient_that_is_not_finite_stops_and_names_the_step(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    step, calls = Trainer.step, []

    def wrong(*args: object) -> Done:
        calls.append(1)
        done = step(*args)  # type: ignore[arg-type]
        return done._replace(**{what: torch.tensor(float("nan"))}) if len(calls) == 6 else done

    monkeypatch.setattr(Trainer, "step", wrong)
    with pytest.raises(
        ValueError, match="the loss or its gradient is not finite at step 6; earlier checkpoints are kept"
    ):
        train(corpus, TINY, tmp_path, Hardware(resume_every=1e9))
    assert checkpoint_steps(tmp_path) == [0, 4]
    assert not (tmp_path / "resume").exists()


@given(st.integers(1, 5), st.integers(2, 40), st.integers(0, 1000), st.integers(0, 5))
def test_rows_stay_inside_their_document(batch: int, length: int, step: int, seed: int) -> None:
    documents = np.array([0, 7, 20, 50])
    tokens = np.arange(100, 150, dtype=np.int32)
    sampler = RowSampler(tokens, documents, np.array([0, 3, 7, 11, 20, 45]), batch, length, seed, padding=1)
    inputs, targets = sampler.batch(step)
    again = sampler.batch(step)
    assert torch.equal(inputs, again[0])
    assert inputs.shape == targets.shape == (batch, length)
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        start = row[0] - 100
        assert start in (0, 3, 7, 11, 20, 45)
        end = int(documents[np.searchsorted(documents, start, side="right")])
        text = list(range(100 + start, 100 + end))
        assert row == (text + [1] * length)[:length]
        assert target == (text[1:] + [-100] * length)[:length]


@pytest.mark.parametrize("model", ["gpt2-4l", "mamba2-4l"])
def test_parts_of_a_step_add_up_to_the_whole(corpus: Corpus, tmp_path: Path, model: str) -> None:
    settings = replace(TINY, model=model, steps=3)
    whole = train(corpus, settings, tmp_path / "whole")
    parts = train(corpus, settings, tmp_path / "parts", Hardware(accumulate=4))
    for (name, ours), other in zip(parts.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-5, msg=name)


def test_bfloat16_trains_close_to_float32_and_keeps_its_weights_in_it(corpus: Corpus, tmp_path: Path) -> None:
    settings = replace(TINY, model="gpt2-4l", steps=20, checkpoints="0")
    train(corpus, settings, tmp_path / "float32")
    half = train(corpus, replace(settings, precision="bfloat16"), tmp_path / "bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    ours, other = losses(tmp_path / "bfloat16"), losses(tmp_path / "float32")
    assert ours != other
    np.testing.assert_allclose([x for _, x in ours], [x for _, x in other], rtol=0.02)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_logits_of_a_step_are_made_as_a_whole_up_to_a_size(
    gpt2: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    asked: list[str | None] = []
    whole = step_of.ops.linear_cross_entropy
    monkeypatch.setattr(step_of.ops, "linear_cross_entropy", lambda *a, impl, **k: asked.append(impl) or whole(*a, **k))
    rows = torch.arange(24).reshape(2, 12)
    loss = step_of._Loss(gpt2, precision)
    monkeypatch.setattr(step_of.extension, "library", None)
    for limit in (24 * 101, 24 * 101 - 1):
        monkeypatch.setattr(step_of, "FULL_LOGITS", limit)
        loss(rows, rows)
    assert asked == ["reference", None]


def test_a_compiled_model_trains_alike_and_saves_the_same_names(corpus: Corpus, tmp_path: Path) -> None:
    settings = replace(TINY, model="gpt2-4l", steps=3)
    train(corpus, settings, tmp_path / "eager")
    train(corpus, settings, tmp_path / "compiled", Hardware(compile=True))
    ours, other = (load_file(checkpoint_folder(tmp_path / n, 3) / "model.safetensors") for n in ("compiled", "eager"))
    assert ours.keys() == other.keys()
    for name, weight in other.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_deterministic_algorithms_are_asked_for_while_training_only(corpus: Corpus, tmp_path: Path) -> None:
    asked = []
    train(
        corpus, TINY, tmp_path, Hardware(deterministic=True),
        trackers=[lambda _: asked.append(torch.are_deterministic_algorithms_enabled())],
    )  # fmt: skip
    assert set(asked) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


def test_metrics_tell_every_tenth_step_and_every_checkpoint_to_whoever_wants_to_know(
    corpus: Corpus, tmp_path: Path
) -> None:
    told: list[Mapping[str, float]] = []
    at: list[int] = []
    train(
        corpus, replace(TINY, steps=25), tmp_path, trackers=[told.append],
        at_checkpoint=lambda run, step: at.append(max(checkpoint_steps(run))),
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert told == lines
    assert [line["step"] for line in lines] == [4, 8, 10, 20, 25]
    assert at == [0, 4, 8, 25]
    assert [line["tokens"] for line in lines] == [line["step"] * 4 * 16 for line in lines]
    for line in lines:
        assert line["gradient_norm"] > 0
        assert line["tokens_per_second"] > 0
        assert "utilisation" not in line  # of a CPU nobody knows the peak


def test_tensorboard(corpus: Corpus, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(corpus, TINY, tmp_path, Hardware(tensorboard=True))
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_a_run_says_how_to_make_it_again(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, TINY, tmp_path, Hardware(accumulate=2))
    config = json.loads((tmp_path / "config.json").read_text())
    assert TrainSettings(**config["settings"]) == TINY
    assert config["corpus"]["tokens"] == len(corpus.tokens)
    assert config["hardware"]["accumulate"] == 2
    assert config["hardware"]["threads"] == torch.get_num_threads()
    assert config["versions"]["torch"] == torch.__version__
    assert set(config["versions"]) == {"symground", "revision", "python", "torch", "transformers"}
    # Hardware does not define the run. A setting that is younger than the run has its default.
    train(corpus, TINY, tmp_path, Hardware(resume_every=7))
    del config["settings"]["precision"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    train(corpus, TINY, tmp_path)


def test_ids_beyond_the_tokenizer_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    tokens = np.array(corpus.tokens)
    tokens[7] = len(corpus.tokenizer)
    with pytest.raises(ValueError, match=f"corpus: id {len(corpus.tokenizer)} is outside its tokenizer's vocabulary"):
        train(replace(corpus, tokens=tokens), TINY, tmp_path / "run")
    with pytest.raises(ValueError, match="corpus: expected at least one place where a row may begin, got none"):
        train(replace(corpus, starts=corpus.starts[:0]), TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(replace(corpus, starts=corpus.starts[:1]), replace(TINY, steps=1, checkpoints="0"), tmp_path / "run")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is told in /proc on Linux only")
def test_kept_memory_is_given_back_afterwards() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    before, pages = resident(), 100 * 2**20 // 4096
    with keep_freed_memory():
        held = [torch.ones(2**22) for _ in range(8)]  # 128 MiB
        del held
        inside = resident()
    assert inside > before + pages
    assert resident() < before + pages


LARGE_PIECES = """
import sys
from pathlib import Path
import torch
from symground.running import return_freed_memory
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
with return_freed_memory():
    before = resident()
    held = [torch.ones(int(sys.argv[1]) * 2**18) for _ in range(20)]
    for i in range(0, 20, 2):
        held[i] = torch.ones(1)
    print((resident() - before) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is told in /proc on Linux only")
@pytest.mark.parametrize("mebibytes", [4, 8, 16])
def test_large_pieces_are_given_back_at_once_whichever_is_freed_first(mebibytes: int) -> None:
    """In a process of its own, since malloc prefers free pieces of the heap, which earlier tests leave."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE_PIECES, str(mebibytes)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(10 * mebibytes, abs=4)


def test_freed_memory_goes_where_the_last_block_says_that_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every order of two blocks, against the last threshold for mapped pieces that glibc was given."""
    told: dict[int, int] = {}
    mapped_from = -3  # M_MMAP_THRESHOLD

    class Libc:
        def mallopt(self, option: int, value: int) -> int:
            told[option] = value
            return 1

        def malloc_trim(self, _: int) -> None: ...

    monkeypatch.setattr(free_memory, "_glibc", Libc)
    sizes = {keep_freed_memory: 2**30, return_freed_memory: 2**22}
    for first, second in itertools.product(sizes, sizes):
        a, b = first(), second()
        a.__enter__()
        assert told[mapped_from] == sizes[first]
        b.__enter__()
        assert told[mapped_from] == sizes[second]
        for ends, left in ((a, second), (b, None)):
            ends.__exit__(None, None, None)
            assert told[mapped_from] == (sizes[left] if left else 2**25)
        with first():
            with second():
                pass
            assert told[mapped_from] == sizes[first]
    with keep_freed_memory(on=False), return_freed_memory(on=False):
        assert told[mapped_from] == 2**25
