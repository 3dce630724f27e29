"""The phases of the direct penalty on two reward levels: how many roots there are, where they are born."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit
from scipy import optimize, stats

from experiments.alignment import light
from experiments.grid import grid
from grpo_jax.theory import Bifurcations, bifurcations, critical_point, direct_roots, drive

GROUPS = np.array([8, 32])
LEVELS, PLACES = np.array([0.5, 0.8]), np.array([0.1, 0.5, 0.9])
"""beta / beta_c(G), and where between the bifurcations logit pi_ref lies."""
COUNTED = (3, 8, 32, np.inf)
WEDGES = np.array([8, 32, 128])


def odds(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


class Diagram(NamedTuple):
    """beta and logit pi_ref [S] of basins, their roots [S, 3], bifurcations [S]; root counts elsewhere."""

    beta: Any
    z_ref: Any
    roots: Any
    fold: Bifurcations
    number: Any


@functools.partial(light, static_argnames="group_size")
def diagram(reference: jax.Array, beta: jax.Array, *, group_size: int) -> Diagram:
    """One program for all that theory says of a group size."""
    level, place = grid(LEVELS, PLACES)
    here = level * critical_point(group_size=group_size)[1]
    fold = bifurcations(here, group_size=group_size)
    low, high = fold.logit_reference_high, fold.logit_reference_low
    z_ref = low + place * (high - low)
    both = (jnp.concatenate(pair) for pair in ((jax.nn.sigmoid(z_ref), reference), (here, beta)))
    found = direct_roots(*both, group_size=group_size)
    return Diagram(here, z_ref, found.log_odds[: len(level)], fold, found.number[len(level) :])


@functools.partial(jax.jit, static_argnames="group_size")
def sign_changes(reference: jax.Array, beta: jax.Array, *, group_size: float) -> jax.Array:
    """[R] roots of h by brute force: changes of its sign on a fine grid of log odds."""
    z = jnp.linspace(-130.0, 130.0, 26001)[:, None]
    h = drive(z, group_size=group_size) / beta - z + logit(reference)
    return jnp.sum(jnp.diff(jnp.sign(h), axis=0) != 0, 0)


def draws(root: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pi_ref and beta [D] at which roots are counted."""
    rng = np.random.default_rng(root)
    return odds(rng.uniform(-16, 4, 300)), np.exp(rng.uniform(np.log(0.05), np.log(6), 300))


@functools.partial(light, static_argnames="group_size")
def number(reference: jax.Array, beta: jax.Array, *, group_size: float) -> jax.Array:
    """[D] roots by the solver."""
    return direct_roots(reference, beta, group_size=group_size).number


def counted(r: np.ndarray, b: np.ndarray, told: Mapping[float, Diagram]) -> tuple[np.ndarray, np.ndarray]:
    """[group, question] roots by brute force and by the solver, over random beta and pi_ref."""
    brute = [np.asarray(sign_changes(r, b, group_size=group)) for group in COUNTED]
    solved = [told[group].number if group in told else number(r, b, group_size=group) for group in COUNTED]
    return np.stack(brute), np.stack(solved)


def born(p: float) -> float:
    """From which beta on h has two roots in large groups: there its least value, at x*, is zero.

    x* has the log odds 2 asinh(beta), so that h is 2 sqrt(1 + beta^2) / beta - 2 asinh(beta) + logit pi_ref,
    which falls in beta.
    """

    def least(beta: float) -> float:
        return 2 * np.hypot(1, beta) / beta - 2 * np.arcsinh(beta) + np.log(p / (1 - p))

    return optimize.brentq(least, 1e-3, 1e3, xtol=1e-12)


def lower_root(p: float, beta: float, *, group_size: int) -> float:
    """Log odds of the root of h next to pi_ref = p, from a plain sum over the successes in a group."""
    anchor, k = np.log(p / (1 - p)), np.arange(group_size + 1)

    def h(z: float) -> float:
        x, others = odds(np.array([z, -z]))
        spread = stats.binom.pmf(k, group_size, x) @ np.sqrt(k * (group_size - k)) / group_size
        return spread / (beta * x * others) - z + anchor

    return optimize.brentq(h, anchor, 2 * np.arcsinh(beta), xtol=1e-12)


@functools.partial(light, static_argnums=0)
def cusp(group_size: int) -> jax.Array:
    """beta from which on there is one root."""
    return critical_point(group_size=group_size)[1]


def wedges() -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Double roots of h by log odds z: there beta = d psi_G / dz, and logit pi_ref = z - psi_G / beta.

    And the greatest such beta, the cusp, beyond which there is one root whatever pi_ref.
    """
    z = jnp.linspace(0.05, 16, 800)
    lines = []
    for group in WEDGES:
        psi, slope = jax.vmap(jax.value_and_grad(lambda y, size=int(group): drive(y, group_size=size)))(z)
        lines.append([slope, z - psi / slope])
    beta, z_ref = np.moveaxis(np.array(lines), 1, 0)
    cusps = np.array([cusp(int(size)) for size in WEDGES])
    found = {"fold_beta": (("wedge", "z"), beta), "fold_reference": (("wedge", "z"), z_ref)}
    return found | {"cusp": (("wedge",), cusps)}
