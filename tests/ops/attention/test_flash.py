"""``impl="flash"``: the code around another library's flash attention.

On a GPU the real one runs. Elsewhere PyTorch's CPU flash attention takes its place behind the same two functions. This
tests layouts, gates and the saliency from its log-sum-exp, but not the GPU kernels.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from symground import ops
from symground.ops.attention import flash
from symground.ops.attention.api import IMPLEMENTATIONS
from tests.ops.common.triton_device import CUDA, DEVICE


class StandIn:
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, scale=scale
        )
        return grads


@pytest.fixture
def runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    if not CUDA:
        monkeypatch.setattr(flash, "flash", StandIn)
        monkeypatch.setitem(IMPLEMENTATIONS, "flash", flash.ops._replace(refuses=lambda like: None))


@pytest.mark.usefixtures("runs_here")
@pytest.mark.parametrize("gated", [False, True])
def test_flash_gives_what_the_reference_gives(gated: bool) -> None:
    torch.manual_seed(0)
    dtype, tolerance = (torch.float16, 2e-2) if CUDA else (torch.float32, 1e-4)
    q, k, v, grad = (torch.randn(2, 2, 40, 16, device=DEVICE, dtype=dtype) for _ in range(4))
    groups = torch.randint(-1, 3, (2, 40), device=DEVICE)
    gate = torch.tensor([0.5, 0.0], device=DEVICE) if gated else None
    results = []
    for impl in ("reference", "flash"):
        leaves = [x.to(torch.float64 if impl == "reference" else dtype).requires_grad_() for x in (q, k, v)]
        saliency = torch.zeros(1, device=DEVICE).expand(2, 40, 40).requires_grad_()
        flow = torch.zeros(1, device=DEVICE).expand(2, 2, 3, 3).requires_grad_()
        out, lse = ops.attention(
            *leaves, gate=gate, saliency_probe=saliency, flow_probe=flow, query_groups=groups, key_groups=groups,
            impl=impl,
        )  # fmt: skip
        results.append((out, lse, *torch.autograd.grad(out, [*leaves, saliency, flow], grad.to(out.dtype))))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), wanted.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("runs_here")
def test_what_flash_does_not_take_is_named() -> None:
    q = torch.zeros(1, 1, 4, 16, device=DEVICE, dtype=torch.float16)
    with pytest.raises(ValueError, match="key_range: impl 'flash' expected None"):
        ops.attention(q, q, q, key_range=torch.tensor([[0, 4]], device=DEVICE), impl="flash")
    with pytest.raises(ValueError, match="q: impl 'flash' expected a head size D that is a multiple of 8, got 12"):
        ops.attention(q[..., :12], q[..., :12], q[..., :12], impl="flash")


def test_pytorchs_own_flash_names_what_it_lacks() -> None:
    q = torch.zeros(1, 1, 4, 16)
    with pytest.raises(ValueError, match="window: impl 'flash' takes one with the flash-attn package only"):
        flash.TorchFlash().forward(q, q, q, True, 1.0, 3)
    with pytest.raises(ValueError, match="k: impl 'flash' without the flash-attn package expected S = T = 2"):
        flash.TorchFlash().forward(q[:, :, :2], q, q, True, 1.0, None)


@pytest.mark.skipif(CUDA, reason="on a GPU flash runs")
def test_flash_is_refused_where_it_cannot_run() -> None:
    q = torch.zeros(1, 1, 4, 16)
    with pytest.raises(ValueError, match="impl: 'flash' expected float16 or bfloat16, got torch.float32"):
        ops.attention(q, q, q, impl="flash")
    with pytest.raises(ValueError, match="impl: 'flash' expected tensors on a GPU, got cpu"):
        ops.attention(q.half(), q.half(), q.half(), impl="flash")
