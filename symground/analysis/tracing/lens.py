"""Predictions of a model at every depth: the tuned lens and the plain logit lens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from symground import ops
from symground.analysis.checks import ids_of
from symground.analysis.probing import Examples, Probes, check_fits
from symground.data import Corpus
from symground.data.sequences import IGNORED, RowSampler
from symground.display import as_table, as_text, some
from symground.errors import check_device, check_path, described, errors_named, integer, number
from symground.files import replacing
from symground.models import mixers
from symground.models.passes import check_length, check_weights, final_norm, frozen, readable_ids, residual_stream
from symground.models.trials import Readout, check_deterministic, check_lengths, trial_ids, verified_readout
from symground.running import progress


@dataclass(frozen=True)
class TunedLens:
    """An affine translator for each depth of a model: the final norm and the vocabulary head read h + h Wᵀ + b.

    Depth d is the residual stream after d layers. Depths 0 to L - 1 have translators; depth L is the model's output.
    """

    weight: Tensor
    """[L,D,D]"""
    bias: Tensor
    """[L,D]"""
    divergence: tuple[tuple[float, ...], ...] = ()
    """Mean KL divergence of each depth to the final distribution, nats: before the fit, and over its last tenth."""

    def __repr__(self) -> str:
        return as_text("TunedLens", self._shown())

    def _repr_html_(self) -> str:
        return as_table("TunedLens", self._shown())

    def _shown(self) -> dict[str, object]:
        depths, width, _ = self.weight.shape
        rows: dict[str, object] = {"translators": f"of depths 0 to {depths - 1}, width {width}, {self.weight.dtype}"}
        for when, of_depths in zip(("before", "after"), self.divergence, strict=False):
            rows[f"KL {when} the fit"] = f"{some([f'{kl:.3f}' for kl in of_depths])} nats, by depth"
        return rows

    @staticmethod
    def fit(
        model: PreTrainedModel,
        data: Corpus | Tensor,
        *,
        steps: int = 250,
        batch_size: int = 16,
        length: int = 128,
        share: float = 0.125,
        learning_rate: float = 1e-3,
        warmup: float = 0.1,
        weight_decay: float = 1e-3,
        seed: int = 0,
    ) -> TunedLens:
        """Fit the translators to the model's own final distribution; the model is not changed.

        Every step runs one forward pass over its rows, and fits all depths on the same randomly chosen positions.

        Args:
            model: attached, in evaluation; any architecture with a residual stream, or an LSTM, whose layers' hidden
                states are read.
            data: a corpus, whose training part rows are drawn from; or ids [N,T].
            steps: steps of Adam.
            batch_size: rows per step.
            length: tokens per row of a corpus; fewer if the model has fewer positions.
            share: share of a step's positions that are fitted. A position costs more to fit (depths × vocabulary) than
                to read, and neighbouring positions are similar.
            learning_rate: the peak learning rate, which then decays linearly to 0.
            warmup: share of the steps in which the learning rate rises.
            weight_decay: of the translators' weights, which pulls them towards the identity.
            seed: of the rows and of the positions.

        Raises:
            ValueError: a number that does not fit, dropout that is on, or ids of another shape.

        Source: Belrose et al. 2023, "Eliciting latent predictions from Transformers with the tuned lens", section 3.
        """
        check_weights(model)
        mixers(model)
        steps, batch_size = integer("steps", steps, 1), integer("batch_size", batch_size, 1)
        length, seed = integer("length", length, 1), integer("seed", seed, 0)
        share, warmup = number("share", share, "(0, 1]"), number("warmup", warmup, "(0, 1]")
        learning_rate = number("learning_rate", learning_rate, "[0, inf)")
        weight_decay = number("weight_decay", weight_decay, "[0, inf)")
        check_deterministic(model)
        data = _checked(model, data)
        batches, chosen = _batches(model, data, batch_size, length, seed), torch.Generator().manual_seed(seed)
        fitter, divergence = _Fitter(model, weight_decay), []
        with frozen(model), progress("tuned lens", steps, quick=True) as bar:
            for step in range(steps):
                rate = learning_rate * min((step + 1) / max(1.0, warmup * steps), 1.0 - step / steps)
                divergence.append(fitter.step(*next(batches), share, chosen, rate))
                bar.advance()
        kept = divergence[0], torch.stack(divergence[-max(1, steps // 10) :]).mean(0)
        weight, bias = (x.detach() for x in fitter.translators)
        return TunedLens(weight, bias, tuple(tuple(map(float, kl)) for kl in kept))

    def save(self, path: str | Path) -> Path:
        """Write the lens as one safetensors file."""
        path = check_path(path, "path")
        tensors = {"weight": self.weight.contiguous().cpu(), "bias": self.bias.contiguous().cpu()}
        with replacing(path) as partial:
            save_file(tensors, partial, {"symground": "tuned lens", "divergence": json.dumps(self.divergence)})
        return path

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> TunedLens:
        """Read a saved lens.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is not a tuned lens.
        """
        path = check_path(path, "path")
        check_device(device)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        unread = errors_named(f"{path}: expected a tuned lens, got a file that cannot be read")
        with unread, safe_open(path, "pt", device=str(device)) as file:
            about = file.metadata() or {}
            if about.get("symground") == "tuned lens":
                divergence = tuple(map(tuple, json.loads(about["divergence"])))
                return TunedLens(file.get_tensor("weight"), file.get_tensor("bias"), divergence)
            found = ", ".join(file.keys()) or "no tensors"
        raise ValueError(f"{path}: expected a tuned lens, got {found}")


class _Fitter:
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


@torch.no_grad()
def lens_gain(
    model: PreTrainedModel, probes: Probes, lens: TunedLens | None = None, *, batch_size: int = 256
) -> pd.DataFrame:
    """Matched and mismatched surprisal of the probes' targets at every depth.

    Args:
        model: attached, in evaluation.
        probes: their targets may have several tokens, each of which is predicted after those before it.
        lens: None is the plain logit lens.
        batch_size: contexts per pass.

    Returns:
        A DataFrame with a row per depth and target: depth (number of layers; 0 is the embedding, the last is the
        model's output), target, matched, mismatched, gain (nats, means over contexts).

    Raises:
        ValueError: a lens of a model of another size, or probes that :func:`symground.trace` refuses.

    Source: Belrose et al. 2023 (tuned lens); nostalgebraist 2020 (logit lens).
    """
    check_fits(model, probes)
    mixers(model)
    if lens is not None and not isinstance(lens, TunedLens):
        raise ValueError(f"lens: expected a TunedLens, or None for the plain logit lens, got {described(lens)}")
    batch_size = integer("batch_size", batch_size, 1)
    rows = probes.matched().read_by(model)  # every context with every ENV noun
    check_lengths(model, rows.lengths, rows.input_ids.shape[1])
    reading = _Reading(model, lens)
    first = torch.tensor([word[0] for word in probes.targets])
    parts = []
    for start in range(0, len(rows.input_ids), batch_size):
        part = rows.part(slice(start, start + batch_size))
        found = reading.surprisal(part, part.prediction[:, None], first[None, None])[:, :, 0]  # [L+1,B,K]
        for v, word in enumerate(probes.targets):
            if len(word) > 1:
                wanted = (of_word := part.with_words([word] * len(part.input_ids))).wanted
                rest = reading.surprisal(of_word, wanted.positions[:, 1:], wanted.ids[:, 1:, None])
                found[..., v] += rest.sum((2, 3))
        parts.append(found.double().cpu().numpy())
    # [L+1, contexts, ENV nouns, targets]
    surprisal = np.concatenate(parts, 1).reshape(len(parts[0]), len(probes.contexts), len(probes.nouns), -1)
    return _gains(surprisal, probes)


class _Reading:
    """What each depth of a model predicts."""

    def __init__(self, model: PreTrainedModel, lens: TunedLens | None) -> None:
        self._model, self._lens = model, lens
        self._head, self._norm = verified_readout(model), final_norm(model)

    def surprisal(self, examples: Examples, positions: Tensor, candidates: Tensor) -> Tensor:
        """[L+1,B,R,K] in nats of candidates [B or 1,R or 1,K] after the positions [B,R] of the examples."""
        head, device = self._head, self._head.weight.device
        given = examples.given(slice(0, len(examples.input_ids)), device)
        stream = residual_stream(self._model, examples.input_ids.to(device), **given)  # [L+1,B,T,D]
        stream = stream.take_along_dim(positions.to(device)[None, ..., None], 2)  # [L+1,B,R,D]
        depths, batch, count, width = stream.shape
        if self._lens is not None and self._lens.weight.shape != (depths - 1, width, width):
            raise ValueError(
                f"lens: expected translators [{depths - 1},{width},{width}] for this model, got "
                f"{list(self._lens.weight.shape)}"
            )
        stream = stream.flatten(1, 2)
        shared = candidates.shape[:2] == (1, 1)
        candidates = candidates.to(device)
        candidates = candidates[0, 0] if shared else candidates.expand(batch, count, -1).flatten(0, 1)
        translators = None if self._lens is None else (self._lens.weight.to(stream), self._lens.bias.to(stream))
        each = _of_depths(stream[:-1].contiguous(), translators, self._norm, head, candidates)
        last = head.surprisal(self._norm(stream[-1]), candidates)[None]
        return torch.cat([each, last]).view(depths, batch, count, -1)


def _of_depths(
    stream: Tensor, translators: tuple[Tensor, Tensor] | None, norm: Callable[[Tensor], Tensor], head: Readout,
    candidates: Tensor,
) -> Tensor:  # fmt: skip
    """[L,B,K] surprisal of the candidates at each depth of the stream [L,B,D]."""
    if head.module is None and stream.dtype == head.weight.dtype:
        return ops.lens_surprisal(stream, translators, norm, head.weight, candidates, bias=head.bias)
    if translators is not None:
        weight, bias = translators
        stream = stream + torch.einsum("lbd,led->lbe", stream, weight) + bias[:, None]
    return torch.stack([head.surprisal(norm(h), candidates) for h in stream])


def _gains(surprisal: NDArray[np.float64], probes: Probes) -> pd.DataFrame:
    of_pair = surprisal.mean(1)  # [L+1, ENV nouns, targets]
    same = np.eye(len(probes.nouns), dtype=bool)
    others = probes.pairs.numpy() & ~same
    matched = of_pair[:, same]
    mismatched = np.where(others, of_pair, 0.0).sum(1) / others.sum(0)
    depths, nouns = matched.shape
    return pd.DataFrame(
        {
            "depth": np.repeat(np.arange(depths), nouns),
            "target": list(probes.nouns) * depths,
            "matched": matched.ravel(),
            "mismatched": mismatched.ravel(),
            "gain": (mismatched - matched).ravel(),
        }
    )


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
        most = getattr(model.config, "max_position_embeddings", None) or length
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
    check_length(model, ids.shape[1], "data")
    return ids_of(ids, "data", 2, readable_ids(model))
