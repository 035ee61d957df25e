"""Probes: arguments of a mixer's forward pass whose gradients are saliency and flow."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common.derivatives import at_zero, differentiable
from symground.ops.common.flow import NO_GROUPS, Groups, check_groups, group_sums


class GradientProbes(NamedTuple):
    """The probes of a forward pass: its backward pass gives saliency and flow as their gradients."""

    saliency: Tensor | None  # [B,T,S]
    flow: Tensor | None  # [B,H,Gq,Gk]
    query_groups: Tensor | None  # [B,T]
    key_groups: Tensor | None  # [B,S]

    @property
    def dtypes(self) -> tuple[torch.dtype | None, torch.dtype | None]:
        """The dtypes that the gradients of the saliency and the flow probe must have."""
        saliency, flow = self.saliency, self.flow
        return None if saliency is None else saliency.dtype, None if flow is None else flow.dtype

    @property
    def groups(self) -> Groups:
        """The groups of the flow probe."""
        if self.flow is None:
            return NO_GROUPS
        return Groups(self.query_groups, self.key_groups, *self.flow.shape[2:])

    def on(self, a: Tensor) -> Tensor:
        """The mixing matrix [B,H,T,S] with the probes applied, which do not change its values.

        The saliency probe p enters as A·(1 + p), so that ∂L/∂p at p = 0 is Σ_h A_h ∘ ∂L/∂A_h.
        """
        if self.saliency is not None:
            a = a * (1 + at_zero(self.saliency)[:, None].to(a.dtype))
        return a if self.flow is None else _flow_probe(a, self.flow, self.query_groups, self.key_groups)


#: Its gradient is not the derivative of anything, so that there is no tangent that would agree with it.
NO_TANGENT = "flow_probe: no implementation has a derivative in forward mode of a flow probe; its gradient is flow"
NO_PROBES = GradientProbes(None, None, None, None)


def check_probes(
    probes: GradientProbes, sizes: tuple[int, int, int, int], like_name: str, like: Tensor
) -> GradientProbes:
    """Check probes of a mixer of ``sizes`` (B, H, T, S); returns them with their ids as int64.

    They must be on the device of ``like``, whose name in messages is ``like_name``.
    """
    batch, heads, queries, keys = sizes
    saliency, flow, query_groups, key_groups = probes
    if saliency is not None:
        dims = "B,T,S" if like_name == "q" else "B,T,T"
        check.probe("saliency_probe", saliency, dims, (batch, queries, keys), like_name, like)
    if flow is None:
        for name, value in (("query_groups", query_groups), ("key_groups", key_groups)):
            if value is not None:
                raise ValueError(f"{name}: expected None without flow_probe, whose groups they are; got a value")
        return probes
    for name, value in (("query_groups", query_groups), ("key_groups", key_groups)):
        if value is None:
            raise ValueError(f"{name}: expected group ids, since flow_probe is given; got None")
    if check.is_tensor("flow_probe", flow).ndim != 4:
        raise ValueError(f"flow_probe: expected shape [B,H,Gq,Gk], got {list(flow.shape)}")
    check.probe("flow_probe", flow, "B,H,Gq,Gk", (batch, heads, *flow.shape[2:]), like_name, like)
    num_query, num_key = flow.shape[2:]
    groups = check_groups(query_groups, key_groups, num_query, num_key, (batch, queries, keys), like_name, like)
    query_groups, key_groups = groups.given
    # A compiled graph does not allow an autograd function to take the same tensor twice.
    return GradientProbes(
        saliency, flow, query_groups, key_groups.clone() if key_groups is query_groups else key_groups
    )


class _FlowProbe(torch.autograd.Function):
    """Identity on A. The backward pass gives the probe the group sums of |A ∘ ∂L/∂A|; autograd would omit the | |."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, flow_probe: Tensor, query_groups: Tensor, key_groups: Tensor) -> Tensor:
        return a.view_as(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.set_materialize_grads(False)  # else `tangent` gets zeros for a probe without one
        a, flow_probe, *groups = inputs
        ctx.save_for_backward(a, *groups)
        ctx.counts, ctx.dtype = flow_probe.shape[2:], flow_probe.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        a, query_groups, key_groups = ctx.saved_tensors
        sums = group_sums(a * grad, Groups(query_groups, key_groups, *ctx.counts))
        return grad, sums.flow.to(ctx.dtype), None, None

    @staticmethod
    def tangent(ctx: Any, of_a: Tensor, of_probe: Tensor | None, *of_groups: None) -> Tensor:
        if of_probe is not None:
            raise NotImplementedError(NO_TANGENT)
        return of_a.view_as(of_a)


_flow_probe = differentiable(_FlowProbe)
