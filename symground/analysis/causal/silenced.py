"""Surprisal of the target, and of the context itself, while heads are silenced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.causal.fills import fills_of
from symground.analysis.causal.gates import gates_of
from symground.analysis.heads import SilencedHeads
from symground.analysis.probing import Asked, Examples
from symground.models.passes import gated
from symground.models.trials import Readout, check_deterministic, check_lengths, hidden_states, verified_readout

Plan = Sequence[SilencedHeads]
"""The heads that are silenced at the same time."""


class Behaviour(NamedTuple):
    """Surprisals for M plans and N examples."""

    target: NDArray[np.float64]
    """[M,N] surprisal of the target, nats."""
    context: NDArray[np.float64]
    """[M,N] mean surprisal of the context's tokens, each given those before it, nats; NaN for a context of one."""


@torch.no_grad()
def behaviour(
    model: PreTrainedModel,
    examples: Examples,
    plans: Sequence[Plan],
    mode: str = "zero",
    reference: Asked | Examples | None = None,
    batch_size: int = 1024,
    done: Callable[[], None] = lambda: None,
) -> Behaviour:
    """Measure the examples under each plan.

    Args:
        model: attached.
        examples: N of them.
        plans: M of them; each is a sequence of SilencedHeads with N head sets.
        mode: as for :func:`symground.ablate`.
        reference: for "mean", probes; for "resample", the examples that are paired with these.
        batch_size: examples per forward pass.
        done: called after each plan of each batch.
    """
    check_deterministic(model)
    check_lengths(model, examples.lengths, examples.input_ids.shape[1])
    head = verified_readout(model)
    device = head.weight.device
    examples, count = examples.read_by(model), len(examples.input_ids)
    target, context = np.empty((len(plans), count)), np.empty((len(plans), count))
    mean = fills_of(model, mode, reference) if mode == "mean" else None
    for start in range(0, count, batch_size):
        part = slice(start, min(start + batch_size, count))
        ids, given = examples.input_ids[part].to(device), examples.given(part, device)
        words = None if "image" not in examples.key_masks else ~examples.key_masks["image"][part].to(device)
        fills = mean
        if mode == "resample":
            assert isinstance(reference, Examples)
            fills = fills_of(model, mode, reference.part(part))
        p, wanted = examples.prediction[part].to(device), examples.part(part).wanted
        untouched: int | None = None  # the first plan that silences nothing here; later ones reuse its numbers
        for i, plan in enumerate(plans):
            nothing = not any(own for silenced in plan for own in silenced.heads[part])
            if nothing and untouched is not None:
                target[i, part], context[i, part] = target[untouched, part], context[untouched, part]
            else:
                with ExitStack() as stack:
                    for silenced in plan:
                        where = None if silenced.where is None else examples.query_masks[silenced.where][part]
                        stack.enter_context(gated(model, gates_of(model, silenced.heads[part]), fills, where))
                    hidden = hidden_states(model, ids, **given).to(device)  # [B,T,E]
                target[i, part] = _numbers(wanted.surprisal(head.surprisal, hidden).sum(1))
                context[i, part] = _numbers(_of_context(head, hidden, ids, p, words))
                untouched = i if nothing else untouched
            done()
    return Behaviour(target, context)


def _of_context(head: Readout, hidden: Tensor, ids: Tensor, p: Tensor, words: Tensor | None) -> Tensor:
    """[B] mean surprisal of the words from the second token to that at p; patches of images do not count.

    ``words`` [B,T] marks the words of models whose patches have ids of the vocabulary.
    """
    counts = torch.arange(1, ids.shape[1], device=ids.device) <= p[:, None]  # [B,T-1]
    counts &= (ids < head.weight.shape[0] if words is None else words)[:, 1:]
    each = head.surprisal(hidden[:, :-1][counts], ids[:, 1:][counts][:, None])
    total = hidden.new_zeros(counts.shape, dtype=each.dtype).masked_scatter(counts, each[:, 0]).sum(1)
    return total / counts.sum(1)


def _numbers(x: Tensor) -> NDArray[np.float64]:
    return x.double().cpu().numpy()
