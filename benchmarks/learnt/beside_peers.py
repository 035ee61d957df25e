"""A trace of SmolLM2 beside what else gives saliency: time of short texts, and time and peak memory of longer ones.

Every peer explains the surprisal of the token after a text of random tokens. Those of attention return saliency per
layer; inseq's gives the saliency of the inputs.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.measure import in_turns, processor_seconds
from benchmarks.common.memory import peak_in_subprocess
from benchmarks.common.smollm2 import NAME, smollm2
from benchmarks.peers.trace import surprisal

Run = Callable[[], Any]
TRACE, EAGER, FROZEN = "sg.trace", "eager + autograd.grad", "SDPA pass, frozen weights"
LENS, INSEQ = "TransformerLens, gradients of hook_pattern", "inseq saliency (inputs)"
#: Texts whose time is measured, and those whose peak memory is.
SHORT, LONG = ((1, 64), (1, 128), (1, 512), (1, 1024), (8, 128)), (512, 1024, 2048)


@dataclass(frozen=True)
class Texts:
    """B texts of T random tokens. Of several texts each is shorter than the one before it, padded on the left."""

    B: int
    T: int

    def ids(self) -> Tensor:
        return torch.randint(1000, 49_000, (self.B, self.T), generator=torch.Generator().manual_seed(0))

    def mask(self) -> Tensor | None:
        """[B,T]; None for one text."""
        if self.B == 1:
            return None
        return (torch.arange(self.T) >= torch.arange(self.B)[:, None] * self.T // (2 * self.B)).long()

    def targets(self) -> Tensor:
        return torch.randint(1000, 49_000, (self.B,), generator=torch.Generator().manual_seed(1))


def _model(attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2(), attn_implementation=attention)
    return model.requires_grad_(False).eval()


def _trace(texts: Texts) -> Run:
    import symground as sg

    model, ids = sg.load(smollm2()), texts.ids()
    return lambda: sg.trace(model, ids, texts.targets(), texts.mask())


def _eager(texts: Texts) -> Run:
    model, ids = _model("eager"), texts.ids()

    def run() -> list[Tensor]:
        embedded = model.get_input_embeddings()(ids).requires_grad_()
        out = model(
            inputs_embeds=embedded, attention_mask=texts.mask(), output_attentions=True, use_cache=False,
            logits_to_keep=1,
        )  # fmt: skip
        grads = torch.autograd.grad(surprisal(out.logits, texts.targets()).sum(), out.attentions)
        return [(a.detach() * g).sum(1).abs() for a, g in zip(out.attentions, grads, strict=True)]

    return run


def _frozen(texts: Texts) -> Run:
    """Forward and backward pass to the embeddings, which every trace needs."""
    model, ids = _model("sdpa"), texts.ids()

    def run() -> Tensor:
        embedded = model.get_input_embeddings()(ids).requires_grad_()
        out = model(inputs_embeds=embedded, attention_mask=texts.mask(), use_cache=False, logits_to_keep=1)
        return torch.autograd.grad(surprisal(out.logits, texts.targets()).sum(), embedded)[0]

    return run


def _lens(texts: Texts) -> Run:
    from transformer_lens.model_bridge import TransformerBridge

    model, ids = TransformerBridge.boot_transformers(str(smollm2()), device="cpu"), texts.ids()
    names = [name for name in model.hook_dict if name.endswith("attn.hook_pattern")]

    def run() -> list[Tensor]:
        patterns: list[Tensor] = []
        hooks = [(name, lambda pattern, hook: patterns.append(pattern)) for name in names]
        logits = model.run_with_hooks(ids, fwd_hooks=hooks, attention_mask=texts.mask(), logits_to_keep=1)
        grads = torch.autograd.grad(surprisal(logits, texts.targets()).sum(), patterns)
        return [(a.detach() * g).sum(1).abs() for a, g in zip(patterns, grads, strict=True)]

    return run


def _inseq(texts: Texts) -> Run:
    import inseq

    model = inseq.load_model(str(smollm2()), "saliency", model_kwargs={"attn_implementation": "sdpa"})
    tokenizer = model.tokenizer
    prompts = [tokenizer.decode(row) for row in texts.ids()]
    whole = [p + tokenizer.decode([t]) for p, t in zip(prompts, texts.targets().tolist(), strict=True)]
    return lambda: model.attribute(prompts, whole, show_progress=False, pretty_progress=False)


PEERS: dict[str, Callable[[Texts], Run]] = {
    TRACE: _trace, EAGER: _eager, FROZEN: _frozen, LENS: _lens, INSEQ: _inseq,
}  # fmt: skip


def beside_peers(rounds: int = 5) -> dict[str, Any]:
    """Processor time of short texts as a share of each peer's, in turns; time and peak memory of longer texts."""
    there = {name: run for name, run in PEERS.items() if name != INSEQ or importlib.util.find_spec("inseq")}
    short = []
    for b, t in SHORT:
        texts = Texts(b, t)
        runs = {name: there[name](texts) for name in (TRACE, EAGER, FROZEN)}
        taken = in_turns(runs, rounds, taking=processor_seconds)
        middle = {name: statistics.median(x) for name, x in taken.items()}
        short.append({
            "B": b, "T": t, "seconds": middle,
            **{f"over {name}": statistics.median(x / y for x, y in zip(taken[TRACE], taken[name], strict=True))
               for name in (EAGER, FROZEN)},
        })  # fmt: skip
    long = []
    for t in LONG:
        for name in there:
            run = there[name](Texts(1, t))
            run()
            seconds = statistics.median(in_turns({name: run}, 3, taking=processor_seconds)[name])
            del run
            peak = peak_in_subprocess(__name__, "in_memory", name=name, texts=asdict(Texts(1, t)))
            long.append({"T": t, "peer": name, "seconds": seconds, "peak_mib": peak["peak_bytes"] / 2**20})
    return {"model": NAME, "threads": torch.get_num_threads(), "rounds": rounds, "short": short, "long": long,
            "missing": [name for name in PEERS if name not in there]}  # fmt: skip


def in_memory(name: str, texts: dict[str, int]) -> tuple[Run, Run]:
    """For `memory.py`: (few tokens to run first; the measured run)."""
    torch.set_num_threads(1)
    return PEERS[name](Texts(1, 8)), PEERS[name](Texts(**texts))
