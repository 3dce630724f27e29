"""Samples, histograms and policies of every kind give one and the same training."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods, train
from grpo_jax.collectors import Counts, Sampled, choose, reason
from grpo_jax.config import Config, Loop, validate
from grpo_jax.exact import Exact, expected_gradient
from grpo_jax.methods import METHODS
from grpo_jax.optimizers import SGD
from grpo_jax.part import number, part, put_all
from grpo_jax.parts.corrections import OffPolicyMask
from grpo_jax.parts.ratios import FromSampler
from grpo_jax.parts.sampler import SamplerMask, SamplerMismatch, SequenceGeometricMean
from grpo_jax.parts.shaping import ClampedReward, NormalizedSum, WeightedSum
from grpo_jax.parts.soft_gains import Vespo
from grpo_jax.policies import ActionPolicy, MLPPolicy, TreePolicy
from grpo_jax.presets import PRESETS
from grpo_jax.sequences import Sequences, at_prompts, lookup
from grpo_jax.surrogate import idle_corrections
from grpo_jax.tasks import Questions, SequenceReward, SequenceTable
from grpo_jax.types import Levels

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


SAMPLER = {
    "SamplerMismatch": {"corrections": (SamplerMismatch(),)},
    "SamplerMask": {"corrections": (SamplerMask(),)},
    "OffPolicyMask": {"corrections": (OffPolicyMask(from_sampler=True),)},
    "FromSampler": {"ratio": FromSampler()},
}


def test_corrections_for_a_sampler_are_named_where_the_old_policy_samples():
    for name, changes in SAMPLER.items():
        assert idle_corrections(dataclasses.replace(methods.grpo, **changes), one_step=True) == [name]
    inside = dataclasses.replace(methods.vespo, gain=Vespo(sampler=SamplerMismatch()))
    assert idle_corrections(inside, one_step=True) == ["SamplerMismatch"]
    wrapped = dataclasses.replace(methods.grpo, corrections=(SequenceGeometricMean(), SamplerMask()))
    assert idle_corrections(wrapped, one_step=True) == ["SamplerMismatch", "SamplerMask"]
    assert not [name for name, method in METHODS.items() if idle_corrections(method, one_step=True)]
    idle = {name: idle_corrections(make(), one_step=True) for name, make in PRESETS.items()}
    corrects = {name: parts for name, parts in idle.items() if parts}
    assert corrects == {"open_instruct": ["SamplerMismatch"]}, "the one library that corrects by default"
    assert idle_corrections(PRESETS["trl"](use_vllm=True), one_step=True) == ["SamplerMask"]


@pytest.mark.parametrize("name", ["SamplerMismatch", "SamplerMask", "OffPolicyMask"])
@pytest.mark.usefixtures("x64")
def test_what_is_named_is_idle_indeed(name):
    """In training: the objective is that without the correction, or with the old policy as the sampler."""
    plain = () if name != "OffPolicyMask" else (OffPolicyMask(),)
    base = configured(method=methods.dapo)
    ends = [
        gradients(put_all(base, {"method.corrections": corrections}))[0]
        for corrections in (SAMPLER[name]["corrections"], plain)
    ]
    for found, wanted in zip(*ends, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-14)


TOKENS = Sequences(vocab=3, horizon=1)


def test_questions_are_put_to_policies_of_single_actions_only():
    questions = Questions(table=np.eye(2, 3))
    with pytest.raises(
        ValueError, match="Questions rewards single actions; TreePolicy gives sequences of up"
    ):
        validate(Config(policy=TreePolicy.uniform(SPACE, contexts=2), task=questions))
    with pytest.raises(ValueError, match="table has 4 answers, the policy 3 tokens"):
        validate(Config(policy=TreePolicy.uniform(TOKENS, contexts=2), task=Questions(table=np.eye(2, 4))))
    validate(Config(policy=TreePolicy.uniform(TOKENS, contexts=2), task=questions))


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


@part
class TwoRewards:
    """One reward from each of two tables, without noise."""

    first: Any = number(rank=2)
    second: Any = number(rank=2)
    noise: Any = None

    def prompts(self, uniforms):
        return jnp.zeros(uniforms.shape, int)

    def rewards(self, prompts, tokens, mask, uniforms):
        both = (at_prompts(jnp.asarray(table, float), prompts) for table in (self.first, self.second))
        return jnp.stack([lookup(table, tokens[:, :, 0]) for table in both], 2)

    def means(self, prompts, tokens, mask):
        return jnp.sum(self.rewards(prompts, jnp.asarray(tokens), mask, None), 2)

    def levels(self, prompts, tokens, mask):
        values = self.means(prompts, tokens, mask)[:, :, None]
        return Levels(values=values, probabilities=jnp.ones_like(values))


TWO = {
    "policy": ActionPolicy.uniform(contexts=1, actions=3),
    "task": TwoRewards(first=np.array([[1.0, 0, 0]]), second=np.array([[0.0, 0, 10]])),
}


@part
class FirstReward:
    """A shaping from outside, which may read any of the rewards."""

    def __call__(self, rollout):
        return rollout.rewards[:, :, 0]


SPLITTING = {
    "WeightedSum": WeightedSum(weights=(3.0, 1.0)),
    "NormalizedSum": NormalizedSum(),
    "NormalizedSum inside": ClampedReward(inner=NormalizedSum()),
    "FirstReward": FirstReward(),
}


@pytest.mark.parametrize("shaping", SPLITTING.values(), ids=SPLITTING)
@pytest.mark.usefixtures("x64")
def test_rewards_that_are_read_one_by_one_are_sampled(shaping):
    method = dataclasses.replace(methods.dr_grpo, shaping=shaping)
    config = configured(**TWO, method=method)
    assert choose(config).expectation == Sampled()
    assert "one by one" in reason(config)
    params = [
        train.run(one, train.init(one, np.arange(3)), iterations=4)[0].params
        for one in (config, dataclasses.replace(config, expectation=Sampled()))
    ]
    np.testing.assert_array_equal(*params)
    for total in (Counts(), Exact()):
        with pytest.raises(ValueError, match="reads the 2 rewards of an entry one by one"):
            choose(dataclasses.replace(config, expectation=total))
    with pytest.raises(ValueError, match="one by one"):
        expected_gradient(config, np.zeros((1, 3)))


@pytest.mark.usefixtures("x64")
def test_rewards_that_are_summed_are_counted_as_they_are_sampled():
    """A count, and the exact gradient Σ_o p(o)(r(o) − J)(e_o − p)·(1 − 1/G) of the totals 1, 0, 10."""
    config = configured(**TWO, method=methods.dr_grpo)
    assert choose(config).expectation == Counts()
    (sampled, slope), (counted, counted_slope) = gradients(config)
    np.testing.assert_allclose(counted, sampled, rtol=1e-12)
    np.testing.assert_allclose(counted_slope, slope, atol=1e-14)
    centred = np.array([1.0, 0, 10]) - 11 / 3
    expected = centred / 3 * (1 - 1 / config.loop.group_size)
    np.testing.assert_allclose(expected_gradient(config, np.zeros((1, 3)))[0], expected, atol=1e-12)


def test_one_reward_is_counted_under_any_shaping():
    """So it is with a table and runs of its own for a policy of this package."""
    method = dataclasses.replace(methods.dr_grpo, shaping=NormalizedSum())
    assert choose(configured(method=method)).expectation == Counts()
