"""The ``triton`` implementation: kernels for what is summed up, plain PyTorch for whole rows and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.attention.mixing import Mixing
from symground.ops.attention.triton import call_of, lacks
from symground.ops.attention.weights.autograd import Backend, register
from symground.ops.attention.weights.record import Asked, Read
from symground.ops.attention.weights.tiles import backend
from symground.ops.common import needs

#: The largest weights of a row, and the gradients: their tiles read no value.
_plain = backend(reads=False)


def _read(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, asked: Asked) -> Read:
    from symground.kernels.attention.weights import attention_pooled, attention_weights

    exact, found = lse.float(), Read()
    with torch.cuda.device_of(q):
        call = call_of(q, k, k, mixing)  # no values are read
        if asked.grouped or asked.summary:
            count = asked.num_query if asked.grouped else 0
            received, of_rows = attention_weights(call, exact, asked.query, count, asked.summary)
            if asked.key is not None:
                of_keys = received.flatten(1, 2) @ asked.in_key(received)[:, 0].mT
                found = found._replace(mass=of_keys.view(*received.shape[:3], asked.num_key))
            if asked.received:
                found = found._replace(received=received)
            if asked.summary:
                found = Read(*found[:3], *of_rows)
        if asked.block:
            found = found._replace(pooled=attention_pooled(call, exact, asked.block, asked.largest))
    return found.to(lse.dtype)


ops = register("triton", Backend(_read, _plain.backward, _plain.topk), needs.triton, lacks=lacks)
