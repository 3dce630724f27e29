"""Fixed points of (11): residuals, branches, uniqueness, derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import theory

pytestmark = pytest.mark.usefixtures("x64")
ROCK_PAPER_SCISSORS = np.array([[0.0, -0.8, 0.6], [0.8, 0.0, -0.9], [-0.6, 0.9, 0.0]])


def violation(policy, preference, reference, beta):
    """(11) as printed, from its definition."""
    centred = preference - policy @ preference
    return np.max(abs((1 - centred / beta) * policy - reference))


@pytest.mark.parametrize("group_size", [2, 5, math.inf])
@pytest.mark.parametrize("beta", [0.01, 0.7, 30.0])
def test_equation_11_for_deterministic_and_noisy_rewards(group_size, beta):
    rng = np.random.default_rng(3)
    reference = rng.dirichlet(np.ones(4))
    for probs in (np.eye(4), rng.dirichlet(np.ones(4), 4)):
        table = theory.Rewards(jnp.array([-1.0, 0.0, 0.5, 3.0]), jnp.asarray(probs))
        solution = theory.stationary(reference, table, beta, group_size=group_size)
        preference = theory.group_preference(solution.policy, table, group_size=group_size)
        assert solution.converged
        assert solution.residual < 1e-13
        assert violation(solution.policy, preference, reference, beta) < 1e-10
        assert np.all(preference < beta)
        np.testing.assert_allclose(solution.policy, reference / (1 - preference / beta), rtol=1e-8)


@pytest.mark.parametrize("group_size", [2, 4, 64, math.inf])
def test_two_levels_lie_on_the_curve_whatever_the_number_of_answers(group_size):
    reference = np.array([0.1, 0.3, 0.05, 0.55])
    table = theory.reward_table([1.0, 0.0, 1.0, 0.0])
    for beta in (1e-4, 0.4, 2.0):
        policy = theory.stationary(reference, table, beta, group_size=group_size).policy
        curve = theory.stationary_binary(0.15, beta, group_size=group_size)
        np.testing.assert_allclose(policy[0] + policy[2], curve, atol=1e-13)
        np.testing.assert_allclose(policy[0] / policy[2], 2.0, rtol=1e-9)


def test_noise_within_answers_makes_pairs_weaker_and_leaves_14():
    table = theory.reward_table([[2.0, 0.0], [1.0, -1.0]], [[0.7, 0.3], [0.6, 0.4]])
    gamma = 0.7 - 0.3 * 0.6
    policy = theory.stationary([0.2, 0.8], table, 0.5, group_size=2).policy
    wins = 0.7 * 1.0 + 0.3 * 0.4
    np.testing.assert_allclose(theory.pairwise_payoffs(table)[0, 1], 2 * wins - 1, rtol=1e-14)
    assert gamma < 2 * wins - 1
    np.testing.assert_allclose(policy[0], theory.stationary_pair(0.2, 0.5, 2 * wins - 1), rtol=1e-13)


def test_pairs_of_ranked_answers_solve_14_at_every_threshold():
    rng = np.random.default_rng(0)
    reference, rewards = rng.dirichlet(np.ones(6)), np.array([3.0, 1.0, 1.0, 2.0, 0.0, 7.0])
    for beta in (1e-3, 0.7, 3.0):
        closed = theory.stationary_ranked(reference, rewards, beta)
        policy = theory.stationary(reference, theory.reward_table(rewards), beta, group_size=2).policy
        np.testing.assert_allclose(policy, closed, atol=1e-14)
        for value in (0.0, 1.0, 2.0, 3.0):
            above, above_ref = closed[rewards > value].sum(), reference[rewards > value].sum()
            assert abs(beta * (above - above_ref) - above * (1 - above)) < 1e-14


def test_infinite_groups_solve_their_one_parameter_family():
    reference, rewards, beta = np.array([0.2, 0.5, 0.3]), np.array([1.0, 0.0, 0.4]), 0.6
    policy = theory.stationary(reference, theory.reward_table(rewards), beta, group_size=math.inf).policy
    mean = policy @ rewards
    strength = beta * np.sqrt(policy @ (rewards - mean) ** 2)
    np.testing.assert_allclose(policy, reference * strength / (strength + mean - rewards), rtol=1e-13)
    np.testing.assert_allclose(strength**2 / beta**2, strength * (mean - reference @ rewards), rtol=1e-12)


@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_every_start_leads_to_the_same_point(group_size):
    rng = np.random.default_rng(7)
    references = rng.dirichlet(0.3 * np.ones(4), 12) + 1e-9
    references /= references.sum(1, keepdims=True)
    levels, betas = 3 * rng.normal(size=(12, 4)), 10 ** rng.uniform(-2, 1, 12)
    starts = rng.dirichlet(0.4 * np.ones(4), (12, 8)) + 1e-9
    starts /= starts.sum(-1, keepdims=True)

    def solve(reference, values, beta, start):
        table = theory.Rewards(values, jnp.eye(4))
        return theory.stationary(reference, table, beta, group_size=group_size, start=start)

    solved = jax.jit(jax.vmap(jax.vmap(solve, (None, None, None, 0))))(references, levels, betas, starts)
    assert np.all(solved.converged)
    assert np.max(np.ptp(solved.policy, axis=1)) < 1e-11


def test_a_cyclic_table_has_one_fixed_point_for_pairs():
    reference = np.array([0.6, 0.3, 0.1])
    preference = theory.table_preference(ROCK_PAPER_SCISSORS)
    starts = np.array([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01], [0.01, 0.01, 0.98]])
    for beta in (0.02, 0.5):
        solve = jax.jit(jax.vmap(lambda s, b=beta: theory.fixed_point(preference, reference, b, start=s)))
        solved = solve(starts)
        assert np.all(solved.converged)
        assert np.max(np.ptp(solved.policy, axis=0)) < 1e-12
        policy = np.asarray(solved.policy[0])
        assert violation(policy, ROCK_PAPER_SCISSORS @ policy, reference, beta) < 1e-10


def test_branches_where_the_reference_gives_an_answer_no_chance():
    table, reference = theory.reward_table([1.0, 0.4, 0.0]), [0.0, 0.5, 0.5]
    limit = theory.stationary(reference, table, 0.5, group_size=4)
    nearby = theory.stationary([1e-9, 0.5 - 1e-9, 0.5], table, 0.5, group_size=4)
    kept = theory.stationary(reference, table, 0.5, group_size=4, support="reference")
    assert limit.converged
    assert kept.converged
    np.testing.assert_allclose(limit.policy, nearby.policy, atol=1e-8)
    assert limit.policy[0] > 0.5
    assert kept.policy[0] == 0
    np.testing.assert_allclose(kept.policy[1], theory.stationary_binary(0.5, 0.5, group_size=4), rtol=1e-13)
    at_limit = theory.group_preference(limit.policy, table, group_size=4)
    np.testing.assert_allclose(at_limit[0], 0.5, rtol=1e-10)
    worst = theory.stationary([0.5, 0.5, 0.0], table, 0.5, group_size=4)
    assert worst.policy[2] == 0


def test_edges_of_the_solver():
    table, reference = theory.reward_table([1.0, 0.4, 0.0]), [0.2, 0.5, 0.3]
    np.testing.assert_allclose(theory.stationary(reference, table, np.inf, group_size=4).policy, reference)
    ties = theory.stationary(reference, theory.reward_table([1.0, 1.0, 1.0]), 0.1, group_size=4)
    np.testing.assert_allclose(ties.policy, reference, atol=1e-14)
    short = theory.stationary(reference, table, 0.1, group_size=4, max_steps=1)
    assert not short.converged
    assert np.all(np.isnan(short.policy))
    for bad in (
        {"beta": 0.0},
        {"beta": -1.0},
        {"reference": [0.5, 0.6, 0.1]},
        {"reference": [-0.5, 1.0, 0.5]},
        {"support": "both"},
    ):
        arguments = {"reference": reference, "rewards": table, "beta": 0.1, "group_size": 4} | bad
        with pytest.raises(ValueError, match="must"):
            theory.stationary(**arguments)


def test_single_precision_is_graceful():
    with jax.enable_x64(False):
        table, reference = theory.reward_table([1.0, 0.4, 0.0]), np.array([0.2, 0.5, 0.3])
        for beta in (0.01, 0.5, 5.0):
            rough = theory.stationary(reference, table, beta, group_size=4)
            assert rough.policy.dtype == jnp.float32
            assert rough.converged
            with jax.enable_x64(True):
                fine = theory.stationary(reference, theory.reward_table([1.0, 0.4, 0.0]), beta, group_size=4)
            np.testing.assert_allclose(rough.policy, fine.policy, atol=2e-5)


def test_implicit_derivatives_are_finite_differences():
    probs = np.random.default_rng(1).dirichlet(np.ones(3), 3)

    def solve(logits, levels, beta):
        table = theory.Rewards(levels, jnp.asarray(probs))
        return theory.stationary(jax.nn.softmax(logits), table, beta, group_size=4).policy

    point = [jnp.array([0.3, -0.2, 0.5]), jnp.array([0.0, 1.0, 2.5]), jnp.array([0.4])]

    def flat(x):
        return solve(x[:3], x[3:6], x[6])

    x = jnp.concatenate(point)
    forward, backward = jax.jit(jax.jacfwd(flat))(x), jax.jit(jax.jacrev(flat))(x)
    solve_all = jax.jit(jax.vmap(flat))
    slopes = (solve_all(x + 1e-5 * jnp.eye(7)) - solve_all(x - 1e-5 * jnp.eye(7))) / 2e-5
    np.testing.assert_allclose(forward, slopes.T, atol=1e-8)
    np.testing.assert_allclose(backward, slopes.T, atol=1e-8)


def test_surrogate_curvature_and_training_spectrum():
    reference, beta = np.array([0.01, 0.99]), 1.3
    table = theory.reward_table([1.0, 0.0])
    policy = theory.stationary(reference, table, beta, group_size=2).policy
    preference = theory.group_preference(policy, table, group_size=2)

    def along(step):
        candidate = policy + step * jnp.array([1.0, -1.0]) / jnp.sqrt(2.0)
        return theory.frozen_surrogate(candidate, policy, preference, reference, beta)

    assert abs(jax.grad(along)(0.0)) < 1e-12
    curvature = jax.grad(jax.grad(along))(0.0) / beta
    np.testing.assert_allclose(theory.surrogate_curvature(policy, reference), curvature, rtol=1e-9)
    assert curvature > 0

    def pair_preference(pi):
        return theory.group_preference(pi, table, group_size=2)

    spectrum = np.sort(theory.training_spectrum(pair_preference, policy, reference, beta).real)
    x = float(policy[0])
    drift = 2 * x * (1 - x) * ((1 - 2 * x) - beta)
    np.testing.assert_allclose(spectrum, sorted([drift, 0.0]), atol=1e-13)
    assert drift < 0
