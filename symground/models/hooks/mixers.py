"""Mixers with heads: the same view of a layer for every architecture.

A mixer is a module that mixes positions with one matrix per head. An analysis requests probes and gates of a mixer in
a `Tap`. The mixer's forward pass reads the tap; the model itself is not changed. A ``with`` block sets a tap, and the
taps of several blocks are composed in the order in which the blocks were entered (`symground.models.hooks.scopes`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from symground import ops
from symground.models.hooks.row_probes import RowProbe
from symground.models.hooks.scopes import Entry, asked_of
from symground.ops.attention.mixing import Mixing
from symground.ops.common.compiled import opaque

#: The attribute of an attached model whose vision tower is traced too.
WITH_VISION = "_symground_with_vision"
#: The names of the cache among the inputs of a model; transformers renamed it in 5.24.
CACHES = ("cache", "past_key_values", "cache_params")
#: What a mixer accepts from one block at a time, and its name in an error.
_ONCE = {
    "saliency_probe": "saliency", "flow_probe": "flow (saliency=True of a callback, flow=True, or a trace)",
    "query_groups": "flow", "key_groups": "flow", "row_probe": "rows of saliency", "mix": "own mixing",
    "measure": "sizes",
}  # fmt: skip


@dataclass(frozen=True)
class Replacement:
    """Heads whose outputs are replaced after the mixing: gate · output + (1 - gate) · fill."""

    gate: Tensor
    """[H] or [B,H]"""
    fill: Tensor | None = None
    """Broadcasts to [B,T,H,D]; None is 0."""
    positions: Tensor | None = None
    """[T] or [B,T] bool, True at the positions that are replaced; None is all."""

    def of(self, x: Tensor) -> Tensor:
        """x [B,T,H,D] with the heads replaced."""
        # The layers of a model may be on several devices.
        gate, fill = self.gate.to(x.device), None if self.fill is None else self.fill.to(x.device)
        replaced = ops.gate_heads(x, gate, fill)
        if self.positions is None:
            return replaced
        if self.positions.shape not in (x.shape[:2], x.shape[1:2]):
            raise ValueError(
                f"positions: expected shape [B,T] = {list(x.shape[:2])} or [T], got {list(self.positions.shape)}"
            )
        return torch.where(self.positions.to(x.device)[..., None, None], replaced, x)


@dataclass(frozen=True)
class Tap:
    """The requests to one mixer in the next forward passes; see :func:`symground.ops.attention` for the shapes."""

    gate: Tensor | None = None
    saliency_probe: Tensor | None = None
    flow_probe: Tensor | None = None
    query_groups: Tensor | None = None
    key_groups: Tensor | None = None
    replaced: tuple[Replacement, ...] = ()
    """The replacements, applied in order, after the gate."""
    row_probe: RowProbe | None = None
    mix: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None
    """(q, k, v [B,H or Hk,T,D], scale) → the heads' outputs [B,H,T,D]; replaces the attention (attention only)."""
    measure: Callable[[int, int, int], None] | None = None
    """Called with the numbers of examples, queries and keys that an attention mixes."""
    observe: tuple[Callable[[Tensor], None], ...] = ()
    """Each is called with the heads' outputs [B,T,H,D], the input of the output projection or Mamba-2's gated norm."""
    read: tuple[Callable[[Tensor, Tensor, Tensor, Mixing, int], None], ...] = ()
    """Each is called with q [B,H,T,D], k [B,Hk,S,D], LSE [B,H,T], the resolved record of how queries see keys, and how
    many of the S keys are the layer's own: where a window has two sides, others follow them (attention only)."""
    read_scan: tuple[Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], None], ...] = ()
    """Each is called with dt, A, B, C and the key range of :func:`symground.ops.ssd` (Mamba-2 only)."""
    apart: bool = False
    """Whether the heads' outputs are computed as if nothing were read, dropout included, and LSE beside them."""

    @property
    def only_reads(self) -> bool:
        """Whether the tap leaves the mixer's output as it is."""
        return replace(self, read=(), read_scan=()).idle

    @property
    def plain(self) -> bool:
        """Whether any attention implementation suffices: the tap has no gate, saliency probe or flow probe."""
        return self.gate is None and self.saliency_probe is None and self.flow_probe is None

    @property
    def idle(self) -> bool:
        asked = (self.row_probe, self.mix, self.measure)
        several = (self.replaced, self.observe, self.read, self.read_scan)
        return self.plain and not any(several) and all(one is None for one in asked)

    def then(self, later: Tap) -> Tap:
        """Both taps as one, with ``later`` applied after this one.

        Raises:
            ValueError: both set a field that a mixer accepts once, or their numbers of examples differ.
        """
        gate, replaced = self.gate, self.replaced
        if later.gate is not None:
            if gate is not None and gate.ndim == later.gate.ndim == 2 and len(gate) != len(later.gate):
                raise ValueError(
                    f"heads: each of {len(later.gate)} examples has its own silenced heads, within a block for "
                    f"{len(gate)}"
                )
            if replaced:  # the replacement of a head is silenced too
                replaced = (*replaced, Replacement(later.gate))
            else:  # the op then skips those heads
                gate = later.gate if gate is None else gate * later.gate
        once = {}
        for name in _ONCE:
            ours, theirs = getattr(self, name), getattr(later, name)
            if ours is not None and theirs is not None:
                raise ValueError(f"model: two blocks ask the {_ONCE[name]} of one layer at the same time; only one may")
            once[name] = theirs if ours is None else ours
        observe, read = (*self.observe, *later.observe), (*self.read, *later.read)
        scans = (*self.read_scan, *later.read_scan)
        return Tap(
            gate=gate, replaced=(*replaced, *later.replaced), observe=observe, read=read, read_scan=scans,
            apart=self.apart or later.apart, **once,
        )  # fmt: skip


IDLE = Tap()


@dataclass(frozen=True)
class Mixer:
    """One layer's mixer: its number from 0, how many heads it has, and the module."""

    layer: int
    """Where a layer has attention and Mamba-2, its number is that of its attention, and its Mamba-2 has another."""
    heads: int
    module: nn.Module
    role: str = ""
    """In a model with cross-attention: "cross", and in an encoder-decoder also "encoder" or "self"; of a vision tower:
    "vision"."""

    @property
    def tap(self) -> Tap:
        return tap_of(self.module)

    @property
    def kind(self) -> str:
        """Its role if it has one, else what mixes the positions: "attention" or "mamba2"."""
        return self.role or ("mamba2" if hasattr(self.module, "A_log") else "attention")

    @property
    def depth(self) -> int:
        """The number of the model's layer that it is in."""
        return self.module.layer_idx if self.kind == "mamba2" else self.layer  # type: ignore[return-value]

    def tapped(self, **changes: Any) -> AbstractContextManager[None]:
        """A block in which the mixer has a `Tap` of these fields, in addition to the taps of other blocks."""
        return tapped({self: Tap(**changes)})


def tapped(taps: Mapping[Mixer, Tap]) -> AbstractContextManager[None]:
    """A block in which these mixers have these taps, in addition to the taps of other blocks."""
    return Entry({mixer.module: tap for mixer, tap in taps.items()})


def check_batch(tap: Tap, examples: int) -> None:
    """Refuse a pass whose number of examples differs from that of the gates."""
    for gate in (tap.gate, *(replacement.gate for replacement in tap.replaced)):
        if gate is not None and gate.ndim == 2 and len(gate) != examples:
            raise ValueError(
                f"heads: each of {len(gate)} examples has its own silenced heads; this pass has {examples} examples"
            )


def shown(tap: Tap, heads: Tensor) -> Tensor:
    """Apply the tap's replacements to the heads' outputs [B,T,H,D], and call its observers; the gate is not applied."""
    for replacement in tap.replaced:
        heads = replacement.of(heads)
    for observe in tap.observe:
        observe(heads)
    return heads


def tap_of(module: nn.Module) -> Tap:
    """The composed tap of a mixer's module, from the open blocks that this thread sees."""
    tap = IDLE
    for asked in asked_of(module):
        tap = asked if tap is IDLE else tap.then(asked)
    return tap


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module computes, even if accelerate loads its weights there for each pass."""
    for parameter in module.parameters():
        if not parameter.is_meta:
            return parameter.device
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return torch.device("cpu")


def body(model: PreTrainedModel) -> nn.Module:
    """The model without its vocabulary head: what gives hidden states.

    transformers' ``base_model`` is the model itself where its prefix names no part of it, as in Llama-4's text model.
    """
    base = model.base_model
    if base is not model or model.get_output_embeddings() is None:
        return base
    parts = [part for part in model.children() if isinstance(part, PreTrainedModel)]
    return parts[0] if len(parts) == 1 else base


def stack(model: PreTrainedModel) -> Any:
    """The layers that are traced: those of the decoder if the model has one, else of all but its head."""
    decoder = model.get_decoder()
    return decoder if isinstance(decoder, PreTrainedModel) else body(model)


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    """Whether a model has an encoder and a decoder beside it; an encoder alone may have the same configuration."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return False
    decoder = model.get_decoder()
    return decoder is not None and decoder is not model and decoder is not model.get_encoder()


def stacks(model: PreTrainedModel) -> dict[str, Any]:
    """Role of layers → the part that has them: "encoder" and "self", or "" and, if it is traced, "vision"."""
    if is_encoder_decoder(model):
        return {"encoder": model.get_encoder(), "self": model.get_decoder()}
    return {"": stack(model), **({"vision": vision_tower(model)} if getattr(model, WITH_VISION, False) else {})}


def vision_tower(model: PreTrainedModel) -> Any:
    """The vision tower of a model that also reads text; None if it has none."""
    tower = model.get_encoder(modality="image")
    beside = isinstance(tower, PreTrainedModel) and tower is not model and tower is not model.base_model
    return tower if beside and tower is not stack(model) else None


def announce(module: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Tell the open blocks that a forward pass of the `body` of a model begins, with its inputs by their names.

    A block asks for it by a function of the inputs in place of a tap.
    """
    asked = asked_of(module)
    if asked:
        _begin(asked, inputs)


@opaque
def _begin(asked: tuple[Callable[[Mapping[str, Any]], None], ...], inputs: Mapping[str, Any]) -> None:
    for begins in asked:
        begins(inputs)


def cache_of(inputs: Mapping[str, Any]) -> Any:
    """The cache among the inputs of a forward pass, or None."""
    return next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)


def inner_stack(model: PreTrainedModel) -> nn.Module | None:
    """The layers within the `body` of a model, which a head may call without the rest of it (OPT); None if none are."""
    inner, outer = stack(model), body(model)
    within = inner is not outer and any(part is inner for part in outer.modules())
    return inner if within else None


def untapped() -> AbstractContextManager[None]:
    """A block that hides the taps of all outer blocks; trials run in it."""
    return Entry({}, hides=True)


@contextmanager
def head_outputs(layers: tuple[Mixer, ...]) -> Iterator[dict[int, Tensor]]:
    """A dictionary, layer → outputs of its heads [B,T,H,D], that a forward pass within the block fills."""
    found: dict[int, Tensor] = {}
    with tapped({mixer: Tap(observe=(partial(found.__setitem__, mixer.layer),)) for mixer in layers}):
        yield found


@contextmanager
def runs_once(model: PreTrainedModel, layers: Sequence[Mixer]) -> Iterator[Callable[[], None]]:
    """A function that refuses a model of whose layers one has run several times within the block.

    The heads of such a layer (ALBERT's) have as many matrices, and a probe would add them up.
    """
    runs: Counter[int] = Counter()

    def check() -> None:
        for layer, times in runs.items():
            if times > 1:
                raise ValueError(
                    f"model: layer {layer} of {type(model).__name__} runs {times} times in a forward pass, so that its "
                    "heads have as many matrices, which symground does not support"
                )

    def counting(layer: int) -> Tap:
        return Tap(observe=(lambda _: runs.update([layer]),))

    with tapped({mixer: counting(mixer.layer) for mixer in layers}):
        yield check
