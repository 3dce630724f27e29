"""How often each reward level occurs in a group: exact weights of binomial and multinomial counts.

With ``s(n) = log n! - n log n + n`` the multinomial weight is the method of types,

    log P(n | N, q) = s(N) - sum_l s(n_l) - sum_l d(n_l, N q_l),      d(x, m) = x log(x / m) - x + m >= 0,

in which nothing large cancels near the mode: weights are exact to about 1e-14 for N in the thousands, where
differences of log factorials lose four digits.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

MAX_HISTOGRAMS = 300_000


@functools.lru_cache(maxsize=64)
def stirling_remainder(total: int) -> np.ndarray:
    """``s(n) = log n! - n log n + n`` for n = 0..total, in float64 and to its last digits. [total + 1]."""
    n = np.arange(total + 1, dtype=np.float64)
    few = range(min(total, 19) + 1)
    small = np.array([math.lgamma(k + 1) - (k * math.log(k) if k else 0) + k for k in few])
    x = np.maximum(n, 1)
    series = (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / 1188 / x**2) / x**2) / x**2) / x**2) / x
    large = 0.5 * np.log(2 * np.pi * x) + series
    return np.concatenate([small, large[small.size :]])


def deviance(count: Array, mean: Array) -> Array:
    """``d(x, m) = x log(x / m) - x + m``; d(0, m) = m, d(x, 0) = inf for x > 0, d(0, 0) = 0; NaN stays.

    Elementwise.
    """
    both = (count > 0) & (mean > 0)
    x, m = jnp.where(both, count, 1.0), jnp.where(both, mean, 1.0)
    difference = (x - m) / m
    log_ratio = jnp.where(abs(difference) < 0.5, -jnp.log1p(difference), jnp.log(m) - jnp.log(x))
    inside = -x * log_ratio - x + m
    without = jnp.where((count > 0) & ~jnp.isnan(mean), jnp.inf, mean)
    return jnp.where(both, inside, without)


def number_of_histograms(total: int, levels: int) -> int:
    """``C(N + L - 1, L - 1)``: histograms of N draws over L levels."""
    return math.comb(total + levels - 1, levels - 1)


@functools.lru_cache(maxsize=64)
def histograms(total: int, levels: int, limit: int = MAX_HISTOGRAMS) -> np.ndarray:
    """Every histogram of N draws over L levels.

    Args:
      total: the number of draws N >= 0.
      levels: the number of levels L >= 1.
      limit: the most histograms to write down; more is a ValueError that names the count and the memory.

    Returns:
      int32 [C(N + L - 1, L - 1), L], rows in lexicographic order.

    >>> histograms(2, 2).tolist()
    [[0, 2], [1, 1], [2, 0]]
    """
    size = number_of_histograms(total, levels)
    if size > limit:
        raise ValueError(
            f"{size} histograms of {total} draws over {levels} reward levels exceed the limit of {limit} "
            f"({8e-9 * size * levels:.2g} GB in float64): merge equal rewards into levels, use a smaller "
            "group, take group_size=math.inf, raise max_histograms, or sample."
        )
    rows, left = np.zeros((1, 0), np.int32), np.array([total])
    for _ in range(levels - 1):
        repeat = left + 1
        first = np.cumsum(repeat) - repeat
        taken = np.arange(repeat.sum()) - np.repeat(first, repeat)
        rows = np.column_stack([np.repeat(rows, repeat, axis=0), taken])
        left = np.repeat(left, repeat) - taken
    return np.column_stack([rows, left]).astype(np.int32)


def multinomial_weights(counts: ArrayLike, total: int, marginals: Array) -> Array:
    """Multinomial probabilities of histograms, normalised over the rows given.

    Args:
      counts: concrete int [H, L], rows that sum to ``total``.
      total: the number of draws N.
      marginals: [L] level probabilities; rescaled to sum to one.

    Returns:
      [H] weights. Differentiable in marginals where they are positive.
    """
    remainder, n = stirling_remainder(total), np.asarray(counts)
    orders = jnp.asarray(remainder[total] - remainder[n].sum(-1), marginals.dtype)
    q = marginals / marginals.sum()
    log_weights = orders - deviance(jnp.asarray(n, q.dtype), total * q).sum(-1)
    return jnp.exp(log_weights)


@jax.custom_jvp
@jax.jit
def bernstein(values: Array, p: Array, q: Array) -> Array:
    """The homogeneous Bernstein polynomial ``B(p, q) = sum_k C(N, k) f_k p^k q^(N - k)`` on ``p + q = 1``.

    It is the expectation of f_K for K ~ Bin(N, p). Passing q = 1 - p apart keeps both ends of the interval
    accurate. The derivative, ``N (B[f_{k+1}] dp + B[f_k] dq)`` of degree N - 1, is exact at the ends, to any
    order.

    Args:
      values: [N + 1] the coefficients f_k.
      p, q: arrays of one shape [...], q = 1 - p.

    Returns:
      [...] the polynomial. Memory is that of an array [..., N + 1].
    """
    total = values.shape[0] - 1
    table = jnp.asarray(stirling_remainder(total), p.dtype)
    k = jnp.arange(total + 1, dtype=p.dtype)
    distance = deviance(k, total * p[..., None]) + deviance(total - k, total * q[..., None])
    return jnp.sum(values * jnp.exp(table[total] - table - table[::-1] - distance), axis=-1)


@bernstein.defjvp
def _bernstein_jvp(primals, tangents):
    values, p, q = primals
    d_values, dp, dq = tangents
    tangent = bernstein(d_values, p, q)
    total = values.shape[0] - 1
    if total > 0:
        tangent += total * (bernstein(values[1:], p, q) * dp + bernstein(values[:-1], p, q) * dq)
    return bernstein(values, p, q), tangent
