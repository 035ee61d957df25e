"""A step of fitting the tuned lens to all depths, beside a forward pass over the same rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from symground.analysis.tracing.lenses.fitting import Fitter
from symground.models import create
from symground.models.trials import hidden_states

STAGE = "tuned lens"
FORWARD, STEP = "one forward pass", "a step of the lens"
#: preset, rows, tokens, vocabulary, share of the positions that are fitted
SHAPES = (("gpt2-12l-768", 4, 256, 12_714, 0.125), ("gpt2-4l", 16, 128, 12_714, 0.125))


def runs(
    preset: str, rows: int, tokens: int, vocabulary: int, share: float, device: str
) -> dict[str, Callable[[], Any]]:
    """The step and the forward pass, on the same ids."""
    model = create(preset, vocabulary, positions=tokens).to(device).eval()
    ids = torch.randint(2, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0))
    counts, chosen = torch.ones_like(ids, dtype=torch.bool), torch.Generator().manual_seed(0)
    model.requires_grad_(False)
    fitter = Fitter(model, 1e-3)

    @torch.no_grad()
    def forward() -> Any:
        hidden = hidden_states(model, ids.to(device), use_cache=False)
        return torch.nn.functional.linear(hidden, model.get_output_embeddings().weight)

    return {FORWARD: forward, STEP: lambda: fitter.step(ids, counts, share, chosen, 1e-4)}
