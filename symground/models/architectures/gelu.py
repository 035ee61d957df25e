"""GELU's tanh form, which transformers writes out for GPT-2, GPT-J, Phi and others, as the one operation it is.

Written out it is eight operations, and four tensors of a layer's widest part are kept for the way back; as one
operation it keeps one.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn.functional import gelu
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation

#: All are x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³))) (Hendrycks and Gimpel 2016, arXiv 1606.08415).
_WRITTEN_OUT = (AccurateGELUActivation, FastGELUActivation, NewGELUActivation)


def fuse_gelu(model: nn.Module) -> None:
    """Have the activations of ``model`` that are written out run as one operation; their numbers differ by rounding."""
    for module in model.modules():
        if type(module) in _WRITTEN_OUT and "forward" not in vars(module):
            object.__setattr__(module, "forward", partial(gelu, approximate="tanh"))


def write_out_gelu(model: nn.Module) -> None:
    """The activations of ``model`` as :func:`fuse_gelu` found them."""
    for module in model.modules():
        if type(module) in _WRITTEN_OUT and getattr(vars(module).get("forward"), "func", None) is gelu:
            object.__delattr__(module, "forward")
