"""Statistics with multiplicities against NumPy on the spelled-out samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.statistics import BATCH_AXES, GROUP_AXES, centred, mean, quantile, spread, tied

values = st.lists(st.floats(-100, 100), min_size=5, max_size=5)
counts = st.lists(st.integers(0, 4), min_size=5, max_size=5).filter(lambda n: sum(n) > 1)


def row(x: list[float]) -> jnp.ndarray:
    return jnp.asarray([x], float)


@settings(max_examples=40, deadline=None)
@given(x=values, n=counts, q=st.floats(0, 1))
def test_as_numpy_on_spelled_out_samples(x: list[float], n: list[int], q: float) -> None:
    with jax.enable_x64(True):
        samples, weight = np.repeat(x, n), row(n)
        hidden = jnp.where(weight > 0, row(x), jnp.nan)
        np.testing.assert_allclose(mean(hidden, weight, GROUP_AXES)[0, 0], samples.mean(), atol=1e-9)
        for ddof in (0.0, 1.0):
            got = spread(hidden, weight, GROUP_AXES, ddof=ddof)[0, 0]
            np.testing.assert_allclose(got, samples.std(ddof=int(ddof)), rtol=1e-9, atol=1e-9)
        got = quantile(hidden, weight, q, BATCH_AXES)[0, 0]
        np.testing.assert_allclose(got, np.quantile(samples, q), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e30, -7.7])
def test_ties_are_exactly_zero_in_single_precision(value: float) -> None:
    x, weight = jnp.full((1, 7), value, jnp.float32), jnp.ones((1, 7))
    assert bool(tied(x, weight, GROUP_AXES)[0, 0])
    assert np.all(np.asarray(centred(x, weight, GROUP_AXES)) == 0)
    assert np.asarray(spread(x, weight, GROUP_AXES))[0, 0] == 0


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_spread_of_huge_and_tiny_values(size: float) -> None:
    x, weight = jnp.asarray([[0.0, 1.0, 2.0]], jnp.float32) * size, jnp.ones((1, 3))
    np.testing.assert_allclose(spread(x, weight, GROUP_AXES)[0, 0] / size, np.sqrt(2 / 3), rtol=1e-6)


def test_empty_sets_are_zero() -> None:
    x, weight = jnp.full((1, 3), jnp.nan), jnp.zeros((1, 3))
    for statistic in (mean, spread):
        assert np.asarray(statistic(x, weight, GROUP_AXES))[0, 0] == 0
    assert np.asarray(quantile(x, weight, 0.5, BATCH_AXES))[0, 0] == 0


def test_a_nan_is_not_a_tie() -> None:
    x, weight = jnp.asarray([[1.0, jnp.nan, 1.0]]), jnp.ones((1, 3))
    assert not bool(tied(x, weight, GROUP_AXES)[0, 0])
    assert np.isnan(np.asarray(centred(x, weight, GROUP_AXES))).all()


@pytest.mark.parametrize("size", [1e30, 1.0, 1e-20])
def test_deviations_cancel_to_the_rounding_of_their_own_size(size: float) -> None:
    """In a group that is almost all right the mean is far from 0 and the deviations are small."""
    x = jnp.asarray([[0.0, 0.7, *[1.0] * 998]], jnp.float32) * size
    found = np.asarray(centred(x, jnp.ones((1, 1000)), GROUP_AXES), np.float64)
    assert abs(found.sum()) < 2 * np.finfo(np.float32).eps * np.abs(found).sum()
    assert (found[0, 2:] > 0).all()


def test_a_value_at_the_mean_deviates_by_exactly_zero() -> None:
    """(0.1 + 0.4 + 0.7)/3 is 0.4, however the three are counted; what is truly off the mean stays."""
    x = jnp.asarray([[0.1, 0.4, 0.7], [0.7, 0.1, 0.4], [0.0, 0.5 + 1e-5, 1.0]], jnp.float32)
    for weight in (1.0, 3.0, 1 / 3):
        found = np.asarray(centred(x, jnp.full((3, 3), weight), GROUP_AXES))
        assert found[0, 1] == found[1, 2] == 0
        np.testing.assert_allclose(found[2, 1], 2e-5 / 3, rtol=0.02)


def test_single_entry_with_ddof_one_has_no_spread() -> None:
    assert np.asarray(spread(row([3.0]), jnp.ones((1, 1)), GROUP_AXES, ddof=1.0))[0, 0] == 0
