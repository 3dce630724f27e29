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
from grpo_jax.optimizers import SGD, Adam, AdamW
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


UNEQUAL = np.array([[0.5, 0.2, 0.3], [0.6, 0.0, 0.4]])
NOW = np.array([[0.35, 0.4, 0.25], [0.3, 0.0, 0.7]])
ANCHOR = np.array([[0.2, 0.5, 0.3], [0.5, 0.2, 0.3]])
"""θ_old, θ and θ_ref of two contexts; the second never draws its second answer."""
TABLES = {"unequal": [[1.0, 0.0, 0.4], [0.3, 1.0, 0.9]], "one tied": [[1.0, 0.4, 0.4], [0.3, 0.3, 0.3]]}
BETA = 0.3


def logits_of(probabilities):
    with np.errstate(divide="ignore"):
        return jnp.log(jnp.asarray(probabilities))


def two_contexts(table, size, optimizer=None):
    """GRPO with its clip and a penalty, and where it is evaluated."""
    method = dataclasses.replace(methods.grpo, penalty=dataclasses.replace(methods.grpo.penalty, coef=BETA))
    config = Config(
        policy=ActionPolicy(logits=np.asarray(logits_of(UNEQUAL))), task=Questions(table=np.array(table)),
        method=method, optimizer=optimizer or SGD(learning_rate=0.5), loop=Loop(group_size=size),
    )  # fmt: skip
    return config, {"old": logits_of(UNEQUAL), "reference": logits_of(ANCHOR)}


def joint_groups(table, size):
    """Probability, J and gradient [H, 6] of every ordered joint group of both contexts, by hand."""
    rows = np.array(list(itertools.product(range(3), repeat=2 * size))).reshape(-1, 2, size)
    prompt = np.arange(2)[:, None]
    chance = UNEQUAL[prompt, rows].prod((1, 2))
    rows, chance = rows[chance > 0], chance[chance > 0]
    rewards = np.array(table)[prompt, rows]
    a = np.array([[standardized(context) for context in group] for group in rewards])
    new, old, ref = (p[prompt, rows] for p in (NOW, UNEQUAL, ANCHOR))
    ratio, gap = new / old, np.log(ref / new)
    gain = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
    value = (gain - BETA * (np.exp(gap) - gap - 1)).sum((1, 2)) / (2 * size)
    live = np.where(a > 0, ratio <= 1.2, ratio >= 0.8)
    pull = live * ratio * a - BETA * (1 - ref / new)
    score = np.eye(3)[rows] - NOW[:, None]
    return chance, value, np.einsum("hpg,hpgd->hpd", pull, score).reshape(len(rows), 6) / (2 * size)


@pytest.mark.parametrize(("table", "size", "chunk"), [("unequal", 3, None), ("one tied", 2, 24)])
def test_laws_of_unequal_contexts(table, size, chunk, monkeypatch):
    """Also where one context cannot draw what the other can, whole (10 groups) and in chunks (6 by 4)."""
    if chunk:
        monkeypatch.setattr("grpo_jax.exact.expectation.CHUNK", chunk)
    chance, value, gradients = joint_groups(TABLES[table], size)
    config, at = two_contexts(TABLES[table], size, Adam(learning_rate=0.1, eps=0.05))
    now = logits_of(NOW)
    mean = chance @ gradients
    for cells in (0, 3):
        way = dataclasses.replace(config, expectation=Exact(cells=cells))
        np.testing.assert_allclose(expected_objective(way, now, **at), chance @ value, atol=1e-15)
        np.testing.assert_allclose(expected_gradient(way, now, **at).ravel(), mean, atol=1e-15)
    law = gradient_law(config, now, **at)
    np.testing.assert_allclose(law.mean, mean, atol=1e-15)
    spread = np.einsum("h,hd,he->de", chance, gradients - mean, gradients - mean)
    np.testing.assert_allclose(law.covariance, spread, atol=1e-15)
    moved = 0.1 * gradients / (np.abs(gradients) + 0.05)
    away = moved - chance @ moved
    law = step_law(config, now, **at)
    start = np.asarray(now).ravel()
    np.testing.assert_allclose(law.mean, start + chance @ moved, atol=1e-14)
    np.testing.assert_allclose(law.covariance, np.einsum("h,hd,he->de", chance, away, away), atol=1e-15)


def test_too_many_joint_groups():
    config, at = two_contexts(TABLES["unequal"], 64)
    with pytest.raises(ValueError, match=r"joint groups of 2 prompts"):
        step_law(config, logits_of(NOW), **at)


def test_the_reference_is_the_configuration_s_unless_another_is_given():
    """What ``reference`` gives is by hand above; here the same table stands in the configuration."""
    config, at = two_contexts(TABLES["unequal"], 2)
    held = dataclasses.replace(config, reference=np.asarray(at["reference"]))
    reads = dataclasses.replace(methods.grpo_kl_in_reward.shaping, coef=3.0)
    now, old = logits_of(NOW), at["old"]
    for compute in (expected_objective, expected_gradient, gradient_law, step_law):
        found, given, other = (
            jax.tree.leaves(compute(made, now, **points))[0]
            for made, points in ((held, {"old": old}), (config, at), (held, at | {"reference": old}))
        )
        np.testing.assert_array_equal(found, given)
        assert not np.allclose(found, other, rtol=1e-6)
    shaped = dataclasses.replace(held, method=dataclasses.replace(held.method, shaping=reads))
    whole = logits_of([[0.5, 0.2, 0.3], [0.6, 0.1, 0.3]])
    found = expected_preference(shaped, whole)
    np.testing.assert_array_equal(found, expected_preference(shaped, whole, reference=at["reference"]))
    assert np.abs(found - expected_preference(shaped, whole, reference=whole)).max() > 1e-3
    runs = jnp.stack([old, now], -1)
    many = expected_gradient(held, runs)
    for r in range(2):
        np.testing.assert_allclose(many[..., r], expected_gradient(held, runs[..., r]), atol=1e-15)


def test_preferences_of_unequal_contexts():
    """What another context cannot draw, or which cells it lacks, is none of a prompt's business."""
    for name, table in TABLES.items():
        expected = np.zeros((2, 3))
        for c, o in np.ndindex(2, 3):
            for others in itertools.product(range(3), repeat=2):
                rewards = np.array(table)[c, [o, *others]]
                expected[c, o] += UNEQUAL[c, list(others)].prod() * standardized(rewards)[0]
        config, _ = two_contexts(table, 3)
        for cells in (None, 0, 3):
            way = dataclasses.replace(config, expectation=Exact(cells=cells))
            found = expected_preference(way, logits_of(UNEQUAL))
            np.testing.assert_allclose(found, expected, atol=1e-15, err_msg=f"{name} {cells}")


def test_preferences_that_couple_the_batch_are_refused():
    config, _ = two_contexts(TABLES["unequal"], 2)
    with pytest.raises(ValueError, match=r"^PerInformative couples the whole batch"):
        expected_preference(dataclasses.replace(config, method=methods.gpg), logits_of(UNEQUAL))
    shared = dataclasses.replace(config, method=dataclasses.replace(methods.dapo, advantage=methods.SHIFT))
    found = expected_preference(shared, logits_of(UNEQUAL))
    own = np.array(TABLES["unequal"])
    np.testing.assert_allclose(found, (own - (UNEQUAL * own).sum(1, keepdims=True)) / 2, atol=1e-15)


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
