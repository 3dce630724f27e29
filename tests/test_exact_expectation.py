"""Exact expectations against closed sums and sampling, in training and sweeps, and what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods, train
from grpo_jax.collectors import Sampled
from grpo_jax.config import Config, Loop
from grpo_jax.diagnostics import expected_reward
from grpo_jax.exact import Exact, expected_gradient, expected_objective
from grpo_jax.optimizers import SGD
from grpo_jax.part import aligned, put_all
from grpo_jax.parts import corrections, shaping
from grpo_jax.policies import ActionPolicy, MLPPolicy, TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.sweeps import sweep
from grpo_jax.tasks import Gaussian, Questions, SequenceTable

pytestmark = pytest.mark.usefixtures("x64")

SPACE = Sequences(vocab=2, horizon=3, eos=1)
"""Four outputs, of lengths 3, 3, 2 and 1."""
ODDS = [0.7, -0.4, 0.2, 0.5, 1.1, -0.8]


def tree(method=methods.grpo, *, table=(1.0, 0.0, 0.5, 0.0), group_size=3, noise=None):
    """A tree of four outputs under one prompt."""
    logits = np.array(ODDS).reshape(1, 3, 2)
    return Config(
        policy=TreePolicy(space=SPACE, logits=logits),
        task=SequenceTable(space=SPACE, table=np.array([table]), noise=noise),
        method=method,
        optimizer=SGD(learning_rate=0.1),
        loop=Loop(group_size=group_size),
        expectation=Exact(),
    )


def repeated(table, count):
    """A table that every run has a copy of."""
    return np.repeat(np.asarray(table)[..., None], count, -1)


def drifted(config, size=0.6):
    """Parameters away from the starting ones."""
    start = np.asarray(config.policy.logits, float)
    return start + size * np.cos(np.arange(start.size)).reshape(start.shape)


def test_prompts_that_are_drawn():
    """Each prompt counts its context once more: the objective is the mean over what was drawn."""
    table = np.array([[1.0, 0.0, 0.0], [0.3, 0.3, 0.3]])
    logits = np.array([[0.2, -0.5, 0.1], [1.0, 0.4, 0.0]])
    config = Config(
        policy=ActionPolicy(logits=logits), task=Questions(table=table), method=methods.grpo,
        loop=Loop(group_size=3, prompts=5), expectation=Exact(),
    )  # fmt: skip
    params = drifted(config)
    state = train.init(config, 3)
    config = dataclasses.replace(config, expectation=Exact().resolved(config))

    @jax.jit
    def both(config, state, params):
        batch = config.expectation.collect(config, state)
        return batch.rollout.prompts, config.expectation.objective(config, batch, params)[0]

    prompts, value = both(config, state, params)
    drawn = np.bincount(np.asarray(prompts), minlength=2)
    assert (drawn > 0).all()
    alone = []
    for c in range(2):
        one = {"policy": ActionPolicy(logits=logits[[c]]), "task": Questions(table=table[[c]])}
        alone.append(
            expected_objective(
                dataclasses.replace(config, expectation=None, **one), params[[c]], old=logits[[c]]
            )
        )
    np.testing.assert_allclose(value, drawn @ np.array(alone) / 5, atol=1e-15)


def test_an_exact_batch_is_no_group():
    """It has no advantages; what share of an outcome's draws the clip holds is a number between 0 and 1."""
    config = tree(dataclasses.replace(methods.grpo, penalty=None), group_size=2)
    config = dataclasses.replace(config, expectation=Exact(cells=3))

    @jax.jit
    def everything(config, state, params):
        batch = config.expectation.collect(config, state)
        logp = config.policy.score_support(params, np.arange(1)).logp
        held = config.expectation.clip_mask(config, batch, logp)
        return batch, logp, held, config.expectation.clip_fractions(config, batch, logp)

    batch, logp, held, fractions = everything(config, train.init(config), drifted(config, 1.5))
    assert batch.advantages is None
    rewards, mask = np.array([1.0, 0.0, 0.5, 0.0]), SPACE.support[1]
    old = np.asarray(batch.rollout.old_logp[0])
    chance, ratio = np.exp(old.sum(1)), np.exp(np.asarray(logp[0]) - old)
    better = (rewards[:, None] > rewards) @ chance
    worse = (rewards[:, None] < rewards) @ chance
    np.testing.assert_allclose(held.high[0], better[:, None] * (ratio > 1.2) * mask, atol=1e-15)
    np.testing.assert_allclose(held.low[0], worse[:, None] * (ratio < 0.8) * mask, atol=1e-15)
    for share, side in zip(fractions, held, strict=True):
        assert share > 0.05
        np.testing.assert_allclose(share, (chance @ side[0]).sum() / (chance @ mask).sum(), atol=1e-15)


@pytest.mark.parametrize("group_size", [2, 3, 16, 64])
def test_binary_rewards_meet_the_closed_sum(group_size):
    """On-policy, [A]'s drift is φ_G(p)·∇log-odds: with one logit, E[∂J/∂θ_1] = φ_G(p), φ_G = E√(K(G−K))/G."""
    p = 0.2
    config = Config(
        policy=ActionPolicy.from_probabilities([p, 1 - p]), task=Questions(table=np.array([[1.0, 0.0]])),
        method=methods.tic_grpo, loop=Loop(group_size=group_size),
    )  # fmt: skip
    terms = [
        math.comb(group_size, k) * p**k * (1 - p) ** (group_size - k) * math.sqrt(k * (group_size - k))
        for k in range(group_size + 1)
    ]
    slope = expected_gradient(config, jnp.asarray(config.policy.logits))
    np.testing.assert_allclose(slope, [[sum(terms) / group_size, -sum(terms) / group_size]], atol=1e-13)


def test_sampling_approaches_at_the_root_of_n():
    """Means of n sampled gradients leave the exact one by Gaussian errors that shrink as n^(−1/2)."""
    config = dataclasses.replace(tree(group_size=4), expectation=Sampled())
    params = drifted(config, 0.3)
    exact = expected_gradient(config, params, old=config.policy.logits)
    count = 4096
    state, many = train.init(config, np.arange(count)), repeated(params, count)
    config = aligned(config)

    @jax.jit
    def gradients(state):
        batch = Sampled().collect(config, state)
        return jax.grad(lambda p: jnp.sum(Sampled().objective(config, batch, p)[0]))(many)

    draws = gradients(state).reshape(-1, count)
    live = jnp.std(draws, 1) > 0
    error = jnp.std(draws, 1)[live]
    for n in (256, count):
        z = (jnp.mean(draws[:, :n], 1) - exact.ravel())[live] / (error / np.sqrt(n))
        assert jnp.all(jnp.abs(z) < 4.5)
        assert jnp.sqrt(jnp.mean(z**2)) > 0.1
    np.testing.assert_allclose(exact.ravel()[~live], 0, atol=1e-15)


def test_dynamics_follow_the_expected_gradient():
    """Exact training at μ = 1 under SGD is θ ← θ + lr·E[∇J], alone and as one of several runs."""
    config = tree(methods.grpo)
    theta = np.asarray(config.policy.logits)
    for _ in range(3):
        theta = theta + 0.1 * expected_gradient(config, theta, old=theta, reference=config.policy.logits)
    after, _ = train.run(config, train.init(config), iterations=3, record=("finite",))
    np.testing.assert_allclose(after.params, theta, atol=1e-15)
    tables = np.stack([np.array([[1.0, 0.0, 0.5, 0.0]]), np.array([[0.0, 1.0, 0.0, 1.0]])], -1)
    rates = np.array([0.1, 0.3])
    swept = dataclasses.replace(
        config,
        task=dataclasses.replace(config.task, table=tables),
        optimizer=SGD(learning_rate=rates),
        loop=Loop(group_size=3, inner_steps=2),
    )
    record = ("tied", "clip_fraction_high", "surrogate")
    together, info = train.run(swept, train.init(swept, np.arange(2)), iterations=3, record=record)
    for r in range(2):
        alone = dataclasses.replace(
            swept,
            task=dataclasses.replace(config.task, table=tables[..., r]),
            optimizer=SGD(learning_rate=rates[r]),
        )
        single, numbers = train.run(alone, train.init(alone), iterations=3, record=record)
        np.testing.assert_allclose(together.params[..., r], single.params, atol=1e-15)
        for name in numbers:
            np.testing.assert_allclose(info[name][:, r], numbers[name], atol=1e-13)


def test_diagnostics_are_expectations():
    config = dataclasses.replace(tree(group_size=5, table=(1.0, 0.0, 1.0, 0.0)), loop=Loop(group_size=5))
    chance = jnp.exp(jnp.sum(config.policy.score_support(config.policy.logits, np.arange(1)).logp, 2))[0]
    p = float(chance[0] + chance[2])
    _, info = train.run(config, train.init(config), iterations=1, record=("tied", "reward", "length"))
    np.testing.assert_allclose(info["tied"][0], p**5 + (1 - p) ** 5, atol=1e-15)
    np.testing.assert_allclose(info["reward"][0], p, atol=1e-15)
    np.testing.assert_allclose(info["length"][0], jnp.sum(chance * jnp.array([3, 3, 2, 1])), atol=1e-14)


def test_refusals():
    config = tree()
    with pytest.raises(ValueError, match="Gaussian rewards have no finite list"):
        expected_objective(tree(noise=Gaussian()), config.policy.logits)
    two = Config(
        policy=ActionPolicy.uniform(contexts=2, actions=2),
        task=Questions(table=np.eye(2)),
        method=methods.dapo,
    )
    with pytest.raises(ValueError, match="PerToken couples the whole batch"):
        expected_objective(two, two.policy.logits)
    halved = dataclasses.replace(
        two, method=methods.grpo, loop=Loop(group_size=2, minibatches=2), expectation=Exact()
    )
    with pytest.raises(ValueError, match="minibatches must be 1"):
        train.run(halved, train.init(halved), iterations=1)
    conflict = dataclasses.replace(methods.grpo, corrections=(corrections.Conflict(),))
    with pytest.raises(ValueError, match="Conflict reads more than rewards"):
        expected_objective(
            dataclasses.replace(tree(conflict), expectation=Exact(cells=3)), config.policy.logits
        )
    large = dataclasses.replace(config, loop=Loop(group_size=1000), expectation=Exact(cells=0))
    with pytest.raises(ValueError, match=r"167668501 groups of 1000 over 4 outcomes.*GB"):
        expected_objective(large, config.policy.logits)


def test_networks_have_expected_gradients_too():
    """[C] C2 on a neural policy: the trajectory ratio's expected gradient is (1 − 1/G)·∇J(θ)."""
    policy = MLPPolicy(space=SPACE, width=3)
    config = dataclasses.replace(
        tree(dataclasses.replace(methods.tic_grpo_unclipped, advantage=methods.SHIFT)), policy=policy
    )
    old, params = policy.init(jax.random.key(1)), policy.init(jax.random.key(2))
    found = expected_gradient(config, params, old=old)
    expected = jax.grad(lambda p: expected_reward(policy, config.task, p, np.arange(1)))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, 2 / 3 * other, atol=1e-14)


def test_sweeps_take_exact_expectations():
    """A swept learning rate and reward scale give what single runs give."""
    config = tree()
    grid = {"optimizer.learning_rate": [0.1, 0.3], "task.scale": [1.0, 2.0]}
    data = sweep(config, grid, seeds=1, iterations=2, record=("expected_reward",), progress=False)
    assert data.attrs["expectation"] == "Exact"
    values = {"optimizer.learning_rate": 0.3, "task.scale": 2.0}
    alone = put_all(config, values)
    _, info = train.run(alone, train.init(alone), iterations=2, record=("expected_reward",))
    swept = data.expected_reward.sel(values).isel(seed=0)
    np.testing.assert_allclose(swept, info["expected_reward"], atol=1e-14)


def test_single_precision():
    config = tree(group_size=64, table=(1.0, 0.0, 1.0, 0.0))
    exact = expected_gradient(config, drifted(config), old=config.policy.logits)
    with jax.enable_x64(False):
        found = expected_gradient(config, drifted(config), old=config.policy.logits)
        assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, atol=2e-6)


def test_kl_in_the_reward_descends_the_policy_s_own_divergence():
    """On-policy, without other rewards: −(1 − 1/G) ∇KL(π‖π_ref), the group's mean taking its share."""
    now, reference = (jnp.asarray(np.random.default_rng(seed).normal(size=(1, 4))) for seed in range(2))
    method = dataclasses.replace(methods.dr_grpo, shaping=shaping.KLInReward(coef=0.7))
    config = Config(
        policy=ActionPolicy(logits=np.asarray(now)),
        task=Questions(table=np.zeros((1, 4))),
        method=method,
        loop=Loop(group_size=3),
    )

    def divergence(logits):
        gap = jax.nn.log_softmax(logits) - jax.nn.log_softmax(reference)
        return jnp.sum(jnp.exp(jax.nn.log_softmax(logits)) * gap)

    found = expected_gradient(config, now, reference=reference)
    np.testing.assert_allclose(found, -0.7 * (1 - 1 / 3) * jax.grad(divergence)(now), atol=1e-14)
