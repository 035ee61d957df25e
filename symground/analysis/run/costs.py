"""How long the analyses of a model will take, from short trials of their passes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.causal import FACTORS, behaviour
from symground.analysis.probing import Examples, Probes
from symground.analysis.run.analyses import STEERED, Subject
from symground.analysis.tracing import TunedLens, trace
from symground.models import mixers
from symground.models.passes import readable_ids
from symground.models.trials import positions_of

_ROWS = 16
_LENS = (16, 128)  # rows and tokens of a step


def estimated(at: Subject) -> dict[str, float]:
    """Analysis → its seconds, for those that the settings ask for; right to about a factor of two.

    A forward pass, a trace and a step of the lens's fit are timed on a few rows. The rest is counting.
    """
    asked, used, s = at.probes, at.used, at.settings
    every, some = len(asked), len(used)
    few = used.matched().part(slice(0, _ROWS))
    forward = _of_row(few, lambda rows: behaviour(at.model, rows, [[]]))
    found = {"surprisal": forward * every}
    if "lens" in s.what:
        ids = _random_ids(at.model)
        found["lens"] = 2 * forward * every + s.lens_fit * _seconds(lambda: TunedLens.fit(at.model, ids, steps=1))
    layers, factors = mixers(at.model), 1 + len(FACTORS)  # of steering, with the unchanged model's
    if layers:
        traced = _of_row(few, lambda rows: trace(at.model, rows))
        # Every word of several tokens is another pass, as the choice among words goes by their surprisal.
        chosen = forward * (1 + sum(len(ids) > 1 for ids in asked.targets))
        maps = min(s.map_nouns, len(asked.nouns)) * min(s.map_contexts, len(asked.contexts))
        calls = len(s.spans) * len(s.positions) * len(s.mode) * len(s.match) * len(s.selection)
        plans = 1 + len(s.kinds) * len(s.denominators) * (1 + s.draws)
        # A silenced head runs the layers above it, half of them on average, over the tokens that rows do not share.
        swept = sum(mixer.heads for mixer in layers) / 2 * _unshared(used)
        found |= {
            "saliency": traced * (2 * every + maps),
            "interventions": calls * some * (traced + 2 * plans * forward),
            "sweep": some * (traced + swept * forward),
            "monitor": every * (2 * traced + chosen) + some * (traced + factors * (1 + STEERED) * chosen),
        }
    return {name: found[name] for name in s.what if name in found}


def _of_row(few: Examples, what: Callable[[Examples], object]) -> float:
    """The seconds that each further row takes, since a call also has work that does not grow with its rows."""
    whole, one = _seconds(lambda: what(few)), _seconds(lambda: what(few.part(slice(0, 1))))
    return max(0.0, whole - one) / (len(few.input_ids) - 1)


def _seconds(what: Callable[[], object]) -> float:
    """The shorter of two runs; the first may also load what later ones find loaded."""
    taken = []
    for _ in range(2):
        begun = time.perf_counter()
        what()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _random_ids(model: PreTrainedModel) -> Tensor:
    rows, length = _LENS
    most = positions_of(model) or length
    return torch.randint(readable_ids(model), (rows, min(length, most)), generator=torch.Generator().manual_seed(0))


def _unshared(probes: Probes) -> float:
    """The share of a row's tokens that come after what the rows of its context share."""
    rows = [row for of_context in probes.rows for row in of_context]
    return 1 - sum(len(row.before) / len(row.ids) for row in rows) / len(rows)
