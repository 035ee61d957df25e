"""Every op once, on small shapes, forward and backward; the sanitizer and the determinism check run this.

python -m benchmarks ops            # on the GPU if there is one, else the CPU implementation
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground import ops


class Problem(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    query_groups: Tensor
    key_groups: Tensor
    rows: Tensor
    kw: dict[str, Any]

    def double(self) -> Problem:
        """The same numbers in float64."""
        kw = {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in self.kw.items()}
        q, k, v, grad = (x.double() for x in self[:4])
        return self._replace(q=q, k=k, v=v, grad=grad, kw=kw)

    @property
    def wide(self) -> torch.dtype:
        """The dtype of probes, steps and states."""
        return torch.promote_types(self.q.dtype, torch.float32)


def _problem(B: int, H: int, Hk: int, T: int, D: int, dtype: str, device: str, **kw: Any) -> Problem:
    g = torch.Generator().manual_seed(0)

    def normal(heads: int) -> Tensor:
        return torch.randn(B, heads, T, D, generator=g).to(device, getattr(torch, dtype))

    def integers(low: int, high: int, n: int) -> Tensor:
        return torch.randint(low, high, (B, n), generator=g).to(device)

    return Problem(
        normal(H), normal(Hk), normal(Hk), normal(H), integers(-1, 3, T), integers(-1, 3, T), integers(0, T, 4), kw
    )


def plain(dtype: str, device: str) -> Problem:
    return _problem(4, 12, 12, 1024, 64, dtype, device)


def padded(dtype: str, device: str) -> Problem:
    """Sizes that are no multiples of a tile, with grouped heads, padding on both sides and a closed head."""
    key_range = torch.tensor([[0, 77], [5, 60]], device=device)
    gate = torch.tensor([1.0, 0.0, 0.5, 1.0], device=device)
    return _problem(2, 4, 2, 77, 64, dtype, device, key_range=key_range, gate=gate)


def windowed(dtype: str, device: str) -> Problem:
    return _problem(1, 2, 2, 130, 128, dtype, device, window=40)


def tiny(dtype: str, device: str) -> Problem:
    """A small problem for the interpreter, which is slow."""
    return _problem(1, 2, 1, 17, 16, dtype, device)


#: Name → a problem of a dtype on a device; those of a GPU, and all.
ON_GPU = ("plain", "padded", "windowed")
CASES: dict[str, Callable[[str, str], Problem]] = {"plain": plain, "padded": padded, "windowed": windowed, "tiny": tiny}


def results(p: Problem, impl: str | None = None, families: Collection[str] | None = None) -> dict[str, Tensor]:
    """name → a result, for every op; on a GPU by symground's kernels even if another library comes first."""
    impl = impl or ("triton" if p.q.is_cuda else None)
    found: dict[str, Tensor] = {}
    for family, of_family in FAMILIES.items():
        if families is None or family in families:
            found |= of_family(p, impl)
    return found


def _attention(p: Problem, impl: str | None) -> dict[str, Tensor]:
    q, k, v = (x.detach().requires_grad_() for x in (p.q, p.k, p.v))
    B, H, T, _ = q.shape
    kw: dict[str, Any] = {**p.kw, "impl": impl}
    zero = torch.zeros(1, dtype=p.wide, device=q.device)
    saliency_probe = zero.expand(B, T, k.shape[2]).requires_grad_()
    flow_probe = zero.expand(B, H, 3, 3).requires_grad_()
    out, lse = ops.attention(
        q, k, v, saliency_probe=saliency_probe, flow_probe=flow_probe, query_groups=p.query_groups,
        key_groups=p.key_groups, **kw,
    )  # fmt: skip
    grads = torch.autograd.grad(out, (q, k, v, saliency_probe, flow_probe), p.grad)
    after = (p.q, p.k, p.v, p.grad, lse)
    groups = (p.query_groups, p.key_groups, 3, 3)
    flow, row_total, matrix_total = ops.attention_flow(*after, *groups, **kw)
    chosen, chosen_total, _ = ops.attention_flow(*after, *groups, with_matrix_total=False, **kw)
    assert matrix_total is not None
    names = ("dq", "dk", "dv", "saliency of the probe", "flow of the probe")
    return {
        "out": out.detach(), "lse": lse, **dict(zip(names, grads, strict=True)),
        "saliency": ops.attention_saliency(*after, **kw), "flow": flow, "row total": row_total,
        "matrix total": matrix_total, "flow of chosen rows": chosen, "row total of chosen rows": chosen_total,
        "rows": ops.attention_saliency_rows(*after, p.rows, **kw),
    }  # fmt: skip


def _weights(p: Problem, impl: str | None) -> dict[str, Tensor]:
    """What is read off the weights, which no gate changes. The largest weight's key may differ where two are close."""
    q, k = (x.detach().requires_grad_() for x in (p.q, p.k))
    kw: dict[str, Any] = {**{name: x for name, x in p.kw.items() if name != "gate"}, "impl": impl}
    with torch.no_grad():
        _, lse = ops.attention(q, k, p.v, **kw)
    groups = (p.query_groups, p.key_groups, 3, 3)
    summary = ops.attention_summary(q, k, lse, **kw)
    found = {
        "rows": ops.attention_rows(q, k, lse, p.rows, **kw), "mass": ops.attention_mass(q, k, lse, *groups, **kw),
        "received": ops.attention_received(q, k, lse, **kw), "entropy": summary.entropy,
    }  # fmt: skip
    grads = torch.autograd.grad([x.square().sum() for x in found.values()], (q, k))
    found |= {
        "dq": grads[0], "dk": grads[1], "largest weight": summary.weight, "distance": summary.distance,
        "pooled": ops.attention_pooled(q, k, lse, 16, **kw),
        "largest weights": ops.attention_topk(q, k, lse, 4, **kw)[0],
    }  # fmt: skip
    return {f"weights: {name}": value.detach() for name, value in found.items()}


def _gated(p: Problem, impl: str | None) -> dict[str, Tensor]:
    """gate_heads with one gate per head and with two masks, on aligned rows of whole vectors and on others."""
    impl = impl if impl == "reference" else None  # it has no Triton kernel
    B, H = p.q.shape[:2]
    x, fill = (t.detach().transpose(1, 2)[..., 1:].requires_grad_() for t in (p.q, p.grad))
    some = torch.tensor([0.0, 1.0, 0.3], device=x.device).to(p.wide)
    found = {}
    for name, shape in (("a head", (H,)), ("two masks", (2, B, H))):
        gate = some.repeat(2 * B * H)[: torch.Size(shape).numel()].view(shape).requires_grad_()
        for given in (p.q.detach().transpose(1, 2), x):  # the rows of x are not aligned
            out = ops.gate_heads(given, gate, fill if given is x else None, impl=impl)
            found[f"gated by {name}, {given.shape[-1]} numbers"] = out.detach()
        grads = torch.autograd.grad(out, (x, gate, fill), torch.ones_like(out))
        found |= {f"gated by {name}: d{key}": g for key, g in zip(("x", "gate", "fill"), grads, strict=True)}
    return found


def _ssd(p: Problem, impl: str | None) -> dict[str, Tensor]:
    """SSD, which has no window."""
    batch, heads, _, size = p.q.shape
    x, B, C, grad = (z.detach().transpose(1, 2).requires_grad_() for z in (p.q, p.k, p.v, p.grad))
    dt = p.q[..., 0].transpose(1, 2).float().sigmoid().to(p.wide).requires_grad_()
    A = -torch.linspace(0.1, 2.0, heads, device=x.device).to(p.wide).requires_grad_()
    state = p.grad[:, :, :1].to(p.wide).mT.expand(batch, heads, size, size).contiguous().requires_grad_()
    zero = torch.zeros(1, dtype=p.wide, device=x.device)
    saliency_probe = zero.expand(batch, x.shape[1], x.shape[1]).requires_grad_()
    flow_probe = zero.expand(batch, heads, 3, 3).requires_grad_()
    groups = (p.query_groups, p.key_groups)
    y, last = ops.ssd(
        x, dt, A, B, C, p.kw.get("key_range"), state, saliency_probe, flow_probe, *groups, return_state=True, impl=impl
    )
    wanted = (x, dt, A, B, C, state, saliency_probe, flow_probe)
    grads = torch.autograd.grad((y, last), wanted, (grad.detach(), torch.ones_like(last)))
    after = (*(z.detach() for z in (x, dt, A, B, C)), grad.detach())
    kw: dict[str, Any] = {"key_range": p.kw.get("key_range"), "impl": impl}
    flow, row_total, matrix_total = ops.ssd_flow(*after, *groups, 3, 3, **kw)
    assert matrix_total is not None
    names = ("dx", "ddt", "dA", "dB", "dC", "dstate", "saliency of the probe", "flow of the probe")
    found = {
        "y": y.detach(), "state": last.detach(), **dict(zip(names, grads, strict=True)),
        "saliency": ops.ssd_saliency(*after, **kw), "flow": flow, "row total": row_total,
        "matrix total": matrix_total,
    }  # fmt: skip
    return {f"SSD: {name}": value for name, value in found.items()}


def _of_head(p: Problem, impl: str | None) -> dict[str, Tensor]:
    """Surprisal and the loss with a vocabulary of v's rows and one more word, which is no multiple of a tile."""
    size = p.q.shape[3]
    hidden = p.q.detach().reshape(-1, size).requires_grad_()
    rows = p.v.detach().reshape(-1, size)
    weight = torch.cat([rows, rows[:1] * 0.5]).requires_grad_()
    targets = p.rows.flatten().repeat(-(-len(hidden) // p.rows.numel()))[: len(hidden)]
    found = {}
    for name, candidates in (("shared", p.rows[0]), ("own", torch.stack([targets, targets + 1], 1))):
        out = ops.candidate_surprisal(hidden, weight, candidates, impl=impl)
        found[f"surprisal of {name} candidates"] = out.detach()
        found |= _gradients(f"surprisal of {name} candidates", out.square().sum(), hidden, weight)
    loss = ops.linear_cross_entropy(hidden, weight, targets, ignore_index=int(targets[0]), impl=impl)
    return {**found, "loss": loss.detach(), **_gradients("loss", loss, hidden, weight)}


def _gradients(name: str, of: Tensor, hidden: Tensor, weight: Tensor) -> dict[str, Tensor]:
    dh, dw = torch.autograd.grad(of, (hidden, weight))
    return {f"{name}: dhidden": dh, f"{name}: dweight": dw}


FAMILIES = {"attention": _attention, "weights": _weights, "vocabulary": _of_head, "gate": _gated, "ssd": _ssd}


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype in ("bfloat16", "float32"):
        for name in ("padded", "windowed"):
            found = results(CASES[name](dtype, device))
            print(f"{name} {dtype}: {len(found)} results")
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
