"""Files and folders on disk: writing them so that a crash leaves them whole, locks, and the layout of a study."""

from symground.files.atomic_folder import SUMS, damage, digest, discard, sealed, settle
from symground.files.disk import (
    append,
    make_folder,
    put_folder,
    read_json,
    remove,
    rename,
    replacing,
    share,
    sync,
    sync_all,
    write_json,
    write_text,
)
from symground.files.folder_lock import held
from symground.files.study_folder import (
    checkpoint_folder,
    checkpoint_steps,
    differences,
    evenly,
    images_of,
    is_run,
    model_and_seed,
    runs_of,
    study_of,
)

__all__ = [
    "SUMS", "append", "checkpoint_folder", "checkpoint_steps", "damage", "differences", "digest", "discard", "evenly",
    "held", "images_of", "is_run", "make_folder", "model_and_seed", "put_folder", "read_json", "remove", "rename",
    "replacing", "runs_of", "sealed", "settle", "share", "study_of", "sync", "sync_all", "write_json", "write_text",
]  # fmt: skip
