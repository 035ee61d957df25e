"""The metrics of a training in progress: metrics.jsonl, and other trackers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from symground.errors import require
from symground.files import append, sync, write_text

#: Peak dense bfloat16 FLOP/s of GPUs by name, from their makers' data sheets.
PEAK = {
    "H200": 989e12, "H100": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12, "A40": 149.7e12,
    "A6000": 154.8e12, "L40S": 362e12, "L4": 121e12, "4090": 165.2e12, "3090": 71e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


class Tracker(Protocol):
    """Receives the metrics of each step."""

    def __call__(self, metrics: Mapping[str, float]) -> None:
        """``metrics``: the step and its metrics by name."""
        ...


class TensorBoard:
    """Writes the metrics for TensorBoard, to RUN/tensorboard.

    Args:
        run: the run's folder.
        done: the step from which training resumes; metrics of later steps, written before, are hidden.
    """

    def __init__(self, run: Path, done: int) -> None:
        self._writer = tensorboard().SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)

    def __call__(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, int(metrics["step"]))
        self._writer.flush()


def tensorboard() -> Any:
    """torch's writer of TensorBoard's files; ImportError if the package is missing."""
    return require("torch.utils.tensorboard", "TensorBoard's files", "tensorboard")


class Metrics:
    """Writes metrics.jsonl: one line of JSON for each step.

    Args:
        path: the file. It is first rewritten with the lines up to the step from which training resumes.
        earlier: these lines.
        flops_per_token: of a forward and a backward pass.
        device: the device that trains.
    """

    def __init__(self, path: Path, earlier: Iterable[str], flops_per_token: float, device: torch.device) -> None:
        self._path, self._lines = path, list(earlier)
        self._flops, self._peak = flops_per_token, peak_of(device)
        last = json.loads(self._lines[-1]) if self._lines else {"seconds": 0.0, "tokens": 0}
        self._before, self._since = last["seconds"], time.perf_counter()
        self._last = (last["seconds"], last["tokens"])
        write_text(path, self.text)

    @property
    def text(self) -> str:
        """All lines, as in the file."""
        return "".join(f"{line}\n" for line in self._lines)

    def write(self, step: int, loss: float, rate: float, norm: float, tokens: int, trackers: Iterable[Tracker]) -> str:
        """Write the line of a step; returns a text for the progress bar."""
        seconds = round(self._before + time.perf_counter() - self._since, 3)
        speed = (tokens - self._last[1]) / max(seconds - self._last[0], 1e-3)
        self._last = (seconds, tokens)
        line: dict[str, Any] = {
            "step": step, "loss": loss, "learning_rate": rate, "gradient_norm": norm, "tokens": tokens,
            "seconds": seconds, "tokens_per_second": round(speed, 1),
        }  # fmt: skip
        said = f"loss {loss:.3f}, {speed:,.0f} tokens/s"
        if self._peak:
            line["utilisation"] = round(speed * self._flops / self._peak, 4)
            said += f", {line['utilisation']:.0%} of peak"
        self._lines.append(json.dumps(line))
        append(self._path, f"{self._lines[-1]}\n")
        for tracker in trackers:
            tracker(line)
        return said

    def sync(self) -> None:
        """Sync all lines to disk, to a new file if it was removed."""
        if self._path.exists():
            sync(self._path)
        else:
            write_text(self._path, self.text)


def lines_until(path: Path, step: int) -> list[str]:
    """The lines of a metrics.jsonl for steps up to ``step``; an incomplete last line is skipped."""
    if not path.is_file():
        return []
    whole = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return [line for line in whole if json.loads(line)["step"] <= step]


def peak_of(device: torch.device) -> float | None:
    """A GPU's peak FLOP/s; None if unknown, and for a CPU."""
    if device.type != "cuda":
        return None
    words = re.split(r"[ -]", torch.cuda.get_device_name(device))  # whole words: an L40 is not an L4
    return next((PEAK[word] for word in words if word in PEAK), None)


def flops_per_token(model: PreTrainedModel, length: int) -> float:
    """FLOPs of a forward and a backward pass: 6 for each weight, and 12·layers·width·length for attention's products.

    Source: Chowdhery et al. 2022 (PaLM), appendix B. Position embeddings are not multiplied, so they do not count.
    """
    config = model.config.get_text_config()
    weights = sum(p.numel() for name, p in model.named_parameters() if not name.endswith("wpe.weight"))
    attends = "gpt2" in config.model_type
    return 6.0 * weights + (12.0 * config.num_hidden_layers * config.hidden_size * length if attends else 0.0)
