"""What heads do: they are silenced, amplified or patched, and the model's behaviour is measured again."""

from symground.analysis.causal.ablation import ablate
from symground.analysis.causal.controls import enough
from symground.analysis.causal.fills import MODES
from symground.analysis.causal.head_steering import FACTORS, steer, steering
from symground.analysis.causal.head_sweep import sweep_heads
from symground.analysis.causal.intervention import intervene
from symground.analysis.causal.silenced import behaviour

__all__ = ["FACTORS", "MODES", "ablate", "behaviour", "enough", "intervene", "steer", "steering", "sweep_heads"]
