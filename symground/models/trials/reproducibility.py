"""Whether a model's output for a text depends on the text alone: not on chance, and not on the rest of the batch.

Chance is dropout and similar noise, as modules or within a forward function. The rest of the batch matters if rotary
positions depend on the length of the text: LongRoPE (arXiv 2402.13753) and dynamic NTK. The longest text of a pass
then decides the rotation of all positions. So a text that grows beyond a limit changes from its beginning on, and
a text in a batch with longer ones differs from the text alone. Hooks may do anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from symground.models.hooks import device_of, hooked_by_others, untapped
from symground.models.trials.output_head import agree, hidden_states, trial_ids
from symground.models.trials.positions import stretch_of

#: Settings that make training passes random: dropout, layerdrop, drop_path, attn_pdrop, router_jitter_noise, …
_RANDOM = re.compile(r"drop|jitter|noise", re.IGNORECASE)
_TRIAL = 16


def check_deterministic(model: PreTrainedModel) -> None:
    """Refuse a model if two passes over the same text would differ, or if texts in a batch affect each other.

    In evaluation mode, two passes are compared only if hooks of other code act on the model. In training mode, an
    active dropout module is refused, and so is a module attribute named dropout or noise that is above 0. Otherwise
    two passes are compared, if the model has a vocabulary head.

    Raises:
        ValueError: the message names what makes the difference, and where it is.
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
    if model.get_output_embeddings() is None:  # the trial reads words
        return
    if not _twice_the_same(model):
        raise ValueError(
            f"model: expected model.eval(); two passes of {type(model).__name__} over the same text differ in training"
        )


def check_dropout(modules: Mapping[int, nn.Module], argument: str, soon: bool = False) -> None:
    """Refuse attention modules, by their layers, that drop some of their weights: in training now, or ``soon``.

    Raises:
        ValueError: names ``argument``, which asks for flow.
    """
    for layer, module in modules.items():
        share = _attention_dropout(module)
        if share > 0 and (soon or module.training):
            raise ValueError(
                f"{argument}: expected an attention dropout of 0, since flow is of weights without it; layer {layer} "
                f"({type(module).__name__}) drops {share:g} of its own in training"
            )


def _attention_dropout(module: nn.Module) -> float:
    """The share of its weights that an attention module drops, by its attributes; 0 if none."""
    found = [0.0]
    for name, value in (*vars(module).items(), *module.named_children()):
        of_weights = name in ("dropout", "dropout_p") or ("att" in name and "drop" in name)
        share = value.p if isinstance(value, nn.Dropout) else value
        if of_weights and isinstance(share, float):
            found.append(share)
    return max(found)


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
    """Whether two passes over a few tokens, with two seeds, are equal."""
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
    # Rare dropout may drop nothing in both passes. Then random draws together with a dropout setting count.
    first, second = found
    same = torch.allclose(first, second, rtol=0.0, atol=0.0, equal_nan=True)  # NaN does not count as a difference
    return same and not (named and drawn)


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def check_lengths(model: PreTrainedModel, lengths: Tensor, width: int | None = None, *, logits: bool = False) -> None:
    """Refuse texts of these lengths [B] in one pass if a text's result would differ from that of the text alone.

    If hooks or forward functions of other code act on the model, a trial runs two texts of the extreme lengths.

    Args:
        model: any causal language model.
        lengths: the number of valid tokens of each text.
        width: the number of positions that the model sees as text, padding included; None: the valid ones.
        logits: compare the logits, in place of the final hidden states.

    Raises:
        ValueError: positions depend on the text's length, and texts lie on both sides of the limit; or a hook's effect
            on a text depends on the rest of the pass, padding included.
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
    """Refuse a model whose result for a right-padded text beside another one differs from that of the text alone.

    The final hidden states are compared, or the ``logits``.

    Raises:
        ValueError: the trial shows a difference.
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
