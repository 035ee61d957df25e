"""The metrics of training on its speed, against values by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import symground as sg
from symground.models import create
from symground.training import metrics
from symground.training.metrics import Metrics, flops_per_token, lines_until, peak_of

CUDA = torch.device("cuda")


@pytest.mark.parametrize("peak", [None, 8000.0])
def test_speed_is_of_the_tokens_and_the_time_since_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak: float | None
) -> None:
    """A run resumes from its metrics, here after 10 s and 300 tokens."""
    times = iter([100.0, 102.5, 106.5])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(metrics, "peak_of", lambda device: peak)
    before = json.dumps({"step": 3, "seconds": 10.0, "tokens": 300})
    told: list[object] = []
    writer = Metrics(tmp_path / "metrics.jsonl", [before], 23.0, torch.device("cpu"))
    said = [writer.write(s, 1.23456, 0.1, 2.0, n, [told.append]) for s, n in ((4, 400), (5, 3107))]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[1:] == told
    assert [line["seconds"] for line in lines] == [10.0, 12.5, 16.5]
    assert [line["tokens_per_second"] for line in lines[1:]] == [40.0, 676.8]  # 100 in 2.5 s, 2707 in 4 s: 676.75
    assert {k: told[1][k] for k in ("step", "loss", "learning_rate", "gradient_norm", "tokens")} == {
        "step": 5, "loss": 1.23456, "learning_rate": 0.1, "gradient_norm": 2.0, "tokens": 3107,
    }  # fmt: skip
    if peak is None:
        assert "utilisation" not in told[1]
        assert said == ["loss 1.235, 40 tokens/s", "loss 1.235, 677 tokens/s"]
    else:
        assert [line["utilisation"] for line in lines[1:]] == [0.115, 1.9457]  # 676.75 · 23 / 8000 = 1.945656
        assert said[0] == "loss 1.235, 40 tokens/s, 12% of peak"
    assert lines_until(tmp_path / "metrics.jsonl", 4) == [json.dumps(line) for line in lines[:2]]


def test_a_run_that_begins_counts_its_time_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.1234])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(times))
    writer = Metrics(tmp_path / "metrics.jsonl", [], 23.0, torch.device("cpu"))
    assert writer.write(1, 1.0, 0.1, 2.0, 123, []) == "loss 1.000, 1,000 tokens/s"
    (line,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (line["seconds"], line["tokens_per_second"]) == (0.123, 1000.0)


def test_a_pass_costs_six_for_a_weight_and_attention_its_length() -> None:
    gpt2 = create("gpt2-4l", 50, positions=16)
    weights = sum(p.numel() for p in gpt2.parameters()) - gpt2.transformer.wpe.weight.numel()
    width = gpt2.config.n_embd
    for length in (8, 16):
        assert flops_per_token(gpt2, length) == 6 * weights + 12 * 4 * width * length
    lstm = sg.attach(create("lstm-1l", 50, positions=16))
    assert flops_per_token(lstm, 16) == 6 * sum(p.numel() for p in lstm.parameters())


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA GH200 480GB", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("NVIDIA L40", None), ("NVIDIA A40", 149.7e12),
        ("NVIDIA RTX A4000", None), ("NVIDIA RTX A6000", 154.8e12), ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Tesla V100-SXM2-16GB", 125e12), ("Tesla T4", 65e12), ("NVIDIA T400", None), ("NVIDIA B200", 2250e12),
        ("NVIDIA H200", 989e12), ("NVIDIA GeForce RTX 3090", 71e12),
    ],
)  # fmt: skip
def test_the_peak_is_of_the_gpu_of_that_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_of(CUDA) == peak
    assert peak_of(torch.device("cpu")) is None
