"""One forward and backward pass of a trace: each layer's result moves to host memory once it is computed.

A hook takes the gradient of a probe when autograd accumulates it, reduces it into arrays in host memory, and drops it.
A device therefore holds what any backward pass holds, and the result of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.probing import Targets
from symground.analysis.tracing.collected import Part, Results
from symground.models import Mixer
from symground.models.hooks import RowProbe, Tap, device_of, hooked, runs_once, tapped
from symground.models.passes import checkpointed, frozen, offloaded
from symground.models.trials import Readout, hidden_states, looks_ahead, sees_change, trial_ids
from symground.running import LARGE_PASS, return_freed_memory

#: Loss scale of float16 models, whose gradients would underflow; results are divided by it.
_SCALE = 2.0**10


class Pass(NamedTuple):
    """The inputs of one pass, B examples."""

    ids: Tensor
    """[B,T]"""
    targets: Targets
    inputs: Mapping[str, Any]
    """Further inputs of the model."""


class _Leaves:
    """Saliency, flow and row probes: leaf tensors with storage for one number, whose gradients are taken by hooks."""

    def __init__(self, at: slice, scale: float) -> None:
        self.leaves: list[Tensor] = []
        self.unreached: dict[Tensor, tuple[Part, int]] = {}
        """The leaves without a gradient so far, and the parts and indices of their layers."""
        self.wrong: list[int] = []
        """Numbers of the layers whose flow is not finite."""
        self.target: int | None = None
        """The target whose gradient is computed; None: the sum over all."""
        self._at, self._scale = at, scale

    def add(self, kind: str, part: Part, layer: int, device: torch.device, *shape: int) -> Tensor:
        leaf = torch.zeros(1, device=device).expand(shape).requires_grad_()
        leaf.register_post_accumulate_grad_hook(partial(self._take, kind, part, layer))
        self.leaves.append(leaf)
        self.unreached[leaf] = part, layer
        return leaf

    def clear(self) -> None:
        """Break the reference cycle leaf → hook → self → leaf, which the garbage collector does not see."""
        self.leaves.clear()
        self.unreached.clear()

    def _take(self, kind: str, part: Part, layer: int, leaf: Tensor) -> None:
        grad, leaf.grad = leaf.grad, None
        if grad is None:  # a later layer has no backward pass
            return
        self.unreached.pop(leaf, None)
        getattr(self, f"_{kind}")(part, part.results.of_target(self.target), layer, grad)

    def _put(self, into: NDArray[np.float32], grad: Tensor) -> Tensor:
        """Copy a gradient from its device into the results, without a further copy."""
        place = torch.from_numpy(into)
        place.copy_(grad)
        return place if self._scale == 1 else place.div_(self._scale)

    def _saliency(self, part: Part, results: Results, layer: int, grad: Tensor) -> None:
        assert results.saliency is not None
        self._put(results.saliency[part.at(self._at), layer], grad).abs_()

    def _rows(self, part: Part, results: Results, layer: int, grad: Tensor) -> None:
        assert results.rows is not None
        of_targets = grad.sum(2) if self.target is None else grad[:, :, self.target]
        self._put(results.rows[part.at(self._at), layer, : grad.shape[1]], of_targets)

    def _flow(self, part: Part, results: Results, layer: int, grad: Tensor) -> None:
        heads = grad.shape[1]
        num_query, num_key = results.groups
        if part.split is not None:
            assert self.target is not None
            grad = part.split.joined(grad, self.target, num_query)
        of_group = grad[..., :num_query, :]
        for into, value in (
            (results.flow, of_group[..., :num_key]),
            (results.row_total, of_group.sum(-1)),
            (results.matrix_total, grad.sum((-1, -2))),
        ):
            placed = self._put(into[part.at(self._at), layer, :heads], value)
        if not bool(placed.isfinite().all()):
            self.wrong.append(part.layers[layer].layer)


class Loss(NamedTuple):
    """What a pass is traced back from."""

    of: Callable[[], Tensor]
    """Runs the model, and returns one number an example [B], or one for each of its targets [B,R]."""
    name: str
    weight: Tensor
    """A weight whose dtype and row length are the model's."""


def run_pass(
    model: PreTrainedModel,
    loss: Loss,
    parts: Sequence[Part],
    at: slice,
    checkpoint: bool,
    offload: bool,
    positions: Tensor | None = None,
    per_token: bool = False,
) -> NDArray[np.float32]:
    """Trace a batch into the results of the parts at the examples ``at``, and return the losses [B] or [B,R].

    ``positions`` [B,R] are those of ``rows``. With ``per_token``, each of the R targets has a backward pass and results
    of its own, else there is one of their sum.

    Raises:
        ValueError: a loss or a flow that is not finite, or layers that the gradient does not reach.
    """
    kind = device_of(model).type
    lowered = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else loss.weight.dtype
    half = torch.float16 in (loss.weight.dtype, lowered)
    probes = _Leaves(at, _SCALE if half else 1.0)
    with ExitStack() as stack, torch.enable_grad():
        stack.callback(probes.clear)
        stack.enter_context(frozen(model))
        width = loss.weight.shape[-1]
        large = sum(part.groups[0].numel() * len(part.layers) for part in parts) * width >= LARGE_PASS
        stack.enter_context(return_freed_memory(kind == "cpu" and (large or checkpoint), small=checkpoint))
        if checkpoint:
            stack.enter_context(checkpointed(model))
        stack.enter_context(tapped({m: tap for part in parts for m, tap in _taps(part, probes, positions).items()}))
        check_runs = stack.enter_context(runs_once(model, [mixer for part in parts for mixer in part.layers]))
        with offloaded(model) if offload else nullcontext():
            each = loss.of()
        check_runs()
        check_finite(each, half, loss.name)
        # Within the block, since layers that are recomputed in the backward pass must see the same taps.
        if each.requires_grad:
            totals = each.sum(0) if per_token else each.sum()[None]
            with torch.autocast(kind, enabled=False), _recomputed(checkpoint):  # the dtypes are the forward pass's
                for target, total in enumerate(totals * (_SCALE if half else 1.0)):
                    probes.target, more = target if per_token else None, target + 1 < len(totals)
                    torch.autograd.backward(total, inputs=probes.leaves, retain_graph=more)
        lost, count = list(probes.unreached.values()), len(probes.leaves)
    if loss.name == "loss" and lost and len(lost) == count:
        raise ValueError("loss: expected a number that depends on the model's output, got one that depends on no layer")
    unread = [part.layers[layer] for part, layer in lost if not _leads_nowhere(part, layer, lost)]
    if unread:
        names = ", ".join(sorted({f"layer {mixer.layer} ({type(mixer.module).__name__})" for mixer in unread}))
        raise ValueError(
            f"model: the gradient does not reach every layer's attention: not that of {names}; such a layer may not "
            "lead to the loss, run without gradients (torch.no_grad, or linear layers that quantise their inputs to "
            'int8), or be checkpointed otherwise than with gradient_checkpointing_kwargs={"use_reentrant": False}'
        )
    for part, layer in lost:
        for of in range(each.shape[1]) if per_token else (None,):
            part.results.of_target(of).nothing(part.at(at), layer, part.layers[layer].heads)
    if probes.wrong:
        raise ValueError(f"model: the flow of layer {probes.wrong[0]} is not finite{_hint(half)}")
    found: NDArray[np.float32] = each.detach().float().cpu().numpy()
    return found


def _leads_nowhere(part: Part, layer: int, lost: Sequence[tuple[Part, int]]) -> bool:
    """Whether a layer is one of the last of a vision tower, which a model that reads an earlier one does not use."""
    later = range(layer, len(part.layers))
    of_part = {i for of, i in lost if of.results is part.results}
    return part.layers[layer].kind == "vision" and 0 not in of_part and of_part.issuperset(later)


@contextmanager
def _recomputed(checkpoint: bool) -> Iterator[None]:
    """Name checkpointing as the cause if a layer's second forward pass fails, or differs from its first."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not checkpoint:
            raise
        raise ValueError(
            f"checkpoint: expected False, since a layer of this model cannot be recomputed ({error}); one that keeps a "
            "key-value cache in any case (XLM's) cannot"
        ) from error


def _taps(part: Part, probes: _Leaves, positions: Tensor | None) -> dict[Mixer, Tap]:
    """A tap with the probes of each layer."""
    results, (count, queries), keys = part.results, part.groups[0].shape, part.groups[1].shape[1]
    # One further group on each side contains the positions that are in no group, so the totals are sums of the flow.
    rest = [torch.where(of < 0, num, of) for of, num in zip(part.groups, part.counts, strict=True)]
    num_query, num_key = part.counts
    taps = {}
    for i, mixer in enumerate(part.layers):
        device, heads = device_of(mixer.module), mixer.heads
        row = None
        if positions is not None and results.rows is not None:
            each = probes.add("rows", part, i, device, count, heads, positions.shape[1], keys)
            row = RowProbe(each, positions.to(device))
        asked = results.saliency is not None
        taps[mixer] = Tap(
            saliency_probe=probes.add("saliency", part, i, device, count, queries, keys) if asked else None,
            flow_probe=probes.add("flow", part, i, device, count, heads, num_query + 1, num_key + 1),
            query_groups=rest[0].to(device),
            key_groups=rest[1].to(device),
            row_probe=row,
        )
    return taps


def gradient_x_input(
    model: PreTrainedModel, head: Readout, batch: Pass, per_token: bool
) -> dict[str, NDArray[np.float32]]:
    """Surprisal [B,R] and gradient × input [B,T], the gradient of a probe: embeddings enter as e · (1 + probe).

    With ``per_token``, the gradient of each of the R targets, [B,R,T].
    """
    probe = torch.zeros(batch.ids.shape, device=head.weight.device, dtype=head.weight.dtype, requires_grad=True)
    hook = model.get_input_embeddings(), lambda _, args, out: out * (1 + probe)[..., None]
    # cuDNN has no backward pass for an LSTM in evaluation mode.
    with hooked(hook), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        surprisal = surprisal_at(model, head, batch)
        totals = surprisal.sum(0) if per_token else surprisal.sum()[None]
        grads = [torch.autograd.grad(total, probe, retain_graph=True)[0] for total in totals]
    check_finite(surprisal, half=False)
    grad = torch.stack(grads, 1) if per_token else grads[0]
    return {"surprisal": surprisal.detach().float().cpu().numpy(), "input_x_gradient": grad.float().cpu().numpy()}


def surprisal_at(model: PreTrainedModel, head: Readout, batch: Pass) -> Tensor:
    """[B,R] surprisal of the targets, nats; 0 where an example has fewer."""
    hidden = _hidden(model, batch, batch.ids)

    def of(rows: Tensor, ids: Tensor) -> Tensor:
        # Offloaded weights are on meta between passes.
        place = rows.device if head.weight.is_meta else head.weight.device
        return head.surprisal(rows.to(place), ids.to(place))

    return batch.targets.surprisal(of, hidden)


def _hidden(model: PreTrainedModel, batch: Pass, ids: Tensor) -> Tensor:
    """The final hidden states [B,T,D] of ids with the further inputs of a batch."""
    device = device_of(model)
    inputs = {n: value.to(device) if isinstance(value, Tensor) else value for n, value in batch.inputs.items()}
    return hidden_states(model, ids.to(device), **{"use_cache": False, **inputs})


@torch.no_grad()
def check_unseen(model: PreTrainedModel, batch: Pass) -> None:
    """Refuse targets in the text itself that the model sees at their prediction positions.

    In a model whose tokens see later ones, the last target of each example is replaced by another word.

    Raises:
        ValueError: this changes a state before it.
    """
    if not looks_ahead(model):
        return
    last = batch.targets.positions.amax(1) + 1  # [B]
    each, other = torch.arange(len(last)), batch.ids.clone()
    words = trial_ids(model, 2)[0].to(other.device)
    other[each, last] = torch.where(other[each, last] == words[0], words[1], words[0])
    if sees_change(_hidden(model, batch, batch.ids), _hidden(model, batch, other), last):
        raise ValueError(
            f"span: {type(model).__name__} sees tokens of the span before it predicts them; expected a causal model, "
            "or inputs by which its text is read from left to right"
        )


def check_finite(each: Tensor, half: bool, name: str = "surprisal") -> None:
    """Refuse a loss [B] or [B,R] that is not finite, before the backward pass."""
    if not bool(each.isfinite().all()):
        first = int((~each.isfinite()).nonzero()[0, 0])
        raise ValueError(f"model: the {name} of example {first} of a batch is not finite{_hint(half)}")


def _hint(half: bool) -> str:
    return ": float16 overflows in this model; load it in bfloat16 or float32" if half else ""
