"""The parts of the GPU record that measure time, memory and the distance from the roofline."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.common import measure
from benchmarks.common.inputs import Inputs, Shape, constant_tokens
from benchmarks.gpu import llava as llava_peers
from benchmarks.gpu.context import Context
from benchmarks.peers import attention as peers
from benchmarks.peers import gate as gate_peers
from benchmarks.peers import mamba as mamba_peers
from benchmarks.peers import surprisal as surprisal_peers
from benchmarks.peers import trace as trace_peers
from benchmarks.peers.attention import Peer
from symground import ops

Run = Callable[[], Any]
#: Peers are timed in turns this many times, because clock rates drift; each row has the median.
PASSES = 3
#: A shape for the interpreter, which is slow.
TINY = Shape(1, 1, 17, 16)
STAGES = ("forward", "backward", "layer", "saliency", "rows")


def _free(c: Context) -> None:
    gc.collect()
    if not c.dry:
        torch.cuda.empty_cache()


def _time(c: Context, run: Run) -> float:
    return measure.seconds(run) if c.dry else measure.gpu_seconds(run)


def _memory(c: Context, run: Run) -> dict[str, int]:
    if c.dry:
        return {}
    peak, result = measure.gpu_memory(run)
    return {"peak_bytes": peak, "result_bytes": result}


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:600]


def timed(c: Context, prepared: dict[str, Callable[[], Run]], label: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per peer: its median time over passes in turns, and its memory, or its error. Other peers still run then.

    If the time runs out between two passes, the finished passes count.
    """
    runs: dict[str, Run] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, prepare in prepared.items():
        rows[name] = {**label, "peer": name}
        try:
            run = prepare()
            run()
            rows[name] |= _memory(c, run)
            runs[name] = run
        except Exception as error:
            rows[name]["error"] = _brief(error)
            _free(c)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(1 if c.dry else PASSES):
        for name, run in runs.items():
            if i and c.left < 0:
                break
            try:
                seconds[name].append(_time(c, run))
            except Exception as error:
                rows[name]["error"] = _brief(error)
    for name, row in rows.items():
        if seconds.get(name):
            row |= {"seconds": measure.median(seconds[name]), "passes": len(seconds[name])}
        if "error" in row and name.startswith(("symground", "sg.")):
            c.write_failure(f"{label}, {name}: {row['error']}")  # a peer may run out of memory; symground must not
        yield row


def measured(c: Context, stages: tuple[str, ...], shape: Shape, compiles: bool) -> None:
    """Measure all peers of the stages at one shape; each row is written at once."""
    rates = c.rates()
    for stage in stages:
        chosen, missing = peers.available((stage,), shape, c.device, compiles)
        c.record["missing"].update({f"{name}, {shape.dtype}": reason for name, reason in missing.items()})
        if compiles:
            # Measure the peers of the goals again in the same turns.
            chosen += [p for p in peers.PEERS if p.stage == stage and p.name in (peers.SYMGROUND, peers.SDPA)]
        inputs = Inputs(shape, c.device, c.impl)
        prepared = {p.name: _prepared(p, inputs) for p in chosen}
        for row in timed(c, prepared, {"stage": stage, **shape.row, "with_compiled": compiles}):
            c.record.add(**row, **_achieved(row, stage, shape, rates))
        del inputs, prepared
        _free(c)


def _prepared(peer: Peer, inputs: Inputs) -> Callable[[], Run]:
    return lambda: peer.prepare(inputs)


def _achieved(row: dict[str, Any], stage: str, shape: Shape, rates: dict[str, float]) -> dict[str, float]:
    if "seconds" not in row:
        return {}
    flops, _ = measure.work(stage, shape)
    floor = measure.floor_seconds(stage, shape, rates) if rates else None
    found = {"tflops": flops / row["seconds"] / 1e12}
    return found if floor is None else {**found, "floor_seconds": floor, "of_floor": floor / row["seconds"]}


def attention(c: Context) -> None:
    """Measure the goals' shapes, the longer one first, then the errors at the shorter one."""
    shapes = [Shape(8, 12, T, 64, dtype) for dtype in c.dtypes for T in (4096, 1024)]
    if c.dry:
        shapes = [TINY]
        c.record["missing"].update({f"{p.stage}: {p.name}": "not in a dry run" for p in peers.PEERS if p.compiles})
    like = {dtype: torch.empty(1, 12, 1024, 64, dtype=getattr(torch, dtype), device=c.device) for dtype in c.dtypes}
    c.record.write(picked={dtype: str(ops.explain(x, x, x)) for dtype, x in like.items()})  # without a name
    _all_measured(c, [(shape, False) for shape in shapes], STAGES)
    if not c.dry and c.left > 0:
        _errors(c)


def lengths(c: Context) -> None:
    """Measure compiled peers at the goals' shapes, then other lengths, until the time is over."""
    lengths = (1024, 4096, 2048, 512, 256, 128)
    goals = [Shape(8, 12, T, 64, "bfloat16") for T in (1024, 4096)]
    half = [constant_tokens(T, "bfloat16") for T in lengths]
    full = [constant_tokens(T) for T in lengths]
    jobs = [
        *((s, True) for s in goals), *((s, False) for s in half), *((s, False) for s in full), (full[0], True),
        *((s, True) for s in half), *((s, True) for s in full[1:]),
    ]  # fmt: skip
    if c.dry:
        _all_measured(c, [(TINY, False)], ("forward",))
    else:
        _all_measured(c, jobs, STAGES)


def _all_measured(c: Context, jobs: list[tuple[Shape, bool]], stages: tuple[str, ...]) -> None:
    for i, (shape, compiles) in enumerate(jobs):
        if c.left < 0:
            c.record.write(not_reached=[f"{s}{', compiled peers' if compiled else ''}" for s, compiled in jobs[i:]])
            return
        measured(c, stages, shape, compiles)


def _errors(c: Context) -> None:
    """Measure the error of saliency against float64, beside that of the eager formula at the same precision."""
    for dtype in c.dtypes:
        x = Inputs(Shape(2, 12, 1024, 64, dtype), c.device, c.impl)
        exact = peers.closed_form(*(t.double() for t in x.detached), x.future, x.scale).double()
        found = {name: peers.find("saliency", name).prepare(x)() for name in (peers.CLOSED, peers.SYMGROUND)}
        found["symground, probe"] = peers.find("layer", peers.SYMGROUND).prepare(x)()
        errors = {name: measure.relative_error(value, exact) for name, value in found.items()}
        c.record.write(relative_errors={**c.record.data.get("relative_errors", {}), dtype: errors})
        del x, exact, found
        _free(c)


def gate(c: Context) -> None:
    """Measure gate_heads beside a copy of x, which moves as many bytes if no gate is 0 or 1; then with mixed gates."""
    from symground.ops.gate.api import implementation

    c.record.write(implementation=implementation(c.device))
    long = (gate_peers.Shape(T=4096, mixed=mixed, dtype=dtype) for mixed in (False, True) for dtype in c.dtypes)
    shapes = [*long, *(gate_peers.Shape(T=1024, mixed=False, dtype=dtype) for dtype in c.dtypes)]
    shapes += [gate_peers.Shape(T=4096, filled=True, dtype=d) for d in c.dtypes]
    shapes += [gate_peers.Shape(M=12, dtype=d) for d in c.dtypes]
    if c.dry:
        shapes = [gate_peers.Shape(1, 5, 3, 7), gate_peers.Shape(1, 5, 3, 7, M=2, filled=True)]
    for i, shape in enumerate(shapes):
        if c.left < 0:
            c.record.write(not_reached=[str(s) for s in shapes[i:]])
            return
        x = gate_peers.Inputs(shape, c.device)
        exact = gate_peers.exact_ends(*(None if t is None else t.double() for t in (x.x, x.gate, x.fill)))
        errors = {
            name: measure.relative_error(gate_peers.PEERS[name](x)(), exact)
            for name in (gate_peers.SYMGROUND, gate_peers.EAGER)
        }
        del exact
        prepared = {n: (lambda n=n, x=x: gate_peers.PEERS[n](x)) for n in gate_peers.names(shape, compiles=not c.dry)}
        for row in timed(c, prepared, {"stage": "gate", **shape.row}):
            c.record.add(**row, **({"relative_error": errors[row["peer"]]} if row["peer"] in errors else {}))
        del x, prepared
        _free(c)


def flow(c: Context) -> None:
    """Measure flow of 3 groups fused into the backward pass, and by the flow kernel with all rows and with one row."""
    shapes = [Shape(8, 12, T, 64, dtype) for dtype in c.dtypes for T in (4096, 1024)]
    if c.dry:
        shapes = [TINY]
    rates = c.rates()
    names = [
        *(("flow", p.name) for p in peers.PEERS if p.stage == "flow"),
        *(("backward", n) for n in (peers.SYMGROUND, "symground + flow of 3 groups", "symground + saliency")),
    ]
    for i, shape in enumerate(shapes):
        if c.left < 0:
            c.record.write(not_reached=[str(s) for s in shapes[i:]])
            return
        x = Inputs(shape, c.device, c.impl)
        prepared = {f"{stage}: {name}": _prepared(peers.find(stage, name), x) for stage, name in names}
        for row in timed(c, prepared, shape.row):
            stage, _, name = row["peer"].partition(": ")
            c.record.add(**{**row, "stage": stage, "peer": name}, **_achieved(row, stage, shape, rates))
        del x, prepared
        _free(c)


def surprisal(c: Context) -> None:
    """Measure the surprisal of shared candidates, with its error against float64, and the training loss."""
    rates = c.rates()
    for dtype in c.dtypes:
        shape = surprisal_peers.Shape(33, 16, 70, 5, dtype) if c.dry else surprisal_peers.Shape(dtype=dtype)
        x = surprisal_peers.Inputs(shape, c.device, c.impl)
        _surprisal_error(c, replace(shape, N=min(shape.N, 256)))
        for stage in surprisal_peers.STAGES:
            names, missing = surprisal_peers.available(stage, dtype, c.device, compiles=not c.dry)
            c.record["missing"].update(missing)
            prepared = {
                name: (lambda name=name, stage=stage, x=x: surprisal_peers.PEERS[name](x, stage)) for name in names
            }
            for row in timed(c, prepared, {"stage": stage, **shape.row}):
                floor = measure.floor_of(row, rates)
                if "seconds" in row and floor is not None:
                    row |= {"floor_seconds": floor, "of_floor": floor / row["seconds"]}
                    row["tflops"] = shape.flops(stage) / row["seconds"] / 1e12
                c.record.add(**row)
            _free(c)


def _surprisal_error(c: Context, shape: surprisal_peers.Shape) -> None:
    """Measure the error against float64, beside that of full logits in eager PyTorch at the same precision."""
    x = surprisal_peers.Inputs(shape, c.device, c.impl)
    exact = surprisal_peers.full_surprisal(x.hidden.detach().double(), x.weight.detach().double(), x.candidates)
    errors = {
        name: measure.relative_error(surprisal_peers.PEERS[name](x, "surprisal")(), exact)
        for name in (surprisal_peers.SYMGROUND, surprisal_peers.FULL)
    }
    c.record.write(relative_errors={**c.record.data.get("relative_errors", {}), shape.dtype: errors})


def mamba(c: Context) -> None:
    """Measure SSD and saliency in a layer of the study's width, with errors against float64, and a training step."""
    shapes = {
        stage: [mamba_peers.Shape(8, T, 24, 64, 1, 128, dtype=dtype) for dtype in c.dtypes for T in (1024, 4096)]
        for stage in ("ssd", "ssd saliency")
    }
    shapes["mamba2 step"] = [mamba_peers.Shape(8, 1024, 24, 64, 1, 128, layers=12, vocabulary=9000)]
    if c.dry:
        shapes = {stage: [mamba_peers.Shape(1, 19, 2, 16, 1, 16, 1, 50)] for stage in shapes}
    jobs = [(stage, shape) for stage, of_stage in shapes.items() for shape in of_stage]
    for i, (stage, shape) in enumerate(jobs):
        if c.left < 0:
            c.record.write(not_reached=[f"{s}, {x}" for s, x in jobs[i:]])
            return
        error = {} if stage == "mamba2 step" else {"relative_error": _mamba_error(c, stage, replace(shape, B=1))}
        x = mamba_peers.problem(stage, shape, c.device, c.impl)
        names = mamba_peers.names(stage, c.device, compiles=not c.dry)
        prepared = {name: (lambda name=name, x=x, s=stage: mamba_peers.prepare(s, name, x)) for name in names}
        for row in timed(c, prepared, {"stage": stage, **shape.row}):
            c.record.add(**row, **(error if row["peer"] == mamba_peers.SYMGROUND else {}))
        del x, prepared
        _free(c)


def _mamba_error(c: Context, stage: str, shape: mamba_peers.Shape) -> float:
    x = mamba_peers.Inputs(replace(shape, T=min(shape.T, 1024)), c.device, c.impl)
    given, grad = x.detached, x.grad
    doubles = [z.double() for z in given]
    if stage == "ssd":
        return measure.relative_error(ops.ssd(*given, impl=x.impl), ops.ssd(*doubles, impl="reference"))
    exact = ops.ssd_saliency(*doubles, grad.double(), impl="reference")
    return measure.relative_error(ops.ssd_saliency(*given, grad, impl=x.impl), exact)


def training(c: Context) -> None:
    """Measure a training step of the study's GPT-2, 12 layers of width 768, beside its peers."""
    from benchmarks.peers import training as training_peers  # it has dependencies that the other parts do without

    shapes = [training_peers.Shape("gpt2-12l-768", 32, 512, 12_714, precision) for precision in c.dtypes]
    if c.dry:
        shapes = [training_peers.Shape("gpt2-4l", 2, 8, 50)]
    for shape in shapes:
        if c.left < 0:
            c.record.write(not_reached=[str(shape)])
            return
        names = [name for name in training_peers.PEERS if not (c.dry and name == training_peers.COMPILED)]
        prepared = {name: (lambda n=name, x=shape: training_peers.prepare(n, x, c.device)) for name in names}
        for row in timed(c, prepared, {"stage": training_peers.STAGE, "device": c.device, **shape.row}):
            c.record.add(**row)
        _free(c)


def trace(c: Context) -> None:
    """Measure a trace of a 12-layer GPT-2 with random weights, B2 T1024, beside its peers."""
    names, missing = trace_peers.available()
    c.record["missing"].update(missing)
    for dtype in c.dtypes:
        model = trace_peers.Model(dtype=dtype, device=c.device)
        if c.dry:
            model = trace_peers.Model(1, 16, 2, 2, 16, 101, dtype, c.device)
        prepared = {name: (lambda name=name, model=model: trace_peers.PEERS[name](model)) for name in names}
        for row in timed(c, prepared, {"stage": "trace", **model.row}):
            c.record.add(**row)
        _free(c)


def llava(c: Context) -> None:
    """Measure a trace in the shape of LLaVA-1.5-7B with one example. Eager attention needs B·H·T² numbers per layer."""
    _, missing = trace_peers.available()
    c.record["missing"].update(missing)
    names = [n for n in llava_peers.PEERS if not (missing and n.startswith("sg."))]
    shapes = [llava_peers.Model(T) for T in (1024, 8192, 32_768)]
    if c.dry:
        shapes = [llava_peers.Model(20, 1, 2, 16, 24, 60, 2, (1, 16, 2), "float32", c.device)]
    for i, shape in enumerate(shapes):
        if c.left < 0:
            c.record.write(not_reached=[f"T {s.T}" for s in shapes[i:]])
            return
        x = llava_peers.Inputs(shape)
        prepared = {name: (lambda name=name, x=x: llava_peers.PEERS[name](x)) for name in names}
        for row in timed(c, prepared, {"stage": llava_peers.STAGE, **shape.row}):
            c.record.add(**row)
        del x, prepared
        _free(c)
