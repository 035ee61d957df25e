"""Reading every layer's attention of a whole model, and its peers: a GPT-2 with random weights, forward only.

Each gives mass and received of three groups and the prediction, and entropy, largest weight, its key and mean distance
of every row. Ours gives the largest score too, which a matrix of weights does not have. None computes logits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.trace import Model
from benchmarks.peers.weights import sums_of

Run = Callable[[], tuple[Tensor, ...]]
STAGE = "reading"
EAGER, HOOKED = "Hugging Face eager, output_attentions and sums", "Hugging Face eager, sums in a hook of each layer"
FORWARD, READ = "SDPA pass, nothing read", "sg.attention"
GROUPS = 3
#: What each peer but FORWARD returns, in this order.
RESULTS = ("mass", "received", "entropy", "weight", "weight_key", "distance")


def groups_of(m: Model) -> dict[str, Tensor]:
    """Names → masks [B,T] of three stretches of the text."""
    at = torch.arange(m.T, device=m.device) * GROUPS // m.T
    return {f"third {g + 1}": (at == g).expand(m.B, -1) for g in range(GROUPS)}


def one_hot(m: Model) -> tuple[Tensor, Tensor]:
    """Queries [B,1,1 + groups,T], of which the first group is the last position, and keys [B,1,groups,T]."""
    keys = torch.stack(list(groups_of(m).values()), 1)[:, None]
    last = torch.arange(m.T, device=m.device) == m.T - 1
    queries = torch.cat([last.expand_as(keys[:, :, :1]), keys & ~last], 2)
    return queries.to(m.element), keys.to(m.element)


def _joined(layers: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Of each result, all layers [B,L,H,…]."""
    return tuple(torch.stack(of, 1) for of in zip(*layers, strict=True))


def _eager(m: Model) -> Run:
    model, (ids, _), (queries, keys) = m.build("eager"), m.batch(), one_hot(m)

    @torch.inference_mode()
    def run() -> tuple[Tensor, ...]:
        found = model.transformer(ids, output_attentions=True).attentions
        return _joined([sums_of(a, queries, keys) for a in found])

    return run


def _hooked(m: Model) -> Run:
    """What a user writes whose matrices do not fit: each is summed where it arises, and dropped."""
    model, (ids, _), (queries, keys) = m.build("eager"), m.batch(), one_hot(m)

    @torch.inference_mode()
    def run() -> tuple[Tensor, ...]:
        found: list[tuple[Tensor, ...]] = []

        def read(module: Any, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
            found.append(sums_of(output[1], queries, keys))
            return output[0], None

        with ExitStack() as stack:
            for block in model.transformer.h:
                stack.callback(block.attn.register_forward_hook(read).remove)
            model.transformer(ids)
        return _joined(found)

    return run


def _forward(m: Model) -> Run:
    model, (ids, _) = m.build("sdpa"), m.batch()

    @torch.inference_mode()
    def run() -> tuple[Tensor, ...]:
        return (model.transformer(ids).last_hidden_state,)

    return run


def _read(m: Model) -> Run:
    import symground as sg

    model, (ids, _), groups = sg.attach(m.build("eager")), m.batch(), groups_of(m)

    def run() -> tuple[Tensor, ...]:
        found = sg.attention(model, ids, rows=None, groups=groups, received=True, summary=True)
        return tuple(torch.from_numpy(found[name].to_numpy()) for name in RESULTS)

    return run


PEERS: dict[str, Callable[[Model], Run]] = {EAGER: _eager, HOOKED: _hooked, FORWARD: _forward, READ: _read}


def check_same(runs: dict[str, Run], tolerance: float = 1e-5) -> dict[str, dict[str, float]]:
    """Peer → result → its largest difference from ours, absolute or relative, whichever is smaller.

    Raises:
        AssertionError: one is above ``tolerance``, or more than one in a hundred keys differs, which only rows may do
            whose two largest weights are as good as equal.
    """
    ours, found = runs[READ](), {}
    for peer in (EAGER, HOOKED):
        differs = {}
        for name, x, y in zip(RESULTS, ours, runs[peer](), strict=True):
            y = y.cpu()
            apart = (x != y) if name == "weight_key" else (x - y).abs() / y.abs().clamp(min=1)
            differs[name] = float(apart.float().mean() if name == "weight_key" else apart.max())
        assert all(d <= (0.01 if n == "weight_key" else tolerance) for n, d in differs.items()), (peer, differs)
        found[peer] = differs
    return found


def available() -> tuple[list[str], dict[str, str]]:
    """The peers that can run on this machine, and the others → the reason."""
    import importlib

    try:
        importlib.import_module("symground.analysis")
    except ImportError as error:
        return [name for name in PEERS if name != READ], {f"{STAGE}: {READ}": f"{error}"}
    return list(PEERS), {}


def in_memory(name: str, model: dict[str, Any]) -> tuple[Run, Run]:
    """For `common/memory.py`: (one layer and few tokens to run first, in another model; the measured run)."""
    m = Model(**model)
    small = Model(m.B, 16, 1, 2, 16, 101, m.dtype, m.device)
    return PEERS[name](small), PEERS[name](m)
