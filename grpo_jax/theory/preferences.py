"""The group preference ``P_G(o | pi)``: GRPO's expected advantage of an output, exactly.

``P_G(o | pi_old) = E[A_1]`` with o_1 = o and the rest of the group drawn from pi_old, A = (r - mean) / spread
and 0/0 = 0 ([A], section 3). The group enters through its reward levels only, so the expectation is a sum
over histograms of G - 1 draws over L levels: C(G + L - 2, L - 1) terms instead of K^(G - 1).

On-policy ``sum_o pi(o) P_G(o | pi) = 0`` exactly, because advantages in a group sum to zero.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from grpo_jax.theory.checks import (
    as_floats,
    check_antisymmetric,
    check_distribution,
    check_group_size,
    concrete,
)
from grpo_jax.theory.counts import MAX_HISTOGRAMS, histograms, multinomial_weights

Preference = Callable[[Array], Array]


class Rewards(NamedTuple):
    """K actions over L reward levels: ``levels`` [L], and ``probs`` [K, L], whose rows sum to one."""

    levels: Array
    probs: Array


class Convention(NamedTuple):
    """What divides the centred reward: ``(spread(ddof) + added) ** power``.

    The papers: (0, 0, 1). Libraries: ddof 1 and a small ``added``. Shift-only methods: power 0.
    """

    ddof: ArrayLike = 0.0
    added: ArrayLike = 0.0
    power: ArrayLike = 1.0


PAPER = Convention()


def reward_table(values: ArrayLike, probs: ArrayLike | None = None) -> Rewards:
    """Rewards of K actions as one list of levels.

    Args:
      values: [K] deterministic rewards, or [K, M] the values that each action's reward may take.
      probs: [K, M] their probabilities; rows must sum to one.

    Returns:
      `Rewards`. Equal concrete values are merged into one level, which keeps histograms few; traced values
      are not, so that one can differentiate in them. Non-finite values and improper rows raise ValueError.

    >>> reward_table([1.0, 0.0, 1.0]).levels.tolist()
    [0.0, 1.0]
    """
    shape = np.shape(values)
    if probs is None:
        if len(shape) != 1:
            raise ValueError(f"values must be [K] without probs, got shape {shape}")
        cells: ArrayLike = np.eye(shape[0])
    else:
        if len(shape) != 2 or np.shape(probs) != shape:
            raise ValueError(f"values and probs must share a shape [K, M], got {shape} and {np.shape(probs)}")
        check_distribution("probs", probs)
        xp: Any = np if concrete(probs) else jnp
        cells = (np.eye(shape[0])[:, :, None] * xp.asarray(probs)[:, None, :]).reshape(shape[0], -1)
    if not concrete(values):
        return Rewards(jnp.ravel(values), as_floats(cells)[0])
    flat = np.ravel(np.asarray(values, np.float64))
    if not np.all(np.isfinite(flat)):
        raise ValueError(f"rewards must be finite, got {values}")
    levels, member = np.unique(flat, return_inverse=True)
    merge = np.eye(levels.size)[member.ravel()]
    return Rewards(jnp.asarray(levels, float), jnp.asarray(cells @ merge, float))


def histogram_advantages(counts: Array, levels: Array, convention: Convention = PAPER) -> Array:
    """Advantage of each level inside each group, given how often the levels occur.

    ``A_l = (v_l - mean) / (spread + added)^power``, computed after dividing by the range, so that rewards of
    1e30 and of 1e-30 are fine. A group of equal rewards gives exactly 0, whatever the convention.

    Args:
      counts: [H, L] histograms of groups, with row sums G > ddof.
      levels: [L] rewards.
      convention: the divisor.

    Returns:
      [H, L]; entries of absent levels are what a member of that level would get from the present mean and
      spread.
    """
    n = counts.astype(levels.dtype)
    size = n.sum(-1, keepdims=True)
    present = counts > 0
    top = jnp.max(jnp.where(present, levels, -jnp.inf), -1, keepdims=True)
    bottom = jnp.min(jnp.where(present, levels, jnp.inf), -1, keepdims=True)
    tied = top == bottom
    span = jnp.where(tied, 1.0, top - bottom)
    scaled = (levels - bottom) / span
    centred = scaled - (n * scaled).sum(-1, keepdims=True) / size
    variance = (n * centred**2).sum(-1, keepdims=True) / (size - convention.ddof)
    divisor = (jnp.sqrt(jnp.where(tied, 1.0, variance)) + convention.added / span) ** convention.power
    return jnp.where(tied, 0.0, centred * span ** (1 - convention.power) / divisor)


def member_advantages(
    levels: Array, *, group_size: int, convention: Convention = PAPER, max_histograms: int = MAX_HISTOGRAMS
) -> Array:
    """``A_l(n + e_l)``: what a member of level l gets in a group whose other G - 1 members have histogram n.

    Args:
      levels: [L] rewards.
      group_size, convention, max_histograms: as in `group_preference`, group_size finite.

    Returns:
      [L, H].
    """
    others = histograms(group_size - 1, levels.size, max_histograms)

    def of(level: Array) -> Array:
        return histogram_advantages(jnp.asarray(others).at[:, level].add(1), levels, convention)[:, level]

    return jax.lax.map(of, jnp.arange(levels.size))


def preference_of(
    rewards: Rewards,
    *,
    group_size: float,
    convention: Convention = PAPER,
    max_histograms: int = MAX_HISTOGRAMS,
) -> Preference:
    """The map ``pi -> P_G(. | pi)``, with what no policy changes computed once.

    Policies and preferences are [K].

    ``P_G(o | pi) = sum_l P(l | o) sum_n Mult(n | G - 1, q) A_l(n + e_l)``, q the levels' marginals under pi.
    The arguments are those of `group_preference`.
    """
    levels, probs = as_floats(*rewards)
    if math.isinf(group_size):
        return lambda policy: large_group_preference(policy, Rewards(levels, probs), convention=convention)
    size = int(group_size)
    table = member_advantages(levels, group_size=size, convention=convention, max_histograms=max_histograms)
    others = histograms(size - 1, levels.size, max_histograms)

    def preference(policy: Array) -> Array:
        _require_fit(policy, levels, probs)
        weights = multinomial_weights(others, size - 1, policy / policy.sum() @ probs)
        return probs @ (table @ weights)

    return preference


def _require_fit(policy: Array, levels: Array, probs: Array) -> None:
    if probs.shape != (policy.size, levels.size):
        raise ValueError(
            f"rewards of shape {probs.shape} do not fit {policy.size} actions x {levels.size} levels"
        )


def group_preference(
    policy: ArrayLike,
    rewards: Rewards,
    *,
    group_size: float,
    convention: Convention = PAPER,
    max_histograms: int = MAX_HISTOGRAMS,
) -> Array:
    """``P_G(o | pi)`` for every action ([A], section 3).

    Args:
      policy: [K] the old policy; rescaled to sum to one.
      rewards: `Rewards` of K actions, see `reward_table`.
      group_size: G >= 2, or ``math.inf`` for the limit `large_group_preference`.
      convention: divisor of the advantage; an infinite group has no ddof.
      max_histograms: a sum of more terms is a ValueError that says what to do instead.

    Returns:
      [K] expected advantages. Differentiable in policy (where levels have positive probability) and in
      rewards.

    >>> group_preference(jnp.array([0.25, 0.75]), reward_table([1.0, 0.0]), group_size=2).tolist()
    [0.75, -0.25]
    """
    check_group_size(group_size)
    if concrete(convention.ddof) and group_size <= float(np.asarray(convention.ddof)):
        raise ValueError(f"a group of {group_size} has no spread with ddof {convention.ddof}")
    policy, levels, probs = as_floats(policy, *rewards)
    return _group_preference(policy, Rewards(levels, probs), convention, group_size, max_histograms)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _group_preference(
    policy: Array, rewards: Rewards, convention: Convention, group_size: float, max_histograms: int
) -> Array:
    return preference_of(
        rewards, group_size=group_size, convention=convention, max_histograms=max_histograms
    )(policy)


def large_group_preference(policy: ArrayLike, rewards: Rewards, *, convention: Convention = PAPER) -> Array:
    """``lim_{G -> inf} P_G(o | pi) = (r(o) - E_pi r) / sigma(pi)``, sigma the total spread, noise included.

    [K].

    Args, Returns: as `group_preference`. A policy without spread gives 0.
    """
    policy, levels, probs = as_floats(policy, *rewards)
    _require_fit(policy, levels, probs)
    return _large_group_preference(policy, levels, probs, convention)


@jax.jit
def _large_group_preference(policy: Array, levels: Array, probs: Array, convention: Convention) -> Array:
    marginals = policy / policy.sum() @ probs
    from_usual = levels - levels[jnp.argmax(marginals)]
    scale = jnp.max(abs(from_usual))
    scale = jnp.where(scale > 0, scale, 1.0)
    centred = from_usual / scale
    centred = centred - marginals @ centred
    variance = marginals @ centred**2
    tied = variance <= 0
    divisor = (jnp.sqrt(jnp.where(tied, 1.0, variance)) + convention.added / scale) ** convention.power
    return probs @ jnp.where(tied, 0.0, centred * scale ** (1 - convention.power) / divisor)


def pairwise_payoffs(rewards: Rewards) -> Array:
    """``M[o, o'] = P(r(o) > r(o')) - P(r(o') > r(o))`` [K, K], antisymmetric: a tie counts half each."""
    wins = jnp.sign(rewards.levels[:, None] - rewards.levels[None, :])
    return rewards.probs @ wins @ rewards.probs.T


def table_preference(payoffs: ArrayLike) -> Preference:
    """Groups of two judged by a table of preferences, transitive or not: ``P_2(o | pi) = (M pi)(o)``.

    Args:
      payoffs: [K, K] ``M[o, o'] = P(o > o') - P(o' > o)``; a concrete M that is not antisymmetric is a
        ValueError.

    Returns:
      A function from a policy [K] to P_2 [K], for `fixed_point` and the like.
    """
    check_antisymmetric(payoffs)
    (table,) = as_floats(payoffs)
    return lambda policy: table @ (policy / policy.sum())
