"""Parameters that travel with their softmax: the same draws, scores and runs as parameters alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import collectors, train
from grpo_jax.prepared import Prepared, plain, prepared

TABLE = np.array([[0.0, 1.0, 1.0], [0.3, 0.3, 0.9]])
CONFIG = gj.Config(
    policy=gj.ActionPolicy(logits=np.array([[0.0, 0.5, -1.0], [2.0, 0.0, -np.inf]])),
    task=gj.Questions(table=TABLE),
    loop=gj.Loop(group_size=5, inner_steps=3),
    optimizer=gj.AdamW(learning_rate=0.1),
)


def started(config, runs=3):
    config = collectors.choose(config)
    return config, train.init(config, np.arange(runs))


def test_draws_counts_and_scores_are_those_of_the_parameters_alone(x64):
    policy, prompts = CONFIG.policy, np.arange(2)
    params = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))
    made = policy.prepared(params)
    assert isinstance(made, Prepared)
    assert plain(made) is params
    draws = jnp.asarray(np.random.default_rng(1).random((2, 7, 1, 4)))
    for name in ("sample", "counts"):
        one, other = (getattr(policy, name)(at, prompts, draws) for at in (made, params))
        jax.tree.map(np.testing.assert_array_equal, one, other)
    for one, other in zip(
        policy.score_support(made, prompts), policy.score_support(params, prompts), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    wanted = np.exp(params) / np.exp(params).sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(policy.score_support(made, prompts).logp[:, :, 0]), wanted, rtol=1e-12)


@pytest.mark.parametrize("refresh", [1, 2])
def test_a_loop_over_prepared_parameters_is_its_steps_one_by_one(refresh, x64):
    """``step`` prepares nothing."""
    loop = dataclasses.replace(CONFIG.loop, refresh_every=refresh)
    config, state = started(dataclasses.replace(CONFIG, loop=loop))
    after, found = train.run(config, state, iterations=4, record=["reward", "entropy", "grad_norm"])
    assert not isinstance(after.params, Prepared)
    for i in range(4):
        state, info = jax.jit(lambda s: train.step(config, s, record=list(found)))(state)
        for name in found:
            np.testing.assert_allclose(found[name][i], info[name], rtol=1e-10, atol=1e-12)
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-10, atol=1e-12)


def test_only_a_plain_table_whose_loop_reads_it_alone_is_prepared():
    class Own(gj.ActionPolicy):
        """A subclass may score in a way of its own."""

    def held(config):
        config, state = started(config)
        return isinstance(collectors.prepared_state(config, state).params, Prepared)

    assert held(CONFIG)
    assert prepared(Own(logits=CONFIG.policy.logits), jnp.zeros((2, 3))).shape == (2, 3)
    cool = dataclasses.replace(CONFIG.policy, decoding=gj.Decoding(temperature=0.5))
    assert not held(dataclasses.replace(CONFIG, policy=cool))
    assert not held(dataclasses.replace(CONFIG, behavior=gj.Behavior(decoding=gj.Decoding(temperature=0.5))))
    assert not held(dataclasses.replace(CONFIG, expectation=gj.Exact()))
    drawn = dataclasses.replace(CONFIG.loop, prompts=3)
    assert not held(dataclasses.replace(CONFIG, loop=drawn))


def test_measures_of_users_are_given_the_parameters_alone():
    def logits(view):
        return view.state.params[0, 0] + view.state.old_params[0, 0]

    config, state = started(CONFIG)
    _, found = train.run(config, state, iterations=2, measure={"own": gj.measures.measure()(logits)})
    assert found["own"].shape == (2, 3)
