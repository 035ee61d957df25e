"""SSD in chunks, in plain PyTorch: forward and backward in time linear in T.

Source: Dao and Gu 2024 ("Transformers are SSMs"), section 6: the quadratic form within a chunk, the state between
chunks. The exponents are sums within one chunk, never differences of sums from the start, so they keep their precision
over any length. A decay that underflows is 0, as it should be.

Shapes: E examples, c chunks of Q positions, H heads of size P in G groups of R = H / G, state N. "By head" tensors are
[E,c,H,Q,·]; "side by side" tensors are [E,c,G,Q,R·P], so that one product sums over the heads of a group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from symground.ops.common.tensors import finest, padding, running_sum
from symground.ops.ssd.autograd import Gradients
from symground.ops.ssd.scan import Scan

CHUNK = 64


class _Chunks(NamedTuple):
    """What the forward and the backward pass both compute from the inputs."""

    x: Tensor  # by head [E,c,H,Q,P], times dt
    side: Tensor  # x side by side [E,c,G,Q,R·P], times dt and the decay to the chunk's end
    b: Tensor  # [E,c,G,Q,N]
    c: Tensor
    decay: Tensor  # [E,c,H,Q], Σ dt·A from the chunk's start
    mixing: Tensor  # [E,c,H,Q,Q] M without dt, of each chunk's own positions
    within: Tensor  # [E,c,H,Q,Q] the decay within M
    upto: Tensor  # [E,c,Q,H,1] exp of the decay from the chunk's start
    after: Tensor  # [E,c,Q,H,1] exp of the decay to the chunk's end
    whole: Tensor  # [E,c,H,1,1] exp of the decay over the chunk


def _chunks(scan: Scan) -> _Chunks:
    """From inputs without padding, whose length is a multiple of the chunk's."""
    x, dt, A, B, C, _ = scan
    batch, length, heads, size = x.shape
    groups, count = B.shape[2], length // min(CHUNK, length)
    split = (batch, count, length // count)
    x, dt = x.reshape(*split, heads, size), dt.reshape(*split, heads)
    b, c = (z.reshape(*split, groups, -1).transpose(2, 3) for z in (B, C))
    # Not in float32: after a very strong decay, the difference of two of its sums would have a large error.
    decay = running_sum(finest(dt) * finest(A), 2)  # [E,c,Q,H]
    upto, after, whole = (z.to(x.dtype).exp() for z in (decay, decay[:, :, -1:] - decay, decay[:, :, -1]))
    timed = x * dt[..., None]
    decay = decay.transpose(2, 3).contiguous()
    within = (decay[..., :, None] - decay[..., None, :]).to(x.dtype).exp_()
    # tril after exp: exp of the positive exponents above the diagonal may be inf, and a mask would multiply it to NaN.
    within = within.tril_()
    mixing = (within.unflatten(2, (groups, -1)) * (c @ b.mT)[:, :, :, None]).flatten(2, 3)
    side = _side_by_side(timed * after[..., None], groups)
    by_head = timed.transpose(2, 3).contiguous()
    return _Chunks(
        by_head, side, b, c, decay, mixing, within, upto[..., None], after[..., None], whole[..., None, None]
    )


def _side_by_side(x: Tensor, groups: int) -> Tensor:
    """[E,c,Q,H,·] → [E,c,G,Q,R·P]"""
    beside: Tensor = x.flatten(3).unflatten(3, (groups, -1))
    return beside.transpose(2, 3)


def _by_position(x: Tensor, heads: int) -> Tensor:
    """[E,c,G,Q,R·P] → [E,c,Q,H,P]"""
    of_heads: Tensor = x.transpose(2, 3).flatten(3).unflatten(3, (heads, -1))
    return of_heads


def _states(of_chunk: Tensor, whole: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states before each chunk [E,c,H,P,N], and the state after the last, from what each chunk adds."""
    state = torch.zeros_like(of_chunk[:, 0]) if initial is None else initial.to(of_chunk.dtype)
    before = torch.empty_like(of_chunk)
    for i in range(of_chunk.shape[1]):
        before[:, i] = state
        state = torch.addcmul(of_chunk[:, i], whole[:, i], state)
    return before, state


def _padded(*tensors: Tensor) -> list[Tensor]:
    """Padded with zeros at the end to a multiple of the chunk's length."""
    length = tensors[0].shape[1]
    short = -length % CHUNK if length > CHUNK else 0
    return [pad(z, (0,) * (2 * z.ndim - 3) + (short,)) if short else z for z in tensors]


def _in_chunks(scan: Scan) -> tuple[Scan, _Chunks]:
    """The inputs, with padding set to 0 and the length padded, and their chunks."""
    x, dt, A, B, C, _ = scan.without_padding()
    x, dt, B, C = _padded(x, dt, B, C)
    padded = Scan(x, dt, A, B, C, None)
    return padded, _chunks(padded)


def forward(scan: Scan, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """y [B,T,H,P] and the state after the last position; see `Backend.forward`."""
    (_, length, heads, size), dtype = scan.x.shape, scan.x.dtype
    _, z = _in_chunks(scan)
    before, last = _states((z.side.mT @ z.b).flatten(2, 3).unflatten(2, (heads, size)), z.whole, initial_state)
    y = _by_position(z.c @ _stacked(before, z).mT, heads).mul_(z.upto)  # from the states
    y += (z.mixing @ z.x).transpose(2, 3)
    return y.flatten(1, 2)[:, :length].to(dtype), last


def _stacked(states: Tensor, z: _Chunks) -> Tensor:
    """States [E,c,H,P,N] with the heads of a group stacked, [E,c,G,R·P,N]."""
    stacked: Tensor = states.unflatten(2, (z.b.shape[2], -1)).flatten(3, 4)
    return stacked


def backward(grad_y: Tensor, grad_state: Tensor | None, scan: Scan, initial_state: Tensor | None) -> Gradients:
    """The gradients of x, dt, A, B, C and initial_state."""
    dtypes, (_, length, heads, size), key_range = [z.dtype for z in scan[:5]], scan.x.shape, scan.key_range
    (x, dt, A, B, _, _), z = _in_chunks(scan)
    (grad_y,) = _padded(grad_y.to(x.dtype))
    groups = B.shape[2]
    before, _ = _states((z.side.mT @ z.b).flatten(2, 3).unflatten(2, (heads, size)), z.whole, initial_state)
    grad_y = grad_y.reshape(*z.upto.shape[:4], size)  # [E,c,Q,H,P]
    faded = _side_by_side(grad_y * z.upto, groups)
    by_head = grad_y.transpose(2, 3).contiguous()
    # Gradients of the states, computed from the last chunk to the first.
    of_state = (faded.mT @ z.c).flatten(2, 3).unflatten(2, (heads, size))  # what each chunk adds
    flipped, first = _states(of_state.flip(1), z.whole.flip(1), grad_state)
    after = flipped.flip(1)  # of the state after each chunk
    above, below = _stacked(before, z), _stacked(after, z)
    # S_h of each chunk: what each pair of positions contributes to L. Before the decay, it is the gradient of C Bᵀ.
    of_mixing = by_head @ z.x.mT
    pairs = of_mixing * z.mixing
    of_scores = of_mixing.mul_(z.within).unflatten(2, (groups, -1)).sum(3)
    of_c = of_scores @ z.b + faded @ above
    of_b = of_scores.mT @ z.c + z.side @ below
    from_after = _by_position(z.b @ below.mT, heads) * z.after  # [E,c,Q,H,P]
    of_timed = (z.mixing.mT @ by_head).transpose(2, 3) + from_after
    # Gradients of the exponents, in forms that add the terms across a position and never subtract large sums.
    timed = x.reshape(of_timed.shape) * dt.reshape(*of_timed.shape[:4], 1)
    read = (_by_position(z.c @ above.mT, heads) * z.upto * grad_y).sum(-1)  # [E,c,Q,H]
    before_it = torch.ones_like(pairs[0, 0, 0]).triu(1)  # [Q,Q], key j before position t
    own = (pairs @ before_it).tril_().sum(-2).transpose(2, 3)  # queries at or after a position, keys before it
    written = (from_after * timed).sum(-1)
    written = running_sum(pad(written[:, :, :-1], (0, 0, 1, 0)), 2)
    of_decay = own + running_sum(read.flip(2), 2).flip(2) + written
    of_decay = of_decay + ((after * before).sum((-1, -2)) * z.whole[..., 0, 0])[:, :, None]
    of_decay = of_decay.flatten(1, 2)[:, :length]
    of_timed = of_timed.flatten(1, 2)[:, :length]
    x, dt = x[:, :length], dt[:, :length]
    of_dt = (of_timed * x).sum(-1) + of_decay * A
    of_b, of_c = (g.transpose(2, 3).flatten(1, 2)[:, :length] for g in (of_b, of_c))
    if key_range is not None:
        of_timed, of_dt, of_b = _inside(key_range, of_timed, of_dt, of_b)
    found = (of_timed * dt[..., None], of_dt, (of_decay * dt).sum((0, 1)), of_b, of_c)
    dx, ddt, dA, dB, dC = (g.to(dtype).contiguous() for g, dtype in zip(found, dtypes, strict=True))
    return Gradients(dx, ddt, dA, dB, dC, None if initial_state is None else first.to(initial_state.dtype))


def _inside(key_range: Tensor, *grads: Tensor) -> list[Tensor]:
    """[B,T,…] gradients with 0 outside the valid positions, where the inputs are not read."""
    outside = padding(key_range, grads[0].shape[1])
    return [g.masked_fill(outside.view(*outside.shape, *(1,) * (g.ndim - 2)), 0) for g in grads]
