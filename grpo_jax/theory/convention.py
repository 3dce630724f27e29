"""Conventions move the fixed point: ddof 1 and an added constant are another penalty (A10, A11).

A convention replaces phi_G by phi_G^c on two reward levels, ``beta (pi - pi_ref) = phi_G^c(pi)``, so at pi it
acts like the paper's rule with an effective penalty ``beta phi_G(pi) / phi_G^c(pi)``.
"""

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from grpo_jax.theory.binary import preference_gap
from grpo_jax.theory.checks import as_floats, check_group_size, check_positive, check_probability
from grpo_jax.theory.counts import bernstein
from grpo_jax.theory.preferences import PAPER, Convention
from grpo_jax.theory.roots import increasing_root

LIBRARIES: Mapping[str, Convention] = MappingProxyType(
    {
        "paper": PAPER,
        "trl": Convention(ddof=1, added=1e-4),
        "verl": Convention(ddof=1, added=1e-6),
        "dr_grpo_authors": Convention(ddof=1, added=1e-8),
        "openrlhf": Convention(ddof=1, added=1e-9),
    }
)


def convention_gap(p: ArrayLike, gap: ArrayLike = 1.0, *, group_size: float, convention: Convention) -> Array:
    """``psi_G^c(p)``: the expected advantage of the better level minus that of the worse, under a convention.

    ``psi = (G - 1) sum_j Bin(j | G - 2, p) gap / (G d_k)``, with k = j + 1 members on the better level and
    ``d_k = (gap sqrt(k (G - k) / (G (G - ddof))) + added)^power``.

    Args:
      p: [...] probability of the better level.
      gap: difference of the two rewards, > 0, a scalar.
      group_size: G >= 2 or ``math.inf``.
      convention: the divisor.

    Returns:
      [...].
    """
    check_group_size(group_size)
    check_probability("p", p)
    check_positive("gap", gap, "without a gap there is no better level")
    p, gap, *numbers = as_floats(p, gap, *convention)
    return _convention_gap(p, gap, Convention(*numbers), group_size)


@functools.partial(jax.jit, static_argnums=3)
def _convention_gap(p: Array, gap: Array, convention: Convention, group_size: float) -> Array:
    ddof, added = convention.ddof, convention.added
    if math.isinf(group_size):
        return gap / (gap * jnp.sqrt(p * (1 - p)) + added) ** convention.power
    k = np.arange(1, int(group_size))
    spread = jnp.sqrt(k * (group_size - k) / (group_size * (group_size - ddof)))
    divisor = (gap * spread + added) ** convention.power
    share = (group_size - 1) / group_size
    return bernstein(share * gap / divisor, p, 1 - p)


def effective_beta(
    beta: ArrayLike, p: ArrayLike, gap: ArrayLike = 1.0, *, group_size: float, convention: Convention
) -> Array:
    """The penalty at which the paper's rule (ddof 0, nothing added) gives the same drive at policy p.

    ``beta psi_G(p) / psi_G^c(p)``: ``beta sqrt(G / (G - 1))`` for ddof 1 without a constant, whatever p and
    gap; with a constant it depends on the gap, and on p for G > 2. The stationary policy of the convention at
    beta is the paper's at this value taken at that policy.

    Args:
      beta: [...] the penalty set in the library.
      p: [...] probability of the better level.
      gap, group_size, convention: as in `convention_gap`.

    Returns:
      [...]. An infinite group at p = 0 or 1 with a constant gives inf: there the constant rules.
    """
    ours = convention_gap(p, gap, group_size=group_size, convention=convention)
    return jnp.asarray(beta) * preference_gap(p, group_size=group_size) / ours


def stationary_binary_convention(
    reference: ArrayLike, beta: ArrayLike, gap: ArrayLike = 1.0, *, group_size: int, convention: Convention
) -> Array:
    """The better level's stationary probability under a convention: ``beta (pi - pi_ref) = phi_G^c(pi)``.

    Args:
      reference: [...] pi_ref of the better level in [0, 1]; 0 is read as the limit from above.
      beta: [...] penalty in (0, inf).
      gap, group_size, convention: as in `convention_gap`, group_size finite.

    Returns:
      [...].
    """
    check_probability("reference", reference)
    check_positive("beta", beta, "without a penalty the better level takes all")
    check_positive("gap", gap, "without a gap there is no better level")
    check_group_size(group_size)
    reference, beta = jnp.broadcast_arrays(*as_floats(reference, beta))
    return _stationary_convention(reference, beta, gap, convention, int(group_size))


@functools.partial(jax.jit, static_argnums=4)
def _stationary_convention(
    reference: Array, beta: Array, gap: Array, convention: Convention, group_size: int
) -> Array:
    def defect(x: Array) -> Array:
        drive = x * (1 - x) * convention_gap(x, gap, group_size=group_size, convention=convention)
        return (beta * (x - reference) - drive) / jnp.maximum(1.0, beta)

    return increasing_root(defect, reference, jnp.ones_like(reference))


def effective_penalty_binary(
    beta: ArrayLike, p: ArrayLike, gap: ArrayLike = 1.0, *, group_size: float
) -> Array:
    """Two levels: the penalty with which shift-only advantages would be stationary where GRPO is (A10).

    ``beta gap (1 - 1/G) / psi_G(p)``: beta gap sqrt(p (1 - p)) for large groups, but never below
    ``beta gap sqrt(G - 1) / G`` for finite ones: concentration stops lowering it.

    Args:
      beta, p: [...] the penalty and the probability of the better level.
      gap: difference of the two rewards.
      group_size: G >= 2 or ``math.inf``.

    Returns:
      [...].
    """
    share = 1.0 if math.isinf(group_size) else 1 - 1 / group_size
    return jnp.asarray(beta) * jnp.asarray(gap) * share / preference_gap(p, group_size=group_size)
