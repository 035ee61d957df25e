"""The words under the report's figures and above its tables."""

from __future__ import annotations

FIGURES = {
    "surprisal": "Matched and mismatched surprisal over training, mean over nouns; bands are {bands}.",
    "gain": "Grounding information gain over training; bands are {bands}.",
    "emergence": (
        "Emergence step of each noun (points), and of the mean of its CDI category with the interval over its "
        "nouns (bars). What never passes is not drawn."
    ),
    "r2": (
        "R² of a noun's gain on the logarithm of how often it stands both in the scene and in speech nearby, "
        "mean over seeds, with its 95 % bootstrap interval over nouns. ▲ rising slope, ▼ falling slope. Drawn "
        "only where the mean gain is above 0 by its 95 % interval; elsewhere it means nothing."
    ),
    "partial-r2": (
        "The same once frequency is controlled: what the count explains of the variance that log frequency in "
        "the scene and in speech leaves."
    ),
    "saliency": (
        "Layer saliency |Σₕ Aₕ ∘ ∂L/∂Aₕ| from the ENV noun into the prediction position, mean over matched "
        "examples and seeds, in nats. Layers count from 0."
    ),
    "saliency-regions": (
        "The same at the last checkpoint, from the ENV noun, from the rest of its utterance, and from the "
        "rest of the context."
    ),
    "lens": (
        "Gain read at each depth over training, by the tuned lens (an affine translator per depth, fitted to "
        "the model's own final distribution) and by the plain logit lens. Depth counts the layers passed: 0 "
        "is the embedding, at the last the model reads itself."
    ),
    "head-counts": (
        "Heads per example over training, mean over examples and seeds; solid by the share of the row, dashed "
        "by the share of the head's whole matrix."
    ),
    "shares": (
        "Each head's mean share of flow in matched examples against the same examples with another ENV noun, "
        "at the last checkpoint, one seed; dashed: 30 %. Heads on the diagonal take from the ENV noun "
        "whatever it is: their share does not tell a grounded noun from another, and what they do must be "
        "asked of the interventions."
    ),
    "flow-effect": (
        "Does flow tell what a head does? Each head's mean aggregate share of the row against its effect when "
        "it alone is silenced; dashed: 30 %."
    ),
    "calibration": (
        "How often the choice was wrong against how often the detector said it would be, in tenths; larger "
        "points are more examples. One seed."
    ),
    "steering": (
        "How often the model's choice is what is in the scene, with the aggregate heads' outputs multiplied "
        "by a factor; dashed: as many random heads, where there were enough to draw from."
    ),
    "beside-gains": "Gain over training; bands are 95 % intervals over seeds where there are several, else over nouns.",
}

TABLES = {
    "final": (
        "The last checkpoint of each model. Intervals and tests are over nouns, each noun its mean over "
        "contexts and seeds; p is the paired t-test's, Holm-corrected over the model's checkpoints, beside it "
        "the paired permutation test's; d is Cohen's."
    ),
    "nouns": (
        "Grounding information gain G(v) of each noun at the last checkpoint, mean over seeds, with its 95 % "
        "interval over contexts (of one seed; the mean of theirs, of several)."
    ),
    "training": "Every checkpoint. low and high: 95 % over nouns; in the download, over seeds too.",
    "emergence": (
        "The step from which the gain stays above 1 nat, between checkpoints by a line; intervals "
        "resample nouns (of a noun, in the download, its contexts and seeds)."
    ),
    "mixed": (
        "The gain at the last checkpoint in a mixed-effects model with crossed random intercepts of nouns, "
        "contexts and seeds (REML): what is left of it where all three are a sample of many. sd: of the "
        "random effects, nats."
    ),
    "acquisition": (
        "Do words that children say earlier emerge earlier? Spearman's correlation over nouns of the "
        "emergence step with the age of acquisition (Wordbank); nouns that never emerge rank last; the "
        "interval resamples nouns."
    ),
    "r2-peak": "Where R² is largest, and what is left of it at the end; slope in nats per unit of the logarithm.",
    "r2": "Every checkpoint. pmi: of a line on pointwise mutual information; partial: frequency controlled.",
    "saliency": "Every checkpoint, layer and region, mean over examples, nats.",
    "lens": (
        "Matched and mismatched surprisal read at each depth, mean over nouns and seeds, and the 95 % "
        "interval of the gain over nouns."
    ),
    "head-counts": "Heads per example and their mean layer (from 0).",
    "common-heads": (
        "Heads found in most examples at the last checkpoint, by the share of the row: in how many of the "
        "examples, and their mean share over all of them."
    ),
    "stability": (
        "Are they the same heads? Jaccard's overlap of the sets of two examples at the last checkpoint, mean "
        "over pairs; of an example's set at the last checkpoint and at the one before. Over seeds heads have "
        "no names in common: their number and mean layer have."
    ),
    "shares": (
        "Each head's share and its null, mismatched examples: means, the share that 5 % of those pass, and in "
        "how many of the examples it reaches the threshold."
    ),
    "strongest": (
        "What silencing one head alone adds to the matched surprisal (nats): the heads with the largest "
        "effect at the last checkpoint, and the first-order estimate −⟨Oₕ, ∂L/∂Oₕ⟩ of the same effect. All "
        "heads are in the download."
    ),
    "flow-effect": (
        "Spearman's correlation over all heads of share and effect, and how much of the effects above 0 is of "
        "the heads whose mean share reaches 30 %."
    ),
    "interventions": (
        "Mean surprisal (nats) of matched probes with each example's own heads silenced, with as many random "
        "other heads silenced (mean ± standard deviation over draws), and untouched. *** p < 0.001, paired "
        "over examples against the original, corrected for the rows of the run (Holm). “Span” is how many "
        "tokens after the ENV noun count as it. “Too few controls” counts examples with fewer heads left to "
        "draw from than selected ones; where they are more than a tenth there is no comparison."
    ),
    "study": "The study's own table: 12-layer GPT-2 on CHILDES (arXiv 2510.13796; each intervened value has ***).",
    "grounds": (
        "Do these heads ground, or do they only matter? What silencing them adds to the surprisal (nats) of "
        "the noun after its own scene (matched) and after another (mismatched), to the gain between the two, "
        "and to the surprisal of the rest of the context; in brackets what the same number of random heads "
        "adds, where there were enough to draw from. Heads that ground take away gain and leave the rest as it "
        "was; p of gain: paired t-test over nouns. d is Cohen's d of the matched surprisal over examples, with "
        "its 95 % interval."
    ),
    "monitor": (
        "Is the model about to name something that is not in the scene? AUROC of each detector [95 %, "
        "bootstrap over examples]; the Brier score of its probabilities beside that of the bare share of "
        "wrong choices; the expected calibration error. Flow: the mean share of the aggregate heads when the "
        "model's own choice is traced. Heads and curves come from the other half of the contexts."
    ),
    "steering": (
        "The same with McNemar's exact test against the model as it is (factor 1). Heads of a half of the "
        "contexts are those that the other half shows. “Too few controls” counts examples with fewer other "
        "heads to draw from; where they are more than a tenth there is no comparison."
    ),
    "beside-last": "The last checkpoint of each.",
    "beside-differences": (
        "The gain at the last checkpoint in the first study minus that in another, of the nouns that both "
        "have (each its mean over contexts and seeds), model by model, or of the two models where each study "
        "has one: mean, bootstrap interval (BCa), paired t-test (Holm over these rows), permutation test, "
        "Cohen's d."
    ),
    "beside-emergence": "The step from which the gain stays above 1 nat. Nouns and categories are in the download.",
    "beside-interventions": "Heads silenced, in the study's form.",
}
