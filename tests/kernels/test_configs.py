"""The table of shipped configurations answers for everything that an op lets through."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

from symground.kernels.configs import KERNELS, shipped


@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_90", "sm_100", "gfx942", "interpreter"])
def test_every_kernel_has_a_configuration_for_every_head_size_and_dtype(architecture: str) -> None:
    for kernel in KERNELS:
        for block_d in (16, 32, 64, 128, 256):
            for element_size in (2, 4):
                config = shipped(kernel, architecture, block_d, element_size)
                assert min(config.BM, config.BN) >= 16
