"""Slot 2, advantages: shaped rewards [P, N] -> advantages [P, N, 1], or [P, N, T] where they differ by token.

Groups whose present rewards are all equal get exactly 0, in float32 too. An empty group gets 0. A NaN reward
makes its own group NaN (its batch, where a statistic is taken over the batch) and nothing else.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import jax.numpy as jnp

from grpo_jax.part import number, part
from grpo_jax.parts.shaping import lengths
from grpo_jax.statistics import BATCH_AXES, GROUP_AXES, centred, divide, extent, mean, present, spread
from grpo_jax.types import Array, Coupling, Number, Rollout


class Advantage(Protocol):
    """(rollout, shaped rewards [P, N]) -> [P, N, 1 or T]."""

    def __call__(self, rollout: Rollout, rewards: Array, /) -> Array: ...


class Center(Protocol):
    """(rollout, rewards [P, N]) -> rewards minus a baseline [P, N]."""

    def __call__(self, rollout: Rollout, rewards: Array, /) -> Array: ...


class Spread(Protocol):
    """(rollout, rewards [P, N]) -> [P or 1, 1] spread, 0 for ties."""

    def __call__(self, rollout: Rollout, rewards: Array, /) -> Array: ...


@part
class GroupMean:
    """r_i − r̄, the mean of i's own group."""

    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True
    least_group: ClassVar[int] = 2

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return centred(rewards, rollout.multiplicity, GROUP_AXES)


@part
class BatchMean:
    """r_i minus the mean over all prompts."""

    couples: ClassVar[Coupling] = Coupling.BATCH
    cell_safe: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return centred(rewards, rollout.multiplicity, BATCH_AXES)


@part
class LeaveOneOut:
    """RLOO: r_i minus the mean of the others, (G/(G−1))·(r_i − r̄); 0 in a group of one."""

    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True
    least_group: ClassVar[int] = 2

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        size = jnp.sum(rollout.multiplicity, 1, keepdims=True)
        return centred(rewards, rollout.multiplicity, GROUP_AXES) * divide(size, jnp.maximum(size - 1, 0))


@part
class LengthWeightedMean:
    """OPO (arXiv:2505.23585): r_i − Σ_j |o_j| r_j / Σ_j |o_j|, the group's mean weighted by length."""

    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True
    reads_lengths: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return centred(rewards, rollout.multiplicity * lengths(rollout), GROUP_AXES)


@part
class External:
    """ReMax (arXiv:2310.10505): r_i minus ``rollout.baseline`` (the greedy answer's reward)."""

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        if rollout.baseline is None:
            raise ValueError("External needs rollout.baseline")
        return rewards - rollout.baseline


@part
class BestOfGroup:
    """Pass@k (arXiv:2503.19595): the best entry's lead over the second, 0 for all others.

    A shared best is no lead.
    """

    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        weight = rollout.multiplicity
        _, best = extent(rewards, weight, GROUP_AXES)
        first = (rewards == best) & (weight > 0)
        _, second = extent(rewards, jnp.where(first, 0, weight), GROUP_AXES)
        # One draw of fractions is one only to rounding, so the bound lies halfway to two.
        alone = (jnp.sum(jnp.where(first, weight, 0), 1, keepdims=True) < 1.5) & jnp.isfinite(second)
        return jnp.where(first & alone, rewards - second, 0)


@part
class NoBaseline:
    """r_i itself: plain REINFORCE."""

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return rewards


@part
class GroupSpread:
    """σ_r of the group, √(Σ(r − r̄)²/(G − ddof)). Papers take ddof 0, every library 1."""

    ddof: Number = number(0.0, low=0.0)
    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True
    least_group: ClassVar[int] = 2

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return spread(rewards, rollout.multiplicity, GROUP_AXES, ddof=self.ddof)


@part
class GroupLevel:
    """The group's mean reward in a spread's place, 0 where it is not positive: MaxRL (arXiv:2602.02710)."""

    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return jnp.maximum(mean(rewards, rollout.multiplicity, GROUP_AXES), 0)


@part
class BatchSpread:
    """Standard deviation of all rewards of the batch."""

    ddof: Number = number(0.0, low=0.0)
    couples: ClassVar[Coupling] = Coupling.BATCH
    cell_safe: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return spread(rewards, rollout.multiplicity, BATCH_AXES, ddof=self.ddof)


def _raised(x: Array, power: Number) -> Array:
    """x^power for x > 0, exactly x at power 1."""
    return jnp.where(jnp.asarray(power) == 1, x, jnp.exp(power * jnp.log(x)))


@part
class Normalized:
    """A_i = (r_i − b_i) / (σ + eps)^power, with 0/0 := 0.

    ``power`` 1 is GRPO ([B] α^S), 0 is Dr. GRPO. ``scale`` None is power 0 without the arithmetic.
    """

    center: Center = GroupMean()
    scale: Spread | None = GroupSpread()
    power: Number = number(1.0, low=0.0)
    eps: Number = number(0.0, low=0.0)

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        deviation = self.center(rollout, rewards)
        if self.scale is not None:
            scale = self.scale(rollout, rewards) + self.eps
            safe = jnp.where(scale == 0, 1, scale)
            deviation = jnp.where(scale == 0, 0, deviation / _raised(safe, self.power))
        return present(deviation, rollout.multiplicity)[:, :, None]
