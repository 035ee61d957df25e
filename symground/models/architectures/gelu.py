"""GELU's tanh form as one operation. transformers writes it out in eight for GPT-2, GPT-J, Phi and others.

The eight operations save four tensors of a layer's widest part for the backward pass; the one operation saves one.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn.functional import gelu
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation

#: All are x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³))) (Hendrycks and Gimpel 2016, arXiv 1606.08415).
_WRITTEN_OUT = (AccurateGELUActivation, FastGELUActivation, NewGELUActivation)


def fuse_gelu(model: nn.Module) -> None:
    """Replace the written-out activations of ``model`` by one operation; outputs differ by rounding only."""
    for module in model.modules():
        if type(module) in _WRITTEN_OUT and "forward" not in vars(module):
            object.__setattr__(module, "forward", partial(gelu, approximate="tanh"))


def write_out_gelu(model: nn.Module) -> None:
    """Restore the activations of ``model`` that :func:`fuse_gelu` replaced."""
    for module in model.modules():
        if type(module) in _WRITTEN_OUT and getattr(vars(module).get("forward"), "func", None) is gelu:
            object.__delattr__(module, "forward")
