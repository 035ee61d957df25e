"""How much memory a trace wants, before it is asked for: a formula whose two constants are read off short passes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from symground.models import Tap, mixers
from symground.models.hooks import device_of, tapped
from symground.models.passes import Kept, checkpointed, frozen
from symground.models.trials import check_deterministic, hidden_states, trial_ids, verified_readout

_TRIAL = 96
#: Of the widest part of a layer, how many tensors the way back holds at once beside what was kept.
_WORKING = 3


class TraceMemory(NamedTuple):
    """Bytes above the model's own."""

    kept: int
    """By the forward pass for the way back: grows with B·T."""
    layer: int
    """What is there of one layer at a time: its saliency B·T², its gradients, and with ``checkpoint`` all it keeps."""
    results: int
    """In host memory: the matrices of all layers and examples."""
    of_pass: int
    """Of these, those of one pass."""

    @property
    def device(self) -> int:
        """The peak on a GPU."""
        return self.kept + self.layer

    @property
    def cpu(self) -> int:
        """The peak where the model is in host memory too: layer by layer, what was kept goes and results come.

        A pass of less than about 200 MB may hold half as much again: the C library keeps what is freed.
        """
        return self.layer + self.results - self.of_pass + max(self.of_pass, self.kept)


def trace_memory(
    model: PreTrainedModel,
    length: int,
    batch_size: int = 1,
    *,
    examples: int | None = None,
    saliency: bool = True,
    rows: bool = False,
    checkpoint: bool = False,
    offload: bool = False,
) -> TraceMemory:
    """What :func:`symground.trace` of so many tokens will take above the model itself.

    With a, the bytes that a token makes the layers keep, L layers of width E, and M the widest part of a layer:

        kept = B·T·a, with ``checkpoint`` about B·T·(L + 1)·E, with ``offload`` 0
        layer = B·T²·4 (with ``saliency``) + 3·B·T·M, with ``checkpoint`` + B·T·a / L
        results = N·L·T²·4 (with ``saliency``) + N·L·H·T·4 (with ``rows``)
        the peak on a GPU = kept + layer; on a CPU, of one pass, max(kept, results) + layer

    a, and what stands in place of (L + 1)·E, are read off the model itself, in two passes over a few tokens of text. A
    vision tower is not counted: it runs before, and nothing of it is kept.

    Args:
        model: attached.
        length: T, tokens of an example, image tokens among them.
        batch_size: B, examples of a pass.
        examples: N; ``batch_size`` by default.
        saliency: as for the trace.
        rows: as for the trace.
        checkpoint: as for the trace.
        offload: as for the trace.

    Raises:
        ValueError: a model without mixers, or what trace refuses.
    """
    layers = mixers(model)
    if not layers:
        raise ValueError(f"model: {type(model).__name__} mixes positions by no matrix; its trace has no saliency")
    check_deterministic(model)
    count, size = examples or batch_size, verified_readout(model).weight.element_size()
    tokens = batch_size * length
    whole = _kept_a_token(model, False) * tokens
    kept = 0.0 if offload else (_kept_a_token(model, True) * tokens if checkpoint else whole)
    layer = 4.0 * tokens * length if saliency else 0.0
    layer += _WORKING * tokens * _widest(model) * size + (whole / len(layers) if checkpoint else 0.0)
    heads = max(mixer.heads for mixer in layers)
    of_example = 4 * len(layers) * length * ((length if saliency else 0) + (heads if rows else 0))
    return TraceMemory(round(kept), round(layer), count * of_example, min(count, batch_size) * of_example)


def _kept_a_token(model: PreTrainedModel, checkpoint: bool) -> float:
    """Bytes: the slope between two short passes, without what is there once."""
    text = model.config.get_text_config()
    most = min(_TRIAL, getattr(text, "max_position_embeddings", None) or _TRIAL)
    lengths, found = (max(1, most // 3), most), []
    for length in lengths:
        ids = trial_ids(model, length).to(device_of(model))
        probe = torch.zeros(1, device=ids.device).expand(1, length, length).requires_grad_()
        with ExitStack() as stack, torch.enable_grad():
            stack.enter_context(frozen(model))
            if checkpoint:
                stack.enter_context(checkpointed(model))
            probes = {m: probe.detach().to(device_of(m.module)).requires_grad_() for m in mixers(model)}
            stack.enter_context(tapped({mixer: Tap(saliency_probe=own) for mixer, own in probes.items()}))
            kept = stack.enter_context(Kept(model))
            hidden_states(model, ids, use_cache=False)
        found.append(kept.bytes)
    return (found[1] - found[0]) / (lengths[1] - lengths[0])


def _widest(model: PreTrainedModel) -> int:
    """Columns of the widest product within a layer."""
    sizes = [
        max(p.shape)
        for name, p in model.get_decoder().named_parameters()
        if p.ndim == 2 and any(part.isdigit() for part in name.split("."))
    ]
    return max(sizes, default=0)
