"""The cost of a trace and of a grid of probes at any size by formulas, and small measured points beside them.

    python -m benchmarks scaling --out benchmarks/results/scaling.json      # six minutes on two cores

docs/scaling.md explains the formulas and applies them to a 70B model and to a million checkpoints. The measured points
are small models of Llama's form with random weights. The large sizes have not been run.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.common import alone, measure  # noqa: E402
from benchmarks.common.memory import peak_in_subprocess  # noqa: E402
from benchmarks.peers import score as score_peers  # noqa: E402

Run = Callable[[], Any]


@dataclass(frozen=True)
class Llama:
    """A decoder of Llama's form: L layers of width E, H query and Hk key heads of size D, MLPs of width M."""

    L: int
    E: int
    H: int
    Hk: int
    D: int
    M: int
    V: int
    bytes_a_number: int = 4

    @property
    def matrices(self) -> int:
        """The number of weights in the layers' matrices."""
        return self.L * (2 * self.E * self.H * self.D + 2 * self.E * self.Hk * self.D + 3 * self.E * self.M)

    @property
    def parameters(self) -> int:
        return self.matrices + 2 * self.V * self.E

    @property
    def kept_a_token(self) -> int:
        """Bytes per token that the layers keep for the backward pass with frozen weights: the inputs of the norms, of
        attention, and of the gated product in the MLP."""
        numbers = self.L * (2 * self.E + 2 * self.H * self.D + 2 * self.Hk * self.D + 3 * self.M)
        return numbers * self.bytes_a_number + 4 * self.L * self.H


def trace_flops(m: Llama, B: int, T: int, checkpoint: bool = False) -> float:
    """FLOPs of a forward pass, and of a backward pass to the activations only, since the weights are frozen. Saliency
    shares the products of the backward pass.

    A product with weights takes 2 operations per weight and token, in the forward and in the backward pass. A product
    of T × T × D takes T²·D (its causal half); there are two in the forward and five in the backward pass.
    """
    again = 1 if checkpoint else 0
    return (4 + 2 * again) * m.matrices * B * T + (7 + 2 * again) * float(B) * m.L * m.H * m.D * T * T


def trace_bytes(m: Llama, B: int, T: int, *, checkpoint: bool = False, saliency: bool = True) -> dict[str, float]:
    """The memory of a trace on a device, by part (docs/models.md)."""
    tokens, size = B * T, m.bytes_a_number
    kept = tokens * ((m.L + 1) * m.E * size if checkpoint else m.kept_a_token)
    layer = 3 * tokens * m.M * size + (4.0 * tokens * T if saliency else 0) + (
        tokens * m.kept_a_token / m.L if checkpoint else 0
    )  # fmt: skip
    return {"weights": m.parameters * size, "kept": float(kept), "layer": layer, "peak": kept + layer}


def eager_bytes(m: Llama, B: int, T: int) -> float:
    """Bytes of the attention matrices that eager attention keeps: each layer's scores before and after the softmax."""
    return 2.0 * B * m.L * m.H * T * T * m.bytes_a_number


def grid_flops(weights: int, width: int, vocabulary: int, contexts: int, nouns: int, tokens: float) -> float:
    """FLOPs of one pass over each context with each noun in its scene, of which ``tokens`` are not shared, and of the
    surprisal of every target at its end."""
    passes = contexts * nouns
    return 2.0 * passes * (tokens * weights + width * vocabulary)


#: The shape of Llama-3-70B in bfloat16.
LLAMA_70B = Llama(80, 8192, 64, 8, 128, 28672, 128256, bytes_a_number=2)


# Measured small points.

POINTS = (
    (Llama(4, 256, 4, 2, 64, 704, 1000), 2, 512),
    (Llama(4, 256, 4, 2, 64, 704, 1000), 1, 2048),
    (Llama(8, 512, 8, 2, 64, 1408, 1000), 2, 512),
    (Llama(8, 512, 8, 2, 64, 1408, 1000), 1, 2048),
    (Llama(16, 512, 8, 2, 64, 1408, 1000), 1, 1024),
)


def tracing(shape: dict[str, int], B: int, T: int, checkpoint: bool) -> tuple[Run, Run]:
    """For `memory.py`: (a small trace to run first, the measured trace)."""
    return _trace(Llama(1, 32, 2, 1, 16, 64, 50), 1, 16, checkpoint), _trace(Llama(**shape), B, T, checkpoint)


def _trace(m: Llama, B: int, T: int, checkpoint: bool) -> Run:
    import symground as sg

    model, ids = model_of(m, T), torch.randint(m.V, (B, T))
    return lambda: sg.trace(model, ids, ids[:, 0], saliency=False, checkpoint=checkpoint)


def model_of(m: Llama, T: int) -> Any:
    """An attached model of random weights, for texts of up to T tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    import symground as sg

    config = LlamaConfig(
        num_hidden_layers=m.L, hidden_size=m.E, num_attention_heads=m.H, num_key_value_heads=m.Hk, head_dim=m.D,
        intermediate_size=m.M, vocab_size=m.V, max_position_embeddings=T, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return sg.attach(LlamaForCausalLM(config).eval())


def trace_points() -> list[dict[str, Any]]:
    rows = []
    for m, B, T in POINTS:
        for checkpoint in (False, True):
            run = _trace(m, B, T, checkpoint)
            run()
            seconds = statistics.median(measure.seconds(run) for _ in range(3))
            del run
            held, peak = (
                peak_in_subprocess(
                    "benchmarks.scaling", "tracing", held=only_held, shape=asdict(m), B=B, T=T, checkpoint=checkpoint
                )["peak_bytes"]
                for only_held in (True, False)
            )
            flops = trace_flops(m, B, T, checkpoint)
            asked = trace_bytes(m, B, T, checkpoint=checkpoint, saliency=False)["peak"]
            rows.append(
                {**asdict(m), "B": B, "T": T, "checkpoint": checkpoint, "seconds": seconds, "flops": flops,
                 "flops_a_second": flops / seconds, "held_bytes": held, "peak_bytes": peak, "formula_bytes": asked,
                 "held_of_formula": held / asked}
            )  # fmt: skip
            print(f"L{m.L} E{m.E} B{B} T{T} checkpoint {checkpoint}: {flops / seconds / 1e9:.0f} GFLOP/s, holds "
                  f"{held / asked:.2f} of the formula, {peak / asked:.2f} with what the allocator keeps",
                  file=sys.stderr)  # fmt: skip
    return rows


def score_points() -> list[dict[str, Any]]:
    """Time of scoring grids of probes and streaming them to disk, and the bytes on disk."""
    import tempfile

    from symground.analysis.probing import score_to_parquet

    rows = []
    for preset, contexts in (("gpt2-4l", 10), ("gpt2-4l", 40), ("gpt2-12l", 10), ("gpt2-12l-768", 10)):
        grid = score_peers.Grid(contexts=contexts, preset=preset)
        model, probes = grid.model(attached=True), grid.probes()
        config = model.config
        examples = probes.matched()
        # The tokens before the noun of the scene are read once for all nouns.
        before = examples.key_masks["env"].int().argmax(-1)
        tokens = float((examples.prediction + 1 - before).float().mean())
        weights = 12 * config.n_layer * config.n_embd**2
        with tempfile.TemporaryDirectory() as folder:

            def run(folder: str = folder, model: Any = model, probes: Any = probes) -> None:
                import shutil

                shutil.rmtree(Path(folder) / "scores", ignore_errors=True)
                score_to_parquet(model, probes, Path(folder) / "scores")

            run()
            seconds = statistics.median(measure.seconds(run) for _ in range(3))
            stored = sum(p.stat().st_size for p in (Path(folder) / "scores").rglob("*") if p.is_file())
        flops = grid_flops(weights, config.n_embd, config.vocab_size, contexts, grid.nouns, tokens)
        rows.append(
            {"preset": preset, "contexts": contexts, "nouns": grid.nouns, "pairs": grid.pairs, "tokens": tokens,
             "seconds": seconds, "flops": flops, "flops_a_second": flops / seconds,
             "bytes_a_pair": stored / grid.pairs}
        )  # fmt: skip
        print(f"{preset}, {contexts} contexts: {flops / seconds / 1e9:.0f} GFLOP/s, "
              f"{stored / grid.pairs:.1f} bytes a pair", file=sys.stderr)  # fmt: skip
    return rows


def main() -> None:
    arguments = alone.parser(__doc__).parse_args()
    from symground.training.provenance import versions

    found = {
        "machine_info": alone.machine(), "versions": versions(), "rates": measure.machine_rates("cpu"),
        "trace": trace_points(), "score": score_points(),
    }  # fmt: skip
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"→ {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
