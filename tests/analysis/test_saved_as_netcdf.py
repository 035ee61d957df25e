"""What xarray writes of a result as netCDF, it reads back: the same variables, coordinates, numbers and attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import xarray as xr

import symground as sg
from tests.tiny import llama

IDS = torch.arange(3, 15).view(2, 6)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
SPAN = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 0]]).bool()
TARGETS = torch.tensor([3, 4])
GROUPS: dict[str, dict[str, Any] | None] = {
    "none": None, "empty": {}, "one": {"a": torch.arange(6).expand(2, 6) < 2},
}  # fmt: skip
ASKED: dict[str, dict[str, Any]] = {
    "targets": {"targets": TARGETS}, "span": {"span": SPAN}, "per_token": {"span": SPAN, "per_token": True},
    "rows": {"targets": TARGETS, "rows": True, "saliency": False}, "loss": {"loss": lambda out: out.logits[:, -1, 0]},
}  # fmt: skip


def check(found: xr.Dataset | xr.DataArray, folder: Path) -> None:
    path = folder / "found.nc"
    found.to_netcdf(path)
    read = xr.open_dataset if isinstance(found, xr.Dataset) else xr.open_dataarray
    with read(path) as back:
        back.load()
    if "key" in found.coords.keys() ^ back.coords.keys():  # a variable with the name of its dimension
        back = back.reset_coords("key")
    xr.testing.assert_identical(found, back)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("asked", ASKED)
def test_traces(asked: str, groups: str, tmp_path: Path) -> None:
    check(sg.trace(llama(), IDS, attention_mask=MASK, groups=GROUPS[groups], **ASKED[asked]), tmp_path)


@pytest.mark.parametrize("groups", GROUPS)
def test_traces_of_several_kinds_of_layers(groups: str, tmp_path: Path) -> None:
    config = transformers.BartConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
    )  # fmt: skip
    model = sg.attach(transformers.BartForConditionalGeneration(config).eval())
    given, of = {"input_ids": IDS, "decoder_input_ids": IDS}, GROUPS[groups]
    check(sg.trace(model, given, groups=of, loss=lambda out: out.logits[:, -1, 0]), tmp_path)
    check(sg.trace(model, given, TARGETS, groups=of, source_groups=of, rows=True), tmp_path)


def test_traces_of_pictures(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4)
    model = sg.attach(transformers.ViTForImageClassification(config).eval())
    check(sg.trace(model, pixel_values=torch.ones(2, 3, 8, 8), loss=lambda out: out.logits[:, 0]), tmp_path)


@pytest.mark.parametrize("groups", GROUPS)
def test_attention(groups: str, tmp_path: Path) -> None:
    model = llama()
    wanted: dict[str, Any] = {"rows": "last", "received": True, "summary": True, "topk": 2, "block": 2}
    check(sg.attention(model, IDS, MASK, groups=GROUPS[groups], **wanted), tmp_path)
    with sg.observe(model, groups=GROUPS[groups], rows="last", summary=True) as seen:
        model(IDS)
        model(IDS)
    check(seen.dataset(), tmp_path)


def test_lenses_and_sweeps(tmp_path: Path) -> None:
    check(sg.lens_read(llama(), IDS), tmp_path)
    check(sg.sweep_heads(llama(), IDS, TARGETS, per_example=True), tmp_path)
