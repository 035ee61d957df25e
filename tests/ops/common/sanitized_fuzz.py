"""A fuzz of the C++ extension under sanitizers: a read or write outside of its tensors ends the process.

Every configuration is made from its number. Half of them call the public ops with tensors of any layout, sizes from 0,
key ranges that change before the backward pass, and one to four threads; fresh memory is NaN, and no result may be. The
other half call an operator of the extension directly with an unsuitable tensor: it must give an error or a result.

`python -m tests.ops.common.sanitized_fuzz 0 10000` builds the extension with the sanitizers and runs many.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

F32, F64 = torch.float32, torch.float64
LENGTHS = (1, 2, 3, 7, 63, 64, 65, 127, 128, 130, 200)


class Draw:
    """The random choices and the tensors of a configuration."""

    def __init__(self, number: int, zeros: float) -> None:
        self.rng, self.zeros = random.Random(number), zeros
        torch.manual_seed(number)

    def one(self, *choices: Any) -> Any:
        return self.rng.choice(choices)

    def size(self, *choices: int) -> int:
        return 0 if self.rng.random() < self.zeros else self.rng.choice(choices)

    def maybe(self, make: Callable[[], Tensor]) -> Tensor | None:
        return make() if self.rng.random() < 0.5 else None

    def normal(self, *shape: int, dtype: torch.dtype = F32) -> Tensor:
        return self.laid_out(torch.randn(shape, dtype=F64).to(dtype))

    def ids(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(low, max(low + 1, high), shape, dtype=dtype)

    def laid_out(self, x: Tensor) -> Tensor:
        """The same numbers in another layout: transposed, strided, part of a larger tensor, or expanded."""
        kind = self.one("contiguous", "contiguous", "transposed", "strided", "part", "expanded")
        if not x.ndim or kind == "contiguous":
            return x
        along = self.rng.randrange(x.ndim)
        if kind == "transposed":
            return x.transpose(along, -1).contiguous().transpose(along, -1)
        if kind == "expanded" and x.shape[along]:
            return x.narrow(along, 0, 1).expand(x.shape)
        wide = torch.full(
            [n * (2 if i == along else 1) + 1 for i, n in enumerate(x.shape)], float("nan"), dtype=x.dtype
        )
        for i, n in enumerate(x.shape):
            wide = wide[(slice(None),) * i + (slice(1, None, 2 if kind == "strided" and i == along else 1),)]
            wide = wide.narrow(i, 0, n)
        return wide.copy_(x)


def backward(draw: Draw, *results: Tensor) -> None:
    """Run the backward pass from a gradient of any layout, if there is a graph."""
    wanted = [x for x in results if x.requires_grad]
    if wanted:
        torch.autograd.backward(wanted, [draw.laid_out(torch.randn_like(x)) for x in wanted])


def with_gradients(draw: Draw, out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """A result, and the gradients of the leaves that require one."""
    backward(draw, out)
    return [out, *(z.grad for z in leaves if z.grad is not None)]


def attention(draw: Draw, ops: Any) -> list[Tensor]:
    dtype = draw.one(F32, F32, F64, torch.float16, torch.bfloat16)
    batch, key_heads, size = draw.size(1, 2, 3, 5), draw.size(1, 2), draw.one(1, 3, 8, 17, 64)
    heads, queries, keys = key_heads * draw.one(1, 2, 3), draw.size(*LENGTHS), draw.size(*LENGTHS)
    of_value = draw.one(size, 1, 5, 70)
    q, k, v = (
        draw.normal(batch, *n, dtype=dtype)
        for n in ((heads, queries, size), (key_heads, keys, size), (key_heads, keys, of_value))
    )
    for x in (q, k, v):
        x.requires_grad_(draw.one(True, True, False))
    groups = draw.ids(-1, 3, batch, queries), draw.ids(-1, 40, batch, keys)
    kw: dict[str, Any] = {"causal": draw.one(True, True, False), "scale": draw.one(None, None, 0.0, -1.0, 0.5)}
    if draw.one(True, False):
        bounds = draw.ids(0, keys + 1, batch, 2)
        kw["key_range"] = bounds if draw.rng.random() < 0.1 else bounds.sort(-1).values
    if kw["causal"]:
        kw["window"] = draw.one(None, 1, 5, 64, 1000, 2**31, 2**63 - 1)
    if draw.one(True, False):
        kw["gate"] = torch.tensor([0.0, 1.0, 0.3])[draw.ids(0, 3, batch, heads)]
    kw["softcap"] = draw.one(None, None, 0.5, 50.0)
    kw |= {name: draw.one(None, draw.normal(heads, dtype=F32).requires_grad_()) for name in ("sink", "slopes")}
    if queries <= keys:
        kw["segments"], kw["blocks"] = (draw.one(None, draw.ids(-1, 4, batch, keys)) for _ in range(2))
    probes: dict[str, Any] = {}
    if draw.one(True, False):
        probes["saliency_probe"] = torch.zeros(1).expand(batch, queries, keys).requires_grad_()
    if draw.one(True, False):
        probe = torch.zeros(1).expand(batch, heads, 3, 40).requires_grad_()
        probes.update(flow_probe=probe, query_groups=groups[0], key_groups=groups[1])
    out, lse = ops.attention(q, k, v, **kw, **probes, impl="cpu")
    after = [x.detach() for x in (q, k, v, draw.laid_out(torch.randn_like(out)), lse)]
    form = {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in kw.items()}
    changed = "key_range" in kw and draw.one(True, False)
    if changed:  # in place, unknown to autograd
        kw["key_range"].numpy()[:] = draw.ids(-3 * keys - 1, 3 * keys + 2, batch, 2).numpy()
    try:
        backward(draw, out)
    except RuntimeError:
        if not changed:
            raise
    rows = draw.ids(0, queries, batch, 3 if queries else 0)
    found = [
        out, ops.attention_saliency(*after, draw.one(True, False), **form, impl="cpu"),
        ops.attention_saliency_rows(*after, rows, **form, impl="cpu"),
        *ops.attention_flow(*after, *groups, 3, 40, with_matrix_total=draw.one(True, False), **form, impl="cpu"),
    ]  # fmt: skip
    return [*found, *(x.grad for x in (q, k, v) if x.grad is not None and not changed)]


def weights(draw: Draw, ops: Any) -> list[Tensor]:
    dtype = draw.one(F32, F32, F64, torch.float16, torch.bfloat16)
    batch, key_heads, size = draw.size(1, 2, 3, 5), draw.size(1, 2), draw.one(1, 3, 17, 64)
    heads, queries, keys = key_heads * draw.one(1, 2, 3), draw.size(*LENGTHS), draw.size(*LENGTHS)
    q, k = draw.normal(batch, heads, queries, size, dtype=dtype), draw.normal(batch, key_heads, keys, size, dtype=dtype)
    kw: dict[str, Any] = {"causal": draw.one(True, True, False), "softcap": draw.one(None, None, 0.5, 50.0)}
    kw["key_range"] = draw.maybe(lambda: draw.ids(0, keys + 1, batch, 2).sort(-1).values)
    if kw["causal"]:
        kw["window"] = draw.one(None, 1, 5, 64, 2**63 - 1)
    kw |= {name: draw.one(None, draw.normal(heads, dtype=F32)) for name in ("sink", "slopes")}
    if queries <= keys:
        kw["segments"], kw["blocks"] = (draw.one(None, draw.ids(-1, 4, batch, keys)) for _ in range(2))
    _, lse = ops.attention(q, k, k, **kw, impl="cpu")
    leaves = [x.requires_grad_(draw.one(True, False)) for x in (q, k, kw["sink"], kw["slopes"]) if x is not None]
    groups = draw.ids(-1, 3, batch, queries), draw.ids(-1, 40, batch, keys)
    given = q, k, draw.laid_out(lse)
    found = [
        ops.attention_rows(*given, draw.ids(0, queries, batch, 3 if queries else 0), **kw, impl="cpu"),
        ops.attention_mass(*given, *groups, 3, 40, **kw, impl="cpu"),
        ops.attention_received(*given, *draw.one((), (groups[0], 3)), **kw, impl="cpu"),
        ops.attention_summary(*given, **kw, impl="cpu").entropy,
    ]
    backward(draw, *draw.rng.sample(found, 2))
    pooled = ops.attention_pooled(*given, draw.one(1, 7, 64, 1000), draw.one("sum", "max"), **kw, impl="cpu")
    largest, _ = ops.attention_topk(*given, draw.rng.randint(0, keys), **kw, impl="cpu")
    return [*found, pooled, largest, *(x.grad for x in leaves if x.grad is not None)]


def ssd(draw: Draw, ops: Any) -> list[Tensor]:
    dtype = draw.one(F32, F32, F64, torch.bfloat16)
    batch, length, groups = draw.size(1, 2, 3), draw.size(*LENGTHS), draw.one(1, 1, 2)
    heads, size, state = groups * draw.size(1, 2, 3), draw.size(1, 4, 16), draw.one(1, 5, 16)
    x, dt = draw.normal(batch, length, heads, size, dtype=dtype), draw.normal(batch, length, heads).abs()
    A, (b, c) = -torch.rand(heads), (draw.normal(batch, length, groups, state, dtype=dtype) for _ in range(2))
    bounds = draw.maybe(lambda: draw.ids(0, length + 1, batch, 2).sort(-1).values)
    first = draw.maybe(lambda: draw.normal(batch, heads, size, state))
    leaves = [z.requires_grad_(draw.one(True, False)) for z in (x, dt, A, b, c) if z is not None]
    y, last = ops.ssd(*leaves, bounds, first, return_state=True, impl="cpu")
    backward(draw, y, *([last] if draw.one(True, False) else []))
    plain, grad = [z.detach() for z in leaves], torch.randn_like(y)
    found = [y, last, ops.ssd_saliency(*plain, grad, key_range=bounds, impl="cpu")]
    return [*found, *(z.grad for z in leaves if z.grad is not None)]


def inner(draw: Draw, ops: Any) -> list[Tensor]:
    dtype, groups = draw.one(F32, F32, F64), draw.one(1, 1, 2)
    heads, size, state, taps = groups * draw.one(1, 2), draw.size(1, 4, 8), draw.one(1, 5), draw.size(1, 4)
    width, channels = heads * size, heads * size + 2 * groups * state
    given = draw.normal(draw.size(1, 2), draw.size(*LENGTHS), width + channels + heads, dtype=dtype)
    shapes = ((channels, taps), (channels,), (heads,), (heads,), (heads,), (width,))
    weight, bias, *rest = (draw.normal(*shape, dtype=dtype) for shape in shapes)
    leaves = [z.requires_grad_(draw.one(True, False)) for z in (given, weight, bias, *rest)]
    arguments = [*leaves[:2], leaves[2] if draw.one(True, False) else None, *leaves[3:]]
    out = ops.mamba2_inner(*arguments, groups, impl="cpu")
    return with_gradients(draw, out, leaves)


def convolution(draw: Draw, ops: Any) -> list[Tensor]:
    dtype, batch, channels, taps = (
        draw.one(F32, F64, torch.bfloat16),
        draw.size(1, 2),
        draw.size(1, 5, 67),
        draw.size(1, 4, 7),
    )
    x, weight = draw.normal(batch, draw.size(*LENGTHS), channels, dtype=dtype), draw.normal(channels, taps)
    bias, first = (
        draw.maybe(lambda: draw.normal(channels)),
        draw.maybe(lambda: draw.normal(batch, max(0, taps - 1), channels)),
    )
    leaves = [z.requires_grad_() for z in (x, weight)]
    out = ops.causal_conv1d(*leaves, bias, first, draw.one("silu", None), impl="cpu")
    return with_gradients(draw, out, leaves)


def gates(draw: Draw, ops: Any) -> list[Tensor]:
    dtype = draw.one(F32, F64, torch.float16, torch.bfloat16)
    shape = B, T, H, D = draw.size(1, 2, 3), draw.size(1, 5, 130), draw.size(1, 3, 4), draw.size(1, 7, 16, 33)
    masks = draw.one((H,), (B, H), (3, B, H))
    gate = draw.laid_out(torch.tensor([0.0, 1.0, 0.3])[draw.ids(0, 3, *masks)])
    filled = draw.one(None, (), (D,), (H, 1), (T, 1, D), shape, (*masks[:-2], *shape))
    fill = None if filled is None else draw.normal(*filled, dtype=dtype)
    leaves = [z.requires_grad_(draw.one(True, False)) for z in (draw.normal(*shape, dtype=dtype), gate)]
    out = ops.gate_heads(*leaves, fill, impl="cpu")
    return with_gradients(draw, out, leaves)


def vocabulary(draw: Draw, ops: Any) -> list[Tensor]:
    dtype, rows, size, words = (
        draw.one(F32, F64, torch.bfloat16),
        draw.size(1, 7, 60),
        draw.size(1, 9),
        draw.one(1, 37, 700),
    )
    hidden, weight = (draw.normal(n, size, dtype=dtype).requires_grad_() for n in (rows, words))
    bias = draw.maybe(lambda: draw.normal(words, dtype=dtype))
    found = ops.candidate_surprisal(hidden, weight, draw.ids(0, words, *draw.one((3,), (rows, 2))), bias, impl="cpu")
    backward(draw, found)
    loss = ops.linear_cross_entropy(hidden, weight, draw.ids(0, words, rows), bias, reduction="sum", impl="cpu")
    backward(draw, loss)
    return [found, loss, *(z.grad for z in (hidden, weight) if z.grad is not None)]


def good_calls(draw: Draw) -> dict[str, list[Any]]:
    """Suitable arguments for every operator of the extension, all contiguous, each with its own memory."""
    dtype = draw.one(F32, F64)
    B, Hk, T, S, D, G, K = draw.one(1, 2), draw.one(1, 2), draw.one(1, 5, 70), draw.one(1, 6, 130), draw.one(1, 4), 2, 3
    H, E = Hk * draw.one(1, 2), draw.one(D, 3)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype)

    q, k, v, grad, lse = (
        numbers(B, H, T, D),
        numbers(B, Hk, S, D),
        numbers(B, Hk, S, E),
        numbers(B, H, T, E),
        numbers(B, H, T),
    )
    bounds = draw.one(None, draw.ids(-9, 2 * S, B, 2))
    form = [draw.one(None, numbers(B, H)), draw.one(True, False), 0.5, bounds, draw.one(None, 1, 3, 2**63 - 1)]
    slopes, ids = draw.one(None, numbers(H)), [draw.one(None, draw.ids(-9, 3, B, S)) if T <= S else None for _ in "sb"]
    form += [draw.one(None, 0.5), draw.one(None, numbers(H)), slopes, *ids]
    groups = draw.ids(-2, 9, B, T, dtype=torch.int32), draw.ids(-2, 9, B, S, dtype=torch.int32)
    row = [numbers(B, H, T) for _ in range(4)]
    x, dt, A, b = numbers(B, T, H, D), numbers(B, T, H).abs(), -numbers(H).abs(), numbers(B, T, Hk, S)
    steps, state = draw.one(None, draw.ids(-9, 2 * T, B, 2)), numbers(B, H, D, S)
    inputs = [x, dt, A, b, numbers(B, T, Hk, S), steps, draw.one(None, numbers(B, H, D, S))]
    wide, weight = numbers(B, T, H * D), numbers(K, H * D)
    taps = [weight, draw.one(None, numbers(H * D)), draw.one(None, numbers(B, K - 1, H * D)), draw.one(True, False)]
    norm = [numbers(H), numbers(B, T, H * D), numbers(H * D), Hk, 1e-5]
    return {
        "attention_forward": [q, k, v, *form, numbers(B, H, T, E), lse],
        "attention_saliency": [q, k, v, grad, lse, *form, numbers(B, T, S)],
        "attention_flow": [q, k, v, grad, lse, *form, *groups, numbers(B, H, G, K), numbers(B, H, G), numbers(B, H)],
        "attention_backward": [
            q, k, v, grad, lse, *form, numbers(B, H, T, D), numbers(B, Hk, S, D), numbers(B, Hk, S, E),
            None if slopes is None else numbers(B, H), draw.one(None, numbers(B, T, S)), *groups,
            draw.one(None, numbers(B, H, G, K)),
        ],
        "attention_weights": [
            q, k, lse, *form[1:], groups[0], groups[1], numbers(B, H, G, K), draw.one(None, numbers(B, H, G, S)),
            *draw.one([None] * 5, [*row[:2], draw.ids(0, S, B, H, T), *row[2:]]),
            numbers(B, H, -(-T // 4), -(-S // 4)), 4, draw.one(True, False),
        ],
        "attention_weights_backward": [
            q, k, lse, *form[1:], groups[0], groups[1], numbers(B, H, G, K), draw.one(None, numbers(B, H, G, S)),
            draw.one(None, numbers(B, H, T)), numbers(B, H, T, D), numbers(B, Hk, S, D),
            None if form[6] is None else numbers(B, H), None if slopes is None else numbers(B, H),
        ],
        "gate_heads": [x, numbers(B, H), draw.one(None, numbers(T, H, D)), numbers(B, T, H, D)],
        "ssd": [*inputs, numbers(B, T, H, D), state],
        "ssd_backward": [
            numbers(B, T, H, D), draw.one(None, numbers(B, H, D, S)), *inputs, numbers(B, T, H, D), numbers(B, T, H),
            numbers(B, H), numbers(B, T, Hk, S), numbers(B, T, Hk, S), state,
        ],
        "convolution": [wide, *taps, numbers(B, T, H * D)],
        "convolution_backward": [numbers(B, T, H * D), wide, *taps, numbers(B, T, H * D), numbers(K + 1, H * D)],
        "gated_norm": [wide, numbers(B, T, H * D), *norm, numbers(B, T, H * D)],
        "gated_norm_backward": [
            numbers(B, T, H * D), wide, numbers(B, T, H * D), *norm, numbers(B, T, H * D), numbers(B, T, H * D),
            numbers(H), numbers(B, T, H * D), numbers(H * D),
        ],
        "add_exponentials": [numbers(T, S), numbers(T), numbers(T)],
        "scaled_exponentials": [numbers(T, S), numbers(T), numbers(T)],
    }  # fmt: skip


def spoiled(draw: Draw, x: Tensor) -> Tensor:
    """A tensor that an operator must not accept in place of x."""
    kind = draw.one("shorter", "empty", "dtype", "strided", "expanded", "more", "fewer", "transposed", "longer")
    along = draw.rng.randrange(x.ndim) if x.ndim else 0
    if kind == "shorter":
        return x.narrow(along, 0, x.shape[along] // 2).clone()
    if kind == "longer":
        return torch.cat([x, x], along)
    if kind == "empty":
        return x.narrow(along, 0, 0).clone()
    if kind == "dtype":
        return x.to(draw.one(F32, F64, torch.float16, torch.int32, torch.int64, torch.uint8, torch.bool))
    if kind == "strided":
        return torch.cat([x, x], along).clone()[(slice(None),) * along + (slice(None, None, 2),)]
    if kind == "expanded":
        return x.narrow(along, 0, 1).clone().expand(x.shape)
    if kind == "transposed":
        return x.clone().transpose(along, -1)
    return x[None].clone() if kind == "more" else x.select(along, 0).clone()


def raw(draw: Draw, operators: Any) -> str:
    """Call an operator with one or two of its tensors spoiled; returns its name."""
    calls = good_calls(draw)
    name = draw.one(*calls)
    arguments = calls[name]
    tensors = [i for i, x in enumerate(arguments) if isinstance(x, Tensor)]
    for i in draw.rng.sample(tensors, draw.one(0, 1, 1, 1, 2)):
        arguments[i] = spoiled(draw, arguments[i])
    try:
        getattr(operators, name)(*arguments)
    except (RuntimeError, NotImplementedError) as error:
        if "expected" not in str(error).lower() and "unsupported" not in str(error).lower():
            raise
        return f"{name} refused"
    return name


PUBLIC = (attention, attention, weights, ssd, inner, convolution, gates, vocabulary)


def configuration(number: int, ops: Any, operators: Any) -> str:
    """Run one and return what it was. Raises if a result is wrong; a fault in C++ ends the process."""
    draw = Draw(number, random.Random(number).choice((0.0, 0.0, 0.05, 0.2)))
    torch.set_num_threads(draw.one(1, 2, 3, 4))
    if number % 2:
        return raw(draw, operators)
    family = draw.one(*PUBLIC)
    try:
        results = family(draw, ops)
    except Exception as error:
        # The package's refusals have tests of their own; here sizes may be 0, and a range may be reversed.
        if draw.zeros or "key_range" in str(error):
            return f"{family.__name__} refused"
        raise
    for i, x in enumerate(results):
        assert x is None or not x.isnan().any(), f"result {i} has NaN"
    return family.__name__


def inside(folder: Path, first: int, count: int) -> None:
    """The run itself, in a process with the sanitizers, which loads the extension in ``folder`` instead."""
    import importlib.util

    import symground

    path = Path(symground.__file__).parent / "ops" / "common" / "build.py"
    spec = importlib.util.spec_from_file_location("symground.ops.common.build", path)
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    build.HERE = folder  # type: ignore[attr-defined]
    sys.modules["symground.ops.common.build"] = build

    from symground import ops
    from symground.ops.common import extension

    assert extension.library is not None
    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is NaN
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    ran: Counter[str] = Counter()
    for number in range(first, first + count):
        print(number, file=sys.stderr, flush=True)  # after a fault, the last number printed is its configuration
        ran[configuration(number, ops, torch.ops.symground_C)] += 1
    print(*(f"{what}: {times}" for what, times in sorted(ran.items())), sep="\n")


if __name__ == "__main__":
    if sys.argv[1] == "--inside":
        inside(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        import tempfile

        from tests.ops.test_sanitized import build, fuzzed

        with tempfile.TemporaryDirectory() as made:
            build(Path(made))
            done = fuzzed(Path(made), *map(int, sys.argv[1:3]))
        print(done.stdout, done.stderr[-6000:] if done.returncode else "", sep="\n")
        sys.exit(done.returncode)
