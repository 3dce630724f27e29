"""Two reward levels: every stationary policy of GRPO lies on ``beta (pi - pi_ref) = phi_G(pi)``.

pi is the total probability of the better level. Groups of two give (14) of [A], G -> inf gives (15).

References: [A] Vojnovic & Yun, arXiv:2502.18548.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from grpo_jax.theory.checks import as_floats, check_group_size, check_nonnegative, check_probability, concrete
from grpo_jax.theory.counts import bernstein
from grpo_jax.theory.roots import increasing_root


def preference_gap(p: ArrayLike, q: ArrayLike | None = None, *, group_size: float) -> Array:
    """``psi_G(p) = phi_G(p) / (p (1 - p)) = P_G(better | p) - P_G(worse | p)``.

    ``psi_G(p) = (G - 1) E_{J ~ Bin(G - 2, p)} 1 / sqrt((J + 1)(G - 1 - J))``: finite, sqrt(G - 1) at both
    ends; its limit for G -> inf, 1 / sqrt(p (1 - p)), is not.

    Args:
      p: [...] probability of the better level.
      q: [...] 1 - p, where the caller knows it more accurately.
      group_size: G >= 2 or ``math.inf``.

    Returns:
      [...] the gap; 1 for G = 2, sqrt(2) for G = 3, whatever p.
    """
    check_group_size(group_size)
    return _preference_gap(*_complement(p, q), group_size)


@functools.partial(jax.jit, static_argnums=2)
def _preference_gap(p: Array, q: Array, group_size: float) -> Array:
    if math.isinf(group_size):
        return 1 / jnp.sqrt(p * q)
    k = np.arange(1, group_size)
    return bernstein(jnp.asarray((group_size - 1) / np.sqrt(k * (group_size - k)), p.dtype), p, q)


def phi(p: ArrayLike, q: ArrayLike | None = None, *, group_size: float) -> Array:
    """``phi_G(p) = (1/G) E_{K ~ Bin(G, p)} sqrt(K (G - K))``, the drive of GRPO on two reward levels.

    phi_2 = p (1 - p), phi_inf = sqrt(p (1 - p)), phi_G'(0) = sqrt(G - 1). Concave in p, increasing in G.

    Args:
      p, q, group_size: as in `preference_gap`.

    Returns:
      [...] phi.

    >>> float(phi(0.25, group_size=2))
    0.1875
    """
    p, q = _complement(p, q)
    if math.isinf(group_size):
        return jnp.sqrt(p * q)
    return p * q * preference_gap(p, q, group_size=group_size)


def stationary_pair(reference: ArrayLike, beta: ArrayLike, gamma: ArrayLike = 1.0) -> Array:
    """Groups of two, two answers: the stationary probability of answer a, equation (14) of [A].

    ``pi(a) = (1 - b + sqrt((1 - b)^2 + 4 b pi_ref(a))) / 2``, b = beta / gamma, gamma = P(a > b) - P(b > a).

    Args:
      reference: [...] pi_ref(a) in [0, 1]; 0 is read as the limit from above: max(0, 1 - b), see `jumps`.
      beta: [...] penalty in [0, inf].
      gamma: [...] in [-1, 1]; negative gamma exchanges the answers, a tie (0) gives pi_ref(a), whatever beta.

    Returns:
      [...] pi(a). Values outside the ranges raise ValueError when concrete.

    >>> float(stationary_pair(0.25, 1.0))
    0.5
    """
    check_probability("reference", reference)
    check_nonnegative("beta", beta)
    if concrete(gamma) and np.any(~(np.abs(np.asarray(gamma)) <= 1)):
        raise ValueError(f"gamma is a difference of probabilities and must lie in [-1, 1], got {gamma}")
    return _stationary_pair(*as_floats(reference, beta, gamma))


@jax.jit
def _stationary_pair(reference: Array, beta: Array, gamma: Array) -> Array:
    ref = jnp.where(gamma < 0, 1 - reference, reference)
    strength = abs(gamma)
    strong = strength >= beta
    b = jnp.where(strong, beta, 0.0) / jnp.where(strong & (strength > 0), strength, 1.0)
    low = 0.5 * (1 - b + jnp.sqrt((1 - b) ** 2 + 4 * b * ref))
    t = jnp.where(strong, 0.0, strength) / jnp.where(strong, 1.0, beta)
    high = 2 * ref / (1 - t + jnp.sqrt((1 - t) ** 2 + 4 * t * ref))
    better = jnp.where(gamma == 0, ref, jnp.where(strong, low, high))
    return jnp.where(gamma < 0, 1 - better, better)


def stationary_large_group(reference: ArrayLike, beta: ArrayLike) -> Array:
    """Large groups, two deterministic reward levels: equation (15) of [A].

    ``pi = (2 b^2 r + 1 + sqrt(1 + 4 b^2 r (1 - r))) / (2 (1 + b^2))``, b = beta, r = pi_ref; it solves
    ``beta (pi - pi_ref) = sqrt(pi (1 - pi))``, (19), whose radical the stored text lost.

    Args:
      reference: [...] pi_ref of the better level in [0, 1]; 0 is read as the limit from above, 1 / (1 + b^2).
      beta: [...] penalty in [0, inf]; 0 gives 1, inf gives pi_ref.

    Returns:
      [...] pi of the better level. Values outside the ranges raise ValueError when concrete.
    """
    check_probability("reference", reference)
    check_nonnegative("beta", beta)
    return _stationary_large_group(*as_floats(reference, beta))


@jax.jit
def _stationary_large_group(reference: Array, beta: Array) -> Array:
    small = beta <= 1
    s = jnp.where(small, beta, 0.0) ** 2
    t = (1 / jnp.where(small, 1.0, beta)) ** 2
    spread = reference * (1 - reference)
    low = (2 * s * reference + 1 + jnp.sqrt(1 + 4 * s * spread)) / (2 * (1 + s))
    high = (2 * reference + t + jnp.sqrt(jnp.where(small, 1.0, t * (t + 4 * spread)))) / (2 * (1 + t))
    return jnp.where(small, low, high)


def lower_bound(reference: ArrayLike, beta: ArrayLike, *, group_size: float, gamma: ArrayLike = 1.0) -> Array:
    """The bounds that [A] states with (14) and (15).

    ``max(1 - beta / gamma, pi_ref)`` for pairs and ``max(1 / (1 + beta^2), pi_ref)`` for large groups.

    Args:
      reference, beta: [...] as in `stationary_pair`.
      group_size: 2 or ``math.inf``; other sizes have no bound in [A] and raise ValueError.
      gamma: [...] > 0, for pairs.

    Returns:
      [...] the bound.
    """
    reference, beta, gamma = as_floats(reference, beta, gamma)
    if group_size == 2:
        return jnp.maximum(1 - beta / gamma, reference)
    if math.isinf(group_size):
        return jnp.maximum(1 / (1 + beta**2), reference)
    raise ValueError(f"bounds are known for groups of 2 and inf, not {group_size}")


def jumps(beta: ArrayLike, *, group_size: float) -> Array:
    """Whether pi jumps at pi_ref = 0: iff ``beta < phi_G'(0) = sqrt(G - 1)``. beta [...]; bool [...]."""
    check_group_size(group_size)
    return jnp.asarray(beta) < math.sqrt(group_size - 1)


def stationary_binary(reference: ArrayLike, beta: ArrayLike, *, group_size: float) -> Array:
    """The stationary probability of the better of two reward levels, for any group size.

    The root of ``beta (pi - pi_ref) = phi_G(pi)`` in [pi_ref, 1]. phi_G is concave, so the root with pi > 0
    is unique; at pi_ref = 0 and beta < sqrt(G - 1) zero is a second root and the limit from above is
    returned, see `jumps`.

    Args:
      reference: [...] pi_ref of the better level, in [0, 1].
      beta: [...] penalty in [0, inf]; 0 gives 1, inf gives pi_ref. Broadcasts against reference.
      group_size: G >= 2 or ``math.inf``.

    Returns:
      [...] pi. Its equation ``min(1, beta)(pi - pi_ref) = phi_G / max(1, beta)`` holds to a few ulps.
      Differentiable in reference and beta by the implicit function theorem. Values outside the ranges raise
      ValueError when concrete.

    >>> bool(abs(stationary_binary(0.25, 1.0, group_size=2) - 0.5) < 1e-6)
    True
    """
    check_group_size(group_size)
    check_probability("reference", reference)
    check_nonnegative("beta", beta)
    if math.isinf(group_size):
        return stationary_large_group(reference, beta)
    return _stationary_binary(*jnp.broadcast_arrays(*as_floats(reference, beta)), int(group_size))


@functools.partial(jax.jit, static_argnums=2)
def _stationary_binary(reference: Array, beta: Array, group_size: int) -> Array:
    push, pull = 1 / jnp.maximum(1.0, beta), jnp.minimum(1.0, beta)

    def defect(x: Array) -> Array:
        return pull * (x - reference) - push * phi(x, group_size=group_size)

    return increasing_root(defect, reference, jnp.ones_like(reference))


def _complement(p: ArrayLike, q: ArrayLike | None) -> tuple[Array, Array]:
    (p,) = as_floats(p)
    if q is None:
        return p, 1 - p
    p, q = jnp.broadcast_arrays(*as_floats(p, q))
    return p, q
