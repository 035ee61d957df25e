"""Functions on tensors: their checks, references and implementations. Needs only torch and numpy."""

from symground.ops.attention.api import attention, attention_flow, attention_saliency, attention_saliency_rows
from symground.ops.attention.weights.api import (
    attention_mass,
    attention_pooled,
    attention_received,
    attention_rows,
    attention_summary,
    attention_topk,
)
from symground.ops.explain import explain
from symground.ops.gate.api import gate_heads
from symground.ops.mamba2.api import causal_conv1d, mamba2_inner
from symground.ops.ssd.api import ssd, ssd_flow, ssd_saliency
from symground.ops.ssd.weights.api import ssd_mass, ssd_received, ssd_rows
from symground.ops.vocabulary.api import candidate_surprisal, lens_surprisal, linear_cross_entropy

__all__ = [
    "attention",
    "attention_flow",
    "attention_mass",
    "attention_pooled",
    "attention_received",
    "attention_rows",
    "attention_saliency",
    "attention_saliency_rows",
    "attention_summary",
    "attention_topk",
    "candidate_surprisal",
    "causal_conv1d",
    "explain",
    "gate_heads",
    "lens_surprisal",
    "linear_cross_entropy",
    "mamba2_inner",
    "ssd",
    "ssd_flow",
    "ssd_mass",
    "ssd_received",
    "ssd_rows",
    "ssd_saliency",
]
