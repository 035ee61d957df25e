"""The numbers, tokens and figures of a view, against the trace that it shows."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import symground as sg
from symground.reports.views import packed as packing
from symground.reports.views.panel import panel_of
from symground.reports.views.pieces import REST, pieces_of

WORDS = 300


def model(layers: int = 3, heads: int = 4) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 8 * heads, "num_hidden_layers": layers, "intermediate_size": 32}
    config = LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=heads, initializer_range=0.4)
    return sg.attach(LlamaForCausalLM(config).eval())


def ids(length: int = 12) -> torch.Tensor:
    return torch.randint(5, WORDS, (2, length), generator=torch.Generator().manual_seed(1))


def span(length: int = 12, count: int = 4) -> torch.Tensor:
    return (torch.arange(length) >= length - count).expand(2, -1)


def values(html: str) -> Any:
    return json.loads(re.findall(r'<script type="application/json" id="view-data">(.*?)</script>', html, re.S)[0])


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def rows_in(panel: dict[str, Any]) -> np.ndarray:
    """[R,L,H,T] of a page, NaN where a row is not in it."""
    length = len(panel["tokens"])
    levels, scales = unpacked(panel["rows"], "<i2").reshape(-1, length), unpacked(panel["scales"], "<f4")
    places = unpacked(panel["places"], "<i4")
    rows = np.full((len(places), length), np.nan)
    rows[places >= 0] = levels[places[places >= 0]] * scales[places[places >= 0], None] / 32767
    return rows.reshape(len(panel["targets"]), len(panel["layers"]), panel["heads"], length)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within a level of each row's largest number, of float32."""
    step = np.abs(expected).max(-1, keepdims=True) / 32767
    assert (np.abs(found - expected) <= 1.01 * step + 1e-6).all()


@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("kind", ["per token", "span", "target", "attention", "all rows"])
def test_the_page_has_the_rows_of_the_example(side: str, kind: str) -> None:
    ours, given, mask = model(), ids(), torch.ones(2, 12, dtype=torch.long)
    if side != "none":
        mask[1, slice(0, 4) if side == "left" else slice(9, 12)] = 0
    of_span = torch.zeros(2, 12, dtype=torch.bool)
    of_span[0, 5:7] = of_span[1, 5:9] = True
    traced = {
        "per token": lambda: sg.trace(ours, given, None, mask, span=of_span, per_token=True, rows=True),
        "span": lambda: sg.trace(ours, given, None, mask, span=of_span, rows=True),
        "target": lambda: sg.trace(ours, given, given[:, 0], mask, rows=True),
        "attention": lambda: sg.attention(ours, given, mask),
        "all rows": lambda: sg.attention(ours, given, mask, rows="all", summary=True),
    }[kind]()
    for example in (0, 1):
        (panel,) = values(sg.view(traced, example=example).html)["panels"]
        kept = mask[example].bool().numpy()
        first = int(kept.argmax())
        assert panel["tokens"] == [str(int(i)) for i in given[example][mask[example].bool()]]
        rows = rows_in(panel)
        one = traced.isel(example=example)
        if kind == "per token":
            there = one.prediction.values >= 0
            expected = one.rows.values[there]
            assert [t[2] for t in panel["targets"]] == pytest.approx(one.token_surprisal.values[there], abs=1e-3)
            assert [t[0] for t in panel["targets"]] == [int(p) + 1 - first for p in one.prediction.values[there]]
            assert [t[1] for t in panel["targets"]] == [str(int(i)) for i in given[example][of_span[example]]]
        elif kind in ("span", "target"):
            expected = one.rows.values[None]
            assert panel["targets"][0][2] == pytest.approx(float(one.surprisal), abs=1e-3)
        else:
            row = "row" if "row" in one.dims else "query"
            expected = one.rows.transpose(row, "layer", "head", "key").values
            assert [t[0] + first for t in panel["targets"]] == one.row_position.values.tolist()
        assert panel["signed"] == (kind not in ("attention", "all rows"))
        expected = expected[..., kept]
        if kind != "all rows" or side == "none":  # rows of padding mean nothing
            close(rows, expected)
            of = np.sum if panel["signed"] else np.mean
            for name, sums in (("of_layers", of(expected, 2)), ("of_all", of(of(expected, 2), 1))):
                scales = unpacked(panel[name]["scales"], "<f4")
                levels = unpacked(panel[name]["rows"], "<i2").reshape(len(scales), -1)
                close(levels * scales[:, None] / 32767, sums.reshape(levels.shape))


def test_rows_that_do_not_fit_are_those_with_the_least() -> None:
    ours, given = model(4, 8), ids(40)
    traced = sg.trace(ours, given, span=span(40, 12), per_token=True, rows=True)
    panel = panel_of(traced, None, 0, "", "traced")
    whole, cut = packing.packed(panel, 2**30), packing.packed(panel, 4000)
    assert whole["left_out"] == 0
    assert len(cut["rows"]) <= 4000
    assert cut["left_out"] > 0
    there = np.isfinite(rows_in(cut)).all(-1)
    sums = np.abs(panel.rows).sum(-1)
    assert sums[there].min() >= sums[~there].max()
    close(rows_in(cut)[there], panel.rows[there])
    np.testing.assert_allclose(unpacked(cut["totals"], "<f4"), sums.ravel(), rtol=1e-5)


def test_a_long_text_of_a_large_model_stays_under_ten_megabytes() -> None:
    rows = np.random.default_rng(0).standard_normal((1, 12, 32, 32, 2048), np.float32) ** 3
    of_target, at = ("example", "target"), np.arange(2035, 2047)[None]
    traced = xr.Dataset(
        {"rows": ((*of_target, "layer", "head", "key"), rows), "token_surprisal": (of_target, np.ones(at.shape))},
        {
            "layer": np.arange(32), "token": (("example", "key"), np.full((1, 2048), 7)),
            "prediction": (of_target, at), "target_token": (of_target, np.full(at.shape, 7)),
        },
    )  # fmt: skip
    html = sg.view(traced).html
    assert len(html) < 10 * 2**20
    (panel,) = values(html)["panels"]
    assert panel["left_out"] > 0
    assert len(panel["tokens"]) == 2048


def byte_level() -> PreTrainedTokenizerFast:
    letters = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=letters)


def metaspace() -> PreTrainedTokenizerFast:
    pieces = {"▁the": 0, "▁b": 1, "all": 2, **{f"<0x{i:02X}>": i + 3 for i in range(256)}}
    words = Tokenizer(models.BPE(pieces, [], byte_fallback=True))
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=words)


def test_tokens_are_shown_as_text() -> None:
    """Characters whose bytes are in several tokens stand at the first of them."""
    tokenizer = byte_level()
    text = "a 你é\n<b>"
    pieces = pieces_of(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(piece for piece in pieces if piece != REST) == text
    assert pieces == ["a", " ", "你", REST, REST, "é", REST, "\n", "<", "b", ">"]
    of_bytes = metaspace()
    given = [0, 1, 2, *(of_bytes.convert_tokens_to_ids(f"<0x{b:02X}>") for b in "é".encode())]
    assert pieces_of(of_bytes, given) == [" the", " b", "all", "é", REST]
    assert pieces_of(None, [5, 7]) == ["5", "7"]
    assert pieces_of(["x", "y"], [5, 7]) == ["x", "y"]
    assert pieces_of(of_bytes, [0, 4000])[1] == "[4000]"


class Words:
    """A tokenizer whose ids from 250 on are special, and from 290 on none of its own."""

    all_special_ids = tuple(range(250, 290))

    def convert_ids_to_tokens(self, given: list[int]) -> list[str | None]:
        return [None if i >= 290 else f"<s{i}>" if i >= 250 else f"w{i}" for i in given]

    def decode(self, given: list[int], **_: Any) -> str:
        return "".join(f"<s{i}>" if i >= 250 else f" w{i}" for i in given)


def test_placeholders_beside_each_other_are_shown_as_one() -> None:
    """Of every text: the parts are its tokens in order, a run of equal special ones, or of patches, in one of them."""
    ours, rng = model(), np.random.default_rng(0)
    for _ in range(30):
        row = rng.choice([7, 8, 250, 250, 250, 251, 295, 296, 297], 24)
        given = torch.from_numpy(row)[None]
        traced = sg.trace(ours, given, torch.tensor([5]), rows=True)
        expected, i = [], 0
        while i < 24:
            kind = "image" if row[i] >= 290 else row[i]
            stop = i + 1
            while row[i] >= 250 and stop < 24 and ("image" if row[stop] >= 290 else row[stop]) == kind:
                stop += 1
            name = f"[{row[i]}]" if row[i] >= 290 else f"<s{row[i]}>" if row[i] >= 250 else f" w{row[i]}"
            together = "[image]" if row[i] >= 290 else name
            expected.append((i, stop, name if stop == i + 1 else f" {together}×{stop - i}"))
            i = stop
        panel = panel_of(traced, Words(), 0, "", "traced")
        assert [tuple(part) for part in panel.parts] == expected
        view = sg.view(traced, Words())
        figure = view.text_figure()
        assert [text.get_text() for text in figure.axes[0].texts] == [text for *_, text in expected]
        assert values(view.html)["panels"][0]["runs"] == [list(x) for x in expected if x[1] - x[0] > 1]
    grouped = sg.trace(ours, ids(), ids()[:, 0], groups={"image": span(12, 5)}, rows=True)
    assert panel_of(grouped, None, 0, "", "traced").parts[-1] == (7, 12, " [image]×5")


def test_two_texts_beside_each_other() -> None:
    ours, given = model(), ids()
    first = sg.trace(ours, given, span=span(), per_token=True, rows=True)
    with sg.ablate(ours, [(0, 1), (2, 3)]):
        second = sg.trace(ours, given, span=span(), per_token=True, rows=True)
    view = sg.view(first, beside=second, names=("as it is", "silenced"), title="a <b> title")
    found = values(view.html)
    assert [panel["name"] for panel in found["panels"]] == ["as it is", "silenced"]
    close(rows_in(found["panels"][1]), second.rows[0].values)
    assert "<title>a &lt;b&gt; title</title>" in view.html
    assert repr(view).startswith("View: 12 tokens, 4 targets beside 12 tokens, 4 targets, 3 layers of 4 heads")
    assert "<iframe srcdoc=" in view._repr_html_()
    assert 'sandbox="allow-scripts"' in view._repr_html_()


def test_figures_have_the_numbers_of_the_page() -> None:
    ours, given = model(), ids()
    traced = sg.trace(ours, given, span=span(), per_token=True, rows=True)
    view = sg.view(traced, [f"w{i} $x$" for i in range(12)])
    for at in ((0, None, None), (2, 1, None), (3, 2, 3)):
        target, layer, head = at
        rows = traced.rows[0, target].values
        row = rows.sum((0, 1)) if layer is None else rows[layer].sum(0) if head is None else rows[layer, head]
        figure = view.text_figure(*at)
        axis, bar = figure.axes
        most = values(view.html)["scales"]["all" if layer is None else "layer" if head is None else "head"]
        assert [text.get_text() for text in axis.texts] == [f"w{i} $x$" for i in range(12)]
        assert bar.get_xlim()[1] == pytest.approx(most, rel=1e-4)
        for value, patch in zip(row, axis.patches, strict=True):  # as view.js mixes the colours of view.css
            share, end = min(1.0, abs(value) / most) ** 0.5, (0x21, 0x66, 0xAC) if value < 0 else (0xB3, 0x58, 0x06)
            expected = [1 + (c / 255 - 1) * share for c in end]
            np.testing.assert_allclose(patch.get_facecolor()[:3], expected, atol=0.02)
        assert "square root" in bar.get_xlabel()
        figure.canvas.draw()
    heads = view.heads_figure(1)
    image = heads.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, np.abs(traced.rows[0, 1]).sum("key"), rtol=1e-5)
    assert heads.axes[0].images[0].norm.vmax == pytest.approx(values(view.html)["scales"]["total"])
    assert heads.axes[0].images[0].norm(np.float64(0.25 * heads.axes[0].images[0].norm.vmax)) == pytest.approx(0.5)
    assert "square root" in heads.axes[1].get_ylabel()


def test_a_scale_ends_where_most_rows_do() -> None:
    """One for all targets and both texts: 1 row of 200 may be larger than the end of the scale of heads."""
    rows = np.random.default_rng(0).standard_normal((1, 4, 10, 10, 6)).astype(np.float32)
    rows[0, 0, 0, 0] *= 1000
    of_target = ("example", "target")
    traced = xr.Dataset(
        {"rows": ((*of_target, "layer", "head", "key"), rows), "token_surprisal": (of_target, np.ones((1, 4)))},
        {
            "layer": np.arange(10), "token": (("example", "key"), np.full((1, 6), 7)),
            "prediction": (of_target, np.full((1, 4), 3)), "target_token": (of_target, np.full((1, 4), 7)),
        },
    )  # fmt: skip
    found = values(sg.view(traced, beside=traced * 2).html)["scales"]
    largest = 2 * np.abs(rows).max(-1)
    assert np.mean(largest < found["head"]) == pytest.approx(0.99, abs=0.01)
    assert found["head"] < largest.max() / 100
    assert found["all"] == pytest.approx(2 * np.abs(rows.sum((2, 3))).max(), rel=1e-5)


def test_what_has_several_kinds_of_layers_has_no_view() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
    bart = sg.attach(BartForConditionalGeneration(BartConfig(vocab_size=WORDS, **sizes, **heads)).eval())
    given = {"input_ids": ids(), "decoder_input_ids": ids()}
    for found in (sg.trace(bart, given, ids()[:, 0], rows=True), sg.trace(bart, given, ids()[:, 0]),
                  sg.attention(bart, **given)):  # fmt: skip
        with pytest.raises(ValueError, match="traced: expected a trace of a decoder, .* got one of an encoder-decoder"):
            sg.view(found)


def test_bad_input(tmp_path: Path) -> None:
    ours, given = model(), ids()
    traced = sg.trace(ours, given, given[:, 0], rows=True)
    bare = sg.trace(ours, given, given[:, 0])
    embeds = sg.attention(ours, inputs_embeds=ours.get_input_embeddings()(given))
    spanned, longer = (sg.trace(ours, given, span=span(12, n), per_token=True, rows=True) for n in (4, 5))
    other = sg.trace(model(2), given, given[:, 0], rows=True)
    for call, message in (
        (lambda: sg.view(bare), "traced: expected rows to show, .* it has surprisal"),
        (lambda: sg.view(embeds), "traced: expected the ids of a text"),
        (lambda: sg.view(3), "traced: expected what symground.trace.* got int 3"),
        (lambda: sg.view(traced, "gpt2"), "tokenizer: expected one of transformers or a list of texts, got str"),
        (lambda: sg.view(traced, ["a"]), "tokenizer: expected a text for each of 12 tokens, got 1 items"),
        (lambda: sg.view(traced, example=2), "example: expected an integer from 0 to 1, got 2"),
        (lambda: sg.view(traced, beside=other), "beside: expected the same layers"),
        (
            lambda: sg.view(traced, beside=sg.attention(ours, given)),
            "beside: expected the same layers and the same kind",
        ),
        (lambda: sg.view(traced, beside=traced, names=("a",)), "names: expected a name for each of the two texts"),
        (lambda: sg.view(spanned, beside=longer), "beside: expected as many targets as traced has, 4, got 5"),
        (lambda: sg.view(traced, questions=3), "questions: expected what symground.image_questions makes, got int 3"),
        (lambda: sg.view(traced).text_figure(5), "target: expected an integer"),
        (lambda: sg.view(traced).text_figure(0, 7), "layer: expected one of"),
        (lambda: sg.view(traced).text_figure(0, None, 1), "layer: expected the head's layer, got None"),
        (lambda: sg.view(traced).text_figure(0, 1, 9), "head: expected an integer"),
        (lambda: sg.view(traced).save(tmp_path / "none" / "x.html"), "path: expected a file in a folder that exists"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert sg.view(traced).save(tmp_path / "x.html").stat().st_size > 10_000
