"""The study's grid of probes and its peers: 100 ENV nouns × 100 targets × 10 contexts on a GPT-2 of random weights.

Peers that would take minutes or hours score a random part of the grid; each row has its number of pairs.
"""

from __future__ import annotations

import importlib
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.problem import Problem

Run = Callable[[], Any]
SYMGROUND, STREAMED = "sg.score", "sg.score_to_parquet"
ONE_BY_ONE, MINICONS, BATCHED = "one forward per (context, pair)", "minicons, batches of 100", "all logits of a batch"
#: Peer → the number of pairs that it scores in a round.
PART = {ONE_BY_ONE: 100, MINICONS: 1000}


@dataclass(frozen=True)
class Grid(Problem):
    contexts: int = 10
    nouns: int = 100
    preset: str = "gpt2-4l"
    vocabulary: int = 9000
    device: str = "cpu"

    @property
    def pairs(self) -> int:
        return self.contexts * self.nouns**2

    def tokenizer(self) -> Any:
        """A tokenizer as in the study: a word is one token, with different ids in the scene and in speech."""
        from symground.analysis.probing import read_contexts
        from symground.data import STUDY_NOUNS, env, lan, speaker
        from symground.data.sequences import word_level_tokenizer
        from symground.data.words import env_tokens, lan_tokens

        tokens = {speaker("CHI")} | {form(noun) for noun in STUDY_NOUNS for form in (env, lan)}
        for context in read_contexts(None):
            tokens |= {t for part in context.around() for t in env_tokens(part)} | set(lan_tokens(context.lan))
        tokens |= {f"filler{i}" for i in range(self.vocabulary - 2 - len(tokens))}
        return word_level_tokenizer(dict.fromkeys(sorted(tokens), 1))

    def probes(self) -> Any:
        from symground.analysis import probes
        from symground.data import STUDY_NOUNS

        whole = probes(self.tokenizer(), STUDY_NOUNS[: self.nouns])
        return whole.take_contexts([c % len(whole.contexts) for c in range(self.contexts)])

    def model(self, attached: bool) -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel

        from symground.models import attach, create

        model = create(self.preset, self.vocabulary, positions=64)
        if not attached:
            plain = GPT2LMHeadModel._from_config(GPT2Config(**model.config.to_dict()), attn_implementation="sdpa")
            plain.load_state_dict(model.state_dict())
            return plain.to(self.device).eval()
        return attach(model).to(self.device).eval()


def _part(grid: Grid, count: int) -> list[tuple[int, int, int]]:
    """(context, ENV noun, target noun) of ``count`` pairs, drawn without replacement."""
    everything = list(product(range(grid.contexts), range(grid.nouns), range(grid.nouns)))
    return random.Random(0).sample(everything, min(count, len(everything)))


def _ours(grid: Grid) -> Run:
    from symground.analysis import score

    model, probes = grid.model(attached=True), grid.probes()
    return lambda: score(model, probes)


def _streamed(grid: Grid) -> Run:
    from symground.analysis import score_to_parquet

    model, probes = grid.model(attached=True), grid.probes()

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            score_to_parquet(model, probes, Path(folder) / "scores")

    return run


@torch.inference_mode()
def _surprisal(model: Any, ids: list[int], target: int, device: str) -> float:
    logits = model(input_ids=torch.tensor([ids], device=device)).logits[0, -1]
    return -float(logits.float().log_softmax(-1)[target])


def _one_by_one(grid: Grid) -> Run:
    model, probes, part = grid.model(attached=False), grid.probes(), _part(grid, PART[ONE_BY_ONE])
    jobs = [(list(probes.rows[c][u].ids), probes.targets[v][0]) for c, u, v in part]
    return lambda: [_surprisal(model, ids, target, grid.device) for ids, target in jobs]


def _batched(grid: Grid) -> Run:
    """The code of a careful user: a batch per context, with all targets read from its logits."""
    model, probes = grid.model(attached=False), grid.probes()
    batches = [torch.tensor([row.ids for row in rows], device=grid.device) for rows in probes.rows]
    targets = torch.tensor([ids[0] for ids in probes.targets], device=grid.device)

    @torch.inference_mode()
    def run() -> list[Any]:
        return [-model(input_ids=ids).logits[:, -1].float().log_softmax(-1)[:, targets] for ids in batches]

    return run


def _minicons(grid: Grid) -> Run:
    from minicons import scorer

    tokenizer, probes, part = grid.tokenizer(), grid.probes(), _part(grid, PART[MINICONS])
    tokenizer.padding_side = "right"
    peer = scorer.IncrementalLMScorer(grid.model(attached=False), grid.device, tokenizer=tokenizer)
    prefixes = [tokenizer.decode(probes.rows[c][u].ids) for c, u, _ in part]
    queries = [tokenizer.decode(probes.targets[v]) for _, _, v in part]

    def batches() -> Iterator[slice]:
        return (slice(start, start + 100) for start in range(0, len(part), 100))

    def run() -> list[float]:
        def total(log_p: Any) -> float:
            return -float(log_p.sum())

        return [s for at in batches() for s in peer.conditional_score(prefixes[at], queries[at], reduction=total)]

    return run


PEERS: dict[str, Callable[[Grid], Run]] = {
    SYMGROUND: _ours, STREAMED: _streamed, BATCHED: _batched, ONE_BY_ONE: _one_by_one, MINICONS: _minicons,
}  # fmt: skip


def available() -> tuple[list[str], dict[str, str]]:
    """The peers that can run on this machine, and the others → the reason."""
    try:
        importlib.import_module("minicons.scorer")
    except Exception as error:  # a package built for another machine fails in ways of its own
        return [name for name in PEERS if name != MINICONS], {f"score: {MINICONS}": f"does not import: {error}"}
    return list(PEERS), {}


def scored(name: str, grid: Grid) -> int:
    """The number of pairs that this peer scores in a round."""
    return min(PART.get(name, grid.pairs), grid.pairs)


def in_memory(name: str, grid: dict[str, Any]) -> tuple[Run, Run]:
    """For `memory.py`: (a grid of one context and few nouns to run first, the measured grid)."""
    full = Grid(**grid)
    return PEERS[name](Grid(**{**grid, "contexts": 1, "nouns": 4})), PEERS[name](full)
