"""symground: how symbol grounding emerges in language models, at flash-attention cost.

``from symground import ops`` needs only torch and numpy; every other name below imports its module on first use.
An argument of a wrong type or out of its range raises a ValueError that begins with its name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from symground.version import VERSION

if TYPE_CHECKING:
    from symground import ops as ops
    from symground.analysis import TunedLens as TunedLens
    from symground.analysis import ablate as ablate
    from symground.analysis import answers as answers
    from symground.analysis import attention as attention
    from symground.analysis import attention_memory as attention_memory
    from symground.analysis import cooccurrence as cooccurrence
    from symground.analysis import find_heads as find_heads
    from symground.analysis import gain as gain
    from symground.analysis import image_questions as image_questions
    from symground.analysis import intervene as intervene
    from symground.analysis import lens_gain as lens_gain
    from symground.analysis import lens_read as lens_read
    from symground.analysis import monitor as monitor
    from symground.analysis import observe as observe
    from symground.analysis import pope_scores as pope_scores
    from symground.analysis import probes as probes
    from symground.analysis import score as score
    from symground.analysis import score_to_parquet as score_to_parquet
    from symground.analysis import stability as stability
    from symground.analysis import steer as steer
    from symground.analysis import steering as steering
    from symground.analysis import surprisal as surprisal
    from symground.analysis import sweep_heads as sweep_heads
    from symground.analysis import trace as trace
    from symground.analysis import trace_memory as trace_memory
    from symground.models import attach as attach
    from symground.models import detach as detach
    from symground.models import load as load
    from symground.models import load_processor as load_processor
    from symground.models import load_tokenizer as load_tokenizer
    from symground.reports.pages.study import report as report
    from symground.reports.patches import draw_patches as draw_patches
    from symground.reports.views import view as view

__version__ = VERSION

_HOMES = {
    "symground.analysis": (
        "TunedLens", "ablate", "answers", "attention", "attention_memory", "cooccurrence", "find_heads", "gain",
        "image_questions", "intervene", "lens_gain", "lens_read", "monitor", "observe", "pope_scores", "probes",
        "score", "score_to_parquet", "stability", "steer", "steering", "surprisal", "sweep_heads", "trace",
        "trace_memory",
    ),
    "symground.models": ("attach", "detach", "load", "load_processor", "load_tokenizer"),
    "symground.reports": ("draw_patches", "report", "view"),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "TunedLens", "ablate", "answers", "attach", "attention", "attention_memory", "cooccurrence", "detach",
    "draw_patches", "find_heads", "gain", "image_questions", "intervene", "lens_gain", "lens_read", "load",
    "load_processor", "load_tokenizer", "monitor", "observe", "ops", "pope_scores", "probes", "report", "score",
    "score_to_parquet", "stability", "steer", "steering", "surprisal", "sweep_heads", "trace", "trace_memory",
    "view",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("symground.ops")
    if name not in _HOME:
        raise AttributeError(f"module 'symground' has no attribute {name!r}")
    try:
        module = importlib.import_module(_HOME[name])
    except ImportError as error:
        raise ImportError(
            f"symground.{name} needs more than torch and numpy ({error}); pip install symground"
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)  # the public names; submodules are imported by their names
