"""Parts that NeMo-RL and open-instruct need, recomputed by hand, where their recorded cases do not reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import presets
from grpo_jax.parts.advantages import Normalized
from grpo_jax.parts.others import Apart, Others
from grpo_jax.parts.penalties import K1, K2, K3, BoundedRatioWeight, ClampedInput, Likelihood, Penalty
from grpo_jax.parts.ratios import Token
from grpo_jax.parts.reductions import Divided, PerToken, Rewarded, TokenSum
from grpo_jax.parts.rejection import WhereKept, Within
from grpo_jax.parts.returns import LessDivergence
from grpo_jax.parts.sampler import AtTheta, OverSequence, RatioDistance, RatioFactor, SamplerMismatch
from grpo_jax.parts.shaping import Overlong
from grpo_jax.presets.compare import random_batch
from grpo_jax.types import Evaluation

pytestmark = pytest.mark.usefixtures("x64")


def rows(rewards, eps=1e-6):
    """Each row beside the others, with their sample deviation; undivided where they tie."""
    found = []
    for i, own in enumerate(rewards):
        others = np.delete(rewards, i)
        spread = others.std(ddof=1) if np.ptp(others) > 0 else 0.0
        found.append((own - others.mean()) / (spread + eps if spread else 1.0))
    return np.array(found)


GROUPS = ([0, 0, 1, 0], [0.1, 0.9, 0.4, 0.4], [1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0], [0.3, 0.3, 0.3, 7.0])


def rollout_of(group, multiplicity=None):
    rollout, _ = random_batch(prompts=1, group=len(group))
    weight = jnp.ones((1, len(group))) if multiplicity is None else jnp.asarray([multiplicity], float)
    return rollout._replace(multiplicity=weight)


@pytest.mark.parametrize("group", GROUPS)
def test_others_are_all_rows_but_one(group):
    rewards = np.array(group, float)
    found = Others()(rollout_of(group), jnp.asarray(rewards[None]))[0, :, 0]
    np.testing.assert_allclose(found, rows(rewards), rtol=1e-12)
    if sum(group) == 1 and set(group) == {0, 1}:
        assert found[group.index(1)] == 1.0, "a lone success is not divided"
    if len(set(group)) == 1:
        np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_far_from_others_that_are_close_in_single_precision(apart, sign):
    """Right or wrong alone, beside answers that a small length term keeps apart."""
    rewards = np.float32(sign) * np.array([1, 0, 1, 2, 3, 4, 5], np.float32) * np.float32([1] + [apart] * 6)
    with jax.enable_x64(False):
        found = Others(eps=0.0)(rollout_of(rewards), jnp.asarray(rewards[None]))[0, :, 0]
        counted = Others(eps=0.0)(rollout_of(rewards, [1, 2, 1, 1, 1, 1, 3]), jnp.asarray(rewards[None]))
    np.testing.assert_allclose(found, rows(rewards.astype(float), 0.0), rtol=2e-5)
    whole = rows(np.repeat(rewards.astype(float), [1, 2, 1, 1, 1, 1, 3]), 0.0)[[0, 1, 3, 4, 5, 6, 7]]
    np.testing.assert_allclose(counted[0, :, 0], whole, rtol=2e-5)


def test_a_histogram_counts_every_copy_as_another_row():
    """Rewards .2 (twice), 1 (once), .5 (thrice), and an absent entry that holds NaN."""
    found = Others()(rollout_of([0] * 4, [2, 1, 3, 0]), jnp.array([[0.2, 1.0, 0.5, jnp.nan]]))[0, :, 0]
    wanted = rows(np.array([0.2, 0.2, 1.0, 0.5, 0.5, 0.5]))[[0, 2, 3]]
    np.testing.assert_allclose(found, [*wanted, 0.0], rtol=1e-12)
    tied = Others()(rollout_of([0] * 2, [5, 1]), jnp.array([[0.2, 1.0]]))[0, :, 0]
    np.testing.assert_allclose(tied, rows(np.array([0.2] * 5 + [1.0]))[[0, -1]], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_are_exact_and_sizes_do_not_overflow(dtype):
    for reward in (0.1, 1e30, 1e-30):
        rewards = jnp.full((1, 5), reward, dtype)
        np.testing.assert_array_equal(Others(eps=0.0)(rollout_of([0] * 5), rewards), 0)
        lone = rewards.at[0, 2].set(3 * reward)
        found = Others(eps=0.0)(rollout_of([0] * 5), lone)[0, 2, 0]
        np.testing.assert_allclose(found, 2 * np.asarray(reward, dtype), rtol=1e-6)


def test_rewards_apart_are_summed_with_their_weights():
    first, second = np.array(GROUPS[0], float), np.array(GROUPS[1], float)
    rollout = rollout_of(first)._replace(rewards=jnp.asarray(np.stack([first, second], -1)[None]))
    np.testing.assert_allclose(Apart()(rollout)[0], rows(first) + rows(second), rtol=1e-12)
    found = Apart(weights=(0.5, -2.0))(rollout)[0]
    np.testing.assert_allclose(found, 0.5 * rows(first) - 2 * rows(second), rtol=1e-12)
    with pytest.raises(ValueError, match="2 rewards and 1 weights"):
        Apart(weights=(0.5,))(rollout)


def evaluation(gap, *, ratio=0.0, advantage=1.0):
    """One token whose log π_θ/π_ref is ``gap`` and log π_θ/π_old ``ratio``."""
    rollout, _ = random_batch(prompts=1, group=1, tokens=1)
    at = jnp.full((1, 1, 1), -60.0)
    rollout = rollout._replace(
        ref_logp=at - gap, old_logp=at - ratio, sampling_logp=at, mask=jnp.ones((1, 1, 1))
    )
    return rollout, at, jnp.full((1, 1, 1), advantage)


@pytest.mark.parametrize(("gap", "value", "slope"), [(2.0, 2.0, 3.0), (-3.0, -3.0, -2.0), (15.0, 10.0, 0.0)])
def test_the_product_of_weight_and_divergence_is_bounded(gap, value, slope):
    """clip(g x, ±10) with g = 1 and g' = 1: x, and slope 1 + x inside."""
    rollout, at, advantage = evaluation(gap)
    part = Penalty(divergence=ClampedInput(inner=K1(), limit=20.0), weight=BoundedRatioWeight(), coef=1.0)

    def total(logp):
        return jnp.sum(part(Evaluation(rollout, logp, logp, advantage)))

    found, moved = jax.value_and_grad(total)(at)
    np.testing.assert_allclose((found, moved.item()), (value, slope), rtol=1e-12)


def test_beyond_the_reach_the_weight_is_a_constant():
    """π_θ/π_old = e^−3 and a log-ratio of 30 held at 20: neither factor moves, though 20 e^−3 is below 10."""
    rollout, at, advantage = evaluation(30.0, ratio=-3.0)
    part = BoundedRatioWeight(ratio=Token())

    def total(logp):
        held = ClampedInput(inner=K1(), limit=20.0)(logp, rollout.ref_logp)
        return jnp.sum(part(Evaluation(rollout, logp, logp, advantage), held))

    value, slope = jax.value_and_grad(total)(at)
    np.testing.assert_allclose(value, 20 * np.exp(-3), rtol=1e-12)
    assert slope.item() == 0
    free = BoundedRatioWeight(ratio=Token(), reach=np.inf)
    other = jax.grad(
        lambda x: jnp.sum(
            free(Evaluation(rollout, x, x, advantage), ClampedInput(inner=K1())(x, rollout.ref_logp))
        )
    )
    np.testing.assert_allclose(other(at).item(), 20 * np.exp(-3), rtol=1e-12)


@pytest.mark.parametrize("kind", [K1(), K2(), K3()])
def test_a_clamped_input_is_the_divergence_inside_and_constant_outside(kind):
    part = ClampedInput(inner=kind, limit=1.5)
    inside, outside, edge = (jnp.asarray(x) for x in (0.7, 2.0, 1.5))
    np.testing.assert_allclose(part(inside - 4, jnp.asarray(-4.0)), kind(inside - 4, jnp.asarray(-4.0)))
    np.testing.assert_allclose(part(outside, jnp.zeros(())), kind(edge, jnp.zeros(())))
    assert jax.grad(part)(outside, jnp.zeros(())) == 0


def test_advantages_less_a_divergence_token_by_token():
    rollout, _ = random_batch(prompts=2, group=3, tokens=4)
    inner = Normalized(scale=None)
    rewards = rollout.rewards[:, :, 0]
    found = LessDivergence(inner=inner, coef=0.3, divergence=K2())(rollout, rewards)
    gap = 0.5 * (np.asarray(rollout.old_logp) - np.asarray(rollout.ref_logp)) ** 2
    r = np.asarray(rewards)
    wanted = np.where(rollout.mask > 0, (r - r.mean(1, keepdims=True))[:, :, None] - 0.3 * gap, 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)
    without = rollout._replace(ref_logp=jnp.full(gap.shape, -jnp.inf))
    assert np.isfinite(LessDivergence(inner=inner)(without, rewards)).all()


def test_likelihood_of_answers_that_earn_something():
    rollout, logp = random_batch(prompts=2, group=3, tokens=4)
    right = np.asarray(rollout.rewards)[:, :, 0] > 0
    assert 0 < right.sum() < right.size
    weight = np.asarray(rollout.mask) * right[:, :, None]
    part = Likelihood(coef=0.1)
    at = Evaluation(rollout, logp, logp, jnp.ones((2, 3, 1)))
    found = jnp.sum(part.reduce(rollout) * part(at))
    np.testing.assert_allclose(found, -0.1 * (weight * np.asarray(logp)).sum() / weight.sum(), rtol=1e-12)
    none = rollout._replace(rewards=jnp.zeros_like(rollout.rewards))
    np.testing.assert_array_equal(Rewarded(inner=PerToken())(none), 0)


def test_a_sum_over_a_constant_and_a_penalty_that_goes_on():
    rollout, _ = random_batch(prompts=2, group=3, tokens=4)
    np.testing.assert_allclose(Divided(inner=TokenSum(), by=80.0)(rollout), np.asarray(rollout.mask) / 80)
    length = np.asarray(rollout.mask).sum(2)
    assert length.max() == 4
    open_ended = Overlong(limit=3.0, buffer=2.0, factor=0.5, capped=False)
    capped = Overlong(limit=3.0, buffer=2.0, factor=0.5)
    plain = np.asarray(rollout.rewards)[:, :, 0]
    excess = np.maximum((length - 1) / 2, 0)
    np.testing.assert_allclose(open_ended(rollout), plain - 0.5 * excess)
    np.testing.assert_allclose(capped(rollout), plain - 0.5 * np.minimum(excess, 1))


def test_weights_where_a_rejection_keeps():
    """Two answers of three tokens, ρ by token; the first is 1.2 away on average, the second .1."""
    rollout, _ = random_batch(prompts=1, group=2, tokens=3)
    rho = np.array([[3.0, 0.4, 2.0], [1.1, 0.9, 1.1]])
    rollout = rollout._replace(
        mask=jnp.ones((1, 2, 3)),
        old_logp=jnp.log(rho)[None] - 5,
        sampling_logp=jnp.full((1, 2, 3), -5.0),
    )
    keep = Within(statistic=OverSequence(inner=RatioDistance(), how="mean"), low=0.0, high=1.0)
    inner = SamplerMismatch(high=2.5)
    at = Evaluation(rollout, rollout.old_logp, jnp.zeros((1, 2, 3)), jnp.full((1, 2, 1), -1.0))
    assert np.abs(rho - 1).mean(1) == pytest.approx([1.2, 0.1])
    whole, one_sided = (WhereKept(inner=inner, keep=keep, one_sided=side)(at)[0] for side in (False, True))
    np.testing.assert_allclose(whole, [[0, 0, 0], rho[1]])
    # A < 0 takes a token further from the sampler where ρ < 1 already.
    np.testing.assert_allclose(one_sided, [[2.5, 0, 2.0], rho[1]])
    np.testing.assert_allclose(RatioFactor()(rollout)[0], np.maximum(rho, 1 / rho))


def test_a_correction_at_theta_reads_no_old_policy():
    rollout, logp = random_batch(prompts=1, group=2, tokens=3)
    at = Evaluation(rollout._replace(old_logp=jnp.full((1, 2, 3), jnp.nan)), logp, logp, jnp.ones((1, 2, 1)))
    wanted = np.minimum(np.exp(np.asarray(logp - rollout.sampling_logp)), 1.3)
    np.testing.assert_allclose(AtTheta(inner=SamplerMismatch(high=1.3))(at), wanted, rtol=1e-12)


def test_a_filter_that_would_tie_on_other_rewards_is_not_modelled():
    with pytest.raises(presets.NotModelled, match="give filter_zero_std_samples=False"):
        presets.open_instruct(non_stop_penalty=True)
    kept = presets.open_instruct(non_stop_penalty=True, filter_zero_std_samples=False)
    assert kept.shaping == dataclasses.replace(kept.shaping, scale=0.0)
