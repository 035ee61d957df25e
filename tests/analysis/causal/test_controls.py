"""Control heads: as many random unselected heads as were selected, matched by layer or by the norm of their output."""

from __future__ import annotations

import numpy as np
import pytest

from symground.analysis.causal.controls import Controls

HEADS = [(layer, head) for layer in range(4) for head in range(4)]
OWN = frozenset({(0, 0), (0, 1), (2, 3)})


def draws(controls: Controls, count: int = 300) -> tuple[list[frozenset[tuple[int, int]]], set[bool]]:
    rng = np.random.default_rng(0)
    drawn = [controls.draw(rng) for _ in range(count)]
    return [heads for (heads,), _ in drawn], {short for _, (short,) in drawn}


def test_as_many_random_heads_of_all_layers() -> None:
    drawn, short = draws(Controls(HEADS, [OWN], [OWN | {(3, 3)}]))
    assert {len(heads) for heads in drawn} == {3}
    assert frozenset().union(*drawn) == set(HEADS) - OWN - {(3, 3)}
    assert short == {False}
    assert {len(layers) for layers in ({layer for layer, _ in heads} for heads in drawn)} == {1, 2, 3}


def test_too_few_are_taken_and_told() -> None:
    drawn, short = draws(Controls(HEADS[:5], [OWN | {(0, 2)}], [frozenset()]), 3)
    assert set(drawn) == {frozenset({(0, 3), (1, 0)})}
    assert short == {True}


def test_by_layer_each_layer_gives_as_many() -> None:
    drawn, short = draws(Controls(HEADS, [OWN], [OWN], "layer"))
    assert set(drawn) == {frozenset({(0, 2), (0, 3), (2, head)}) for head in range(3)}
    assert short == {False}
    drawn, short = draws(Controls(HEADS, [OWN | {(0, 2)}], [OWN], "layer"), 9)
    assert {len(heads) for heads in drawn} == {2}  # one remains in layer 0, and one is drawn in layer 2
    assert short == {True}


def test_by_norm_each_has_one_as_long() -> None:
    norms = np.full((1, 16), 100.0)
    norms[0, HEADS.index((0, 0))], norms[0, HEADS.index((1, 1))], norms[0, HEADS.index((1, 2))] = 1.0, 1.24, 0.81
    norms[0, HEADS.index((0, 1))], norms[0, HEADS.index((3, 0))] = 10.0, 12.6
    drawn, short = draws(Controls(HEADS, [OWN - {(0, 1)}], [OWN], "norm", norms))
    assert {len(heads) for heads in drawn} == {2}
    assert {heads & {(1, 1), (1, 2)} for heads in drawn} == {frozenset({(1, 1)}), frozenset({(1, 2)})}
    assert short == {False}
    drawn, short = draws(Controls(HEADS, [OWN], [OWN], "norm", norms))
    assert {len(heads) for heads in drawn} == {2}  # 12.6 is more than 1.25 times 10
    assert short == {True}


def test_two_selected_heads_never_share_a_control() -> None:
    drawn, short = draws(Controls(HEADS[:5], [OWN - {(2, 3)}], [OWN], "norm", np.ones((1, 5))))
    assert {len(heads) for heads in drawn} == {2}
    assert short == {False}


def test_nothing_selected_nothing_drawn() -> None:
    for match in (None, "layer", "norm"):
        drawn, short = draws(Controls(HEADS, [frozenset()], [OWN], match, np.ones((1, 16))), 2)
        assert set(drawn) == {frozenset()}
        assert short == {False}
    with pytest.raises(ValueError, match="match: expected one of None, 'layer', 'norm'; got 'size'"):
        Controls(HEADS, [OWN], [OWN], "size")
