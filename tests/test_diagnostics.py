"""Measurements of weighted, ragged rollouts against NumPy on the samples that they stand for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import diagnostics, methods
from grpo_jax.measures import DEFAULT, DIAGNOSTICS
from grpo_jax.part import aligned
from grpo_jax.parts.gains import Clip
from grpo_jax.policies import ActionPolicy, TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import Method
from grpo_jax.tasks import Questions, SequenceTable
from grpo_jax.types import Rollout

P, N, T = 3, 5, 4
RNG = np.random.default_rng(2)
MULTIPLICITY = np.array([[2, 1, 0, 3, 1], [1, 1, 1, 1, 0], [4, 0, 0, 0, 2]], float)
MASK = np.arange(T) < RNG.integers(1, T + 1, (P, N, 1))
REWARDS = np.array([[1, 0, 9, 1, 1], [2, 2, 2, 2, 9], [3, 9, 9, 9, 3]], float)
OLD, LOGP = RNG.normal(-1, 0.3, (P, N, T)), RNG.normal(-1, 0.3, (P, N, T))
ADVANTAGES = RNG.normal(size=(P, N, 1))


def rollout(**changes: Any) -> Rollout:
    """Absent entries and masked places hold NaN: nothing may read them."""
    live = MASK & (MULTIPLICITY > 0)[:, :, None]
    fields = {
        "prompts": np.arange(P),
        "tokens": np.zeros((P, N, T), int),
        "mask": MASK.astype(float),
        "rewards": np.where(MULTIPLICITY > 0, REWARDS, np.nan)[:, :, None],
        "multiplicity": MULTIPLICITY,
        "old_logp": np.where(live, OLD, np.nan),
        "sampling_logp": np.where(live, OLD, np.nan),
        "ref_logp": np.where(live, OLD, np.nan),
    }
    return Rollout(**{name: jnp.asarray(value) for name, value in (fields | changes).items()})


def samples(values):
    """Per-entry values [P, N, ...] listed once for each sample that the entry stands for."""
    return [values[p, n] for p in range(P) for n in range(N) for _ in range(int(MULTIPLICITY[p, n]))]


def token_samples(values):
    lists = zip(samples(values), samples(MASK), strict=True)
    return np.array([x for row, live in lists for x in np.broadcast_to(row, T)[live]])


@pytest.mark.usefixtures("x64")
def test_batch_statistics_are_those_of_the_samples():
    batch = rollout()
    np.testing.assert_allclose(diagnostics.batch_reward(batch), np.mean(samples(REWARDS)), rtol=1e-14)
    np.testing.assert_allclose(diagnostics.batch_length(batch), np.mean(samples(MASK.sum(2))), rtol=1e-14)
    assert float(diagnostics.tied_share(batch)) == 2 / 3


@pytest.mark.usefixtures("x64")
def test_ratio_statistics_are_those_of_the_samples():
    found = jax.jit(diagnostics.ratio_statistics)(methods.grpo, rollout(), jnp.asarray(LOGP))
    logs = token_samples(LOGP - OLD)
    np.testing.assert_allclose(found.low, np.exp(logs.min()), rtol=1e-13)
    np.testing.assert_allclose(found.high, np.exp(logs.max()), rtol=1e-13)
    expected = np.exp(np.quantile(logs, diagnostics.QUANTILES))
    np.testing.assert_allclose(found.quantiles, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_clip_fractions_are_those_of_the_samples():
    method = Method(gain=Clip(low=0.1, high=0.3))
    high, low = diagnostics.clip_fractions(method, rollout(), jnp.asarray(ADVANTAGES), jnp.asarray(LOGP))
    ratio, advantage = np.exp(token_samples(LOGP - OLD)), token_samples(ADVANTAGES)
    np.testing.assert_allclose(high, ((ratio > 1.3) & (advantage > 0)).mean(), rtol=1e-14)
    np.testing.assert_allclose(low, ((ratio < 0.9) & (advantage < 0)).mean(), rtol=1e-14)
    assert high > 0
    assert low > 0
    unclipped = diagnostics.clip_fractions(
        methods.reinforce, rollout(), jnp.asarray(ADVANTAGES), jnp.asarray(LOGP)
    )
    assert [float(x) for x in unclipped] == [0, 0]


def test_the_share_of_tied_groups_has_its_closed_form():
    """p^G + (1 − p)^G for binary rewards, within 4.5 standard errors of 20000 groups."""
    p, size, groups = 0.8, 4, 20_000
    rewards = (RNG.uniform(size=(groups, size, 1)) < p).astype(np.float32)
    batch = rollout(rewards=rewards, multiplicity=np.ones((groups, size), np.float32))
    expected = p**size + (1 - p) ** size
    error = np.sqrt(expected * (1 - expected) / groups)
    assert abs(float(diagnostics.tied_share(batch)) - expected) < 4.5 * error


SPACE = Sequences(vocab=3, horizon=2, eos=2)
BARRED = np.array([[0.0, -np.inf, 1.0], [0.3, 0.2, -0.5]])


@pytest.mark.usefixtures("x64")
def test_exact_measures_are_sums_over_outputs():
    rng = np.random.default_rng(0)
    policy, task = (
        TreePolicy.uniform(SPACE, contexts=2),
        SequenceTable(space=SPACE, table=rng.normal(size=(2, 7))),
    )
    params, other = (jnp.asarray(rng.normal(size=(2, 3, 3))) for _ in range(2))
    prompts = diagnostics.all_prompts(policy)

    @jax.jit
    def measured(params, other, task):
        return (
            diagnostics.log_support(policy, params, prompts),
            diagnostics.log_support(policy, other, prompts),
            diagnostics.expected_reward(policy, task, params, prompts),
            diagnostics.entropy(policy, params, prompts),
            diagnostics.kl(policy, params, other, prompts),
        )

    logp, log_other, reward, entropy, kl = (np.asarray(x) for x in measured(params, other, task))
    law = np.exp(logp)
    np.testing.assert_allclose(law.sum(1), 1, rtol=1e-14)
    np.testing.assert_allclose(reward, (law * task.table).sum(1).mean(), rtol=1e-13)
    np.testing.assert_allclose(entropy, -(law * logp).sum(1).mean(), rtol=1e-13)
    np.testing.assert_allclose(kl, (law * (logp - log_other)).sum(1).mean(), rtol=1e-13)
    many = measured(jnp.stack([other, params], -1), jnp.stack([params, other], -1), aligned(task))
    for chunk, one in zip(many, (logp, log_other, reward, entropy, kl), strict=True):
        np.testing.assert_allclose(chunk[..., 1], one, rtol=1e-12)


def test_zero_probability_counts_nothing_and_is_infinitely_far():
    policy, prompts = ActionPolicy(logits=BARRED), np.arange(2)
    params, even = jnp.asarray(BARRED, jnp.float32), jnp.zeros((2, 3), jnp.float32)
    pi = np.asarray(jax.nn.softmax(params, 1), np.float64)
    logs = np.log(pi, where=pi > 0, out=np.zeros_like(pi))
    np.testing.assert_allclose(
        diagnostics.entropy(policy, params, prompts), -(pi * logs).sum(1).mean(), rtol=1e-5
    )
    forward = (pi * (logs + np.log(3))).sum(1).mean()
    np.testing.assert_allclose(diagnostics.kl(policy, params, even, prompts), forward, rtol=1e-5)
    assert np.isposinf(diagnostics.kl(policy, even, params, prompts))
    task = Questions(table=np.ones((2, 3)))
    np.testing.assert_allclose(diagnostics.expected_reward(policy, task, params, prompts), 1, rtol=1e-6)


def test_norms_and_finiteness_keep_runs_apart():
    tree = {"a": RNG.normal(size=(2, 3, 4)), "b": RNG.normal(size=(5, 4))}
    tree["b"][1, 2], tree["a"][0, 0, 3] = np.nan, -np.inf
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    assert diagnostics.finite(arrays, runs=True).tolist() == [True, True, False, False]
    assert not diagnostics.finite(arrays, runs=False)
    flat = np.concatenate([tree["a"].reshape(6, 4), tree["b"]])
    norms = diagnostics.norm(arrays, runs=True)
    np.testing.assert_allclose(norms[:2], np.linalg.norm(flat[:, :2], axis=0), rtol=1e-6)
    whole = jax.tree.map(lambda x: x[..., :2], arrays)
    np.testing.assert_allclose(diagnostics.norm(whole, runs=False), np.linalg.norm(flat[:, :2]), rtol=1e-6)


def test_a_run_of_nan_measures_nan():
    """Not 0, which is what a policy that never moved would measure."""
    policy, prompts = ActionPolicy(logits=BARRED), np.arange(2)
    params = jnp.asarray(BARRED, jnp.float32)[..., None] * jnp.array([1.0, jnp.nan])
    start, task = jnp.asarray(BARRED, jnp.float32)[..., None], aligned(Questions(table=np.ones((2, 3))))
    measured = {
        "entropy": diagnostics.entropy(policy, params, prompts),
        "kl_ref": diagnostics.kl(policy, params, start, prompts),
        "kl_ref_reverse": diagnostics.kl(policy, start, params, prompts),
        "expected_reward": diagnostics.expected_reward(policy, task, params, prompts),
    }
    for name, found in measured.items():
        assert np.isfinite(found[0]), name
        assert np.isnan(found[1]), name


def test_probability_zero_is_finite_where_it_was_from_the_start():
    start = jnp.asarray(BARRED, jnp.float32)
    assert diagnostics.finite(start, runs=False, start=BARRED)
    assert not diagnostics.finite(start, runs=False)
    assert not diagnostics.finite(start.at[1, 1].set(-jnp.inf), runs=False, start=BARRED)
    assert not diagnostics.finite(start.at[0, 1].set(jnp.inf), runs=False, start=BARRED)
    assert not diagnostics.finite(start.at[0, 1].set(jnp.nan), runs=False, start=BARRED)
    many = jnp.stack([start, start.at[1, 0].set(-jnp.inf), start.at[0, 1].set(0.0)], -1)
    assert diagnostics.finite(many, runs=True, start=BARRED[..., None]).tolist() == [True, False, True]


def test_every_diagnostic_is_described_and_defaults_are_scalars():
    assert set(DEFAULT) <= set(DIAGNOSTICS)
    assert all(d.about for d in DIAGNOSTICS.values())
    assert all(not DIAGNOSTICS[name].dims for name in DEFAULT)
