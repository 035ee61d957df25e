"""Do the selected heads matter?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from symground.analysis.causal import enough
from symground.analysis.statistics import holm
from symground.data.study_figures import STUDY, STUDY_INTERVENTIONS
from symground.reports.formats import control_cell, number, signed, stars, with_interval
from symground.reports.sections.parts import FigurePart, Section, StudyResults, TablePart
from symground.reports.sections.silencing import APART, completed, differing, said_of_rows


def causal(study: StudyResults) -> Section:
    """The causal table, beside the published one."""
    interventions = study.results["interventions"]
    title = "Do these heads matter?"
    text = (
        "Silencing a head removes what it carries. If the selected heads carry the link, silencing them raises the "
        "noun's surprisal, and silencing as many random heads does not."
    )
    if interventions.empty:
        return Section("causal", title, text, (), study.lacking(interventions="interventions"))
    made, said = study.analyze("interventions"), said_of_rows(interventions, findings=True)
    parts: list[FigurePart | TablePart] = [
        TablePart("interventions", interventions, made, intervention_table(interventions), said),
        TablePart("study", STUDY_INTERVENTIONS, STUDY["source"]),
    ]
    grounds = grounds_or_matters(interventions)
    if not grounds.empty:
        parts.append(TablePart("grounds", grounds, made, grounds_shown(grounds), said_of_rows(grounds)))
    return Section("causal", title, text, parts)


def _corrected(interventions: pd.DataFrame) -> pd.Series:
    """p, Holm-corrected over all rows of a run: its checkpoints, kinds, denominators and spans."""
    by_run = interventions.groupby([name for name in ("study", "model", "seed") if name in interventions])["p"]
    return by_run.transform(lambda p: holm(p.to_numpy(dtype=float)))


def intervention_table(interventions: pd.DataFrame) -> pd.DataFrame:
    """The interventions in the form of the published table.

    *** p < 0.001, ** p < 0.01, * p < 0.05, paired over examples, corrected over the rows of a run (Holm). It has the
    columns of `APART` in which rows differ, and a column "study" if the results have one.
    """
    if interventions.empty:
        return pd.DataFrame()
    interventions = completed(interventions)
    marks = _corrected(interventions).map(stars)
    return pd.DataFrame(
        {
            **({"study": interventions["study"]} if "study" in interventions else {}),
            "model": interventions["model"],
            "seed": interventions["seed"],
            "step": interventions["step"],
            "kind": interventions["kind"],
            "share of": interventions["denominator"],
            "span": interventions["span"],
            **{name: interventions[name] for name in differing(interventions)},
            "heads per example": interventions["heads_per_example"],
            "mean layer": interventions["mean_layer"],
            "intervened": interventions["intervened"].map(number) + marks,
            "control": [control_cell(row) for row in interventions.to_dict("records")],
            "original": interventions["original"],
            "examples": interventions["examples"],
            "draws": interventions["draws"],
            "too few controls": interventions["short"],
        }
    )


#: Prefix of the results' columns → name of the measure in the report.
_MEASURES = {"": "matched", "mismatched_": "mismatched", "gain_": "gain", "context_": "rest of the context"}


def grounds_or_matters(interventions: pd.DataFrame) -> pd.DataFrame:
    """How silencing changes each measure, and how silencing as many random heads changes it.

    The latter is NaN if there were too few heads to draw from. The table is empty if an older version made the results,
    which did not measure this.
    """
    if "gain_intervened" not in interventions:
        return pd.DataFrame()
    rows = completed(interventions.dropna(subset="gain_intervened"))
    enough_controls = [enough(short, examples) for short, examples in zip(rows["short"], rows["examples"], strict=True)]
    changes = {}
    for prefix, name in _MEASURES.items():
        before = rows[f"{prefix}original"]
        changes[name] = rows[f"{prefix}intervened"] - before
        changes[f"{name}, random heads"] = (rows[f"{prefix}control"] - before).where(
            np.array(enough_controls, dtype=bool)
        )
    return pd.DataFrame(
        {
            "model": rows["model"],
            "seed": rows["seed"],
            "step": rows["step"],
            "kind": rows["kind"],
            "share of": rows["denominator"],
            "span": rows["span"],
            **{name: rows[name] for name in APART},
            **changes,
            **({"p of gain": rows["gain_p"]} if "gain_p" in rows else {}),
            "d of matched": rows["d"],
            "d_low": rows["d_low"],
            "d_high": rows["d_high"],
            "examples": rows["examples"],
        }
    )


def grounds_shown(grounds: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`grounds_or_matters` for the page, with random heads' changes in brackets."""
    shown, alike = {}, set(APART) - set(differing(grounds))
    for name in map(str, grounds):
        if name in alike:
            continue
        if name in _MEASURES.values():
            both = zip(grounds[name], grounds[f"{name}, random heads"], strict=True)
            shown[name] = [signed(ours) + ("" if pd.isna(random) else f" ({signed(random)})") for ours, random in both]
        elif name == "d of matched":
            ends = zip(grounds[name], grounds["d_low"], grounds["d_high"], strict=True)
            shown[name] = [with_interval(*of_row) for of_row in ends]
        elif not name.endswith(", random heads") and name not in ("d_low", "d_high"):
            shown[name] = grounds[name].tolist()
    return pd.DataFrame(shown)
