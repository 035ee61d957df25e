"""A picture of a result file: time and memory relative to SDPA against T. Its goals are printed as Markdown.

python -m benchmarks plot benchmarks/results/bench-cpu.json --out attention.svg
python -m benchmarks plot RESULT.json --dtype bfloat16 --out picture.png
python -m benchmarks plot benchmarks/results/gpu/NAME/trace.json --table        # the goals alone
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common.options import json_file, new_file
from benchmarks.peers.attention import COMPILED_EAGER, EAGER, FLASH, FLASH_ATTN, FLEX, NO_SALIENCY, SDPA, SYMGROUND
from benchmarks.summary.goals import Row, machine_of, rows_of, table

#: Okabe and Ito's colours, which colour-blind readers can distinguish; ours is the strongest.
COLOURS = {
    SYMGROUND: "#D55E00", NO_SALIENCY: "#E69F00", EAGER: "#000000", COMPILED_EAGER: "#7F7F7F", SDPA: "#0072B2",
    FLASH: "#56B4E9", FLASH_ATTN: "#009E73", FLEX: "#CC79A7", "SDPA cuDNN": "#B2A300",
    "symground, impl flash": "#8C2D04",
}  # fmt: skip
QUANTITIES = {"seconds": "time", "peak_bytes": "peak memory"}


def lines_of(rows: list[Row], quantity: str, tokens: int = 4096) -> dict[str, list[tuple[int, float]]]:
    """peer → [(T, its value divided by SDPA's)], at a constant number of tokens."""
    at: dict[tuple[str, int], float] = {}
    for row in rows:
        if row["stage"] == "layer" and row.get(quantity) and row["B"] * row["T"] == tokens:
            at.setdefault((row["peer"], row["T"]), row[quantity])
    found = defaultdict(list)
    for (peer, T), value in sorted(at.items()):
        if (SDPA, T) in at:
            found[peer].append((T, value / at[SDPA, T]))
    return dict(found)


def draw(rows: list[Row], title: str, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "font.size": 10, "svg.hashsalt": "symground"})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for axis, (quantity, name) in zip(axes, QUANTITIES.items(), strict=True):
        lines = lines_of(rows, quantity)
        for peer, points in lines.items():
            T, ratio = zip(*points, strict=True)
            axis.plot(
                T,
                ratio,
                marker="o",
                markersize=4,
                color=COLOURS.get(peer, "#444444"),
                lw=2.2 if peer == SYMGROUND else 1.3,
            )
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="T, positions per example (B·T = 4096)",
            title=f"{name}, relative to SDPA",
        )
        lengths = sorted({T for points in lines.values() for T, _ in points})
        axis.set_xticks(lengths, [str(T) for T in lengths])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:g} ×"))
        axis.grid(axis="y", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        _label(axis, lines)
    figure.suptitle(title)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


def _label(axis: Any, lines: dict[str, list[tuple[int, float]]]) -> None:
    """Write each line's name at its right end; names of ends that are close together are moved apart."""
    ends = sorted(((points[-1][1], points[-1][0], peer) for peer, points in lines.items()))
    if not ends:
        return
    low, high = axis.get_ylim()
    low, high = min(low, 0.8), max(high, 1.25)
    axis.set_ylim(low, high)
    apart = (high / low) ** (1 / 18)  # an eighteenth of the axis' height
    heights: list[float] = []
    for y, *_ in ends:
        heights.append(max(y, heights[-1] * apart) if heights else y)
    for (y, x, peer), height in zip(ends, heights, strict=True):
        axis.annotate(
            peer, (x, y), xytext=(max(T for _, T, _ in ends) * 1.12, height), textcoords="data", va="center",
            color=COLOURS.get(peer, "#444444"), fontweight="bold" if peer == SYMGROUND else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "alpha": 0.4, "relpos": (0, 0.5), "shrinkA": 0},
        )  # fmt: skip
    axis.set_ylim(low, max(high, heights[-1] * apart))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "result", type=json_file("a result of `python -m benchmarks` or of its suites", "rows", "benchmarks")
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=new_file, help="a .svg or .png file; beside the result by default")
    parser.add_argument("--table", action="store_true", help="print the goals and draw nothing")
    arguments = parser.parse_args()
    result = json.loads(arguments.result.read_text(encoding="utf-8"))
    rows, machine = rows_of(result), machine_of(result, arguments.result)
    print(f"{machine}\n\n{table(rows)}")
    for name, reason in result.get("missing", {}).items():
        print(f"missing: {name}: {reason}", file=sys.stderr)
    if arguments.table:
        return 0
    wanted = [row for row in rows if row.get("dtype") == arguments.dtype]
    if not lines_of(wanted, "seconds"):
        print(f"plot: no layer at 4096 tokens with SDPA beside it in {arguments.dtype}", file=sys.stderr)
        return 1
    out = arguments.out or arguments.result.with_suffix(".svg")
    draw(wanted, f"forward + backward + saliency of one layer, H12 D64, {arguments.dtype}\n{machine}", out)
    print(f"→ {out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
