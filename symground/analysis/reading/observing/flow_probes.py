"""Flow between groups from whatever backward pass follows a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symground.analysis.reading.layers import Part
from symground.models import Tap
from symground.models.hooks import device_of


def with_flow(taps: Mapping[Any, Tap], part: Part) -> Iterator[tuple[Any, Tap]]:
    """The taps of the part's modules, each with a flow probe whose gradient goes into the arrays."""
    layers, wanted, arrays = part.layers, part.wanted, part.arrays
    assert wanted.query_groups is not None
    assert wanted.key_groups is not None
    counts = len(wanted.query_names), len(wanted.key_names)
    # One further group on each side contains the positions that are in no group, so the totals are sums of the flow.
    query, key = (
        torch.where(of < 0, count, of)
        for of, count in zip((wanted.query_groups, wanted.key_groups), counts, strict=True)
    )
    for n, mixer in enumerate(layers):
        device = device_of(mixer.module)
        shape = wanted.examples, mixer.heads, *(count + 1 for count in counts)
        probe = torch.zeros(1, device=device).expand(shape).requires_grad_()
        probe.register_post_accumulate_grad_hook(partial(_take, arrays, n, counts))
        tap = taps[mixer.module]
        yield (
            mixer.module,
            replace(tap, flow_probe=probe, query_groups=query.to(device), key_groups=key.to(device)),
        )


def _take(arrays: Mapping[str, NDArray[Any]], layer: int, counts: tuple[int, int], probe: Tensor) -> None:
    """Add a probe's gradient [B,H,Gq+1,Gk+1] to the flow of its layer."""
    grad, probe.grad = probe.grad, None
    assert grad is not None
    num_query, num_key = counts
    of_group = grad[..., :num_query, :].float().cpu()
    for name, x in (("flow", of_group[..., :num_key]), ("row_total", of_group.sum(-1))):
        place = arrays[name][:, layer, : grad.shape[1]]
        place[...] = np.nan_to_num(place) + x.numpy()
