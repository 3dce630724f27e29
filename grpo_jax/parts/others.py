"""Slots 1 and 2, continued: an entry against the others of its group; rewards normalised one by one."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp

from grpo_jax.part import number, part
from grpo_jax.parts.advantages import Advantage
from grpo_jax.parts.shaping import Sum, WeightedSum
from grpo_jax.statistics import GROUP_AXES, centred, divide, extent, present, total
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
        factor = divide(size, jnp.maximum(size - 1, 0))
        low, high = extent(rewards, weight, GROUP_AXES)
        width = jnp.where(high > low, high - low, 1)
        unit = centred(rewards, weight, GROUP_AXES) / width
        # Σ_j (x_j − x̄)² without i, about the mean of the others: less n/(n − 1) of i's own square.
        squares = total(unit**2, weight, GROUP_AXES) - factor * unit**2
        variance = divide(jnp.maximum(squares, 0), jnp.maximum(size - 1 - self.ddof, 0))
        scale = jnp.where(_others_tie(rewards, weight, size, low, high), 0, width * jnp.sqrt(variance))
        advantage = unit * width * factor / jnp.where(scale > 0, scale + self.eps, 1)
        return present(advantage, weight)[:, :, None]


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
