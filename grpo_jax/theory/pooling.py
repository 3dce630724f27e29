"""What GRPO is compared with: logarithmic pooling (RLHF, NLHF, shift-only GRPO) and the effective penalty.

References: [A] Vojnovic & Yun, arXiv:2502.18548.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from grpo_jax.theory.checks import (
    as_floats,
    check_antisymmetric,
    check_distribution,
    check_group_size,
    check_nonnegative,
    check_positive,
)
from grpo_jax.theory.preferences import Preference, Rewards, table_preference
from grpo_jax.theory.roots import Flow, relax
from grpo_jax.theory.stationary import FixedPoint, conclude

ZERO_BETA = "the limit of zero penalty is a game's equilibrium and need not be unique"


def rlhf(reference: ArrayLike, rewards: ArrayLike, beta: ArrayLike) -> Array:
    """RLHF: ``pi(o) = pi_ref(o) exp(r(o) / beta) / Z``, (4) of [A].

    Args:
      reference: [..., K] pi_ref.
      rewards: [..., K] expected rewards.
      beta: [...] penalty in [0, inf]; 0 gives the limit: pi_ref restricted to the best outputs it supports.

    Returns:
      [..., K]. Values outside the ranges raise ValueError when concrete.

    >>> rlhf([0.5, 0.5], [1.0, 0.0], 0.0).tolist()
    [1.0, 0.0]
    """
    check_distribution("reference", reference)
    check_nonnegative("beta", beta)
    return _rlhf(*as_floats(reference, rewards, beta))


@jax.jit
def _rlhf(reference: Array, rewards: Array, beta: Array) -> Array:
    beta = beta[..., None]
    best = jnp.max(jnp.where(reference > 0, rewards, -jnp.inf), -1, keepdims=True)
    deficit = jnp.where(reference > 0, best - rewards, 0.0)
    tilt = jnp.where(deficit > 0, jnp.exp(-deficit / jnp.where(beta > 0, beta, 1.0)), 1.0)
    tilt = jnp.where((beta == 0) & (deficit > 0), 0.0, tilt)
    weight = reference * tilt
    return weight / weight.sum(-1, keepdims=True)


def shift_only_direct(
    reference: ArrayLike, rewards: ArrayLike, beta: ArrayLike, *, group_size: float
) -> Array:
    """Shift-only advantages with the direct KL penalty: RLHF's policy at ``beta G / (G - 1)`` (A9).

    The group mean contains the output's own reward, so the expected preference is
    ``(1 - 1/G)(E_pi r - E_{pi_old} r)``; leave-one-out removes the factor: take ``group_size=math.inf``.

    Args:
      reference, rewards, beta: as in `rlhf`.
      group_size: G >= 2 or ``math.inf``.

    Returns:
      [..., K].
    """
    check_group_size(group_size)
    factor = 1.0 if math.isinf(group_size) else group_size / (group_size - 1)
    return rlhf(reference, rewards, jnp.asarray(beta) * factor)


def pooled_point(
    preference: Preference,
    reference: ArrayLike,
    beta: ArrayLike,
    *,
    start: ArrayLike | None = None,
    max_steps: int = 1000,
) -> FixedPoint:
    """Solve ``pi(o) = pi_ref(o) exp(P(o | pi) / beta) / Z``: log pooling whose preference depends on pi.

    Args:
      preference: maps a policy [K] to a preference [K], up to a constant; may close over traced numbers.
      reference: [K] pi_ref; pi(o) = 0 where pi_ref(o) = 0.
      beta: penalty in (0, inf]; inf gives pi_ref, 0 is a ValueError.
      start: [K] policy to follow the flow ``d log pi/dt = P - beta log(pi / pi_ref) - mean`` from; by default
        half way between pi_ref and uniform. Group preferences can have several fixed points: this decides
        which is found.
      max_steps: iterations before giving up.

    Returns:
      `FixedPoint`; its residual is the largest difference of the two sides. Differentiable like
      `fixed_point`.
    """
    check_distribution("reference", reference)
    check_positive("beta", beta, ZERO_BETA)
    reference, beta = as_floats(reference, beta)
    alive = reference > 0
    push, pull = 1 / jnp.maximum(1.0, beta), jnp.minimum(1.0, beta)
    smallest = jnp.finfo(reference.dtype).tiny

    def field(policy: Array) -> Array:
        log_odds = jnp.log(jnp.maximum(policy, smallest)) - jnp.log(jnp.where(alive, reference, 1.0))
        force = jnp.where(alive, push * preference(policy) - pull * log_odds, 0.0)
        mass = policy.sum()
        return jnp.where(alive, policy * (force - policy @ force / mass + 1 - mass), -policy)

    first = 0.5 * (reference + alive / alive.sum()) if start is None else as_floats(start, reference)[0]
    policy, flow = relax(field, jax.lax.stop_gradient(jnp.where(alive, first, 0.0)), max_steps=max_steps)
    policy = policy / policy.sum()
    pooled = jax.nn.softmax(jnp.where(alive, jnp.log(reference), -jnp.inf) + preference(policy) / beta)
    return conclude(policy, Flow(jnp.max(abs(pooled - policy)), flow.steps))


def nlhf(
    reference: ArrayLike, payoffs: ArrayLike, beta: ArrayLike, *, start: ArrayLike | None = None
) -> FixedPoint:
    """NLHF: ``pi(o) = pi_ref(o) exp(E_{o'~pi} P(o > o') / beta) / Z``, the regularised game's equilibrium.

    Args:
      reference: [K] pi_ref.
      payoffs: [K, K] antisymmetric ``P(o > o') - P(o' > o)``; then P(o > o') = (1 + payoff) / 2, ties one
        half.
      beta: penalty in (0, inf].
      start: see `pooled_point`.

    Returns:
      `FixedPoint`. Equal to GRPO's with groups of two and a direct KL penalty of 2 beta.
    """
    check_distribution("reference", reference)
    check_positive("beta", beta, ZERO_BETA)
    check_antisymmetric(payoffs)
    reference, payoffs, beta = as_floats(reference, payoffs, beta)
    return _nlhf(reference, payoffs, beta, None if start is None else as_floats(start)[0])


@jax.jit
def _nlhf(reference: Array, payoffs: Array, beta: Array, start: Array | None) -> FixedPoint:
    preference = table_preference(payoffs)
    return pooled_point(lambda policy: preference(policy) / 2, reference, beta, start=start)


def reward_spread(policy: ArrayLike, rewards: Rewards) -> Array:
    """The total spread ``sigma(pi)`` of the reward under a policy, noise within outputs included.

    Policy [K]; a scalar.
    """
    policy, levels, probs = as_floats(policy, *rewards)
    marginals = policy @ probs
    centred = levels - levels[jnp.argmax(marginals)]
    centred = centred - marginals @ centred
    return jnp.sqrt(marginals @ centred**2)


def effective_penalty(policy: ArrayLike, rewards: Rewards, beta: ArrayLike) -> Array:
    """Large groups: dividing by sigma is a penalty of ``beta sigma(pi)`` on shift-only advantages (A10).

    Args:
      policy: [K].
      rewards: `Rewards`.
      beta: the penalty.

    Returns:
      A scalar, 0 at a policy of one deterministic reward. For finite groups and two levels see
      `effective_penalty_binary`: it does not vanish.
    """
    return jnp.asarray(beta) * reward_spread(policy, rewards)
