"""The ``cpu`` implementation: the C++ extension if it is built, else tiles that follow the values of key ranges."""

from __future__ import annotations

from torch import Tensor

from symground.ops.attention.mixing import Mixing
from symground.ops.attention.weights import cpu_extension, tiles
from symground.ops.attention.weights.autograd import Backend, register
from symground.ops.attention.weights.record import Asked, Read, Upstream
from symground.ops.attention.weights.rows import Gradients
from symground.ops.common import extension, needs

_plain = tiles.backend(reads=True)


def _read(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, asked: Asked) -> Read:
    return (cpu_extension.read if extension.is_built() else _plain.read)(q, k, lse, mixing, asked)


def _backward(
    q: Tensor, k: Tensor, lse: Tensor, upstream: Upstream, mixing: Mixing, asked: Asked, of_sink: bool, of_slopes: bool
) -> Gradients:
    run = cpu_extension.backward if extension.is_built() else _plain.backward
    return run(q, k, lse, upstream, mixing, asked, of_sink, of_slopes)


ops = register("cpu", Backend(_read, _backward, _plain.topk), needs.cpu, cpu_only=True)
