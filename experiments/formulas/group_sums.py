"""Preferences in large groups by sums that share no code with the package, and where a level is rare."""

import numpy as np
from scipy import stats


def preference_by_sum(
    policy: np.ndarray, levels: np.ndarray, probs: np.ndarray, group_size: int
) -> np.ndarray:
    """[K] P_G by summing over the other members' levels, twelve standard deviations wide.

    Args:
      policy: [K] π.
      levels: [L] rewards, two or three.
      probs: [K, L] their probabilities given each answer.
      group_size: G.
    """
    q, others = policy @ probs, group_size - 1
    first = window(others, q[0])
    if len(levels) == 2:
        counts = np.stack([first, others - first], 1)
        weight = stats.binom.pmf(first, others, q[0])
    else:
        a, b = (x.ravel() for x in np.meshgrid(first, window(others, q[1]), indexing="ij"))
        a, b = a[a + b <= others], b[a + b <= others]
        counts = np.stack([a, b, others - a - b], 1)
        weight = stats.multinomial.pmf(counts, others, q)
    found = []
    for level, own in enumerate(np.eye(len(levels), dtype=int)):
        n = counts + own
        centre = n @ levels / group_size
        spread = np.sqrt(np.maximum((n * (levels - centre[:, None]) ** 2).sum(1) / group_size, 0))
        tied = n.max(1) == group_size
        found.append(weight @ np.where(tied, 0, (levels[level] - centre) / np.where(tied, 1, spread)))
    return probs @ np.array(found)


def window(n: int, p: float) -> np.ndarray:
    """The counts that a binomial takes but for a chance of 1e-30."""
    reach = 12 * np.sqrt(n * p * (1 - p)) + 12
    return np.arange(max(0, int(n * p - reach)), min(n, int(n * p + reach) + 1) + 1)


def rare_law(x: np.ndarray) -> np.ndarray:
    """f(x) = √x E[(1 + Poisson(x))^(-1/2)]: √x for small x, 1 for large."""
    n = np.arange(4000)
    safe = np.minimum(x, 2000.0)
    found = np.sqrt(safe) * (stats.poisson.pmf(n, safe[..., None]) / np.sqrt(1.0 + n)).sum(-1)
    return np.where(x > 2000.0, 1.0, found)
