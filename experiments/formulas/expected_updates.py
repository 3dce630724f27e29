"""Expected updates of groups in closed form, for every ratio and clip, on trees of sequences of T tokens.

What a sequence y adds to an update depends on the other G − 1 of its group through its advantage alone, so

    E[update](θ) = Σ_y π_old(y) Σ_± E[A^±|r(y)] Σ_t c^±_t(y) ∇log π_θ(y_t|·),

E[A^±|r] a sum over the others' counts of each reward, c^± what ratio and clip leave of ∇log π_θ where A has
that sign. Plain NumPy: nothing is compiled, and a tree of 2^8 sequences on hundreds of tables takes
milliseconds. That this is what the library's surrogate gives, summed over every group, C1 checks.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.problems.trees import Problem
from grpo_jax.sequences import Sequences
from grpo_jax.theory.counts import histograms
from grpo_jax.theory.variance import FORMS, arrangements

CLIPS = tuple(FORMS)
CLIP_NAMES = {
    "none": "no clip",
    "two-sided": "two-sided",
    "upper, minimum": "min(sA, min(s, c)A)",
    "upper, truncated": "min(s, c)A",
    "upper, truncated score": "sg[min(s, c)]A log π",
}
ESTIMATORS = ("GRPO", "TIC-GRPO", "GSPO", "score", "frozen")
"""Token ratio; trajectory ratio; its T-th root; no ratio, the score at θ; and the gradient at θ_old."""
DIRECTIONS = ("random", "ascent")
EPS = 0.2


class Point(NamedTuple):
    """A tree at θ whose outputs were drawn at θ_old; every array ends in runs."""

    chance: np.ndarray
    """[S, R] π_old(y)."""
    gap: np.ndarray
    """[T, S, R] log ρ_t(y)."""
    steps: np.ndarray
    """[rows, V, R] π_θ(a|s)."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[rows, V, R] over the tokens."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _levels(space: Sequences, rows: np.ndarray) -> Iterator[np.ndarray]:
    """[V^t, V, R] the rows of every depth t."""
    for first, last in zip(space.offsets[:-1], space.offsets[1:], strict=True):
        yield rows[first:last]


def along(space: Sequences, rows: np.ndarray) -> np.ndarray:
    """[T, S, R] from [rows, V, R]: its value at each token of every sequence."""
    size = space.vocab**space.horizon
    found = [
        np.repeat(at.reshape(-1, at.shape[2]), size // (len(at) * space.vocab), 0)
        for at in _levels(space, rows)
    ]
    return np.stack(found)


def point(space: Sequences, old: np.ndarray, params: np.ndarray) -> Point:
    """θ_old and θ as logits [rows, V, R]."""
    before, after = log_softmax(old), log_softmax(params)
    chance = np.exp(along(space, before).sum(0))
    return Point(chance, along(space, after - before), np.exp(after))


def through(space: Sequences, weights: np.ndarray) -> np.ndarray:
    """[rows, V, R] Σ weights_t(y) over the sequences through a prefix and token, from [T, S, R] or [S, R]."""
    shapes = [(space.vocab**depth, space.vocab, -1, weights.shape[-1]) for depth in range(space.horizon)]
    each = weights if weights.ndim == 3 else [weights] * space.horizon
    return np.concatenate([w.reshape(shape).sum(2) for w, shape in zip(each, shapes, strict=True)])


def pulled_back(space: Sequences, weights: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """[rows, V, R] Σ_y Σ_t weights_t(y) ∇log π(y_t|·) in logits, from weights [T, S, R] or [S, R]."""
    sums = through(space, weights)
    return sums - steps * sums.sum(1, keepdims=True)


@functools.lru_cache(maxsize=16)
def _advantages(
    levels: tuple[float, ...], group_size: int, normalized: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Counts [H, L] of the other G − 1 rewards, and the advantage [H, L] of an output with each reward."""
    values, others = np.array(levels), histograms(group_size - 1, len(levels))
    counts = others[:, None] + np.eye(len(values), dtype=int)
    deviation = values - (counts @ values / group_size)[:, :, None]
    own = np.einsum("hll->hl", deviation)
    if not normalized:
        return others, own
    spread = np.sqrt(np.sum(counts * deviation**2, 2) / group_size)
    return others, np.where(spread > 1e-12, own / np.where(spread > 1e-12, spread, 1), 0)


def advantage_law(
    table: np.ndarray, chance: np.ndarray, *, group_size: int, normalized: bool
) -> tuple[np.ndarray, np.ndarray]:
    """E[max(A, 0)|r(y)] and E[min(A, 0)|r(y)], each [S, R], of rewards [S, R] with few levels."""
    levels = np.unique(table)
    index = np.searchsorted(levels, table)
    rates = np.stack([np.sum(np.where(index == level, chance, 0), 0) for level in range(len(levels))])
    others, own = _advantages(tuple(levels), group_size, normalized)
    weights = arrangements(others)[:, None] * np.prod(rates ** others[:, :, None], 1)
    up, down = (np.take_along_axis(part.T @ weights, index, 0) for part in (own.clip(0), own.clip(None, 0)))
    return up, down


class Batch(NamedTuple):
    """Random tables at θ_old, and for A = r − r̄ and A = (r − r̄)/σ what the group leaves of each reward."""

    given: Problem
    laws: tuple[tuple[np.ndarray, np.ndarray], ...]


def batch(given: Problem, *, group_size: int) -> Batch:
    """What does not depend on θ."""
    chance = point(given.space, given.logits, given.logits).chance
    law = functools.partial(advantage_law, given.table, chance, group_size=group_size)
    return Batch(given, tuple(law(normalized=normalized) for normalized in (False, True)))


def log_ratio(at: Point, estimator: str) -> np.ndarray:
    """[T, S, R] of each token, or [S, R] of all tokens of a sequence."""
    if estimator == "GRPO":
        return at.gap
    if estimator in ("TIC-GRPO", "GSPO"):
        return at.gap.sum(0) if estimator == "TIC-GRPO" else at.gap.mean(0)
    return np.zeros_like(at.chance)


def updates(old: Batch, at: Point, estimator: str, clip: str, *, eps: float = EPS) -> np.ndarray:
    """[2, rows, V, R] expected updates with A = r − r̄ and with A = (r − r̄)/σ.

    ``frozen`` is ``score`` at a point where θ is θ_old.
    """
    ratio = np.exp(log_ratio(at, estimator))
    winners, losers = (FORMS[clip](ratio, sign, eps, eps) for sign in (1, -1))
    weights = (at.chance * (up * winners + down * losers) for up, down in old.laws)
    return np.stack([pulled_back(old.given.space, each, at.steps) for each in weights])


def candidates(given: Problem, at: Point) -> np.ndarray:
    """[3, rows, V, R] ∇J(θ_old), ∇J(θ), and Σ_s d_old(s) Σ_a ∇π_θ(a|s) Q_old(s, a)."""
    worth = at.chance * given.table
    weights = (worth * np.exp(at.gap.sum(0)), worth * np.exp(at.gap))
    here = [pulled_back(given.space, each, at.steps) for each in weights]
    return np.stack([old_gradient(given), *here])


def old_gradient(given: Problem) -> np.ndarray:
    """[rows, V, R] ∇J(θ_old)."""
    at = point(given.space, given.logits, given.logits)
    return pulled_back(given.space, at.chance * given.table, at.steps)


def direction(given: Problem, name: str, root: int) -> np.ndarray:
    """[rows, V, R] of length 1 for each table: along ∇J(θ_old), or normal."""
    shape = given.logits.shape
    rng = np.random.default_rng([root, *shape])
    found = old_gradient(given) if name == "ascent" else rng.normal(size=shape)
    return found / np.sqrt(np.sum(found**2, (0, 1)))


def drifted(given: Problem, along_: np.ndarray, kl: float, *, rounds: int = 12) -> np.ndarray:
    """Logits [rows, V, R] moved along a direction until KL(π_old‖π_θ) of whole sequences is ``kl`` nats.

    KL is convex along a line of logits; Newton's steps on log KL over the logarithm of the distance.
    """
    before = log_softmax(given.logits)
    weight = through(given.space, np.exp(along(given.space, before).sum(0)))
    reach = weight.sum(1, keepdims=True)
    mean = np.sum(np.exp(before) * along_, 1, keepdims=True)
    scale = np.sqrt(2 * kl / np.sum(weight * (along_ - mean) ** 2, (0, 1)))
    for _ in range(rounds):
        after = log_softmax(given.logits + scale * along_)
        found = np.sum(weight * (before - after), (0, 1))
        slope = np.sum((reach * np.exp(after) - weight) * along_, (0, 1))
        scale = scale * np.exp((np.log(kl) - np.log(found)) * found / (scale * slope))
    return given.logits + scale * along_


def success_rate(given: Problem) -> np.ndarray:
    """[R] E_old[r]."""
    return np.sum(point(given.space, given.logits, given.logits).chance * given.table, 0)
