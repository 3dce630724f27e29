"""GRPO with the direct KL penalty: every fixed point of a binary question, and which of them attract.

With the k3 estimate multiplied by the importance ratio the penalty is KL(pi || pi_ref), and a stationary
policy is ``pi(o) = pi_ref(o) exp(P_G(o | pi) / beta) / Z`` ([A], section 5); solve it by `pooled_point`. On
two reward levels the log odds z of the better one move under training with the sign of

    h(z) = psi_G(z) / beta - z + z_ref,       psi_G = phi_G / (p (1 - p)).

psi_G grows in |z| from its minimum at z = 0 to sqrt(G - 1), so h has one or three zeros for every finite G:
the outer two attract and the middle one separates their basins. For G -> inf psi = 2 cosh(z / 2), the upper
attractor moves to certainty, and h has two zeros or none. [A] calls both of them maximisers; the upper one
repels.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from grpo_jax.theory.binary import preference_gap
from grpo_jax.theory.checks import (
    as_floats,
    check_group_size,
    check_positive,
    check_probability,
)
from grpo_jax.theory.roots import increasing_root


class Roots(NamedTuple):
    """Fixed points of the direct-KL dynamics as probabilities of the better level; NaN where absent.

    low: [...] the attractor near pi_ref.
    middle: [...] repels, and separates the basins.
    high: [...] the attractor near certainty; exactly 1 for infinite groups.
    number: [...] interior fixed points: 1 or 3; 0 or 2 for infinite groups.
    log_odds: [..., 3] of the three, where 1 - p would be lost in rounding.
    """

    low: Array
    middle: Array
    high: Array
    number: Array
    log_odds: Array


class Bifurcations(NamedTuple):
    """Where two fixed points are born: log odds ``z_low <= z_high`` of the double roots and pi_ref there.

    Three roots iff ``reference_high < pi_ref < reference_low`` (log odds alike); the policy drops off the
    lower branch as pi_ref rises past reference_low, and the upper branch exists above reference_high.
    """

    z_low: Array
    z_high: Array
    logit_reference_low: Array
    logit_reference_high: Array


def stationary_pair_direct(reference: ArrayLike, beta: ArrayLike, gamma: ArrayLike = 1.0) -> Array:
    """Groups of two with the direct KL penalty: ``pi(a) ~ pi_ref(a) e^{gamma / 2 beta}`` (Figure 3 of [A]).

    Args:
      reference: [...] pi_ref(a) in [0, 1]; 0 and 1 stay where they are: no jump.
      beta: [...] penalty in (0, inf].
      gamma: [...] P(a > b) - P(b > a).

    Returns:
      [...] pi(a), NLHF's at beta / 2.
    """
    check_probability("reference", reference)
    check_positive("beta", beta, "the limit is the better answer")
    return _pair_direct(*as_floats(reference, beta, gamma))


@jax.jit
def _pair_direct(reference: Array, beta: Array, gamma: Array) -> Array:
    tilt = gamma / beta
    up, down = reference * jnp.exp(jnp.minimum(tilt, 0)), (1 - reference) * jnp.exp(-jnp.maximum(tilt, 0))
    return up / (up + down)


def drive(log_odds: ArrayLike, *, group_size: float) -> Array:
    """``psi_G`` at log odds z: even, least at 0, sqrt(G - 1) at both ends; 2 cosh(z/2) as G -> inf. [...]."""
    return _drive(*as_floats(log_odds), group_size)


@functools.partial(jax.jit, static_argnums=1)
def _drive(z: Array, group_size: float) -> Array:
    if math.isinf(group_size):
        return 2 * jnp.cosh(z / 2)
    return preference_gap(jax.nn.sigmoid(z), jax.nn.sigmoid(-z), group_size=group_size)


def odds_velocity(p: ArrayLike, reference: ArrayLike, beta: ArrayLike, *, group_size: float) -> Array:
    """``h(p) = psi_G(p) / beta - logit p + logit pi_ref``: under training p moves with the sign of h.

    Args:
      p, reference: [...] in (0, 1).
      beta: [...] > 0.
      group_size: G >= 2 or ``math.inf``, for which this is h(x) of [A], Section 5.

    Returns:
      [...].
    """
    p, reference, beta = as_floats(p, reference, beta)
    gap = preference_gap(p, group_size=group_size)
    return gap / beta - jax.scipy.special.logit(p) + jax.scipy.special.logit(reference)


def _slope(z: Array, group_size: float) -> Array:
    """d psi / dz; its derivative in turn comes from autodiff of the polynomial, exactly."""
    return jax.jvp(lambda y: drive(y, group_size=group_size), (z,), (jnp.ones_like(z),))[1]


def critical_point(*, group_size: int) -> tuple[Array, Array]:
    """The cusp of the phase diagram: ``beta_c(G) = max_z d psi_G / dz`` and the log odds of that slope.

    For beta >= beta_c there is one fixed point for every pi_ref. beta_c = 0 for G = 2 and 3 (psi is
    constant), and inf for infinite groups (ValueError here).

    Returns:
      (z, beta_c), scalars.
    """
    check_group_size(group_size)
    if math.isinf(group_size):
        raise ValueError("an infinite group has two branches for every beta: there is no critical point")
    return _critical_point(int(group_size))


@functools.partial(jax.jit, static_argnums=0)
def _critical_point(group_size: int) -> tuple[Array, Array]:
    top = jnp.asarray(2 * math.log(group_size) + 5)
    if group_size < 4:
        return jnp.zeros_like(top), jnp.zeros_like(top)

    def bend(z: Array) -> Array:
        return -jax.jvp(lambda y: _slope(y, group_size), (z,), (jnp.ones_like(z),))[1]

    z = increasing_root(bend, jnp.zeros_like(top), top)
    return z, _slope(z, group_size)


def bifurcations(beta: ArrayLike, *, group_size: float) -> Bifurcations:
    """The boundaries of the region with several fixed points: double roots of h, ``d psi_G / dz = beta``.

    Args:
      beta: [...] in (0, inf).
      group_size: G >= 2 or ``math.inf``: then z_low = 2 asinh(beta), the x* of [A], and z_high = inf.

    Returns:
      `Bifurcations` of [...] arrays; above beta_c(G) both coincide at the cusp's z and bound nothing.
    """
    check_group_size(group_size)
    check_positive("beta", beta, "without a penalty the better answer takes all")
    return _bifurcations(*as_floats(beta), group_size)


@functools.partial(jax.jit, static_argnums=1)
def _bifurcations(beta: Array, group_size: float) -> Bifurcations:
    if math.isinf(group_size):
        z_low, z_high = 2 * jnp.arcsinh(beta), jnp.full_like(beta, jnp.inf)
        return Bifurcations(z_low, z_high, z_low - drive(z_low, group_size=math.inf) / beta, -z_high)
    peak, critical = critical_point(group_size=int(group_size))
    peak = jnp.full_like(beta, peak)
    end = peak + 4 * math.log(group_size) + jnp.maximum(0.0, -jnp.log(beta)) + 5
    several = beta < critical
    safe = jnp.where(several, beta, 0.5 * critical)

    z_low = increasing_root(lambda z: _slope(z, group_size) - safe, jnp.zeros_like(beta), peak)
    z_high = increasing_root(lambda z: safe - _slope(z, group_size), peak, end)
    z_low, z_high = jnp.where(several, z_low, peak), jnp.where(several, z_high, peak)
    return Bifurcations(z_low, z_high, *(z - drive(z, group_size=group_size) / beta for z in (z_low, z_high)))


def direct_roots(reference: ArrayLike, beta: ArrayLike, *, group_size: float) -> Roots:
    """All fixed points of the direct-KL dynamics on two reward levels.

    Args:
      reference: [...] pi_ref of the better level, in (0, 1): 0 and 1 stay where they are and are ValueErrors
        here.
      beta: [...] penalty in (0, inf). Broadcasts against reference.
      group_size: G >= 2 or ``math.inf``.

    Returns:
      `Roots`. A lone root is `low` if it lies below the cusp's log odds, or if G < 4, and `high` otherwise.

    >>> int(direct_roots(0.5, 0.2, group_size=2).number)
    1
    """
    check_probability("reference", reference)
    check_positive("reference", reference, "a policy that never answers right has no finite log odds")
    check_positive("1 - reference", 1 - jnp.asarray(reference), "a certain policy has no finite log odds")
    check_positive("beta", beta, "without a penalty the better answer takes all")
    check_group_size(group_size)
    return _direct_roots(*jnp.broadcast_arrays(*as_floats(reference, beta)), group_size)


@functools.partial(jax.jit, static_argnums=2)
def _direct_roots(reference: Array, beta: Array, group_size: float) -> Roots:
    z_ref = jax.scipy.special.logit(reference)
    fold = bifurcations(beta, group_size=group_size)
    if math.isinf(group_size):
        return _infinite(z_ref, beta, fold)
    return _finite(z_ref, beta, fold, int(group_size))


def _finite(z_ref: Array, beta: Array, fold: Bifurcations, group_size: int) -> Roots:
    def ascent(z: Array) -> Array:
        return z - drive(z, group_size=group_size) / beta - z_ref

    top = jnp.maximum(fold.z_high, z_ref + math.sqrt(group_size - 1) / beta)
    if group_size < 4:
        log_odds = [increasing_root(ascent, z_ref, top)] + [jnp.full_like(z_ref, jnp.nan)] * 2
    else:
        has_low, has_high = fold.logit_reference_low > z_ref, fold.logit_reference_high <= z_ref
        log_odds = [
            jnp.where(has_low, increasing_root(ascent, jnp.minimum(z_ref, fold.z_low), fold.z_low), jnp.nan),
            jnp.where(
                has_low & has_high, increasing_root(lambda z: -ascent(z), fold.z_low, fold.z_high), jnp.nan
            ),
            jnp.where(has_high, increasing_root(ascent, fold.z_high, top), jnp.nan),
        ]
    z = jnp.stack(log_odds, -1)
    low, middle, high = (jax.nn.sigmoid(root) for root in log_odds)
    return Roots(low, middle, high, jnp.sum(~jnp.isnan(z), -1), z)


def _infinite(z_ref: Array, beta: Array, fold: Bifurcations) -> Roots:
    def ascent(z: Array) -> Array:
        return z - 2 * jnp.cosh(z / 2) / beta - z_ref

    two = fold.logit_reference_low > z_ref
    low = increasing_root(ascent, jnp.minimum(z_ref, fold.z_low), fold.z_low)
    end = fold.z_low + 2 * jnp.log1p(beta * (2 + abs(z_ref) + fold.z_low)) + 4
    middle = increasing_root(lambda z: -ascent(z), fold.z_low, end)
    low, middle = jnp.where(two, low, jnp.nan), jnp.where(two, middle, jnp.nan)
    high = jnp.full_like(z_ref, jnp.inf)
    z = jnp.stack([low, middle, high], -1)
    return Roots(jax.nn.sigmoid(low), jax.nn.sigmoid(middle), jnp.ones_like(z_ref), 2 * two.astype(int), z)
