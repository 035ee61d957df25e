"""One side of ``python -m benchmarks attnread``, in an environment of its own: attnread's or this project's.

    python -m benchmarks.peers.attnread WAY FOLDER      # FOLDER has model.pt; the answer goes to FOLDER/WAY.pt

It prints a line of JSON about the first run, whose memory is measured, and then the seconds of a run for each line that
it is given. Nothing of this project that attnread's environment may lack is imported on its side.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.memory import peak_of
from benchmarks.peers.trace import Model

Run = Callable[[], Any]
#: The layer and the head of one head.
HEAD = 7, 5
ONE, ALL = "attnread, one head", "attnread, all heads"
LAYER, MATRICES = "sg.attention, the heads of that layer", "sg.attention, all heads"
SUMS = "sg.attention, all heads, received and summary in place of the matrices"
WAYS = {"one": ONE, "all": ALL, "layer": LAYER, "matrices": MATRICES, "sums": SUMS}


def prepared(way: str, model: Any, ids: Tensor, head: tuple[int, int]) -> Run:
    """The run of a way, whose result `answer` reads."""
    if way in ("one", "all"):
        attnread = importlib.import_module("attnread")
        return lambda: attnread.extract_attention(model, {"input_ids": ids}, heads=[head] if way == "one" else None)
    import symground as sg

    sg.attach(model)
    if way == "layer":
        return lambda: sg.attention(model, ids, rows="all", layers=[head[0]])
    if way == "matrices":
        return lambda: sg.attention(model, ids, rows="all")
    return lambda: sg.attention(model, ids, rows=None, received=True, summary=True)


def answer(way: str, found: Any) -> Tensor:
    """A [1,1,T,T] of the head, [1,H,T,T] of its layer, or [L,H,T,T] of all; of sums what keys receive [L,H,1,T]."""
    if way == "one":
        return next(iter(found.values()))[None]
    if way == "all":
        layers = 1 + max(layer for _, layer, _ in found)
        return torch.cat(list(found.values())).unflatten(0, (layers, -1))
    return torch.from_numpy(found["received" if way == "sums" else "rows"].to_numpy()[0])


def main() -> None:
    way, folder = sys.argv[1], Path(sys.argv[2])
    given = torch.load(folder / "model.pt")
    prepared(way, Model(1, 16, 1, 2, 16, 101).build("sdpa"), given["ids"][:, :16] % 101, (0, 1))()  # imports, threads
    model = Model(**given["model"]).build("sdpa")
    model.load_state_dict(given["weights"])
    run = prepared(way, model.requires_grad_(False), given["ids"], HEAD)
    del given
    start = time.perf_counter()
    found, peak = peak_of(run)
    first = time.perf_counter() - start
    torch.save(answer(way, found).clone(), folder / f"{way}.pt")
    del found
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    if way in ("one", "all"):
        versions["attnread"] = importlib.metadata.version("attnread")
    print(json.dumps({"first_seconds": first, "peak_bytes": peak, "versions": versions}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
