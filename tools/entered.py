"""The files of the package that a call enters, in order, and how often the next call is in another file.

    python tools/entered.py trace                       # sg.trace of a GPT-2 of two layers with random weights
    python tools/entered.py attention triton            # ops.attention by an implementation, here in the interpreter
    PYTHONPATH=PATH python tools/entered.py trace       # of another checkout, such as the one before a change

What a first call sets up does not count: the call is made once before.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

if "PYTHONPATH" not in os.environ:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if "triton" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import symground as sg

PACKAGE = Path(sg.__file__).resolve().parent


def entered(run: Callable[[], Any]) -> list[tuple[str, str]]:
    """The file and the function of every call within the package, in order; autograd's threads count too."""
    calls: list[tuple[str, str]] = []

    def record(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename).resolve()
        place = PACKAGE if path.is_relative_to(PACKAGE) else PACKAGE.parent
        if event == "call" and (place == PACKAGE or path.is_relative_to(place / "kernels")):
            calls.append((str(path.relative_to(place)), frame.f_code.co_name))

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


def trace() -> Callable[[], Any]:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=32, bos_token_id=0, eos_token_id=0)
    model = sg.attach(GPT2LMHeadModel(config).eval())
    ids, targets = torch.randint(0, 64, (2, 8)), torch.tensor([1, 2])
    return lambda: sg.trace(model, ids, targets)


def attention(impl: str | None = None) -> Callable[[], Any]:
    q, k, v = (torch.randn(1, 2, 8, 16) for _ in range(3))
    return lambda: sg.ops.attention(q, k, v, impl=impl)


def main() -> None:
    name, *arguments = sys.argv[1:] or ["trace"]
    torch.manual_seed(0)
    run = {"trace": trace, "attention": attention}[name](*arguments)
    run()
    calls = entered(run)
    above = [call for call in calls if not call[0].startswith(("ops/", "kernels/"))]
    for text, these in (("all", calls), ("above ops", above)):
        files, functions = dict.fromkeys(path for path, _ in these), dict.fromkeys(these)
        passes = sum(a[0] != b[0] for a, b in pairwise(these))
        print(f"{text}: {len(files)} files, {len(functions)} functions, the next call in another file {passes} times")
    print(*(f"  {path}" for path in dict.fromkeys(path for path, _ in calls)), sep="\n")


if __name__ == "__main__":
    main()
