"""How noisy and how biased a group's gradient estimate is, exactly, when every step looks alike.

T tokens are drawn independently from ``old`` [V] at every prefix and scored under ``new`` [V]; each prefix
has logits of its own, as in a tree policy. All that matters of a sequence is then how often a token occurs,
so sums over V^T sequences become sums over C(T+V−1, V−1) count vectors: T = 12 costs milliseconds and T = 64
is no limit. Plain float64, whatever JAX is set to.

Reference: [C] Pang, Luo & Jin, arXiv:2508.02833 (trajectory ratio, upper-only clip).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grpo_jax.theory.checks import check_distribution, check_group_size
from grpo_jax.theory.counts import histograms

Array = NDArray[np.float64]

FORMS: dict[str, Callable[[Array, int, float, float], Array]] = {
    "none": lambda ratio, sign, low, high: ratio,
    "two-sided": lambda ratio, sign, low, high: np.where(
        ratio > 1 + high if sign > 0 else ratio < 1 - low, 0.0, ratio
    ),
    "upper, minimum": lambda ratio, sign, low, high: (
        np.where(ratio > 1 + high, 0.0, ratio) if sign > 0 else ratio
    ),
    "upper, truncated": lambda ratio, sign, low, high: np.where(ratio > 1 + high, 0.0, ratio),
    "upper, truncated score": lambda ratio, sign, low, high: np.minimum(ratio, 1 + high),
}
"""Clip -> (ratio, sign of A, low, high) -> the factor of A·∇log π: min(sA, clip(s)A); min(sA, min(s, c)A);
min(s, c)A differentiated; sg[min(s, c)]·∇log π. Only the last two act whatever the sign of A."""

RATIOS = ("token", "trajectory", "length-normalised")
"""ρ_t; w = Π_t ρ_t; w^{1/T}."""


class Estimate(NamedTuple):
    """Exact moments of a group's gradient estimate, normalised so that an unbiased one has mean ∇J(θ)."""

    mean: Array
    """[N, V] expectation at one prefix of each kind, in logits."""
    variance: float
    """Trace of the covariance over all (V^T − 1)/(V − 1) prefixes."""
    second_moment: float
    """E[(Σ_t c_t²)/T], c the factors of ∇log π."""


def chi_squared(new: ArrayLike, old: ArrayLike) -> Array:
    """``χ² = Σ_a new(a)²/old(a) − 1`` over the last axis: [..., K] -> [...].

    >>> float(chi_squared([0.6, 0.4], [0.5, 0.5]))
    0.04
    """
    new, old = np.asarray(new, float), np.asarray(old, float)
    return np.sum((new - old) ** 2 / old, -1)


def trajectory_second_moment(chi2: ArrayLike, *, horizon: ArrayLike) -> Array:
    """``E_old[w²] = (1 + χ²)^T`` for w = Π_t ρ_t and the same χ² at every prefix ([C], re-derived).

    Given its prefix each ρ_t² has mean 1 + χ², so the product telescopes, whatever the directions of drift.

    >>> float(trajectory_second_moment(0.04, horizon=12))
    1.60103
    """
    return (1 + np.asarray(chi2, float)) ** np.asarray(horizon)


def token_counts(horizon: int, vocab: int) -> np.ndarray:
    """int [H, V] every count vector of T tokens, in the order that ``success`` follows."""
    return histograms(horizon, vocab)


@functools.lru_cache(maxsize=64)
def prefixes(horizon: int, vocab: int) -> np.ndarray:
    """int [N, V] the count vectors of all proper prefixes, shortest first."""
    return np.concatenate([histograms(depth, vocab) for depth in range(horizon)])


def arrangements(counts: np.ndarray) -> np.ndarray:
    """[...] number of sequences with these token counts [..., V]; 0 where a count is negative."""
    factorial = np.array([math.factorial(n) for n in range(int(counts.sum(-1).max()) + 1)], np.float64)
    valid = np.all(counts >= 0, -1)
    safe = np.where(valid[..., None], counts, 0)
    return np.where(valid, factorial[safe.sum(-1)] / factorial[safe].prod(-1), 0.0)


def inner(a: Array, b: Array, *, horizon: int) -> float:
    """Inner product of two gradients [N, V], every prefix counted as often as it occurs in the tree."""
    often = arrangements(prefixes(horizon, a.shape[-1]))
    return float(often @ np.sum(a * b, -1))


def gradient(new: ArrayLike, success: ArrayLike, *, horizon: int) -> Array:
    """``∇J(θ)`` in logits at one prefix of each kind: d(s)·π(a)·(Q(s, a) − V(s)).

    Args:
      new: [V] token law at every prefix.
      success: [H] probability of reward 1 given the token counts, in the order of ``token_counts``.
      horizon: T.

    Returns:
      [N, V].
    """
    new, success = np.asarray(new, float), np.asarray(success, float)
    q = _continuations(new, horizon) @ success
    return _reach(new, horizon)[:, None] * new * (q - (q @ new)[:, None])


def group_estimate(
    old: ArrayLike,
    new: ArrayLike,
    success: ArrayLike,
    *,
    horizon: int,
    group_size: int,
    ratio: str = "trajectory",
    clip: str = "none",
    low: float = 0.2,
    high: float = 0.2,
) -> Estimate:
    """Moments of ``(1/(G−1)) Σ_i A_i Σ_t c_{i,t} ∇log π_θ(y_{i,t}|·)``, A_i = r_i − r̄, y_i drawn from old.

    In a group with K successes A is 1 − K/G or −K/G, so its sign is that of the reward; given K, the sum is
    one of independent terms. With 1/(G−1) in place of 1/G, ∇J(θ) is the mean of the unclipped trajectory
    ratio.

    Args:
      old, new: [V] token laws that sample and that are differentiated.
      success: [H] probability of reward 1 given the token counts.
      horizon: T.
      group_size: G, finite.
      ratio: one of ``RATIOS``.
      clip: one of ``FORMS``; its bounds are 1 − low and 1 + high.

    Raises:
      ValueError: unknown ratio or clip, laws that do not sum to one, or a group of less than two.
    """
    old, new, success = (np.asarray(x, float) for x in (old, new, success))
    check_distribution("old", old)
    check_distribution("new", new)
    check_group_size(group_size)
    if ratio not in RATIOS or clip not in FORMS:
        raise ValueError(f"ratio is one of {RATIOS}, clip one of {tuple(FORMS)}; got {ratio!r} and {clip!r}")
    value = _ratio(ratio, old, new, horizon)
    winners, losers = (FORMS[clip](value, sign, low, high) for sign in (1, -1))
    rate = float(_law(old, horizon) @ success)
    won = _moments(old, new, success, winners, horizon)
    lost = _moments(old, new, 1 - success, losers, horizon)
    k = np.arange(group_size + 1)
    chance = np.array([math.comb(group_size, int(n)) for n in k]) * rate**k * (1 - rate) ** (group_size - k)
    up, down = (1 - k / group_size) / (group_size - 1), k / group_size / (group_size - 1)
    mean = chance @ (up * k)
    gap = won.mean / rate - lost.mean / (1 - rate)
    inside = chance @ (up**2 * k) * won.spread(rate, horizon)
    inside += chance @ (down**2 * (group_size - k)) * lost.spread(1 - rate, horizon)
    between = chance @ (up * k - mean) ** 2 * inner(gap, gap, horizon=horizon)
    return Estimate(mean * gap, inside + between, won.squares + lost.squares)


class _Moments(NamedTuple):
    """Of F = Σ_t c_t ∇log π(y_t|·) on an event: E[1·F] [N, V], E[1·‖F‖²] and E[1·Σ_t c_t²/T]."""

    mean: Array
    noise: float
    squares: float

    def spread(self, chance: float, horizon: int) -> float:
        """Trace of the covariance given the event, which has this chance."""
        return self.noise / chance - inner(self.mean, self.mean, horizon=horizon) / chance**2


def _law(law: Array, horizon: int) -> Array:
    """[H] probability of every count vector."""
    counts = token_counts(horizon, law.shape[0])
    return arrangements(counts) * np.prod(law**counts, -1)


def _reach(law: Array, horizon: int) -> Array:
    """[N] probability of one prefix of each kind."""
    return np.prod(law ** prefixes(horizon, law.shape[0]), -1)


@functools.lru_cache(maxsize=64)
def _remaining(horizon: int, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """[N, V, H, V] counts still to come after a prefix and a token, and [N, V, H] their number of orders."""
    after = prefixes(horizon, vocab)[:, None] + np.eye(vocab, dtype=int)
    rest = token_counts(horizon, vocab) - after[:, :, None]
    return np.maximum(rest, 0), arrangements(rest)


def _continuations(law: Array, horizon: int) -> Array:
    """[N, V, H] probability that a sequence through this prefix and token ends with these counts."""
    rest, orders = _remaining(horizon, law.shape[0])
    powers = law[:, None] ** np.arange(horizon + 1)
    return orders * np.prod([powers[v][rest[..., v]] for v in range(law.shape[0])], 0)


def _ratio(kind: str, old: Array, new: Array, horizon: int) -> Array:
    """[H, V] the ratio of a token in a sequence with these counts."""
    counts = token_counts(horizon, old.shape[0])
    token = np.log(new) - np.log(old)
    total = (counts @ token)[:, None] / (horizon if kind == "length-normalised" else 1)
    return np.exp(np.broadcast_to(token if kind == "token" else total, counts.shape))


def _moments(old: Array, new: Array, event: Array, factor: Array, horizon: int) -> _Moments:
    vocab = old.shape[0]
    counts = token_counts(horizon, vocab)
    score, law = np.eye(vocab) - new, _law(old, horizon) * event
    weight = old * np.einsum("nak,ka->na", _continuations(old, horizon), event[:, None] * factor)
    squares = counts * factor**2
    return _Moments(
        mean=_reach(old, horizon)[:, None] * (weight @ score),
        noise=float(law @ squares @ np.sum(score**2, -1)),
        squares=float(law @ squares.sum(-1)) / horizon,
    )
