"""Models whose linear layers are quantised, adapted or compiled: the numbers of the model as it is, or a named refusal.

The oracle is transformers' eager attention over the same layers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import symground as sg
from tests.models.attachment.builders import gpt2, ids, llama

TARGETS = torch.tensor([5, 7])


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """Weights of int8 in buffers, as bitsandbytes and GGUF layers hold them; there is no parameter ``weight``."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _rounded(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class Int8Weight(Tensor):
    """A weight of another class that holds int8, as torchao's: only a linear layer can read it."""

    @staticmethod
    def __new__(cls, numbers: Tensor, scale: Tensor) -> Int8Weight:
        found = Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)
        found.numbers, found.scale = numbers, scale
        return found

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scale"], None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            x, weight, *bias = args
            return nn.functional.linear(x, weight.numbers.to(x.dtype) * weight.scale, *bias, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].numbers, args[0].scale)
        raise NotImplementedError(f"{func} of an int8 weight")


def _replaced(model: nn.Module) -> None:
    for part in list(model.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Linear):
                setattr(part, name, Int8Linear(child))


def _of_another_class(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.weight = nn.Parameter(Int8Weight(*_rounded(part.weight.detach())), requires_grad=False)


def _half_of_it_compiled(model: nn.Module) -> None:
    for layer in model.layers:
        layer.mlp.compile(backend="aot_eager")


def _parametrized(model: nn.Module) -> None:
    for layer in model.layers:
        nn.utils.parametrizations.weight_norm(layer.self_attn.q_proj)


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "int8 in buffers": _replaced, "weights of another class": _of_another_class,
    "compiled parts": _half_of_it_compiled, "parametrized": _parametrized,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_numbers_are_those_of_the_changed_model(change: str) -> None:
    model = llama()
    CHANGES[change](model.model)
    eager = model if change == "compiled parts" else copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    out = eager(ids(), output_attentions=True)
    surprisal = -out.logits[:, -1].log_softmax(-1)[torch.arange(2), TARGETS]
    gradients = torch.autograd.grad(surprisal.sum(), out.attentions)
    signed = torch.stack([(a * g) for a, g in zip(out.attentions, gradients, strict=True)], 1).detach()
    ours = sg.attach(model)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids()).logits, out.logits, atol=1e-5, rtol=1e-4)
    traced = sg.trace(ours, ids(), TARGETS, rows=True)
    np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(traced.saliency, signed.sum(2).abs(), atol=1e-5, rtol=1e-3)
    np.testing.assert_allclose(traced.rows, signed[:, :, :, -1], atol=1e-5, rtol=1e-3)
    with sg.ablate(ours, [(1, 2)]), torch.no_grad():
        silenced = ours(ids()).logits

    def cut(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        x = args[0].clone()
        x[..., 2 * 8 : 3 * 8] = 0
        return (x,)

    sg.detach(ours)
    with torch.no_grad():
        ours.model.layers[1].self_attn.o_proj.register_forward_pre_hook(cut)
        torch.testing.assert_close(silenced, ours(ids()).logits, atol=1e-5, rtol=1e-4)


def test_layers_without_a_backward_pass_are_named_and_silence_all_the_same() -> None:
    model = llama()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.model = torch.ao.quantization.quantize_dynamic(model.model, {nn.Linear}, dtype=torch.qint8)
    ours = sg.attach(model)
    with torch.no_grad():
        before = ours(ids()).logits
        with sg.ablate(ours, [(0, 1)]):
            assert not torch.allclose(ours(ids()).logits, before, atol=1e-2)
    with pytest.raises(
        ValueError, match=r"does not reach every layer's attention: not that of layer 0 \(LlamaAttention\), layer 1"
    ):
        sg.trace(ours, ids(), TARGETS)


@pytest.mark.parametrize("build", [llama, gpt2], ids=["Llama", "GPT-2"])
def test_a_compiled_model_is_refused_and_says_what_to_compile(build: Callable[[], PreTrainedModel]) -> None:
    compiled: Any = torch.compile(build(), backend="aot_eager")
    for call in (
        lambda: sg.attach(compiled), lambda: sg.trace(compiled, ids(), TARGETS), lambda: sg.detach(compiled),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="torch.compile's wrapper holds one"):
            call()
    expected = sg.trace(sg.attach(build()), ids(), TARGETS)
    ours = sg.attach(build())
    ours.compile(backend="aot_eager")  # in place: the model is compiled when it is called
    found = sg.trace(ours, ids(), TARGETS)
    np.testing.assert_allclose(found.saliency, expected.saliency, atol=1e-6, rtol=1e-4)
