"""What ``impl=None`` picks and why, on GPUs that are not here: fake tensors on a machine that is said to have them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from symground import ops
from symground.errors import SWITCHES, switched_off
from symground.ops.common import checks, disabled, dispatch, needs
from tests.ops.common.drawn import OPS, call, draw, implementations

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A GPU of compute capability 9.0 with Triton and with PyTorch's flash attention; a test may change what it has."""
    has: dict[str, Any] = {"packages": {"triton"}, "capability": (9, 0), "torch's flash": True, "flash-attn": (2, 8)}
    monkeypatch.setattr(needs, "imports", lambda module: module.partition(".")[0] in has["packages"])
    monkeypatch.setattr(needs, "capability", lambda index: has["capability"])
    monkeypatch.setattr(needs, "flash_in_torch", lambda: has["torch's flash"])
    monkeypatch.setattr(needs, "version", lambda package: has[package])
    # Indexing needs a torch for CUDA, even of a tensor that holds nothing.
    monkeypatch.setattr(checks, "key_range", lambda value, *rest: value)
    monkeypatch.setattr(checks, "gate", lambda value, *rest: None)
    with FakeTensorMode():
        yield has


def explained(dtype: torch.dtype = BF16, device: str = "cuda", keys: int = 8, size: int = 16, **kw: Any) -> Any:
    """Of attention; a keyword that is a tuple is the shape of a tensor."""
    q = torch.empty(2, 2, 8, size, dtype=dtype, device=device)
    k = torch.empty(2, 2, keys, size, dtype=dtype, device=device)
    kw = {n: torch.empty(x, dtype=torch.int64 if n == "key_range" else dtype, device=device) if isinstance(x, tuple)
          else x for n, x in kw.items()}  # fmt: skip
    return ops.explain(q, k, k, **kw)


@pytest.mark.parametrize(
    ("given", "impl", "because"),
    [
        ({}, "flash", ""),
        ({"dtype": F32}, "triton", "expected float16 or bfloat16, got torch.float32"),
        ({"dtype": F64}, "torch", "got torch.float64"),
        ({"window": 3}, "triton", "window: impl 'flash' without the flash-attn package expected None"),
        ({"key_range": (2, 2)}, "triton", "PyTorch's kernel takes no padding"),
        ({"gate": (2,)}, "triton", "gate: "),
        ({"keys": 9}, "triton", "expected S = T = 8 where causal, got S = 9"),
        ({"keys": 9, "causal": False}, "flash", ""),
        ({"size": 20}, "triton", "a multiple of 8, up to 256 here, got 20"),
        ({"size": 256}, "flash", ""),
        ({"device": "xpu"}, "torch", "expected tensors on a GPU, got xpu:0"),
        ({"device": "cpu"}, "cpu", "expected tensors on a GPU, got cpu"),
    ],
)
def test_attention_by_what_is_asked(machine: dict[str, Any], given: dict[str, Any], impl: str, because: str) -> None:
    found = explained(**given)
    assert found.impl == impl
    assert because in found.reasons["flash"]
    assert list(found.reasons) == ["cpu", "flash", "triton", "torch", "reference"]
    assert f"attention: {impl} runs" in str(found)


@pytest.mark.parametrize(
    ("has", "impl"),
    [
        ({"packages": set()}, "flash"),
        ({"packages": set(), "torch's flash": False}, "torch"),
        ({"torch's flash": False}, "triton"),
        ({"capability": (7, 5)}, "torch"),
        ({"capability": (8, 6)}, "flash"),
    ],
)
def test_attention_by_the_machine(machine: dict[str, Any], has: dict[str, Any], impl: str) -> None:
    machine.update(has)
    assert explained().impl == impl


def test_a_wide_head_has_no_flash_on_a_small_gpu(machine: dict[str, Any]) -> None:
    machine["capability"] = (8, 6)
    assert explained(size=256).impl == "triton"
    assert "up to 192 here, got 256" in explained(size=256).reasons["flash"]


def test_flash_attn_takes_padding_windows_and_other_lengths(machine: dict[str, Any]) -> None:
    machine["packages"].add("flash_attn")
    assert explained(key_range=(2, 2)).impl == explained(window=3).impl == explained(keys=9).impl == "flash"
    assert explained(key_range=(2, 2), window=3).impl == "triton"
    machine["flash-attn"] = (2, 6)  # whose functions have other arguments
    assert explained(window=3).impl == "triton"


def test_what_the_user_requires_of_torch_is_kept(machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as required:
        required.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert explained().impl == "triton"
        assert "deterministic" in explained().reasons["flash"]
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: False)
    assert explained().impl == "triton"


def test_a_named_one_is_asked_what_it_lacks(machine: dict[str, Any]) -> None:
    assert explained(gate=(2,)).impl == "triton"
    assert explained(gate=(2,), impl="flash").impl == "flash"
    named = explained(window=3, impl="flash")
    assert named.impl is None
    assert "window: impl 'flash' without the flash-attn package expected None" in named.reasons["flash"]
    machine["packages"].add("causal_conv1d")
    x, few, many = (torch.empty(*shape, device="cuda") for shape in ((1, 8, 8), (8, 4), (8, 5)))
    assert ops.explain("causal_conv1d", x, few, impl="causal_conv1d").impl == "causal_conv1d"
    assert ops.explain("causal_conv1d", x, many, impl="causal_conv1d").impl is None


def switch_off(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for module in (disabled, dispatch):
        monkeypatch.setattr(module, "DISABLED", frozenset(names))


def test_what_is_switched_off_is_not_picked_and_refused_by_name(
    machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    switch_off(monkeypatch, "flash")
    assert explained().impl == "triton"
    switch_off(monkeypatch, "flash", "triton")
    assert explained().impl == "torch"
    named = explained(impl="triton")
    assert named.impl is None
    assert named.reasons == {"triton": "impl: 'triton' is switched off by SYMGROUND_DISABLE"}
    assert "attention: nothing runs, the op refuses" in str(named)
    machine["packages"].add("flash_attn")
    switch_off(monkeypatch, "flash_attn")
    assert explained(window=3).impl == "triton"


def test_the_names_that_can_be_switched_off_are_those_of_the_implementations() -> None:
    """But for `reference` and `parts`, which are what is left."""
    known = {name for op in OPS for name in implementations(op)} - {"reference", "parts"}
    assert set(SWITCHES) == known | {"extension", "flash_attn"}


def test_the_variable_is_read_and_its_mistakes_are_named() -> None:
    assert switched_off("triton, flash,") == ["triton", "flash"]
    with pytest.raises(ValueError, match=r"SYMGROUND_DISABLE: expected names among cpu, .*; got 'Triton'"):
        switched_off("Triton")
    code = """
import torch
from symground import ops
from symground.ops.common import extension
print(extension.library is None, ops.explain(*[torch.ones(1, 1, 2, 4)] * 3).impl)
"""
    environment = {**os.environ, "SYMGROUND_DISABLE": "extension,cpu,triton"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "torch"]


@pytest.mark.parametrize(
    "fault",
    [
        "raise RuntimeError('LLVM broke\\nsecond line')",
        "raise OSError('libtriton.so: cannot open shared object file')",
        "raise AttributeError('of another version')",
        "raise ImportError('no libtriton')",
        "1 / 0",
        "",  # there, and empty
    ],
)
def test_a_triton_that_does_not_import_leaves_every_op_its_other_implementations(fault: str, tmp_path: Path) -> None:
    """torch imports Triton with its compiler, of which the ops ask a mark."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(fault)
    code = """
import torch
from symground import ops
from symground.ops.common import needs
from symground.ops.attention.api import IMPLEMENTATIONS
q = torch.randn(1, 1, 5, 4, requires_grad=True)
for impl in ("cpu", "torch", "reference"):
    probe = torch.zeros(1, 5, 5, requires_grad=True)
    ops.attention(q, q, q, saliency_probe=probe, impl=impl)[0].sum().backward()
    assert bool(probe.grad.any())
with torch.autocast("cpu"):
    ops.attention(q, q, q)
print(needs._lacking("triton", "Triton", "triton", "pip install triton"))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if fault:
        assert "needs Triton, which is installed but does not import here" in done.stdout
        assert "pip install" not in done.stdout


@pytest.mark.parametrize("op", OPS)
def test_every_op_is_explained_and_nothing_is_computed(op: str) -> None:
    case = draw(op, 3, layouts=False)
    with pytest.raises(dispatch.Answer) as answer:
        call(case, dispatch.Question(None))  # type: ignore[arg-type]
    assert (answer.value.op, answer.value.impl) == (op, "cpu")
    assert list(answer.value.reasons) == implementations(op)


def test_a_wrong_argument_is_named() -> None:
    q = torch.ones(1, 1, 2, 4)
    with pytest.raises(ValueError, match=r"op: expected one of 'attention', .*; got 'attend'"):
        ops.explain("attend", q)
    with pytest.raises(ValueError, match="window: needs causal=True"):
        ops.explain(q, q, q, causal=False, window=2)
    assert ops.explain("gate_heads", q, torch.ones(2)).impl == "cpu"
