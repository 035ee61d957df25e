"""The command that builds the C++/CUDA extension."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from symground.errors import DISABLE


@dataclass(frozen=True)
class Build:
    """``symground build``."""

    def run(self) -> Path | int:
        # The extension that is there is not loaded: a damaged file would end the process that is to replace it.
        before = os.environ.get(DISABLE, "")
        os.environ[DISABLE] = f"{before},extension"
        try:
            from symground.ops.common import build as builder
        finally:
            os.environ[DISABLE] = before
        print(builder.build())
        try:
            return builder.build_cuda()
        except FileNotFoundError as missing:
            print(f"symground: {missing}; the extension has its CPU part only", file=sys.stderr)
            return 0
