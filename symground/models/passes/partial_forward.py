"""A forward pass from a middle layer: the layers below a change are computed once for any number of changes.

Each layer is called with the arguments that the model passed to it. The last layer is computed at the last position
only. A trial first checks that the result is that of the model itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import Cache, PreTrainedModel

from symground import ops
from symground.models.attachment import mixers
from symground.models.hooks import Replacement, Tap, forward_as, head_outputs, hooked, tapped
from symground.models.passes.kv_cache import Reader
from symground.models.passes.layer_list import decoder_layers
from symground.models.passes.output_projection import head_weights, output_projections
from symground.models.trials import agree, hidden_states, readout, trial_ids, tried
from symground.ops.attention.mixing import valid_keys

_Mixed = tuple[Tensor, Tensor, Tensor, float]


class _Call(NamedTuple):
    """The arguments of the model's call of a layer, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_tuple: bool
    """Whether the layer returns a tuple, or the hidden states alone."""


@dataclass
class _Piece:
    """The record of a forward pass over some positions of some rows: each layer's input and its mixer's output."""

    rows: int
    positions: slice
    hidden: dict[int, Tensor] = field(default_factory=dict)
    calls: dict[int, _Call] = field(default_factory=dict)
    mixed: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[int, Tensor] = field(default_factory=dict)
    """Layer of the mixer → [rows,T,H,D]; ``mixed`` likewise [rows,T,E]. The others have indices of the layer list."""

    def of(self, fill: Tensor) -> Tensor:
        """The part of a fill [H,D] or [B,T,H,D] that belongs to this piece."""
        return fill if fill.ndim == 2 else fill[: self.rows, self.positions]


class _Reached(Exception):  # noqa: N818 - no error
    """A layer has reached its attention, and the rest of it is not needed."""

    def __init__(self, *mixed: Any) -> None:
        self.mixed: _Mixed = mixed


class Replay:
    """A recorded forward pass of an attached model over ``ids`` [B,T], from which heads of one layer can be silenced.

    With ``last_only``, a head is silenced at the last position only, and earlier keys and values are reused. The first
    ``shared`` tokens are the same in all rows, so the recording computes them once, as one row. Results are of the
    last ``keep`` positions; with ``last_only`` it is 1.
    """

    def __init__(
        self, model: PreTrainedModel, ids: Tensor, last_only: bool = False, shared: int = 0, keep: int = 1
    ) -> None:
        if not all(mixer.tap.idle for mixer in mixers(model)):
            raise ValueError("model: expected none of its heads silenced or traced meanwhile")
        self._model, self._keep = model, keep
        self._ids = ids = ids.to(readout(model).weight.device)
        self._layers, self._at = decoder_layers(model)
        self._mixers = {self._at[mixer.layer]: mixer for mixer in mixers(model)}
        self._projections = output_projections(model)
        self._past: dict[int, tuple[Tensor, Tensor]] = {}
        self._pieces: list[_Piece] = []
        self.final: Tensor
        """[B,keep,E] final hidden states at the last positions."""
        batch, length = ids.shape
        cut = length - 1 if last_only else min(shared, length - keep)
        reader = Reader(model) if cut else None
        goes_on = reader is not None and reader.goes_on_to(length)
        if last_only and cut and not goes_on:
            raise ValueError(f"model: {type(model).__name__} has no cache to go on from to {length} tokens")
        if reader is None or not goes_on:
            with self._recorded(batch, slice(0, length)):
                self.final = hidden_states(model, ids, use_cache=False)[:, -keep:]
            return
        if last_only:
            _, state = reader.read(ids[:, :cut])
        else:
            with self._recorded(1, slice(0, cut)):
                _, state = reader.read(ids[:1, :cut])
            state = state.select(torch.zeros(batch, dtype=torch.long))
        with self._recorded(batch, slice(cut, length), past=last_only):
            self.final = reader.read(ids[:, cut:], state, keep)[0]

    def silenced(self, layer: int, heads: slice, fill: Tensor | None = None) -> Tensor:
        """Final hidden states [M,B,keep,E] at the last positions, with each of M heads of a layer silenced alone.

        Args:
            layer: the number of the mixer's layer.
            heads: the M heads.
            fill: [H,D] or [B,T,H,D], which replaces their outputs; None is 0. In the shared tokens, row 0 is used.
        """
        weights = head_weights(self._model, layer, self._projections[layer])[heads]  # [M,D,E]
        mixed = []
        for piece in self._pieces:
            outputs = piece.heads[layer]  # [B,T,H,D]
            lost = outputs if fill is None else outputs - piece.of(fill)
            added = torch.einsum("bthd,hde->hbte", lost[:, :, heads], weights)
            mixed.append((piece.mixed[layer] - added).flatten(0, 1))  # [M·B,T,E]
        i, last = self._at[layer], len(self._layers) - 1
        if i == last:
            of_last = (x[:, -self._keep :] for x in (self._rows(last, len(weights))[-1], mixed[-1]))
            hidden = self._given(last, self._pieces[-1], *of_last)
        else:
            each = zip(self._pieces, self._rows(i, len(weights)), mixed, strict=True)
            found = [self._given(i, *of_piece) for of_piece in each]
            for j in range(i + 1, last):
                found = self._through(j, found)
            hidden = self._read_off(last, found)
        final: Tensor = self._end(hidden).unflatten(0, (len(weights), -1))
        return final

    def _rows(self, i: int, many: int) -> list[Tensor]:
        """The input of a layer [M·B,T,E], repeated for M = ``many`` changes, for each piece."""
        return [piece.hidden[i].expand(many, -1, -1, -1).flatten(0, 1) for piece in self._pieces]

    # The recorded pass.

    @contextmanager
    def _recorded(self, rows: int, positions: slice, past: bool = False) -> Iterator[None]:
        """Record the pass within the block as a piece; with ``past``, also the keys and values before it."""
        piece = _Piece(rows, positions)
        with ExitStack() as stack:
            each = enumerate(self._layers)
            stack.enter_context(hooked(*((x, partial(_record, piece, i)) for i, x in each), with_kwargs=True))
            every = self._mixers.values()
            stack.enter_context(hooked(*((m.module, partial(_record_mixed, piece, m.layer)) for m in every)))
            if past:
                mix = {mixer: Tap(mix=partial(self._remember, i)) for i, mixer in self._mixers.items()}
                stack.enter_context(tapped(mix))
            piece.heads = stack.enter_context(head_outputs(tuple(self._mixers.values())))
            yield
        self._pieces.append(piece)

    def _remember(self, i: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self._past[i] = k[:, :, :-1], v[:, :, :-1]
        return _attend(q, k, v, scale)

    # The passes from a middle layer.

    def _through(self, i: int, hidden: list[Tensor]) -> list[Tensor]:
        """Run a layer on each piece in turn; each piece attends to those before it."""
        if i not in self._mixers:
            return [self._call(i, *of_piece) for of_piece in zip(self._pieces, hidden, strict=True)]
        before: list[tuple[Tensor, Tensor]] = []
        with self._mixers[i].tapped(mix=partial(self._mix, i, before)):
            return [self._call(i, *of_piece) for of_piece in zip(self._pieces, hidden, strict=True)]

    def _mix(
        self, i: int, before: list[tuple[Tensor, Tensor]], q: Tensor, k: Tensor, v: Tensor, scale: float
    ) -> Tensor:
        if i in self._past:
            return _beside(*self._past[i], q, k, v, scale)
        return _attend(q, *_after(before, k, v), scale)

    def _read_off(self, i: int, hidden: list[Tensor]) -> Tensor:
        """Run the last layer: keys and values at all positions, everything else at the last positions only."""
        if self._past or i not in self._mixers:
            return self._through(i, hidden)[-1][:, -self._keep :]
        before: list[tuple[Tensor, Tensor]] = []
        for piece, of_piece in zip(self._pieces, hidden, strict=True):
            try:
                with self._mixers[i].tapped(mix=_stop):
                    self._call(i, piece, of_piece)
            except _Reached as reached:
                q, k, v, scale = reached.mixed
                k, v = _after(before, k, v)
        heads = _attend(q[:, :, -self._keep :], k, v, scale)  # [N,H,keep,D]
        mixed = self._projections[self._mixers[i].layer](heads.transpose(1, 2).flatten(2))
        return self._given(i, self._pieces[-1], hidden[-1][:, -self._keep :], mixed)

    def _given(self, i: int, piece: _Piece, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Run a layer whose mixer returns ``mixed`` without being computed."""
        with forward_as({self._mixers[i].module: lambda *_, **__: (mixed, None)}):
            return self._call(i, piece, hidden)

    def _call(self, i: int, piece: _Piece, hidden: Tensor) -> Tensor:
        call = piece.calls[i]
        out = self._layers[i](hidden, *call.args, **call.kwargs)
        given: Tensor = out[0] if call.in_tuple else out
        return given

    def _end(self, hidden: Tensor) -> Tensor:
        """Run what follows the layers: the model reads ``keep`` tokens a row, and its layers pass them on unchanged."""

        def give(i: int, out: Tensor) -> Any:
            return (out,) if self._pieces[-1].calls[i].in_tuple else out

        last = len(self._layers) - 1
        forwards = {
            layer: (lambda *args, i=i, **kwargs: give(i, hidden if i == last else args[0]))
            for i, layer in enumerate(self._layers)
        }
        with forward_as(forwards):
            ids = self._ids[:1, :1].expand(hidden.shape[:2])
            return hidden_states(self._model, ids, use_cache=False)


def _record(piece: _Piece, i: int, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    kwargs = dict(kwargs)
    piece.hidden[i] = args[0] if args else kwargs.pop("hidden_states")
    kept = {name: None if isinstance(x, Cache) else x for name, x in kwargs.items()}
    piece.calls[i] = _Call(tuple(None if isinstance(x, Cache) else x for x in args[1:]), kept, isinstance(out, tuple))


def _record_mixed(piece: _Piece, layer: int, _module: nn.Module, _args: tuple[Any, ...], out: Any) -> None:
    piece.mixed[layer] = out[0] if isinstance(out, (tuple, list)) else out


def _after(before: list[tuple[Tensor, Tensor]], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """All keys and values up to this piece, appended to ``before``. Earlier pieces may have M rows, this one M·B."""
    if before:
        past_k, past_v = (x.repeat_interleave(len(k) // len(x), 0) for x in before[-1])
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    before.append((k, v))
    return k, v


def _beside(past_k: Tensor, past_v: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Outputs [M·B,H,1,D] of attention to the past keys and values [B,Hk,T,D], not copied M times, and to itself."""
    batch, group = past_k.shape[0], q.shape[1] // k.shape[1]
    queries = q[:, :, 0].unflatten(0, (-1, batch)).permute(1, 2, 0, 3)  # [B,H,M,D]
    out, lse = ops.attention(queries, past_k, past_v, causal=False, scale=scale)
    out = out.permute(2, 0, 1, 3).flatten(0, 1)[:, :, None]  # [M·B,H,1,D]
    own_k, own_v = (x.repeat_interleave(group, 1) for x in (k, v))
    score = (q * own_k).sum(-1, dtype=lse.dtype) * scale  # [M·B,H,1]
    share = torch.sigmoid(score - lse.permute(2, 0, 1).flatten(0, 1)[:, :, None])[..., None].to(out.dtype)
    return out + share * (own_v - out)


def _stop(q: Tensor, k: Tensor, v: Tensor, scale: float) -> NoReturn:
    raise _Reached(q, k, v, scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention from the last T positions, q [B,H,T,D], to all of k and v [B,Hk,S,D]."""
    queries, keys = q.shape[2], k.shape[2]
    gqa = q.shape[1] != k.shape[1]
    mask = None if queries in (1, keys) else valid_keys(queries, keys, True, None, None, q.device)
    return scaled_dot_product_attention(q, k, v, mask, is_causal=1 < queries == keys, scale=scale, enable_gqa=gqa)


def replays(model: PreTrainedModel, last_only: bool = False, longest: int = 5, keep: int = 1) -> bool:
    """Whether a :class:`Replay` of this model equals the model's own pass, by a trial; warns if it does not.

    ``longest`` is the length of the longest text, in which a sliding window may hide keys; ``keep`` is a replay's own.
    """
    keep = min(keep, 2)  # more positions are no other case

    def replayed(cause: str | None) -> bool:
        if cause is not None:
            warnings.warn(
                f"{type(model).__name__} cannot be read again from the middle ({cause}): every change of a head is a "
                "pass through the whole model, which is slower and gives the same numbers",
                RuntimeWarning,
                stacklevel=6,
            )
        return cause is None

    return tried(
        model,
        f"replays {longest} tokens{' at the last position' if last_only else ''}, the last {keep}",
        lambda: replayed(_try(model, last_only, longest, keep)),
        lambda: replayed("hooks or forward functions of others act on it, which may go by position or length"),
    )


def _try(model: PreTrainedModel, last_only: bool, longest: int, keep: int) -> str | None:
    """Why a replay differs from the model, or None. The trial silences the first head of every layer in two texts."""
    try:
        ids = trial_ids(model, 5).to(readout(model).weight.device)
        ids = torch.cat([ids, torch.cat([ids[:, :2], ids[:, 1:4]], 1)])
        last = torch.arange(5, device=ids.device) == 4
        with torch.no_grad():
            with tapped({mixer: Tap(mix=_attend) for mixer in mixers(model) if mixer.kind == "attention"}):
                hidden_states(model, trial_ids(model, longest).to(ids.device), use_cache=False)
            found = [Replay(model, ids, last_only, shared, keep) for shared in ((0,) if last_only else (0, 2))]
            for mixer in mixers(model):
                gate = (torch.arange(mixer.heads, device=ids.device) > 0).to(found[0].final.dtype)
                with mixer.tapped(replaced=(Replacement(gate, None, last if last_only else None),)):
                    expected = hidden_states(model, ids, use_cache=False)[:, -keep:]
                for replay in found:
                    # Two heads at once, since what the model passed to its layers must serve more rows than it had.
                    if not agree(replay.silenced(mixer.layer, slice(0, 2))[0], expected):
                        return f"silencing a head of layer {mixer.layer} gives something else"
    except Exception as error:  # a model may raise any error
        return f"{type(error).__name__}: {error}"
    return None
