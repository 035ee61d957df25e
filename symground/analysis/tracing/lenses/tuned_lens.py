"""Predictions of a model at every depth: the tuned lens and the plain logit lens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import texts_of
from symground.analysis.probing import Probes, check_fits
from symground.analysis.tracing.lenses.fitting import fitted
from symground.analysis.tracing.lenses.states import Reading
from symground.analysis.tracing.trace_input import checked_mask
from symground.data import Corpus
from symground.display import as_table, as_text, some
from symground.errors import check_device, check_file, check_path, described, errors_named, integer, number
from symground.files import replacing
from symground.models import mixers
from symground.models.passes import check_weights
from symground.models.trials import check_deterministic, check_lengths
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
        weight, bias, divergence = fitted(
            model, data, steps, batch_size, length, share, learning_rate, warmup, weight_decay, seed
        )
        return TunedLens(weight, bias, divergence)

    def save(self, path: str | Path) -> Path:
        """Write the lens as one safetensors file.

        Raises:
            ValueError: ``path`` is none, or a folder.
        """
        path = check_file(path, "path", makes_folder=True)
        tensors = {"weight": self.weight.contiguous().cpu(), "bias": self.bias.contiguous().cpu()}
        with replacing(path) as partial:
            save_file(tensors, partial, {"symground": "tuned lens", "divergence": json.dumps(self.divergence)})
        return path

    def read(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None, top: int = 5
    ) -> xr.Dataset:
        """What each depth would say at each position of texts; see :func:`symground.lens_read`."""
        return lens_read(model, input_ids, attention_mask, lens=self, top=top)

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
    translators = _translators(lens)
    batch_size = integer("batch_size", batch_size, 1)
    rows = probes.matched().read_by(model)  # every context with every ENV noun
    check_lengths(model, rows.lengths, rows.input_ids.shape[1])
    reading = Reading(model, translators)
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


@torch.no_grad()
def lens_read(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None, *, lens: TunedLens | None = None,
    top: int = 5, batch_size: int = 8,
) -> xr.Dataset:  # fmt: skip
    """What each depth of a model would say at each position of texts.

    Args:
        model: attached, in evaluation.
        input_ids: [B,T], a tensor, an array or lists.
        attention_mask: [B,T], 1 for valid tokens, padding at the ends; None: all valid.
        lens: None is the plain logit lens.
        top: how many of the likeliest tokens.
        batch_size: texts per pass.

    Returns:
        A Dataset whose depth is the number of layers passed: 0 is the embedding, the last is the model's output.

        - token (example, depth, query, rank), ids, and probability (likewise): the likeliest tokens;
        - entropy (example, depth, query), nats;
        - surprisal (example, depth, query), nats, of the token that follows in the text; NaN at its last one;
        - the coordinate valid (example, query); where it is False, the numbers mean nothing.

    Raises:
        ValueError: shapes that do not fit, ids outside the vocabulary, a text longer than the model's positions, a lens
            of a model of another size, or dropout that is on.

    Source: Belrose et al. 2023 (tuned lens); nostalgebraist 2020 (logit lens).
    """
    check_weights(model)
    mixers(model)
    top, batch_size = integer("top", top, 1), integer("batch_size", batch_size, 1)
    translators = _translators(lens)
    ids = texts_of(model, input_ids, "input_ids")
    mask = torch.ones_like(ids) if attention_mask is None else checked_mask(attention_mask, ids, "attention_mask")
    valid = mask.bool()
    check_deterministic(model)
    check_lengths(model, valid.sum(-1), None if attention_mask is not None else ids.shape[1])
    reading = Reading(model, translators)
    top = integer("top", top, 1, reading.words)
    follows = torch.cat([ids[:, 1:], ids[:, :1]], 1)
    followed = torch.cat([valid[:, 1:], torch.zeros_like(valid[:, :1])], 1) & valid
    parts = []
    with progress("lens", -(-len(ids) // batch_size), quick=True) as bar:
        for start in range(0, len(ids), batch_size):
            at = slice(start, start + batch_size)
            inputs = {} if attention_mask is None else {"attention_mask": mask[at]}
            parts.append(reading.predictions(ids[at], follows[at], inputs, top))
            bar.advance()
    token, probability, entropy, surprisal = (torch.cat(x, 1).transpose(0, 1).cpu() for x in zip(*parts, strict=True))
    surprisal = surprisal.masked_fill(~followed[:, None], float("nan"))
    of = ("example", "depth", "query")
    return xr.Dataset(
        {
            "token": ((*of, "rank"), token.numpy()), "probability": ((*of, "rank"), probability.numpy()),
            "entropy": (of, entropy.numpy()), "surprisal": (of, surprisal.numpy()),
        },
        {"depth": np.arange(token.shape[1]), "valid": (("example", "query"), valid.numpy())},
    )  # fmt: skip


def _translators(lens: Any) -> tuple[Tensor, Tensor] | None:
    """Those of a lens; None is the plain logit lens.

    Raises:
        ValueError: it is neither.
    """
    if lens is not None and not isinstance(lens, TunedLens):
        raise ValueError(f"lens: expected a TunedLens, or None for the plain logit lens, got {described(lens)}")
    return None if lens is None else (lens.weight, lens.bias)


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
