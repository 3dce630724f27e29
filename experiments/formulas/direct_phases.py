"""The phases of the direct penalty on two reward levels: how many roots there are, where they are born."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.scipy.special import logit
from scipy import optimize, stats

from experiments.formulas.compiled import light
from grpo_jax.theory import bifurcations, critical_point, direct_roots, drive

LEVELS, PLACES = [0.5, 0.8], [0.1, 0.5, 0.9]
"""β over the greatest one with three roots, and where between the bifurcations logit π_ref lies."""
WEDGES = [8, 32, 128]
"""Group sizes of the phase diagram."""


def odds(z: Any) -> Any:
    """The probability that has log odds z."""
    return 1 / (1 + np.exp(-z))


@functools.partial(light, static_argnames="group_size")
def _phases(level: jax.Array, place: jax.Array, *, group_size: int) -> tuple[jax.Array, ...]:
    beta = level * critical_point(group_size=group_size)[1]
    fold = bifurcations(beta, group_size=group_size)
    low, high = fold.logit_reference_high[:, None], fold.logit_reference_low[:, None]
    z_ref = low + place * (high - low)
    roots = direct_roots(jax.nn.sigmoid(z_ref), beta[:, None], group_size=group_size).log_odds
    return beta, z_ref, roots, jnp.stack([fold.z_low, fold.z_high], 1)


def phases(group_size: int) -> xr.Dataset:
    """Settings with three roots: β, logit π_ref, the roots' log odds, and where two of them meet."""
    beta, z_ref, roots, fold = _phases(jnp.asarray(LEVELS), jnp.asarray(PLACES), group_size=group_size)
    return xr.Dataset(
        {
            "beta": ("level", np.asarray(beta)),
            "z_ref": (("level", "place"), np.asarray(z_ref)),
            "root": (("level", "place", "which"), np.asarray(roots)),
            "fold": (("level", "end"), np.asarray(fold)),
        },
        {"level": LEVELS, "place": PLACES, "which": ["low", "middle", "high"]},
    )


@functools.partial(light, static_argnames="group_size")
def sign_changes(reference: jax.Array, beta: jax.Array, *, group_size: float) -> jax.Array:
    """[R] roots of h by brute force: changes of its sign on a fine grid of log odds."""
    z = jnp.linspace(-130.0, 130.0, 26001)[:, None]
    h = drive(z, group_size=group_size) / beta - z + logit(reference)
    return jnp.sum(jnp.diff(jnp.sign(h), axis=0) != 0, 0)


@functools.partial(light, static_argnames="group_size")
def number(reference: jax.Array, beta: jax.Array, *, group_size: float) -> jax.Array:
    """[R] roots by the solver."""
    return direct_roots(reference, beta, group_size=group_size).number


def born(p: float) -> float:
    """From which β on h has two roots in large groups where π_ref = p: there its least value is zero.

    x* has the log odds 2 asinh β, so that h is 2 √(1 + β²) / β − 2 asinh β + logit π_ref, which falls in β.
    """

    def least(beta: float) -> float:
        return 2 * np.hypot(1, beta) / beta - 2 * np.arcsinh(beta) + np.log(p / (1 - p))

    return optimize.brentq(least, 1e-3, 1e3, xtol=1e-12)


def lower_root(p: float, beta: float, *, group_size: int) -> float:
    """Log odds of the root of h next to π_ref = p, from a plain sum over the successes in a group."""
    anchor, k = np.log(p / (1 - p)), np.arange(group_size + 1)

    def h(z: float) -> float:
        x, others = odds(np.array([z, -z]))
        spread = stats.binom.pmf(k, group_size, x) @ np.sqrt(k * (group_size - k)) / group_size
        return spread / (beta * x * others) - z + anchor

    return optimize.brentq(h, anchor, 2 * np.arcsinh(beta), xtol=1e-12)


@functools.partial(light, static_argnames="group_size")
def _wedge(z: jax.Array, *, group_size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    psi, slope = jax.vmap(jax.value_and_grad(lambda y: drive(y, group_size=group_size)))(z)
    return slope, z - psi / slope, critical_point(group_size=group_size)[1]


def wedges() -> xr.Dataset:
    """Double roots of h by log odds z: there β = dψ_G/dz, and logit π_ref = z − ψ_G/β.

    And the greatest such β, the cusp, beyond which there is one root whatever π_ref.
    """
    z = np.linspace(0.05, 16, 800)
    lines = []
    for group in WEDGES:
        slope, z_ref, cusp = _wedge(jnp.asarray(z), group_size=group)
        sides = {"beta": ("z", np.asarray(slope)), "z_ref": ("z", np.asarray(z_ref))}
        lines.append(xr.Dataset(sides | {"cusp": float(cusp)}, {"z": z}))
    return xr.concat(lines, xr.Variable("group", WEDGES))
