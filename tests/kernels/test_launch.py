"""A launch that is found again is the one that Triton would have made.

It happens in a separate process, on a GPU that is not there, because in this one Triton runs in its interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: kernel tests")
import torch  # noqa: E402
import triton.language as tl  # noqa: E402
from torch import Tensor  # noqa: E402

from symground.kernels.common import launch as launching  # noqa: E402
from symground.kernels.common.launch import launch  # noqa: E402

ROOT = Path(__file__).parents[2]


@triton.jit(do_not_specialize=["free"])
def copy_kernel(p_x, p_y, p_bias, step, free, scale, BLOCK: tl.constexpr, ADDS: tl.constexpr):
    o = tl.program_id(0) * step + tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o) * scale + free
    if ADDS:
        b_x += tl.load(p_bias + o)
    tl.store(p_y + o, b_x)


def calls() -> list[tuple[tuple[int, ...], tuple[Tensor | None, ...], tuple[float, ...], dict[str, int]]]:
    """What changes from call to call: addresses, dtypes, numbers, what is fixed, the grid."""
    x, y = torch.zeros(4096), torch.zeros(4096)
    usual = ((2,), (x, y, None), (16, 7, 0.5), {"BLOCK": 512, "ADDS": False, "num_warps": 4})
    grid, tensors, numbers, fixed = usual
    return [
        usual,
        (grid, (x[1:], y, None), numbers, fixed),
        (grid, (x[4:], y, None), numbers, fixed),
        (grid, (x, y[1:], None), numbers, fixed),
        (grid, (x.half(), y, None), numbers, fixed),
        (grid, (x, y, x), numbers, {**fixed, "ADDS": True}),
        (grid, (x, y, x[1:]), numbers, {**fixed, "ADDS": True}),
        (grid, tensors, (1, 7, 0.5), fixed),
        (grid, tensors, (15, 7, 0.5), fixed),
        (grid, tensors, (2**31, 7, 0.5), fixed),
        (grid, tensors, (16, 8, 0.25), fixed),
        (grid, tensors, numbers, {**fixed, "BLOCK": 1024}),
        (grid, tensors, numbers, {**fixed, "num_warps": 8}),
        ((3, 2), tensors, numbers, fixed),
        ((3, 2, 5), tensors, numbers, fixed),
    ]


def main() -> None:
    from benchmarks.common.absent_gpu import Launch, absent_gpu

    made: list[Launch] = []
    with absent_gpu("sm_80", made.append):
        every = calls()
        for grid, tensors, numbers, fixed in every:
            copy_kernel[grid](*tensors, *numbers, **fixed)
        for _ in range(2):
            for grid, tensors, numbers, fixed in every:
                launch(copy_kernel, grid, tensors, numbers, **fixed)

        def what(x: Launch) -> object:
            values = [(of, z.data_ptr() if isinstance(z, Tensor) else z) for of, z in x.arguments.values()]
            return x.function.binary, x.warps, x.grid, values

        wanted, first, again = (
            [what(x) for x in made[at : at + len(every)]] for at in range(0, 3 * len(every), len(every))
        )
        assert wanted == first == again
        assert len({binary for binary, *_ in wanted}) >= 10  # type: ignore[misc]

        with patch.object(type(copy_kernel), "run", wraps=copy_kernel.run) as run:
            launch(copy_kernel, *every[0][:3], **every[0][3])
            assert not run.called, "a launch is not found again"
            with patch.object(triton.knobs.runtime, "launch_enter_hook", lambda _: None):
                launch(copy_kernel, *every[0][:3], **every[0][3])
            assert run.called, "a profiler's hook is not called"
    assert len(made) == 3 * len(every) + 2
    print("all launches as Triton's")


def test_a_launch_that_is_found_again_is_the_one_that_triton_would_have_made() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.test_launch"], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "all launches as Triton's" in done.stdout, done.stderr


def test_what_is_remembered_is_bounded() -> None:
    with patch.object(launching, "_remembered", {}), patch.object(launching, "MOST_REMEMBERED", 3):
        for key in range(10):
            launching.remembered(key)["x"] = key
            assert launching.remembered(key) == {"x": key}
            assert len(launching._remembered) <= 3
        for value in range(10):
            launching.remembered("one key")[value] = value
            assert len(launching.remembered("one key")) <= 3


@pytest.mark.parametrize(("size", "of"), [(0, 3), (1, 3), (3, 3), (4, 3), (2**40, 7)])
def test_whole_numbers(size: int, of: int) -> None:
    assert launching.cdiv(size, of) == triton.cdiv(size, of)
    assert launching.power_of_2(max(1, size)) == triton.next_power_of_2(max(1, size))


if __name__ == "__main__":
    main()
