"""Two reward levels: (14), (15), the curve for any group, and what conventions do to it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax import theory

pytestmark = pytest.mark.usefixtures("x64")
REFERENCES = np.array([0.0, 1e-6, 0.1, 0.5, 0.99, 1.0])
BETAS = np.array([0.0, 1e-3, 0.3, 1.5, 10.0, np.inf])[:, None]


@settings(max_examples=60, deadline=None)
@given(ref=st.floats(0.001, 0.999), beta=st.floats(0.01, 100), gamma=st.floats(0.01, 1))
def test_equation_14_solves_equation_11(ref, beta, gamma):
    with jax.enable_x64(True):
        pi = float(theory.stationary_pair(ref, beta, gamma))
        other = float(theory.stationary_pair(1 - ref, beta, -gamma))
    assert abs((1 - gamma * (1 - pi) / beta) * pi - ref) < 1e-12 / beta + 1e-14
    assert abs(pi + other - 1) < 1e-13
    assert pi >= max(1 - beta / gamma, ref) - 1e-14


@settings(max_examples=60, deadline=None)
@given(ref=st.floats(0.001, 0.999), beta=st.floats(0.01, 100))
def test_equation_15_solves_equation_19_with_its_radical(ref, beta):
    with jax.enable_x64(True):
        pi = float(theory.stationary_large_group(ref, beta))
        bound = float(theory.lower_bound(ref, beta, group_size=math.inf))
    assert abs(beta * (pi - ref) - math.sqrt(pi * (1 - pi))) < 1e-11
    assert pi >= bound - 1e-14


def test_edges_are_the_documented_limits():
    for solve in (theory.stationary_pair, theory.stationary_large_group):
        np.testing.assert_allclose(solve(REFERENCES, 0.0), np.ones(6))
        np.testing.assert_allclose(solve(REFERENCES, np.inf), REFERENCES)
    assert theory.stationary_pair(0.3, 0.0, 0.0) == 0.3
    np.testing.assert_allclose(theory.stationary_pair(0.0, jnp.array([0.25, 4.0])), [0.75, 0.0])
    np.testing.assert_allclose(theory.stationary_pair(REFERENCES, 1.0), np.sqrt(REFERENCES), atol=1e-15)
    np.testing.assert_allclose(theory.stationary_large_group(0.0, 2.0), 0.2)
    for call in (
        lambda: theory.stationary_pair(1.2, 1.0),
        lambda: theory.stationary_pair(0.2, -1.0),
        lambda: theory.stationary_pair(0.2, 1.0, 1.5),
        lambda: theory.stationary_binary(0.2, np.nan, group_size=4),
        lambda: theory.stationary_binary(0.2, 1.0, group_size=2.5),
        lambda: theory.lower_bound(0.2, 1.0, group_size=4),
    ):
        with pytest.raises(ValueError, match=r"must|integer|known"):
            call()


@pytest.mark.parametrize("group_size", [2, 3, 8, 256])
def test_the_curve_for_any_group(group_size):
    pi = theory.stationary_binary(REFERENCES, BETAS[1:-1], group_size=group_size)
    defect = BETAS[1:-1] * (pi - REFERENCES) - theory.phi(pi, group_size=group_size)
    assert np.max(abs(defect) / np.maximum(1, BETAS[1:-1])) < 1e-13
    everywhere = theory.stationary_binary(REFERENCES, BETAS, group_size=group_size)
    np.testing.assert_allclose(everywhere[0], 1.0, atol=1e-15)
    np.testing.assert_allclose(everywhere[-1], REFERENCES, atol=1e-15)
    assert np.all(np.diff(everywhere, axis=0) <= 1e-15)
    assert np.all(np.diff(everywhere, axis=1) >= -1e-15)


def test_the_curve_meets_14_and_15_and_grows_with_the_group():
    pairs = theory.stationary_binary(REFERENCES, BETAS, group_size=2)
    np.testing.assert_allclose(pairs, theory.stationary_pair(REFERENCES, BETAS), atol=4e-15)
    sizes = (2, 3, 4, 8, 64, 1024, math.inf)
    curves = np.stack([theory.stationary_binary(REFERENCES, BETAS, group_size=g) for g in sizes])
    assert np.all(np.diff(curves, axis=0) >= -1e-15)
    assert np.max(abs(curves[-1] - curves[-2])[1:-1, 1:-1]) < 2e-3


@pytest.mark.parametrize("group_size", [2, 4, 64])
def test_the_jump_at_zero_reference_needs_a_small_penalty(group_size):
    critical = math.sqrt(group_size - 1)
    np.testing.assert_allclose(theory.preference_gap(0.0, group_size=group_size), critical, rtol=1e-14)
    below, above = theory.stationary_binary(1e-13, jnp.array([0.9, 1.1]) * critical, group_size=group_size)
    assert below > 0.01 / group_size
    assert above < 1e-11
    assert theory.jumps(jnp.array([0.9, 1.1]) * critical, group_size=group_size).tolist() == [True, False]


def test_implicit_derivatives_are_finite_differences():
    for group_size in (5, math.inf):

        def solve(ref, beta, group_size=group_size):
            return theory.stationary_binary(ref, beta, group_size=group_size)

        for ref, beta in [(0.2, 0.4), (0.7, 3.0)]:
            for index, step in [(0, (1e-5, 0)), (1, (0, 1e-5))]:
                ends = [solve(ref + sign * step[0], beta + sign * step[1]) for sign in (1, -1)]
                slope = (ends[0] - ends[1]) / 2e-5
                np.testing.assert_allclose(jax.grad(solve, index)(ref, beta), slope, rtol=1e-8)
                np.testing.assert_allclose(jax.jacfwd(solve, index)(ref, beta), slope, rtol=1e-8)


def test_conventions_rescale_the_penalty():
    plain, trl = theory.Convention(ddof=1), theory.LIBRARIES["trl"]
    p = jnp.array([0.1, 0.5, 0.9])
    for group_size in (2, 8):
        factor = math.sqrt(group_size / (group_size - 1))
        exact = theory.effective_beta(0.5, p, 0.7, group_size=group_size, convention=plain)
        np.testing.assert_allclose(exact, 0.5 * factor, rtol=1e-14)
        pi = theory.stationary_binary_convention(0.3, 0.5, 0.7, group_size=group_size, convention=trl)
        seen = theory.effective_beta(0.5, pi, 0.7, group_size=group_size, convention=trl)
        np.testing.assert_allclose(theory.stationary_binary(0.3, seen, group_size=group_size), pi, rtol=1e-13)
    pairs = theory.effective_beta(0.5, p, 1e-3, group_size=2, convention=trl)
    np.testing.assert_allclose(pairs, 0.5 * (1e-3 / math.sqrt(2) + 1e-4) / 5e-4, rtol=1e-13)
    assert np.ptp(theory.effective_beta(0.5, p, 1e-3, group_size=8, convention=trl)) > 1e-3


def test_conventions_agree_with_the_general_preference():
    convention, policy = theory.Convention(ddof=1, added=0.05), np.array([0.2, 0.8])
    table = theory.reward_table([0.3, 0.0])
    for group_size in (6, math.inf):
        options = {"group_size": group_size, "convention": convention}
        better, worse = theory.group_preference(policy, table, **options)
        np.testing.assert_allclose(theory.convention_gap(0.2, 0.3, **options), better - worse, rtol=1e-13)


def test_effective_penalty_of_scaling_has_a_floor_for_finite_groups():
    p = jnp.array([1e-9, 0.01, 0.5])
    wide = theory.effective_penalty_binary(0.5, p, 2.0, group_size=math.inf)
    tables = [
        theory.effective_penalty(jnp.array([x, 1 - x]), theory.reward_table([2.0, 0.0]), 0.5) for x in p
    ]
    np.testing.assert_allclose(wide, tables, rtol=1e-7)
    floor = 0.5 * 2.0 * math.sqrt(7) / 8
    finite = theory.effective_penalty_binary(0.5, p, 2.0, group_size=8)
    assert np.all(finite >= floor * (1 - 1e-12))
    np.testing.assert_allclose(finite[0], floor, rtol=1e-7)
