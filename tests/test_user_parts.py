"""Parts from outside: a wrong shape, axis or a forgotten multiplicity never trains in silence."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import methods, train
from grpo_jax.collectors import choose
from grpo_jax.measures import recording
from grpo_jax.user_parts import keeps_runs_apart, respects_multiplicity

SHORT = {"iterations": 4, "record_every": 4, "progress": False}
SPACE = gj.Sequences(vocab=3, horizon=2, eos=2)


@gj.part
class Flat:
    """Forgets the axis of tokens."""

    def __call__(self, rollout, rewards):
        return rewards - jnp.mean(rewards, 1, keepdims=True)


@gj.part
class Rank:
    """Ranks entries as if each were one sample."""

    def __call__(self, rollout, rewards):
        rank = jnp.argsort(jnp.argsort(rewards, axis=1), axis=1)
        return (rank / rewards.shape[1] - 0.5)[:, :, None]


@gj.part
class Wins:
    """Mean over the group of sign(r_i − r_j), ties 0."""

    def __call__(self, rollout, rewards):
        weight = rollout.multiplicity[:, None]
        wins = jnp.sum(weight * jnp.sign(rewards[:, :, None] - rewards[:, None]), 2)
        return (wins / jnp.sum(weight, 2))[:, :, None]


@gj.part
class LastAxis:
    """Takes the last axis for the group's: right for one run, the mean over runs for several."""

    def __call__(self, rollout, rewards):
        return (rewards - jnp.mean(rewards, -1, keepdims=True))[:, :, None]


@gj.part
class WrongRatio:
    """Sums over tokens and drops their axis."""

    def __call__(self, rollout, logp):
        return jnp.sum(logp - rollout.old_logp, 2)


def configured(**slots):
    return gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=[[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]]),
        method=dataclasses.replace(methods.dapo, **slots),
        loop=gj.Loop(group_size=6),
    )


@pytest.mark.parametrize(
    "slots", [{"advantage": Flat()}, {"ratio": WrongRatio()}], ids=["advantage", "ratio"]
)
def test_a_shape_that_would_only_broadcast_is_refused(slots):
    config = dataclasses.replace(configured(**slots), expectation=gj.Sampled())
    with pytest.raises(ValueError, match=rf"{next(iter(slots))} gives shape .*must be \[P, N, T\]"):
        gj.sweep(config, seeds=6, **SHORT)
    with pytest.raises(ValueError, match="gives shape"):
        train.run(config, train.init(config, 0), iterations=1)


@pytest.mark.parametrize(
    ("slots", "says"),
    [
        (
            {"gain": methods.grpo.advantage},
            r"method\.gain is Normalized.*\(evaluation\)",
        ),
        ({"penalty": 0.1}, r"method\.penalty is 0\.1; it must be None or a Penalty"),
        ({"corrections": methods.cppo.corrections[0]}, r"method\.corrections is Prune.*a tuple"),
    ],
    ids=["gain", "penalty", "corrections"],
)
def test_a_part_in_the_wrong_slot_is_refused_by_name(slots, says):
    with pytest.raises(TypeError, match=says):
        gj.sweep(configured(**slots), **SHORT)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_heeds_multiplicity_and_keeps_runs_apart(name):
    assert respects_multiplicity(methods.METHODS[name])
    assert keeps_runs_apart(methods.METHODS[name])


def test_a_mean_over_the_last_axis_is_refused():
    with pytest.raises(ValueError, match=r"LastAxis mixes runs: .* axis 1 for a group"):
        gj.sweep(configured(advantage=LastAxis()), seeds=4, **SHORT)


def test_a_part_that_forgets_multiplicity_is_sampled_and_refused_elsewhere():
    assert isinstance(choose(configured(advantage=Wins())).expectation, gj.Counts)
    forgetful = configured(advantage=Rank())
    assert isinstance(choose(forgetful).expectation, gj.Sampled)
    with pytest.raises(ValueError, match=r"Rank gives Counts\(\) another objective"):
        gj.sweep(dataclasses.replace(forgetful, expectation=gj.Counts()), **SHORT)


def test_counts_and_samples_of_an_own_part_train_alike():
    config = configured(advantage=Wins())
    counted, sampled = (
        gj.sweep(dataclasses.replace(config, expectation=e), seeds=3, **SHORT)
        for e in (gj.Counts(), gj.Sampled())
    )
    np.testing.assert_allclose(counted.expected_reward, sampled.expected_reward, rtol=1e-5)


def tree(function):
    return gj.Config(policy=gj.TreePolicy.uniform(SPACE), task=gj.SequenceReward(function=function))


def test_what_all_runs_share_is_recorded_for_each():
    with pytest.warns(UserWarning, match="identical along 'seed'"):
        data = gj.sweep(tree(lambda prompts, tokens, mask: 3.0), seeds=5, record=["reward", "tied"], **SHORT)
    np.testing.assert_array_equal(data.reward, np.full((5, 1), 3.0))
    np.testing.assert_array_equal(data.tied, np.ones((5, 1)))


def test_a_reward_that_sums_over_runs_is_refused():
    wrong = tree(lambda prompts, tokens, mask: jnp.sum((tokens == 1) * mask, -1))
    with pytest.raises(ValueError, match=r"reward function gives shape .*T is axis 2, not the last"):
        gj.sweep(wrong, seeds=2, **SHORT)


def test_broken_runs_are_counted_aloud(capsys):
    broken = tree(lambda prompts, tokens, mask: jnp.sum(mask, 2) * jnp.nan)
    gj.sweep(broken, seeds=3, iterations=2, record=["reward"])
    assert "3 of 3 runs turned non-finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("axes", "options", "error", "says"),
    [
        ({"seed": [1, 2]}, {}, ValueError, "dimension of every sweep"),
        ({"kl_coef": [0.1]}, {}, ValueError, r"'kl_coef' means method\.penalty\.coef.*does not have"),
        (None, {"seeds": [0.2, 1.7]}, TypeError, r"seeds holds 0\.2; .*whole numbers"),
        (None, {"variants": {"method": ["grpo"]}}, TypeError, r"methods\.get"),
    ],
    ids=["reserved", "absent alias", "fractional seeds", "names for methods"],
)
def test_a_sweep_says_what_is_wrong(axes, options, error, says):
    with pytest.raises(error, match=says):
        gj.sweep(configured(), axes, **options, **SHORT)


def test_one_string_is_no_list_of_diagnostics():
    with pytest.raises(TypeError, match="list of names"):
        recording(configured(), "entropy", None, iterations=1)


def test_a_method_where_the_configuration_belongs_is_refused():
    with pytest.raises(TypeError, match="it must be a Config"):
        gj.sweep(methods.grpo, **SHORT)


def test_none_is_no_number():
    with pytest.raises(TypeError, match=r"AdamW\.learning_rate is None"):
        gj.AdamW(learning_rate=None)
