"""Samples, histograms and policies of every kind give one and the same training."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods, train
from grpo_jax.collectors import Counts, Sampled
from grpo_jax.config import Config, Loop
from grpo_jax.optimizers import SGD
from grpo_jax.part import put_all
from grpo_jax.policies import ActionPolicy, MLPPolicy, TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.tasks import Questions, SequenceReward, SequenceTable

RNG = np.random.default_rng(11)


def configured(**changes: Any) -> Config:
    base = Config(
        policy=ActionPolicy(logits=RNG.normal(size=(4, 3))),
        task=Questions(table=RNG.normal(size=(4, 3))),
        optimizer=SGD(learning_rate=0.9),
        loop=Loop(group_size=6),
    )
    return dataclasses.replace(base, **changes)


SPACE = Sequences(vocab=3, horizon=2, eos=2)
TREE = {
    "policy": TreePolicy(space=SPACE, logits=RNG.normal(size=(2, 3, 3))),
    "task": SequenceTable(space=SPACE, table=RNG.normal(size=(2, 7))),
}


def gradients(config):
    """(J, ∇J) of both expectations, away from θ_old."""
    state = train.init(config, 3)
    point = state.params + 0.3 * jnp.cos(jnp.arange(state.params.size, dtype=float)).reshape(
        state.params.shape
    )

    @jax.jit
    def both(config, state, point):
        found = []
        for expectation in (Sampled(), Counts()):
            batch = expectation.collect(config, state)
            found.append(jax.value_and_grad(lambda p: expectation.objective(config, batch, p)[0])(point))  # noqa: B023
        return found

    return both(config, state, point)


@pytest.mark.parametrize(
    ("space", "name"),
    [
        *(("actions", name) for name in ("grpo", "rloo", "reinforce", "grpo_frozen")),
        *(("tree", name) for name in ("grpo", "dapo", "gspo", "tic_grpo")),
    ],
)
@pytest.mark.usefixtures("x64")
def test_a_histogram_equals_its_samples(name, space):
    config = configured(method=methods.get(name), **(TREE if space == "tree" else {}))
    (sampled, slope), (counted, counted_slope) = gradients(config)
    np.testing.assert_allclose(counted, sampled, rtol=0, atol=1e-12)
    np.testing.assert_allclose(counted_slope, slope, rtol=0, atol=1e-12)
    assert np.abs(slope).max() > 1e-3


@pytest.mark.usefixtures("x64")
def test_a_tree_trains_alike_as_samples_of_one_run_and_counts_of_many():
    config = configured(method=methods.dapo, **TREE)
    alone, _ = train.run(config, train.init(config, 5), iterations=3)
    counted = dataclasses.replace(config, expectation=Counts())
    together, _ = train.run(counted, train.init(counted, np.array([4, 5])), iterations=3)
    np.testing.assert_allclose(together.params[..., 1], alone.params, rtol=1e-9, atol=1e-11)


def test_a_neural_policy_trains_under_vmap_as_run_by_run():
    def count_ones(prompts, tokens, mask):
        return jnp.sum(mask * (tokens == 1), 2)

    config = Config(
        policy=MLPPolicy(space=SPACE, contexts=2, width=4),
        task=SequenceReward(function=count_ones, contexts=2),
        method=methods.grpo,
        optimizer=SGD(learning_rate=0.5),
        loop=Loop(group_size=16, inner_steps=2),
    )

    def simulate(rate, seed):
        varied = put_all(config, {"optimizer.learning_rate": rate})
        return train.run(varied, train.init(varied, seed), iterations=8, record=("expected_reward",))

    rates, seeds = jnp.array([0.5, 0.1]), jnp.array([3, 4], jnp.uint32)
    _, info = jax.jit(jax.vmap(simulate, out_axes=-1))(rates, seeds)
    one = jax.jit(simulate)
    for r in range(2):
        alone = one(rates[r], seeds[r])[1]["expected_reward"]
        np.testing.assert_allclose(info["expected_reward"][:, r], alone, rtol=1e-4)
    assert info["expected_reward"][-1, 0] > info["expected_reward"][0, 0] + 0.05
