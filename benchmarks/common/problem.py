"""What every problem of a measurement has, besides its sizes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch


class Problem:
    """The base of a frozen dataclass of sizes."""

    @property
    def row(self) -> dict[str, Any]:
        """The sizes as a row of a result."""
        return asdict(self)  # type: ignore[call-overload]

    @property
    def element(self) -> torch.dtype:
        """The dtype of its tensors, if it has a field ``dtype``."""
        dtype: torch.dtype = getattr(torch, self.dtype)  # type: ignore[attr-defined]
        return dtype
