"""Single parts against their formulas, written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.parts import (
    advantages,
    corrections,
    gains,
    penalties,
    ratios,
    reductions,
    returns,
    sampler,
    shaping,
    soft_gains,
)
from grpo_jax.presets.compare import random_batch
from grpo_jax.surrogate import Method, objective
from grpo_jax.types import Evaluation, Number, Rollout

pytestmark = pytest.mark.usefixtures("x64")


@gj.part
class Power:
    """A correction that moves with θ: π_θ^power."""

    power: Number = 1.0

    def __call__(self, at: Evaluation) -> jax.Array:
        return jnp.exp(self.power * at.logp)


def batch() -> tuple[Rollout, jax.Array]:
    return random_batch(seed=1, prompts=2, group=4, tokens=5)


def derivative(gain, log_ratio: jax.Array, advantage: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """A gain's value and derivative with respect to the log-ratio, elementwise."""
    rollout, _ = batch()

    def value(d: jax.Array) -> jax.Array:
        return gain(Evaluation(rollout, logp=d, log_ratio=d, advantages=advantage))

    slope = jax.grad(lambda d: jnp.sum(value(d)))(log_ratio)
    return np.asarray(value(log_ratio)), np.asarray(slope)


@pytest.mark.parametrize(
    ("gain", "formula"),
    [
        (gains.Linear(), lambda s, a: s * a),
        (gains.Clip(low=0.2, high=0.3), lambda s, a: np.minimum(s * a, np.clip(s, 0.8, 1.3) * a)),
        (
            gains.DualClip(low=0.2, high=0.3, cap=1.1),
            lambda s, a: np.where(
                a < 0,
                np.maximum(np.minimum(s * a, np.clip(s, 0.8, 1.3) * a), 1.1 * a),
                np.minimum(s * a, np.clip(s, 0.8, 1.3) * a),
            ),
        ),
        *(
            (
                gains.TwoSided(low=0.2, high=0.3, delta=delta),
                lambda s, a, delta=delta: np.minimum(np.minimum(s, delta) * a, np.clip(s, 0.8, 1.3) * a),
            )
            for delta in (0.71, 1.1, 1.6)
        ),
        (gains.UpperClip(high=0.3), lambda s, a: np.minimum(s * a, np.minimum(s, 1.3) * a)),
        (gains.Truncated(high=0.3), lambda s, a: np.minimum(s, 1.3) * a),
        (
            soft_gains.Sapo(),
            lambda s, a: a * 4 / (1 + np.exp(-np.where(a > 0, 1, 1.05) * (s - 1))) / np.where(a > 0, 1, 1.05),
        ),
    ],
)
def test_gain_is_its_formula(gain, formula) -> None:
    """Values by the formula, slopes by central differences of the formula, held where the slope is zero."""
    d = np.log(np.linspace(0.45, 1.95, 37))[:, None, None]
    a = np.asarray([-1.5, -0.3, 0.0, 0.7, 2.0])[None, :, None]
    d, a = (x + np.zeros((37, 5, 1)) for x in (d, a))
    value, slope = derivative(gain, jnp.asarray(d), jnp.asarray(a))
    np.testing.assert_allclose(value, formula(np.exp(d), a), rtol=1e-13)
    step = 1e-6
    expected = (formula(np.exp(d + step), a) - formula(np.exp(d - step), a)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-8)
    if isinstance(gain, gains.Clips):
        out = gain.clip_mask(jnp.exp(d), jnp.asarray(a))
        np.testing.assert_array_equal(np.asarray(out.high | out.low), (expected == 0) & (a != 0))


@pytest.mark.parametrize(
    "gain", [gains.Clip(), gains.DualClip(cap=1.2), gains.UpperClip(), gains.Truncated()]
)
def test_token_exactly_on_the_bound_is_live(gain) -> None:
    for ratio in (0.8, 1.2):
        one = jnp.full((1, 1, 1), jnp.log(ratio))
        bound = jnp.exp(one)
        gain = type(gain)(
            **{
                n: (bound - 1 if n == "high" else 1 - bound).item()
                for n in ("low", "high")
                if hasattr(gain, n) and (n == "high") == (ratio > 1)
            }
        )
        for sign in (1.0, -1.0):
            _, slope = derivative(gain, one, jnp.full((1, 1, 1), sign))
            np.testing.assert_allclose(slope, sign * ratio, rtol=1e-12)


@pytest.mark.parametrize(
    ("divergence", "value", "slope"),
    [
        (penalties.K1(), lambda x: -x, lambda x: np.ones_like(x)),
        (penalties.K2(), lambda x: x**2 / 2, lambda x: -x),
        (penalties.K3(), lambda x: np.exp(x) - x - 1, lambda x: 1 - np.exp(x)),
        (penalties.Distance(), np.abs, lambda x: -np.sign(x)),
        (
            penalties.ClampedDivergence(inner=penalties.K3(), limit=0.3),
            lambda x: np.minimum(np.exp(x) - x - 1, 0.3),
            lambda x: np.where(np.exp(x) - x - 1 > 0.3, 0, 1 - np.exp(x)),
        ),
        (penalties.StraightThrough(), lambda x: np.exp(x) - x - 1, lambda x: -x),
    ],
)
def test_divergence_and_its_slope(divergence, value, slope) -> None:
    rollout, logp = batch()
    x = np.asarray(rollout.ref_logp - logp)
    got, grad = (
        f(logp)
        for f in (
            lambda at: divergence(at, rollout.ref_logp),
            jax.grad(lambda at: jnp.sum(divergence(at, rollout.ref_logp))),
        )
    )
    np.testing.assert_allclose(got, value(x), rtol=1e-12)
    np.testing.assert_allclose(grad, slope(x), rtol=1e-12)


def evaluated(rollout: Rollout, logp: jax.Array) -> Evaluation:
    return Evaluation(rollout, logp=logp, log_ratio=logp - rollout.old_logp, advantages=jnp.ones(()))


def test_penalty_weights() -> None:
    rollout, logp = batch()
    x, ratio = np.asarray(rollout.ref_logp - logp), np.exp(np.asarray(logp - rollout.old_logp))

    def slope(penalty) -> np.ndarray:
        return np.asarray(jax.grad(lambda at: jnp.sum(penalty(evaluated(rollout, at))))(logp))

    k3 = np.exp(x) - x - 1
    np.testing.assert_allclose(
        slope(penalties.Penalty(divergence=penalties.K3(), weight=penalties.RatioWeight(), coef=1.0)),
        ratio * (k3 + 1 - np.exp(x)),
        rtol=1e-11,
        atol=1e-13,
    )
    cut = penalties.Penalty(divergence=penalties.K2(), weight=penalties.GradientWeight(cap=1.05), coef=1.0)
    np.testing.assert_allclose(slope(cut), np.minimum(ratio, 1.05) * -x, rtol=1e-12)
    np.testing.assert_allclose(cut(evaluated(rollout, logp)), x**2 / 2, rtol=1e-12)


def test_penalty_without_coefficient_does_not_read_the_reference() -> None:
    rollout, logp = batch()
    dead = rollout._replace(ref_logp=jnp.full_like(logp, -jnp.inf))
    penalty = penalties.Penalty(divergence=penalties.K3(), coef=0.0)
    assert np.all(np.asarray(penalty(evaluated(dead, logp))) == 0)
    assert np.all(np.asarray(jax.grad(lambda at: jnp.sum(penalty(evaluated(dead, at))))(logp)) == 0)
    assert np.isfinite(np.asarray(shaping.KLInReward(coef=0.0)(dead))).all()


def test_ratios() -> None:
    rollout, logp = batch()
    mask = np.asarray(rollout.mask)
    d = np.where(mask > 0, logp - rollout.old_logp, 0)
    total, length = d.sum(2, keepdims=True), mask.sum(2, keepdims=True)
    clean = rollout._replace(old_logp=jnp.where(mask > 0, rollout.old_logp, 0))
    at = jnp.where(mask > 0, logp, 0)
    for ratio, expected in (
        (ratios.Token(), d),
        (ratios.Token(clamp=0.1), np.clip(d, -0.1, 0.1)),
        (ratios.SequenceMean(), total / length + 0 * d),
        (ratios.SequenceMeanToken(), total / length + 0 * d),
        (ratios.Trajectory(), total + 0 * d),
        (ratios.Trajectory(clamp_sum=0.2), np.clip(total, -0.2, 0.2) + 0 * d),
        (ratios.Score(), 0 * d),
    ):
        np.testing.assert_allclose(ratio(clean, at), expected, atol=1e-14)


def test_reductions_sum_as_they_say() -> None:
    rollout, _ = batch()
    rollout = rollout._replace(mask=rollout.mask.at[0, 0].set(0.0), rewards=rollout.rewards.at[1].set(1.0))
    length = np.asarray(rollout.mask).sum(2)
    entries, tokens = 8, length.sum()
    for reduction, total in (
        (reductions.PerSequence(), 7 / entries),
        (reductions.NonEmpty(inner=reductions.PerSequence()), 1.0),
        (reductions.PerToken(), 1.0),
        (reductions.TokenSum(), tokens),
        (reductions.Constant(length=2.0), tokens / entries / 2),
        (reductions.Constant(length=None), tokens / entries / 5),
        (reductions.PerGroupToken(), 1.0),
        (reductions.MicroBatches(count=2), 1.0),
        (reductions.Informative(), 1.0),
    ):
        np.testing.assert_allclose(np.sum(reduction(rollout)), total, rtol=1e-12, err_msg=repr(reduction))
    assert np.all(np.asarray(reductions.Informative()(rollout))[1] == 0)


def test_objective_and_gradient_are_the_equation() -> None:
    """J = Σ m/(B|o|)·[c·s·A − β(e^x − x − 1)], x = log π_ref/π_θ; in ∇J c is a constant."""
    rollout, logp = batch()
    count = np.array([[3.0, 1.0, 0.0, 2.0], [1.0, 4.0, 2.0, 1.0]])
    advantage = np.random.default_rng(4).normal(size=(2, 4, 1))
    method = Method(
        gain=gains.Linear(),
        corrections=(Power(power=0.5), Power(power=2.0)),
        penalty=penalties.Penalty(divergence=penalties.K3(), coef=0.7),
    )
    counted = rollout._replace(multiplicity=jnp.asarray(count))
    value, slope = jax.value_and_grad(lambda at: objective(method, counted, jnp.asarray(advantage), at))(logp)
    live = (np.asarray(rollout.mask) > 0) & (count > 0)[:, :, None]
    at, old, ref = (np.where(live, x, 0) for x in (logp, rollout.old_logp, rollout.ref_logp))
    weight = live * count[:, :, None] / count.sum() / np.asarray(rollout.mask).sum(2, keepdims=True)
    gain, x = np.exp(2.5 * at) * np.exp(at - old) * advantage, ref - at
    np.testing.assert_allclose(value, np.sum(weight * (gain - 0.7 * (np.exp(x) - x - 1))), rtol=1e-12)
    np.testing.assert_allclose(slope, weight * (gain - 0.7 * (1 - np.exp(x))), rtol=1e-11, atol=1e-15)


def test_best_of_group() -> None:
    rollout, _ = batch()
    rewards = jnp.asarray([[0.1, 0.9, 0.4, 0.2], [0.9, 0.9, 0.1, 0.0]])
    got = advantages.BestOfGroup()(rollout, rewards)
    np.testing.assert_allclose(got, [[0, 0.5, 0, 0], [0, 0, 0, 0]], atol=1e-15)
    twice = rollout._replace(multiplicity=rollout.multiplicity.at[0, 1].set(2.0))
    assert np.all(np.asarray(advantages.BestOfGroup()(twice, rewards)) == 0)


def test_return_to_go_by_the_loop() -> None:
    rollout, _ = batch()
    rewards = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)))
    mask = np.asarray(rollout.mask).copy()
    mask[:, :, 1] = 0
    for skip in (True, False):
        part = returns.ReturnToGo(discount=0.8, kl_coef=0.3, count_masked=not skip)
        got = np.asarray(part(rollout._replace(mask=jnp.asarray(mask)), rewards))
        kl = np.asarray(rollout.old_logp - rollout.ref_logp)
        for p, i in np.ndindex(2, 4):
            after, valid = 0.0, np.flatnonzero(mask[p, i])
            for t in reversed(range(5)):
                if mask[p, i, t]:
                    after = 0.8 * after - 0.3 * kl[p, i, t] + (rewards[p, i] if t == valid[-1] else 0)
                    np.testing.assert_allclose(got[p, i, t], after, rtol=1e-12)
                elif not skip:
                    after *= 0.8


def test_sampler_corrections() -> None:
    rollout, logp = batch()
    ratio = np.exp(np.asarray(rollout.old_logp - rollout.sampling_logp))
    clipped = sampler.SamplerMismatch(low=0.9, high=1.1)(evaluated(rollout, logp))
    np.testing.assert_allclose(clipped, np.clip(ratio, 0.9, 1.1), rtol=1e-12)
    masked = sampler.SamplerMask(low=0.9, high=1.1)(evaluated(rollout, logp))
    np.testing.assert_allclose(masked, np.where((ratio >= 0.9) & (ratio <= 1.1), ratio, 0), rtol=1e-12)
    p, q = np.exp(np.asarray(rollout.sampling_logp)), np.exp(np.asarray(rollout.old_logp))
    np.testing.assert_allclose(sampler.TotalVariation()(rollout), np.abs(p - q), rtol=1e-9)
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(sampler.BinaryKL()(rollout), kl, rtol=1e-6, atol=1e-12)


def test_top_entropy_keeps_the_upper_share() -> None:
    rollout, logp = batch()
    valid = np.asarray(rollout.mask) > 0
    entropy = np.asarray(rollout.entropy)
    kept = np.asarray(corrections.TopEntropy(share=0.3)(evaluated(rollout, logp)))
    threshold = np.quantile(entropy[valid], 0.7)
    np.testing.assert_array_equal(kept[valid], (entropy[valid] >= threshold).astype(float))


def test_conflict_by_pairs() -> None:
    rollout, logp = batch()
    rollout = rollout._replace(tokens=rollout.tokens % 2)
    advantage = np.random.default_rng(2).normal(size=(2, 4, 1))
    got = np.asarray(
        corrections.Conflict(amplify=3.0)(Evaluation(rollout, logp, logp, jnp.asarray(advantage)))
    )
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    for p, i, t in zip(*np.nonzero(mask), strict=True):
        clash = any(
            mask[p, j, t]
            and tokens[p, j, t] == tokens[p, i, t]
            and advantage[p, j, 0] * advantage[p, i, 0] < 0
            for j in range(4)
        )
        assert got[p, i, t] == ((3.0 if advantage[p, i, 0] > 0 else 0.0) if clash else 1.0)


def test_overlong_and_length_corrected_rewards() -> None:
    rollout, _ = batch()
    length = np.asarray(rollout.mask).sum(2)
    raw = np.asarray(rollout.rewards)[:, :, 0]
    expected = raw - 0.5 * np.select([length <= 2, length <= 4], [0, (length - 2) / 2], 1)
    np.testing.assert_allclose(shaping.Overlong(limit=4.0, buffer=2.0, factor=0.5)(rollout), expected)
    np.testing.assert_allclose(shaping.DivideByLength()(rollout), raw / length)


def test_weights_of_several_rewards() -> None:
    rollout, _ = batch()
    many = rollout._replace(rewards=jnp.concatenate([rollout.rewards, 2 - rollout.rewards**2], 2))
    r = np.asarray(many.rewards)
    np.testing.assert_allclose(shaping.WeightedSum(weights=(0.5, 2.0))(many), 0.5 * r[..., 0] + 2 * r[..., 1])
    unit = (r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(
        shaping.NormalizedSum(weights=(0.5, 2.0))(many), unit @ [0.5, 2.0], rtol=1e-12, atol=1e-14
    )
    with pytest.raises(ValueError, match="2 rewards and 3 weights"):
        shaping.WeightedSum(weights=(1.0, 1.0, 1.0))(many)


def test_covariance_parts_choose_tokens() -> None:
    rollout, logp = batch()
    valid = np.asarray(rollout.mask) > 0
    advantage = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 1)))
    level = np.broadcast_to(advantage, valid.shape)[valid]
    here = np.asarray(logp)[valid]
    cov = (level - level.mean()) * (here - here.mean())
    np.testing.assert_allclose(
        np.asarray(soft_gains.covariance(rollout, logp, advantage))[valid], cov, rtol=1e-12
    )
    part = soft_gains.CovariancePenalty(share=0.4, coef=2.0)
    d = logp - rollout.old_logp
    at = Evaluation(rollout, logp=logp, log_ratio=d, advantages=advantage)
    extra = np.asarray(part(at) - jnp.exp(d) * advantage)[valid]
    chosen = np.argsort(-cov)[: max(1, int(0.4 * cov.size))]
    expected = np.zeros(cov.size)
    expected[chosen] = -2 * np.abs(np.asarray(d)[valid][chosen])
    np.testing.assert_allclose(extra, expected, rtol=1e-10, atol=1e-14)


def test_missing_entropy_and_baseline_are_named() -> None:
    rollout, logp = batch()
    bare = rollout._replace(entropy=None, baseline=None)
    for part in (corrections.TopEntropy(), corrections.EntropyFilter(), penalties.EntropyPenalty()):
        with pytest.raises(ValueError, match=r"needs rollout\.entropy"):
            part(evaluated(bare, logp))
    with pytest.raises(ValueError, match=r"needs rollout\.baseline"):
        advantages.External()(bare, jnp.zeros((2, 4)))
