"""How noisy a group's gradient is where sequences of three tokens drift, exactly: the tables of claim C4.

The same old and new law at every prefix, rewards that say which of two tokens is more frequent, and
``grpo_jax.theory.variance``; and E_old[w²] on trees whose laws differ from prefix to prefix, by listing.
"""

import functools

import numpy as np
import xarray as xr

from experiments.problems.three_tokens import DRIFTS, GROUP, HIGH, OLD, drifted, winning
from grpo_jax.theory import variance

CHI2 = np.array([0.02, 0.1, 0.3])
HORIZONS = np.arange(1, 13)


@functools.cache
def undrifted(horizon: int) -> variance.Estimate:
    """The on-policy estimate, the same for every ratio."""
    return variance.group_estimate(OLD, OLD, winning(horizon, tie=0.5), horizon=horizon, group_size=GROUP)


def moments(horizon: int, new: np.ndarray, ratio: str, clip: str) -> list[float]:
    """Bias in units of ‖∇J(θ)‖, variance in units of that without drift, and E[c²]."""
    success = winning(horizon, tie=0.5)
    target = variance.gradient(new, success, horizon=horizon)
    found = variance.group_estimate(
        OLD, new, success, horizon=horizon, group_size=GROUP, ratio=ratio, clip=clip, low=HIGH, high=HIGH
    )
    gap, inner = found.mean - target, functools.partial(variance.inner, horizon=horizon)
    bias = np.sqrt(inner(gap, gap) / inner(target, target))
    return [bias, found.variance / undrifted(horizon).variance, found.second_moment]


def exact() -> xr.Dataset:
    """Every drift, distance, ratio, clip and T."""
    table = [
        [
            [
                [[moments(int(T), drifted(way, x), ratio, clip) for T in HORIZONS] for clip in variance.FORMS]
                for ratio in variance.RATIOS
            ]
            for x in CHI2
        ]
        for way in DRIFTS.values()
    ]
    axes = {"drift": list(DRIFTS), "chi2": CHI2, "ratio": list(variance.RATIOS), "clip": list(variance.FORMS)}
    axes |= {"horizon": HORIZONS, "what": ["bias", "variance", "moment"]}
    return xr.DataArray(table, axes, tuple(axes)).to_dataset("what")


def random_laws(
    rng: np.random.Generator, shape: tuple[int, ...], chi2: float
) -> tuple[np.ndarray, np.ndarray]:
    """Old and new laws [..., 3] at this χ², the direction between them random; by rejection."""
    old, new = np.empty((*shape, 3)), np.full((*shape, 3), -1.0)
    while (missing := (new < 0).any(-1)).any():
        old[missing] = rng.dirichlet(np.full(3, 8.0), missing.sum())
        step = rng.normal(size=(missing.sum(), 3))
        step -= step.mean(-1, keepdims=True)
        new[missing] = old[missing] + step * np.sqrt(chi2 / np.sum(step**2 / old[missing], -1, keepdims=True))
    return old, new


def random_trees(rng: np.random.Generator, trees: int, horizon: int, chi2: float) -> np.ndarray:
    """[trees] E_old[w²] by listing 3^T sequences, with old and new laws of its own at every prefix."""
    value = np.ones((trees, 1))
    for depth in range(horizon):
        old, new = random_laws(rng, (trees, 3**depth), chi2)
        value = (value[:, :, None] * new**2 / old).reshape(trees, -1)
    return value.sum(1)
