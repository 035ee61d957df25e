"""The results of the published study beside ours, finding by finding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from symground.analysis.causal import enough
from symground.analysis.statistics import peak
from symground.data.study_figures import STUDY, STUDY_INTERVENTIONS
from symground.reports.formats import FEW, control_cell, corpus_size, number, p_value, signed, stars, with_interval
from symground.reports.sections.cooccurrence import usable_r2
from symground.reports.sections.parts import StudyResults, last_checkpoints

_MIDDLE = STUDY["middle"]
#: The study does not say from where its layers count. Here they are taken to count from 1.
FROM = 1
#: The study's middle layers, as a part of the depth from 0 to 1.
MIDDLE = ((_MIDDLE["first"] - FROM) / _MIDDLE["layers"], (_MIDDLE["last"] - FROM + 1) / _MIDDLE["layers"])
#: The smallest fall of R² from its peak that counts; differences between seeds and nouns are smaller.
_FALLEN = 0.05
#: A control has no effect if it changes the surprisal by less than this share of the heads' effect (the study: 0.08).
_NOTHING = 0.1

_GAIN = "matched falls below mismatched"
_SAID = {True: "agrees", False: "**does not**"}
_NO_GAIN, _NO_HEADS, _NO_CONTROL = (f"no {what} to judge it by" for what in ("gain", "heads", "control"))

Tables = dict[str, pd.DataFrame]


def tables(study: StudyResults, models: Sequence[str], layers: Mapping[str, int]) -> Tables:
    """The results of a study in the form of the published ones.

    Args:
        study: a study with its tables.
        models: its models, in the order of the tables.
        layers: model → its number of layers.

    Returns:
        name → table; a table is empty if its analysis was not run.

        - curves: the table of `symground.analysis.over_training`;
        - r2, and r2_peak: its peak and its last value;
        - layers: saliency from the ENV noun into the prediction, by layer and checkpoint, and its share of all layers;
        - heads: aggregate heads per example and their mean layer;
        - interventions: a row per model, step and denominator, over seeds;
        - findings: the published findings, their figures and ours; agrees: whether they agree, None if that cannot be
          judged; lacking: what is missing then (a gain, heads, or other heads to compare with).
    """
    curves = _ordered(study.training, models)
    usable = usable_r2(study)
    found = {
        "curves": curves, "r2": _ordered(_mean_r2(usable), models), "r2_peak": _ordered(peak(usable), models),
        "layers": _ordered(_layers(study.results["saliency"], layers), models),
        "heads": _ordered(_heads(study, layers), models),
        "interventions": _ordered(_interventions(study.results["interventions"], layers), models),
    }  # fmt: skip
    return {
        **found,
        "findings": _judged(found),
    }


def _ordered(frame: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    chosen = frame[frame["model"].isin(models)]
    by = [name for name in ("denominator", "step", "layer") if name in chosen]
    place = {model: i for i, model in enumerate(models)}
    return chosen.sort_values(["model", *by], key=lambda c: c.map(place) if c.name == "model" else c, ignore_index=True)


def _mean_r2(r2: pd.DataFrame) -> pd.DataFrame:
    numbers = ["r2", "r2_low", "r2_high", "slope", "partial_r2", "mean_gain"]
    return r2.groupby(["model", "step"], as_index=False)[numbers].mean()


def _layers(saliency: pd.DataFrame, layers: Mapping[str, int]) -> pd.DataFrame:
    """model, step, layer, saliency (nats, mean over seeds), share of all layers' sum, seeds."""
    if saliency.empty:
        return pd.DataFrame(columns=["model", "step", "layer", "saliency", "share", "seeds"])
    of_noun = saliency[(saliency["region"] == "env") & saliency["model"].isin(list(layers))]
    mean = of_noun.groupby(["model", "step", "layer"])["value"].agg(["mean", "size"]).reset_index()
    mean = mean.rename(columns={"mean": "saliency", "size": "seeds"})
    total = mean.groupby(["model", "step"])["saliency"].transform("sum")
    return mean.assign(share=mean["saliency"] / total)[["model", "step", "layer", "saliency", "share", "seeds"]]


def _heads(study: StudyResults, layers: Mapping[str, int]) -> pd.DataFrame:
    """model, step, denominator, aggregate heads per example, their mean layer and depth, seeds."""
    columns = ["model", "step", "denominator", "heads_per_example", "mean_layer", "depth", "seeds"]
    saliency = study.results["saliency"]
    if saliency.empty:
        return pd.DataFrame(columns=columns)
    runs = saliency.groupby(["model", "seed", "step"], as_index=False)["examples"].first()
    of_step = runs.groupby(["model", "step"]).agg(examples=("examples", "sum"), seeds=("seed", "size")).reset_index()
    heads = study.results.at("heads", sorted(set(runs["step"].tolist())))
    heads = heads[(heads["kind"] == "aggregate") & heads["model"].isin(list(layers))]
    grouped = heads.groupby(["model", "step", "denominator"])["layer"].agg(["mean", "size"]).reset_index()
    found = grouped.merge(of_step, on=["model", "step"])
    found = found.assign(heads_per_example=found["size"] / found["examples"], mean_layer=found["mean"])
    return found.assign(depth=_depth(found["mean_layer"], found["model"].map(layers).astype(float)))[columns]


def _depth(layer: Any, layers: Any) -> Any:
    """The depth of the middle of a layer: 0 is below the first layer, 1 above the last. Numbers or columns."""
    return (layer + 0.5) / layers


def _interventions(table: pd.DataFrame, layers: Mapping[str, int]) -> pd.DataFrame:
    """A row per model, step and denominator, with means over seeds.

    p is the largest of the seeds' p. control_sd is the standard deviation over draws, mean over seeds. short is the
    share of the examples with too few other heads to draw from, the largest over seeds.
    """
    columns = [
        "model", "step", "denominator", "heads_per_example", "mean_layer", "depth", "intervened", "control",
        "control_sd", "original", "p", "short", "examples", "draws", "seeds",
    ]  # fmt: skip
    if table.empty:
        return pd.DataFrame(columns=columns)
    usual = table[(table["kind"] == "aggregate") & (table["span"] == 0) & table["model"].isin(list(layers))]
    grouped = usual.assign(short=usual["short"] / usual["examples"]).groupby(["model", "step", "denominator"])
    numbers = ["heads_per_example", "mean_layer", "intervened", "control", "control_sd", "original"]
    found = grouped[numbers].mean()
    found = found.assign(
        p=grouped["p"].max(), short=grouped["short"].max(),
        examples=grouped["examples"].first(), draws=grouped["draws"].first(), seeds=grouped.size(),
    ).reset_index()  # fmt: skip
    return found.assign(depth=_depth(found["mean_layer"], found["model"].map(layers).astype(float)))[columns]


def _judged(found: Tables) -> pd.DataFrame:
    gains = pd.DataFrame(_gains(found), columns=["finding", "model", "study", "ours", "agrees", "lacking"])
    more = pd.DataFrame(_findings(found), columns=gains.columns).astype({"agrees": object})
    linked = gains.loc[gains["agrees"] & (gains["finding"] == _GAIN), "model"]
    more.loc[~more["model"].isin(linked), ["agrees", "lacking"]] = [None, _NO_GAIN]
    return pd.concat([gains.astype({"agrees": object}), more], ignore_index=True)


def _gains(found: Tables) -> Iterator[dict[str, Any]]:
    """The study's first finding, which the others presuppose, for each model."""
    for row in last_checkpoints(found["curves"], "model").to_dict("records"):
        lstm = row["model"].startswith("lstm")
        ours = f"gain {with_interval(row['gain'], row['gain_low'], row['gain_high'])} nats, {_p(row['p_holm'])}"
        different = row["p_holm"] < STUDY["p"] and row["gain"] > 0
        yield {
            "finding": "no difference between matched and mismatched" if lstm else _GAIN,
            "model": row["model"], "study": STUDY["words"]["lstm"] if lstm else f"p < {STUDY['p']}", "ours": ours,
            "agrees": row["p_holm"] >= 0.05 if lstm else different, "lacking": "",
        }  # fmt: skip


def _findings(found: Tables) -> Iterator[dict[str, Any]]:
    """The study's other findings, for each model."""
    for row in found["r2_peak"].dropna(subset="peak").to_dict("records"):
        if row["model"].startswith("lstm"):
            continue  # the study does not report the R² of an LSTM
        yield {
            "finding": "R² on co-occurrence rises early, then falls while the gain grows", "model": row["model"],
            "study": STUDY["words"]["r2"],
            "ours": f"{_r2_at(found, row['model'], row['peak_step'])} at step {row['peak_step']:,.0f}, "
            f"{_r2_at(found, row['model'], row['last_step'])} at the end",
            "agrees": row["fall"] > _FALLEN and row["peak_step"] < row["last_step"], "lacking": "",
        }  # fmt: skip
    for model, part in last_checkpoints(found["layers"], "model").groupby("model", sort=False):
        centre = float((part["share"] * [_depth(layer, len(part)) for layer in part["layer"]]).sum())
        most = int(part["layer"].to_numpy()[part["share"].to_numpy().argmax()])
        yield {
            "finding": "saliency from the ENV noun concentrates in middle layers", "model": model,
            "study": f"layers {_MIDDLE['first']}–{_MIDDLE['last']} of {_MIDDLE['layers']}: "
            "half to three quarters of the depth",
            "ours": f"centre at {centre:.2f} of the depth; most in layer {most} of 0 to {len(part) - 1}",
            "agrees": MIDDLE[0] <= centre <= MIDDLE[1], "lacking": "",
        }  # fmt: skip
    table = found["interventions"]
    then, now = (STUDY_INTERVENTIONS.iloc[at] for at in (0, -1))
    for (name, denominator), part in table.groupby(["model", "denominator"], sort=False):
        rows: list[dict[Any, Any]] = part.to_dict("records")
        first, last = rows[0], rows[-1]
        whose = "of GPT-2: " if str(name).startswith("mamba2") else ""
        there = last["heads_per_example"] > 0
        yield {
            "finding": f"aggregate heads ({denominator}) grow in number", "model": name,
            "study": f"{whose}{number(then['heads per example'])} → {number(now['heads per example'])} per example",
            "ours": f"{number(first['heads_per_example'])} → {number(last['heads_per_example'])} per example",
            "agrees": last["heads_per_example"] > first["heads_per_example"], "lacking": "",
        }  # fmt: skip
        yield {
            "finding": f"they ({denominator}) are in the middle layers", "model": name,
            "study": f"{whose}mean layer {number(now['mean layer'])} of {STUDY['interventions']['layers']}",
            "ours": f"mean layer {number(last['mean_layer'])}, {number(last['depth'])} of the depth",
            "agrees": MIDDLE[0] <= last["depth"] <= MIDDLE[1] if there else None, "lacking": "" if there else _NO_HEADS,
        }  # fmt: skip
        effect, control = last["intervened"] - last["original"], last["control"] - last["original"]
        enough_controls = enough(last["short"]) and not np.isnan(control)
        lacking = _NO_HEADS if not there else "" if enough_controls else _NO_CONTROL
        yield {
            "finding": f"silencing them ({denominator}) raises matched surprisal, silencing others does not",
            "model": name,
            "study": f"{whose}{_signed(now['intervened'] - now['original'])}***, "
            f"others {_signed(now['control'] - now['original'])}",
            "ours": f"{_signed(effect)}{stars(last['p'])}, {f'others {_signed(control)}' if enough_controls else FEW}",
            "agrees": None if lacking else last["p"] < STUDY["p"] and abs(control) < _NOTHING * effect,
            "lacking": lacking,
        }  # fmt: skip


def _r2_at(found: Tables, model: str, step: float) -> str:
    r2 = found["r2"]
    (row,) = r2[(r2["model"] == model) & (r2["step"] == step)].to_dict("records")
    return with_interval(row["r2"], row["r2_low"], row["r2_high"])


def _signed(value: float) -> str:
    return signed(value).replace("-", "−")


def _p(value: float) -> str:
    shown = p_value(value)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def markdown(found: Tables, about: Mapping[str, Any]) -> str:
    """The tables as Markdown, beside the published numbers."""
    corpus, tokens = about["corpus"], about["tokens_per_step"]
    lines = [
        f"# {about['recipe']}: the study's results and ours",
        "",
        f"{corpus_size(corpus)}; vocabulary {corpus['vocabulary']:,}; {about['nouns']} nouns × "
        f"{about['contexts']} contexts. Training reads the corpus "
        f"{about['steps'] * tokens / corpus['tokens']:.1f} times. Layers count from 0; the study's "
        "stand as it prints them. Surprisal is in nats.",
        *_cautions(about),
        "",
        "## What agrees",
        "",
        "| finding of the study | model | the study | here | |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['finding']} | {row['model']} | {row['study']} | {row['ours']} | "
        f"{row['lacking'] or _SAID[row['agrees']]} |"
        for row in found["findings"].to_dict("records")
    ]
    last = last_checkpoints(found["curves"], "model")
    there = STUDY["interventions"]["layers"]
    *steps, final = (f"{step // 1000}k" for step in STUDY["matched"]["steps"])
    lines += [
        "", "## Surprisal at the last checkpoint", "",
        "| model | parameters | tokens | matched | mismatched | gain [95 % over nouns] | p (Holm) | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in last.to_dict("records"):
        gain = with_interval(row["gain"], row["gain_low"], row["gain_high"])
        surprisals = f"{number(row['matched'])} | {number(row['mismatched'])}"
        lines.append(
            f"| {row['model']} | {about['sizes'][row['model']]:,} | {row['step'] * tokens:,} | {surprisals} | {gain} | "
            f"{p_value(row['p_holm'])} | {row['seeds']} |"
        )
    lines += [
        "",
        f"The study's matched surprisal, its 12-layer GPT-2 at steps {', '.join(steps)} and {final} (82 M tokens): "
        f"{', '.join(map(number, STUDY['matched']['surprisal']))}.",
        "",
        "## Interventions",
        "",
        "| model | step | share of | heads | mean layer | depth | intervened | control | original |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| *the study, GPT-2 of {there} layers* | {row['step']:,.0f} | ? | {number(row['heads per example'])} | "
        f"{number(row['mean layer'])} | {_depth(row['mean layer'] - FROM, there):.2f} | "
        f"{number(row['intervened'])}*** | {number(row['control'])} | {number(row['original'])} |"
        for row in STUDY_INTERVENTIONS.to_dict("records")
    ]
    lines += [
        f"| {row['model']} | {row['step']:,} | {row['denominator']} | {number(row['heads_per_example'])} | "
        f"{number(row['mean_layer'])} | {number(row['depth'])} | {number(row['intervened'])}{stars(row['p'])} | "
        f"{control_cell(row | {'examples': 1})} | {number(row['original'])} |"
        for row in found["interventions"].to_dict("records")
    ]
    lines += [
        "",
        "*** p < 0.001, ** p < 0.01, * p < 0.05: the largest p over seeds of a test paired over examples. The control "
        f"silences as many random other heads (± standard deviation over draws). It says “{FEW}” if more than a tenth "
        "of a seed's examples had fewer heads left to draw from than were silenced. The study does not say whether its "
        f"layers count from 0 or 1; its depth here is that of layers that count from {FROM}.",
        "",
        "## The report's summary",
        "",
        *(f"- {line}" for line in about["summary"]),
    ]
    return "\n".join([*lines, ""])


def _cautions(about: Mapping[str, Any]) -> list[str]:
    """The limits of what a small corpus, or images of this kind, can show."""
    said = []
    if about["corpus"].get("documents_with_image"):
        images, patches = about["corpus"]["documents_with_image"], about["corpus"]["patches"]
        of = "patch embeddings of photographs"
        if about.get("stand_ins"):
            of = (
                "stand-ins: patches that show the nouns of the caption and nothing else. They test the link from "
                "patches to words, and not vision"
            )
        said.append(f"Scenes are {images:,} images of {patches} patches each, {of}.")
    if about["steps"] * about["tokens_per_step"] > 2 * about["corpus"]["tokens"]:
        said.append(
            "A corpus that is read several times is partly memorised. A gain still shows that the link was learnt, but "
            "no gain does not show that it cannot be learnt."
        )
    return ["", " ".join(said)] if said else []
