"""Every op again, in float64 and plain PyTorch with materialised matrices: the oracle for the implementations.

Nothing here is imported from the package. A function takes the arguments of the op by name and returns its results,
differentiable in each floating-point argument; `matrix` of its result is A or M [B,H,T,S], to which a flow probe
applies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


class Found(NamedTuple):
    results: tuple[Tensor | None, ...]
    matrix: Tensor | None = None


def seen(z: dict[str, Any], queries: int, keys: int) -> Tensor:
    """[B or 1,1,T,S]"""
    i, j = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)[None]
    ok = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    if z.get("causal", True):
        ok = ok & (j <= i)
    if z.get("window") is not None:
        ok = ok & (j > i - min(int(z["window"]), 10**9))
    if z.get("blocks") is not None:
        of = z["blocks"].long()[:, None]  # [B,1,S]
        of_query = of[..., keys - queries :, None]
        ok = ok | ((of_query == of[..., None, :]) & (of_query != -1))
    if z.get("segments") is not None:
        of = z["segments"].long()[:, None]
        ok = ok & (of[..., keys - queries :, None] == of[..., None, :])
    if z.get("key_range") is not None:
        r = z["key_range"].long()[:, :, None, None, None]
        ok = ok & (j >= r[:, 0]) & (j < r[:, 1])
    return ok


def spread(gate: Tensor | None) -> Tensor | float:
    return 1.0 if gate is None else gate[..., None, None]


def scores(z: dict[str, Any]) -> Tensor:
    q, k = z["q"], z["k"]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scale = q.shape[-1] ** -0.5 if z.get("scale") is None else float(z["scale"])
    s = torch.einsum("bhid,bhjd->bhij", q, k) * scale
    if z.get("softcap") is not None:
        s = float(z["softcap"]) * (s / float(z["softcap"])).tanh()
    if z.get("slopes") is not None:
        i, j = torch.arange(s.shape[2])[:, None] + s.shape[3] - s.shape[2], torch.arange(s.shape[3])
        s = s + z["slopes"][:, None, None] * (j - i)
    return s


def attention(z: dict[str, Any]) -> Found:
    ok = seen(z, z["q"].shape[2], z["k"].shape[2])
    s = scores(z)
    low = s.masked_fill(~ok, float("-inf"))
    if z.get("sink") is not None:
        sink = z["sink"][:, None, None].expand(*s.shape[:3], 1)
        low = torch.cat([low, sink], -1)
    lse = low.logsumexp(-1) if low.shape[-1] else low.new_full(low.shape[:3], float("-inf"))
    a = torch.where(ok, (s - lse.masked_fill(lse.isneginf(), 0.0)[..., None]).masked_fill(~ok, 0.0).exp(), 0.0)
    if z.get("saliency_probe") is not None:
        a = a * (1 + z["saliency_probe"][:, None])
    v = z["v"].repeat_interleave(z["q"].shape[1] // z["v"].shape[1], 1)
    return Found((torch.einsum("bhij,bhjd->bhid", a, v) * spread(z.get("gate")), lse.detach()), a)


def weights(z: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """A and the scores [B,H,T,S], and which keys are seen. A has the LSE given, with the derivatives of its own."""
    ok, s = seen(z, z["q"].shape[2], z["k"].shape[2]), scores(z)
    level = z["lse"].detach().masked_fill(~ok.any(-1), 0.0)

    def by(level: Tensor) -> Tensor:
        return torch.where(ok, (s - level[..., None]).masked_fill(~ok, 0.0).exp(), 0.0)

    total = by(level).sum(-1)
    if z.get("sink") is not None:
        total = total + torch.where(ok.any(-1), z["sink"][:, None] - level, -1e9).exp()
    return by(level + (1 + total - total.detach()).log()), s, ok


def received(z: dict[str, Any], a: Tensor) -> Tensor:
    if z.get("query_groups") is None:
        return a.sum(2, keepdim=True)
    return torch.einsum("bgi,bhij->bhgj", one_hot(z["query_groups"], int(z["num_query_groups"])), a)


def mass(z: dict[str, Any], a: Tensor) -> Tensor:
    return torch.einsum("bhgj,bcj->bhgc", received(z, a), one_hot(z["key_groups"], int(z["num_key_groups"])))


def summary(z: dict[str, Any]) -> Found:
    a, s, ok = weights(z)
    a, s, ok = a, s.detach(), ok.expand_as(s)
    queries, keys = s.shape[2:]
    entropy = -torch.where(a > 0, a * a.clamp(min=1e-300).log(), 0.0).sum(-1)
    none = s.new_zeros(s.shape[:3])
    key, weight, score, distance = none.long() - 1, none.clone(), none - float("inf"), none.clone()
    for j in range(keys):  # one key after another: a larger score takes the place of a smaller one
        better = ok[..., j] & ((s[..., j] > score) | (key < 0))
        key[better], score[better], weight[better] = j, s[..., j][better], a[..., j].detach()[better]
        distance += a[..., j].detach() * (torch.arange(queries) + keys - queries - j)
    return Found((entropy, weight, key, score, distance))


def pooled(z: dict[str, Any]) -> Found:
    a, block = weights(z)[0].detach(), int(z["block"])
    rows = [
        torch.stack(
            [x.amax((-2, -1)) if z["reduce"] == "max" else x.sum((-2, -1)) for x in part.split(block, -1)], -1
        )
        for part in a.split(block, -2)
    ] if a.numel() else []  # fmt: skip
    shape = (*a.shape[:2], -(-a.shape[2] // block), -(-a.shape[3] // block))
    return Found((torch.stack(rows, 2) if rows else a.new_zeros(shape),))


def topk(z: dict[str, Any]) -> Found:
    a, s, ok = weights(z)
    order = torch.where(ok, s, float("-inf")).detach().sort(dim=-1, descending=True, stable=True).indices
    order = order[..., : int(z["count"])]
    seen_there = ok.expand_as(s).gather(-1, order)
    return Found((a.detach().gather(-1, order), torch.where(seen_there, order, -1)))


def attention_s(z: dict[str, Any]) -> Tensor:
    """S [B,H,T,S], signed."""
    ok = seen(z, z["q"].shape[2], z["k"].shape[2]) & ~z["lse"].isneginf()[..., None]
    a = torch.where(ok, (scores(z) - z["lse"][..., None]).masked_fill(~ok, 0.0).exp(), 0.0)
    v = z["v"].repeat_interleave(z["q"].shape[1] // z["v"].shape[1], 1)
    return a * torch.einsum("bhid,bhjd->bhij", z["grad_out"], v) * spread(z.get("gate"))


def one_hot(groups: Tensor, count: int) -> Tensor:
    return (groups.long()[:, None] == torch.arange(count)[:, None]).double()  # [B,G,T]


def flow_of(s: Tensor, z: dict[str, Any], num_query: int, num_key: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key = one_hot(z["query_groups"], num_query), one_hot(z["key_groups"], num_key)
    sums = torch.einsum("bai,bhij,bcj->bhac", query, s.abs(), key)
    return sums, torch.einsum("bai,bhij->bha", query, s.abs()), s.abs().sum((-1, -2))


def saliency_of(s: Tensor, z: dict[str, Any]) -> Found:
    total = s.sum(1)
    return Found((total if z["signed"] else total.abs(),))


def counted_flow(s: Tensor, z: dict[str, Any]) -> Found:
    sums, rows, matrix = flow_of(s, z, int(z["num_query_groups"]), int(z["num_key_groups"]))
    return Found((sums, rows, matrix if z["with_matrix_total"] else None))


def rows_of(s: Tensor, z: dict[str, Any]) -> Found:
    at = z["rows"].long()[:, None, :, None].expand(-1, s.shape[1], -1, s.shape[3])
    return Found((s.gather(2, at),))


def masked(z: dict[str, Any]) -> dict[str, Any]:
    if z.get("key_range") is None:
        return z
    t, r = torch.arange(z["x"].shape[1]), z["key_range"].long()
    inside = ((t >= r[:, :1]) & (t < r[:, 1:])).double()[..., None]  # [B,T,1]
    return {**z, "dt": z["dt"] * inside}


def mixing(z: dict[str, Any]) -> Tensor:
    """M [B,H,T,T]"""
    heads = z["dt"].shape[2]
    b, c = (z[n].repeat_interleave(heads // z[n].shape[2], 2) for n in "BC")
    steps = z["dt"] * z["A"]
    total = steps.cumsum(1).transpose(1, 2)  # [B,H,T]
    lower = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool).tril()
    decay = torch.where(lower, total[..., :, None] - total[..., None, :], -torch.inf).exp()
    return torch.einsum("bthn,bshn->bhts", c, b) * decay * z["dt"].transpose(1, 2)[..., None, :]


def matrix(z: dict[str, Any]) -> Tensor:
    """M of a call that gives no x."""
    return mixing(masked({**z, "x": z["dt"]}))


def ssd(z: dict[str, Any]) -> Found:
    z = masked(z)
    m = mixing(z)
    tapped = m if z.get("saliency_probe") is None else m * (1 + z["saliency_probe"][:, None])
    y = torch.einsum("bhts,bshp->bthp", tapped, z["x"])
    heads = z["x"].shape[2]
    b, c = (z[n].repeat_interleave(heads // z[n].shape[2], 2) for n in "BC")
    total = (z["dt"] * z["A"]).cumsum(1)  # [B,T,H]
    left = (total[:, -1:] - total).exp() * z["dt"]
    state = torch.einsum("bth,bthp,bthn->bhpn", left, z["x"], b)
    if z.get("initial_state") is not None:
        y = y + torch.einsum("bth,bthn,bhpn->bthp", total.exp(), c, z["initial_state"])
        state = state + total[:, -1].exp()[..., None, None] * z["initial_state"]
    return Found((y, state), tapped)


def ssd_s(z: dict[str, Any]) -> Tensor:
    z = masked(z)
    return mixing(z) * torch.einsum("bthp,bshp->bhts", z["grad_y"], z["x"])


def logits(hidden: Tensor, z: dict[str, Any]) -> Tensor:
    out = torch.einsum("nd,vd->nv", hidden, z["weight"])
    return out if z.get("bias") is None else out + z["bias"]


def surprisal(hidden: Tensor, z: dict[str, Any]) -> Tensor:
    ids = z["candidates"].long()
    logp = logits(hidden, z).log_softmax(-1)
    return -(logp[:, ids] if ids.ndim == 1 else logp.gather(1, ids))


def cross_entropy(z: dict[str, Any]) -> Found:
    targets, ignored = z["targets"].long(), int(z["ignore_index"])
    kept = targets != ignored
    total = F.cross_entropy(logits(z["hidden"], z)[kept], targets[kept], reduction="sum")
    return Found((total / max(1, int(kept.sum())) if z["reduction"] == "mean" else total,))


def norm(x: Tensor) -> Tensor:
    """The final norm of the lens's model; it has products, so that an effect of autocast would show."""
    return x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()


def lens(z: dict[str, Any]) -> Found:
    hidden = z["hidden"]
    if z.get("translator_weight") is not None:
        hidden = hidden + torch.einsum("lnd,led->lne", hidden, z["translator_weight"]) + z["translator_bias"][:, None]
    found = [surprisal(norm(h), z) for h in hidden]
    shape = (0, hidden.shape[1], z["candidates"].shape[-1])
    return Found((torch.stack(found) if found else hidden.new_zeros(shape),))


def convolution(z: dict[str, Any]) -> Found:
    x, weight = z["x"], z["weight"]
    taps = weight.shape[1]
    before = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if z.get("initial_state") is None else z["initial_state"]
    whole = torch.cat([before, x], 1)
    y = torch.stack([(whole[:, t : t + taps] * weight.T).sum(1) for t in range(x.shape[1])], 1) if x.shape[1] else x * 1
    y = y if z.get("bias") is None else y + z["bias"]
    return Found((F.silu(y) if z["activation"] else y,))


def mamba2(z: dict[str, Any]) -> Found:
    groups, heads, width = int(z["groups"]), z["dt_bias"].shape[0], z["norm_weight"].shape[0]
    gate, xbc, dt = z["projected"].split([width, z["conv_weight"].shape[0], heads], -1)
    of_conv = {"x": xbc, "weight": z["conv_weight"], "bias": z.get("conv_bias"), "activation": "silu"}
    mixed = convolution(of_conv).results[0]
    state = (mixed.shape[-1] - width) // 2
    x, b, c = mixed.split([width, state, state], -1)
    low, high = z["dt_limit"]
    inputs = {
        "x": x.unflatten(-1, (heads, width // heads)), "dt": F.softplus(dt + z["dt_bias"]).clamp(low, high),
        "A": -z["A_log"].exp(), "B": b.unflatten(-1, (groups, state // groups)),
        "C": c.unflatten(-1, (groups, state // groups)),
    }  # fmt: skip
    y = ssd(inputs).results[0] + z["D"][:, None] * inputs["x"]
    v = (y.flatten(2) * F.silu(gate)).unflatten(-1, (groups, width // groups))
    return Found(((v / (v.square().mean(-1, keepdim=True) + z["eps"]).sqrt()).flatten(2) * z["norm_weight"],))


def gate_heads(z: dict[str, Any]) -> Found:
    g = z["gate"][..., None, :, None]
    return Found((g * z["x"] + (0 if z.get("fill") is None else (1 - g) * z["fill"]),))


ORACLES: dict[str, Callable[[dict[str, Any]], Found]] = {
    "attention": attention,
    "attention_saliency": lambda z: saliency_of(attention_s(z), z),
    "attention_saliency_rows": lambda z: rows_of(attention_s(z), z),
    "attention_flow": lambda z: counted_flow(attention_s(z), z),
    "attention_rows": lambda z: rows_of(weights(z)[0], z),
    "attention_mass": lambda z: Found((mass(z, weights(z)[0]),)),
    "attention_received": lambda z: Found((received(z, weights(z)[0]),)),
    "attention_summary": summary,
    "attention_pooled": pooled,
    "attention_topk": topk,
    "ssd": ssd,
    "ssd_rows": lambda z: rows_of(matrix(z), z),
    "ssd_mass": lambda z: Found((mass(z, matrix(z).abs()),)),
    "ssd_received": lambda z: Found((received(z, matrix(z).abs()),)),
    "ssd_saliency": lambda z: saliency_of(ssd_s(z), z),
    "ssd_flow": lambda z: counted_flow(ssd_s(z), z),
    "candidate_surprisal": lambda z: Found((surprisal(z["hidden"], z),)),
    "linear_cross_entropy": cross_entropy,
    "lens_surprisal": lens,
    "causal_conv1d": convolution,
    "mamba2_inner": mamba2,
    "gate_heads": gate_heads,
}
