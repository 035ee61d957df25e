"""Is what a model gives the same each time? Dropout and its kin, as modules or within a forward function."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from symground.models.hooks import device_of, untapped
from symground.models.trials.output_head import hidden_states, trial_ids
from symground.models.trials.trying import hooked_by_others

#: Of a setting that makes passes differ in training: dropout, layerdrop, drop_path, attn_pdrop, router_jitter_noise, …
_RANDOM = re.compile(r"drop|jitter|noise", re.IGNORECASE)
_TRIAL = 16


def check_deterministic(model: PreTrainedModel) -> None:
    """Refuse a model of which two passes over the same text would differ, or whose texts in a batch are not apart.

    In evaluation two passes are compared where hooks of others act on the model, and nothing else is done. In training
    a module that drops is refused, and a part with a setting above 0 by the name of dropout or noise, such as is read
    within a forward function; then two passes are compared.

    Raises:
        ValueError: names what makes the difference, and where it is.
    """
    if not any(module.training for module in model.modules()):
        if hooked_by_others(model) and not _twice_the_same(model):
            raise ValueError(
                f"model: two passes of {type(model).__name__} over the same text differ, by a hook or a forward "
                "function that was put on it"
            )
        return
    for name, module in model.named_modules():
        if module.training:
            for what in _differs(module):
                where = f"{name or type(model).__name__} {what}"
                raise ValueError(f"model: expected model.eval(), or no dropout; {where}")
    if not _twice_the_same(model):
        raise ValueError(
            f"model: expected model.eval(); two passes of {type(model).__name__} over the same text differ in training"
        )


def _differs(module: nn.Module) -> Iterator[str]:
    if isinstance(module, _DropoutNd):
        if module.p > 0:
            yield f"drops {module.p} of its inputs"
        return
    if isinstance(module, _BatchNorm):
        yield "is a batch norm, which makes each text depend on the others"
    if isinstance(module, nn.RReLU):
        yield "draws its slopes"
    for name, value in vars(module).items():
        if _RANDOM.search(name) and isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
            yield f"has {name} = {value:g}"


def _twice_the_same(model: PreTrainedModel) -> bool:
    """By trying, with two states of the generators, on a few tokens."""
    settings: dict[str, Any] = vars(model.config.get_text_config())
    named = any(_RANDOM.search(n) and isinstance(x, float) and x > 0 for n, x in settings.items())
    found: list[Tensor] = []
    with torch.no_grad(), untapped(), torch.random.fork_rng():
        ids = trial_ids(model, _TRIAL).to(device_of(model))
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = _generator_state(ids.device)
            found.append(hidden_states(model, ids))
            drawn = not torch.equal(before, _generator_state(ids.device))
    # What is dropped now and then may be dropped in neither: then what was drawn and is named counts.
    first, second = found
    same = torch.allclose(first, second, rtol=0.0, atol=0.0, equal_nan=True)  # NaN is no matter of chance
    return same and not (named and drawn)


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
