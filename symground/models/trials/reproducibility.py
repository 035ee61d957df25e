"""Whether what a model makes of a text depends on the text alone: not on chance, and not on the rest of the batch.

Chance is dropout and its kin, as modules or within a forward function. The rest of the batch counts where rotary
positions depend on how long a text is: LongRoPE (arXiv 2402.13753) and the dynamic NTK form. The longest text of a pass
decides how all of its positions are turned. So a text that grows beyond a limit is another text from its beginning on,
and texts of several lengths in one pass are not what each is alone. Hooks may do anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from symground.models.hooks import device_of, hooked_by_others, untapped
from symground.models.trials.output_head import agree, hidden_states, trial_ids

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


class Stretch(NamedTuple):
    kind: str
    limit: int
    """The most tokens of a text whose positions are as they were learnt."""


def stretch_of(model: PreTrainedModel) -> Stretch | None:
    """How a model's rotary positions depend on the length of the text; None where they do not."""
    config = model.config.get_text_config()
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found = []
    for part in (settings, *settings.values()):  # some models have them by the kind of layer
        if not isinstance(part, dict):
            continue
        kind = str(part.get("rope_type") or part.get("type") or "")
        if "dynamic" in kind or kind in ("longrope", "su"):
            limits = [getattr(config, "max_position_embeddings", None)]
            limits += [x.get("original_max_position_embeddings") for x in (part, vars(config))]
            found.append(Stretch(kind, min(limit for limit in limits if limit)))
    return min(found, key=lambda one: one.limit, default=None)


def check_lengths(model: PreTrainedModel, lengths: Tensor, width: int | None = None, *, logits: bool = False) -> None:
    """Refuse texts of these lengths [B] in one pass where they would not be read as each is alone.

    Where hooks or forward functions of others act on the model, two texts of the extreme lengths are tried.

    Args:
        model: any causal language model.
        lengths: how many tokens of each text count.
        width: how many positions of each the model takes for text; None: those that count.
        logits: whether its logits are compared, in place of its final hidden states.

    Raises:
        ValueError: positions that depend on the text's length, and texts on both sides of the limit; a hook that acts
            on a text by what else is in the pass, padding included.
    """
    stretch = stretch_of(model)
    shortest, longest = int(lengths.min()), max(int(lengths.max()), width or 0)
    if width is not None and (shortest < longest or len(lengths) > 1) and hooked_by_others(model):
        _check_apart(model, shortest, longest, logits)
    if stretch is None or longest <= stretch.limit or shortest == longest:
        return
    if shortest <= stretch.limit or "dynamic" in stretch.kind:
        raise ValueError(
            f"input_ids: {type(model).__name__} turns its positions by the longest text of a pass beyond "
            f"{stretch.limit} tokens (rope_type {stretch.kind!r}), and these have {shortest} to {longest}; give texts "
            "of one length at a time"
        )


@torch.no_grad()
def _check_apart(model: PreTrainedModel, shortest: int, longest: int, logits: bool) -> None:
    """Refuse a model that makes of a text something else beside another one, padded on the right, than alone.

    Its final hidden states are compared, or its ``logits``.

    Raises:
        ValueError: it does, by trying.
    """
    ids = trial_ids(model, longest + 1).to(device_of(model))
    rows = torch.cat([ids[:, :-1], ids[:, 1:]])

    def read(ids: Tensor) -> Tensor:
        return model(input_ids=ids).logits if logits else hidden_states(model, ids)

    with untapped():
        alone, beside = read(rows[1:, :shortest])[0, -1], read(rows)[1, shortest - 1]
    if not agree(beside, alone):
        raise ValueError(
            f"model: a hook or a forward function that was put on {type(model).__name__} makes of a text of {shortest} "
            f"tokens something else beside one of {longest}, padded on the right, than alone; give texts of one length "
            "at a time, or a hook that acts on each position of each text by itself"
        )
