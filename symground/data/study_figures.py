"""The study's own figures, from ``resources/study.toml``, which gives the source of each."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

import pandas as pd

STUDY: dict[str, Any] = tomllib.loads(
    (files("symground.data") / "resources" / "study.toml").read_text(encoding="utf-8")
)
#: A row per checkpoint of the study's 12-layer GPT-2: its aggregate heads, and what silencing them does.
STUDY_INTERVENTIONS = pd.DataFrame(STUDY["interventions"]["rows"], columns=STUDY["interventions"]["columns"])
