"""Does co-occurrence explain the gain?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats


def cooccurrence_r2(gains: pd.DataFrame, counts: pd.DataFrame) -> pd.DataFrame:
    """In-sample R² of an ordinary least-squares line of G(v) on log(1 + count of v:<ENV> with v:<LAN>), over nouns.

    Args:
        gains: from :func:`symground.gain`.
        counts: from :func:`symground.cooccurrence`.

    Returns:
        One row: r2, slope (nats per unit of the logarithm), nouns (how many), mean_gain. r2 and slope are NaN while
        the mean gain is not above 0, where they mean nothing, and where all counts are alike.

    Source: arXiv 2510.13796, R² of the gain against co-occurrence statistics.
    """
    own = counts[counts["env"] == counts["lan"]].set_index("env")["count"]
    missing = [noun for noun in gains["target"] if noun not in own.index]
    if missing:
        raise ValueError(f"counts: no co-occurrence count for {', '.join(missing)}")
    x, y = np.log1p(own.loc[gains["target"]].to_numpy(dtype=float)), gains["gain"].to_numpy(dtype=float)
    r2 = slope = np.nan
    if y.mean() > 0 and len(y) > 2 and np.ptp(x) > 0:
        line = stats.linregress(x, y)
        r2, slope = line.rvalue**2, line.slope
    return pd.DataFrame([{"r2": r2, "slope": slope, "nouns": len(y), "mean_gain": y.mean()}])
