"""Kill a training at random moments until it is finished, many times, and count how often anything is lost.

python -m tools.kills --kills 200 --out benchmarks/results/kills.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from symground.data import CorpusBuilder, GeneratedSettings, add_scenes
from symground.files import checkpoint_steps, damage, write_json
from symground.recipes import train_study
from symground.training import Hardware, Optimization

MODEL = "gpt2-4l"
#: A checkpoint at every other step and a resume state after each step, so that a file is being written nearly always.
SETTINGS = Optimization(steps=40, batch_size=2, length=16, warmup=2, checkpoints="0,every 2")
OFTEN = Hardware(resume_every=0, device="cpu")


def made(study: Path) -> Path:
    builder = CorpusBuilder()
    add_scenes(builder, GeneratedSettings(scenes=60, nouns=4))
    builder.write(study / "data").tokenizer.save_pretrained(study)
    write_json(study / "config.json", {})
    return study


def outcome(study: Path) -> tuple[dict[str, bytes], list[str]]:
    """The files of all checkpoints, and the metrics without their times."""
    run = study / MODEL / "seed0"
    files = {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "checkpoints").rglob("*.*"))}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return files, [json.dumps({name: line[name] for name in line if "second" not in name}) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["symground.recipes", "transformers.models.gpt2.modeling_gpt2"])
    moments, found = random.Random(0), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        whole = made(Path(folder) / "whole")
        process = context.Process(target=train_study, args=(whole, [MODEL], [0], SETTINGS, OFTEN))
        process.start()
        process.join()
        expected = outcome(whole)
        while found["kills"] < arguments.kills:
            found["runs"] += 1
            study = made(Path(folder) / f"run{found['runs']}")
            run = study / MODEL / "seed0"
            while True:
                process = context.Process(target=train_study, args=(study, [MODEL], [0], SETTINGS, OFTEN))
                process.start()
                while process.is_alive() and not (run / "config.json").exists():
                    time.sleep(0.001)
                process.join(moments.uniform(0, 0.5))
                if not process.is_alive():
                    break
                process.kill()
                process.join()
                found["kills"] += process.exitcode == -signal.SIGKILL
                found["damaged"] += sum(
                    damage(path) is not None
                    for kind in ("checkpoints", "resume")
                    for path in (run / kind).glob("step-*")
                )
            found["lost"] += process.exitcode != 0 or SETTINGS.steps not in checkpoint_steps(run)
            found["differing"] += outcome(study) != expected
            print(dict(found), flush=True)
    keys = ("kills", "runs", "damaged", "lost", "differing")
    content = {key: found[key] for key in keys} | {"model": MODEL, "steps": SETTINGS.steps, "platform": sys.platform}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
