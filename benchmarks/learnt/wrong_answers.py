"""Does anything tell that the model is about to say another word than that of the scene?"""

from __future__ import annotations

import json
from typing import Any

import symground as sg
from benchmarks.common.smollm2 import NAME, smollm2
from benchmarks.learnt.probing import WORDS, records


def wrong_answers() -> dict[str, Any]:
    """The detectors of :func:`symground.monitor` where the model chooses among its whole vocabulary.

    After a French scene it names nothing in it; there it chooses among the nouns.
    """
    words = json.loads(WORDS.read_text(encoding="utf-8"))
    model, tokenizer = sg.load(smollm2()), sg.load_tokenizer(smollm2())
    found = {}
    for name in ("english", "french", "two things"):
        in_scene = list(words["nouns"].values()) if name == "french" else list(words["nouns"])
        contexts = [(each["env"], each["lan"]) for each in words[name]]
        asked = sg.probes(tokenizer, in_scene, contexts, spoken=dict(zip(in_scene, words["nouns"], strict=True)))
        told = sg.monitor(model, asked, among="targets" if name == "french" else "vocabulary")
        found[name] = records(
            told.detectors, "detector", "auroc", "auroc_low", "auroc_high", "brier", "brier_base", "wrong", "examples",
            "heads", "note",
        )  # fmt: skip
    return {"model": NAME, "nouns": len(words["nouns"]), "detectors": found}
