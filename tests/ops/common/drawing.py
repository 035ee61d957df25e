"""Random choices for one case of a test: sizes, dtypes, layouts, ids and ranges, all from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
IDS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)
LAYOUTS = ("contiguous", "transposed", "permuted", "strided", "expanded", "sliced", "overlapping", "negative")


class Draw:
    """The random choices of one case."""

    def __init__(self, seed: int, zeros: float, layouts: bool, dtype: torch.dtype | None, wide: bool) -> None:
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.zeros, self.layouts, self.wide = zeros, layouts, wide
        self.dtype = dtype or self.one(torch.float32, torch.float32, torch.float64, *HALF)

    def one(self, *options: Any) -> Any:
        return self.rng.choice(options)

    def maybe(self, make: Callable[[], Any]) -> Any:
        return make() if self.rng.random() < 0.5 else None

    def size(self, most: int, least: int = 1) -> int:
        """A size from ``least`` to ``most``, and sometimes 0 if ``zeros``."""
        return 0 if self.rng.random() < self.zeros else self.rng.randint(least, most)

    def length(self) -> int:
        """The length of a sequence: short, or across the tiles and chunks of 64 and 128."""
        return self.size(9) if self.wide or self.rng.random() < 0.7 else self.rng.choice((63, 64, 65, 130))

    def normal(
        self, *shape: int, dtype: torch.dtype | None = None, by: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return self.laid((x if by is None else by(x)).to(dtype or self.dtype))

    def other(self) -> torch.dtype:
        """A dtype for an argument that may differ from the others."""
        return self.one(self.dtype, self.dtype, torch.float32)

    def laid(self, x: Tensor, layout: str | None = None) -> Tensor:
        return laid_out(x, layout or self.one(*LAYOUTS), self.rng) if self.layouts else x

    def ids(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers in [low, high), in a dtype just large enough."""
        fitting = [d for d in IDS if torch.iinfo(d).min <= low and high - 1 <= torch.iinfo(d).max]
        x = torch.randint(low, max(high, low + 1), shape, generator=self.generator)
        return self.laid(x.to(self.one(*fitting)), self.one("contiguous", "transposed", "strided", "expanded"))

    def ranges(self, batch: int, length: int) -> Tensor | None:
        def some() -> Tensor:
            x = torch.randint(length + 1, (batch, 2), generator=self.generator).sort(-1).values
            fitting = [d for d in IDS if length <= torch.iinfo(d).max]
            return self.laid(x.to(self.one(*fitting)), self.one("contiguous", "transposed", "strided"))

        return self.maybe(some)

    def probe(self, *shape: int) -> Tensor:
        value = self.one(0.0, float("nan"))  # its values are taken to be 0
        return torch.full((1,), value, dtype=self.one(torch.float32, self.dtype)).expand(shape)


def laid_out(x: Tensor, layout: str, rng: random.Random) -> Tensor:
    """``x`` in another layout; an expanded or overlapping layout changes its values, since some share memory."""
    if layout == "contiguous" or x.ndim == 0:
        return x
    if layout == "transposed":
        return x if x.ndim < 2 else x.mT.contiguous().mT
    if layout == "permuted":
        order = rng.sample(range(x.ndim), x.ndim)
        return x.permute(order).contiguous().permute([order.index(i) for i in range(x.ndim)])
    if layout == "strided":
        steps = [rng.choice((1, 2, 3)) for _ in x.shape[:-1]] + [2]
        out = x.new_full([n * s for n, s in zip(x.shape, steps, strict=True)], 77)
        view = out[tuple(slice(None, None, s) for s in steps)]
        view.copy_(x)
        return view
    if layout == "expanded":
        at = rng.sample(range(x.ndim), rng.randint(1, x.ndim))
        one = x[tuple(slice(0, 1) if i in at and x.shape[i] else slice(None) for i in range(x.ndim))]
        return one.expand(x.shape)
    if layout == "sliced":
        out = x.new_full([n + 3 for n in x.shape], 77)
        view = out[tuple(slice(2, 2 + n) for n in x.shape)]
        view.copy_(x)
        return view
    if layout == "overlapping":  # rows begin within the row before
        if x.ndim < 2 or x.numel() == 0:
            return x
        return x.flatten().as_strided(x.shape, [*(1 for _ in x.shape)])
    return torch._neg_view((-x).contiguous()) if x.is_floating_point() else x
