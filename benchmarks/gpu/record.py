"""Everything that needs a GPU, in one command: errors, sanitizer, benchmarks and tests, each as a JSON file.

    python -m benchmarks gpu --out benchmarks/results/gpu/NAME      # under nine minutes
    python -m benchmarks gpu --out DIR --parts machine attention --budget 200
    python -m benchmarks gpu --out DIR --dry-run                    # a tiny run on a CPU, which tests this script

It needs torch, triton, numpy, pytest and transformers, but no network, no compiler and no installation. Each part runs
in a separate process with a time limit and writes DIR/<part>.json; the first parts have their time for certain. Long
parts write row by row, so that a run that is cut off keeps its rows. A part that fails records its error and does not
stop the others. The exit status is 1 if a part failed, or without CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common.options import folder_of, folder_to_write, seconds  # noqa: E402
from benchmarks.gpu.context import NEEDS_CUDA, Context, Missing, Record  # noqa: E402

#: Part → its seconds, of those parts that a run of eight minutes has for certain. Each may take twice as
#: many, or a quarter of what is left, if enough is left for those after it.
CERTAIN = {
    "machine": 20, "compilation": 80, "correctness": 50, "attention": 80, "graphs": 30, "tiles": 50, "flow": 25,
    "sanitizer": 60, "gate": 25,
}  # fmt: skip
#: Part → its share of the time that is left when it starts. Time that it does not use goes to the later parts.
SHARES = {
    "surprisal": 30, "mamba": 35, "tests": 60, "trace": 30, "training": 30, "study": 30, "llava": 30, "lengths": 60,
}  # fmt: skip
PARTS = (*CERTAIN, *SHARES)
#: Part → the module of this folder with a function of its name; the other parts are in timings.
MODULES = {
    **dict.fromkeys(("machine", "gate", "tests", "sanitizer"), "parts"),
    **{part: part for part in ("compilation", "correctness", "graphs", "tiles", "study")},
}
#: Seconds before its time limit at which a part stops by itself.
GRACE = 5.0
TAIL = 4000


def run_part(part: str, arguments: argparse.Namespace, seconds: float) -> str:
    """Run one part in a separate process; returns its status, which is also in its file."""
    path = arguments.out / f"{part}.json"
    path.unlink(missing_ok=True)
    Record(path, part).write()
    command = [
        sys.executable, __file__, "--out", str(arguments.out), "--budget", str(seconds), "--inside", part,
        *(["--data", str(arguments.data)] if arguments.data else []),
        *(["--dry-run"] if arguments.dry_run else []), *(["--break", broken] if (broken := arguments.broken) else []),
    ]  # fmt: skip
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SYMGROUND_AUTOTUNE": "0"}
    environment["TRITON_INTERPRET"] = "1" if arguments.dry_run else "0"
    if arguments.dry_run:
        environment["OMP_NUM_THREADS"] = "1"  # a dry run is too small for a second thread
    start = time.monotonic()
    with (arguments.out / f"{part}.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        log.seek(0)
        tail = log.read()[-TAIL:]
    Path(log.name).unlink()
    record = Record(path, part)
    record.data = json.loads(path.read_text(encoding="utf-8"))
    if code is None:
        record.data["status"] = "timed out"
    elif code != 0:
        record.data["status"] = "failed"
    record.data.setdefault("output_tail", tail if record["status"] in ("failed", "timed out") else "")
    record.write(seconds=round(time.monotonic() - start, 1), limit=round(seconds, 1))
    return str(record["status"])


def _end(process: subprocess.Popen[Any]) -> None:
    """Kill the part and the processes that it started; it has its own session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def inside(arguments: argparse.Namespace) -> None:
    """Run the part, in its own process."""
    record = Record(arguments.out / f"{arguments.inside}.json", arguments.inside)
    end = time.monotonic() + arguments.budget - GRACE
    context = Context(record, arguments.out, arguments.dry_run, end, arguments.data)
    try:
        if arguments.broken == arguments.inside:
            raise RuntimeError("broken on purpose")
        context.check_missing(arguments.inside)
        module = importlib.import_module(f"benchmarks.gpu.{MODULES.get(arguments.inside, 'timings')}")
        getattr(module, arguments.inside)(context)
    except Missing as missing:
        name, reason = missing.args
        record["missing"][name] = reason
        record.write(status="needs CUDA" if reason == NEEDS_CUDA else "missing")
    except Exception as error:
        record.write(error=f"{type(error).__name__}: {error}"[:TAIL])
        raise
    if record["status"] == "running":
        record.write(status="ok")


def limit(left: float, parts: Sequence[str]) -> float:
    """Seconds for the first of these parts, if ``left`` are left for all of them."""
    part, later = parts[0], parts[1:]
    if part in CERTAIN:
        most = max(2.0 * CERTAIN[part], left / 4)
        return max(min(most, left - sum(CERTAIN.get(p, 0) for p in later)), 0.0)
    return max(left, 0.0) * SHARES[part] / sum(SHARES[p] for p in parts)


def gpu_lacks() -> str | None:
    """Why nothing can run on this machine; checked in a separate process, so that this one holds no GPU memory."""
    code = "from benchmarks.common.measure import gpu_lacks; print(gpu_lacks() or '')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return said[-1] if said else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=folder_to_write, required=True, help="folder of the result files")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--data", type=folder_of("the folder of a study that `symground data` prepared", "data"),
        help="folder of a study that was prepared on another machine, for the part `study`",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=seconds, default=540.0, help="seconds for all parts together; default: %(default)s"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="run everything on a CPU, on tiny inputs, with interpreted kernels"
    )
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--break", choices=PARTS, dest="broken", help=argparse.SUPPRESS)  # for the script's own test
    arguments = parser.parse_args()
    arguments.data = arguments.data.resolve() if arguments.data else None
    if arguments.inside:
        inside(arguments)
        return 0
    end = time.monotonic() + arguments.budget
    if not arguments.dry_run and (lacks := gpu_lacks()):
        print(f"gpu_record: {lacks}; --dry-run runs it on a CPU", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    parts = [part for part in PARTS if part in arguments.parts]
    failed = False
    for i, part in enumerate(parts):
        status = run_part(part, arguments, limit(end - time.monotonic(), parts[i:]))
        failed |= status in ("failed", "timed out")
        print(f"{part}: {status}", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
