"""mamba-ssm and causal-conv1d: symground with these packages and without them, and the code around them.

On a GPU the tests of the models run the packages themselves. Here stand-ins with the same functions take their place.
This tests layouts, padding, states and probes, but not the packages' kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, silu

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton is not installed: the probes' kernels")


from symground import ops
from symground.errors import import_error
from symground.ops.common import needs
from symground.ops.common.dispatch import choose
from symground.ops.mamba2 import causal_conv1d
from symground.ops.mamba2.api import IMPLEMENTATIONS as CONVOLUTIONS
from symground.ops.ssd import mamba_ssm
from symground.ops.ssd.api import IMPLEMENTATIONS as SCANS

F64 = torch.float64


def stand_in_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, *, initial_states: Tensor | None,
    return_final_states: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Like the package's: no padding, and B and C in the dtype of x."""
    assert (chunk_size, return_final_states) == (256, True)
    assert B.dtype == C.dtype == x.dtype
    assert dt.dtype == A.dtype == torch.float32
    return ops.ssd(x, dt, A, B, C, initial_state=initial_states, return_state=True, impl="reference")


def stand_in_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, initial_states: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:  # fmt: skip
    """Like the package's: [B,C,T], with the checks of its CUDA code."""
    taps = weight.shape[1]
    assert 2 <= taps <= 4
    assert x.stride(2) == 1 or x.stride(1) == 1
    channels_last = x.stride(1) == 1 and x.stride(2) > 1
    if channels_last:
        assert not any(n % 8 for n in (x.shape[1], x.stride(0), x.stride(2)))
    assert bias is None or bias.dtype == weight.dtype
    before = x.new_zeros(len(x), x.shape[1], taps - 1)
    if initial_states is not None:
        assert channels_last
        assert initial_states.dtype == x.dtype
        assert initial_states.stride(1) == 1
        before = initial_states
    y = conv1d(torch.cat([before, x], 2), weight[:, None], bias, groups=len(weight))
    return silu(y) if activation else y


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the stand-ins under the packages' names, with a dispatch that takes a CPU for a GPU."""
    names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.ops.triton.ssd_combined", "causal_conv1d")
    made = {name: ModuleType(name) for name in names}
    made["mamba_ssm.ops.triton.ssd_combined"].mamba_chunk_scan_combined = stand_in_scan  # type: ignore[attr-defined]
    made["causal_conv1d"].causal_conv1d_fn = stand_in_convolution  # type: ignore[attr-defined]
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    for package in (mamba_ssm, causal_conv1d):
        monkeypatch.setattr(package, "refuses", lambda like: None)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_the_scan_of_mamba_ssm_with_our_probes(padded: bool, with_state: bool) -> None:
    torch.manual_seed(0)
    length = 9
    x, dt = torch.randn(2, length, 4, 16), torch.rand(2, length, 4)
    B, C, A = torch.randn(2, length, 2, 16), torch.randn(2, length, 2, 16), -torch.rand(4)
    state = torch.randn(2, 4, 16, 16) if with_state else None
    inside = torch.tensor([[0, 7], [3, 9]]) if padded else None
    if padded:
        x[0, 7:], dt[1, :3], B[1, :3] = float("nan"), float("nan"), float("nan")
    groups = torch.randint(-1, 2, (2, length))
    results = []
    for impl, dtype in (("reference", F64), ("mamba_ssm", torch.float32)):
        leaves = [z.to(dtype).requires_grad_() for z in (x, dt, A, B, C)]
        saliency = torch.zeros(1, dtype=dtype).expand(2, length, length).requires_grad_()
        flow = torch.zeros(1, dtype=dtype).expand(2, 4, 2, 2).requires_grad_()
        y, last = ops.ssd(
            *leaves, inside, None if state is None else state.to(dtype), saliency, flow, groups, groups,
            return_state=True, impl=impl,
        )  # fmt: skip
        loss = y.square().sum() + last.sum()
        results.append((y, last, *torch.autograd.grad(loss, [*leaves, saliency, flow])))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), wanted, atol=2e-4, rtol=2e-4)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("channels", [16, 7])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("length", [1, 5])
def test_the_convolution_of_causal_conv1d(channels: int, with_state: bool, activation: str | None, length: int) -> None:
    torch.manual_seed(0)
    wide = torch.randn(2, length, channels + 8)
    weight, bias = torch.randn(channels, 4), torch.randn(channels)
    state = torch.randn(2, 3, channels) if with_state else None
    for x in (wide[..., 8:], wide[..., :channels].contiguous(), wide[..., 1 : channels + 1]):
        given = (x, weight, bias, state, activation)
        wanted = ops.causal_conv1d(*given, impl="reference")
        torch.testing.assert_close(ops.causal_conv1d(*given, impl="causal_conv1d"), wanted)
    with pytest.raises(ValueError, match="weight: impl 'causal_conv1d' expected K of 2 to 4 columns, got 5"):
        ops.causal_conv1d(wide[..., :channels], torch.randn(channels, 5), impl="causal_conv1d")


def on_a_gpu(dtype: torch.dtype) -> Any:
    return SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)


def test_where_a_package_imports_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    present: set[str] = set()
    monkeypatch.setattr(needs, "imports", lambda module: module.partition(".")[0] in present)
    monkeypatch.setattr(needs, "capability", lambda index: (9, 0))

    def taken(op: str, table: Any, dtype: torch.dtype, *others: torch.Tensor) -> str:
        run = choose(op, table, None, on_a_gpu(dtype), *others)
        return next(name for name, module in table.items() if getattr(module, op, None) is run)

    def scan(dtype: torch.dtype) -> str:
        return taken("ssd", SCANS, dtype)

    def convolution(dtype: torch.dtype) -> str:
        return taken("causal_conv1d", CONVOLUTIONS, dtype, torch.ones(3, 4))

    assert (scan(torch.bfloat16), convolution(torch.bfloat16)) == ("torch", "reference")
    present.add("triton")
    assert scan(torch.bfloat16) == "triton"
    present.update({"mamba_ssm", "causal_conv1d"})
    assert scan(torch.bfloat16) == "mamba_ssm"
    with monkeypatch.context() as unasked:
        unasked.setattr(mamba_ssm, "declines", lambda like: "not today")
        assert scan(torch.bfloat16) == "triton"
    assert scan(F64) == "torch"
    assert convolution(torch.float32) == "causal_conv1d"


def test_mamba_ssm_is_left_where_its_numbers_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mamba_ssm.declines(torch.zeros(1, dtype=torch.bfloat16)) is None
    assert "TF32" in str(mamba_ssm.declines(torch.zeros(1)))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "deterministic" in str(mamba_ssm.declines(torch.zeros(1, dtype=torch.bfloat16)))


@pytest.mark.parametrize(
    ("impl", "call"),
    [
        ("mamba_ssm", lambda: ops.ssd(*SMALL, impl="mamba_ssm")),
        ("causal_conv1d", lambda: ops.causal_conv1d(torch.ones(1, 2, 3), torch.ones(3, 4), impl="causal_conv1d")),
    ],
)
def test_named_they_are_refused_on_a_cpu(impl: str, call: Any) -> None:
    with pytest.raises(ValueError, match=f"impl: '{impl}' expected tensors on a GPU, got cpu"):
        call()


SMALL = (torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1), -torch.ones(1), torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1, 1))


def forget() -> None:
    """What was asked of packages."""
    needs._imports.cache_clear()
    import_error.cache_clear()


def test_one_that_is_installed_and_does_not_import_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "causal_conv1d").mkdir()
    (tmp_path / "causal_conv1d" / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    try:
        with pytest.warns(RuntimeWarning, match=r"installed but does not import here \(OSError: libcudart"):
            refused = causal_conv1d.refuses(on_a_gpu(torch.float32))
        assert "installed but does not import here: OSError: libcudart.so.12: cannot open" in str(refused)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert isinstance(causal_conv1d.refuses(on_a_gpu(torch.float32)), RuntimeError)
            # A package that is not installed is not reported.
            assert isinstance(mamba_ssm.refuses(on_a_gpu(torch.float32)), RuntimeError)
    finally:
        forget()


#: GPU packages on a CPU: one imports but cannot run, the others do not import.
BROKEN = {
    "mamba_ssm": """
def run(*args, **kwargs):
    raise RuntimeError("a GPU's kernel was called")
selective_state_update = mamba_chunk_scan_combined = mamba_split_conv1d_scan_combined = run
""",
    "causal_conv1d": "raise ImportError('undefined symbol')",
    "flash_attn": "raise ImportError('undefined symbol')",
}
PROGRAM = """
import warnings
warnings.simplefilter("error", RuntimeWarning)
import torch, symground as sg
from symground.models.loading.presets import create
model = create("mamba2-4l", 40)
ids = torch.randint(4, 40, (2, 12))
model(ids, labels=ids).loss.backward()
mask = torch.ones_like(ids)
mask[0, :3] = 0
sg.trace(model.eval(), ids, ids[:, -1], mask)
assert model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (2, 15)
try:  # the stand-in does to transformers' own what the package would
    from transformers import Mamba2ForCausalLM
    Mamba2ForCausalLM(model.config)(ids)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_model_on_a_cpu_does_not_touch_them(tmp_path: Path) -> None:
    for name, code in BROKEN.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
        about = tmp_path / f"{name}-2.9.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.9\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "a GPU's kernel was called" in done.stdout  # by transformers' own Mamba-2, the reason for this test
