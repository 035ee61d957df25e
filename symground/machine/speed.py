"""What ``impl=None`` picks on a device, and the time of one attention layer beside scaled_dot_product_attention."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from symground import ops
from symground.machine.finding import Finding


def picked(device: str) -> Iterator[Finding]:
    """What would run for typical calls, and why the others would not."""
    dtypes = (torch.float32,) if device == "cpu" else (torch.bfloat16, torch.float32)
    for dtype in dtypes:
        q = torch.zeros(2, 4, 8, 64, dtype=dtype, device=device)
        x, steps, decay = q.transpose(1, 2), q[..., 0].transpose(1, 2), -torch.ones(4, device=device)
        bounds, gate = torch.tensor([[0, 8], [2, 8]], device=device), torch.ones(4, device=device)
        ids = torch.zeros(2, dtype=torch.long, device=device)
        calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
            "attention": ((q, q, q), {}), "attention, padding": ((q, q, q), {"key_range": bounds}),
            "attention, window": ((q, q, q), {"window": 3}), "attention, gate": ((q, q, q), {"gate": gate}),
            "attention_saliency": (("attention_saliency", q, q, q, q, q[..., 0].float()), {}),
            "ssd": (("ssd", x, steps, decay, x, x), {}),
            "linear_cross_entropy": (("linear_cross_entropy", q[0, 0, :2], q[0, 0], ids), {}),
            "gate_heads": (("gate_heads", x, gate), {}),
        }  # fmt: skip
        for name, (given, how) in calls.items():
            found = ops.explain(*given, **how)
            yield Finding(
                "picked", device, "right", str(found.impl), name, str(dtype).removeprefix("torch."), more=found.reasons
            )


def timed(device: str) -> Iterator[Finding]:
    """Milliseconds of a layer's forward and backward pass: of the host, of the kernels, and in all."""
    gpu = device != "cpu"
    shape, dtype = ((4, 16, 1024, 64), torch.bfloat16) if gpu else ((1, 8, 512, 64), torch.float32)
    q, k, v, grad = (torch.randn(shape, dtype=dtype, device=device) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    probe = torch.zeros(1, device=device).expand(shape[0], shape[2], shape[2]).requires_grad_()

    def ours() -> None:
        torch.autograd.grad(ops.attention(q, k, v)[0], leaves, grad)

    def with_saliency() -> None:
        torch.autograd.grad(ops.attention(q, k, v, saliency_probe=probe)[0], [*leaves, probe], grad)

    def theirs() -> None:
        torch.autograd.grad(scaled_dot_product_attention(q, k, v, is_causal=True), leaves, grad)

    layers = {"symground": ours, "symground, with saliency": with_saliency, "SDPA": theirs}
    for name, run in layers.items():
        (host, whole), kernels = _milliseconds(run, gpu), _kernels(run) if device == "cuda" else None
        size = "B{} H{} T{} D{}".format(*shape)
        said = f"{whole:.2f} ms" + (f", the host {host:.2f} ms" if gpu else "")
        said += "" if kernels is None else f", the kernels {kernels:.2f} ms"
        yield Finding(
            "time", device, "right", said, f"{name}, forward + backward, {size}", str(dtype).removeprefix("torch."),
            more={"host": host, "whole": whole, "kernels": kernels},
        )  # fmt: skip


def _milliseconds(run: Callable[[], None], gpu: bool) -> tuple[float, float]:
    """The host's time, and the whole, of one call; the median of several."""
    hosts, wholes = [], []
    for _ in range(3):
        run()
    for _ in range(20 if gpu else 5):
        _wait(gpu)
        start = time.perf_counter()
        run()
        hosts.append(time.perf_counter() - start)
        _wait(gpu)
        wholes.append(time.perf_counter() - start)
    return 1e3 * sorted(hosts)[len(hosts) // 2], 1e3 * sorted(wholes)[len(wholes) // 2]


def _kernels(run: Callable[[], None], calls: int = 10) -> float | None:
    """The milliseconds of a call's kernels, by the profiler; None where it does not run, as in some containers."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            for _ in range(calls):
                run()
            _wait(gpu=True)
        found = sum(event.self_device_time_total for event in trace.key_averages()) / 1e3 / calls
    except Exception:
        return None
    return found or None


def _wait(gpu: bool) -> None:
    if gpu:
        torch.accelerator.synchronize()
