"""Detecting that the model is about to name something that is not in the scene, by the flow of its aggregate heads.

For comparison, two detectors read only the output: the probability of the model's choice and the entropy of its
distribution. Two others read how much attention the noun or the image gets, without a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import stats
from transformers import PreTrainedModel

from symground.analysis.heads.finding import DENOMINATORS, HeadSet, attended, head_shares
from symground.analysis.heads.selection import halves
from symground.analysis.probing import AMONG, Asked, check_fits, choices
from symground.analysis.reading import attention
from symground.analysis.statistics import resampled
from symground.analysis.tracing import trace
from symground.display import as_table, as_text
from symground.errors import choice, flag, integer, number, require
from symground.models import mixers

Values = NDArray[np.float64]
#: Detector → the columns that it reads.
DETECTORS = {
    "flow": ("flow",),
    "max probability": ("probability",),
    "entropy": ("entropy",),
    "attention": ("attention",),
    "attention of the heads": ("head_attention",),
    "probability and entropy": ("probability", "entropy"),
    "all three": ("flow", "probability", "entropy"),
}
_BINS = 10
#: The scores of detectors that cannot be evaluated.
_NONE = dict.fromkeys(("auroc", "auroc_low", "auroc_high", "brier", "brier_base", "ece"), np.nan)
#: The layers of the visual attention ratio, as shares of the depth: 5 to 18 of LLaVA-1.5's 32.
_MIDDLE = (5 / 32, 19 / 32)


class Monitored(NamedTuple):
    """The scores of the detectors, and how well they separate wrong from right choices."""

    examples: pd.DataFrame
    """context, noun, wrong (bool), flow, probability, entropy, attention, head_attention, half, and each detector's
    probability of wrong."""
    detectors: pd.DataFrame
    """See :func:`monitor`."""
    calibration: pd.DataFrame
    """detector, bin, predicted and observed (shares of wrong choices), count: by tenths of the predicted share."""

    def __repr__(self) -> str:
        return as_text("Monitored", self._shown())

    def _repr_html_(self) -> str:
        return as_table("Monitored", self._shown())

    def _shown(self) -> dict[str, object]:
        found = self.detectors
        rows: dict[str, object] = {
            "examples": f"{len(self.examples)}, {int(self.examples['wrong'].sum())} of them wrong"
        }
        columns = (found[name] for name in ("detector", "auroc", "auroc_low", "auroc_high", "note"))
        for name, auroc, low, high, note in zip(*columns, strict=True):
            shown = f"AUROC {auroc:.3f} [{low:.3f}, {high:.3f}]"
            rows[name] = note if np.isnan(auroc) else f"{shown}; {note}" if note else shown
        return rows


def monitor(
    model: PreTrainedModel,
    probes: Asked,
    *,
    among: str = "targets",
    denominator: str = "row",
    threshold: float = 0.30,
    seed: int = 0,
    batch_size: int = 64,
    checkpoint: bool = False,
) -> Monitored:
    """Detect the examples whose likeliest word is not in the scene, on contexts that nothing was fitted to.

    The contexts are split into halves. The heads for one half are selected on the other: those whose mean share of flow
    from the ENV noun reaches the threshold, or else the one with the largest share. The logistic curve from a
    detector's score to a probability is fitted on the other half too. The score "flow" is the mean share of the
    selected heads. It is traced from the model's own choice, since no target is known when a model generates. The score
    "attention" is the visual attention ratio: what the prediction position attends to the ENV noun (or the image), the
    mean over heads, summed over layers 5 to 18 of 32, in other models those of the same depth. "attention of the heads"
    is the mean of the same over the selected heads.

    Args:
        model: attached, with mixers, in evaluation.
        probes: their matched examples are used; at least two contexts.
        among: the words that the model chooses from: "targets", the target words, or the whole "vocabulary".
        denominator: of the shares, "row" or "matrix".
        threshold: the smallest mean share.
        seed: of the halves and the intervals.
        batch_size: examples per pass.
        checkpoint: as for :func:`symground.trace`.

    Returns:
        examples, detectors and calibration. detectors has a row per detector, with the columns

        - detector;
        - auroc: the probability that the detector scores a wrong choice above a right one; auroc_low, auroc_high: its
          bootstrap interval over examples (percentiles, 95 %);
        - brier: the mean squared error of the probabilities; brier_base: that of the constant share of wrong choices;
        - ece: the expected calibration error in ten bins;
        - wrong, examples, contexts, nouns; heads: the number of selected heads, mean of the halves;
        - note: "", or why the numbers or their intervals are NaN (in a half of the contexts all choices are right, or
          all are wrong), and whether no head reaches the threshold.

    Raises:
        ValueError: fewer than two contexts, an unknown value of among, or what trace refuses.

    Source: Hanley and McNeil 1982 (AUROC), Brier 1950, Naeini et al. 2015 (ECE), Jiang et al. 2025 (visual attention
    ratio, arXiv 2411.16724).
    """
    mixers(model)
    check_fits(model, probes, images=True)
    among, denominator = choice("among", among, AMONG), choice("denominator", denominator, DENOMINATORS)
    threshold, seed = number("threshold", threshold, "(0, 1]"), integer("seed", seed, 0)
    batch_size, checkpoint = integer("batch_size", batch_size, 1), flag("checkpoint", checkpoint)
    examples = probes.matched()
    found = choices(model, examples, among, batch_size=batch_size)
    matched, own = (
        trace(model, x, saliency=False, batch_size=batch_size, checkpoint=checkpoint)
        for x in (probes, examples.with_words(found.words))
    )
    half = halves(matched, seed)
    shares = [head_shares(traced, "aggregate", denominator) for traced in (matched, own)]
    looks = attended(attention(model, examples, rows=None, batch_size=batch_size))
    flow, head_attention, heads, below = np.empty(len(half)), np.empty(len(half)), list[int](), False
    for first in (True, False):
        of_half, weaker = _strongest(shares[0][half != first], threshold)
        below = below or weaker
        for into, of in ((flow, shares[1]), (head_attention, looks)):
            into[half == first] = _mean_share(of[half == first], of_half)
        heads.append(len(of_half))
    table = pd.DataFrame(
        {
            "context": examples.context, "noun": examples.noun, "wrong": ~found.right, "flow": flow,
            "probability": found.probability, "entropy": found.entropy, "attention": _ratio(looks),
            "head_attention": head_attention, "half": half.astype(int),
        }
    )  # fmt: skip
    rows, bins, why = [], [], _why(table["wrong"].to_numpy(), half, among)
    for name, columns in DETECTORS.items():
        table[name if name not in table else f"p_{name}"] = predicted = _predicted(table, list(columns))
        scores = _NONE if why else _scores(predicted, table["wrong"].to_numpy(), seed)
        rows.append({"detector": name, **scores})
        bins.append(_bins(predicted, table["wrong"].to_numpy()).assign(detector=name))
    counts: dict[str, Any] = {
        "wrong": int(table["wrong"].sum()), "examples": len(table), "contexts": len(probes.contexts),
        "nouns": len(probes.nouns), "heads": float(np.mean(heads)), "among": among, "denominator": denominator,
    }  # fmt: skip
    counts["note"] = why
    if not why and bool(pd.DataFrame(rows)["auroc_low"].isna().any()):
        counts["note"] = f"no interval: in some resamples of {len(table)} choices all are right, or all are wrong"
    if below:
        said = f"no head's mean share of flow reaches {threshold:g} in a half of the contexts; its strongest is taken"
        counts["note"] = "; ".join(filter(None, (counts["note"], said)))
    return Monitored(table, pd.DataFrame(rows).assign(**counts), pd.concat(bins, ignore_index=True))


def _strongest(shares: xr.DataArray, threshold: float) -> tuple[HeadSet, bool]:
    """The heads whose mean share reaches the threshold, else the one with the largest; and whether it is below."""
    mean = shares.mean("example").fillna(0.0)
    chosen = (mean >= threshold).values
    below = not chosen.any()
    if below:
        chosen = np.arange(mean.size).reshape(mean.shape) == int(mean.values.argmax())
    return frozenset((int(i), int(j)) for i, j in zip(*np.nonzero(chosen), strict=True)), below  # indices, not labels


def _ratio(looks: xr.DataArray) -> Values:
    """[N] the sum over the middle layers of the mean over heads."""
    depth = np.arange(looks.sizes["layer"]) / looks.sizes["layer"]
    middle = (depth >= _MIDDLE[0]) & (depth < _MIDDLE[1])
    of_layers = looks.mean("head").values  # heads that a layer lacks are NaN, and left out
    ratio: Values = of_layers[:, middle if middle.any() else slice(None)].sum(1)
    return ratio


def _mean_share(shares: xr.DataArray, heads: HeadSet) -> Values:
    mean: Values = np.mean([shares.values[:, i, j] for i, j in sorted(heads)], axis=0)
    return mean


def _predicted(table: pd.DataFrame, columns: Sequence[str]) -> Values:
    """[N] probability of a wrong choice; the curve for each half is fitted on the other."""
    models = require("statsmodels.api", "calibration")
    predicted, values = np.full(len(table), np.nan), table[list(columns)].to_numpy(float)
    wrong, half = table["wrong"].to_numpy(float), table["half"].to_numpy()
    for one in (0, 1):
        to_predict, to_fit = half == one, half != one
        if np.ptp(wrong[to_fit]) == 0:
            predicted[to_predict] = wrong[to_fit].mean()
            continue
        # Standardised by the other half too, so that nothing is fitted on this half.
        centre, spread = values[to_fit].mean(0), values[to_fit].std(0)
        seen = models.add_constant((values - centre) / np.where(spread > 0, spread, 1.0), has_constant="add")
        # A little shrinkage: if a detector separates the classes without error, the curve would be infinitely steep.
        curve = models.Logit(wrong[to_fit], seen[to_fit])
        # No interval of it is used, and of few examples the inverse that it needs may not exist.
        curve.cov_params_func_l1 = lambda *_, size=seen.shape[1]: np.full((size, size), np.nan)
        with np.errstate(over="ignore"):  # of a steep curve, whose end is 0
            fitted = curve.fit_regularized(alpha=0.1, disp=0)
        predicted[to_predict] = fitted.predict(seen[to_predict])
    return predicted


def _why(wrong: NDArray[np.bool_], half: NDArray[np.bool_], among: str) -> str:
    """Why no detector can be evaluated, or "" if they can be."""
    if _alike(wrong):
        what = "wrong" if wrong.any() else "right"
        hint = '; among="targets" chooses among the target words' if among != "targets" and wrong.any() else ""
        return f"NaN: all {len(wrong)} choices are {what}, so there are none to tell apart{hint}"
    one = next((of_half for of_half in (wrong[half], wrong[~half]) if _alike(of_half)), None)
    if one is None:
        return ""
    what = "wrong" if one.any() else "right"
    return f"NaN: all {len(one)} choices in one half of the contexts are {what}, so no curve can be fitted there"


def _alike(wrong: NDArray[np.bool_]) -> bool:
    return bool(wrong.all() or not wrong.any())


def _scores(predicted: Values, wrong: NDArray[np.bool_], seed: int) -> dict[str, float]:
    values = np.stack([predicted, wrong.astype(float)], -1)
    low, high = resampled(values, _auroc, seed=seed)
    bins = _bins(predicted, wrong)
    ece = (bins["count"] * (bins["predicted"] - bins["observed"]).abs()).sum() / bins["count"].sum()
    return {
        "auroc": float(_auroc(values[None])[0, 0]), "auroc_low": float(low[0]), "auroc_high": float(high[0]),
        "brier": float(((predicted - wrong) ** 2).mean()), "brier_base": float(wrong.mean() * (1 - wrong.mean())),
        "ece": float(ece),
    }  # fmt: skip


def _auroc(rows: Values) -> Values:
    """AUROC [M,1] of [M,n,2] (a detector's score, 1 for a wrong choice), by ranks as Mann and Whitney's U."""
    ranks, wrong = stats.rankdata(rows[..., 0], axis=1), rows[..., 1]
    ones = wrong.sum(1)
    zeros = wrong.shape[1] - ones
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Values = ((ranks * wrong).sum(1) - ones * (ones + 1) / 2) / (ones * zeros)
    return share[:, None]


def _bins(predicted: Values, wrong: NDArray[np.bool_]) -> pd.DataFrame:
    place = np.minimum((predicted * _BINS).astype(int), _BINS - 1)
    frame = pd.DataFrame({"bin": place, "predicted": predicted, "observed": wrong.astype(float)})
    grouped = frame.groupby("bin")
    bins: pd.DataFrame = grouped[["predicted", "observed"]].mean().assign(count=grouped.size()).reset_index()
    return bins
