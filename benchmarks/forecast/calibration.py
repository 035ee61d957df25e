"""What the simulator says of kernels whose speed others have published.

Published are the speeds of Triton's tutorial on fused attention, which is FlashAttention-2 with tiles chosen by
measuring. Here the same algorithms, in this package's own kernels, are simulated with the tutorial's tiles, and the
fastest counts, as the tutorial's does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from symground.kernels.common.configs import Config


class Published(NamedTuple):
    """A speed that was measured on a GPU, without a causal mask or at a length where the mask hardly counts."""

    architecture: str
    #: The kernels that run one after the other.
    kernels: tuple[str, ...]
    size: int
    #: TFLOP/s, counted as 4 T² D a head for the forward pass and 2.5 times that for the backward pass.
    speed: float
    #: Products that the kernels compute for each one that is counted: the backward pass computes two of its five twice.
    products: float
    source: str


_TUTORIAL = "triton-lang.org, tutorial 06, fused attention, float16, batch 4, 32 heads"
_FA3 = "Shah et al. 2024 (FlashAttention-3), figure 5, Triton, float16, 16,384 tokens"

PUBLISHED = (
    Published("sm_80", ("attention_forward",), 64, 166.6, 1.0, f"{_TUTORIAL}, 16,384 tokens"),
    Published("sm_80", ("dq", "dkdv"), 64, 87.5, 7 / 5, f"{_TUTORIAL}, 4,096 tokens, causal"),
    Published("sm_90", ("attention_forward",), 64, 403.0, 1.0, _FA3),
    Published("sm_90", ("attention_forward",), 128, 395.0, 1.0, _FA3),
)


def tiles(kernel: str) -> Iterator[Config]:
    """The tutorial's tiles: those of its forward pass are measured, those of its backward pass fixed."""
    if kernel == "dq":
        yield Config(128, 32, 4, 5)
    elif kernel == "dkdv":
        yield Config(32, 128, 4, 5)
    else:
        for rows in (64, 128):
            for columns in (32, 64, 128):
                for stages in (2, 3, 4):
                    yield Config(rows, columns, 4, stages)
                    if rows == columns == 128:
                        yield Config(rows, columns, 8, stages)
