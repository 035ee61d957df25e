"""The CUDA part of the extension: nvcc's machine code, without a GPU, and its results on a GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from symground import ops
from symground.ops.common import build, extension

NVCC = build.nvcc()
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def tool(name: str) -> str | None:
    """A tool of CUDA's, from the PATH or from Triton's package."""
    try:
        import triton
    except ImportError:
        return shutil.which(name)
    beside = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return shutil.which(name) or (str(beside) if beside.exists() else None)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not here: the CUDA sources are not compiled")
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_compiles_without_spills_and_moves_16_bytes_at_a_time(tmp_path: Path, architecture: str) -> None:
    torch_folder, code = build.torch_folder(), tmp_path / "gate.cubin"
    assert NVCC is not None
    assert torch_folder is not None
    flags = [f for f in build.cuda_flags(torch_folder, [architecture]) if not f.startswith("-gencode")]
    command = [NVCC, *flags, f"-arch=sm_{architecture}", "-cubin", "-Xptxas=-v,-warn-spills", "-Werror=all-warnings"]
    given = [*command, str(build.SOURCES / "gate" / "gate.cu"), "-o", str(code)]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spills = [line.strip() for line in done.stderr.splitlines() if "spill" in line]
    assert len(spills) == 8, "4 dtypes, with and without vectors"
    assert set(spills) == {"0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"}
    disassembler = tool("nvdisasm")
    if disassembler is None:
        pytest.skip("nvdisasm is not here: what was compiled is not read")
    text = subprocess.run([disassembler, "-c", str(code)], capture_output=True, text=True, check=True).stdout
    kernels = {part.split("\n", 1)[0]: part for part in text.split(".section\t.text.")[1:]}
    assert len(kernels) == 8
    for name, body in kernels.items():
        wide = any(f"Li{16 // dtype.itemsize}E" in name for dtype in DTYPES)
        # LDG.E.128, LDG.E.128.CONSTANT, …
        for access in ("LDG.E", "STG.E"):
            lines = [line for line in body.splitlines() if access in line]
            assert lines, (name, access)
            assert wide == any(".128" in line for line in lines), (name, access)
            if access == "STG.E":
                assert all((".128" in line) == wide for line in lines), name
        assert "LDL" not in body, f"{name}: local memory"
        assert "STL" not in body, f"{name}: local memory"


# A torch for CUDA loads the CUDA part where no GPU or no driver is, too.
on_gpu = pytest.mark.skipif(
    extension.cuda is None or not torch.cuda.is_available(), reason="needs the extension's CUDA part and a GPU"
)


def gates(*shape: int) -> torch.Tensor:
    return torch.tensor([0.0, 1.0, 0.5, 0.3, -0.7])[torch.randint(5, shape)].cuda()


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 64, 80, 96])
def test_gives_the_bits_of_plain_pytorch_on_a_gpu(dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    long = torch.randn(2, 4, 77, size + 1, device="cuda").to(dtype)
    for x in (long[..., :size].contiguous().transpose(1, 2), long[..., 1:].transpose(1, 2)):  # the second is unaligned
        for gate in (gates(4), gates(2, 4), gates(3, 2, 4)):
            for shape in (None, (), (size,), (4, 1), (77, 1, size), (2, 77, 4, size)):
                fill = None if shape is None else torch.randn(shape, device="cuda").to(dtype)
                found = [ops.gate_heads(x, gate, fill, impl=impl) for impl in ("cuda", "reference")]
                assert torch.equal(*found), (gate.shape, shape)


@on_gpu
def test_what_a_gpu_drops_is_not_read_and_all_is_written() -> None:
    x = torch.randn(2, 33, 3, 64, device="cuda")
    x[:, :, 0] = float("nan")
    fill = torch.full_like(x, float("nan"))
    fill[:, :, 0] = 2.0
    out = ops.gate_heads(x, torch.tensor([0.0, 1.0, 1.0], device="cuda"), fill, impl="cuda")
    assert torch.equal(out[:, :, 0], fill[:, :, 0])
    assert torch.equal(out[:, :, 1:], x[:, :, 1:])
