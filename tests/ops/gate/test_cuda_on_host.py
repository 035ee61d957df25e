"""The CUDA kernel of gated heads, run on the CPU block by block and thread by thread, which tests its indices, its
launches, and what it reads and writes. Its threads share nothing, so their order does not matter. Nothing here runs on
a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from symground.ops.common import build
from tests.ops.common.host import compiled_for_the_host

#: Replacements for nvcc's own headers and for calls that need a GPU. Each text occurs once in the source.
REPLACED = {
    "#include <cuda_runtime.h>\n": """#include <cuda_runtime.h>
#define __launch_bounds__(threads)
static struct { unsigned x; } the_block, the_thread;
#define blockIdx the_block
#define threadIdx the_thread
static float __fmul_rn(float x, float y) { return x * y; }
static double __dmul_rn(double x, double y) { return x * y; }
static float __fadd_rn(float x, float y) { return x + y; }
static double __dadd_rn(double x, double y) { return x + y; }
""",
    "gate_kernel<T, kVector><<<blocks, kThreads, 0, stream>>>(g, rows, lanes);": """
  for (the_block.x = 0; the_block.x < blocks; ++the_block.x) {
    for (the_thread.x = 0; the_thread.x < kThreads; ++the_thread.x) gate_kernel<T, kVector>(g, rows, lanes);
  }""",
    "int64_t(1) << 30": "ROWS",
    "const cudaError_t error = cudaGetLastError();": "const cudaError_t error = cudaSuccess;",
    "cudaGetErrorString(error)": '""',
    "const torch::stable::accelerator::DeviceGuard guard(device);": "(void)device;",
    "TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));": "",
    "STABLE_TORCH_LIBRARY_IMPL(symground_C, CUDA, m) {": """STABLE_TORCH_LIBRARY_FRAGMENT(on_host, m) {
  m.def("gate_heads(Tensor x, Tensor gate, Tensor? fill, Tensor(a!) out) -> bool");
}
STABLE_TORCH_LIBRARY_IMPL(on_host, CPU, m) {""",
}

PROGRAM = """
import sys, torch
import symground.ops
from symground.ops.common import checks
from symground.ops.gate.reference import plain
torch.ops.load_library(sys.argv[1])
torch.manual_seed(0)
some, compared = torch.tensor([0.0, 1.0, 0.5, 0.3, -0.7]), 0
for dtype in checks.FLOATING:
    for B, T, H, D in ((1, 1, 1, 1), (2, 5, 3, 7), (2, 33, 4, 64), (1, 17, 2, 80), (2, 9, 5, 96), (1, 4, 3, 1032)):
        long = torch.randn(B, H, T, D + 1).to(dtype)
        # [B,H,T,D] transposed: aligned for 16 bytes, and beginning where nothing is
        for x in (long[..., :D].contiguous().transpose(1, 2), long[..., 1:].transpose(1, 2)):
            for masks in ((H,), (B, H), (3, B, H)):
                gate = some[torch.randint(5, masks)].to(torch.promote_types(dtype, torch.float32))
                shape = (*masks[:-2], B, T, H, D)
                for given in (None, (), (D,), (H, 1), (T, 1, D), (B, T, H, D), shape):
                    fill = None if given is None else torch.randn(given).to(dtype)
                    out = torch.full(shape, float("nan"), dtype=dtype)
                    torch.ops.on_host.gate_heads(x, gate, fill, out)
                    assert torch.equal(out, plain(x, gate, fill)), (dtype, x.shape, masks, given)
                    compared += 1
print(compared)
"""


@pytest.mark.slow
@pytest.mark.skipif(build.nvcc() is None or build.compiler() is None, reason="no nvcc, whose headers this needs")
@pytest.mark.parametrize("rows", ["1L << 30", "6"])
def test_gives_the_bits_of_plain_pytorch(tmp_path: Path, rows: str) -> None:
    """In one launch, and in launches of few rows, as if there were more rows than 32 bits can count."""
    source = (build.SOURCES / "gate" / "gate.cu").read_text(encoding="utf-8")
    for text, replacement in REPLACED.items():
        assert source.count(text) == 1, text
        source = source.replace(text, replacement)
    library = compiled_for_the_host(source, tmp_path, f"-DROWS={rows}")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 4 * 6 * 2 * 3 * 7
