"""The training loop: next-token loss from random weights."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from symground import ops
from symground.data.corpus import Corpus
from symground.folders import checkpoint_steps, read_json, write_json
from symground.models import create, load, readout, set_images
from symground.models.readout import hidden_states
from symground.progress import progress
from symground.training.checkpoints import load_resume, save_checkpoint, save_resume
from symground.training.config import TrainSettings
from symground.training.sampler import RowSampler
from symground.training.schedule import checkpoint_schedule, learning_rate

#: Numbers (256 MiB in float32) up to which the logits of a step are made as a whole.
FULL_LOGITS = 2**26
_LOG_EVERY = 10


def train(corpus: Corpus, settings: TrainSettings, run: str | Path, device: str | None = None) -> PreTrainedModel:
    """Train one model into the folder ``run``, or go on with a training that was interrupted there.

    Writes ``config.json``, ``metrics.jsonl`` (step, loss in nats per token, learning_rate, tokens, seconds),
    ``checkpoints/step-NNNNNNNN/`` at the steps of the schedule, and resume states. A finished run is left as it is.

    Returns:
        The trained model, attached.

    Raises:
        ValueError: the folder holds a run of other settings (says which differ), the loss is not finite (names the
            step; earlier checkpoints stay), or the corpus has no row to train on.
    """
    run = Path(run)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if settings.length < corpus.prefix + 2:
        raise ValueError(
            f"length: expected at least {corpus.prefix + 2} tokens per row, the patches of an image and two more; "
            f"got {settings.length}"
        )
    _claim(run, corpus, settings)
    if settings.steps in checkpoint_steps(run):
        return load(run, settings.steps, device=device)
    pad = corpus.tokenizer.pad_token_id
    width = corpus.images.width if corpus.images else None
    model = create(
        settings.model, len(corpus.tokenizer), settings.seed, positions=settings.length, pad_token_id=pad,
        image_width=width,
    )  # fmt: skip
    if corpus.images is not None:
        set_images(model, corpus.images.features)
    model.to(device).train()  # type: ignore[arg-type]
    optimizer = _optimizer(model, settings)
    sampler = RowSampler(
        corpus.tokens, corpus.documents, corpus.starts, settings.batch_size, settings.length, settings.seed, pad,
        corpus.prefix,
    )  # fmt: skip
    done = load_resume(run, model, optimizer)
    if done == 0 and any((run / "resume").glob("step-*")):
        print(f"{run}: no resume state is whole; training starts from step 0 again", file=sys.stderr)
    save_at = set(checkpoint_schedule(settings.checkpoints, settings.steps))
    log = _Log(run / "metrics.jsonl", done)
    if done == 0 and 0 in save_at:
        save_checkpoint(run, 0, model)
    with ExitStack() as stack:
        stack.enter_context(log)
        bar = stack.enter_context(progress(f"train {run.parent.name}/{run.name}", settings.steps, done))
        for step in range(done, settings.steps):
            rate = learning_rate(step, settings.learning_rate, settings.warmup, settings.steps)
            loss = _step(model, optimizer, sampler, step, rate, settings.clip, device)
            finished = step + 1
            if finished % _LOG_EVERY == 0 or finished in save_at:
                value = float(loss)
                if not np.isfinite(value):
                    raise ValueError(f"{run}: the loss is {value} at step {finished}; earlier checkpoints stay")
                log.write(finished, value, rate, settings.batch_size * settings.length)
                bar.note(f"loss {value:.3f}")
            if finished in save_at:
                save_checkpoint(run, finished, model)
                log.flush()
                save_resume(run, finished, model, optimizer)
            bar.advance()
    model.eval()
    return model


def _step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    sampler: RowSampler,
    step: int,
    rate: float,
    clip: float,
    device: str,
) -> torch.Tensor:
    inputs, targets = (ids.to(device, non_blocking=True) for ids in sampler.batch(step))  # [B,T]
    for group in optimizer.param_groups:
        group["lr"] = rate
    head = readout(model)
    hidden = hidden_states(model, inputs)  # [B,T,D]; padding stands at the end, where nothing that counts sees it
    # Full logits make three products where the op that never stores them makes four: the faster, while they are small.
    small = targets.numel() * head.weight.shape[0] <= FULL_LOGITS
    loss = ops.linear_cross_entropy(
        hidden.flatten(0, 1), head.weight, targets.flatten(), head.bias, impl="reference" if small else None
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


def _optimizer(model: PreTrainedModel, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices and none on biases and norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True)


def _claim(run: Path, corpus: Corpus, settings: TrainSettings) -> None:
    """Write the run's config.json, or check that the one there says the same."""
    digest = hashlib.sha256(corpus.tokens.tobytes()).hexdigest()
    fingerprint: dict[str, Any] = {"tokens": len(corpus.tokens), "sha256": digest}
    if corpus.images is not None:
        fingerprint["images"] = {"number": len(corpus.images), **corpus.images.description}
    config = {"settings": asdict(settings), "corpus": fingerprint}
    path = run / "config.json"
    if path.exists():
        found: dict[str, Any] = read_json(path)
        differing = list(_differences(found, config))
        if differing:
            raise ValueError(f"{run} holds a run of other settings: {'; '.join(differing)}. Choose another folder.")
        return
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_json(path, {**config, "versions": versions})


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for part, values in wanted.items():
        there = found.get(part)
        for name, value in values.items():
            before = there.get(name) if isinstance(there, dict) else None
            if before != value:
                yield f"{name if part == 'settings' else part + ' ' + name} is {before!r} there, {value!r} here"


class _Log:
    """metrics.jsonl, cut back to the resumed step so that no step stands twice."""

    def __init__(self, path: Path, done: int) -> None:
        kept = []
        if done and path.is_file():
            kept = [
                line
                for line in path.read_text().splitlines()
                if line.endswith("}") and json.loads(line)["step"] <= done
            ]
        path.write_text("".join(line + "\n" for line in kept))
        before = json.loads(kept[-1])["seconds"] if kept else 0.0
        self._path, self._started = path, time.perf_counter() - before

    def __enter__(self) -> _Log:
        self._file = self._path.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, step: int, loss: float, rate: float, tokens_per_step: int) -> None:
        seconds = round(time.perf_counter() - self._started, 3)
        line = {"step": step, "loss": loss, "learning_rate": rate, "tokens": step * tokens_per_step, "seconds": seconds}
        self._file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        self._file.flush()
