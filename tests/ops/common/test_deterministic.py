"""Where algorithms must be deterministic, no op calls an operator that would then raise an error on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ops.common.deterministic import REFUSED, Deterministic, documented
from tests.ops.common.drawn import OPS, call, came, draw, implementations, leaves_of

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is off where there is a GPU")


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_every_operator_that_torch_names_is_refused() -> None:
    assert documented() <= set(REFUSED)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(
    ("op", "impl"), [(op, impl) for op in OPS for impl in ("reference", "triton") if impl in implementations(op)]
)
def test_no_op_needs_an_operator_without_a_fixed_order(op: str, impl: str) -> None:
    for seed in range(2):
        case = draw(op, seed, dtype=torch.float32, wide=True, layouts=False)
        leaves = leaves_of(case)
        with Deterministic():
            results = call(case, impl, **leaves)
            ways = zip(results, came(case, results, 1), strict=False)
            ways = [(x, g) for x, g in ways if x is not None and x.requires_grad]
            if ways:
                outputs, grads = [x for x, _ in ways], [g for _, g in ways]
                torch.autograd.grad(outputs, list(leaves.values()), grads, materialize_grads=True)


@pytest.mark.usefixtures("deterministic")
def test_an_operator_within_an_op_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from symground.ops.ssd import reference

    monkeypatch.setattr(reference, "prefix_sums", torch.cumsum)
    case = draw("ssd", 0, dtype=torch.float32, wide=True, layouts=False)
    with Deterministic(), pytest.raises(AssertionError, match="cumsum"):
        call(case, "reference")
