"""Surprisal of every target noun after every context with every ENV noun."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedModel

from symground import ops
from symground.analysis.probes import Probes
from symground.models.readout import hidden_states, readout, verified_readout


def score(model: PreTrainedModel, probes: Probes, batch_size: int = 512) -> pd.DataFrame:
    """Score the probes: one forward pass per (context, ENV noun) serves all targets.

    Args:
        model: any causal language model of transformers, or one of ours.
        probes: from :func:`symground.probes`.
        batch_size: rows per forward pass. Rows of a batch have one length, so that a score depends on no padding.

    Returns:
        A DataFrame: context (its number), env, target (nouns), surprisal (nats).

    Raises:
        ValueError: a context longer than the model's positions, an id outside its vocabulary, or a surprisal that is
            not finite (names the context).
    """
    check_fits(model, probes)
    head = verified_readout(model)
    device = head.weight.device
    targets = probes.target_ids.to(device)
    values = []
    with torch.inference_mode():
        for c, length in enumerate(probes.lengths):
            rows = [
                ops.candidate_surprisal(
                    hidden_states(model, ids[:, :length].to(device))[:, -1], head.weight, targets, head.bias
                )
                for ids in probes.input_ids[c].split(batch_size)
            ]
            values.append(torch.cat(rows).float().cpu().numpy())  # [env, target]
            if not np.isfinite(values[-1]).all():
                raise ValueError(f"model: the surprisal after context {c} ({probes.contexts[c]}) is not finite")
    nouns = np.array(probes.nouns)
    count = len(nouns)
    return pd.DataFrame(
        {
            "context": np.repeat(np.arange(len(values)), count * count),
            "env": np.tile(np.repeat(nouns, count), len(values)),
            "target": np.tile(nouns, len(values) * count),
            "surprisal": np.concatenate([v.ravel() for v in values]),
        }
    )


def check_deterministic(model: PreTrainedModel) -> None:
    """Refuse a model whose dropout is on: its surprisal would be random."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.training and module.p > 0:
            raise ValueError(f"model: expected model.eval(), or no dropout; {name} drops {module.p} of its inputs")


def check_fits(model: PreTrainedModel, probes: Probes) -> None:
    """Refuse probes that the model cannot read, and a model whose dropout is on."""
    check_deterministic(model)
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    if positions is not None and max(probes.lengths) > positions:
        longest = int(np.argmax(probes.lengths))
        raise ValueError(
            f"probes: context {longest} has {probes.lengths[longest]} tokens, the model has {positions} positions"
        )
    rows = readout(model).weight.shape[0]
    largest = int(torch.maximum(probes.input_ids.max(), probes.target_ids.max()))
    if largest >= rows:
        raise ValueError(f"probes: id {largest} is outside the model's vocabulary of {rows}; is this its tokenizer?")
