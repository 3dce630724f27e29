"""Closed-form expected updates against the library's sum over every group, and drifts as far as they say."""

import dataclasses
import itertools

import numpy as np
import pytest

from experiments.formulas import expected_updates as closed
from experiments.problems import estimands, trees
from experiments.problems.weights import LengthPower
from grpo_jax import Sequences
from grpo_jax.parts.gains import Clip, Truncated, TruncatedScore
from grpo_jax.parts.ratios import SequenceMean

pytestmark = pytest.mark.usefixtures("x64")


SPACE = Sequences(vocab=3, horizon=2)


def far(kind: str, tables: int) -> tuple[trees.Problem, np.ndarray]:
    """Random tables, and parameters far enough for ratios on both sides of every clip."""
    given = trees.problem(4, SPACE, tables=tables, kind=kind)
    return given, given.logits + 0.6 * np.random.default_rng(1).normal(size=given.logits.shape)


def library(given, params, estimator: str, clip: str, normalized: float, size: int) -> np.ndarray:
    """The same update summed over every group, through the surrogate."""
    inf = np.inf
    gain = {
        "upper, truncated": Truncated(high=closed.EPS),
        "upper, truncated score": TruncatedScore(high=closed.EPS),
    }.get(
        clip,
        Clip(
            low=closed.EPS if clip == "two-sided" else inf,
            high=inf if clip == "none" else closed.EPS,
        ),
    )
    whole, alone = estimator == "TIC-GRPO", float(estimator == "score")
    method = estimands.method(trajectory=float(whole), score=alone, normalized=normalized, gain=gain)
    if estimator == "GSPO":
        method = dataclasses.replace(method, ratio=SequenceMean())
    if clip == "upper, truncated score":  # the score stands at each token by itself: no 1/|o|
        method = dataclasses.replace(method, reduction=LengthPower(power=0.0))
    problem = estimands.made(given.space, given.logits, given.table)
    return estimands.update(problem, method, params, group_size=size)[0]


@pytest.mark.parametrize("clip", closed.CLIPS)
@pytest.mark.parametrize("estimator", ["GRPO", "TIC-GRPO", "GSPO"])
def test_closed_form_is_the_sum_over_every_group(estimator, clip):
    given, params = far("graded", 3)
    at = closed.point(SPACE, given.logits, params)
    found = closed.updates(closed.batch(given, group_size=3), at, estimator, clip)
    for normalized in (0, 1):
        want = library(given, params, estimator, clip, float(normalized), 3)
        assert np.abs(want).max() > 1e-3
        np.testing.assert_allclose(found[normalized], want, atol=1e-14)


@pytest.mark.parametrize("at_old", [False, True], ids=["score", "frozen"])
def test_without_a_ratio(at_old):
    given, params = far("graded", 3)
    params = given.logits if at_old else params
    at = closed.point(SPACE, given.logits, params)
    found = closed.updates(closed.batch(given, group_size=3), at, "score", "none")
    for normalized in (0, 1):
        want = library(given, params, "score", "none", float(normalized), 3)
        np.testing.assert_allclose(found[normalized], want, atol=1e-14)


@pytest.mark.parametrize("normalized", [False, True])
def test_advantages_are_those_of_every_group(normalized):
    """All 4^3 groups of an output with three others, by their rewards, one by one."""
    levels, chance = np.array([0.0, 1 / 3, 2 / 3, 1.0]), np.array([0.1, 0.4, 0.2, 0.3])
    up, down = closed.advantage_law(levels[:, None], chance[:, None], group_size=4, normalized=normalized)
    for own in range(4):
        total = np.zeros(2)
        for others in itertools.product(range(4), repeat=3):
            rewards = levels[[own, *others]]
            advantage = rewards[0] - rewards.mean()
            if normalized:
                advantage = advantage / rewards.std() if np.ptp(rewards) else 0.0
            total += chance[list(others)].prod() * np.array([max(advantage, 0), min(advantage, 0)])
        np.testing.assert_allclose([up[own, 0], down[own, 0]], total, atol=1e-15)


def test_candidates_are_the_gradients_of_the_tree():
    given, params = far("binary", 3)
    policy, task = estimands.made(SPACE, given.logits, given.table)
    want = estimands.candidates(policy, task, params[None], given.logits[None])
    found = closed.candidates(given, closed.point(SPACE, given.logits, params))
    for mine, name in zip(found, estimands.TARGETS, strict=True):
        np.testing.assert_allclose(mine, want[name][0], atol=1e-15)
    np.testing.assert_allclose(closed.success_rate(given), (given.table * probability(given.logits)).sum(0))


def probability(logits: np.ndarray) -> np.ndarray:
    """[S, R] by the product along each of the nine sequences."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.array([p[0, a] * p[1 + a, b] for a, b in itertools.product(range(3), repeat=2)])


@pytest.mark.parametrize("kl", [1e-3, 0.1, 2.0])
@pytest.mark.parametrize("direction", closed.DIRECTIONS)
def test_a_drift_is_as_far_as_it_says(direction, kl):
    given, _ = far("graded", 5)
    params = closed.drifted(given, closed.direction(given, direction, 0), kl)
    old, new = probability(given.logits), probability(params)
    np.testing.assert_allclose(np.sum(old * np.log(old / new), 0), kl, rtol=1e-9)
