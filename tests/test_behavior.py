"""Who samples: the behaviour policy by enumeration that does not pass through the code under test."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import train
from grpo_jax.decoding import Decoding
from grpo_jax.exact import expected_gradient
from grpo_jax.part import aligned, put
from grpo_jax.parts.ratios import Trajectory
from grpo_jax.parts.sampler import SamplerMask, SamplerMismatch, SequenceGeometricMean
from grpo_jax.sweeps.axes import resolve
from tests.behaviors import (
    GROUP,
    LOGITS,
    OUTPUTS,
    PI,
    REWARDS,
    SCORE,
    SEQUENCES,
    SPACE,
    TOKEN,
    kept_by,
    node,
    problem,
    scores,
    sequences,
)
from tests.filters import softmax, top_p

pytestmark = pytest.mark.usefixtures("x64")


def test_the_space_lists_sequences_in_this_test_s_order():
    np.testing.assert_array_equal(SPACE.support[0], SEQUENCES)


def gradient(config):
    return np.asarray(expected_gradient(config, jnp.asarray(LOGITS)))[0]


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_top_p_without_correction_is_the_covariance_under_q(level):
    """D1 (ii): f·Cov_q(r, Σ_t ∇log π_t), groups of three from q."""
    *_, q_rows = kept_by(level)
    q = sequences(q_rows)
    centred = (REWARDS[0] - q @ REWARDS[0]) * q
    want = (1 - 1 / GROUP) * np.tensordot(centred, scores(PI), 1)
    found = gradient(problem(behavior=gj.Behavior(decoding=Decoding(top_p=level))))
    np.testing.assert_allclose(found, want, atol=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_top_p_with_sequence_weights_is_a_sum_over_what_is_kept(level):
    """D1 (iii): f·Σ_{o kept} π(o)(r(o) − E_q r)∇log π(o)."""
    *_, q_rows = kept_by(level)
    q = sequences(q_rows)
    weight = np.where(q > 0, OUTPUTS, 0) * (REWARDS[0] - q @ REWARDS[0])
    want = (1 - 1 / GROUP) * np.tensordot(weight, scores(PI), 1)
    corrected = dataclasses.replace(SCORE, corrections=(SamplerMismatch(ratio=Trajectory(), high=np.inf),))
    found = gradient(problem(corrected, gj.Behavior(decoding=Decoding(top_p=level))))
    np.testing.assert_allclose(found, want, atol=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_the_mean_ratio_is_the_kept_mass(level):
    """D1 (i), in training: of whole outputs it is the mass of what can be drawn; of tokens the mean of S."""
    _, mass, q_rows = kept_by(level)
    q = sequences(q_rows)
    config = problem(behavior=gj.Behavior(decoding=Decoding(top_p=level)))
    names = ["mismatch_sequence", "mismatch", "kl_sampler", "kept_mass"]
    _, info = train.step(config, train.init(config), record=names)
    np.testing.assert_allclose(info["mismatch_sequence"], OUTPUTS[q > 0].sum(), rtol=1e-12)
    along = np.array([[mass[node(y[:t]), 0] for t in range(3)] for y in SEQUENCES])
    np.testing.assert_allclose(info["mismatch"], q @ along.mean(1), rtol=1e-12)
    np.testing.assert_allclose(info["kept_mass"], q @ along.mean(1), rtol=1e-12)
    np.testing.assert_allclose(info["kl_sampler"], -q @ np.log(along).sum(1), atol=1e-12)


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_temperature_uncorrected_is_the_covariance_under_the_hot_policy(temperature):
    """D2; and beyond T = 1 it is not τ∇J_τ alone."""
    hot = np.stack([softmax(row / temperature) for row in LOGITS[0]])
    q = sequences(hot)
    centred = (REWARDS[0] - q @ REWARDS[0]) * q
    want = (1 - 1 / GROUP) * np.tensordot(centred, scores(PI), 1)
    found = gradient(problem(behavior=gj.Behavior(decoding=Decoding(temperature=temperature))))
    np.testing.assert_allclose(found, want, atol=1e-12)
    # τ∇J_τ in θ is Σ q (r − J) (1{a} − q) along the sequence
    own = (1 - 1 / GROUP) * np.tensordot(centred, scores(hot), 1)
    assert abs(found - own).max() > 1e-3


def test_a_trainer_that_divides_by_the_temperature_trains_the_hot_policy():
    """policy.decoding: scores and samples are the hot policy's, and its gradient is (1/τ) of that in θ/τ."""
    hot = np.stack([softmax(row / 1.7) for row in LOGITS[0]])
    q = sequences(hot)
    centred = (REWARDS[0] - q @ REWARDS[0]) * q
    want = (1 - 1 / GROUP) * np.tensordot(centred, scores(hot), 1) / 1.7
    base = problem()
    policy = dataclasses.replace(base.policy, decoding=Decoding(temperature=1.7))
    np.testing.assert_allclose(gradient(dataclasses.replace(base, policy=policy)), want, atol=1e-12)


@pytest.mark.parametrize(
    "correction",
    [
        SamplerMismatch(low=0.8, high=1.1),
        SamplerMask(low=0.8, high=1.1),
        SequenceGeometricMean(inner=SamplerMask(low=0.8, high=1.1)),
    ],
)
def test_the_share_of_weights_that_a_correction_limits_is_recorded(correction):
    hot = np.stack([softmax(row / 1.7) for row in LOGITS[0]])
    q, ratio = sequences(hot), PI / hot
    out = np.array([[not 0.8 <= ratio[node(y[:t]), y[t]] <= 1.1 for t in range(3)] for y in SEQUENCES])
    share = q @ out.mean(1)
    assert 0.1 < share < 0.9
    method = dataclasses.replace(SCORE, corrections=(correction,))
    config = problem(method, gj.Behavior(decoding=Decoding(temperature=1.7)))
    _, info = train.step(config, train.init(config), record=["weights_limited"])
    np.testing.assert_allclose(info["weights_limited"], share, rtol=1e-12)
    plain = dataclasses.replace(config, method=SCORE)
    assert train.step(plain, train.init(plain), record=["weights_limited"])[1]["weights_limited"] == 0


def drawn(config, seeds=1000):
    state = train.init(config, np.arange(seeds))
    return config.expectation.collect(aligned(config), state).rollout


@pytest.mark.parametrize("records", ["processed", "tempered", "raw"])
def test_samples_come_from_q_and_report_what_they_should(records):
    hot = np.stack([softmax(row / 1.3) for row in LOGITS[0]])
    kept = np.stack([top_p(row, 0.8) for row in hot])
    q_rows = np.where(kept, hot / (hot * kept).sum(1, keepdims=True), 0)
    q = sequences(q_rows)
    decoding = Decoding(temperature=1.3, top_p=0.8)
    behavior = gj.Behavior(decoding=decoding, records=records)
    sampled = drawn(problem(behavior=behavior, expectation=gj.Sampled()))
    number = (np.asarray(sampled.tokens) * np.array([9, 3, 1])[None, None, :, None]).sum(2).ravel()
    share = np.bincount(number, minlength=27) / number.size
    assert (share[q == 0] == 0).all()
    assert (abs(share - q) < 5 * np.sqrt(q * (1 - q) / number.size) + 1e-12).all()
    rows = {"processed": q_rows, "tempered": hot, "raw": PI}[records]
    logs = np.log(np.where(rows > 0, rows, 1))
    along = np.array([[logs[node(y[:t]), y[t]] for t in range(3)] for y in SEQUENCES])
    found = np.asarray(sampled.sampling_logp).transpose(0, 1, 3, 2).reshape(-1, 3)
    np.testing.assert_allclose(found, along[number], atol=1e-12)
    counted = drawn(problem(behavior=behavior, expectation=gj.Counts()))
    whole = np.asarray(counted.multiplicity).sum((0, 2)) / number.size
    np.testing.assert_allclose(whole, share, atol=1e-12)


ENGINES = {
    "decoding": gj.Behavior(decoding=Decoding(temperature=1.4, top_p=0.9)),
    "noise": gj.Behavior(mismatch=gj.Noise(scale=0.3)),
    "fresh": gj.Behavior(mismatch=gj.Noise(scale=0.3, chance=0.5, fresh=True)),
    "bfloat16": gj.Behavior(mismatch=gj.Rounded()),
    "age": gj.Behavior(age=gj.Age(lag=2, depth=3)),
    "sampler's ratio": gj.Behavior(age=gj.Age(lag=1), proximal=gj.Proximal(weight=1.0)),
}


@pytest.mark.parametrize(
    "engine",
    ["decoding", "noise", "sampler's ratio"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("fresh", "bfloat16", "age")],
)
def test_counts_are_the_samples(engine):
    found = []
    for expectation in (gj.Sampled(), gj.Counts()):
        config = problem(
            TOKEN, ENGINES[engine], expectation=expectation, loop=gj.Loop(group_size=5, inner_steps=2)
        )
        state, _ = train.run(config, train.init(config, np.arange(3)), iterations=5, record=())
        found.append(np.asarray(state.params))
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)
    base = dataclasses.replace(config, behavior=None, method=dataclasses.replace(TOKEN, corrections=()))
    other, _ = train.run(base, train.init(base, np.arange(3)), iterations=5, record=())
    assert abs(np.asarray(other.params) - found[1]).max() > 1e-6


@pytest.mark.parametrize(
    "engine",
    ["decoding", "age"] + [pytest.param(n, marks=pytest.mark.slow) for n in ("bfloat16", "sampler's ratio")],
)
def test_the_mean_update_of_many_groups_is_the_exact_one(engine):
    """After two exact iterations, so that ages have something to act on. (Noise is each seed's own.)"""
    exact = problem(TOKEN, ENGINES[engine])
    state, _ = train.run(exact, train.init(exact), iterations=2, record=())
    after, _ = train.run(exact, state, iterations=1, record=())
    runs = 800
    one = problem(TOKEN, ENGINES[engine], expectation=gj.Counts())

    def wide(tree):
        return jax.tree.map(lambda x: jnp.broadcast_to(x[..., None], (*x.shape, runs)), tree)

    many = train.init(one, np.arange(runs))._replace(step=state.step)
    kept = ("params", "old_params", "ref_params", "queue")
    many = many._replace(**{name: wide(getattr(state, name)) for name in kept})
    moved, _ = train.run(one, many, iterations=1, record=())
    steps = np.asarray(moved.params - many.params)[0]
    error = steps.std(-1) / np.sqrt(runs)
    gap = steps.mean(-1) - np.asarray(after.params - state.params)[0]
    assert (abs(gap) < 5 * error + 1e-12).all()


def test_the_sampler_is_as_old_as_it_says():
    """Exact training by hand: q is the policy two iterations ago, of the first ones the start."""
    config = problem(SCORE, gj.Behavior(age=gj.Age(lag=2, depth=2)))
    state = train.init(config)
    history = [LOGITS[0]]
    for _ in range(4):
        state, _ = train.run(config, state, iterations=1, record=())
        old = history[max(len(history) - 3, 0)]
        q = sequences(np.stack([softmax(row) for row in old]))
        now = np.stack([softmax(row) for row in history[-1]])
        centred = (REWARDS[0] - q @ REWARDS[0]) * q
        step = 0.1 * (1 - 1 / GROUP) * np.tensordot(centred, scores(now), 1)
        history.append(history[-1] + step)
        np.testing.assert_allclose(np.asarray(state.params)[0], history[-1], atol=1e-12)


def test_two_short_runs_with_a_queue_are_one_long_one():
    config = problem(TOKEN, gj.Behavior(age=gj.Age(lag=2, depth=3)), expectation=gj.Counts())
    whole, _ = train.run(config, train.init(config, np.arange(3)), iterations=6, record=())
    state, _ = train.run(config, train.init(config, np.arange(3)), iterations=4, record=())
    state, _ = train.run(config, state, iterations=2, record=())
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_proximal_policy_is_between_trainer_and_sampler():
    engine = gj.Behavior(decoding=Decoding(temperature=1.5))
    rollouts = {}
    for weight in (None, 0.0, 0.4, 1.0):
        chosen = None if weight is None else gj.Proximal(weight=weight)
        config = problem(behavior=dataclasses.replace(engine, proximal=chosen))
        rollouts[weight] = config.expectation.collect(config, train.init(config)).rollout
    own, reported = rollouts[None].old_logp, rollouts[None].sampling_logp
    np.testing.assert_array_equal(rollouts[0.0].old_logp, own)
    np.testing.assert_allclose(rollouts[0.4].old_logp, 0.6 * own + 0.4 * reported, atol=1e-15)
    np.testing.assert_array_equal(rollouts[1.0].old_logp, reported)
    assert all((r.sampling_logp == reported).all() for r in rollouts.values())


@pytest.mark.parametrize("expectation", [gj.Sampled(), gj.Counts(), gj.Exact(cells=0)])
def test_a_behaviour_without_slots_changes_nothing_to_the_bit(expectation):
    found = []
    for behavior in (None, gj.Behavior(), gj.Behavior(decoding=Decoding(temperature=1.0))):
        config = problem(
            gj.methods.grpo, behavior, expectation=expectation, loop=gj.Loop(group_size=2, inner_steps=2)
        )
        state, _ = train.run(config, train.init(config, 7), iterations=4, record=())
        found.append(np.asarray(state.params))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2], atol=1e-15)


@pytest.mark.slow
def test_every_number_of_a_behaviour_is_swept():
    behavior = gj.Behavior(
        decoding=Decoding(top_p=0.9, top_k=3.0, min_p=0.1),
        mismatch=gj.Noise(),
        age=gj.Age(lag=1, depth=3),
        proximal=gj.Proximal(weight=0.5),
    )
    # Without a correction: a weight that is not truncated would make up for any proximal policy.
    config = problem(dataclasses.replace(TOKEN, corrections=()), behavior, expectation=None)
    axes = {
        "behavior.decoding.temperature": [0.7, 1.0],
        "top_p": [0.8, 1.0],
        "top_k": [2.0, 3.0],
        "min_p": [0.0, 0.3],
        "lag": [0.0, 3.0],
        "behavior.mismatch.scale": [0.0, 0.2],
        "proximal.weight": [0.0, 1.0],
    }
    short = {"seeds": 3, "iterations": 6, "record": ["expected_reward"], "progress": False}
    for name, values in axes.items():
        data = gj.sweep(config, {name: values}, **short)
        path = resolve(config, name, static=False)
        for place, value in enumerate(values):
            alone = gj.sweep(put(config, path, value), **short)
            np.testing.assert_allclose(data.expected_reward[place], alone.expected_reward, atol=1e-12)
        assert abs(np.diff(data.expected_reward.values, axis=0)).max() > 1e-6, name
