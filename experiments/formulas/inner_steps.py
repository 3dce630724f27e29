"""Many inner steps a batch: where they destroy the stability of the stationary point of a pair of answers.

Groups of two, two answers, gamma = 1, no clip, exact expectations.
"""

import jax.numpy as jnp
import numpy as np

from experiments.alignment import binary, follow, grid, problem
from grpo_jax.config import Loop
from grpo_jax.optimizers import SGD
from grpo_jax.theory import stationary_pair

TRAVEL, INNER, OUTER = np.array([4.0, 16.0, 64.0]), 128, 60
"""Inner steps times rate, inner steps a batch, and batches."""


def multiplier(reference: np.ndarray, strength: np.ndarray, travel: float) -> np.ndarray:
    """By what a batch multiplies a small distance from the stationary point: groups of two, two answers.

    With S(y; pi) the surrogate frozen at pi and T = d S_y(pi; pi) / d pi < 0 it is 1 - (1 - rho) T / S_yy,
    rho = exp(2 travel (pi (1 - pi))^2 S_yy); for endless inner steps rho is 0, or inf at a minimum of S.
    """
    p = np.asarray(stationary_pair(reference, strength))
    q = 1 - p
    bend = strength * (1 / p + 1 / q - 2 * reference / p**2 - 2 * (1 - reference) / q**2)
    total = (1 - 2 * p - strength) / (p * q)
    with np.errstate(over="ignore"):
        rho = np.exp(2 * travel * (p * q) ** 2 * bend)
    return 1 - (1 - rho) * total / bend


def map_axes(points: int) -> tuple[np.ndarray, np.ndarray]:
    """pi_ref and beta / gamma of the map."""
    return np.geomspace(0.002, 0.9, points), np.linspace(0.1, 3.0, points)


def swings(points: int) -> np.ndarray:
    """[travel, pi_ref, strength] how much pi still varies in the last ten batches of many inner steps."""
    travel, r, b = grid(TRAVEL, *map_axes(points))
    rate, loop = SGD(learning_rate=jnp.asarray(travel / INNER)), Loop(group_size=2, inner_steps=INNER)
    even, rewards = binary(np.full(r.shape, 0.5)), np.array([1.0, 0.0])
    config = problem(binary(r), rewards, b, group_size=2, start=even, optimizer=rate, loop=loop)
    late = follow(config, np.zeros(len(r), int), iterations=OUTER, every=1)[-10:, 0]
    return (late.max(0) - late.min(0)).reshape(len(TRAVEL), points, points)
