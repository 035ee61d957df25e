"""symground within other libraries' loops: transformers' Trainer."""

from symground.integrations.metrics import attention_metrics
from symground.integrations.trainer_callback import AttentionCallback

__all__ = ["AttentionCallback", "attention_metrics"]
