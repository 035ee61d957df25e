"""Next-token training from random weights, with many early checkpoints; it resumes to the bit where it stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import PreTrainedModel

from symground.data.sequences import Corpus, RowSampler
from symground.files import checkpoint_folder, checkpoint_steps, damage, held, settle
from symground.models import create, load, set_images
from symground.models.architectures import unpadded
from symground.running import Bar, keep_freed_memory, progress
from symground.training.checkpoints import METRICS, load_resume, resume_folders, save_checkpoint, save_resume
from symground.training.config import Hardware, TrainSettings
from symground.training.metrics import Metrics, TensorBoard, Tracker, flops_per_token, tensorboard
from symground.training.provenance import claim
from symground.training.schedule import checkpoint_schedule, learning_rate
from symground.training.step import Done, Trainer, deterministic
from symground.training.workers import Workers, workers

_LOG_EVERY = 10
_NEVER = 2**62


def train(
    corpus: Corpus,
    settings: TrainSettings,
    run: str | Path,
    hardware: Hardware | None = None,
    *,
    trackers: Sequence[Tracker] = (),
    at_checkpoint: Callable[[Path, int], None] | None = None,
) -> PreTrainedModel:
    """Train one model into the folder ``run``, or resume an interrupted training there.

    Writes ``config.json`` (settings, fingerprint of the corpus, versions, hardware), ``metrics.jsonl`` (step, loss in
    nats per token, learning_rate, gradient_norm, tokens, seconds, tokens_per_second and, on a GPU, utilisation: the
    share of its peak), ``checkpoints/step-NNNNNNNN/`` at the steps of the schedule, and resume states. A finished run
    is left unchanged, except that a run with a constant learning rate (``decay="constant"``) continues if more steps
    are requested. Under torchrun every process calls this, and the first one writes.

    Args:
        corpus: its training documents are used.
        settings: of the run.
        run: its folder; with several machines, one that all of them can access.
        hardware: where and how to train; None uses the defaults.
        trackers: receive the metrics too.
        at_checkpoint: (run, step) → called in the first process once a checkpoint is on disk.

    Returns:
        The trained model, attached (:func:`symground.attach`).

    Raises:
        ValueError: the folder has a run with other settings (says which differ), the loss or its gradient is not finite
            (names the step; earlier checkpoints are kept), the rows cannot be split evenly over the processes, or the
            corpus has no row to train on.
        BlockingIOError: another process trains in this folder (says which).
        ImportError: TensorBoard's files are requested, but its package is not installed.
        OSError: the disk is full; all that was saved is kept.
        SystemExit, KeyboardInterrupt: SIGTERM or Ctrl-C was received. The state is saved after the step, and the same
            call resumes from there. A second signal stops it at once.
    """
    run, hardware = Path(run), hardware or Hardware()
    _check_rows(corpus, settings)
    with ExitStack() as stack:
        found = stack.enter_context(workers(hardware.device))
        stack.enter_context(deterministic(hardware.deterministic))
        stack.enter_context(keep_freed_memory(found.device.type == "cpu"))
        _check_shares(settings, hardware, found)
        if hardware.tensorboard:
            tensorboard()  # report a missing package before anything is written
        if found.first:
            stack.enter_context(held(run, "trains"))
            claim(run, corpus, settings, hardware, found.device)
            for folder in ("checkpoints", "resume"):
                settle(run / folder)
        found.wait()
        if settings.steps in checkpoint_steps(run) and damage(checkpoint_folder(run, settings.steps)) is None:
            return load(run, settings.steps, device=str(found.device))
        return _Run(corpus, settings, run, hardware, found, trackers, at_checkpoint).trained()


class _Run:
    def __init__(
        self, corpus: Corpus, settings: TrainSettings, run: Path, hardware: Hardware, found: Workers,
        trackers: Sequence[Tracker], at_checkpoint: Callable[[Path, int], None] | None,
    ) -> None:  # fmt: skip
        self._settings, self._run, self._hardware, self._workers = settings, run, hardware, found
        self._trackers, self._at_checkpoint = list(trackers), at_checkpoint
        pad = corpus.tokenizer.pad_token_id
        width = corpus.images.width if corpus.images else None
        self._model = create(
            settings.model, len(corpus.tokenizer), settings.seed, positions=settings.length, pad_token_id=pad,
            image_width=width,
        )  # fmt: skip
        if corpus.images is not None:
            set_images(self._model, corpus.images.features)
        self._model.to(found.device).train()  # type: ignore[arg-type]
        self._sampler = RowSampler.of(corpus, settings.batch_size, settings.length, settings.seed)
        self._trainer = Trainer(self._model, settings, hardware, found)
        self._first_wrong = torch.full((), _NEVER, dtype=torch.int64, device=found.device)

    def trained(self) -> PreTrainedModel:
        settings, run = self._settings, self._run
        done, lines = load_resume(run, self._model, self._trainer.optimizer)
        if done == 0 and resume_folders(run):
            self._say(f"{run}: all resume states are damaged; training starts from step 0 again")
        self._name_damaged(done)
        save_at = set(checkpoint_schedule(settings.checkpoints, settings.steps))
        if self._workers.first:
            flops = flops_per_token(self._model, settings.length)
            self._metrics = Metrics(run / METRICS, lines, flops, self._workers.device)
            if self._hardware.tensorboard:
                self._trackers.append(TensorBoard(run, done))
        if done in save_at:  # at the beginning, and if a checkpoint is damaged
            self._checkpoint(done)
        with ExitStack() as stack:
            stack.enter_context(unpadded(self._model))
            bar: Bar | None = None
            if self._workers.first:
                bar = stack.enter_context(progress(f"train {run.parent.name}/{run.name}", settings.steps, done))
            saved = time.monotonic()
            for before in range(done, settings.steps):
                rate = learning_rate(
                    before, settings.learning_rate, settings.warmup, settings.steps, settings.decay
                )  # fmt: skip
                result = self._trainer.step(*self._sampler.batch(before), rate)
                step = before + 1
                self._note(result, step)
                looks = step % _LOG_EVERY == 0 or step in save_at
                # Workers must stop at the same step, so they compare at steps where they communicate anyway.
                stops = (looks or self._workers.world == 1) and self._workers.stops()
                if looks:
                    self._log(result, step, rate, bar)
                if step in save_at:
                    self._checkpoint(step)
                # Only a run with a constant rate can be extended.
                last = step == settings.steps
                due = stops or time.monotonic() - saved >= self._hardware.resume_every
                if settings.decay == "constant" if last else due:
                    self._resume(step)
                    saved = time.monotonic()
                if bar is not None:
                    bar.advance()
                if stops and not last:
                    self._say(f"{run}: stopped at step {step} by a signal; the same command resumes from there")
                    self._workers.end()
        self._workers.wait()
        self._model.eval()
        return self._model

    def _note(self, result: Done, step: int) -> None:
        """Record the first step with a number that is not finite, without waiting for a GPU."""
        fine = result.loss.isfinite() & result.norm.isfinite()
        self._first_wrong = self._first_wrong.minimum(torch.where(fine, _NEVER, step))

    def _check(self) -> None:
        wrong = int(self._first_wrong)
        if wrong < _NEVER:
            raise ValueError(
                f"{self._run}: the loss or its gradient is not finite at step {wrong}; earlier checkpoints are kept. A "
                "lower learning rate or more steps of warm-up may help."
            )

    def _log(self, result: Done, step: int, rate: float, bar: Bar | None) -> None:
        """Log a step, once neither it nor any before it had a number that is not finite."""
        loss = float(self._workers.sum(result.loss.clone()))
        self._check()
        if self._workers.first:
            tokens = step * self._settings.tokens_per_step
            said = self._metrics.write(step, loss, rate, float(result.norm), tokens, self._trackers)
            if bar is not None:
                bar.note(said)

    def _checkpoint(self, step: int) -> None:
        if self._workers.first:
            self._metrics.sync()
            save_checkpoint(self._run, step, self._model)
            if self._at_checkpoint is not None:
                self._at_checkpoint(self._run, step)

    def _resume(self, step: int) -> None:
        self._check()
        if self._workers.first:
            self._metrics.sync()
            save_resume(self._run, step, self._model, self._trainer.optimizer, self._metrics.text)

    def _name_damaged(self, done: int) -> None:
        """Report damaged checkpoints; those at later steps are written again when training reaches them."""
        for step in checkpoint_steps(self._run) if self._workers.first else ():
            wrong = damage(checkpoint_folder(self._run, step))
            if wrong is not None:
                what = "it is written again" if step >= done else "training does not reach that step again"
                self._say(f"{checkpoint_folder(self._run, step)} is damaged ({wrong}); {what}")

    def _say(self, text: str) -> None:
        if self._workers.first:
            print(text, file=sys.stderr, flush=True)


def _check_rows(corpus: Corpus, settings: TrainSettings) -> None:
    if len(corpus.starts) == 0:
        raise ValueError("corpus: expected at least one place where a row may begin, got none")
    if settings.length < corpus.prefix + 2:
        raise ValueError(
            f"length: expected at least {corpus.prefix + 2} tokens per row, the patches of an image and two more; "
            f"got {settings.length}"
        )
    limit = len(corpus.tokenizer) + (len(corpus.images) * corpus.prefix if corpus.images else 0)
    largest = int(corpus.tokens.max())
    if largest >= limit:
        raise ValueError(
            f"corpus: id {largest} is outside its tokenizer's vocabulary of {limit}; is it that of another corpus?"
        )


def _check_shares(settings: TrainSettings, hardware: Hardware, found: Workers) -> None:
    parts = found.world * hardware.accumulate
    if settings.batch_size % parts:
        raise ValueError(
            f"batch_size: expected a multiple of {found.world} processes × {hardware.accumulate} parts, "
            f"got {settings.batch_size}"
        )
