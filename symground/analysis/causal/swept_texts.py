"""The texts of a sweep of heads: the matched examples of probes, or any texts with what is predicted in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import texts_of
from symground.analysis.probing import Probes, Targets, check_fits, padded
from symground.analysis.tracing import check_one_of, checked_mask, wanted_of
from symground.models.passes import check_weights
from symground.models.trials import check_deterministic, looks_ahead, readout


class SweptTexts(NamedTuple):
    """N texts without padding on the left, cut after their last prediction position; shorter ones are filled up."""

    ids: Tensor
    """[N,T]"""
    targets: Targets
    context: list[int]
    """Texts of one number may share a beginning."""
    labels: dict[str, tuple[str, list[Any]]]
    """Coordinates of the examples."""
    probes: Probes | None = None
    """Those whose matched examples the texts are."""

    @property
    def reference(self) -> Probes | dict[str, Tensor]:
        """The probes, or the texts as inputs of the model."""
        if self.probes is not None:
            return self.probes
        return {
            "input_ids": self.ids,
            "attention_mask": (torch.arange(self.ids.shape[1]) < self.lengths[:, None]).long(),
        }

    @property
    def lengths(self) -> Tensor:
        """[N]"""
        return self.targets.positions.amax(1) + 1

    @property
    def kept(self) -> Tensor:
        """[N] how many of the last positions contain all that predict."""
        absent = self.targets.positions < 0
        return self.lengths - self.targets.positions.masked_fill(absent, self.ids.shape[1]).amin(1)


def of_probes(model: PreTrainedModel, probes: Probes) -> SweptTexts:
    """The matched examples of probes.

    Raises:
        ValueError: the model cannot read them.
    """
    check_fits(model, probes)
    examples = probes.matched().read_by(model)
    labels: dict[str, tuple[str, list[Any]]] = {
        "context": ("example", examples.context),
        "noun": ("example", examples.noun),
    }
    return SweptTexts(examples.input_ids, examples.wanted, examples.context, labels, probes)


def of_texts(model: PreTrainedModel, input_ids: Any, targets: Any, span: Any, attention_mask: Any) -> SweptTexts:
    """Texts [N,T] as ids with their targets; the arguments are those of `symground.trace`.

    Raises:
        ValueError: as there.
    """
    check_weights(model)
    check_one_of(targets, span)
    ids = texts_of(model, input_ids, "probes").cpu()
    valid = torch.ones_like(ids, dtype=torch.bool)
    if attention_mask is not None:
        valid = checked_mask(attention_mask, ids, "attention_mask").bool()
    wanted = wanted_of(targets, span, ids, valid, readout(model).weight.shape[0])
    check_deterministic(model)
    if span is not None and looks_ahead(model):
        raise ValueError(
            f"span: {type(model).__name__} sees later tokens, so it does not predict those of a span; expected a "
            "causal model, or targets"
        )
    first = valid.int().argmax(-1, keepdim=True)  # [N,1]
    positions = torch.where(wanted.positions < 0, -1, wanted.positions - first)
    stops = (first[:, 0] + positions.amax(1) + 1).tolist()
    rows = [tuple(row[a:b].tolist()) for row, a, b in zip(ids, first[:, 0].tolist(), stops, strict=True)]
    return SweptTexts(padded(rows), Targets(positions, wanted.ids), [0] * len(ids), {})
