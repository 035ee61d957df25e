"""One step: the gradient of the mean next-token loss over a step's rows, split over the workers, then AdamW."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from symground import ops
from symground.data.sequences import IGNORED
from symground.models import readout
from symground.models.trials import hidden_states
from symground.ops.common import extension
from symground.training.config import Hardware, TrainSettings
from symground.training.workers import Workers

#: Up to this many numbers (256 MiB in float32), the logits of a step are materialised.
FULL_LOGITS = 2**26


class Done(NamedTuple):
    """The results of a step."""

    loss: Tensor
    """Mean over the tokens of all rows, in nats, before the update."""
    norm: Tensor
    """Norm of the gradient before clipping."""


class _Loss(nn.Module):
    """A model together with its loss, for the distributed wrapper and for torch.compile."""

    def __init__(self, model: PreTrainedModel, precision: str) -> None:
        super().__init__()
        self.model = model
        self._half = precision == "bfloat16"

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """ids and next ids [B,T] → the sum of surprisals in nats."""
        head = readout(self.model)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._half):
            # Padding is at the end, where no position that counts sees it.
            hidden = hidden_states(self.model, inputs).flatten(0, 1)  # [B·T,E]
        weight, bias = head.weight, head.bias
        if self._half:
            hidden, weight = hidden.bfloat16(), weight.bfloat16()
            bias = None if bias is None else bias.bfloat16()
        # With materialised logits the loss takes three products, without them four, so small logits are materialised.
        # In float32 the C++ extension takes three without materialising them.
        extended = weight.device.type == "cpu" and not self._half and extension.is_built()
        small = not extended and targets.numel() * weight.shape[0] <= FULL_LOGITS
        return ops.linear_cross_entropy(
            hidden, weight, targets.flatten(), bias, reduction="sum", impl="reference" if small else None
        )


class Trainer:
    """A model with its optimizer, on one worker."""

    def __init__(
        self, model: PreTrainedModel, settings: TrainSettings, hardware: Hardware, found: Workers
    ) -> None:  # fmt: skip
        self.model, self._settings, self._workers, self._accumulate = model, settings, found, hardware.accumulate
        self.optimizer, self._parameters = optimizer_of(model, settings), list(model.parameters())
        loss: nn.Module = _Loss(model, settings.precision)
        if hardware.compile:
            loss.compile()
        if found.world > 1:
            loss = DistributedDataParallel(loss)
        self._loss = loss

    def step(self, inputs: Tensor, targets: Tensor, rate: float) -> Done:
        """Train on a step's rows, both [B,T]; each worker takes its share of them."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        count = max(1, int((targets != IGNORED).sum()))
        total = torch.zeros((), device=self._workers.device)
        parts = list(
            zip(*(self._workers.share(rows, self._accumulate) for rows in (inputs, targets)), strict=True)
        )  # fmt: skip
        for number, (ids, next_ids) in enumerate(parts):
            with self._apart(number + 1 < len(parts)):
                # The wrapper takes the mean over workers, but a sum is needed.
                loss = self._loss(ids, next_ids) * (self._workers.world / count)
                loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self._parameters, self._settings.clip)
        self.optimizer.step()
        return Done(total / self._workers.world, norm)

    @contextmanager
    def _apart(self, more: bool) -> Iterator[None]:
        """Do not exchange gradients between workers, except after a step's last part."""
        with self._loss.no_sync() if more and isinstance(self._loss, DistributedDataParallel) else nullcontext():
            yield


def optimizer_of(model: PreTrainedModel, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices but not on biases and norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True)


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Within the block, use only algorithms that repeat to the bit; others raise RuntimeError."""
    if not on:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first use of cuBLAS
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
