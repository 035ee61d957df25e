"""The age of acquisition of words, from Wordbank's proportions of children who say them, by month."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from symground.data.words.nouns import first_word, text_of, word_column
from symground.errors import require

_MONTH = re.compile(r"\d{1,2}")


def age_of_acquisition(path: str | Path) -> dict[str, float]:
    """word → the month at which half of the children say it, by a logistic curve over the months.

    Args:
        path: a CSV with a column "definition" or "item_definition" and a column for each month of age ("16", "17", …)
            with the proportion of children who say the word, as Wordbank exports it. If a word has two rows (for two
            senses), the earlier age counts.

    Returns:
        Months. A word whose curve does not rise is omitted. If half of the children say a word before the first month
        or after the last, its age is extrapolated from the curve.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a column is missing, or a value is not a proportion (names the line).

    Source: Frank, Braginsky, Yurovsky and Marchman 2017, "Wordbank" (logistic curves; half of the children).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with io.StringIO(text_of(path), newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        word = word_column(columns)
        months = [name for name in columns if _MONTH.fullmatch(name)]
        if word is None or len(months) < 2:
            raise ValueError(
                f"{path}: expected the columns 'definition' (or 'item_definition') and ages in months, got "
                f"{', '.join(columns) or 'none'}"
            )
        rows = []
        for row in reader:
            try:
                share = np.array([float(row[month] or "nan") for month in months])
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
            if not ((share >= 0) & (share <= 1) | np.isnan(share)).all():
                raise ValueError(f"{path}, line {reader.line_num}: expected proportions from 0 to 1")
            rows.append((first_word(row[word] or ""), share))
    found: dict[str, float] = {}
    for name, share in rows:
        age = _half(np.array(months, dtype=float), share)
        if name and age is not None:
            found[name] = min(age, found.get(name, np.inf))
    return found


def _half(months: NDArray[np.float64], share: NDArray[np.float64]) -> float | None:
    models = require("statsmodels.api", "ages of acquisition")
    measured = ~np.isnan(share)
    if measured.sum() < 2 or np.ptp(share[measured]) == 0:
        return None
    fitted = models.GLM(share[measured], models.add_constant(months[measured]), family=models.families.Binomial()).fit()
    level, slope = fitted.params
    return float(-level / slope) if slope > 0 else None
