"""A training in which every change of the disk fails, is cut off by a kill, or is followed by a power cut."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from symground.data import Corpus
from symground.files import SUMS, checkpoint_folder, damage, disk, read_json
from symground.models.architectures.lstm import LSTMConfig, LSTMForCausalLM
from symground.training import Hardware, TrainSettings, loop, train
from symground.training.checkpoints import resume_folders
from tests.training.disk_faults import Cuts, Watched, calls_of, failing_at, laid_out, state_of, watched

pytestmark = pytest.mark.trains
SETTINGS = TrainSettings(model="lstm-1l", steps=4, batch_size=2, length=12, warmup=2, checkpoints="0,2")
OFTEN = Hardware(resume_every=0, device="cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model, so that states of the disk are small."""

    def create(_: str, vocabulary: int, seed: int, **__: object) -> LSTMForCausalLM:
        torch.manual_seed(seed)
        return LSTMForCausalLM(LSTMConfig(vocab_size=vocabulary, hidden_size=4, num_hidden_layers=1))

    monkeypatch.setattr(loop, "create", create)
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)


def outcome(run: Path) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """The files of all checkpoints, and the metrics without their times."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "checkpoints").rglob("*.*"))}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return files, [{name: line[name] for name in line if "second" not in name} for line in lines]


def check_named(run: Path) -> None:
    """Every folder with a final name is complete."""
    for kind in ("checkpoints", "resume"):
        for folder in (run / kind).glob("step-*"):
            assert damage(folder, required=True) is None, folder


@pytest.fixture
def asleep() -> Watched:
    """Do not wait for the disk."""
    watch = Watched(lambda *_: None)
    watch.__dict__["fsync"] = lambda _: None
    return watch


def test_a_training_that_is_cut_off_anywhere_goes_on_to_the_same_bits(
    corpus: Corpus, tmp_path: Path, small: None, asleep: Watched
) -> None:
    root, name = tmp_path / "whole", "model/seed0"
    root.mkdir()
    cuts = Cuts(root)
    with watched(cuts.watch()):
        train(
            corpus, SETTINGS, root / name, OFTEN,
            at_checkpoint=lambda run, step: cuts.promised.add(str(checkpoint_folder(run, step).relative_to(root))),
        )  # fmt: skip
    expected = outcome(root / name)
    assert [line["step"] for line in expected[1]] == [1, 2, 3, 4]
    assert outcome(laid_out(cuts.worst(), tmp_path / "worst") / name) == expected, "what was told is not on the disk"
    assert len(cuts.found) > 100
    for number, (state, promised) in enumerate(cuts.found.values()):
        run = laid_out(state, tmp_path / f"cut{number}") / name
        check_named(run)
        for folder in promised:
            assert damage(tmp_path / f"cut{number}" / folder, required=True) is None, (
                "a checkpoint that was told of is lost"
            )
        with watched(asleep):
            train(corpus, SETTINGS, run, OFTEN)
        assert outcome(run) == expected, sorted(state)
        assert not list(run.rglob("*partial*"))


def test_a_training_that_meets_an_error_anywhere_keeps_what_was_saved_and_goes_on(
    corpus: Corpus, tmp_path: Path, small: None, asleep: Watched
) -> None:
    settings = replace(SETTINGS, steps=2, checkpoints="0")
    number = calls_of(lambda: train(corpus, settings, tmp_path / "whole", OFTEN))
    expected = outcome(tmp_path / "whole")
    for at in range(number):
        run = tmp_path / f"error{at}"
        watch = failing_at(at)
        told: list[Path] = []
        with watched(watch), pytest.raises(OSError, match="No space left on device"):
            train(
                corpus, settings, run, OFTEN,
                at_checkpoint=lambda run, step: told.append(checkpoint_folder(run, step)),  # noqa: B023
            )  # fmt: skip
        check_named(run)
        for folder in told:
            assert damage(folder, required=True) is None
        with watched(asleep):
            train(corpus, settings, run, OFTEN)
        assert outcome(run) == expected, at


def test_a_resumed_training_does_not_lose_its_history(corpus: Corpus, tmp_path: Path, small: None) -> None:
    """Nothing is lost if metrics.jsonl is removed or truncated."""
    train(corpus, SETTINGS, tmp_path / "whole", OFTEN)
    expected = outcome(tmp_path / "whole")
    for content in (None, "", '{"step": 1, "lo'):
        run = tmp_path / f"run{content}"
        state = state_of(tmp_path / "whole")
        laid_out(state, run)
        disk.remove(checkpoint_folder(run, 4))
        (run / "metrics.jsonl").unlink()
        if content is not None:
            (run / "metrics.jsonl").write_text(content)
        train(corpus, SETTINGS, run, OFTEN)
        assert outcome(run) == expected


@pytest.mark.parametrize("spoilt", ["missing", "not JSON", "a list"])
def test_a_state_without_checksums_is_passed_over(
    corpus: Corpus, tmp_path: Path, small: None, spoilt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(corpus, SETTINGS, tmp_path, OFTEN)
    expected = outcome(tmp_path)
    disk.remove(checkpoint_folder(tmp_path, 4))
    newest = resume_folders(tmp_path)[-1]
    (newest / "state.safetensors").write_bytes(b"half")
    (newest / SUMS).unlink()
    if spoilt != "missing":
        (newest / SUMS).write_text({"not JSON": "{", "a list": "[]"}[spoilt])
    train(corpus, SETTINGS, tmp_path, OFTEN)
    assert (
        f"{newest} is damaged ({SUMS} {'is missing' if spoilt == 'missing' else 'has no checksums'})"
        in capsys.readouterr().err
    )
    assert outcome(tmp_path) == expected


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\udce9"])
def test_a_damaged_config_stops_only_what_was_trained(
    corpus: Corpus, tmp_path: Path, small: None, content: str
) -> None:
    fresh, trained = tmp_path / "fresh", tmp_path / "trained"
    for run in (fresh, trained):
        if run is trained:
            train(corpus, SETTINGS, run, OFTEN)
        run.mkdir(exist_ok=True)
        (run / "config.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    train(corpus, SETTINGS, fresh, OFTEN)
    assert read_json(fresh / "config.json")["settings"]["steps"] == 4
    with pytest.raises(ValueError, match=r"config\.json: .*If they were the present ones, remove the file"):
        train(corpus, SETTINGS, trained, OFTEN)
    (trained / "config.json").unlink()
    train(corpus, SETTINGS, trained, OFTEN)
    assert outcome(trained) == outcome(fresh)
