"""Visual Dialog as documents: the caption's words, or the image's patches, are ENV; the turns are LAN."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from symground import errors
from symground.data.files import LeftOut, Limits, file_names, files_in
from symground.data.sequences import CorpusBuilder, ImageSet, image_key, share_of
from symground.data.visdial.dialogue_files import DialogSettings, coco_captions, dialogue_of, entries_of
from symground.data.words import words_in
from symground.errors import check_kind, flag
from symground.running import progress


def add_dialogues(
    builder: CorpusBuilder, paths: Sequence[str | Path], settings: DialogSettings, *, validation: float = 0.0,
    strict: bool = False, nouns: Collection[str] = (), limits: Limits | None = None,
) -> None:  # fmt: skip
    """Add every dialogue of the JSON files under ``paths`` (files, folders, archives), a document each.

    A dialogue that lacks a field or has one of another type, or a file of another form, is set aside and listed with
    its place and the reason in ``builder.statistics["visdial"]``. Dialogues whose image is not in the image set are
    counted there. A file that is reached twice is read once. Each file is read whole.

    Args:
        builder: collects the documents, named FILE#NUMBER.
        paths: of JSON files.
        settings: how dialogues become sequences.
        validation: the share of dialogues kept from training, chosen by their images.
        strict: raise for the first dialogue that cannot be read, instead of setting it aside.
        nouns: an image shows those of these nouns that its caption names.
        limits: how large files may be, and whether links are followed.

    Raises:
        FileNotFoundError: a path or the image set does not exist.
        ValueError: a path is of another kind, there is no dialogue in any of them, or with ``strict``, one cannot be
            read.
    """
    check_kind(builder, CorpusBuilder, "builder")
    check_kind(settings, DialogSettings, "settings")
    validation, strict = errors.number("validation", validation, "[0, 1)"), flag("strict", strict)
    captions = {} if settings.captions is None else coco_captions(settings.captions)
    image_set = None if settings.images is None else ImageSet.load(settings.images)
    numbers = None if image_set is None else image_set.numbers()
    builder.patches = 0 if image_set is None else image_set.patches
    fold, nouns = (str.lower if settings.fold_case else str), set(nouns)
    counts: Counter[str] = Counter()
    skipped: list[dict[str, str]] = []

    def set_aside(file: str, reason: str) -> None:
        if strict:
            raise ValueError(f"paths: {file}: {reason}")
        skipped.append({"file": file, "reason": reason})

    left_out: LeftOut = []
    names = file_names(paths, ".json", limits, left_out)
    with progress("dialogues", len(names), quick=True) as bar:
        for name, content in files_in(paths, ".json", limits=limits):
            counts["files"] += 1
            try:
                entries = list(entries_of(content))
            except ValueError as error:
                counts["files_set_aside"] += 1
                set_aside(name, str(error))
                entries = []
            for number, entry in enumerate(entries):
                counts["dialogues"] += 1
                try:
                    dialogue = dialogue_of(entry, captions)
                except ValueError as error:
                    counts["dialogues_set_aside"] += 1
                    set_aside(f"{name}#{number}", str(error))
                    continue
                # By the image's key, not its file's name, so that no image of training is in a dialogue for validation.
                key = image_key(dialogue.image) if dialogue.image else f"{name}#{number}"
                kept = share_of(key) < validation
                group, image, shown = PurePosixPath(name).name, None, set[str]()
                if numbers is not None:
                    image = numbers.get(image_key(dialogue.image))
                    if image is None:
                        counts["dialogues_without_image"] += 1
                        continue
                    shown = nouns.intersection(words_in(fold(dialogue.caption)))
                builder.add(
                    dialogue.segments(settings), f"{name}#{number}", group=group, validation=kept, image=image,
                    shown=sorted(shown),
                )  # fmt: skip
                counts["turns"] += len(dialogue.turns[: settings.rounds])
            bar.advance()
    keys = ["files", "files_set_aside", "dialogues", "dialogues_set_aside", "turns"]
    keys += [] if numbers is None else ["dialogues_without_image"]
    builder.statistics["visdial"] = {
        **{key: counts[key] for key in keys}, "files_not_read": len(left_out),
        "skipped": [*skipped, *({"file": name, "reason": f"not read, it {why}"} for name, why in left_out)],
        "settings": asdict(settings),
    }  # fmt: skip
    if not counts["files"]:
        raise ValueError(f"paths: no .json file in {', '.join(map(str, paths))}")
    if counts["dialogues"] == counts["dialogues_set_aside"]:
        first = "".join(f"; the first, {entry['file']}: {entry['reason']}" for entry in skipped[:1])
        raise ValueError(f"paths: no dialogue could be read{first or ', the files hold none'}")
    if counts["dialogues"] == counts["dialogues_set_aside"] + counts["dialogues_without_image"]:
        raise ValueError(
            f"images: {settings.images} has no image of these dialogues (they are matched by the number in its name)"
        )
