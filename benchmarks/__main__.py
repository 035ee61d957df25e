"""The measurements of the repository: ``python -m benchmarks [NAME] …``."""

from __future__ import annotations

import importlib
import sys

#: Name → (its module, whose ``main()`` parses the arguments; what it measures).
MEASUREMENTS = {
    "suites": ("benchmarks.summary.run", "every goal beside its peers; the default if no name is given"),
    "plot": ("benchmarks.summary.plot", "draws time and memory against T from a result file"),
    "before-after": ("benchmarks.before_after", "times calls of an earlier checkout and of this one, in turns"),
    "scaling": ("benchmarks.scaling", "compares the formulas of cost with measured points"),
    "attention-scale": ("benchmarks.attention_scale", "time and memory of reading attention as the text doubles"),
    "training-log": ("benchmarks.training_log", "what the callback of a training log adds to a step"),
    "attnread": ("benchmarks.beside_attnread", "attention matrices beside those of attnread in another environment"),
    "report": ("benchmarks.report_scale", "writes a report of 12 layers × 12 heads, 40 checkpoints, 5 seeds"),
    "kernels": ("benchmarks.kernels.table", "compiles every GPU configuration without a GPU"),
    "forecast": ("benchmarks.forecast.forecast", "forecasts speed on A100 and H100 from machine code"),
    "launch-cost": ("benchmarks.launch_cost", "what a call costs the host, without a GPU, beside PyTorch's attention"),
    "classes": ("benchmarks.classes.survey", "tries every model class of transformers in a tiny configuration"),
    "ops": ("benchmarks.gpu.every_op", "runs each op once, on tensors of awkward sizes"),
    "learnt": ("benchmarks.learnt.run", "what the analyses find in SmolLM2, a model with learnt weights"),
    "gpu": ("benchmarks.gpu.record", "measures everything on a CUDA machine, in nine minutes"),
}


def main() -> int:
    name, *arguments = sys.argv[1:] or ["suites"]
    if name in ("-h", "--help"):
        print("usage: python -m benchmarks [NAME] …     (python -m benchmarks NAME --help lists its options)\n")
        print("\n".join(f"  {name:<14}{what}" for name, (_, what) in MEASUREMENTS.items()))
        return 0
    if name.startswith("-"):
        name, arguments = "suites", sys.argv[1:]
    if name not in MEASUREMENTS:
        print(f"expected one of {', '.join(MEASUREMENTS)}; got {name!r}", file=sys.stderr)
        return 2
    sys.argv = [f"python -m benchmarks {name}", *arguments]
    return int(importlib.import_module(MEASUREMENTS[name][0]).main() or 0)


if __name__ == "__main__":
    sys.exit(main())
