"""Intervals, effect sizes and corrected p-values against cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from symground.analysis.statistics.intervals import bootstrap_interval, cohens_d, holm


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.9 are multiplied by 4, 3, 2, 1; none may be below the one before it.
    np.testing.assert_allclose(holm(np.array([0.03, 0.01, 0.9, 0.02])), [0.06, 0.04, 0.9, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, np.nan, 0.7])), [1.0, np.nan, 1.0])
    assert np.isnan(holm(np.array([np.nan]))).all()


def test_d_by_hand() -> None:
    assert float(cohens_d(np.array([1.0, 2.0, 3.0]))) == pytest.approx(2.0)
    assert np.isnan(cohens_d(np.array([2.0, 2.0])))
    np.testing.assert_allclose(cohens_d(np.array([[1.0, 2.0, 3.0], [-3.0, -2.0, -1.0]])), [2.0, -2.0])


def test_intervals_cover_at_about_their_level() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(1.0, 2.0, (300, 40))
    low, high = bootstrap_interval(samples, level=0.9)
    assert 0.85 <= ((low <= 1.0) & (high >= 1.0)).mean() <= 0.95
    low, high = bootstrap_interval(samples, level=0.9, statistic=cohens_d)
    assert 0.85 <= ((low <= 0.5) & (high >= 0.5)).mean() <= 0.95


def test_intervals_of_too_little() -> None:
    low, high = bootstrap_interval(np.array([[3.0, 3.0], [1.0, 2.0]]))
    assert low[0] == high[0] == 3.0
    assert low[1] < high[1]
    assert np.isnan(bootstrap_interval(np.array([[3.0]]))[0]).all()
    low, high = bootstrap_interval(np.array([[0.0, 0.0, 0.0]]), statistic=cohens_d)
    assert np.isnan(low).all()
    assert np.isnan(high).all()
