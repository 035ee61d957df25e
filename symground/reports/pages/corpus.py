"""A page about a corpus: one self-contained HTML file in the study's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from symground.data import env, lan
from symground.files import replacing
from symground.reports.figures import MATCHED, MISMATCHED, CountFormatter, figure_of, svg_of, words_are_no_formulas
from symground.reports.hover import called
from symground.reports.template import render

#: Counts of utterances in the statistics of transcripts → their labels, in the order of the page.
_UTTERANCES = {
    "main_tiers": "all utterances",
    "utterances": "in the corpus: utterances with a word or an event",
    "silent": "without a word or an event: pauses, zeros, dropped events",
    "other_speakers": "by speakers that were not selected",
    "in_left_out_files": "in files with too few ENV tiers, or without a turn",
    "in_set_aside_files": "in files that were set aside",
}

_FILES = {
    "files": "all files",
    "files_kept": "files in the corpus",
    "files_left_out": "files with too few ENV tiers, or without a turn",
    "files_set_aside": "files set aside (listed below)",
    "latin_1": "files read as Latin-1",
    "files_not_read": "files not read: copies, or links to files that were read (listed below)",
}


def corpus_page(
    study: str | Path, statistics: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]],
    nouns: Mapping[str, tuple[str, str]], minimum: int,
) -> Path:  # fmt: skip
    """Write ``corpus.html`` into a study's folder, and return its path. Every word of the corpus is escaped.

    Args:
        study: the folder.
        statistics: the content of the corpus's ``statistics.json``.
        counts: group of documents → token → its count.
        nouns: probed noun → (its token in the scene, its token in speech).
        minimum: the smallest count of a probed noun, as ENV and as LAN.
    """
    study = Path(study)
    chat, visdial, generated = (statistics.get(name) for name in ("chat", "visdial", "generated"))
    scene = "in images" if statistics.get("patches") else "as ENV"
    table = _nouns(counts, nouns, scene)
    settings = (generated or (chat or visdial or {}).get("settings", {})) | statistics.get("images", {})
    page = render(
        "corpus.html.jinja",
        name=study.name,
        statistics=statistics,
        unit="utterance" if chat else "dialogue",
        account=_account(chat, visdial),
        corpora=_corpora(chat, counts, nouns, minimum) if chat else None,
        bars=Markup(_bars(counts)) if chat else None,
        nouns=nouns,
        minimum=minimum,
        table=table,
        scene=scene,
        scatter=Markup(_scatter(table, minimum)),
        skipped=_skipped(chat or visdial),
        settings=pd.DataFrame({"setting": list(settings), "value": [str(value) for value in settings.values()]}),
    )
    path = study / "corpus.html"
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _account(chat: Mapping[str, Any] | None, visdial: Mapping[str, Any] | None) -> pd.DataFrame | None:
    if chat:
        counted = {text: chat[key] for key, text in (_UTTERANCES | _FILES).items()}
    elif visdial:
        counted = {key.replace("_", " "): n for key, n in visdial.items() if isinstance(n, int)}
    else:
        return None
    return pd.DataFrame({"what": list(counted), "how many": [f"{n:,}" for n in counted.values()]})


def _corpora(
    chat: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]], nouns: Mapping[str, tuple[str, str]], minimum: int
) -> pd.DataFrame:
    rows = []
    for name, of_corpus in chat["corpora"].items():
        words = counts.get(name, {})
        scene, speech = _forms(words)
        over = sum(min(words.get(token, 0) for token in both) >= minimum for both in nouns.values())
        rows.append(
            {
                "corpus": name, "files": of_corpus["files"], "in the corpus": of_corpus["files_kept"],
                "set aside": of_corpus["files_set_aside"], "utterances": f"{of_corpus['utterances']:,}",
                "ENV words": f"{scene:,}", "LAN words": f"{speech:,}",
                "ENV": f"{scene / max(scene + speech, 1):.0%}", "nouns": over,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _forms(words: Mapping[str, int]) -> tuple[int, int]:
    """(number of ENV words, number of LAN words)"""
    scene, speech = (sum(n for token, n in words.items() if token.endswith(form("")[1:])) for form in (env, lan))
    return scene, speech


def _nouns(counts: Mapping[str, Mapping[str, int]], nouns: Mapping[str, tuple[str, str]], scene: str) -> pd.DataFrame:
    def total(token: str) -> int:
        return sum(words.get(token, 0) for words in counts.values())

    rows = [{"noun": noun, scene: total(cue), "as LAN": total(word)} for noun, (cue, word) in nouns.items()]
    return pd.DataFrame(rows).sort_values([scene, "noun"], ascending=[False, True])


def _skipped(of_kind: Mapping[str, Any] | None) -> pd.DataFrame | None:
    skipped = (of_kind or {}).get("skipped")
    return pd.DataFrame(skipped) if skipped else None


def _bars(counts: Mapping[str, Mapping[str, int]]) -> str:
    names = sorted(counts, key=lambda name: sum(_forms(counts[name])))
    figure = figure_of(7.4, 0.9 + 0.2 * len(names))
    axes = figure.subplots()
    for offset, form, colour, label in ((0.2, 0, MATCHED, "ENV"), (-0.2, 1, MISMATCHED, "LAN")):
        places = [i + offset for i in range(len(names))]
        axes.barh(places, [_forms(counts[name])[form] for name in names], 0.38, color=colour, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.set(xscale="log", xlabel="words", ylim=(-0.7, len(names) - 0.3))
    axes.grid(visible=False, axis="y")
    _in_digits(axes.xaxis)
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(loc="lower right")
    return svg_of(figure, "bars")


def _scatter(table: pd.DataFrame, minimum: int) -> str:
    figure = figure_of(6.4, 4.6)
    axes = figure.subplots()
    scene = table.columns[1]
    (points,) = axes.loglog(table[scene], table["as LAN"], ".", color=MATCHED, markersize=4)
    called(points, "noun", table["noun"].tolist())
    names = [
        axes.annotate(noun, (x, y), xytext=(2, 2), textcoords="offset points", fontsize=6.5)
        for noun, x, y in table.itertuples(index=False)
    ]
    for line in (axes.axvline, axes.axhline):
        line(minimum, color="#888888", linewidth=0.8, linestyle="--")
    axes.set(xlabel=scene, ylabel="as LAN")
    _in_digits(axes.xaxis, axes.yaxis)
    _only_apart(figure, names)
    return svg_of(figure, "nouns")


def _only_apart(figure: Figure, names: Sequence[Text]) -> None:
    """Remove each name that would overlap an earlier one."""
    with words_are_no_formulas(figure):
        figure.draw_without_rendering()
    kept: list[Bbox] = []
    for name in names:
        place = name.get_window_extent()
        if any(place.overlaps(other) for other in kept):
            name.remove()
        else:
            kept.append(place)


def _in_digits(*logarithmic: Axis) -> None:
    for axis in logarithmic:
        axis.set_major_formatter(CountFormatter())
        axis.set_minor_formatter(CountFormatter())
