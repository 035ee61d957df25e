"""What the committed counts of `python -m tests.ptx` say has run, beside what is shipped."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

from symground.kernels.common.configs import Config, tables
from tests.ptx.__main__ import ARCHITECTURES, RESULTS, table

#: Entry of the tables → the kernel that is launched with it, where the names differ.
LAUNCHED = {
    "dq_flow": "dq_kernel", "ssd_forward": "ssd_output_kernel", "ssd_saliency": "attention_saliency_kernel",
    "ssd_flow": "attention_flow_kernel",
}  # fmt: skip
#: Bytes of an element → types, as Triton writes them.
TYPES = {2: ("bf16", "fp16"), 4: ("fp32",)}


def shipped(architecture: str) -> Iterator[tuple[str, str, Config]]:
    """Kernel, type and tile of every entry for an architecture."""
    for name, tiles in tables().items():
        for size, types in TYPES.items():
            entry = tiles
            if not isinstance(entry, Config):
                entry = entry.get((architecture, size)) or entry["cuda", size]
            for config in [entry] if isinstance(entry, Config) else entry.values():
                for of in types:
                    yield LAUNCHED.get(name, f"{name}_kernel"), of, config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_shipped_tile_has_run(architecture: str) -> None:
    """A tile that is changed must run again: `python -m tests.ptx`, after the counts of its file are removed."""
    ran = {
        (kernel, *tile)
        for file in RESULTS.glob(f"*.{architecture}.json")
        for kernel, of in json.loads(file.read_text(encoding="utf-8"))["kernels"].items()
        for tile in of["tiles"]
    }
    assert [x for kernel, of, config in shipped(architecture) if (x := (kernel, of, *config)) not in ran] == []


def test_the_page_is_that_of_the_counts() -> None:
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == table()
