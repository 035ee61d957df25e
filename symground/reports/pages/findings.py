"""What a study found, in sentences for the top of its page. All of their numbers are in the tables of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from symground.analysis.causal import enough
from symground.reports.formats import control_cell, number, numbers, percent, with_interval
from symground.reports.sections.parts import Section, TablePart
from symground.reports.sections.silencing import first_rows, heads_of, no_heads, others_of, what_is

#: A model with at most this many seeds has a sentence for each of them.
_EACH = 2
_SIGNIFICANT = 0.05


class Finding(NamedTuple):
    section: str
    """The name of the section that shows it."""
    text: str


def findings_of(sections: Sequence[Section], elsewhere: bool = False) -> list[Finding]:
    """A sentence per finding and model, in the order of the page.

    Of a model that was trained elsewhere, they do not name a seed.
    """
    frames = _frames(sections)
    return [*_gains(frames, elsewhere), *_explained(frames), *_silenced(frames, elsewhere)]


def caution(sections: Sequence[Section], elsewhere: bool = False) -> str:
    """What the number of seeds does not allow to conclude; empty if there are several of each model."""
    frames = _frames(sections)
    if "final" not in frames:
        return ""
    alone = [str(row["model"]) for row in frames["final"].to_dict("records") if row["seeds"] == 1]
    if not alone:
        return ""
    if elsewhere:
        return f"These findings are about the weights of {' and '.join(alone)}, and not about an architecture."
    each = " each" if len(alone) > 1 else ""
    return (
        f"{' and '.join(alone)}: one seed{each}. These findings are about the trained weights that were analysed, and "
        "not about an architecture."
    )


def _frames(sections: Sequence[Section]) -> dict[str, pd.DataFrame]:
    return {part.name: part.frame for section in sections for part in section.parts if isinstance(part, TablePart)}


def _gains(frames: Mapping[str, pd.DataFrame], elsewhere: bool) -> Iterator[Finding]:
    if "final" not in frames:
        return
    emerged = frames.get("emergence", pd.DataFrame(columns=["level", "model", "step"]))
    steps = frames.get("training", frames["final"]).groupby("model")["step"].nunique()
    for row in frames["final"].to_dict("records"):
        model = row["model"]
        gain = with_interval(row["gain"], row["gain_low"], row["gain_high"])
        several = row["seeds"] > _EACH and pd.notna(row["gain_seed_low"])
        seeds = _counted(row["seeds"], "seed")
        if several:
            seeds += f", [{number(row['gain_seed_low'])}, {number(row['gain_seed_high'])}] over them"
        when = ""
        of_model = emerged[(emerged["level"] == "model") & (emerged["model"] == model)]["step"].tolist()
        if steps[model] > 1 and of_model:
            step = of_model[0]
            when = f", above 1 nat from step {step:,.0f} on" if np.isfinite(step) else ", never lastingly above 1 nat"
        at = f" at step {row['step']:,}" if steps[model] > 1 else ""
        yield Finding(
            "behaviour",
            f"{model}: {_direction(row['gain_low'], row['gain_high'], row['p_holm'])}: gain {gain} nats{at}{when} "
            f"({_counted(row['nouns'], 'noun')}{'' if elsewhere else f', {seeds}'}).",
        )


def _counted(count: int, of: str) -> str:
    return f"{count} {of}{'' if count == 1 else 's'}"


def _direction(low: float, high: float, p: float) -> str:
    """What the gain's interval over nouns says, if its test over all checkpoints does not contradict it.

    Ends that are written as 0 are on neither side of it.
    """
    low, high = (0.0 if number(end) == number(0) else end for end in (low, high))
    if (low > 0 or high < 0) and not p >= _SIGNIFICANT:
        return f"a scene with the noun makes its word {'easier' if low > 0 else 'harder'} to predict"
    return "it is not shown that a scene with the noun makes its word easier to predict"


def _explained(frames: Mapping[str, pd.DataFrame]) -> Iterator[Finding]:
    if "r2-peak" not in frames:
        return
    for row in frames["r2-peak"].dropna(subset="peak").to_dict("records"):
        peak = f"at most {percent(row['peak'])} of the gain's variance over nouns (step {row['peak_step']:,.0f})"
        yield Finding(
            "cooccurrence",
            f"{row['model']}: co-occurrence explains {peak}, {percent(row['last'])} at the last checkpoint."
            if row["last_step"] > row["peak_step"] else f"{row['model']}: co-occurrence explains {peak}.",
        )  # fmt: skip


def _silenced(frames: Mapping[str, pd.DataFrame], elsewhere: bool) -> Iterator[Finding]:
    if "interventions" not in frames:
        return
    for model, of_model in first_rows(frames["interventions"]).groupby("model", sort=True):
        alike: dict[tuple[Any, ...], list[dict[Any, Any]]] = {}
        for row in of_model.to_dict("records"):  # seeds may have been analysed in different ways
            alike.setdefault(what_is(row), []).append(row)
        for rows in alike.values():
            several = len(rows) > _EACH
            for part in [rows] if several else [[row] for row in rows]:
                of = f", the range of {len(rows)} seeds" if several else f", seed {part[0]['seed']}"
                yield Finding("causal", f"{model}{'' if elsewhere else of}: {_silencing(part)}.")


def _silencing(rows: Sequence[Mapping[Any, Any]]) -> str:
    """The sentence about the silenced heads of one seed or of several, which are of one kind of row."""
    row, found = rows[0], pd.DataFrame(rows)
    which = "" if row["of_rows"] == 1 else f" (the first of {row['of_rows']} rows, in the order that their table gives)"
    empty = found["heads_per_example"].fillna(0) == 0
    if empty.all():
        return f"{no_heads(row)}, so none was silenced{which}"
    if len(rows) > 1:
        before, after = (_range(found[name]) for name in ("original", "intervened"))
        beside = _beside_randoms(found, others_of(row))
    else:
        before, after = number(row["original"]), number(row["intervened"])
        beside = _beside_random(row)
    none = f"; in {empty.sum()} of the seeds {no_heads(row)}" if empty.any() else ""
    return f"silencing {heads_of(row)} moves the matched surprisal from {before} to {after} nats{beside}{none}{which}"


def _range(values: pd.Series) -> str:
    return "–".join(numbers(values.min(), values.max()))


def _beside_randoms(found: pd.DataFrame, others: str) -> str:
    short = [enough(*row) for row in found[["short", "examples"]].itertuples(index=False)]
    if not all(short):
        return f"; in {short.count(False)} of the seeds too few other heads are left for a comparison"
    return f", and silencing as many {others} to {_range(found['control'])}"


def _beside_random(row: Mapping[Any, Any]) -> str:
    """The end of the sentence about silenced heads."""
    if not enough(row["short"], row["examples"]):
        return f"; in {row['short']} of {row['examples']} examples too few other heads are left for a comparison"
    return f", and silencing as many {others_of(row)} to {control_cell(row)}"
