"""Every op over layouts, dtypes, sizes from 0, integer dtypes, autocast and grad modes, against oracles in float64.

SYMGROUND_FUZZ is the number of configurations: `SYMGROUND_FUZZ=10000 python -m pytest tests/ops/common/test_fuzz.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_op_over_drawn_configurations() -> None:
    """In its own process, since a fault in a kernel may end it; the last number printed is then its configuration."""
    count = os.environ.get("SYMGROUND_FUZZ", "1200")
    command = [sys.executable, "-m", "tests.ops.common.fuzz", "0", count]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
