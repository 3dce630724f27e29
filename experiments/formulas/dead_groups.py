"""Groups whose rewards tie, by sums in NumPy and SciPy; nothing of the library.

Rewards are 0 or 1, p is the success rate, G the group's size and t = p^G + (1 − p)^G the chance of a tie.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.stats import binom

from experiments.formulas.truncation import Tree


def ties(success: np.ndarray | float, group: int) -> np.ndarray:
    """t."""
    p = np.asarray(success, float)
    return p**group + (1 - p) ** group


def price(tie: np.ndarray, tries: int) -> np.ndarray:
    """1 + t + ... + t^(k−1), the mean number of groups drawn for one that is kept."""
    return sum((tie**n for n in range(tries)), np.zeros_like(tie))


def baseline(success: float, group: int, *, mixed: bool) -> float:
    """E[r̄], of every group or of those that do not tie."""
    hits = np.arange(group + 1)
    law = binom.pmf(hits, group, success)
    if mixed:
        law[[0, -1]] = 0
    return float(law @ hits / law.sum() / group)


def refilled(tree: Tree, rewards: np.ndarray, group: int, tries: int) -> np.ndarray:
    """Mean over every ordered group, round after round until one is mixed, of Σ_i A_i ∇log π(o_i) / G."""
    drawn = np.array(list(itertools.product(range(len(rewards)), repeat=group)))
    r, once = rewards[drawn], tree.chance[drawn].prod(1)
    same = np.ptp(r, axis=1) == 0
    reached, kept = 1.0, np.zeros(len(drawn))
    for n in range(tries):
        kept += reached * np.where(same & (n < tries - 1), 0, once)
        reached *= once[same].sum()
    push = kept[:, None] * (r - r.mean(1, keepdims=True)) / group
    return np.einsum("s,snv->nv", np.bincount(drawn.ravel(), push.ravel(), len(rewards)), tree.scores)
