"""SSD's Triton kernels against the reference in float64: on a GPU if there is one, else in Triton's interpreter.

It also runs without the rest of the suite: python -m pytest tests/ops/ssd/test_triton.py --noconftest
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from symground import ops
from tests.ops.common.triton_device import (  # noqa: F401
    CUDA,
    DEVICE,
    DTYPES,
    EMULATED,
    INTERPRETED,
    fresh_memory_is_nan,
)

NAMES = (
    "y", "state", "dx", "ddt", "dA", "dB", "dC", "dinitial", "saliency probe", "flow probe", "I", "F", "row total",
    "matrix total",
)  # fmt: skip
NAN = float("nan")


class Inputs:
    """One random problem in float64 on the device; operands of products are rounded to ``dtype``."""

    COUNTS = (3, 4)

    def __init__(
        self, B: int, T: int, H: int, P: int, G: int, N: int, dtype: torch.dtype, decay: float = 1.0,
        ranges: list[list[int]] | None = None,
    ) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(B * 1000 + T * 100 + H + P + G + N)

        def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).double().to(DEVICE)

        self.dtype = dtype
        self.x, self.grad = normal(B, T, H, P), normal(B, T, H, P)
        self.b, self.c = normal(B, T, G, N), normal(B, T, G, N)
        self.dt = normal(B, T, H, dtype=torch.float32).abs()
        self.a = -normal(H, dtype=torch.float32).abs() * decay - 0.01
        self.initial, self.grad_state = (normal(B, H, P, N, dtype=torch.float32) for _ in range(2))
        self.groups = [torch.randint(-1, n, (B, T), generator=g).to(DEVICE) for n in self.COUNTS]
        self.key_range = None if ranges is None else torch.tensor(ranges, device=DEVICE)
        for i, (low, high) in enumerate(ranges or []):
            for z in (self.x, self.dt, self.b):
                z[i, :low] = z[i, high:] = NAN

    def everything(self, impl: str, dtype: torch.dtype) -> list[Tensor]:
        """Every result of every op, in the order of NAMES; x, B and C in ``dtype``, the rest in at least float32."""
        wide = torch.promote_types(dtype, torch.float32)
        x, b, c = (z.to(dtype).requires_grad_() for z in (self.x, self.b, self.c))
        dt, a, initial = (z.to(wide).requires_grad_() for z in (self.dt, self.a, self.initial))
        B, T, H, _ = x.shape
        saliency = torch.zeros(1, device=DEVICE).expand(B, T, T).requires_grad_()
        flow = torch.zeros(1, device=DEVICE).expand(B, H, *self.COUNTS).requires_grad_()
        y, state = ops.ssd(
            x, dt, a, b, c, self.key_range, initial, saliency, flow, *self.groups, return_state=True, impl=impl
        )
        grad = self.grad.to(dtype)
        grads = torch.autograd.grad(
            [y, state], [x, dt, a, b, c, initial, saliency, flow], [grad, self.grad_state.to(state.dtype)]
        )
        plain = [z.detach() for z in (x, dt, a, b, c)]
        kw: dict[str, Any] = {"key_range": self.key_range, "impl": impl}
        total = ops.ssd_saliency(*plain, grad, **kw)
        sums = ops.ssd_flow(*plain, grad, *self.groups, *self.COUNTS, **kw)
        assert sums[2] is not None
        return [y.detach(), state.detach(), *grads, total, *sums]


def assert_close(x: Inputs, factor: float = 1.0) -> None:
    """Within the rounding of products with operands in the dtype, relative to the largest number of each result."""
    for name, ours, wanted in zip(
        NAMES, x.everything("triton", x.dtype), x.everything("reference", torch.float64), strict=True
    ):
        assert ours.shape == wanted.shape, name
        assert ours.isfinite().all(), name
        of_dtype = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[x.dtype]
        error, scale = (ours.double() - wanted).abs().max(), wanted.abs().max()
        assert error <= factor * of_dtype * scale + 1e-30, f"{name}: {error:.2e} of {scale:.2e}"


SHAPES = [
    # B, T, H, P, G, N: in the interpreter a chunk is 32 positions, a part of N 16
    (1, 1, 1, 1, 1, 1),
    (2, 31, 2, 16, 1, 16),
    (1, 32, 3, 8, 3, 24),
    (2, 70, 4, 20, 2, 17),
    (1, 129, 2, 32, 1, 40),
    (1, 40, 6, 80, 2, 5),
]
if not INTERPRETED:
    SHAPES += [(1, 200, 2, 64, 1, 64), (1, 150, 2, 64, 1, 128)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_close(Inputs(*shape, dtype=dtype))


@pytest.mark.parametrize("ranges", [[[3, 70], [0, 50]], [[33, 40], [69, 70]], [[0, 0], [32, 64]]])
def test_padding_is_not_read(ranges: list[list[int]]) -> None:
    assert_close(Inputs(2, 70, 4, 20, 2, 17, torch.float32, ranges=ranges))


@pytest.mark.parametrize("decay", [1e-3, 20.0, 1e4])
def test_any_decay(decay: float) -> None:
    assert_close(Inputs(1, 129, 2, 16, 1, 16, torch.float32, decay=decay), factor=4)


def test_a_long_decay_keeps_the_precision_of_its_differences() -> None:
    """Slow steps after very strong decay: a float32 sum over all of them would be off by a tenth."""
    x = Inputs(1, 96, 2, 8, 1, 8, torch.float32)
    x.dt[:, :20], x.dt[:, 20:] = 500.0, 0.01
    x.a[:] = -100.0
    assert_close(x, factor=4)


def test_strides_and_types_of_every_kind() -> None:
    x = Inputs(2, 40, 4, 16, 2, 16, torch.float32)
    expected = x.everything("triton", torch.float32)
    together = torch.cat([x.x.flatten(2), x.b.flatten(2), x.c.flatten(2)], 2)
    parts = together.split([64, 32, 32], 2)
    x.x, x.b, x.c = (z.unflatten(2, (n, -1)) for z, n in zip(parts, (4, 2, 2), strict=True))
    x.grad = x.grad.transpose(1, 3).contiguous().transpose(1, 3)
    for name, a, b in zip(NAMES, x.everything("triton", torch.float32), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_repeats_to_the_bit() -> None:
    x = Inputs(2, 70, 4, 20, 2, 17, torch.float32)
    first = x.everything("triton", torch.float32)
    for _ in range(100 if CUDA else 2):
        assert all(torch.equal(a, b) for a, b in zip(x.everything("triton", torch.float32), first, strict=True))


def test_goes_on_from_a_state() -> None:
    x = Inputs(1, 70, 2, 16, 1, 16, torch.float32)
    tensors = [z.float() for z in (x.x, x.dt, x.a, x.b, x.c)]
    whole, last = ops.ssd(*tensors, return_state=True, impl="triton")
    state, found = None, []
    for part in (slice(0, 33), slice(33, 34), slice(34, 70)):
        piece = [z if z.ndim == 1 else z[:, part] for z in tensors]
        y, state = ops.ssd(*piece, initial_state=state, return_state=True, impl="triton")
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-4)


def test_more_groups_than_a_program_sums() -> None:
    x = Inputs(1, 40, 2, 16, 1, 16, torch.float32)
    tensors = [z.float() for z in (x.x, x.dt, x.a, x.b, x.c)]
    ids = torch.arange(40, device=DEVICE)[None]
    for matrix in (True, False):
        found, expected = (
            ops.ssd_flow(*tensors, x.grad.float(), ids, ids, 40, 40, with_matrix_total=matrix, impl=impl)
            for impl in ("triton", "reference")
        )
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_opcheck() -> None:
    x = Inputs(1, 9, 2, 16, 1, 16, torch.float32)
    plain = [z.float() for z in (x.x, x.dt, x.a, x.b, x.c)]
    grad, op, key_range = x.grad.float(), torch.ops.symground, torch.tensor([[1, 8]], device=DEVICE)
    torch.library.opcheck(op.ssd_triton, (*(z.clone().requires_grad_() for z in plain), key_range, x.initial.float()))
    torch.library.opcheck(op.ssd_backward_triton, (grad, None, *plain, key_range, None))
    torch.library.opcheck(op.ssd_saliency_triton, (*plain, key_range, grad, False))
    ids = x.groups[0]
    torch.library.opcheck(op.ssd_flow_triton, (*plain, None, grad, ids, ids.clone(), 3, 3, True))


@pytest.mark.skipif(
    EMULATED is not None, reason="torch.compile takes no dispatch mode, by which the emulator sees PyTorch's calls"
)
def test_whole_graphs() -> None:
    x = Inputs(1, 9, 2, 16, 1, 16, torch.float32)
    plain = [z.float() for z in (x.x, x.dt, x.a, x.b, x.c)]

    def loss(probe: Tensor) -> Tensor:
        return ops.ssd(*plain, saliency_probe=probe, impl="triton").square().sum()

    first, second = (torch.zeros(1, device=DEVICE).expand(1, 9, 9).requires_grad_() for _ in range(2))
    loss(first).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(second).backward()
    torch.testing.assert_close(first.grad, second.grad)
