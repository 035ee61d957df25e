"""Reading a batch again from the middle: what lies below a change is computed once, however many changes there are.

The layers are called one by one with the arguments that the model gave them; above the last one only the last position
goes on. Whether that is what the model itself computes is tried once per model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import Cache, PreTrainedModel

from symground import ops
from symground.models.attach import mixers
from symground.models.mixers import head_outputs
from symground.models.projection import head_weights, output_projections
from symground.models.reader import Reader
from symground.models.readout import agree, hidden_states, readout, trial_ids

_REPLAYS = "_symground_replays"
_Mixed = tuple[Tensor, Tensor, Tensor, float]


class _Call(NamedTuple):
    """How the model called a layer."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_tuple: bool
    """Whether it gives a tuple, or the hidden states alone."""


class _Reached(Exception):  # noqa: N818 - no error
    """A layer has come to its attention; nothing after it is wanted."""

    def __init__(self, *mixed: Any) -> None:
        self.mixed: _Mixed = mixed


class Replay:
    """A batch ``ids`` [B,T] that an attached model has read, to be read again with other outputs of one mixer.

    With ``last_only``, what is changed is the last position's alone; the others stay as they were, and their keys and
    values with them.
    """

    def __init__(self, model: PreTrainedModel, ids: Tensor, last_only: bool = False) -> None:
        if not all(mixer.tap.idle for mixer in mixers(model)):
            raise ValueError("model: expected none of its heads silenced or traced meanwhile")
        self._model = model
        self._ids = ids.to(readout(model).weight.device)
        self._layers, self._at = _decoder_layers(model)
        self._mixers = {self._at[mixer.layer]: mixer for mixer in mixers(model)}
        self._last_only = last_only and ids.shape[1] > 1
        self._hidden: dict[int, Tensor] = {}
        self._calls: dict[int, _Call] = {}
        self._past: dict[int, tuple[Tensor, Tensor]] = {}
        self.mixed: dict[int, Tensor] = {}
        """layer → what its mixer gave [B,T,E]; T is 1 with ``last_only``."""
        self.heads: dict[int, Tensor]
        """layer → outputs of its heads [B,T,H,D]."""
        with ExitStack() as stack:
            run = self._reading(stack)
            self.heads = stack.enter_context(head_outputs(mixers(model)))
            for i, layer in enumerate(self._layers):
                stack.callback(layer.register_forward_hook(partial(self._record, i), with_kwargs=True).remove)
            for i, mixer in self._mixers.items():
                stack.callback(mixer.module.register_forward_hook(partial(self._record_mixed, i)).remove)
            self.final: Tensor = run()[:, -1]
            """[B,E] final hidden states at the last position."""

    def again(self, layer: int, mixed: Tensor) -> Tensor:
        """Final hidden states [M,B,E] at the last position, where the mixer of ``layer`` gives ``mixed`` [M,B,T,E]."""
        many, i, last = len(mixed), self._at[layer], len(self._layers) - 1
        hidden = self._hidden[i]
        if i == last:
            hidden, mixed = hidden[:, -1:], mixed[:, :, -1:]
        hidden = hidden.expand(many, *hidden.shape).flatten(0, 1)  # [M·B,T,E]
        hidden = self._given(i, hidden, mixed.flatten(0, 1))
        for j in range(i + 1, last):
            hidden = self._whole(j, hidden)
        if i < last:
            hidden = self._read_off(last, hidden)
        final: Tensor = self._end(hidden).unflatten(0, (many, -1))
        return final

    # The first reading.

    def _reading(self, stack: ExitStack) -> Callable[[], Tensor]:
        """What runs the pass that is recorded."""
        if not self._last_only:
            return lambda: hidden_states(self._model, self._ids, use_cache=False)
        reader = Reader(self._model)
        if not reader.goes_on:
            raise ValueError(f"model: {type(self._model).__name__} has no cache to go on from")
        _, state = reader.read(self._ids[:, :-1])
        for i, mixer in self._mixers.items():
            stack.enter_context(mixer.tapped(mix=partial(self._remember, i)))
        return lambda: reader.read(self._ids[:, -1:], state)[0]

    def _remember(self, i: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self._past[i] = k[:, :, :-1], v[:, :, :-1]
        return _attend(q, k, v, scale)

    def _record(self, i: int, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        kwargs = dict(kwargs)
        self._hidden[i] = args[0] if args else kwargs.pop("hidden_states")
        kept = {name: None if isinstance(x, Cache) else x for name, x in kwargs.items()}
        self._calls[i] = _Call(
            tuple(None if isinstance(x, Cache) else x for x in args[1:]), kept, isinstance(out, tuple)
        )

    def _record_mixed(self, i: int, _module: nn.Module, _args: tuple[Any, ...], out: Any) -> None:
        self.mixed[self._mixers[i].layer] = out[0] if isinstance(out, tuple) else out

    # Reading again.

    def _whole(self, i: int, hidden: Tensor) -> Tensor:
        """A layer on all its positions."""
        if not self._last_only:
            return self._call(i, hidden)
        with self._mixers[i].tapped(mix=partial(self._beside_the_past, i)):
            return self._call(i, hidden)

    def _beside_the_past(self, i: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """[M·B,H,1,D]: each sees itself, and the first reading's keys and values, which are not copied M times."""
        past_k, past_v = self._past[i]
        batch, group = past_k.shape[0], q.shape[1] // k.shape[1]
        queries = q[:, :, 0].unflatten(0, (-1, batch)).permute(1, 2, 0, 3)  # [B,H,M,D]
        out, lse = ops.attention(queries, past_k, past_v, causal=False, scale=scale)
        out = out.permute(2, 0, 1, 3).flatten(0, 1)[:, :, None]  # [M·B,H,1,D]
        own_k, own_v = (x.repeat_interleave(group, 1) for x in (k, v))
        score = (q * own_k).sum(-1, dtype=lse.dtype) * scale  # [M·B,H,1]
        share = torch.sigmoid(score - lse.permute(2, 0, 1).flatten(0, 1)[:, :, None])[..., None].to(out.dtype)
        return out + share * (own_v - out)

    def _read_off(self, i: int, hidden: Tensor) -> Tensor:
        """The last layer: the keys and values of all positions, and all the rest at the last position only."""
        if self._last_only:
            return self._whole(i, hidden)
        mixer = self._mixers[i]
        try:
            with mixer.tapped(mix=_stop):
                self._call(i, hidden)
        except _Reached as reached:
            q, k, v, scale = reached.mixed
        else:
            raise ValueError(f"model: layer {mixer.layer} did not come to its attention")
        heads = _attend(q[:, :, -1:], k, v, scale)  # [N,H,1,D]
        mixed = output_projections(self._model)[mixer.layer](heads.transpose(1, 2).flatten(2))
        return self._given(i, hidden[:, -1:], mixed)

    def _given(self, i: int, hidden: Tensor, mixed: Tensor) -> Tensor:
        """A layer whose mixer gives ``mixed`` without running."""
        with _forward_as({self._mixers[i].module: lambda *_, **__: (mixed, None)}):
            return self._call(i, hidden)

    def _call(self, i: int, hidden: Tensor) -> Tensor:
        call = self._calls[i]
        out = self._layers[i](hidden, *call.args, **call.kwargs)
        given: Tensor = out[0] if call.in_tuple else out
        return given

    def _end(self, hidden: Tensor) -> Tensor:
        """What follows the layers, by the model itself: it reads one token a row, with layers that do nothing."""

        def give(i: int, out: Tensor) -> Any:
            return (out,) if self._calls[i].in_tuple else out

        last = len(self._layers) - 1
        forwards = {
            layer: (lambda *args, i=i, **kwargs: give(i, hidden if i == last else args[0]))
            for i, layer in enumerate(self._layers)
        }
        with _forward_as(forwards):
            ids = self._ids[:1, :1].expand(len(hidden), 1)
            return hidden_states(self._model, ids, use_cache=False)[:, 0]


def _stop(q: Tensor, k: Tensor, v: Tensor, scale: float) -> NoReturn:
    raise _Reached(q, k, v, scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The last position's queries q [B,H,1,D], which see all of k and v."""
    return scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def _decoder_layers(model: PreTrainedModel) -> tuple[list[nn.Module], dict[int, int]]:
    """The modules that the hidden states pass one after the other, and which of them holds each mixer's layer."""
    names = {module: name for name, module in model.named_modules()}
    lists: dict[str, dict[int, int]] = {}
    for mixer in mixers(model):
        parts = names[mixer.module].split(".")
        number = next(i for i in reversed(range(len(parts))) if parts[i].isdigit())
        lists.setdefault(".".join(parts[:number]), {})[mixer.layer] = int(parts[number])
    if len(lists) != 1:
        raise ValueError(f"model: expected its layers in one list, found {len(lists)} in {type(model).__name__}")
    ((name, at),) = lists.items()
    return list(model.get_submodule(name).children()), at


@contextmanager
def _forward_as(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Other forward functions of these very modules within the block; no class is touched."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            object.__setattr__(module, "forward", forward)
        yield
    finally:
        for module, own in before.items():
            if own is not None:
                object.__setattr__(module, "forward", own)
            elif "forward" in vars(module):
                object.__delattr__(module, "forward")


def replays(model: PreTrainedModel, last_only: bool = False) -> bool:
    """Whether a :class:`Replay` of this model is what the model computes, tried once per model; says so where not."""
    known: dict[bool, bool] = vars(model).get(_REPLAYS, {})
    if last_only not in known:
        cause = _try(model, last_only)
        if cause is not None:
            warnings.warn(
                f"{type(model).__name__} cannot be read again from the middle ({cause}): every change of a head is a "
                "pass through the whole model, which is slower and gives the same numbers",
                RuntimeWarning,
                stacklevel=3,
            )
        known = {**known, last_only: cause is None}
        object.__setattr__(model, _REPLAYS, known)
    return known[last_only]


def _try(model: PreTrainedModel, last_only: bool) -> str | None:
    """Why a model is not what its replay says, None where it is: two texts, every layer, nothing changed."""
    ids = trial_ids(model, 6)
    ids = torch.cat([ids[:, :5], ids[:, 1:]])
    try:
        with torch.no_grad():
            replay = Replay(model, ids, last_only)
            for mixer in mixers(model):
                mixed = replay.mixed[mixer.layer]
                if not agree(replay.again(mixer.layer, mixed.expand(2, *mixed.shape)), replay.final.expand(2, -1, -1)):
                    return "its hidden states are others"
                projected = output_projections(model)[mixer.layer](replay.heads[mixer.layer].flatten(2))
                if not agree(projected, mixed):
                    return "its heads' outputs are changed after their projection"
                head_weights(model, mixer.layer)  # a projection of which it is not known what it does with each head
    except Exception as error:  # models fail in ways of their own
        return f"{type(error).__name__}: {error}"
    return None
