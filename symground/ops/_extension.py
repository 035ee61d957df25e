"""The C++ extension (csrc/), where it has been built: loaded when symground.ops is imported, never compiled here.

``symground build`` builds it. Without it everything works and gives the same results, by the plain PyTorch of
`_cpu_tiles.py`; an extension that is there but cannot be used says why in a warning.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from symground.ops._build import CUDA_FILE, FILE, HERE, VERSION
from symground.ops._precision import accumulation_dtype


def load(path: Path, name: str = "symground_C") -> Any:
    """The operators ``torch.ops.<name>`` of the library at ``path``, or None."""
    if not path.exists():
        return None
    try:
        torch.ops.load_library(path)
        operators = getattr(torch.ops, name)
        found = operators.version()
        if found == VERSION:
            return operators
        cause = f"it is version {found} of the sources, the package wants {VERSION}"
    except (OSError, RuntimeError, AttributeError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
    warnings.warn(
        f"{path} is not used, plain PyTorch is (slower, same results): {cause}. To rebuild: symground build",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


#: None where the extension is not built. Read it when an op runs, not at import.
library: Any = load(HERE / FILE)
#: Not None where its part for GPUs is there too, which gives the operators of ``library`` their CUDA kernels.
cuda: Any = load(HERE / CUDA_FILE, "symground_CUDA") if library is not None and torch.version.cuda else None


def runs_on(device: torch.device) -> bool:
    """Whether the extension has operators for tensors on ``device``."""
    return library is not None and (device.type == "cpu" or (device.type == "cuda" and cuda is not None))


def forward(
    q: Tensor, k: Tensor, v: Tensor,
    gate: Tensor, causal: bool, scale: float, key_range: Tensor | None, window: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out, with the gate on it, and lse, of heads in float32 or float64."""
    out, lse = torch.zeros(q.shape, dtype=q.dtype), q.new_full(q.shape[:3], float("-inf"))
    form = (gate.contiguous(), causal, scale, _range(key_range, slice(None)), window)
    library.attention_forward(q, k, v, *form, out, lse)
    return out, lse


def saliency(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None,
) -> Tensor:  # fmt: skip
    """As `_cpu_tiles.saliency`."""
    exact = lse.to(accumulation_dtype(lse))
    total = exact.new_zeros(q.shape[0], q.shape[2], k.shape[2])
    for at in _pieces(q, exact):
        form = (*_piece(at, q, k, v, grad_out, exact, gate), causal, scale, _range(key_range, at), window)
        library.attention_saliency(*form, total[at])
    return total.to(lse.dtype)


def flow(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None,
    query_groups: Tensor, key_groups: Tensor, num_query_groups: int, num_key_groups: int, matrix: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `_cpu_tiles.flow`."""
    exact = lse.to(accumulation_dtype(lse))
    heads = exact.shape[:2]
    sums = exact.new_zeros(*heads, num_query_groups, num_key_groups)
    row_total, matrix_total = exact.new_zeros(*heads, num_query_groups), exact.new_zeros(heads)
    for at in _pieces(q, exact):
        form = (*_piece(at, q, k, v, grad_out, exact, gate), causal, scale, _range(key_range, at), window)
        groups = (_ids(query_groups, at), _ids(key_groups, at))
        library.attention_flow(*form, *groups, sums[at], row_total[at], matrix_total[at] if matrix else None)
    return sums.to(lse.dtype), row_total.to(lse.dtype), matrix_total.to(lse.dtype)


def backward(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None, saliency: bool,
    query_groups: Tensor | None, key_groups: Tensor | None, num_query_groups: int, num_key_groups: int,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """As `_cpu_tiles.backward`."""
    dq, dk, dv = grads = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v))
    total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2]) if saliency else None
    sums = None if query_groups is None else lse.new_zeros(*q.shape[:2], num_query_groups, num_key_groups)
    for at in _pieces(q, lse):
        form = (*_piece(at, q, k, v, grad_out, lse, gate), causal, scale, _range(key_range, at), window)
        precise = [x[at].to(lse.dtype) for x in grads]  # the same memory, but for half precision
        library.attention_backward(
            *form, *precise, None if total is None else total[at],
            _ids(query_groups, at), _ids(key_groups, at), None if sums is None else sums[at],
        )  # fmt: skip
        if q.dtype != lse.dtype:
            for x, exact in zip(grads, precise, strict=True):
                x[at] = exact
    return dq, dk, dv, total, sums


def _pieces(q: Tensor, lse: Tensor) -> list[slice]:
    """The whole batch; one example at a time where q, k, v must be converted, so that only one has a copy."""
    return [slice(None)] if q.dtype == lse.dtype else [slice(b, b + 1) for b in range(q.shape[0])]


def _piece(
    at: slice, q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, gate: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The tensors of these examples as the operators want them, in the dtype of lse."""
    converted = (x[at].to(lse.dtype) for x in (q, k, v, grad_out))
    return (*converted, lse[at].contiguous(), None if gate is None else gate[at].to(lse.dtype).contiguous())


def _range(key_range: Tensor | None, at: slice) -> Tensor | None:
    return None if key_range is None else key_range[at].long().contiguous()


def _ids(groups: Tensor | None, at: slice) -> Tensor | None:
    return None if groups is None else groups[at].to(torch.int32).contiguous()
