"""Corrections for a sampler apart from the trainer, recomputed token by token in plain Python.

IPO, DPPO's masks, KPop and IcePop at θ are the published formulas written out here: of KPop and IcePop no
case computed by a library is recorded.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import presets
from grpo_jax.parts import (
    advantages,
    centring,
    corrections,
    gains,
    penalties,
    ratios,
    reductions,
    rejection,
    sampler,
    shaping,
    soft_gains,
)
from grpo_jax.surrogate import Method, objective
from grpo_jax.surrogate import advantages as advantages_of
from grpo_jax.types import Evaluation, Rollout

pytestmark = pytest.mark.usefixtures("x64")

SHAPE = (2, 3, 4)
RNG = np.random.default_rng(4)
LOGP = -RNG.exponential(0.8, SHAPE) - 0.02
MASK = np.array(
    [[[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 0]], [[1, 0, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1]]], float
)
OLD = np.minimum(LOGP + 0.4 * RNG.normal(size=SHAPE), -0.01)
DRAWN = np.minimum(OLD + 0.5 * RNG.normal(size=SHAPE), -0.01)
ADVANTAGE = np.array([[[1.0], [-0.4], [0.3]], [[-1.0], [0.0], [2.0]]])
REWARDS = np.array([[1.0, 0.2, 0.2], [0.0, 2.0, 0.7]])
WHERE = list(zip(*np.nonzero(MASK), strict=True))


def rollout(**changes) -> Rollout:
    made = Rollout(
        prompts=jnp.arange(2),
        tokens=jnp.zeros(SHAPE, int),
        mask=jnp.asarray(MASK),
        rewards=jnp.asarray(REWARDS)[:, :, None],
        multiplicity=jnp.ones(SHAPE[:2]),
        sampling_logp=jnp.asarray(DRAWN),
        old_logp=jnp.asarray(OLD),
        ref_logp=jnp.asarray(OLD - 0.1),
    )
    return made._replace(**changes)


def at(logp=LOGP) -> Evaluation:
    return Evaluation(rollout(), jnp.asarray(logp), jnp.asarray(logp - DRAWN), jnp.asarray(ADVANTAGE))


def binary_kl(p: float, q: float) -> float:
    p, q = (min(max(x, 1e-6), 1 - 1e-6) for x in (p, q))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


KEPT = {
    "IPO": (
        sampler.TrustRegion(low=-0.1, high=0.1),
        lambda pi, q, a: abs(pi - q) <= 0.1,
    ),
    "DPPO, total variation": (
        sampler.TrustRegion(low=-0.05, high=0.1, one_sided=True),
        lambda pi, q, a: pi - q <= 0.1 if a > 0 else pi - q >= -0.05,
    ),
    "DPPO, binary KL": (
        sampler.TrustRegion(statistic=sampler.BinaryKL(signed=True), low=-0.02, high=0.03, one_sided=True),
        lambda pi, q, a: (
            (binary_kl(q, pi) <= 0.03 or pi <= q) if a > 0 else (binary_kl(q, pi) <= 0.02 or pi >= q)
        ),
    ),
    "KPop": (
        sampler.TrustRegion(statistic=sampler.BothBinaryKL(), high=0.03),
        lambda pi, q, a: binary_kl(pi, q) <= 0.03 and binary_kl(q, pi) <= 0.03,
    ),
    "IcePop": (
        sampler.TrustRegion(statistic=sampler.MismatchRatio(), low=0.8, high=1.3),
        lambda pi, q, a: 0.8 <= pi / q <= 1.3,
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_trust_region_keeps_what_its_formula_keeps(name):
    """And it moves with θ: at the old policy it keeps other tokens."""
    region, rule = KEPT[name]
    for logp in (LOGP, OLD):
        found = np.asarray(region(at(logp)))
        expected = [rule(math.exp(logp[w]), math.exp(DRAWN[w]), ADVANTAGE[w[0], w[1], 0]) for w in WHERE]
        assert [bool(found[w]) for w in WHERE] == expected
        assert 0 < sum(expected) < len(WHERE)
        assert set(np.unique(found)) == {0.0, 1.0}
    assert not np.array_equal(region(at(LOGP)), region(at(OLD)))


@pytest.mark.parametrize(
    ("divergence", "formula"),
    [
        (penalties.K1(), lambda d: d),
        (penalties.K2(), lambda d: d * d / 2),
        (penalties.K3(), lambda d: math.exp(-d) - 1 + d),
    ],
)
@pytest.mark.parametrize("how", sampler.AGGREGATES)
def test_a_statistic_over_a_sequence(divergence, formula, how):
    statistic = sampler.MismatchDivergence(divergence=divergence)
    single = np.asarray(statistic(rollout()))
    found = np.asarray(sampler.OverSequence(inner=statistic, how=how)(rollout()))
    fold = {"mean": np.mean, "sum": np.sum, "max": np.max, "min": np.min}[how]
    for p, i in np.ndindex(SHAPE[:2]):
        places = np.nonzero(MASK[p, i])[0]
        values = [formula(OLD[p, i, t] - DRAWN[p, i, t]) for t in places]
        # k3 is a difference of numbers near 1, rounded at 1e-16.
        np.testing.assert_allclose(single[p, i, places], values, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found[p, i], fold(values), rtol=1e-12, atol=1e-15)


def test_an_unknown_aggregate_is_named():
    with pytest.raises(ValueError, match="did you mean mean"):
        sampler.OverSequence(how="meen")


def kept_by_dropping(values: list[float], threshold: float) -> list[int]:
    """M2PO: drop the largest one by one until the mean of the rest is below the threshold; never all."""
    order = sorted(range(len(values)), key=lambda k: values[k])
    while len(order) > 1 and np.mean([values[k] for k in order]) >= threshold:
        order.pop()
    return order


@pytest.mark.parametrize("threshold", [1e-6, 0.03, 0.07, 0.1, 10.0])
def test_m2po_drops_the_largest_until_the_mean_is_small(threshold):
    moments = [(OLD[w] - DRAWN[w]) ** 2 for w in WHERE]
    kept = kept_by_dropping(moments, threshold)
    found = np.asarray(rejection.SecondMoment(threshold=threshold)(rollout()))
    assert [found[w] for w in WHERE] == [float(k in kept) for k in range(len(WHERE))]
    assert found[MASK == 0].sum() == 0
    assert (len(kept) == 1) == (threshold == 1e-6)
    assert (len(kept) == len(WHERE)) == (threshold == 10.0)


def test_m2po_counts_an_entry_as_its_copies():
    """Entries that stand for 3, 1 and 2 samples keep as many tokens of a value as the samples would."""
    counts, parted = np.array([[3, 1, 2], [2, 1, 4]]), 0
    for threshold in np.linspace(0.01, 0.4, 40):
        spelled = [(OLD[w] - DRAWN[w]) ** 2 for w in WHERE for _ in range(counts[w[:2]])]
        owners = [k for k, w in enumerate(WHERE) for _ in range(counts[w[:2]])]
        kept = kept_by_dropping(spelled, threshold)
        share = [sum(owners[j] == k for j in kept) / counts[w[:2]] for k, w in enumerate(WHERE)]
        made = rollout(multiplicity=jnp.asarray(counts, float))
        found = np.asarray(rejection.SecondMoment(threshold=threshold)(made))
        np.testing.assert_allclose([found[w] for w in WHERE], share, rtol=1e-12)
        parted += any(0 < x < 1 for x in share)
    assert parted > 5


INSIDE = sampler.MismatchRatio()
KEEP = rejection.Within(statistic=INSIDE, low=0.7, high=1.4)


def kept_tokens() -> np.ndarray:
    r = np.exp(OLD - DRAWN)
    return (MASK > 0) & (r >= 0.7) & (r <= 1.4)


def test_rejected_tokens_leave_denominators_and_sequence_ratios():
    kept = kept_tokens()
    assert 0 < kept.sum() < MASK.sum()
    clean = rollout(old_logp=jnp.where(MASK > 0, OLD, 0), sampling_logp=jnp.where(MASK > 0, DRAWN, 0))
    weights = np.asarray(rejection.ReductionOfKept(keep=KEEP)(clean))
    np.testing.assert_allclose(weights, kept / kept.sum(), rtol=1e-12)
    by_sequence = rejection.ReductionOfKept(keep=KEEP, inner=reductions.PerSequence())
    length = kept.sum(2, keepdims=True)
    np.testing.assert_allclose(by_sequence(clean), kept / np.maximum(length, 1) / 6, rtol=1e-12)
    found = np.asarray(rejection.RatioOfKept(keep=KEEP)(clean, jnp.where(MASK > 0, LOGP, 0)))
    gap = np.where(kept, LOGP - OLD, 0).sum(2, keepdims=True) / np.maximum(length, 1)
    np.testing.assert_allclose(found, np.broadcast_to(gap, SHAPE), rtol=1e-12)


def test_a_sequence_s_advantage_is_the_mean_over_kept_tokens():
    level = RNG.normal(size=SHAPE)
    seen = at()._replace(advantages=jnp.asarray(level))
    kept = kept_tokens()
    mean = np.where(kept, level, 0).sum(2, keepdims=True) / np.maximum(kept.sum(2, keepdims=True), 1)
    found = rejection.SequenceAdvantage(inner=gains.Linear(), keep=KEEP)(seen)
    np.testing.assert_allclose(found, np.exp(LOGP - DRAWN) * mean, rtol=1e-12)
    clip = rejection.SequenceAdvantage(inner=gains.Clip(low=0.1, high=0.1))
    ratio = jnp.exp(seen.log_ratio)
    np.testing.assert_array_equal(clip.clip_mask(ratio, seen.advantages).high, (ratio > 1.1) & (level > 0))


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": "0.8_1.1"}, lambda d: np.exp(d) >= 1 / 1.1),
        ({"rollout_rs": "token_k2", "rollout_rs_threshold": 0.05}, lambda d: d**2 / 2 <= 0.05),
        (
            {"rollout_rs": "token_k3,token_k1", "rollout_rs_threshold": "0.05,1.25"},
            lambda d: (np.exp(d) - 1 - d <= 0.05) & (abs(d) <= math.log(1.25)),
        ),
    ],
)
def test_verl_s_rejection_leaves_the_mask(options, rule):
    """k1 is −log(π_old/π_rollout): "0.8_1.1" keeps ratios from 1/1.1 to 1/0.8, the bounds turned over."""
    d = OLD - DRAWN
    kept = (MASK > 0) & rule(d) & (np.exp(d) <= 1 / 0.8 if "0.8_1.1" in options.values() else True)
    assert 0 < kept.sum() < MASK.sum()
    clean = rollout(old_logp=jnp.where(MASK > 0, OLD, 0), sampling_logp=jnp.where(MASK > 0, DRAWN, 0))
    np.testing.assert_allclose(presets.verl(**options).reduction(clean), kept / kept.sum(), rtol=1e-12)
    gspo = presets.verl(loss_mode="gspo", loss_agg_mode="seq-mean-token-mean", **options)
    length, some = kept.sum(2, keepdims=True), kept.any(2).sum()
    np.testing.assert_allclose(gspo.reduction(clean), kept / (length + 1e-8) / some, rtol=1e-12)
    gap = np.where(kept, LOGP - OLD, 0).sum(2, keepdims=True) / np.maximum(length, 1)
    found = np.asarray(gspo.ratio(clean, jnp.where(MASK > 0, LOGP, 0)))
    np.testing.assert_allclose(found[kept], np.broadcast_to(gap, SHAPE)[kept], rtol=1e-12)


def test_verl_s_rejection_of_sequences():
    options = {"rollout_rs": "seq_mean_k3,seq_sum_k1", "rollout_rs_threshold": "0.06,0.5_2.0"}
    d = OLD - DRAWN
    kept = np.zeros(SHAPE)
    for p, i in np.ndindex(SHAPE[:2]):
        gaps = d[p, i][MASK[p, i] > 0]
        inside = np.mean(np.exp(gaps) - 1 - gaps) <= 0.06 and abs(gaps.sum()) <= math.log(2)
        kept[p, i] = MASK[p, i] * inside
    assert 0 < kept.sum() < MASK.sum()
    clean = rollout(old_logp=jnp.where(MASK > 0, OLD, 0), sampling_logp=jnp.where(MASK > 0, DRAWN, 0))
    np.testing.assert_allclose(presets.verl(**options).reduction(clean), kept / kept.sum(), rtol=1e-12)


@pytest.mark.parametrize("by_sequence", [False, True])
def test_weights_of_mean_one(by_sequence):
    inner = sampler.SamplerMismatch(ratio=ratios.Trajectory() if by_sequence else ratios.Token(), high=1.5)
    d = np.where(MASK > 0, OLD - DRAWN, 0)
    weight = np.minimum(np.exp(d.sum(2, keepdims=True) if by_sequence else d), 1.5) + np.zeros(SHAPE)
    level = weight[:, :, 0].mean() if by_sequence else weight[MASK > 0].mean()
    found = np.asarray(sampler.MeanOne(inner=inner, by_sequence=by_sequence)(at()))
    np.testing.assert_allclose(found[MASK > 0], weight[MASK > 0] / level, rtol=1e-12)
    level_name = "sequence" if by_sequence else "token"
    made = presets.verl(rollout_is=level_name, rollout_is_batch_normalize=True).corrections[0]
    assert isinstance(made, sampler.MeanOne)
    assert made.by_sequence == by_sequence


def test_a_leashed_score_is_reinforce_with_two_k1_penalties():
    gain = soft_gains.LeashedScore(cap=1.2, scale=2.0, leash=0.3, pull=0.4)
    weight = np.minimum(np.exp(LOGP - DRAWN), 1.2) * (
        2 * ADVANTAGE - 0.3 * (LOGP - DRAWN) + 0.4 * (OLD - 0.1 - LOGP)
    )
    np.testing.assert_allclose(gain(at()), weight * LOGP, rtol=1e-12)

    def total(logp):
        return jnp.sum(gain(at()._replace(logp=logp, log_ratio=logp - DRAWN)))

    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(LOGP)), weight, rtol=1e-12)


def test_a_penalty_against_the_sampler():
    method = Method(penalty=sampler.SamplerPenalty(coef=0.2), reduction=reductions.TokenSum())
    bare = Method(reduction=reductions.TokenSum())
    made = rollout()
    values = [objective(m, made, advantages_of(m, made), jnp.asarray(LOGP)) for m in (method, bare)]
    expected = sum(0.5 * (LOGP[w] - DRAWN[w]) ** 2 for w in WHERE)
    np.testing.assert_allclose(values[1] - values[0], 0.2 * expected, rtol=1e-12)


def test_a_factor_and_an_affine_reward():
    np.testing.assert_allclose(corrections.Factor(value=0.3)(at()), np.full(SHAPE, 0.3))
    np.testing.assert_allclose(shaping.Rescaled(bias=-0.5, scale=10.0)(rollout()), (REWARDS - 0.5) * 10)


def test_max_rl_divides_by_the_group_s_mean():
    rewards = np.array([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    advantage = advantages.Normalized(scale=advantages.GroupLevel())
    found = advantage(rollout(), jnp.asarray(rewards))[:, :, 0]
    np.testing.assert_allclose(found, [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]], atol=1e-15)
    negative = advantage(rollout(), jnp.asarray(-rewards))
    assert not np.any(negative)


def test_a_length_penalty_is_a_share_of_the_group_s_mean():
    length = MASK.sum(2)
    expected = REWARDS - 0.5 * REWARDS.mean(1, keepdims=True) * length / length.max(1, keepdims=True)
    np.testing.assert_allclose(shaping.LengthPenalty(weight=0.5)(rollout()), expected, rtol=1e-12)


def normalised(values, weight, *, center, scale, loo):
    """By a loop over single values: AReaL's baseline, then the spread about those baselines."""
    cells = [c for c in np.ndindex(values.shape) if weight[c] > 0]

    def peers(c, level):
        return [d for d in cells if level == "batch" or d[0] == c[0]]

    def baseline(c):
        if center == "none":
            return 0.0
        others = [d for d in peers(c, center) if not (loo and d == c)]
        return float(np.mean([values[d] for d in others]))

    deviation = {c: values[c] - baseline(c) for c in cells}
    out = np.zeros(values.shape)
    for c in cells:
        near = peers(c, scale)
        spread = math.sqrt(sum(deviation[d] ** 2 for d in near) / (len(near) - 1)) + 1e-5
        out[c] = deviation[c] / (1 if scale == "none" else spread)
    return out


@pytest.mark.parametrize("center", centring.LEVELS)
@pytest.mark.parametrize("scale", centring.LEVELS)
@pytest.mark.parametrize("loo", [False, True])
def test_mean_and_spread_are_chosen_one_by_one(center, scale, loo):
    part = centring.CentredScaled(center=center, scale=scale, leave_one_out=loo)
    found = np.asarray(part(rollout(), jnp.asarray(REWARDS)))[:, :, 0]
    expected = normalised(REWARDS, np.ones(REWARDS.shape), center=center, scale=scale, loo=loo)
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    by_token = centring.CentredScaled(center=center, scale=scale, leave_one_out=loo, by_token=True)
    found = np.asarray(by_token(rollout(), jnp.asarray(REWARDS)))
    spread = np.broadcast_to(REWARDS[:, :, None], SHAPE)
    expected = normalised(spread, MASK, center=center, scale=scale, loo=loo)
    np.testing.assert_allclose(found[MASK > 0], expected[MASK > 0], rtol=1e-10, atol=1e-13)


def test_an_answer_that_fills_its_width_is_worth_nothing():
    found = centring.NoEosIsZero(inner=advantages.Normalized(scale=None))(rollout(), jnp.asarray(REWARDS))
    level = REWARDS - REWARDS.mean(1, keepdims=True)
    level[0, 1] = level[1, 1] = level[1, 2] = 0  # their last place is taken
    np.testing.assert_allclose(found[:, :, 0], level, atol=1e-15)


def test_a_level_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="did you mean group"):
        centring.CentredScaled(center="groups")


def test_the_sampler_as_denominator_corrects_only_where_it_is_said_to():
    ratio = ratios.FromSampler(inner=ratios.Token())
    np.testing.assert_allclose(ratio(rollout(), jnp.asarray(LOGP)), LOGP - DRAWN, rtol=1e-12)
    assert ratio.corrects_sampler
    assert not ratios.FromSampler(correction=False).corrects_sampler
