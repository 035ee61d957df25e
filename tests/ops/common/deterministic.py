"""What raises an error on a GPU under torch.use_deterministic_algorithms(True), found where no GPU is."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.common.kernels import below

#: What torch documents to raise → aten's operators.
REFUSED: dict[str, tuple[str, ...]] = {
    "torch.nn.AvgPool3d": ("avg_pool3d_backward",),
    "torch.nn.AdaptiveAvgPool2d": ("_adaptive_avg_pool2d_backward",),
    "torch.nn.AdaptiveAvgPool3d": ("_adaptive_avg_pool3d_backward",),
    "torch.nn.AdaptiveMaxPool2d": ("adaptive_max_pool2d_backward",),
    "torch.nn.FractionalMaxPool2d": ("fractional_max_pool2d_backward",),
    "torch.nn.FractionalMaxPool3d": ("fractional_max_pool3d_backward",),
    "torch.nn.MaxUnpool1d": ("max_unpool2d",),
    "torch.nn.MaxUnpool2d": ("max_unpool2d",),
    "torch.nn.MaxUnpool3d": ("max_unpool3d",),
    "torch.nn.functional.interpolate": (
        "upsample_linear1d_backward", "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward",
        "upsample_bicubic2d_backward", "_upsample_bicubic2d_aa_backward", "upsample_trilinear3d_backward",
    ),
    "torch.nn.ReflectionPad1d": ("reflection_pad1d_backward",),
    "torch.nn.ReflectionPad2d": ("reflection_pad2d_backward",),
    "torch.nn.ReflectionPad3d": ("reflection_pad3d_backward",),
    "torch.nn.NLLLoss": ("nll_loss2d_forward", "nll_loss2d_backward"),  # the loss of a vector of targets does not
    "torch.nn.CTCLoss": ("_ctc_loss_backward", "_cudnn_ctc_loss"),
    "torch.nn.EmbeddingBag": ("_embedding_bag_dense_backward", "_embedding_bag_backward"),
    "torch.Tensor.put_": ("put", "put_"),
    "torch.histc": ("histc",),
    "torch.bincount": ("bincount",),
    "torch.median": ("median", "nanmedian", "kthvalue"),
    "torch.nn.functional.grid_sample": ("grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    "torch.cumsum": ("cumsum", "cumsum_"),
    "torch.Tensor.scatter_reduce": ("scatter_reduce", "scatter_reduce_"),
    "torch.Tensor.resize_": (),  # of quantized tensors, of which there are none here
}  # fmt: skip
_OPERATORS = {name for names in REFUSED.values() for name in names}


def documented() -> set[str]:
    """The names of the second list in the documentation of torch.use_deterministic_algorithms."""
    text = torch.use_deterministic_algorithms.__doc__ or ""
    listed = text[text.index("operations will throw a") : text.index("fill uninitialized memory")]
    return set(re.findall(r"\* :(?:class|func):`([\w.]+)`", listed))


class Deterministic(TorchDispatchMode):
    """Refuses these operators on floats, also within the ops of symground, as if each tensor were on a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func.name().partition("::")
        if space == "aten" and name.partition(".")[0] in _OPERATORS and args[0].is_floating_point():
            raise AssertionError(f"{func} has no deterministic implementation on a GPU")
        if space == "symground":  # its kernel is Python, called with this mode on
            with self:
                return below(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
