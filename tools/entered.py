"""The files of the package that a run of ``sg.trace`` enters, in order, and how often control passes between them.

    python tools/entered.py                             # of this checkout
    PYTHONPATH=PATH python tools/entered.py             # of another, such as the one before a change

The model is a GPT-2 of two layers with random weights, already attached and traced once.
"""

from __future__ import annotations

import sys
import threading
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # behind PYTHONPATH

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import symground as sg

PACKAGE = Path(sg.__file__).resolve().parent


def entered(run: Any) -> list[str]:
    """The file of every call of a function of the package, in order; autograd's threads count too."""
    calls: list[str] = []

    def record(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename).resolve()
        if event == "call" and path.is_relative_to(PACKAGE):
            calls.append(str(path.relative_to(PACKAGE)))

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


def main() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=32, bos_token_id=0, eos_token_id=0)
    model = sg.attach(GPT2LMHeadModel(config).eval())
    ids, targets = torch.randint(0, 64, (2, 8)), torch.tensor([1, 2])
    sg.trace(model, ids, targets)
    calls = entered(lambda: sg.trace(model, ids, targets))
    above = [path for path in calls if not path.startswith("ops/")]
    for name, paths in (("all", calls), ("above ops", above)):
        passes = sum(a != b for a, b in pairwise(paths))
        print(f"{name}: {len(dict.fromkeys(paths))} files, control passes between files {passes} times")
    print(*(f"  {path}" for path in dict.fromkeys(calls)), sep="\n")


if __name__ == "__main__":
    main()
