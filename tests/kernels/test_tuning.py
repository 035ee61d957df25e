"""Tuning on request, with the timer replaced, so that nothing depends on how fast anything is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

from symground.kernels.common import tuning
from symground.kernels.common.configs import Config
from symground.kernels.common.launch import tunes

SHIPPED = Config(128, 64, 8, 3)
FASTEST = Config(64, 32, 4, 2)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """The configurations measured, in a temporary cache folder; FASTEST is the fastest."""
    times: list[Config] = []

    def time(run: object, config: Config) -> float:
        times.append(config)
        return 1.0 if config == FASTEST else 2.0

    monkeypatch.setattr(tuning, "_time", time)
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setenv("SYMGROUND_CACHE", str(tmp_path))
    return times


def best(key: int = 0) -> Config:
    return tuning.best("dq", "sm_90", (64, key), SHIPPED, lambda config: None)


def test_the_fastest_is_kept_for_later_processes(measured: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    assert best() == FASTEST
    assert measured[0] == SHIPPED
    once = len(measured)
    assert best() == FASTEST
    monkeypatch.setattr(tuning, "_known", {})  # a later process
    assert best() == FASTEST
    assert len(measured) == once
    best(key=1)
    assert len(measured) == 2 * once


def test_a_broken_cache_is_measured_again(measured: list[Config], tmp_path: Path) -> None:
    (tmp_path / "tuning.json").write_text('{"dq": [1')
    assert best() == FASTEST


def test_tuning_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYMGROUND_AUTOTUNE", raising=False)
    assert not tunes()
