"""What `symground.integrations.AttentionCallback` adds to the time of a training step.

    python -m benchmarks training-log --out benchmarks/results/training-log.json      # two minutes on a core

A step of a GPT-2 (forward, backward, AdamW) that the callback reads, beside the same step that it does not read, in
turns; with ``every=50`` one step in fifty is read. The first side is transformers' model with its own SDPA attention in
the same loop.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import symground as sg
from benchmarks.common import alone
from benchmarks.common.measure import in_turns
from symground.integrations import AttentionCallback, attention_metrics

Run = Callable[[], Any]
BATCH, LENGTH, EVERY, ROUNDS = 4, 256, 50, 15
#: Width, layers, heads; dropout 0, so that flow can be read too.
SHAPE = (384, 6, 6)


def model_of(width: int, layers: int, heads: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=8192, n_positions=LENGTH, n_embd=width, n_layer=layers, n_head=heads, attn_pdrop=0.0,
        resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config).train()


def steps(shape: tuple[int, int, int] = SHAPE, batch: int = BATCH, length: int = LENGTH) -> dict[str, Run]:
    """Name → a step: by transformers alone, with the model attached, and read without and with flow."""
    ids = torch.randint(8192, (batch, length))

    def step_of(model: GPT2LMHeadModel) -> Run:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

        def step() -> None:
            model(ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def read(model: GPT2LMHeadModel, step: Run, saliency: bool) -> Run:
        callback = AttentionCallback(every=EVERY, saliency=saliency)

        def with_block() -> None:
            with sg.observe(model, callback.groups_of, rows=None, summary=True, flow=saliency) as seen:
                step()
            attention_metrics(seen)

        return with_block

    own, attached = model_of(*shape), sg.attach(model_of(*shape))
    plain = step_of(attached)
    return {
        "transformers": step_of(own), "attached": plain, "read": read(attached, plain, False),
        "read, with flow": read(attached, plain, True),
    }  # fmt: skip


def main() -> None:
    arguments = alone.parser(__doc__).parse_args()
    seconds = {name: statistics.median(of) for name, of in in_turns(steps(), ROUNDS).items()}
    added = {name: (seconds[name] / seconds["attached"] - 1) / EVERY for name in ("read", "read, with flow")}
    found = {"machine_info": alone.machine(), "every": EVERY, "seconds": seconds, "added": added}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(f"{name:<18}{of * 1e3:8.1f} ms a step" for name, of in seconds.items()))
    print("\n".join(f"{name:<18}{of:8.2%} more time a step with every={EVERY}" for name, of in added.items()))


if __name__ == "__main__":
    main()
