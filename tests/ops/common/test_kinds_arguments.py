"""Bad arguments of every op: each is refused with its name, and good arguments are not."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from symground import ops
from tests.ops.common.drawn import OPS, call, draw

every_op = pytest.mark.parametrize("op", OPS)
F32, F64 = torch.float32, torch.float64
NUMBERS = {
    "scale": "a number", "softcap": "a number", "eps": "a number", "window": "an integer", "groups": "an integer",
    "num_query_groups": "an integer", "num_key_groups": "an integer", "ignore_index": "an integer",
    "causal": "True or False", "signed": "True or False", "with_matrix_total": "True or False",
    "return_state": "True or False", "block": "an integer", "count": "an integer",
}  # fmt: skip
WORDS = ("impl", "activation", "reduction", "reduce")


@every_op
def test_a_tensor_that_does_not_fit_is_named(op: str) -> None:
    case = draw(op, 3, dtype=F32, layouts=False)
    names = ("translators", *case.given)  # if the others no longer fit this one, the error may name another
    for n, x in case.given.items():
        if not isinstance(x, Tensor):
            continue
        wrong: list[Any] = ["x", 3.5, np.zeros(3), [1.0]]
        if x.is_floating_point():
            wrong += [x.to(torch.float8_e4m3fn), x.to(torch.complex64), x.to(torch.long), x.contiguous().to_sparse()]
        if x.ndim and x.numel():
            wrong += [x.to("meta"), x[None]]
        for value in wrong:
            with pytest.raises(ValueError, match=rf"^({'|'.join(names)}): expected"):
                call(case, "cpu", **{n: value})


@every_op
def test_a_number_that_does_not_fit_is_named(op: str) -> None:
    case = draw(op, 3, dtype=F32, layouts=False)
    for n, kind in NUMBERS.items():
        if n not in case.given:
            continue
        wrong: list[Any] = ["3", 1j, torch.tensor(1), [1]]
        wrong += (
            [] if kind == "True or False" else [True, np.bool_(True), float("nan"), float("inf"), np.float32("nan")]
        )
        wrong += [2.5, np.float64(2.0)] if kind == "an integer" else []
        wrong += [-1] if n.startswith("num_") else []
        for value in wrong:
            more = {"causal": True} if n == "window" else {}
            with pytest.raises(ValueError, match=rf"^{n}: expected {kind.replace('a number', 'a (finite )?number')}"):
                call(case, "cpu", **{n: value}, **more)


def test_every_number_flag_and_word_is_tried() -> None:
    """``dt_limit`` is tried in tests/ops/mamba2."""
    kinds = ("int", "int | None", "float", "float | None", "bool", "str", "str | None")
    found = {
        parameter.name
        for op in OPS
        for parameter in inspect.signature(getattr(ops, op)).parameters.values()
        if parameter.annotation in kinds
    }
    assert found == NUMBERS.keys() | set(WORDS)


@every_op
def test_a_word_that_does_not_fit_is_named(op: str) -> None:
    case = draw(op, 3, dtype=F32, layouts=False)
    for n in WORDS:
        if n in inspect.signature(getattr(ops, op)).parameters:
            for value in ("other", "", 3, True, [case.given.get(n)], b"cpu", torch.tensor(1), np.array(["a", "b"])):
                with pytest.raises(ValueError, match=rf"^{n}: .*got "):
                    call(case, **{"impl": "cpu", n: value})


@every_op
def test_numbers_of_numpy_are_numbers(op: str) -> None:
    case = draw(op, 5, dtype=F64, layouts=False)
    expected = call(case, "cpu")
    numpys = {
        n: {"a number": np.float64, "an integer": np.int32, "True or False": np.bool_}[k] for n, k in NUMBERS.items()
    }
    for n, kind in numpys.items():
        if case.given.get(n) is not None and not (n == "window" and case.given[n] > 2**31 - 1):
            for a, b in zip(call(case, "cpu", **{n: kind(case.given[n])}), expected, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)


x, t, h, n = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3), torch.zeros(3), torch.zeros(2, 4)
SCAN = {"x": x, "dt": t, "A": h - 1, "B": torch.zeros(1, 2, 1, 2), "C": torch.zeros(1, 2, 1, 2)}
LAYER = {
    "projected": torch.zeros(1, 2, 2 * 3 + 2 * 2 + 3), "conv_weight": torch.zeros(7, 2), "conv_bias": None,
    "dt_bias": h, "A_log": h, "D": h, "norm_weight": h,
}  # fmt: skip
REFUSED = {
    "q: expected a head size": lambda i: ops.attention(x[..., :0], x[..., :0], x[..., :0], impl=i),
    "k: expected Hk to divide H": lambda i: ops.attention(x[:, :0], x[:, :0], x[:, :0], impl=i),
    "k: expected Hk to divide H = 2, got Hk = 0": lambda i: ops.attention(x, x[:, :0], x[:, :0], impl=i),
    "k: expected Hk to divide H = 2, got Hk = 3": lambda i: ops.attention(
        x, torch.zeros(1, 3, 3, 4), torch.zeros(1, 3, 3, 4), impl=i
    ),
    "key_range: expected 0 <= first <= last <= S, S = 3; got [2, 1]": lambda i: ops.attention(
        x, x, x, key_range=torch.tensor([[2, 1]]), impl=i
    ),
    "key_range: expected 0 <= first <= last <= S, S = 2; got [0, 3]": lambda i: ops.ssd(
        **SCAN, key_range=torch.tensor([[0, 3]]), impl=i
    ),
    "x: expected at least one position, got T = 0": lambda i: ops.ssd(
        **{**SCAN, **{n: SCAN[n][:, :0] for n in ("x", "dt", "B", "C")}}, impl=i
    ),
    "B: expected a state of at least 1": lambda i: ops.ssd(
        **{**SCAN, "B": x[..., :1, :0], "C": x[..., :1, :0]}, impl=i
    ),
    "B: expected its groups G to divide H = 3, got G = 0": lambda i: ops.ssd(
        **{**SCAN, "B": x[..., :0, :], "C": x[..., :0, :]}, impl=i
    ),
    "hidden: expected at least one number": lambda i: ops.candidate_surprisal(
        n[:, :0], n[:, :0], torch.tensor([0]), impl=i
    ),
    "candidates: expected at least one": lambda i: ops.candidate_surprisal(n, n, torch.zeros(2, 0).long(), impl=i),
    "candidates: expected ids in [0, V), V = 0; got 0": lambda i: ops.candidate_surprisal(
        n, n[:0], torch.tensor([0]), impl=i
    ),
    "weight: expected at least one column": lambda i: ops.causal_conv1d(t, torch.zeros(3, 0), impl=i),
    "projected: expected at least one position": lambda i: ops.mamba2_inner(
        **{**LAYER, "projected": LAYER["projected"][:, :0]}, impl=i
    ),
    "conv_weight: expected at least one column": lambda i: ops.mamba2_inner(
        **{**LAYER, "conv_weight": torch.zeros(7, 0)}, impl=i
    ),
    "dt_bias: expected a torch.Tensor, got NoneType": lambda i: ops.mamba2_inner(**{**LAYER, "dt_bias": None}, impl=i),
    "norm_weight: expected a floating-point tensor": lambda i: ops.mamba2_inner(
        **{**LAYER, "norm_weight": torch.zeros(3).long()}, impl=i
    ),
    "norm_weight: expected device": lambda i: ops.mamba2_inner(
        **{**LAYER, "norm_weight": torch.zeros(3, device="meta")}, impl=i
    ),
    "norm_weight: expected W and H above 0": lambda i: ops.mamba2_inner(**{**LAYER, "dt_bias": h[:0], "A_log": h[:0], "D": h[:0]}, impl=i),  # noqa: E501
    "norm: expected shape [N,D] = [2, 4]": lambda i: ops.lens_surprisal(
        n[None], None, lambda z: z[:1], n, torch.tensor([0]), impl=i
    ),
    "dt_limit: expected 0 <= smallest <= largest": lambda i: ops.mamba2_inner(**LAYER, dt_limit=(2.0, 1.0), impl=i),
    "num_query_groups: expected an integer of at least 0, got -1": lambda i: ops.attention_flow(
        x[:, :, :0], x, x, x[:, :, :0], t[..., :0], torch.zeros(1, 0).long(), torch.zeros(1, 3).long(), -1, 1, impl=i
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_what_has_no_result_is_refused_by_name(message: str, impl: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        REFUSED[message](impl)
