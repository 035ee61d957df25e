"""The example in the docstring of every public op runs, and gives what it says."""

from __future__ import annotations

import doctest

import pytest
import torch

from symground import ops


@pytest.mark.parametrize("op", sorted(ops.__all__))
def test_the_example_of_a_public_function(op: str) -> None:
    torch.manual_seed(0)
    function = getattr(ops, op)
    (test,) = doctest.DocTestFinder(recurse=False).find(function, op, globs={"ops": ops, "torch": torch})
    assert test.examples, f"ops.{op} has no example in its docstring"
    report: list[str] = []
    found = doctest.DocTestRunner().run(test, out=report.append)
    assert not found.failed, "".join(report)
