"""Every operator of the C++ extension under AddressSanitizer and UndefinedBehaviorSanitizer, on small odd shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from symground.ops.common import build as builder

FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1 -DEACH_MACHINE="

#: Replaces the extension before symground.ops is imported, which would load the one in its own folder.
PROGRAM = """
import sys, importlib.util
from pathlib import Path
folder = Path(sys.argv[1])
import symground
path = Path(symground.__file__).parent / "ops" / "common" / "build.py"
spec = importlib.util.spec_from_file_location("symground.ops.common.build", path)
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
build.HERE = folder
sys.modules["symground.ops.common.build"] = build

import torch
from symground import ops
from symground.ops.common import extension
assert extension.library is not None
called = set()

class Counted:
    def __getattr__(self, name):
        called.add(name)
        return getattr(torch.ops.symground_C, name)

extension.library = Counted()
torch.set_num_threads(2)
torch.manual_seed(0)

def attention(B, H, Hk, T, S, D, dtype, **kw):
    q, k, v = (torch.randn(B, h, n, D, dtype=dtype).requires_grad_() for h, n in ((H, T), (Hk, S), (Hk, S)))
    groups = torch.randint(-1, 3, (B, T)), torch.randint(-1, 3, (B, S))
    probe = torch.zeros(1, dtype=dtype).expand(B, T, S).requires_grad_()
    flow = torch.zeros(1, dtype=dtype).expand(B, H, 3, 3).requires_grad_()
    gate = torch.tensor([0.0, 1.0, 0.5, 1.0], dtype=dtype)[:H]
    for g in (None, gate):
        out, lse = ops.attention(q, k, v, gate=g, saliency_probe=probe, flow_probe=flow, query_groups=groups[0],
                                 key_groups=groups[1], impl="cpu", **kw)
        out.sum().backward()
        after = [x.detach() for x in (q, k, v, torch.randn_like(out), lse)]
        ops.attention_saliency(*after, gate=g, impl="cpu", **kw)
        ops.attention_flow(*after, *groups, 3, 3, gate=g, impl="cpu", **kw)
        ops.attention_flow(*after, *groups, 3, 3, gate=g, with_matrix_total=False, impl="cpu", **kw)
        ops.attention_saliency_rows(*after, torch.randint(0, T, (B, 2)), gate=g, impl="cpu", **kw)
    read = q, k, lse
    sums = [ops.attention_mass(*read, *groups, 3, 3, impl="cpu", **kw), ops.attention_received(*read, impl="cpu", **kw)]
    sums.append(ops.attention_summary(*read, impl="cpu", **kw).entropy)
    sum(x.sum() for x in sums).backward()
    for reduce in ("sum", "max"):
        ops.attention_pooled(*read, 4, reduce, impl="cpu", **kw)

for dtype in (torch.float32, torch.float64):
    attention(1, 1, 1, 1, 1, 1, dtype)
    attention(2, 4, 2, 7, 9, 5, dtype, key_range=torch.tensor([[0, 0], [2, 8]]))
    attention(2, 3, 1, 67, 67, 17, dtype, window=5)
    attention(1, 2, 2, 3, 130, 33, dtype, causal=False)
    ids = torch.arange(130).expand(2, -1) // 40
    attention(2, 4, 2, 67, 130, 9, dtype, segments=ids, blocks=ids // 2 - 1, softcap=3.0, sink=torch.randn(4),
              slopes=torch.randn(4), key_range=torch.tensor([[0, 130], [7, 128]]))
attention(2, 2, 1, 19, 19, 16, torch.bfloat16)

for dtype in (torch.float32, torch.float64):
    hidden, weight = (torch.randn(n, 7, dtype=dtype).requires_grad_() for n in (11, 37))
    ops.candidate_surprisal(hidden, weight, torch.tensor([0, 36]), impl="cpu").sum().backward()
    ops.linear_cross_entropy(hidden, weight, torch.randint(0, 37, (11,)), impl="cpu").backward()

for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for B, T, H, D in ((1, 1, 1, 1), (2, 5, 3, 7), (3, 700, 4, 33), (2, 3, 2, 0)):
        x = torch.randn(B, H, T, D).to(dtype).transpose(1, 2).requires_grad_()
        for gate in (torch.rand(H), torch.rand(B, H).round(), torch.randn(3, B, H)):
            gate.requires_grad_()
            for shape in (None, (), (D,), (H, 1), (B, T, H, D)):
                fill = None if shape is None else torch.randn(shape).to(dtype).requires_grad_()
                ops.gate_heads(x, gate, fill, impl="cpu").sum().backward()

def ssd(B, T, H, G, P, N, dtype, padded=False):
    x, dt, b, c = (torch.randn(B, T, *size, dtype=dtype) for size in ((H, P), (H,), (G, N), (G, N)))
    A, h = -torch.rand(H, dtype=dtype), torch.randn(B, H, P, N, dtype=dtype)
    wanted = [z.requires_grad_() for z in (x, dt.abs(), A, b, c, h)]
    inside = torch.stack([torch.arange(B) % T, torch.full((B,), T)], 1) if padded else None
    y, state = ops.ssd(*wanted[:5], inside, h, return_state=True, impl="cpu")
    (y.sum() + state.sum()).backward()
    ops.ssd(*wanted[:5], inside, impl="cpu").sum().backward()

def convolution(B, T, C, K, dtype):
    x, weight, bias, state = (torch.randn(n, dtype=dtype) for n in ((B, T, C), (C, K), (C,), (B, K - 1, C)))
    for b, s in ((None, None), (bias.requires_grad_(), None), (bias, state)):
        for activation in ("silu", None):
            x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
            ops.causal_conv1d(x, weight, b, s, activation, impl="cpu").sum().backward()

def inner(B, T, H, G, P, N, dtype):
    width, channels = H * P, H * P + 2 * G * N
    given = torch.randn(B, T, width + channels + H, dtype=dtype).requires_grad_()
    heads = [torch.rand(H, dtype=dtype).requires_grad_() for _ in range(3)]
    weight, norm = torch.randn(channels, 4, dtype=dtype), torch.ones(width, dtype=dtype)
    out = ops.mamba2_inner(given, weight.requires_grad_(), None, *heads, norm.requires_grad_(), G, impl="cpu")
    out.sum().backward()

for dtype in (torch.float32, torch.float64):
    for B, T, H, G, P, N in ((1, 1, 1, 1, 1, 1), (2, 65, 4, 2, 7, 5), (1, 200, 3, 1, 33, 17), (3, 64, 2, 2, 16, 128)):
        ssd(B, T, H, G, P, N, dtype)
        ssd(B, T, H, G, P, N, dtype, padded=True)
        inner(B, T, H, G, P, N, dtype)
    for B, T, C, K in ((1, 1, 1, 1), (2, 3, 5, 4), (1, 300, 67, 4), (2, 2, 16, 7)):
        convolution(B, T, C, K, dtype)
ssd(2, 19, 2, 1, 16, 8, torch.bfloat16)

print(*sorted(called))
"""


def library(name: str) -> str | None:
    command = builder.compiler()
    if command is None:
        return None
    found = subprocess.run([*command, f"-print-file-name={name}"], capture_output=True, text=True, check=False).stdout
    return found.strip() if os.path.isabs(found.strip()) else None


needs_sanitizers = pytest.mark.skipif(
    not (library("libasan.so") and library("libubsan.so")), reason="the compiler has no libasan.so and libubsan.so"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with the sanitizers."""
    libraries = f"{library('libasan.so')} {library('libubsan.so')}"
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", "LD_PRELOAD": libraries}
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **options}, capture_output=True, text=True, check=False
    )


def fuzzed(folder: Path, first: int, count: int) -> subprocess.CompletedProcess[str]:
    """Run this many configurations of `sanitized_fuzz.py` with the extension in ``folder``."""
    return run(str(Path(__file__).with_name("sanitized_fuzz.py")), "--inside", str(folder), str(first), str(count))


def build(folder: Path, sources: Path = builder.SOURCES) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", f"{' '.join(builder.compiler() or [])} {FLAGS}")
        patch.setattr(builder, "FLAGS", builder.FLAGS.replace("-O3", "-O1"))
        builder.build(folder, sources)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    build(folder)
    return folder


@needs_sanitizers
@pytest.mark.slow
def test_every_operator_is_clean(sanitized: Path) -> None:
    done = run("-c", PROGRAM, str(sanitized))
    assert done.returncode == 0, done.stderr[-6000:]
    assert declared() <= set(done.stdout.split())


def declared() -> set[str]:
    code = (builder.SOURCES / "operators.cpp").read_text(encoding="utf-8")
    return {line.split('"')[1] for line in code.splitlines() if "m.impl(" in line} - {"version"}


@needs_sanitizers
@pytest.mark.slow
def test_a_fuzz_of_every_operator_is_clean(sanitized: Path) -> None:
    """Any layout, size, thread count and bad tensor; many: `python -m tests.ops.common.sanitized_fuzz 0 10000`."""
    done = fuzzed(sanitized, 0, 600)
    assert done.returncode == 0, done.stderr[-6000:]
    names = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert declared() <= names
    assert {f"{name} refused" for name in declared()} <= names


@needs_sanitizers
@pytest.mark.slow
def test_a_fault_is_found(tmp_path: Path) -> None:
    """A write one number beyond the end is reported, as the tests above need."""
    (tmp_path / "fault.cpp").write_text("""
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
void beyond(const torch::stable::Tensor& x) { static_cast<float*>(x.data_ptr())[x.numel()] = 1; }
STABLE_TORCH_LIBRARY_FRAGMENT(faulty, m) { m.def("beyond(Tensor(a!) x) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(faulty, CPU, m) { m.impl("beyond", TORCH_BOX(&beyond)); }
""")
    build(tmp_path, tmp_path)
    program = (
        "import sys, torch; torch.ops.load_library(sys.argv[1] + '/_C.so'); torch.ops.faulty.beyond(torch.ones(16))"
    )
    done = run("-c", program, str(tmp_path))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
