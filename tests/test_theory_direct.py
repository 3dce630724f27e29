"""Logarithmic pooling, and every fixed point of the direct KL penalty."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import theory

pytestmark = pytest.mark.usefixtures("x64")


def test_rlhf_and_its_limits():
    reference, rewards = np.array([0.2, 0.3, 0.5, 0.0]), np.array([1.0, 1.0, 0.0, 9.0])
    tilted = reference * np.exp(rewards / 0.7)
    np.testing.assert_allclose(theory.rlhf(reference, rewards, 0.7), tilted / tilted.sum(), rtol=1e-13)
    np.testing.assert_allclose(theory.rlhf(reference, rewards, 0.0), [0.4, 0.6, 0, 0])
    np.testing.assert_allclose(theory.rlhf(reference, rewards, 1e-300), [0.4, 0.6, 0, 0])
    np.testing.assert_allclose(theory.rlhf(reference, rewards, np.inf), reference)
    slope = jax.grad(lambda b: theory.rlhf(reference, rewards, b)[0])(0.7)
    ends = [theory.rlhf(reference, rewards, 0.7 + h)[0] for h in (1e-6, -1e-6)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-7)


def test_shift_only_with_the_direct_penalty_is_rlhf_at_another_beta():
    reference, rewards = np.array([0.2, 0.3, 0.5]), np.array([1.0, 0.4, 0.0])
    table, shift_only = theory.reward_table(rewards), theory.Convention(power=0)

    def preference(policy):
        return theory.group_preference(policy, table, group_size=4, convention=shift_only)

    solved = theory.pooled_point(preference, reference, 0.3)
    assert solved.residual < 1e-13
    closed = theory.shift_only_direct(reference, rewards, 0.3, group_size=4)
    np.testing.assert_allclose(solved.policy, closed, rtol=1e-12)
    np.testing.assert_allclose(closed, theory.rlhf(reference, rewards, 0.4), rtol=1e-14)


@pytest.mark.parametrize("beta", [0.01, 0.5, 10.0])
def test_nlhf_is_the_direct_penalty_for_pairs_at_twice_its_beta(beta):
    reference = np.array([0.6, 0.3, 0.1, 0.0])
    payoffs = np.zeros((4, 4))
    payoffs[np.triu_indices(4, 1)] = [-0.8, 0.6, 0.2, -0.9, 0.1, 0.3]
    payoffs -= payoffs.T
    solved = theory.nlhf(reference, payoffs, beta)
    assert solved.converged
    policy = np.asarray(solved.policy)
    weight = reference * np.exp(((1 + payoffs) / 2 @ policy - 1) / beta)
    np.testing.assert_allclose(policy, weight / weight.sum(), atol=1e-11)
    direct = theory.pooled_point(theory.table_preference(payoffs), reference, 2 * beta)
    np.testing.assert_allclose(direct.policy, policy, atol=1e-12)


def test_nlhf_derivative_is_a_finite_difference():
    payoffs = np.array([[0.0, -0.8, 0.6], [0.8, 0.0, -0.9], [-0.6, 0.9, 0.0]])

    def solve(beta):
        return theory.nlhf([0.6, 0.3, 0.1], payoffs, beta).policy

    slope = (solve(0.3 + 1e-5) - solve(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jacfwd(solve)(0.3), slope, atol=1e-8)
    np.testing.assert_allclose(jax.jacrev(solve)(0.3), slope, atol=1e-8)


def test_pairs_have_one_direct_fixed_point_and_no_jump():
    reference, betas = np.array([1e-12, 0.2, 0.7]), np.array([[0.05], [0.4], [3.0]])
    closed = theory.stationary_pair_direct(reference, betas)
    odds = reference / (1 - reference) * np.exp(1 / betas)
    np.testing.assert_allclose(closed, odds / (1 + odds), rtol=1e-12)
    assert theory.stationary_pair_direct(0.0, 0.05) == 0
    roots = theory.direct_roots(reference, betas, group_size=2)
    assert np.all(roots.number == 1)
    np.testing.assert_allclose(roots.low, closed, rtol=1e-10)
    triple = theory.direct_roots(reference, betas, group_size=3)
    np.testing.assert_allclose(
        triple.low, theory.stationary_pair_direct(reference, betas, math.sqrt(2)), rtol=1e-10
    )


@pytest.mark.parametrize("group_size", [4, 8, 64, 1024])
def test_slope_of_the_drive_rises_once_and_falls_once(group_size):
    z = jnp.linspace(0, 4 * math.log(group_size) + 10, 2001)
    drive = theory.drive(z, group_size=group_size)
    np.testing.assert_allclose(drive, theory.drive(-z, group_size=group_size), rtol=1e-12)
    slope = np.diff(drive)
    clear = abs(np.diff(slope)) > 1e-11
    signs = np.sign(np.diff(slope))[clear]
    assert np.sum(signs[1:] != signs[:-1]) == 1
    peak, critical = theory.critical_point(group_size=group_size)
    step = float(z[1] - z[0])
    np.testing.assert_allclose(critical, slope.max() / step, rtol=1e-4)
    assert abs(z[np.argmax(slope)] + step / 2 - peak) < 2 * step


@pytest.mark.parametrize("group_size", [4, 8, 64, math.inf])
def test_all_roots_against_a_scan_of_the_whole_line(group_size):
    references, betas = [1e-6, 0.01, 0.1, 0.3, 0.7], [0.02, 0.2, 0.9, 2.0]
    roots = theory.direct_roots(np.array(references), np.array(betas)[:, None], group_size=group_size)
    for i, beta in enumerate(betas):
        end = 40 + math.sqrt(group_size - 1) / beta if math.isfinite(group_size) else 60
        z = np.linspace(-60, end, 60_001)
        drive = np.asarray(theory.drive(z, group_size=group_size))
        for j, reference in enumerate(references):
            h = drive / beta - z + math.log(reference / (1 - reference))
            crossings = np.flatnonzero(np.sign(h[1:]) != np.sign(h[:-1]))
            assert len(crossings) == roots.number[i, j]
            found = np.asarray(roots.log_odds[i, j])
            found = found[np.isfinite(found)]
            np.testing.assert_allclose(found, z[crossings], atol=2 * (z[1] - z[0]))
            exact = theory.drive(found, group_size=group_size) / beta - found + z_of(reference)
            assert np.all(abs(exact) < 1e-10 * (1 + abs(found)))


def z_of(p):
    return math.log(p / (1 - p))


def test_outer_roots_attract_and_the_middle_one_separates():
    beta, group_size = 0.5, 64
    reference = 1e-3
    roots = theory.direct_roots(reference, beta, group_size=group_size)
    assert roots.number == 3
    for root, sign in [(roots.low, -1), (roots.middle, 1)]:
        right = theory.odds_velocity(root + 1e-6, reference, beta, group_size=group_size)
        left = theory.odds_velocity(root - 1e-6, reference, beta, group_size=group_size)
        assert np.sign(right) == sign
        assert np.sign(left) == -sign
    table = theory.reward_table([1.0, 0.0])

    def preference(policy):
        return theory.group_preference(policy, table, group_size=group_size)

    for start, end in [(roots.middle - 0.02, roots.low), (roots.middle + 0.02, roots.high)]:
        begin = jnp.array([start, 1 - start])
        solved = theory.pooled_point(preference, [reference, 1 - reference], beta, start=begin)
        np.testing.assert_allclose(solved.policy[0], end, rtol=1e-9)


def test_folds_bound_the_region_of_several_roots():
    beta, group_size = 0.5, 64
    fold = theory.bifurcations(beta, group_size=group_size)
    edges = jax.nn.sigmoid(jnp.array([fold.logit_reference_low, fold.logit_reference_high]))
    for edge, inward in zip(edges, (-1, 1), strict=True):
        inside = theory.direct_roots(edge * (1 + 1e-4 * inward), beta, group_size=group_size)
        outside = theory.direct_roots(edge * (1 - 1e-4 * inward), beta, group_size=group_size)
        assert (inside.number, outside.number) == (3, 1)
    _, critical = theory.critical_point(group_size=group_size)
    above = theory.direct_roots(np.logspace(-8, -0.01, 50), 1.001 * critical, group_size=group_size)
    assert np.all(above.number == 1)


def test_infinite_groups_turn_where_the_paper_says():
    beta = np.array([0.3, 1.0, 4.0])
    turn = (1 + np.sqrt(1 - 1 / (1 + beta**2))) / 2
    fold = theory.bifurcations(beta, group_size=math.inf)
    np.testing.assert_allclose(jax.nn.sigmoid(fold.z_low), turn, rtol=1e-12)
    roots = theory.direct_roots(0.1, jnp.array([0.3, 4.0]), group_size=math.inf)
    assert roots.number.tolist() == [0, 2]
    for root, sign in [(roots.low[1], 1), (roots.middle[1], -1)]:
        velocity = theory.odds_velocity(root - 1e-7, 0.1, 4.0, group_size=math.inf)
        assert np.sign(velocity) == sign


def test_refusals():
    for call in (
        lambda: theory.direct_roots(0.0, 0.5, group_size=8),
        lambda: theory.direct_roots(1.0, 0.5, group_size=8),
        lambda: theory.direct_roots(0.5, 0.0, group_size=8),
        lambda: theory.critical_point(group_size=math.inf),
        lambda: theory.nlhf([0.5, 0.5], np.zeros((2, 2)), 0.0),
        lambda: theory.stationary_pair_direct(0.5, 0.0),
        lambda: theory.rlhf([0.5, 0.4], [1.0, 0.0], 1.0),
    ):
        with pytest.raises(ValueError, match=r"must|no critical point"):
            call()
