"""The effect of the scene in a mixed-effects model: nouns, contexts and seeds vary, and are a sample of many."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from symground.optional import require

_VARYING = ("target", "context", "seed")


def mixed_effects(gains: pd.DataFrame) -> dict[str, Any]:
    """The mean gain of one model and checkpoint, with crossed random intercepts of nouns, contexts and seeds.

    gain ~ 1 + (1 | target) + (1 | context) + (1 | seed), fitted by restricted maximum likelihood; gain is that of a
    noun in a context: its mean mismatched surprisal minus its matched one.

    Args:
        gains: of the results' table "contexts", one model and step: seed, context, target, gain (nats).

    Returns:
        gain, the fixed effect in nats; low, high, 95 %; se; p, of Wald's test; sd_target, sd_context, sd_seed and
        sd_rest, standard deviations of the random effects and what is left, NaN where there is one only; targets,
        contexts, seeds: how many; converged. NaN and not converged where gains vary too little for a fit.

    Raises:
        ValueError: a column is missing, or fewer than two nouns.

    Source: Baayen, Davidson and Bates 2008 (crossed random effects); statsmodels' MixedLM.
    """
    for column in (*_VARYING, "gain"):
        if column not in gains:
            raise ValueError(f"gains: expected a column {column!r}, got {list(gains.columns)}")
    counts = {name: gains[name].nunique() for name in _VARYING}
    if counts["target"] < 2:
        raise ValueError(f"gains: expected at least two nouns, got {counts['target']}")
    models = require("statsmodels.formula.api", "mixed-effects models")
    varying = [name for name in _VARYING if counts[name] > 1]
    # Crossed effects in statsmodels: one group that holds everything, each effect a component of its variance.
    model = models.mixedlm(
        "gain ~ 1", gains, groups=np.zeros(len(gains)), re_formula="0",
        vc_formula={name: f"0 + C({name})" for name in varying},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where a variance is 0, which is an answer
        try:
            fitted = model.fit(reml=True, method=["lbfgs", "powell"])
        except np.linalg.LinAlgError:  # where gains hardly vary its information matrix may be singular
            numbers = ("gain", "low", "high", "se", "p", *(f"sd_{name}" for name in _VARYING), "sd_rest")
            sizes = {f"{name}s": count for name, count in counts.items()}
            return {**dict.fromkeys(numbers, np.nan), **sizes, "converged": False}
    low, high = fitted.conf_int().loc["Intercept"]
    found = {"gain": float(fitted.params["Intercept"]), "low": float(low), "high": float(high)}
    found |= {"se": float(fitted.bse["Intercept"]), "p": float(fitted.pvalues["Intercept"])}
    spread = dict.fromkeys(_VARYING, np.nan)
    # Its components stand in the order of their names.
    spread |= {name: float(np.sqrt(v)) for name, v in zip(model.exog_vc.names, fitted.vcomp, strict=True)}
    return {
        **found, **{f"sd_{name}": value for name, value in spread.items()}, "sd_rest": float(np.sqrt(fitted.scale)),
        **{f"{name}s": count for name, count in counts.items()}, "converged": bool(fitted.converged),
    }  # fmt: skip
