"""The instruments of the claims about hidden biases: what they are said to equal, they equal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments.length_forecast import forecast

from experiments import b06_idle_clip as idle
from experiments import length_task as task
from experiments import past_the_clip as past
from grpo_jax import methods, train
from grpo_jax.collectors import Sampled
from grpo_jax.config import Config, Loop
from grpo_jax.diagnostics import log_support
from grpo_jax.exact import Exact, expected_gradient
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.part import aligned
from grpo_jax.policies import MLPPolicy
from grpo_jax.surrogate import objective

pytestmark = pytest.mark.usefixtures("x64")


def length_gradients(rate: np.ndarray) -> jax.Array:
    """[2, nodes, V, R] gradient of E[len | right] and E[len | wrong] in the logits at the start."""
    start = task.policy(rate)
    lengths = task.SPACE.support[1].sum(1)[:, None]

    def expected(params, inside):
        chance = jnp.exp(log_support(start, params, task.PROMPTS))[0] * inside[:, None]
        return jnp.sum((chance * lengths).sum(0) / chance.sum(0))

    logits = jnp.asarray(start.logits)
    return jnp.stack([jax.grad(expected)(logits, inside)[0] for inside in (task.RIGHT, ~task.RIGHT)])


@pytest.mark.parametrize("name", ["grpo", "cppo", "dr_grpo"])
def test_the_forecast_is_the_exact_gradient_where_lengths_are_not_coupled(name):
    method = dataclasses.replace(methods.get(name), penalty=None)
    config = task.problem(task.RATES, method, expectation=Exact(cells=2))
    push = expected_gradient(config, jnp.asarray(task.policy(task.RATES).logits))[0]
    found = (length_gradients(task.RATES) * push).sum((1, 2))
    np.testing.assert_allclose(forecast([name])[0], found, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["dapo", task.OPEN])
def test_the_forecast_is_the_mean_over_sampled_groups(name):
    groups = 3000
    rate = np.repeat(task.RATES, groups)
    config = aligned(task.problem(rate, task.table_methods("quick")[name]))
    state = train.init(config, np.tile(np.arange(groups), 3), root=5)
    batch = Sampled().collect(config, state)

    def value(params):
        scores = config.policy.score(params, batch.rollout.prompts, batch.rollout.tokens, batch.rollout.mask)
        return jnp.sum(objective(config.method, batch.rollout, batch.advantages, scores.logp))

    push = jax.grad(value)(state.params)[0]
    drift = (length_gradients(rate) * push).sum((1, 2)).reshape(2, 3, groups)
    error = drift.std(2) / groups**0.5
    assert (abs(drift.mean(2) - forecast([name])[0]) < 4 * error).all()
    assert (abs(drift.mean(2)) > 4 * error).any()


def test_one_program_serves_sgd_and_adamw():
    both = task.problem(np.array([0.5, 0.5]), methods.dr_grpo, np.array([0, 1]))
    state, _ = train.run(both, train.init(both, np.array([3, 3])), iterations=5, record=())
    for run, optimizer in enumerate((SGD(learning_rate=0.6), AdamW(learning_rate=0.02))):
        config = task.problem(np.array([0.5]), methods.dr_grpo, optimizer=optimizer)
        alone, _ = train.run(config, train.init(config, np.array([3])), iterations=5, record=())
        np.testing.assert_allclose(state.params[..., run], alone.params[..., 0], rtol=1e-7, atol=1e-9)


def test_a_coin_decides_in_placebo_runs_alone():
    rate, placebo = np.repeat([0.1, 0.9], 300), np.tile([0.0, 1.0], 300)
    config = aligned(task.problem(np.full(600, 0.5), methods.dr_grpo, task=task.coin(rate, placebo)))
    rollout = Sampled().collect(config, train.init(config, np.arange(600))).rollout
    rewards, right = np.asarray(rollout.rewards)[0, :, 0], np.asarray(rollout.tokens)[0, :, 0] == 0
    np.testing.assert_array_equal(rewards[:, placebo == 0], right[:, placebo == 0])
    for p in (0.1, 0.9):
        here = (placebo == 1) & (rate == p)
        assert abs(rewards[:, here].mean() - p) < 0.05
        assert abs(np.corrcoef(rewards[:, here].ravel(), right[:, here].ravel())[0, 1]) < 0.15


def test_correlation_is_pearsons_and_nan_where_nothing_varies():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 4))
    a[:, 3] = 1.0
    found = task.correlation(a, b)
    np.testing.assert_allclose(found[:3], [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(3)], rtol=1e-12)
    assert np.isnan(found[3])


@pytest.mark.parametrize("passes", [1, 12])
def test_traced_passes_are_those_of_the_engine(passes):
    config, state = idle.problem(2, "AdamW", np.arange(3), inner_steps=passes)
    after, seen = train.run(config, state, iterations=24, record=("clip_fraction_high", "clip_fraction_low"))
    params, held = idle.passed(config, state, passes, 24)
    np.testing.assert_allclose(params, after.params, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        held, (seen["clip_fraction_high"] + seen["clip_fraction_low"]).mean(0), rtol=1e-12
    )
    assert (held[:3].max() > 0) == (passes == 12)
    np.testing.assert_array_equal(held[3:], 0)


def test_the_map_of_ratios_is_what_training_a_network_does():
    """One run by hand: the history, then passes over one batch, with ``train.run`` and scores alone."""
    settings = np.array([(0.01, 0.9, 0.95, 1e-8)])
    high, low, held, _ = past.ratio_map(3, settings, np.array([7]))[:, :, 0, 0]
    config = Config(
        policy=MLPPolicy(space=past.SPACE, contexts=2, width=32),
        task=past.TASK,
        method=dataclasses.replace(methods.dr_grpo, penalty=None),
        optimizer=AdamW(learning_rate=0.01, b2=0.95),
        loop=Loop(group_size=8, inner_steps=2),
    )
    before, _ = train.run(config, train.init(config, 7, root=3), iterations=past.HISTORY, record=())
    rollout = Sampled().collect(config, before).rollout
    long = dataclasses.replace(config, loop=Loop(group_size=8, inner_steps=past.PASSES[-1]))
    after, _ = train.run(long, before, iterations=1, record=())
    scores = config.policy.score(after.params, rollout.prompts, rollout.tokens, rollout.mask)
    ratio, reward = np.exp(np.asarray(scores.logp - rollout.old_logp)), np.asarray(rollout.rewards)
    wins = (reward > reward.mean(1, keepdims=True)) & (rollout.mask > 0)
    loses = (reward < reward.mean(1, keepdims=True)) & (rollout.mask > 0)
    np.testing.assert_allclose(high[-1], ratio[wins].max(initial=1.0), rtol=1e-9)
    np.testing.assert_allclose(low[-1], ratio[loses].min(initial=1.0), rtol=1e-9)
    out = ((ratio > 1.2) & wins).sum() + ((ratio < 0.8) & loses).sum()
    np.testing.assert_allclose(held[-1], out / np.sum(rollout.mask), rtol=1e-9)
    assert out > 0
