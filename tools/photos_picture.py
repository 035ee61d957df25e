"""The saliency of the small LLaVA of `photos.py`: the README's picture, and the share of saliency on the object.

SYMGROUND_DATA=DATA python -m tools.photos_picture --picture docs/patches.jpg --out FILE.json --heads FOLDER

The picture shows one collage with the saliency of each question. The JSON has the share of the patches' saliency that
is on the right quarter, by layer, over the questions of ``photos.py questions`` that are rightly answered with yes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
import xarray as xr

import symground as sg
from symground.data import Question, read_questions
from symground.data.vision import on_image
from tools import photos

#: Pixels of a cell in the picture; the model reads smaller ones.
SHOWN = 220
#: Largest number of rows of a table in the JSON, which excludes tables with a row per question.
_SHORT = 100


def layer_saliency(traced: xr.Dataset) -> xr.DataArray:
    """|Σ_h S_h| into the prediction position: (example, layer, key)."""
    total: xr.DataArray = abs(traced.rows.sum("head"))
    return total


def picture(model: str, out: Path, seed: int, words: list[str]) -> None:
    """Write the picture: the collage of this seed in a larger size, and the saliency of each question over it."""
    opened = photos.photographs()
    read = photos.collage(opened, random.Random(seed)).image
    with mock.patch.multiple(photos, CELL=SHOWN, SIZE=2 * SHOWN):
        shown = photos.collage(opened, random.Random(seed))
    folder = out.parent
    read.save(folder / "_collage.png")
    absent = next(word for photo, (word, *_) in photos.OBJECTS.items() if photo not in shown.photos)
    asked = [
        Question(str(folder / "_collage.png"), photos.question(word), "no" if word == absent else "yes", word)
        for word in [*words, absent]
    ]
    questions = sg.image_questions(sg.load_processor(model), asked)
    loaded = sg.load(model)
    heat = layer_saliency(sg.trace(loaded, questions, saliency=False, rows=True)).sum("layer").values
    said = sg.answers(loaded, questions)["said"]
    (folder / "_collage.png").unlink()
    maps = [
        on_image(prompt.maps, heat[i][list(prompt.spans["image"])], 2 * SHOWN, 2 * SHOWN)
        for i, prompt in enumerate(questions.prompts[: len(words)])
    ]
    titles = [f"{q.text} “{s}”" for q, s in zip(asked[: len(words)], said, strict=False)]
    figure = sg.draw_patches(shown.image, maps, titles, width=2.4)
    figure.savefig(out, dpi=130)
    print(out, "photographs", shown.photos, "answers", said.tolist())


def shares(model: str) -> dict[str, object]:
    """Measurements on the questions that `photos.py questions` wrote."""
    folder = Path(model)
    rows = [json.loads(line) for line in (folder / "questions.json").read_text(encoding="utf-8").splitlines()]
    asked = read_questions(folder / "questions.json", folder / "images")
    questions = sg.image_questions(sg.load_processor(model), asked)
    loaded = sg.load(model)
    found = sg.answers(loaded, questions)
    kept = [i for i, row in enumerate(rows) if row["label"] == "yes" and found["said"][i] == "yes"]
    traced = sg.trace(loaded, questions.take(kept), saliency=False, rows=True)
    saliency = layer_saliency(traced).values  # [example,layer,key]
    on_object, on_image, random_quarter = [], [], []
    for n, i in enumerate(kept):
        prompt = questions.prompts[i]
        patches = saliency[n][:, list(prompt.spans["image"])]  # [layer,patch]
        side = round(patches.shape[1] ** 0.5)
        quarters = patches.reshape(-1, 2, side // 2, 2, side // 2).sum((2, 4)).reshape(-1, 4)
        on_object.append(quarters[:, rows[i]["cells"]] / quarters.sum(-1))
        random_quarter.append(quarters[:, (rows[i]["cells"] + 1) % 4] / quarters.sum(-1))
        on_image.append(patches.sum(-1) / saliency[n].sum(-1))
    return {
        "right_yes": len(kept),
        "share_of_right_quarter_by_layer": np.mean(on_object, 0, dtype=float).round(4).tolist(),
        "share_of_another_quarter_by_layer": np.mean(random_quarter, 0, dtype=float).round(4).tolist(),
        "share_of_image_in_the_row_by_layer": np.mean(on_image, 0, dtype=float).round(4).tolist(),
        "pope": sg.pope_scores(found).to_dict("records"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/photos")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--words", nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--heads", type=Path, help="a folder of symground heads; its tables become part of the JSON")
    arguments = parser.parse_args()
    if arguments.picture:
        cells = photos.collage(photos.photographs(), random.Random(arguments.seed)).photos
        words = arguments.words or [photos.OBJECTS[photo][0] for photo in cells]
        picture(arguments.model, arguments.picture, arguments.seed, words)
    if arguments.out:
        metrics = json.loads((Path(arguments.model) / "metrics.json").read_text(encoding="utf-8"))
        content = {"training": metrics, **shares(arguments.model), "torch": torch.__version__}
        if arguments.heads:
            tables = {path.stem: pd.read_parquet(path) for path in sorted(arguments.heads.glob("*.parquet"))}
            content["heads"] = {
                name: json.loads(table.to_json(orient="records", double_precision=4))
                for name, table in tables.items()
                if len(table) < _SHORT
            }
        arguments.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
