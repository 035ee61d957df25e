"""Stand-ins for the images of dialogues: patches that show what the caption names, for use without the photographs.

Like the features of photographs, they are a grid of patch embeddings in the caption's place, and no patch is a word.
Unlike photographs, they show nothing but the caption's nouns.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from symground.data.files import create_array
from symground.data.scenes import GeneratedImagesSettings, Painter
from symground.data.sequences import ImageSet
from symground.data.visdial.dialogue_files import DialogSettings, coco_captions, readable_dialogues
from symground.data.words import words_in
from symground.files import put_folder, write_json


def stand_in_images(
    paths: Sequence[str | Path], out: str | Path, nouns: Sequence[str], dialogs: DialogSettings,
    settings: GeneratedImagesSettings,
) -> ImageSet:  # fmt: skip
    """Make the image set ``out`` with an image for each dialogue that shows the nouns of its caption.

    Args:
        paths: of dialogues, as in :func:`symground.data.add_dialogues`.
        out: the folder; an image set that exists is loaded (remove it to make it again).
        nouns: the nouns that can be shown. If a caption has more of them than fit into an image, the first are shown.
        dialogs: the source of captions, and whether case matters.
        settings: of the images.

    Returns:
        The image set: float16 [N,P,E].

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: no dialogue under ``paths`` names its image, or there is no noun.
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
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted run
    partial.mkdir(parents=True)
    features = create_array(partial / "features.npy", np.float16, (len(shown), settings.patches, settings.width))
    for number, of_image in enumerate(shown.values()):
        features[number] = painter.scene(number, of_image)
    features.flush()
    del features
    (partial / "images.txt").write_text("".join(f"{name}\n" for name in shown), encoding="utf-8")
    write_json(partial / "images.json", {"stand_ins": asdict(settings), "nouns": list(nouns)})
    put_folder(partial, out)
    return ImageSet.load(out)
