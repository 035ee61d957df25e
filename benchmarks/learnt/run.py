"""``python -m benchmarks learnt PART``: a part of the evidence on learnt weights, as JSON."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.options import folder_to_write, integer, new_file
from benchmarks.learnt.beside_peers import beside_peers
from benchmarks.learnt.induction import induction
from benchmarks.learnt.probing import scenes
from benchmarks.learnt.wrong_answers import wrong_answers
from symground.files import write_json

#: Part → what finds its figures, given a folder for tables.
PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "copying": lambda folder: scenes("english", folder),
    "translating": lambda folder: scenes("french", folder),
    "induction": lambda _: induction(),
    "wrong-answers": lambda _: wrong_answers(),
    "beside-peers": lambda _: beside_peers(),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks learnt", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=new_file, required=True, help="the JSON file")
    parser.add_argument(
        "--tables",
        type=folder_to_write,
        help="folder of the tables (default: build/learnt/PART); the command goes on there",
    )
    parser.add_argument("--threads", type=integer(), default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = PARTS[asked.part](asked.tables or Path("build/learnt") / asked.part)
    command = shlex.join(["python", "-m", "benchmarks", "learnt", *sys.argv[1:]])
    write_json(asked.out, {"command": command, **found})
    return 0
