"""Many inner steps a batch: how they stretch distances from a pair's stationary point. G = 2, γ = 1."""

import numpy as np
from numpy.typing import ArrayLike

from grpo_jax.theory import stationary_pair


def multiplier(reference: ArrayLike, strength: ArrayLike, travel: ArrayLike) -> np.ndarray:
    """By what a batch multiplies a small distance from the stationary point; below -1 it cycles.

    With S(y; π) the surrogate frozen at π and T = d S_y(π; π) / dπ < 0 it is 1 - (1 - ρ) T / S_yy,
    ρ = exp(2 travel (π (1 - π))² S_yy); for endless inner steps ρ is 0, or inf at a minimum of S.

    Args:
      reference: π_ref(a), any shape.
      strength: β/γ, of the same shape.
      travel: inner steps a batch times their learning rate; may be inf.
    """
    reference, strength = np.asarray(reference, float), np.asarray(strength, float)
    p = np.asarray(stationary_pair(reference, strength))
    q = 1 - p
    bend = strength * (1 / p + 1 / q - 2 * reference / p**2 - 2 * (1 - reference) / q**2)
    total = (1 - 2 * p - strength) / (p * q)
    with np.errstate(over="ignore"):
        rho = np.exp(2 * np.asarray(travel) * (p * q) ** 2 * bend)
    return 1 - (1 - rho) * total / bend
