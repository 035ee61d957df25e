"""What a row of the table "interventions" is: which heads were silenced, where and how, and beside which others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from symground.analysis.causal import enough

#: Column → its value if an older version did not write it, and everywhere unless another was asked for.
_USUAL: Mapping[str, Any] = {"selection": "example", "positions": "all", "mode": "zero", "match": "none", "span": 0}
#: The columns that a page leaves out if all rows are equal in them → value → what it says.
APART: Mapping[str, Mapping[str, str]] = {
    "selection": {
        "example": "found in each example itself", "held-out": "found on the other half of the contexts",
    },
    "positions": {"all": "at all positions", "own": "at their own positions"},
    "mode": {"zero": "by zeros", "mean": "by their means", "resample": "by resampled outputs"},
    "match": {
        "none": "random heads from all layers", "layer": "random heads from their own layers",
        "norm": "random heads of about the same norm",
    },
}  # fmt: skip
_KINDS = {"aggregate": "aggregate heads", "gather": "gather heads", "both": "aggregate and gather heads"}
#: The row that a sentence is made of is the first in this order, of columns and of their values.
ORDER: Mapping[str, tuple[str, ...]] = {
    "kind": ("aggregate", "both", "gather"), "denominator": ("row", "matrix"), "selection": ("held-out", "example"),
    "positions": ("all", "own"), "mode": ("zero", "mean", "resample"), "match": ("layer", "norm", "none"),
}  # fmt: skip
_RUN = ["model", "seed", "step"]
_ROW = (*ORDER, "span")


def completed(interventions: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns that an older version did not write."""
    return interventions.assign(**{name: value for name, value in _USUAL.items() if name not in interventions})


def differing(interventions: pd.DataFrame) -> list[str]:
    """The columns of `APART` in which the rows differ."""
    return [name for name in APART if completed(interventions)[name].nunique() > 1]


def said_of_rows(interventions: pd.DataFrame, *, findings: bool = False) -> str:
    """What the columns that differ mean, what holds for all rows, and which row the findings take if there are any."""
    table = completed(interventions)
    apart = differing(table)
    told = [f"{name}: {_listed(name, table)}." for name in apart]
    alike = [f"{_BEFORE[name]} {_said(name, table.iloc[0])}" for name in APART if name not in apart]
    if alike:
        told.append(f"{'All rows' if len(table) > 1 else 'This row'}: {'; '.join(alike)}.")
    if findings and table.groupby(_RUN).size().max() > 1:
        order = "; ".join(f"{_TITLES.get(name, name)} ({', '.join(values)})" for name, values in ORDER.items())
        order += ", with enough other heads before without"
        told.append(f"Of several rows, the finding at the top of the page takes the first by {order}; span.")
    return " ".join(told)


#: Names of columns on the page, and what stands before what a column says.
_TITLES = {"denominator": "share of"}
_BEFORE = {"selection": "heads", "positions": "silenced", "mode": "replaced", "match": "control:"}


def _listed(name: str, table: pd.DataFrame) -> str:
    values = [value for value in APART[name] if value in set(table[name])]
    return "; ".join(f"“{value}” is {APART[name][value]}" for value in values)


def first_rows(interventions: pd.DataFrame) -> pd.DataFrame:
    """Of the last checkpoint of each run, the first row in `ORDER`, with the number of rows there (of_rows)."""
    table = completed(interventions)
    table = table[table["step"] == table.groupby(["model", "seed"])["step"].transform("max")]
    places: dict[str, Any] = {f"_{name}": table[name].map(_place(name)) for name in ORDER}
    few = [not enough(row.get("short"), row["examples"]) for row in table.to_dict("records")]
    by = [*places]
    by.insert(by.index("_match"), "_few")  # a control that lacks heads says little
    ordered = table.assign(**places, _few=few, of_rows=table.groupby(["model", "seed"])["model"].transform("size"))
    ordered = ordered.sort_values(["model", "seed", *by, "span"], kind="stable")
    return ordered.drop(columns=by).drop_duplicates(["model", "seed"])


def _place(name: str) -> dict[str, int]:
    return {value: at for at, value in enumerate(ORDER[name])}


def what_is(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    """What tells a row from others of the same checkpoint."""
    return tuple(row[name] for name in _ROW)


def heads_of(row: Mapping[Any, Any]) -> str:
    """Which heads are silenced, where and how."""
    how = [_said("positions", row), _said("mode", row)]
    if row["denominator"] == "matrix":
        how.append("chosen by their share of the whole matrix, since that of the row was not analysed")
    if row["span"]:
        how.append(f"with {row['span']} token{'s' if row['span'] > 1 else ''} after the noun counted as part of it")
    return f"the {_KINDS.get(row['kind'], row['kind'])} {_said('selection', row)} ({', '.join(how)})"


def others_of(row: Mapping[Any, Any]) -> str:
    """Which other heads are silenced for comparison."""
    return _said("match", row)


def no_heads(row: Mapping[Any, Any]) -> str:
    where = {"example": "in any example", "held-out": "on either half of the contexts"}
    kind = str(row["kind"]).replace("both", "aggregate or gather")
    of = " (of the whole matrix)" if row["denominator"] == "matrix" else ""
    return f"no {kind} head has the threshold's share of flow{of} {where.get(row['selection'], '')}".rstrip()


def _said(name: str, row: Mapping[Any, Any] | pd.Series) -> str:
    return APART[name].get(row[name], str(row[name]))
