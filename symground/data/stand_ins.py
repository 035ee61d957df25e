"""Stand-ins for the images of dialogues: patches that show what the caption names, where no photographs are at hand.

What they keep of the real thing is the form: a grid of patch embeddings in the caption's place, none of them a word.
What they lack is all that a photograph shows beside its nouns, and all doubt about what it shows.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from symground.data.arrays import create
from symground.data.generated_images import GeneratedImagesSettings, Painter
from symground.data.images import ImageSet
from symground.data.visdial import DialogSettings, coco_captions, readable_dialogues
from symground.data.words import words_in
from symground.disk import put_folder
from symground.folders import write_json


def stand_in_images(
    paths: Sequence[str | Path], out: str | Path, nouns: Sequence[str], dialogs: DialogSettings,
    settings: GeneratedImagesSettings,
) -> ImageSet:  # fmt: skip
    """Make the image set ``out`` with an image for each dialogue, in which the nouns of its caption stand.

    Args:
        paths: of dialogues, as for :func:`symground.data.add_dialogues`.
        out: the folder; an image set that is there is loaded, and made again by removing it.
        nouns: what can be shown. Of a caption with more of them than an image has room for, the first are.
        dialogs: where captions come from, and whether case counts.
        settings: how an image looks.

    Returns:
        The image set: float16 [N,P,E].

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: no dialogue with an image's name under ``paths``, or no noun.
    """
    out = Path(out)
    if out.is_dir():
        return ImageSet.load(out)
    if not nouns:
        raise ValueError("nouns: expected at least one to show, got none")
    fold, known = (str.lower if dialogs.fold_case else str), set(nouns)
    captions = {} if dialogs.captions is None else coco_captions(dialogs.captions)
    shown: dict[str, list[str]] = {}
    for dialogue in readable_dialogues(paths, captions):
        if dialogue.image:
            named = dict.fromkeys(word for word in words_in(fold(dialogue.caption)) if word in known)
            shown.setdefault(dialogue.image, list(named)[: settings.patches // settings.size])
    if not shown:
        raise ValueError(f"paths: no dialogue that names its image in {', '.join(map(str, paths))}")
    painter = Painter(nouns, settings)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a making that was cut off
    partial.mkdir(parents=True)
    features = create(partial / "features.npy", np.float16, (len(shown), settings.patches, settings.width))
    for number, of_image in enumerate(shown.values()):
        features[number] = painter.scene(number, of_image)
    features.flush()
    del features
    (partial / "images.txt").write_text("".join(f"{name}\n" for name in shown), encoding="utf-8")
    write_json(partial / "images.json", {"stand_ins": asdict(settings), "nouns": list(nouns)})
    put_folder(partial, out)
    return ImageSet.load(out)
