"""The effect of the scene in a mixed-effects model, with nouns, contexts and seeds as random effects."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from symground.errors import require

_VARYING = ("target", "context", "seed")


def mixed_effects(gains: pd.DataFrame) -> dict[str, Any]:
    """The mean gain of one model and checkpoint, with crossed random intercepts of nouns, contexts and seeds.

    gain ~ 1 + (1 | target) + (1 | context) + (1 | seed) is fitted by restricted maximum likelihood. gain is the mean
    mismatched surprisal of a noun in a context minus its matched one.

    Args:
        gains: one model and step of the results' table "contexts": seed, context, target, gain (nats).

    Returns:
        gain, the fixed effect in nats; low and high, its 95 % interval; se; p, of Wald's test; sd_target, sd_context
        and sd_seed, the standard deviations of the random effects, NaN if there is only one level; sd_rest, that of
        the residuals; targets, contexts and seeds, their numbers; converged. If the gains vary too little for a fit,
        the numbers are NaN and converged is False.

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
    # Crossed effects in statsmodels: one group contains everything, and each effect is a component of its variance.
    model = models.mixedlm(
        "gain ~ 1", gains, groups=np.zeros(len(gains)), re_formula="0",
        vc_formula={name: f"0 + C({name})" for name in varying},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a variance of 0, which is a valid result
        try:
            fitted = model.fit(reml=True, method=["lbfgs", "powell"])
        except np.linalg.LinAlgError:  # the information matrix may be singular if gains hardly vary
            numbers = ("gain", "low", "high", "se", "p", *(f"sd_{name}" for name in _VARYING), "sd_rest")
            sizes = {f"{name}s": count for name, count in counts.items()}
            return {**dict.fromkeys(numbers, np.nan), **sizes, "converged": False}
    low, high = fitted.conf_int().loc["Intercept"]
    found = {"gain": float(fitted.params["Intercept"]), "low": float(low), "high": float(high)}
    found |= {"se": float(fitted.bse["Intercept"]), "p": float(fitted.pvalues["Intercept"])}
    spread = dict.fromkeys(_VARYING, np.nan)
    # fitted.vcomp is in the order of these names.
    spread |= {name: float(np.sqrt(v)) for name, v in zip(model.exog_vc.names, fitted.vcomp, strict=True)}
    return {
        **found, **{f"sd_{name}": value for name, value in spread.items()}, "sd_rest": float(np.sqrt(fitted.scale)),
        **{f"{name}s": count for name, count in counts.items()}, "converged": bool(fitted.converged),
    }  # fmt: skip
