"""Estimate of the memory of a trace: a formula whose two constants are measured in short forward passes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from symground.errors import flag, integer
from symground.models import Tap, mixers
from symground.models.hooks import device_of, tapped
from symground.models.passes import Kept, check_weights, checkpointed, frozen
from symground.models.trials import check_deterministic, hidden_states, positions_of, trial_ids, verified_readout
from symground.running import LARGE_PASS, LARGE_TENSOR

_TRIAL = 96
#: Number of tensors of a layer's widest size that the backward pass holds at once beside the kept activations.
_WORKING = 3
#: What the forward pass frees and the C library keeps where it does not return it, as a share of the kept activations:
#: 0.36 to 0.48 in models like GPT-2 and SmolLM2.
_FREED = 0.4


class TraceMemory(NamedTuple):
    """Bytes beyond the model's own."""

    kept: int
    """Activations that the forward pass keeps for the backward pass; proportional to B·T."""
    layer: int
    """Tensors of one layer at a time: its saliency B·T², its gradients, and with ``checkpoint`` its activations."""
    results: int
    """The matrices of all layers and examples in host memory."""
    of_pass: int
    """The part of ``results`` that one backward pass gives: of a batch, with ``per_token`` of one target of each."""
    freed: int
    """Freed memory that is not returned on a CPU: without ``checkpoint``, that of tensors below 4 MiB."""

    @property
    def device(self) -> int:
        """The peak on a GPU."""
        return self.kept + self.layer

    @property
    def cpu(self) -> int:
        """The peak with the model in host memory: in the backward pass, each layer frees activations and adds results.

        With ``per_token``, only the last backward pass of a batch frees them.
        """
        return self.layer + self.results - self.of_pass + max(self.of_pass, self.kept) + self.freed


def trace_memory(
    model: PreTrainedModel,
    length: int,
    batch_size: int = 1,
    *,
    examples: int | None = None,
    saliency: bool = True,
    rows: bool = False,
    span: int | None = None,
    per_token: bool = False,
    checkpoint: bool = False,
    offload: bool = False,
) -> TraceMemory:
    """The memory that :func:`symground.trace` needs for examples of ``length`` tokens, beyond the model itself.

    With a the bytes that the layers keep per token, L layers of width E, M the width of a layer's widest tensor, R the
    tokens of a span, and P of them with results of their own (R with ``per_token``, else 1):

        kept = B·T·a, with ``checkpoint`` about B·T·(L + 1)·E, with ``offload`` 0
        layer = B·T²·4 (with ``saliency``) + B·R·H·T·4 (with ``rows``) + 3·B·T·M, with ``checkpoint`` + B·T·a / L
            (twice that with ``per_token``)
        results = N·P·L·T²·4 (with ``saliency``) + N·P·L·H·T·4 (with ``rows``)
        freed = 0.4·kept + min(kept, results/P) where B·T·E numbers are less than 4 MiB (or L·B·T·E less than 2²²),
            without ``checkpoint``; else 0
        the peak on a GPU = kept + layer
        the peak on a CPU, of one batch, = results·(P - 1)/P + max(kept, results/P) + layer + freed

    a and the bytes for (L + 1)·E are measured on the model, in forward passes over a few tokens of text. A vision tower
    is not counted: it runs before the layers, and none of its activations are kept.

    Args:
        model: attached.
        length: T, tokens of an example, including image tokens.
        batch_size: B, examples of a pass.
        examples: N; ``batch_size`` by default.
        saliency: as for the trace.
        rows: as for the trace.
        span: R, the tokens of the longest span; None, a target after each example.
        per_token: as for the trace.
        checkpoint: as for the trace.
        offload: as for the trace.

    Raises:
        ValueError: a model without mixers, a span that is no part of the length, or what trace refuses.
    """
    length, batch_size = integer("length", length, 1), integer("batch_size", batch_size, 1)
    examples = batch_size if examples is None else integer("examples", examples, 1)
    saliency, rows, per_token = flag("saliency", saliency), flag("rows", rows), flag("per_token", per_token)
    if span is not None:
        span = integer("span", span, 1, length - 1)  # something stands before each of its tokens
    elif per_token:
        raise ValueError("per_token: expected False without a span, since each example has one target")
    checkpoint, offload = flag("checkpoint", checkpoint), flag("offload", offload)
    layers = mixers(model)
    if not layers:
        raise ValueError(f"model: {type(model).__name__} mixes positions by no matrix; its trace has no saliency")
    check_weights(model)
    check_deterministic(model)
    weight = verified_readout(model).weight
    size, width = weight.element_size(), weight.shape[-1]
    tokens = batch_size * length
    whole = _kept_a_token(model, False) * tokens
    kept = 0.0 if offload else (_kept_a_token(model, True) * tokens if checkpoint else whole)
    layer = 4.0 * tokens * length if saliency else 0.0
    # The graph that the next token's backward pass needs holds what was recomputed until another layer is.
    recomputed = 2 if per_token else 1
    layer += _WORKING * tokens * _widest(model) * size + (recomputed * whole / len(layers) if checkpoint else 0.0)
    heads, targets = max(mixer.heads for mixer in layers), span if span is not None and per_token else 1
    layer += 4.0 * tokens * heads * (span or 1) if rows else 0.0
    of_target = 4 * len(layers) * length * ((length if saliency else 0) + (heads if rows else 0))
    of_pass = min(examples, batch_size) * of_target
    returned = tokens * width * size >= LARGE_TENSOR and len(layers) * tokens * width >= LARGE_PASS
    freed = 0.0 if checkpoint or returned else _FREED * kept + min(kept, of_pass)
    return TraceMemory(round(kept), round(layer), examples * targets * of_target, of_pass, round(freed))


def _kept_a_token(model: PreTrainedModel, checkpoint: bool) -> float:
    """Bytes kept per token: the slope between two short passes, which cancels constant terms."""
    most = min(_TRIAL, positions_of(model) or _TRIAL)
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
    """The largest dimension of the weight matrices within a layer."""
    sizes = [
        max(p.shape)
        for name, p in model.get_decoder().named_parameters()
        if p.ndim == 2 and any(part.isdigit() for part in name.split("."))
    ]
    return max(sizes, default=0)
