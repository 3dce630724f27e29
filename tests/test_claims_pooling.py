"""Instruments of the claims on pooling, penalties and large groups, against formulas and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    a02_large_groups,
    a03_penalty_gradient,
    a07_pooling,
    a09_shift_only,
    a10_effective_beta,
)
from grpo_jax.exact import expected_gradient
from grpo_jax.optimizers import SGD

pytestmark = pytest.mark.usefixtures("x64")


def policies(count: int, size: int = 3, seed: int = 0) -> np.ndarray:
    """[K, count]."""
    return np.random.default_rng(seed).dirichlet(np.ones(size), count).T


def test_pairs_with_the_direct_penalty_climb_the_objectives_of_nlhf_and_rlhf():
    reference, pi = policies(8, seed=1), policies(8, seed=2)
    rewards, beta = np.array([1.0, 0.3, -0.5]), np.linspace(0.2, 2.0, 8)
    power = np.repeat([1.0, 0.0], 4)
    config = a07_pooling.setting(True, power, reference, rewards, beta, optimizer=SGD())
    found = np.asarray(expected_gradient(config, np.log(pi)[None], reference=np.log(reference)[None]))[0]

    def objective(logits, policy, anchor, b, p):
        here = jax.nn.softmax(logits)
        divergence = here @ (jnp.log(here) - jnp.log(anchor))
        wins = jnp.sign(rewards[:, None] - rewards[None, :])
        return jnp.where(
            p > 0, here @ wins @ policy - 2 * b * divergence, 0.5 * (here @ rewards - b * divergence)
        )

    aim = jax.vmap(jax.grad(objective))(jnp.log(pi.T), pi.T, reference.T, beta, power)
    np.testing.assert_allclose(found.T, aim, atol=1e-12)


def test_the_flow_rests_at_the_fixed_point_and_leads_to_it():
    here = a07_pooling.predicted("RLHF", a07_pooling.REFERENCE, a07_pooling.REWARDS, a07_pooling.BETA)
    best = np.array([0.98, 0.01, 0.01])
    grid = np.stack([here, best, [np.nan] * 3], 1)[:, :, None]
    velocity = a07_pooling.flow(True, grid)[1, 0]
    np.testing.assert_allclose(velocity[:, 0, 0], 0, atol=1e-14)
    assert velocity[1, 1, 0] < 0  # down, away from the best answer's corner
    assert np.isnan(velocity[:, 2]).all()


@pytest.mark.parametrize("name", ["two levels", "three levels", "coin flips"])
def test_direct_sums_equal_brute_force_over_groups(name):
    policy, levels, probs = a02_large_groups.law(name)
    chance = policy @ probs
    found = np.zeros(len(levels))
    for own in range(len(levels)):
        for others in itertools.product(range(len(levels)), repeat=3):
            group = levels[[own, *others]]
            spread = group.std()
            advantage = (levels[own] - group.mean()) / spread if len(set(group)) > 1 else 0.0
            found[own] += np.prod(chance[list(others)]) * advantage
    np.testing.assert_allclose(a02_large_groups.direct(name, 4), probs @ found, atol=1e-13)


def test_the_law_of_rare_levels_has_both_its_limits():
    small, large = 1e-6, 1500.0
    assert a02_large_groups.rare_law(np.array([small]))[0] == pytest.approx(np.sqrt(small), rel=1e-5)
    assert a02_large_groups.rare_law(np.array([large]))[0] == pytest.approx(1, abs=1e-3)


def test_gradients_of_both_divergences_of_sequences_equal_sums_over_sequences():
    rng = np.random.default_rng(4)
    logits, reference = jnp.asarray(rng.normal(size=(2, 4, 3)))

    def both(free):
        p, q = jax.nn.log_softmax(free, 1), jax.nn.log_softmax(reference, 1)
        total = jnp.zeros(2)
        for a, b in itertools.product(range(3), repeat=2):
            log_p, log_q = p[0, a] + p[1 + a, b], q[0, a] + q[1 + a, b]
            gap = log_p - log_q
            total += jnp.stack([jnp.exp(log_p) * gap, -jnp.exp(log_q) * gap])
        return total

    found = a03_penalty_gradient.sequence_gradient(logits, reference, horizon=2, frozen=False)
    np.testing.assert_allclose(found, jax.jacobian(both)(logits), atol=1e-13)


def test_pairs_weigh_the_penalty_alike_at_every_policy():
    """A pair's advantage is a sign, so the spread never divides by less: the weight is 1, far from sigma."""
    weight, cosine = a10_effective_beta.weight(policies(5, size=2), [1.0, 0.0], 2)
    np.testing.assert_allclose(weight, 1, atol=1e-12)
    np.testing.assert_allclose(cosine, 1, atol=1e-12)


@pytest.mark.parametrize("variant", ["mean, G = 2", "left out, G = 8, coin flips"])
def test_preferences_without_the_spread_are_differences_of_means(variant):
    assert a09_shift_only.preference_error(variant, 7) < 1e-13
    assert a09_shift_only.factor("mean, G = 2") == 0.5
