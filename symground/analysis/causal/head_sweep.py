"""The effect of silencing each head alone on the surprisal of the matched probes, exactly and to first order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.causal.fills import MODES, aligned, fills_of
from symground.analysis.causal.swept_texts import SweptTexts, of_probes, of_texts
from symground.analysis.probing import MEMORY, Examples, Probes, Targets, check_asked
from symground.analysis.tracing import check_alone
from symground.errors import choice, flag, integer
from symground.models import Mixer, Tap, mixers
from symground.models.hooks import Replacement, head_outputs, tapped
from symground.models.passes import Replay, gated, replays
from symground.models.trials import check_lengths, hidden_states, stretch_of, verified_readout
from symground.running import progress

METHODS = ("both", "exact", "first-order")
WHERE = ("all", "prediction")


def sweep_heads(
    model: PreTrainedModel,
    probes: Probes | Tensor,
    targets: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    span: Tensor | None = None,
    method: str = "both",
    positions: str = "all",
    mode: str = "zero",
    per_example: bool = False,
    memory: int | None = None,
) -> xr.DataArray:
    """The effect of silencing each head alone: the rise of the texts' mean surprisal, in nats.

    The exact method runs the layers below a head once. It then runs the layers above with all heads of the layer as one
    batch. A prefix that examples share runs once per head. The last layer computes only the prediction position. The
    first-order estimate −⟨O_h − fill, ∂L/∂O_h⟩ needs one forward and one backward pass for all heads.

    Args:
        model: attached, in evaluation.
        probes: their matched examples are used; or ids [B,T] of any texts.
        targets: [B] ids predicted after the texts, without probes; as for :func:`symground.trace`.
        attention_mask: [B,T], 1 for valid tokens, padding at the ends, without probes.
        span: [B,T] mask of the texts' own tokens that are predicted, in place of ``targets``; the effect is on the sum
            of their surprisals.
        method: "exact"; "first-order"; or "both".
        positions: "all", or "prediction": the head is silenced at the prediction position only (of a word of several
            tokens, at those before each of them).
        mode: "zero"; "mean" over the texts, up to their last prediction positions; or "resample", the head's output in
            the example's mismatched context (of probes alone).
        per_example: keep a value for each example.
        memory: approximate bytes that a layer's activations may take; it limits the size of batches. The first-order
            pass, which keeps the activations of all layers, takes four times as much. None: 64 MiB on a CPU, 2 GiB on
            a GPU.

    Returns:
        Effects (layer, head), or (example, layer, head), of probes with the coordinates context and noun. Layers and
        heads count from 0; a layer with fewer heads than others has NaN for the missing ones. With both methods, the
        values are the exact ones, ``first_order`` is a further coordinate of the same shape, and
        ``attrs["correlation"]`` is Pearson's correlation of the two over the heads.

    Raises:
        ValueError: an unknown method, positions or mode, a model without heads, or one whose heads are being silenced.

    Source: Michel et al. 2019 (each head removed in turn); Molchanov et al. 2017, "Pruning convolutional neural
    networks" (the first-order estimate).
    """
    for name, value, known in (("method", method, METHODS), ("positions", positions, WHERE), ("mode", mode, MODES)):
        choice(name, value, known)
    per_example, memory = flag("per_example", per_example), None if memory is None else integer("memory", memory, 1)
    layers = mixers(model)
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no heads to silence")
    if not all(mixer.tap.idle for mixer in layers):
        raise ValueError("model: expected none of its heads silenced or traced meanwhile")
    if not isinstance(probes, (Tensor, np.ndarray, list)):
        check_asked(probes)
        check_alone({"targets": targets, "attention_mask": attention_mask, "span": span})
        texts = of_probes(model, probes)
    elif mode == "resample":
        raise ValueError("mode: expected 'zero' or 'mean' of texts, which have no mismatched context; got 'resample'")
    else:
        texts = of_texts(model, probes, targets, span, attention_mask)
    runs = {"exact": _exact, "first-order": _first_order}
    wanted = [name for name in runs if method in ("both", name)]
    shape = (len(texts.ids), len(layers), max(mixer.heads for mixer in layers))
    found = {name: np.full(shape, np.nan) for name in wanted}
    sweep = _Sweep(model, texts, positions, memory, "exact" in wanted)
    if mode == "mean":
        sweep.mean = fills_of(model, mode, texts.reference)
    elif mode == "resample" and texts.probes is not None:
        sweep.others = texts.probes.mismatched()
        aligned(texts.probes.matched(), sweep.others)
    with progress("sweep", sum(len(list(sweep.batches(name))) for name in wanted)) as bar:
        for name in wanted:
            for rows in sweep.batches(name):
                for i, effect in enumerate(runs[name](sweep, rows)):
                    found[name][rows.numpy(), i, : effect.shape[1]] = effect.double().cpu().numpy()
                bar.advance()
    return _table(found, layers, texts.labels if per_example else None)


class _Sweep:
    """The state that the batches of a sweep share."""

    def __init__(
        self, model: PreTrainedModel, texts: SweptTexts, positions: str, memory: int | None, exact: bool
    ) -> None:
        self.model, self.texts, self.lengths, self.kept = model, texts, texts.lengths, texts.kept
        self.mean: dict[int, Tensor] | None = None
        self.others: Examples | None = None
        shortest = int(self.lengths.min())
        check_lengths(model, torch.tensor([shortest, shortest]), shortest)  # heads of a layer form one batch
        self.head = verified_readout(model).detached()
        self.layers = mixers(model)
        self.last_only = positions == "prediction"
        longest, most = int(self.lengths.max()), int(self.kept.max())
        # Of several prediction positions, a replay cannot silence a head at those alone.
        replayed = exact and not (self.last_only and most > 1)
        self._replays = replays(model, self.last_only, longest, most) if replayed else False
        self._stretch = stretch_of(model)
        self._memory = memory

    def replayed(self, rows: Tensor) -> bool:
        """Whether a partial forward pass is used for these examples of one length."""
        length = self.length(rows)
        goes_on = self._stretch is None or length <= self._stretch.limit
        return self._replays and (goes_on or not self.last_only)

    def length(self, rows: Tensor) -> int:
        """The number of tokens of these examples, up to their last prediction position."""
        return int(self.lengths[rows[0]])

    def keep(self, rows: Tensor) -> int:
        """How many of their last positions contain all that predict."""
        return int(self.kept[rows[0]])

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def batches(self, method: str) -> Iterator[Tensor]:
        """Indices of texts of one length that predict in as many last positions; batches leave room for all heads.

        The examples of an exact batch have one context, so they mostly share a prefix.
        """
        contexts, most = torch.tensor(self.texts.context), max(mixer.heads for mixer in self.layers)
        for length, kept in torch.stack([self.lengths, self.kept], 1).unique(dim=0).tolist():
            of_size = (self.lengths == length) & (self.kept == kept)
            for context in contexts[of_size].unique().tolist() if method == "exact" else (None,):
                alike = of_size & (True if context is None else contexts == context)
                rows = alike.nonzero()[:, 0]
                if method == "exact":
                    step = max(1, self.fitting(self.again(rows)) // most)
                else:  # the activations of every layer are kept for the backward pass
                    step = max(1, 4 * self.fitting(length) // (2 * len(self.layers)))
                yield from rows.chunk(-(-len(rows) // step))

    def shared(self, rows: Tensor) -> int:
        """The length of the prefix shared by these examples and by those that heads are resampled from."""
        length = self.length(rows)
        ids = self.texts.ids[rows, :length]
        if self.others is not None:
            ids = torch.cat([ids, self.others.input_ids[rows, :length]])
        return int((ids == ids[:1]).all(0).int().cumprod(0).sum())

    def again(self, rows: Tensor) -> int:
        """The number of positions of each of these examples that are computed for each head."""
        return 1 if self.last_only else max(1, self.length(rows) - self.shared(rows))

    def fitting(self, length: int) -> int:
        """The number of rows of a length that fit in memory; a layer computes about sixteen tensors of its width."""
        width = self.head.weight.shape[1] * self.head.weight.element_size()
        memory = self._memory or MEMORY.get(self.device.type, MEMORY["cpu"])
        return max(1, memory // (16 * width * length))

    def ids(self, rows: Tensor) -> Tensor:
        """[B,T], T up to the last prediction position."""
        return self.texts.ids[rows, : self.length(rows)].to(self.device)

    def fills(self, rows: Tensor) -> Mapping[int, Tensor] | None:
        """layer → the replacements for its heads' outputs, [H,D] or [B,T,H,D]."""
        if self.others is None:
            return self.mean
        with torch.no_grad(), head_outputs(self.layers) as found:
            hidden_states(self.model, self.others.input_ids[rows, : self.length(rows)].to(self.device))
        return found

    def surprisal(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """[B] in nats, of hidden [B,keep,E] at the last positions."""
        positions, ids = (x[rows] for x in self.texts.targets)
        within = torch.where(positions < 0, -1, positions - (self.length(rows) - hidden.shape[1]))
        return Targets(within, ids).surprisal(self.head.surprisal, hidden).sum(1)

    def last_states(self, rows: Tensor) -> Tensor:
        """[B,keep,E] final hidden states at the last positions, in the blocks that are open now."""
        return hidden_states(self.model, self.ids(rows), use_cache=False)[:, -self.keep(rows) :]

    def where(self, rows: Tensor) -> Tensor | None:
        """[B,T] bool: the positions at which a head is silenced; None for all."""
        return self.texts.targets.part(rows).mask(self.length(rows)).to(self.device) if self.last_only else None


def _exact(sweep: _Sweep, rows: Tensor) -> Iterator[Tensor]:
    """For each layer the effects [B,H]."""
    with torch.no_grad():
        yield from _replayed(sweep, rows) if sweep.replayed(rows) else _whole(sweep, rows)


def _replayed(sweep: _Sweep, rows: Tensor) -> Iterator[Tensor]:
    fills = sweep.fills(rows)
    replay = Replay(sweep.model, sweep.ids(rows), sweep.last_only, sweep.shared(rows), sweep.keep(rows))
    original = sweep.surprisal(replay.final, rows)  # [B]
    at_once = max(1, sweep.fitting(sweep.again(rows)) // len(rows))
    for mixer in sweep.layers:
        effects = []
        for start in range(0, mixer.heads, at_once):
            heads = slice(start, min(start + at_once, mixer.heads))
            hidden = replay.silenced(mixer.layer, heads, None if fills is None else fills[mixer.layer])  # [M,B,keep,E]
            many = len(hidden)
            effects.append(sweep.surprisal(hidden.flatten(0, 1), rows.repeat(many)).view(many, -1) - original)
        yield torch.cat(effects).T


def _whole(sweep: _Sweep, rows: Tensor) -> Iterator[Tensor]:
    """A full forward pass for every head, for models that do not support a partial one."""
    fills, where = sweep.fills(rows), sweep.where(rows)
    original = sweep.surprisal(sweep.last_states(rows), rows)
    for mixer in sweep.layers:
        effects = []
        for h in range(mixer.heads):
            gate = torch.ones(mixer.heads)
            gate[h] = 0
            with gated(sweep.model, {mixer.layer: gate}, fills, where):
                effects.append(sweep.surprisal(sweep.last_states(rows), rows) - original)
        yield torch.stack(effects, 1)


def _first_order(sweep: _Sweep, rows: Tensor) -> Iterator[Tensor]:
    """For each layer −∂L/∂g at g = 1; the output of each head is g · O + (1 − g) · fill."""
    fills, where = sweep.fills(rows), sweep.where(rows)
    gates = [torch.ones(len(rows), mixer.heads, device=sweep.device, requires_grad=True) for mixer in sweep.layers]
    taps = {}
    for mixer, gate in zip(sweep.layers, gates, strict=True):
        fill = None if fills is None else fills[mixer.layer]
        taps[mixer] = Tap(replaced=(Replacement(gate, fill, where),))
    with tapped(taps), torch.enable_grad():
        surprisal = sweep.surprisal(sweep.last_states(rows), rows)
        # Layers that a text does not reach (cross-attention without an image) have no effect.
        yield from (-grad for grad in torch.autograd.grad(surprisal.sum(), gates, materialize_grads=True))


def _table(
    found: Mapping[str, NDArray[np.float64]],
    layers: tuple[Mixer, ...],
    labels: Mapping[str, tuple[str, list[Any]]] | None,
) -> xr.DataArray:
    means = {name: effects.mean(0) for name, effects in found.items()}
    kept = means if labels is None else dict(found)
    dims = ("layer", "head") if labels is None else ("example", "layer", "head")
    heads = np.arange(max(mixer.heads for mixer in layers))
    main = "exact" if "exact" in kept else "first-order"
    effect = xr.DataArray(
        kept[main],
        dims=dims,
        coords={
            "layer": [mixer.layer for mixer in layers],
            "kind": ("layer", [mixer.kind for mixer in layers]),
            "head": heads,
            **(labels or {}),
        },
        name="effect",
        attrs={"units": "nats", "method": main},
    )
    if len(kept) == 2:
        effect = effect.assign_coords(first_order=(dims, kept["first-order"]))
        there = np.isfinite(means["exact"])
        effect.attrs["correlation"] = float(np.corrcoef(means["exact"][there], means["first-order"][there])[0, 1])
    return effect
