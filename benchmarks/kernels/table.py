"""Compile every shipped kernel configuration ahead of time, without a GPU, and print the resources that it uses.

    python -m benchmarks kernels                    # all → benchmarks/results/kernels.md
    python -m benchmarks kernels --arch sm_90 --head-size 64 --dtype bfloat16 --no-save
    PYTHONPATH=FOLDER python -m benchmarks kernels  # under the Triton of pip install --target FOLDER triton==3.6.0

The table has each program's registers, stack and shared memory, its local-memory instructions (LDL, STL) inside loops,
and its tensor-core instructions. The exit status is 1 if a configuration does not fit into shared memory (on sm_100
also tensor memory), touches local memory in a loop (but for heads beyond 256), does not use the tensor cores, or
computes an offset in 32 bits. Heads beyond 256 are refused on sm_86.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "0"
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from benchmarks.common.devices import DEVICES  # noqa: E402
from benchmarks.common.options import integer  # noqa: E402
from benchmarks.kernels.machine_code import Resources, of_amdgcn, of_cubin  # noqa: E402
from benchmarks.kernels.offsets import narrow_products  # noqa: E402
from benchmarks.kernels.page import updated  # noqa: E402
from symground.kernels.attention import backward, flow, forward, saliency, saliency_rows, weights  # noqa: E402
from symground.kernels.attention.launch import Call  # noqa: E402
from symground.kernels.common import launch  # noqa: E402
from symground.kernels.common.configs import WIDEST, WITHOUT_WIDE, Config, shipped, tables  # noqa: E402
from symground.kernels.ssd import backward as ssd_backward  # noqa: E402
from symground.kernels.ssd import forward as ssd_forward  # noqa: E402
from symground.kernels.ssd import launch as ssd_launch  # noqa: E402
from symground.kernels.ssd import saliency as ssd_saliency  # noqa: E402
from symground.kernels.vocabulary import surprisal as vocabulary  # noqa: E402

#: Kernel → its tiles.
KERNELS = tables()
TARGETS = {name: GPUTarget("cuda", device.capability, 32) for name, device in DEVICES.items()}
TARGETS["gfx942"] = GPUTarget("hip", "gfx942", 64)
#: Bytes of shared memory that one program may have.
SHARED = {name: device.shared for name, device in DEVICES.items()} | {"gfx942": 65_536}
#: Columns of tensor memory of a Blackwell multiprocessor; a program that needs more cannot start.
TENSOR_MEMORY = 512
HEAD_SIZES = (32, 64, 128, 256, 576)
#: Kernels that read a vocabulary head, of hidden size 768.
VOCABULARY = ("vocabulary_lse", "logits_gradient", "shared_candidates", "own_candidates")
HIDDEN_SIZE = 768
#: Kernel of row sums → the kernel that reads them in float32, whose configuration it uses.
ROW_SUMS = {
    f"{kernel}_sums": kernel
    for kernel in (
        "dq_flow",
        "dkdv",
        "attention_saliency",
        "attention_flow",
        "attention_saliency_rows",
        "attention_weights",
        "attention_pooled",
    )
}
#: Kernels of SSD, with heads of 64; the head size is that of the state.
SSD = ("ssd_saliency", "ssd_flow", "ssd_forward", "ssd_dx", "ssd_dbdc", "ssd_states", "ssd_pass", "prefix_sums")
#: Kernel → the kernel whose configuration it has.
SHARING = {**ROW_SUMS, "ssd_states": "ssd_forward"}
#: Kernels without a table.
FIXED = {"ssd_pass": Config(1, ssd_forward.PASSED, 4, 3), "prefix_sums": Config(16, 64, 4, 3)}
ALL = (*KERNELS, *SHARING, *FIXED)
#: Kernel → how many query heads share a key head, where the kernel loops over them.
GROUPS = {"dkdv": (1, 4)}
NO_PRODUCT = ("delta", "own_candidates", *FIXED)


@dataclass
class Row:
    """The resources of one kernel, compiled for one architecture."""

    kernel: str
    arch: str
    dtype: str
    size: int
    config: Config
    registers: int = 0
    stack: int = 0
    shared: int = 0
    tensor_memory: int = 0
    local_in_loop: int = 0
    matrix: Counter[str] = field(default_factory=Counter)
    narrow: list[str] = field(default_factory=list)
    error: str = ""

    def add(self, metadata: Any, found: Resources, narrow: list[str]) -> None:
        """Count a form of the kernel: the most of each resource, and the fewest tensor-core instructions."""
        first = not self.registers
        self.registers, self.stack = max(self.registers, found.registers), max(self.stack, found.stack)
        self.shared = max(self.shared, metadata.shared)
        self.tensor_memory = max(self.tensor_memory, getattr(metadata, "tmem_size", None) or 0)
        self.local_in_loop = max(self.local_in_loop, found.local_in_loop)
        self.matrix = found.matrix if first else min(self.matrix, found.matrix, key=Counter.total)
        self.narrow += narrow

    @property
    def faults(self) -> list[str]:
        found = [self.error] if self.error else []
        if self.shared > SHARED[self.arch]:
            found.append("shared memory")
        if self.tensor_memory > TENSOR_MEMORY:
            found.append("tensor memory")
        if self.local_in_loop and (self.size <= WIDEST or self.kernel in VOCABULARY):
            found.append("local memory in a loop")
        if self.narrow:
            found.append(f"a 32-bit product, {self.narrow[0]}")
        if not (self.error or self.matrix or self.kernel in NO_PRODUCT):
            found.append("no tensor cores")
        return found


#: What a caller of attention can leave out. Of the other kernels, padding, a bias and rows with gaps.
OPTIONS = ("window", "key_range", "gate", "softcap", "sink", "slopes", "segments", "blocks")


@dataclass(frozen=True)
class Problem:
    """The problem: 8 × 12 × length, causal, with some of `OPTIONS`; ``group`` query heads share a key head.

    What keys receive is summed over ``sums`` groups of queries.
    """

    length: int = 1024
    options: tuple[str, ...] = ()
    group: int = 1
    sums: int = 3


def call_of(dtype: torch.dtype, size: int, problem: Problem) -> Call:
    """A call of attention as a user's would be, on tensors without storage."""
    length = problem.length
    q = torch.empty(8, 12, length, size, dtype=dtype, device="meta")
    k, v = (torch.empty(8, 12 // problem.group, length, size, dtype=dtype, device="meta") for _ in range(2))
    of_head, ids = torch.empty(12, device="meta"), torch.empty(8, length, dtype=torch.int64, device="meta")
    values = {
        "window": 100, "key_range": torch.empty(8, 2, dtype=torch.int64, device="meta"), "gate": of_head.expand(8, 12),
        "softcap": 50.0, "sink": of_head, "slopes": of_head, "segments": ids, "blocks": ids,
    }  # fmt: skip
    return Call(q, k, v, causal=True, scale=size**-0.5, **{name: values[name] for name in problem.options})


def launches(kernel: str, dtype: torch.dtype, size: int, problem: Problem) -> None:
    """Call the launcher of ``kernel`` as a user's call would, on tensors without storage."""
    kernel, length, call = ROW_SUMS.get(kernel, kernel), problem.length, call_of(dtype, size, problem)
    q, grad = call.q, torch.empty(8, 12, length, size, dtype=dtype, device="meta")
    lse = torch.empty(8, 12, length, device="meta")
    groups = torch.empty(8, length, dtype=torch.int64, device="meta")
    rows = torch.empty(8, 4, dtype=torch.int64, device="meta")
    learns = call.slopes is not None  # the heavier kernel: most models' slopes are fixed
    runs = {
        "attention_forward": lambda: forward.attention_forward(call),
        **dict.fromkeys(
            ("delta", "dq", "dkdv"), lambda: backward.attention_backward(call, grad, q, lse, learns, None, None, 0, 0)
        ),
        "dq_flow": lambda: backward.attention_backward(call, grad, q, lse, learns, groups, groups, 2, 2),
        "attention_saliency": lambda: saliency.attention_saliency(call, grad, lse, signed=True),
        "attention_flow": lambda: flow.attention_flow(call, grad, lse, groups, groups, 2, 2, False),
        "attention_saliency_rows": lambda: saliency_rows.attention_saliency_rows(call, grad, lse, rows),
        "attention_weights": lambda: weights.attention_weights(call, lse, groups, problem.sums, True),
        "attention_pooled": lambda: weights.attention_pooled(call, lse, 16, False),
    }
    runs[kernel]()


def vocabulary_launches(kernel: str, dtype: torch.dtype, size: int, problem: Problem) -> None:
    rows, entries, count = 8 * problem.length, 50257, 100
    hidden, weight = (torch.empty(n, size, dtype=dtype, device="meta") for n in (rows, entries))
    if problem.options:
        # Columns that are not adjacent are right too, but on sm_90 they touch local memory in float16.
        hidden, weight = (torch.empty(n, 2 * size, dtype=dtype, device="meta")[:, :size] for n in (rows, entries))
    bias = torch.empty(entries, dtype=dtype, device="meta") if problem.options else None
    shape = (rows, count) if kernel == "own_candidates" else (count,)
    head = vocabulary.Head(hidden, weight, bias, torch.empty(shape, dtype=torch.int64, device="meta"))
    lse, grad = (torch.empty(*shape, dtype=torch.float32, device="meta") for shape in ((rows,), (rows, count)))
    runs = {
        "vocabulary_lse": lambda: vocabulary.log_sum_exp(head),
        "logits_gradient": lambda: vocabulary.gradients(head, grad, lse, True, False, False),
        **dict.fromkeys(("shared_candidates", "own_candidates"), lambda: vocabulary.surprisal(head, lse)),
    }
    runs[kernel]()


def ssd_launches(kernel: str, dtype: torch.dtype, size: int, problem: Problem) -> None:
    length, heads = problem.length, 12
    x, grad = (torch.empty(8, length, heads, 64, dtype=dtype, device="meta") for _ in range(2))
    b, c = (torch.empty(8, length, 1, size, dtype=dtype, device="meta") for _ in range(2))
    dt, A = torch.empty(8, length, heads, device="meta"), torch.empty(heads, device="meta")
    ids = torch.empty(8, length, dtype=torch.int64, device="meta")
    bounds = torch.empty(8, 2, dtype=torch.int64, device="meta") if problem.options else None
    scan = ssd_launch.Call(x, dt, A, b, c, bounds)
    runs = {
        "ssd_saliency": lambda: ssd_saliency.ssd_saliency(scan, grad, True),
        "ssd_flow": lambda: ssd_saliency.ssd_flow(scan, grad, ids, ids, 2, 2, False),
        **dict.fromkeys(
            ("ssd_forward", "ssd_states", "ssd_pass", "prefix_sums"), lambda: ssd_forward.ssd_forward(scan, None)
        ),
        **dict.fromkeys(("ssd_dx", "ssd_dbdc"), lambda: ssd_backward.ssd_backward(scan, grad, None, None)),
    }
    runs[kernel]()


FUNCTIONS = {
    "delta": "delta_kernel", "dq": "dq_kernel", "dq_flow": "dq_kernel", "dkdv": "dkdv_kernel",
    "ssd_saliency": "attention_saliency_kernel", "ssd_flow": "attention_flow_kernel",
    "ssd_forward": "ssd_output_kernel", **dict.fromkeys(ROW_SUMS, "attention_row_sums_kernel"),
}  # fmt: skip


@contextmanager
def as_on(arch: str) -> Iterator[None]:
    """Within the block, tensors of any device are taken for those of a GPU of this architecture."""
    with (
        mock.patch.object(launch, "architecture_of", return_value=arch),
        mock.patch.dict(launch._remembered, clear=True),  # it knows one architecture of a device
    ):
        yield


def compiled(kernel: str, arch: str, dtype: torch.dtype, size: int, config: Config, problem: Problem) -> Any:
    """The kernel compiled for ``arch``, with the launcher's arguments specialised as by the just-in-time compiler."""
    name, result = FUNCTIONS.get(kernel, f"{kernel}_kernel"), None

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        nonlocal result
        if self.__name__ == name and result is None:
            options = {name: kwargs[name] for name in ("num_warps", "num_stages") if name in kwargs}
            result = triton.compile(*source(self, args, kwargs), target=TARGETS[arch], options=options)

    def chosen(asked: str, *rest: Any) -> Config:
        if asked == SHARING.get(kernel, kernel):
            return config
        # The chunks of SSD's backward pass are those of its forward pass.
        return shipped(asked, *rest) if asked in SSD else Config(64, 64, 4, 1)

    with (
        as_on(arch),
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(launch, "shipped", chosen),
        mock.patch.object(triton.runtime.driver, "_active", mock.Mock()),  # there is no device to ask for
    ):
        launch_all = vocabulary_launches if kernel in VOCABULARY else ssd_launches if kernel in SSD else launches
        launch_all(kernel, dtype, size, problem)
    assert result is not None
    return result


def source(function: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[ASTSource]:
    bound = dict(zip(function.arg_names, args, strict=False)) | {
        key: value for key, value in kwargs.items() if key in function.arg_names
    }
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(function.params):
        value = bound[parameter.name]
        fixed = parameter.is_constexpr or value is None
        if fixed or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + {
                torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64",
                torch.int32: "i32", torch.float64: "fp64",
            }[value.dtype]  # fmt: skip
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return (ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes),)


Job = tuple[str, str, str, int, Config | None, Problem]


def shipped_for(kernel: str, arch: str, dtype: torch.dtype, size: int, problem: Problem) -> Config:
    """The configuration with which ``kernel`` is launched."""
    name, lighter = SHARING.get(kernel, kernel), False
    if kernel not in (*SSD, *VOCABULARY):
        with as_on(arch):
            lighter = call_of(dtype, size, problem).bends
    return FIXED.get(kernel) or shipped(name, KERNELS, arch, launch.block_of(size), dtype.itemsize, lighter)


def examine(job: Job) -> Row:
    kernel, arch, dtype, size, config, problem = job
    element = getattr(torch, dtype)
    config = config or shipped_for(kernel, arch, element, size, problem)
    row = Row(kernel, arch, dtype, size, config)
    for group in GROUPS.get(kernel, (1,)):
        try:
            result = compiled(kernel, arch, element, size, config, replace(problem, group=group))
        except Exception as error:
            words = [line for line in str(error).splitlines() if re.search(r"\w", line)]  # not a caret below the source
            row.error = words[-1].strip()[:80] if words else type(error).__name__
            return row
        found = of_cubin(result.asm["cubin"]) if "cubin" in result.asm else of_amdgcn(result.asm["amdgcn"])
        row.add(result.metadata, found, narrow_products(result.asm["ttir"]))
    return row


def jobs(arguments: argparse.Namespace) -> list[Job]:
    config = Config(*arguments.config) if arguments.config else None
    problem = Problem(arguments.length, tuple(OPTIONS if arguments.all_options else arguments.option))
    return [
        (kernel, arch, dtype, size, config, problem)
        for arch in arguments.arch
        for dtype in arguments.dtype
        for size in (*arguments.head_size, HIDDEN_SIZE)
        for kernel in arguments.kernel or ALL
        if (kernel in VOCABULARY) == (size == HIDDEN_SIZE)
        if size <= WIDEST or kernel in VOCABULARY or not (kernel in SSD or arch in WITHOUT_WIDE)
        if dtype == "float32" or kernel not in (*ROW_SUMS, *FIXED)
    ]


def table(rows: list[Row]) -> str:
    head = (
        "| kernel | architecture | dtype | D | BM×BN, warps, stages | registers | stack | shared KiB "
        "| LDL/STL in loops | tensor cores |"
    )
    out = [head, "|---" * 10 + "|"]
    for row in rows:
        c = row.config
        matrix = " ".join(f"{n} {name}" for name, n in sorted(row.matrix.items())) or "–"
        out.append(
            f"| {row.kernel} | {row.arch} | {row.dtype} | {row.size} | {c.BM}×{c.BN}, {c.num_warps}, {c.num_stages} | "
            f"{row.registers} | {row.stack} | {row.shared / 1024:.0f} | {row.local_in_loop} | {row.error or matrix} |"
        )
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument(
        "--dtype", nargs="+", choices=["bfloat16", "float16", "float32"], default=["bfloat16", "float32"]
    )
    parser.add_argument(
        "--head-size", nargs="+", type=integer(1, 576), default=list(HEAD_SIZES), metavar="SIZE",
        help="of the attention kernels; default: all",
    )  # fmt: skip
    parser.add_argument("--kernel", nargs="+", choices=ALL)
    parser.add_argument(
        "--config",
        nargs=4,
        type=integer(),
        metavar=("BM", "BN", "WARPS", "STAGES"),
        help="compile this configuration instead of the table's",
    )
    parser.add_argument("--length", type=integer(), default=1024, help="queries and keys; default: %(default)s")
    parser.add_argument(
        "--all-options",
        action="store_true",
        help="compile for everything that a caller can leave out",
    )
    parser.add_argument("--option", nargs="+", choices=OPTIONS, default=[], help="compile for these")
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 2))) as pool:
        rows = list(pool.map(examine, jobs(arguments)))
    text = table(rows)
    print(text)
    faulty = [row for row in rows if row.faults]
    for row in faulty:
        print(f"{row.kernel} {row.arch} {row.dtype} D {row.size}: {', '.join(row.faults)}", file=sys.stderr)
    whole = not (arguments.kernel or arguments.config or arguments.all_options or arguments.option) and all(
        getattr(arguments, name) == parser.get_default(name) for name in ("arch", "dtype", "head_size", "length")
    )
    if whole and not arguments.no_save:  # the page is of every shipped configuration
        path = ROOT / "benchmarks" / "results" / "kernels.md"
        path.write_text(updated(path.read_text(), text, triton.__version__, bool(faulty)))
    return 1 if faulty else 0


if __name__ == "__main__":
    raise SystemExit(main())
