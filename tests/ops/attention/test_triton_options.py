"""The Triton kernels with what today's models ask for: caps, sinks, slopes, packed texts, blocks, heads of any width.

As in test_triton.py, each result is as good as eager's in the same precision, against float64.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from symground import ops
from symground.ops.attention import triton
from symground.ops.attention.mixing import Mixing
from tests.ops.attention.test_triton import SHAPES, Inputs, assert_as_good, assert_as_good_as_eager, eager, key_range
from tests.ops.common.triton_device import DEVICE, DTYPES, INTERPRETED, fresh_memory_is_nan  # noqa: F401


def today(B: int, H: int, T: int, S: int, which: str) -> dict[str, Any]:
    """What today's models ask for: a cap, sinks, slopes, packed texts, blocks that are seen both ways."""
    g = torch.Generator().manual_seed(S)
    ids = torch.randint(0, 3, (B, S), generator=g)  # each id is in several places
    texts = ids.sort(-1).values
    blocks = torch.where(torch.arange(S) % 23 < 11, torch.arange(S) // 23, -1).expand(B, S)
    values = {
        "softcap": 3.0, "sink": torch.linspace(-2.0, 3.0, H), "slopes": torch.linspace(-0.05, 0.3, H),
        "segments": texts, "scattered": ids, "blocks": blocks,
    }  # fmt: skip
    names = {"all": ("softcap", "sink", "slopes", "segments", "blocks"), "packed": ("segments",)}.get(which, (which,))
    return {
        "segments" if name == "scattered" else name: value.to(DEVICE) if isinstance(value, Tensor) else value
        for name, value in values.items()
        if name in names
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", ["softcap", "sink", "slopes", "packed", "scattered", "blocks", "all"])
@pytest.mark.parametrize("shape", SHAPES[:1] if INTERPRETED else SHAPES[-1:], ids=str)
def test_what_todays_models_ask_for_is_as_good_as_eagers(
    shape: tuple[int, ...], which: str, dtype: torch.dtype
) -> None:
    B, H, _, T, S, _ = shape
    assert_as_good_as_eager(Inputs(*shape), dtype, today(B, H, T, S, which))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{"window": 9}, {"causal": False}, {"gated": True}], ids=str)
def test_what_todays_models_ask_for_with_padding(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Padding at the left and the right, packed texts, blocks, a sink and a cap at once, and rows without a key."""
    kw = {**today(2, 2, 40, 53, "all"), "key_range": key_range((11, 53), (0, 39)), **options}
    if kw.pop("gated", False):
        kw["gate"] = torch.tensor([0.5, 0.0], device=DEVICE)
    assert_as_good_as_eager(Inputs(2, 2, 1, 40, 53, 16), dtype, kw)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("sizes", "which"),
    [((24, 40), "none"), ((192, 128), "all"), ((320, 64), "none"), ((576, 512), "all"), ((64, 300), "all")],
    ids=str,
)
def test_wide_heads_and_values_of_another_width(sizes: tuple[int, int], which: str, dtype: torch.dtype) -> None:
    """As in multi-head latent attention. Beyond 256 columns, results have parts, of either width."""
    x = Inputs(1, 2, 1, 37, 40, sizes[0], of_value=sizes[1])
    assert_as_good_as_eager(x, dtype, today(1, 2, 37, 40, which))


def test_sinks_and_slopes_have_gradients() -> None:
    x, grads = Inputs(2, 4, 2, 40, 53, 16), []
    gate = torch.tensor([1.0, 0.0, -0.5, 1.0], device=DEVICE)
    for impl, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        leaves = [torch.linspace(a, b, 4, dtype=dtype, device=DEVICE) for a, b in ((-1.0, 2.0), (-0.1, 0.2))]
        sink, slopes = (y.requires_grad_() for y in leaves)
        out, _ = ops.attention(
            *(y.to(dtype) for y in (x.q, x.k, x.v)), sink=sink, slopes=slopes, softcap=2.0, gate=gate, impl=impl
        )
        grads.append(torch.autograd.grad(out, [sink, slopes], x.grad.to(dtype)))
    for found, wanted in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(200, 200), (320, 64)], ids=str)
def test_gradients_of_wide_heads_without_probes(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    """Without a flow, dq has tiles of its own."""
    x = Inputs(1, 2, 1, 37, 40, sizes[0], of_value=sizes[1]).rounded(dtype)
    exact = x.without_probes("reference", torch.float64)
    assert_as_good(x.without_probes("triton", dtype), eager(x, dtype, {}), exact, dtype)


@pytest.mark.parametrize(("architecture", "size", "refused"), [("sm_86", 288, True), ("sm_86", 256, False),
                                                                ("sm_80", 576, False)])  # fmt: skip
def test_heads_that_do_not_fit_a_gpus_shared_memory_are_refused(
    monkeypatch: pytest.MonkeyPatch, architecture: str, size: int, refused: bool
) -> None:
    """`python -m benchmarks kernels` shows that they do not; the architecture stands for a GPU."""
    from symground.kernels.common import configs

    monkeypatch.setattr(configs, "architecture_of", lambda device: architecture)
    q: Any = SimpleNamespace(shape=(1, 2, 5, 64), device=torch.device("cuda", 0))
    v: Any = SimpleNamespace(shape=(1, 2, 5, size), device=torch.device("cuda", 0))
    assert triton.ops.lacks is not None
    said = triton.ops.lacks(q, None, Mixing(), v)
    assert (said is not None) == refused
    assert said is None or "heads of at most 256 on this GPU" in said
