"""The captions of the report: below its figures and above its tables."""

from __future__ import annotations

from collections.abc import Mapping

FIGURES = {
    "surprisal": (
        "Surprisal of a spoken noun (vertical, nats, mean over nouns) at each training step (horizontal), a panel for "
        "each model. Matched: the scene has the same noun. Mismatched: it has another noun. The bands are {bands}."
    ),
    "gain": (
        "Grounding information gain (vertical: mismatched minus matched surprisal, nats, mean over nouns) at each "
        "training step (horizontal), a line for each model. The bands are {bands}."
    ),
    "emergence": (
        "The training step from which the gain stays above 1 nat (horizontal). Each row is a category of nouns from "
        "the CDI, a checklist of early words. Each point is a noun. The vertical mark is the step of the category's "
        "mean gain, and the bar is its 95 % bootstrap interval over the category's nouns. A noun or category whose "
        "gain does not stay above 1 nat is not drawn."
    ),
    "r2": (
        "How much of the gain co-occurrence explains: R² (vertical) at each training step (horizontal). At each step, "
        "the nouns' gains are regressed on the logarithm of their co-occurrence counts: how often a noun is in the "
        "scene and in the speech nearby. The lines are means over seeds, and the bands are 95 % bootstrap intervals "
        "over nouns. ▲ marks a rising slope, ▼ a falling one. A step is drawn only if the 95 % interval of the mean "
        "gain is above 0; without a gain, R² means nothing."
    ),
    "partial-r2": (
        "How much of the gain co-occurrence explains beyond frequency: partial R² (vertical) at each training step "
        "(horizontal). The logarithms of a noun's frequencies in the scene and in speech leave a part of the gain's "
        "variance unexplained; partial R² is the share of this part that the co-occurrence count explains. Lines, "
        "bands and the steps drawn are those of R²."
    ),
    "saliency": (
        "Layer saliency from the ENV noun (the noun in the scene) into the prediction position, at each training step "
        "(horizontal) and layer (vertical). A column reaches halfway to the checkpoints beside it, "
        "so it is as wide as its stretch of training. The colour is |Σₕ Aₕ ∘ ∂L/∂Aₕ| in nats: attention weights times "
        "the gradient of the surprisal L on them, summed over heads h. It is a mean over matched examples and seeds."
    ),
    "saliency-regions": (
        "Layer saliency into the prediction position (vertical, nats) by layer (horizontal) at the last "
        "checkpoint. The lines are the regions that it comes from: the ENV noun, the rest of its utterance, and the "
        "rest of the context. It is a mean over matched examples and seeds."
    ),
    "lens": (
        "Gain that a lens reads (colour, nats) at each training step (horizontal) and depth (vertical). The tuned lens "
        "has an affine translator for each depth, fitted to the model's final distribution; the logit lens has none."
    ),
    "lens-depths": (
        "Gain that a lens reads (vertical, nats) by depth (horizontal). The bands are 95 % intervals over nouns. The "
        "tuned lens has an affine translator for each depth, fitted to the model's final distribution; the logit lens "
        "has none."
    ),
    "head-counts": (
        "Number of heads per example (vertical) at each training step (horizontal), mean over examples and seeds. "
        "Solid lines count heads by their share of the row, dashed lines by their share of the whole matrix."
    ),
    "shares": (
        "Each point is a head at the last checkpoint of one seed. It compares the head's mean share of flow in matched "
        "examples (vertical) with its share in the same examples with another ENV noun (horizontal). The dashed lines "
        "are the threshold of {threshold}. A head on the diagonal reads the ENV noun whichever noun it is, so its "
        "share is no evidence of grounding; the interventions are the test."
    ),
    "flow-effect": (
        "Does a head's flow predict its effect? Each point is a head. It compares the surprisal that silencing this "
        "head alone adds (vertical, nats) with the head's mean share of the row from the ENV noun (horizontal). The "
        "dashed line is the threshold of {threshold}."
    ),
    "calibration": (
        "How often the choice was wrong (vertical) against how often the detector predicted that it would be "
        "(horizontal), in ten bins; a calibrated detector is on the diagonal. Larger points have more examples. The "
        "figure shows the last checkpoint of one seed."
    ),
    "steering": (
        "How often the model chooses the noun that is in the scene (vertical) when the outputs of the aggregate heads "
        "are multiplied by a factor (horizontal), at the last checkpoint, mean over seeds. Dashed: as many random "
        "heads are multiplied instead, if there were enough to draw from."
    ),
    "beside-gains": (
        "Grounding information gain (vertical, nats, mean over nouns) at each training step (horizontal), a line for "
        "each study and model. The bands are 95 % intervals, over seeds if there are several and over nouns otherwise."
    ),
}

TABLES = {
    "final": (
        "The last checkpoint of each model, in nats. Intervals are 95 %; those over nouns, and the tests, take each "
        "noun's mean over contexts and seeds. p is from a paired t-test, Holm-corrected over the model's checkpoints. "
        "permutation p is from a paired permutation test. d is Cohen's d."
    ),
    "nouns": (
        "Grounding information gain of each noun at the last checkpoint, in nats, mean over seeds. low and high are "
        "its 95 % interval over contexts, computed for each seed and averaged over seeds."
    ),
    "training": (
        "All checkpoints, in nats. The brackets are 95 % intervals over nouns; the download also has those over seeds. "
        "p is Holm-corrected over the model's checkpoints."
    ),
    "emergence": (
        "The training step from which the gain stays above 1 nat, interpolated linearly between checkpoints. low and "
        "high are a 95 % bootstrap interval over nouns. The download also has single nouns, with intervals over their "
        "contexts and seeds."
    ),
    "mixed": (
        "The gain at the last checkpoint (nats) in a mixed-effects model with crossed random intercepts of nouns, "
        "contexts and seeds (REML). This is the gain that remains if all three are samples of larger populations. sd "
        "is the standard deviation of a random effect, in nats."
    ),
    "acquisition": (
        "Do the words that children say earlier emerge earlier? Spearman's correlation over nouns of the emergence "
        "step with the age of acquisition (Wordbank). Nouns that never emerge have the last rank. The 95 % interval "
        "is a bootstrap over nouns."
    ),
    "r2-peak": (
        "The step at which R² is largest, R² at this step and at the last one, and their difference (fall). Slopes "
        "are in nats per unit of the logarithm."
    ),
    "r2": (
        "All checkpoints. R² is of the regression on log co-occurrence, with its 95 % interval over nouns. PMI R² is "
        "of the regression on pointwise mutual information. partial R² controls for both frequencies."
    ),
    "saliency": "Layer saliency into the prediction position by region: all checkpoints, mean over examples, nats.",
    "lens": (
        "Matched and mismatched surprisal that a lens reads at each depth (nats), mean over nouns and seeds. low and "
        "high are the 95 % interval of the gain over nouns."
    ),
    "head-counts": "Number of heads per example, and their mean layer.",
    "common-heads": (
        "The heads found in most examples at the last checkpoint, by their share of the row: the share of the examples "
        "in which a head is found, and its mean share of flow over all examples."
    ),
    "stability": (
        "Are they the same heads? Overlaps are Jaccard indices of two sets of heads: of two examples at the last "
        "checkpoint (mean over pairs), and of one example at the last two checkpoints. Heads of different seeds do not "
        "correspond, so over seeds only their number and mean layer are compared."
    ),
    "shares": (
        "Each head's share of flow, and its null: the share in mismatched examples. The columns are both means, the "
        "95th percentile of the null (the share that 5 % of the mismatched examples exceed), and how often each of the "
        "two reaches the threshold of {threshold}."
    ),
    "strongest": (
        "The surprisal that silencing one head alone adds to matched examples (nats), and its first-order estimate "
        "−⟨Oₕ, ∂L/∂Oₕ⟩. These are the heads with the largest effects at the last checkpoint; the download has all "
        "heads."
    ),
    "flow-effect": (
        "Spearman's correlation of share and effect over all heads. Named heads are those whose mean share reaches "
        "{threshold}; “share of the effect” is their part of the sum of all positive effects."
    ),
    "interventions": (
        "Surprisal of matched examples (mean, nats) if the selected heads are silenced (intervened), if as many "
        "random other heads are silenced (control: mean ± standard deviation over draws), and if none is (original). "
        "*** p < 0.001, ** p < 0.01, * p < 0.05 for intervened against original, paired over examples, corrected over "
        "the rows of a run (Holm). “Span” is the number of tokens after the ENV noun that count as part of it. “Too "
        "few controls” is the number of examples with fewer heads to draw from than were silenced; if these are more "
        "than a tenth, the random heads are not compared."
    ),
    "study": (
        "The same table as published for a 12-layer GPT-2 on CHILDES (arXiv 2510.13796). There, each intervened value "
        "is significant at p < 0.001. It does not say from where its layers count."
    ),
    "grounds": (
        "Do these heads ground the noun, or do they matter for any word? The columns are changes by silencing them, in "
        "nats: of the noun's surprisal after its own scene (matched) and after another (mismatched), of the gain, and "
        "of the surprisal of the rest of the context. The brackets have the changes by as many random heads, if there "
        "were enough to draw from. Heads that ground lower the gain and leave the rest of the context as it was. p of "
        "gain is from a paired t-test over nouns. d is Cohen's d of the matched surprisal over examples, with its 95 % "
        "interval."
    ),
    "monitor": (
        "Can it be detected that the model is about to name something that is not in the scene? AUROC has a 95 % "
        "bootstrap interval over examples. Brier is the score of the detector's probabilities; “Brier of a constant” "
        "is that of one probability for all examples, the share of wrong choices. The flow detector is the aggregate "
        "heads' mean share of flow, traced from the model's own choice. Heads and calibration come from the other half "
        "of the contexts."
    ),
    "steering": (
        "The data of the figure. p is from McNemar's exact test against the unchanged model (factor 1). The heads for "
        "one half of the contexts are found on the other half. “Too few controls” is the number of examples with fewer "
        "other heads to draw from than were multiplied; if these are more than a tenth, the random heads are not "
        "compared."
    ),
    "beside-last": (
        "The last checkpoint of each model, in nats. gain low and high are the 95 % interval over nouns; gain seed "
        "low and high are that over seeds. p is from a paired t-test over nouns, Holm-corrected over the model's "
        "checkpoints. d is Cohen's d."
    ),
    "beside-differences": (
        "The gain in the first study minus the gain in another, at their last checkpoints, over the nouns that both "
        "have (each noun's mean over contexts and seeds). Models are compared by name; if each study has only one "
        "model, these two are compared. low and high are a BCa bootstrap interval (95 %). p is from a paired t-test, "
        "Holm-corrected over these rows. permutation p is from a paired permutation test. d is Cohen's d."
    ),
    "beside-emergence": (
        "The training step from which a model's mean gain stays above 1 nat, with its 95 % bootstrap interval over "
        "nouns. The download also has nouns and categories."
    ),
    "beside-interventions": (
        "Surprisal of matched examples (mean, nats) if the selected heads are silenced (intervened), if as many "
        "random heads are silenced (control), and if none is (original)."
    ),
}

#: Captions for a model that was trained elsewhere, where those above speak of checkpoints or seeds.
_TABLES_ONCE = {
    "final": (
        "Matched and mismatched surprisal and the gain, in nats. Intervals are 95 %; those over nouns, and the tests, "
        "take each noun's mean over contexts. p is from a paired t-test. permutation p is from a paired permutation "
        "test. d is Cohen's d."
    ),
    "nouns": ("Grounding information gain of each noun, in nats. low and high are its 95 % interval over contexts."),
    "mixed": (
        "The gain (nats) in a mixed-effects model with crossed random intercepts of nouns and contexts (REML). This is "
        "the gain that remains if both are samples of larger populations. sd is the standard deviation of a random "
        "effect, in nats."
    ),
    "saliency": "Layer saliency into the prediction position by region: mean over examples, nats.",
    "lens": (
        "Matched and mismatched surprisal that a lens reads at each depth (nats), mean over nouns. low and high are "
        "the 95 % interval of the gain over nouns."
    ),
    "common-heads": (
        "The heads found in most examples, by their share of the row: the share of the examples in which a head is "
        "found, and its mean share of flow over all examples."
    ),
    "stability": (
        "Are they the same heads? The overlap is the Jaccard index of the sets of heads of two examples, mean over "
        "pairs."
    ),
    "strongest": (
        "The surprisal that silencing one head alone adds to matched examples (nats), and its first-order estimate "
        "−⟨Oₕ, ∂L/∂Oₕ⟩. These are the heads with the largest effects; the download has all heads."
    ),
}
_FIGURES_ONCE = {
    "saliency-regions": (
        "Layer saliency into the prediction position (vertical, nats) by layer (horizontal). The lines are the regions "
        "that it comes from: the ENV noun, the rest of its utterance, and the rest of the context. It is a mean over "
        "matched examples."
    ),
    "shares": (
        "Each point is a head. It compares the head's mean share of flow in matched examples (vertical) with its share "
        "in the same examples with another ENV noun (horizontal). The dashed lines are the threshold of {threshold}. "
        "A head on the diagonal reads the ENV noun whichever noun it is, so its share is no evidence of grounding; the "
        "interventions are the test."
    ),
    "calibration": (
        "How often the choice was wrong (vertical) against how often the detector predicted that it would be "
        "(horizontal), in ten bins; a calibrated detector is on the diagonal. Larger points have more examples."
    ),
    "steering": (
        "How often the model chooses the noun that is in the scene (vertical) when the outputs of the aggregate heads "
        "are multiplied by a factor (horizontal). Dashed: as many random heads are multiplied instead, if there were "
        "enough to draw from."
    ),
}


def caption(captions: Mapping[str, str], name: str, of_training: bool) -> str:
    """A caption, of `FIGURES` or `TABLES`, or the one for a model that was trained elsewhere."""
    once = _FIGURES_ONCE if captions is FIGURES else _TABLES_ONCE
    return captions[name] if of_training else once.get(name, captions[name])
