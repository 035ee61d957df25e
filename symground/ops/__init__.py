"""Functions on tensors: the contract, its reference and its dispatch. Needs torch and numpy only."""

from symground.ops.attention import attention
from symground.ops.attention_flow import attention_flow
from symground.ops.attention_saliency import attention_saliency
from symground.ops.attention_saliency_rows import attention_saliency_rows
from symground.ops.candidate_surprisal import candidate_surprisal
from symground.ops.causal_conv1d import causal_conv1d
from symground.ops.heads import gate_heads
from symground.ops.lens_surprisal import lens_surprisal
from symground.ops.linear_cross_entropy import linear_cross_entropy
from symground.ops.mamba2_inner import mamba2_inner
from symground.ops.ssd import ssd
from symground.ops.ssd_flow import ssd_flow
from symground.ops.ssd_saliency import ssd_saliency

__all__ = [
    "attention",
    "attention_flow",
    "attention_saliency",
    "attention_saliency_rows",
    "candidate_surprisal",
    "causal_conv1d",
    "gate_heads",
    "lens_surprisal",
    "linear_cross_entropy",
    "mamba2_inner",
    "ssd",
    "ssd_flow",
    "ssd_saliency",
]
