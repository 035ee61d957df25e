"""The command that builds the C++/CUDA extension."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from symground.ops.common import build as builder


@dataclass(frozen=True)
class Build:
    """``symground build``."""

    def run(self) -> Path | int:
        print(builder.build())
        try:
            return builder.build_cuda()
        except FileNotFoundError as missing:
            print(f"symground: {missing}; the extension has its CPU part only", file=sys.stderr)
            return 0
