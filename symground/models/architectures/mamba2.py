"""Mamba-2's mixer computed by symground's ops, with the weights and cache of transformers, and with heads to trace.

A head's output is gated together with its D skip, before the gated norm. That norm couples the heads, so the layer's
output is not a sum over heads. Only SSD mixes positions by a matrix per head. The matrix contains neither the D skip, a
diagonal term, nor the short convolution before SSD, which mixes up to four neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import Cache, PreTrainedModel
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer, MambaRMSNormGated

from symground import ops
from symground.models.hooks import Tap, check_batch, shown, ssd_row, tap_of
from symground.ops.attention.mixing import key_range_of
from symground.ops.common.compiled import opaque
from symground.ops.mamba2.layer import step_sizes

#: transformers' classes that compute exactly what `MambaMixer` computes.
_ALIKE = (
    "Mamba2Mixer", "BambaMixer", "FalconH1Mixer", "GraniteMoeHybridMambaLayer", "NemotronHMamba2Mixer",
    "Zamba2MambaMixer",
)  # fmt: skip
if TYPE_CHECKING:
    _Base = Mamba2Mixer  # what a subclass of `MambaMixer` has beside
else:
    _Base = nn.Module


class MambaMixer(_Base):
    """transformers' mixer, computed by `ops.causal_conv1d` and `ops.ssd` with the probes and gate of its `Tap`.

    The ops choose an implementation that is installed and supports the tensors' device. The class of a mixer is a
    subclass of this one and of transformers' class.
    """

    own: type[nn.Module]
    """transformers' class."""

    def forward(
        self,
        hidden_states: Tensor,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states [B,T,E] → [B,T,E]; attention_mask [B,T] of these positions, or None."""
        cache = kwargs.get("cache_params", cache)  # the argument's name in transformers before 5.24
        tap = tap_of(self)
        heads, groups, state_size = self.num_heads, self.n_groups, self.ssm_state_size
        if tap.mix is not None:
            raise ValueError("model: a Mamba-2 layer has no queries, keys and values to mix otherwise")
        plain = self.activation in ("silu", "swish")
        low, high = self.time_step_limit
        whole_norm = type(self.norm) is MambaRMSNormGated
        if tap.idle and plain and whole_norm and cache is None and attention_mask is None:
            inner = ops.mamba2_inner(
                self.in_proj(hidden_states), self.conv1d.weight[:, 0], self.conv1d.bias, self.dt_bias, self.A_log,
                self.D, self.norm.weight, groups, self.norm.variance_epsilon, (low, high),
            )  # fmt: skip
            whole: Tensor = self.out_proj(inner)
            return whole
        check_batch(tap, len(hidden_states))
        key_range = None if attention_mask is None else key_range_of(attention_mask)
        z, xbc, dt = self._projected(hidden_states).split([self.intermediate_size, self.conv_dim, heads], -1)
        if attention_mask is not None:  # otherwise the convolution would mix padding into the text
            xbc = xbc * attention_mask[..., None].bool()  # a number above 1 marks a valid token too
        before = None
        if cache is not None:
            before = self._remember(cache, xbc, key_range)
        xbc = ops.causal_conv1d(xbc, self.conv1d.weight[:, 0], self.conv1d.bias, before, "silu" if plain else None)
        x, b, c = (xbc if plain else self.act(xbc)).split(
            [self.intermediate_size, groups * state_size, groups * state_size], -1
        )
        x = x.unflatten(-1, (heads, -1))  # [B,T,H,P]
        dt = step_sizes(dt, self.dt_bias, (low, high))
        state = None if cache is None else _cached(cache, "recurrent", self.layer_idx)
        if state is not None and torch.is_grad_enabled():
            state = state.clone()  # the cache is overwritten in place, and the backward pass needs the old state
        a, b, c = -self.A_log.float().exp(), b.unflatten(-1, (groups, -1)), c.unflatten(-1, (groups, -1))
        y, state = ops.ssd(
            x, dt, a, b, c, key_range, state, tap.saliency_probe, tap.flow_probe, tap.query_groups, tap.key_groups,
            return_state=True,
        )  # fmt: skip
        if tap.read_scan:
            _show(tap, dt, a, b, c, key_range)
        if cache is not None:
            cache.update_recurrent_state(state, layer_idx=self.layer_idx)
        if tap.row_probe is not None:
            y = y + ssd_row(tap.row_probe, x, dt, a, b, c, key_range)
        y = y + self.D.to(y.dtype)[:, None] * x  # [B,T,H,P]
        y = shown(tap, y if tap.gate is None else ops.gate_heads(y, tap.gate))
        norm: nn.Module = self.norm
        y = y.flatten(2)
        y = y * silu(z) if isinstance(norm, nn.Identity) else norm(y, z)  # Falcon-H1 may have no norm
        out: Tensor = self.out_proj(y.to(hidden_states.dtype))
        return out

    def _projected(self, hidden_states: Tensor) -> Tensor:
        """Gate, inputs and step sizes side by side; Falcon-H1 scales what it projects, and each part of the result."""
        scale, scales = getattr(self, "ssm_in_multiplier", None), getattr(self, "mup_vector", None)
        out: Tensor = self.in_proj(hidden_states if scale is None else hidden_states * scale)
        return out if scales is None else out * scales

    def _remember(self, cache: Cache, xbc: Tensor, key_range: Tensor | None) -> Tensor:
        """The K-1 inputs before these positions [B,K-1,C]; the cache keeps each example's last K."""
        taps = self.conv_kernel_size
        before = _cached(cache, "conv", self.layer_idx)
        if before is None:
            before = xbc.new_zeros(xbc.shape[0], xbc.shape[2], taps)
        columns = torch.cat([before.to(xbc.dtype), xbc.transpose(1, 2)], -1)  # [B,C,K+T]
        if key_range is None:
            last = columns[..., -taps:]
        else:  # right padding is not cached
            at = key_range[:, 1:] + torch.arange(taps, device=xbc.device)  # [B,K]
            last = columns.take_along_dim(at[:, None], -1)
        cache.update_conv_state(last, self.layer_idx, conv_kernel_size=taps)
        return columns[..., 1:taps].transpose(1, 2)  # a copy, because the cache was just overwritten


@opaque
def _show(tap: Tap, *scan: Any) -> None:
    with torch.no_grad():
        for reader in tap.read_scan:
            reader(*scan)


def _cached(cache: Cache, kind: str, layer: int) -> Tensor | None:
    """A layer's "conv" or "recurrent" state in a cache, or None; a cache of older transformers has no such getters."""
    getter = getattr(cache, f"get_{kind}_state", None)
    found: Tensor | None = getattr(cache.layers[layer], f"{kind}_states")[0] if getter is None else getter(layer)
    return found


_OURS: dict[type[nn.Module], type[nn.Module]] = {}


def _ours(own: type[nn.Module]) -> type[nn.Module]:
    """The class of a mixer that was of transformers' class ``own``; the same at every call."""
    return _OURS.setdefault(own, type("MambaMixer", (MambaMixer, own), {"own": own, "__module__": __name__}))


def _is_mamba2(module: nn.Module) -> bool:
    """Whether a module is a Mamba-2 mixer of transformers, or one of them that was made ours."""
    kind = type(module)
    alike = kind.__name__ in _ALIKE and kind.__module__.startswith("transformers.")
    return alike or isinstance(module, MambaMixer)


def mamba_mixers(model: PreTrainedModel) -> Iterator[Any]:
    """The Mamba-2 mixers of a model. Their class is changed to `MambaMixer` in place; the weights do not change.

    Raises:
        ValueError: a mixer's groups do not divide its heads.
    """
    module: Any
    for module in model.modules():
        if _is_mamba2(module):
            if module.num_heads % module.n_groups:
                raise ValueError(
                    f"model: expected n_groups to divide num_heads = {module.num_heads}, got {module.n_groups}"
                )
            if not isinstance(module, MambaMixer):
                own: type[nn.Module] = type(module)
                module.__class__ = _ours(own)
            yield module


def give_back_mamba(model: nn.Module) -> None:
    """Restore the class of the Mamba-2 mixers that :func:`mamba_mixers` changed."""
    for module in model.modules():
        if isinstance(module, MambaMixer):
            object.__setattr__(module, "__class__", module.own)


def initialize_decay(model: nn.Module, slowest: float, fastest: float) -> None:
    """Spread each layer's decay rates -A from ``slowest`` to ``fastest``, evenly on a logarithmic scale."""
    for module in model.modules():
        if isinstance(module, Mamba2Mixer):
            with torch.no_grad():
                rates = torch.logspace(torch.tensor(slowest).log10(), torch.tensor(fastest).log10(), module.num_heads)
                module.A_log.copy_(rates.log())
