"""Moments of a group's gradient estimate: count vectors against every group, through the surrogate itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.methods import SHIFT
from grpo_jax.parts.gains import Clip, Linear, Truncated, TruncatedScore, UpperClip
from grpo_jax.parts.ratios import SequenceMean, Token, Trajectory
from grpo_jax.parts.reductions import Constant, PerSequence
from grpo_jax.policies import TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import Method, advantages, objective
from grpo_jax.theory import variance
from grpo_jax.types import Rollout

OLD, NEW = np.array([0.3, 0.45, 0.25]), np.array([0.42, 0.38, 0.2])
GAINS = {
    "none": Linear(),
    "two-sided": Clip(low=0.2, high=0.3),
    "upper, minimum": UpperClip(high=0.3),
    "upper, truncated": Truncated(high=0.3),
    "upper, truncated score": TruncatedScore(high=0.3),
}
EXACT = pytest.mark.usefixtures("x64")
SLOTS = {"token": Token(), "trajectory": Trajectory(), "length-normalised": SequenceMean()}


def every_group(horizon: int, size: int):
    """Tokens [S, T], all groups [B, G] and a reward per sequence that depends on counts alone."""
    sequences = np.array(list(itertools.product(range(3), repeat=horizon)))
    groups = np.array(list(itertools.product(range(len(sequences)), repeat=size)))
    rewards = ((sequences == 0).sum(1) > (sequences == 2).sum(1)).astype(float)
    return sequences, groups, rewards


def brute_force(method: Method, horizon: int, size: int) -> tuple[np.ndarray, float]:
    """Mean [nodes, V] and total variance, times G/(G−1), of the surrogate's gradient over every group."""
    sequences, groups, rewards = every_group(horizon, size)
    space = Sequences(vocab=3, horizon=horizon)
    policy = TreePolicy.uniform(space)
    logits = [
        jnp.broadcast_to(jnp.log(law), (1, space.offsets[-1], 3)) for law in (jnp.array(OLD), jnp.array(NEW))
    ]
    prompts = np.arange(1)

    @jax.jit
    @jax.vmap
    def grad(group):
        tokens, mask = jnp.asarray(sequences)[group][None], jnp.ones((1, size, horizon))
        old = policy.score(logits[0], prompts, tokens, mask).logp
        rollout = Rollout(
            prompts,
            tokens,
            mask,
            jnp.asarray(rewards)[group][None, :, None],
            jnp.ones((1, size)),
            old,
            old,
            old,
        )
        advantage = advantages(method, rollout)
        return jax.grad(
            lambda theta: objective(
                method, rollout, advantage, policy.score(theta, prompts, tokens, mask).logp
            )
        )(logits[1])[0]

    found = np.asarray(grad(jnp.asarray(groups))) * size / (size - 1)
    chance = np.prod(OLD[sequences].prod(1)[groups], 1)
    mean = np.einsum("b,bnv->nv", chance, found)
    return mean, float(chance @ np.sum((found - mean) ** 2, (1, 2)))


def on_every_node(kinds: np.ndarray, horizon: int) -> np.ndarray:
    """[nodes, V] from [N, V], each node taking the value of its own kind."""
    rows = {tuple(row): i for i, row in enumerate(variance.prefixes(horizon, 3))}
    nodes = [p for depth in range(horizon) for p in itertools.product(range(3), repeat=depth)]
    return np.array([kinds[rows[tuple(p.count(v) for v in range(3))]] for p in nodes])


def success(horizon: int) -> np.ndarray:
    counts = variance.token_counts(horizon, 3)
    return (counts[:, 0] > counts[:, 2]).astype(float)


@EXACT
@pytest.mark.parametrize("clip", GAINS)
@pytest.mark.parametrize("ratio", SLOTS)
def test_moments_are_those_of_every_group(ratio, clip):
    """27 sequences of three tokens, all 729 ordered pairs, differentiated by the surrogate.

    A trajectory ratio that is differentiated stands at each of the T tokens; 1/|o| counts it once.
    """
    once = ratio == "trajectory" and clip != "upper, truncated score"
    reduction = PerSequence() if once else Constant(length=1.0)
    method = Method(advantage=SHIFT, ratio=SLOTS[ratio], gain=GAINS[clip], reduction=reduction)
    mean, spread = brute_force(method, 3, 2)
    found = variance.group_estimate(
        OLD, NEW, success(3), horizon=3, group_size=2, ratio=ratio, clip=clip, low=0.2, high=0.3
    )
    np.testing.assert_allclose(on_every_node(found.mean, 3), mean, atol=1e-14)
    np.testing.assert_allclose(found.variance, spread, rtol=1e-11)


@EXACT
def test_larger_groups():
    """All 729 ordered triples of nine sequences."""
    method = Method(advantage=SHIFT, ratio=Trajectory(), gain=Clip(), reduction=PerSequence())
    mean, spread = brute_force(method, 2, 3)
    found = variance.group_estimate(OLD, NEW, success(2), horizon=2, group_size=3, clip="two-sided")
    np.testing.assert_allclose(on_every_node(found.mean, 2), mean, atol=1e-14)
    np.testing.assert_allclose(found.variance, spread, rtol=1e-11)


@EXACT
def test_gradient_is_that_of_the_expected_reward():
    sequences, _, rewards = every_group(3, 1)
    space = Sequences(vocab=3, horizon=3)
    policy = TreePolicy.uniform(space)

    def expected(logits):
        logp = policy.score(logits, np.arange(1), jnp.asarray(sequences)[None], jnp.ones((1, 27, 3))).logp
        return jnp.sum(jnp.exp(jnp.sum(logp, 2)) * rewards)

    want = jax.grad(expected)(jnp.broadcast_to(jnp.log(jnp.array(NEW)), (1, space.offsets[-1], 3)))[0]
    got = variance.gradient(NEW, success(3), horizon=3)
    np.testing.assert_allclose(on_every_node(got, 3), want, atol=1e-14)
    np.testing.assert_allclose(variance.inner(got, got, horizon=3), np.sum(want**2), rtol=1e-12)


@pytest.mark.parametrize("horizon", [1, 2, 7, 12])
def test_unclipped_trajectory_ratio_is_unbiased_and_its_square_grows_by_chi_squared(horizon):
    found = variance.group_estimate(OLD, NEW, success(horizon), horizon=horizon, group_size=4)
    target = variance.gradient(NEW, success(horizon), horizon=horizon)
    gap = found.mean - target
    assert variance.inner(gap, gap, horizon=horizon) < 1e-24 * variance.inner(target, target, horizon=horizon)
    grown = variance.trajectory_second_moment(variance.chi_squared(NEW, OLD), horizon=horizon)
    np.testing.assert_allclose(found.second_moment, grown, rtol=1e-12)


def test_forms_that_ignore_the_sign_are_bounded_and_the_others_are_not():
    """Drift towards losers: min(wA, min(w, c)A) never acts on them."""
    worse = OLD + np.array([-0.2, 0.0, 0.2])
    moment = {
        clip: variance.group_estimate(
            OLD, worse, success(12), horizon=12, group_size=4, clip=clip
        ).second_moment
        for clip in variance.FORMS
    }
    assert moment["upper, truncated"] <= 1.2**2
    assert moment["upper, truncated score"] <= 1.2**2
    assert moment["two-sided"] > 10
    assert moment["upper, minimum"] > 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ratio": "tokens"}, "ratio is one of"),
        ({"clip": "both"}, "clip one of"),
        ({"group_size": 1}, "at least 2"),
        ({"new": np.array([0.5, 0.5, 0.5])}, "must sum to 1"),
    ],
)
def test_refusals(change, words):
    given = {"old": OLD, "new": NEW, "success": success(2), "horizon": 2, "group_size": 2} | change
    with pytest.raises(ValueError, match=words):
        variance.group_estimate(given.pop("old"), given.pop("new"), given.pop("success"), **given)
