"""Preferences, how sampled gradients and optimizer steps scatter, and the weights of large groups."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods
from grpo_jax.config import Config, Loop
from grpo_jax.exact import (
    Exact,
    expected_gradient,
    expected_objective,
    expected_preference,
    gradient_law,
    groups,
    step_law,
)
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.parts.reductions import PerToken
from grpo_jax.policies import ActionPolicy
from grpo_jax.tasks import Bernoulli, Questions

pytestmark = pytest.mark.usefixtures("x64")

REWARDS = np.array([1.0, 0.0, 0.4])
OLD = np.array([0.5, 0.2, 0.3])


def question(*, group_size=3, method=methods.tic_grpo_unclipped, optimizer=None, prompts=1, noise=None):
    """Three answers to one or more questions."""
    return Config(
        policy=ActionPolicy.from_probabilities(np.stack([OLD] * prompts)),
        task=Questions(table=np.stack([REWARDS] * prompts), noise=noise),
        method=method,
        optimizer=optimizer or SGD(learning_rate=0.5),
        loop=Loop(group_size=group_size),
    )


def standardized(rewards):
    """(r − mean)/σ in NumPy, 0 for ties."""
    away = rewards - rewards.mean()
    return away / rewards.std() if np.ptp(rewards) > 0 else 0 * away


def ordered_gradients(size):
    """Probability and gradient in logits of every ordered group at θ_old, by hand: Σ_i A_i(e_i − π)/G."""
    rows = np.array(list(itertools.product(range(3), repeat=size)))
    chance = OLD[rows].prod(1)
    advantage = np.array([standardized(REWARDS[row]) for row in rows])
    score = np.eye(3)[rows] - OLD
    return chance, np.einsum("hi,hid->hd", advantage, score) / size


def test_preference_by_hand():
    for method, center in (
        (methods.tic_grpo_unclipped, standardized),
        (methods.dr_grpo, lambda r: r - r.mean()),
    ):
        expected = np.zeros(3)
        for o in range(3):
            for others in itertools.product(range(3), repeat=2):
                expected[o] += OLD[list(others)].prod() * center(REWARDS[[o, *others]])[0]
        for cells in (0, 3):
            config = dataclasses.replace(question(method=method), expectation=Exact(cells=cells))
            found = expected_preference(config, config.policy.logits)
            np.testing.assert_allclose(found[0], expected, atol=1e-15)


def test_preference_of_noisy_rewards_and_of_what_is_never_drawn():
    """Groups of two and Bernoulli rewards: P(o ≻ o') − P(o' ≻ o) = r(o) − r(o'), averaged over o'."""
    config = question(group_size=2, noise=Bernoulli())
    found = expected_preference(config, config.policy.logits)
    np.testing.assert_allclose(found[0], REWARDS - OLD @ REWARDS, atol=1e-15)
    sure = ActionPolicy.from_probabilities(np.array([[1.0, 0.0, 0.0]]))
    config = dataclasses.replace(question(group_size=2), policy=sure)
    np.testing.assert_allclose(expected_preference(config, sure.logits)[0], [0, -1, -1], atol=1e-15)


def test_preferences_of_runs():
    config = question()
    logits = jnp.stack([jnp.asarray(config.policy.logits), 0.1 * jnp.arange(3.0)[None]], -1)
    many = expected_preference(config, logits)
    for r in range(2):
        np.testing.assert_allclose(many[..., r], expected_preference(config, logits[..., r]), atol=1e-15)


def test_gradient_law_by_hand():
    config = question()
    chance, gradients = ordered_gradients(3)
    mean = chance @ gradients
    law = gradient_law(config, config.policy.logits)
    np.testing.assert_allclose(law.mean, mean, atol=1e-15)
    np.testing.assert_allclose(law.mean, expected_gradient(config, config.policy.logits)[0], atol=1e-15)
    covariance = np.einsum("h,hd,he->de", chance, gradients - mean, gradients - mean)
    np.testing.assert_allclose(law.covariance, covariance, atol=1e-15)
    np.testing.assert_allclose(law.signal_to_noise, mean @ mean / np.trace(covariance), rtol=1e-12)


def test_step_law_by_hand():
    """Adam's first step is −lr·g/(|g| + ε) for each coordinate of each ordered group."""
    config = question(optimizer=AdamW(learning_rate=0.1, eps=0.05, weight_decay=0.01))
    theta = np.log(OLD)
    chance, gradients = ordered_gradients(3)
    after = theta + 0.1 * (gradients / (np.abs(gradients) + 0.05) - 0.01 * theta)
    mean = chance @ after
    law = step_law(config, config.policy.logits)
    np.testing.assert_allclose(law.mean, mean, atol=1e-14)
    np.testing.assert_allclose(
        law.covariance, np.einsum("h,hd,he->de", chance, after - mean, after - mean), atol=1e-15
    )


def test_prompts_scatter_independently():
    config = question(prompts=2, group_size=2)
    single, both = question(group_size=2), gradient_law(config, config.policy.logits)
    block = gradient_law(single, single.policy.logits).covariance / 4
    expected = np.block([[block, np.zeros((3, 3))], [np.zeros((3, 3)), block]])
    np.testing.assert_allclose(both.covariance, expected, atol=1e-15)
    moved = step_law(config, config.policy.logits)
    np.testing.assert_allclose(moved.covariance, 0.25 * both.covariance, atol=1e-15)
    np.testing.assert_allclose(moved.mean, config.policy.logits.ravel() + 0.5 * both.mean, atol=1e-15)
    with pytest.raises(ValueError, match=r"joint groups of 2 prompts"):
        step_law(question(prompts=2, group_size=64), config.policy.logits)


def test_batch_coupling_is_exact_for_one_prompt():
    method = dataclasses.replace(methods.grpo, reduction=PerToken(), penalty=None)
    one = question(method=method)
    law = gradient_law(one, one.policy.logits)
    np.testing.assert_allclose(law.mean, ordered_gradients(3)[0] @ ordered_gradients(3)[1], atol=1e-15)
    with pytest.raises(ValueError, match="PerToken couples the whole batch"):
        gradient_law(question(method=method, prompts=2), np.stack([np.log(OLD)] * 2))


@pytest.mark.parametrize(("size", "chances"), [(4096, (0.3, 0.7)), (64, (0.2, 0.5, 0.3)), (8, (0.125,) * 8)])
def test_weights_sum_to_one(size, chances):
    counts = groups.enumerate_groups(size, len(chances))
    assert len(counts) == math.comb(size + len(chances) - 1, len(chances) - 1)
    weights = jax.vmap(lambda n: groups.weights(n, size, jnp.array(chances)[None]))(jnp.asarray(counts))
    np.testing.assert_allclose(jnp.sum(weights), 1, atol=1e-12)
    mean = jnp.sum(weights * counts, 0) / size
    np.testing.assert_allclose(mean, chances, atol=1e-12)


def test_a_weight_by_hand():
    found = groups.weights(jnp.array([2, 1, 1]), 4, jnp.array([[0.5, 0.2, 0.3], [1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found, [12 * 0.25 * 0.2 * 0.3, 0], atol=1e-16)


def test_long_sums_go_in_chunks(monkeypatch):
    config = question(group_size=12)
    theta = 0.3 * np.arange(3.0)[None]
    whole = expected_gradient(config, theta, old=config.policy.logits)
    value = expected_objective(config, theta, old=config.policy.logits)
    monkeypatch.setattr("grpo_jax.exact.expectation.CHUNK", 40)
    jax.clear_caches()
    np.testing.assert_allclose(expected_objective(config, theta, old=config.policy.logits), value, atol=1e-15)
    np.testing.assert_allclose(expected_gradient(config, theta, old=config.policy.logits), whole, atol=1e-15)
