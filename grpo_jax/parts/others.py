"""Slots 1 and 2, continued: an entry against the others of its group; rewards normalised one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp

from grpo_jax.kernels import cumulative
from grpo_jax.part import number, part
from grpo_jax.parts.advantages import Advantage
from grpo_jax.parts.shaping import Sum, WeightedSum
from grpo_jax.statistics import GROUP_AXES, divide, extent, present
from grpo_jax.types import Array, Coupling, Number, Rollout


@part
class Others:
    """(r_i − m_i)/(σ_i + eps), mean and spread those of the others in i's group; undivided where σ_i is 0.

    NeMo-RL's default. A group's only success is one whose others tie: it keeps the advantage 1, however large
    the group.
    """

    ddof: Number = number(1.0, low=0.0)
    eps: Number = number(1e-6, low=0.0)
    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True
    least_group: ClassVar[int] = 2

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        weight = rollout.multiplicity
        size = jnp.sum(weight, 1, keepdims=True)
        low, high = extent(rewards, weight, GROUP_AXES)
        width = jnp.where(high > low, high - low, 1)
        # From the end at which some of the others stand: far from it their spread would drown in rounding.
        x = present((rewards - jnp.where(rewards == low, high, low)) / width, weight)
        first = _of_others(lambda end: (rewards - end) / width, rewards, weight, low, high)
        second = _of_others(lambda end: ((rewards - end) / width) ** 2, rewards, weight, low, high)
        mean = divide(first, jnp.maximum(size - 1, 0))
        variance = divide(jnp.maximum(second - first * mean, 0), jnp.maximum(size - 1 - self.ddof, 0))
        scale = jnp.where(_others_tie(rewards, weight, size, low, high), 0, width * jnp.sqrt(variance))
        away = jnp.where(low < high, width * (x - mean), 0)
        return present(away / jnp.where(scale > 0, scale + self.eps, 1), weight)[:, :, None]


def _of_others(
    value: Callable[[Array], Array], rewards: Array, weight: Array, low: Array, high: Array
) -> Array:
    """[P, N] Σ of ``value(end)`` over all draws but one of each entry's own, by running sums from both sides.

    ``end`` is the high one for entries at the low one, and the low one for all others. Nothing is taken away
    from a sum: of an entry far from the others nothing else would be left.
    """

    def others(end: Array) -> Array:
        z = present(value(end), weight)
        parts = weight * z
        before = jnp.concatenate([jnp.zeros_like(parts[:, :1]), cumulative(parts, 1)[:, :-1]], 1)
        after = jnp.concatenate([jnp.zeros_like(parts[:, :1]), cumulative(parts[:, ::-1], 1)[:, :-1]], 1)
        # One draw of fractions is one only to rounding, so the bound lies halfway to two.
        return before + after[:, ::-1] + jnp.where(weight < 1.5, 0, weight - 1) * z

    return jnp.where(rewards == low, others(high), others(low))


def _others_tie(rewards: Array, weight: Array, size: Array, low: Array, high: Array) -> Array:
    """Whether all others of an entry are equal: it alone is at one end, and they are all at the other."""
    at_low, at_high = rewards == low, rewards == high
    lowest, highest = (jnp.sum(jnp.where(end, weight, 0), 1, keepdims=True) for end in (at_low, at_high))
    # One draw of fractions is one only to rounding, so the bound lies halfway to two.
    alone_low = at_low & (lowest < 1.5) & (highest > size - 1.5)
    alone_high = at_high & (highest < 1.5) & (lowest > size - 1.5)
    return alone_low | alone_high | (low == high)


@part
class Apart:
    """r_i = Σ_m w_m A_{i,m}, an inner advantage of each reward alone; without ``weights`` each counts once.

    ``NormalizedSum`` for any advantage: GDPO (arXiv:2601.05242) as NeMo-RL has it with leave-one-out.
    """

    inner: Advantage = Others()
    weights: tuple[Number, ...] = ()
    couples: ClassVar[Coupling] = Coupling.GROUP
    splits_rewards: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        several = range(rollout.rewards.shape[2])
        columns = [self.inner(rollout, rollout.rewards[:, :, m])[:, :, 0] for m in several]
        summed = WeightedSum(weights=self.weights) if self.weights else Sum()
        return summed(rollout._replace(rewards=jnp.stack(columns, 2)))
