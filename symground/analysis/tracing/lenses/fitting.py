"""The fit of a tuned lens: translators of all depths by the model's own final distribution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from symground.analysis.checks import ids_of, texts_of
from symground.data import Corpus
from symground.data.sequences import IGNORED, RowSampler
from symground.errors import described
from symground.models.passes import final_norm, frozen, readable_ids, residual_stream
from symground.models.trials import check_deterministic, positions_of, trial_ids, verified_readout
from symground.running import progress


def fitted(
    model: PreTrainedModel, data: Corpus | Tensor, steps: int, batch_size: int, length: int, share: float,
    learning_rate: float, warmup: float, weight_decay: float, seed: int,
) -> tuple[Tensor, Tensor, tuple[tuple[float, ...], ...]]:  # fmt: skip
    """The translators' weights [L,D,D] and biases [L,D], and each depth's divergence before and after.

    The arguments are those of `TunedLens.fit`.
    """
    check_deterministic(model)
    data = _checked(model, data)
    batches, chosen = _batches(model, data, batch_size, length, seed), torch.Generator().manual_seed(seed)
    fitter, divergence = Fitter(model, weight_decay), []
    with frozen(model), progress("tuned lens", steps, quick=True) as bar:
        for step in range(steps):
            rate = learning_rate * min((step + 1) / max(1.0, warmup * steps), 1.0 - step / steps)
            divergence.append(fitter.step(*next(batches), share, chosen, rate))
            bar.advance()
    kept = divergence[0], torch.stack(divergence[-max(1, steps // 10) :]).mean(0)
    weight, bias = (x.detach() for x in fitter.translators)
    return weight, bias, tuple(tuple(map(float, kl)) for kl in kept)


class Fitter:
    """The translators of a model during the fit."""

    def __init__(self, model: PreTrainedModel, weight_decay: float) -> None:
        self._model, self._head, self._norm = model, verified_readout(model), final_norm(model)
        width = self._head.weight.shape[1]
        with torch.no_grad():
            depths = len(residual_stream(model, trial_ids(model, 1).to(self._head.weight.device))) - 1
        weight = self._head.weight.new_zeros(depths, width, width).requires_grad_()
        self.translators = weight, weight.new_zeros(depths, width).requires_grad_()
        groups: list[dict[str, Any]] = [{"params": [weight], "weight_decay": weight_decay}]
        groups.append({"params": [self.translators[1]]})
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)

    def step(self, ids: Tensor, counts: Tensor, share: float, generator: torch.Generator, rate: float) -> Tensor:
        """One step on rows [B,T] at positions drawn from the mask ``counts``; returns each depth's KL before, [L]."""
        weight, bias = self.translators
        with torch.no_grad():
            stream = residual_stream(self._model, ids.to(weight.device))  # [L+1,B,T,D]
            h = stream.flatten(1, 2)[:, _some(counts, share, generator).to(weight.device)]  # [L+1,n,D]
            final = self._read(h[-1])  # [n,V]
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        divergence = []
        for d in range(len(weight)):  # one by one, so that the logits of only one depth are in memory
            found = self._read(h[d] + functional.linear(h[d], weight[d], bias[d]))
            kl = functional.kl_div(found, final, reduction="sum", log_target=True) / h.shape[1]
            kl.backward()
            divergence.append(kl.detach())
        self._optimizer.step()
        return torch.stack(divergence).cpu()

    def _read(self, h: Tensor) -> Tensor:
        """[n,V] log-probabilities."""
        return self._head.logits(self._norm(h)).float().log_softmax(-1)


def _some(counts: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Indices of a random share of the positions marked in ``counts`` [B,T], flattened."""
    there = counts.flatten().nonzero()[:, 0]
    wanted = max(1, round(share * len(there)))
    return there[torch.randperm(len(there), generator=generator)[:wanted]]


def _batches(
    model: PreTrainedModel, data: Corpus | Tensor, batch_size: int, length: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of ids and the mask of their positions to fit, both [B,T]."""
    if isinstance(data, Corpus):
        most = positions_of(model) or length
        sampler = RowSampler.of(data.part("train"), batch_size, min(length, most), seed)
        step = 0
        while True:
            ids, targets = sampler.batch(step)
            yield ids, targets != IGNORED
            step += 1
    generator = torch.Generator().manual_seed(seed)
    while True:
        ids = data[torch.randint(len(data), (batch_size,), generator=generator)]
        yield ids, torch.ones_like(ids, dtype=torch.bool)


def _checked(model: PreTrainedModel, data: Any) -> Corpus | Tensor:
    """A corpus or ids [N,T], checked to be readable by the model."""
    if isinstance(data, Corpus):
        ids_of(np.asarray(data.tokens).max(initial=0, keepdims=True), "data", 1, readable_ids(model))
        return data
    ids = torch.as_tensor(data) if isinstance(data, (list, np.ndarray)) else data
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
        what = f"{list(ids.shape)} {ids.dtype}" if isinstance(ids, Tensor) else described(data)
        raise ValueError(f"data: expected a Corpus or ids [N,T], got {what}; symground.data.Corpus.load reads one")
    return texts_of(model, ids, "data")
