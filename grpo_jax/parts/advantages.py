"""Slot 2, advantages: shaped rewards [P, N] -> advantages [P, N, 1], or [P, N, T] where they differ by token.

Groups whose present rewards are all equal get exactly 0, in float32 too. An empty group gets 0. A NaN reward makes
its own group NaN (its batch, where a statistic is taken over the batch) and nothing else.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import jax.numpy as jnp

from grpo_jax.part import number, part
from grpo_jax.parts.shaping import lengths
from grpo_jax.statistics import BATCH_AXES, GROUP_AXES, centred, divide, mean, present, spread, tied
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

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return centred(rewards, rollout.multiplicity, GROUP_AXES)


@part
class BatchMean:
    """r_i minus the mean over all prompts."""

    couples: ClassVar[Coupling] = Coupling.BATCH

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return centred(rewards, rollout.multiplicity, BATCH_AXES)


@part
class LeaveOneOut:
    """RLOO: r_i minus the mean of the others, (G/(G−1))·(r_i − r̄); 0 in a group of one."""

    couples: ClassVar[Coupling] = Coupling.GROUP

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        size = jnp.sum(rollout.multiplicity, 1, keepdims=True)
        return centred(rewards, rollout.multiplicity, GROUP_AXES) * divide(size, jnp.maximum(size - 1, 0))


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

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return spread(rewards, rollout.multiplicity, GROUP_AXES, ddof=self.ddof)


@part
class BatchSpread:
    """Standard deviation of all rewards of the batch."""

    ddof: Number = number(0.0, low=0.0)
    couples: ClassVar[Coupling] = Coupling.BATCH

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return spread(rewards, rollout.multiplicity, BATCH_AXES, ddof=self.ddof)


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
            deviation = jnp.where(scale == 0, 0, deviation / safe**self.power)
        return present(deviation, rollout.multiplicity)[:, :, None]


@part
class Whitened:
    """An inner advantage whitened over all valid tokens of the batch: (x − x̄)/√max(var + eps, floor).

    REINFORCE++ (arXiv:2501.03262) whitens returns, its baseline variant rewards minus the group mean.
    ``eps`` 1e-8 with ddof 1 is verl's, ``floor`` 1e-8 with ddof 0 is OpenRLHF's.
    """

    inner: Advantage
    ddof: Number = number(1.0, low=0.0)
    eps: Number = number(1e-8, low=0.0)
    floor: Number = number(0.0, low=0.0)
    couples: ClassVar[Coupling] = Coupling.BATCH

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        weight = rollout.multiplicity[:, :, None] * rollout.mask
        inner = self.inner(rollout, rewards) + jnp.zeros_like(weight)
        axes = (*BATCH_AXES, 2)
        deviation = centred(inner, weight, axes)
        count = jnp.sum(weight, axes, keepdims=True)
        squares = jnp.sum(weight * present(deviation, weight) ** 2, axes, keepdims=True)
        variance = divide(squares, jnp.maximum(count - self.ddof, 0))
        scale = jnp.sqrt(jnp.maximum(variance + self.eps, self.floor))
        return present(divide(deviation, scale), weight)


@part
class ReturnToGo:
    """G_t = Σ_{u≥t} γ^{u−t} r_u with the reward on the last valid token; masked tokens do not discount."""

    discount: Number = number(1.0, low=0.0, high=1.0)

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        position = jnp.cumsum(rollout.mask, 2)
        after = jnp.sum(rollout.mask, 2, keepdims=True) - position
        return present(rewards[:, :, None] * self.discount**after, rollout.mask)
