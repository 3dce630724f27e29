"""Slot 1, shaping: a rollout's M rewards -> the one reward [P, N] that advantages are made of."""

from __future__ import annotations

from typing import ClassVar, Protocol

import jax.numpy as jnp

from grpo_jax.part import number, part, static
from grpo_jax.parts.penalties import K1, Divergence, reference
from grpo_jax.statistics import GROUP_AXES, centred, divide, extent, mean, spread
from grpo_jax.types import Array, Coupling, Number, Rollout


class Shaping(Protocol):
    """Rollout -> [P, N]."""

    def __call__(self, rollout: Rollout, /) -> Array: ...


def lengths(rollout: Rollout) -> Array:
    """[P, N] number of unmasked tokens."""
    return jnp.sum(rollout.mask, 2)


def _weighted(rewards: Array, weights: tuple[Number, ...]) -> Array:
    if rewards.shape[2] != len(weights):
        raise ValueError(f"{rewards.shape[2]} rewards and {len(weights)} weights")
    return sum((weight * rewards[:, :, m] for m, weight in enumerate(weights)), jnp.zeros(()))


@part
class Sum:
    """r_i = Σ_m r_{i,m}."""

    def __call__(self, rollout: Rollout) -> Array:
        return jnp.sum(rollout.rewards, 2)


@part
class WeightedSum:
    """r_i = Σ_m w_m r_{i,m}; M weights, each a number."""

    weights: tuple[Number, ...]
    splits_rewards: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        return _weighted(rollout.rewards, self.weights)


@part
class NormalizedSum:
    """GDPO (arXiv:2601.05242): r_i = Σ_m w_m (r_{i,m} − r̄_m)/(σ_m + eps), each within its group.

    Without ``weights`` each counts once. ``scaled`` False leaves out the division.
    """

    weights: tuple[Number, ...] = ()
    ddof: Number = number(1.0, low=0.0)
    eps: Number = number(1e-4, low=0.0)
    scaled: bool = static(True)
    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True
    splits_rewards: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        weight = rollout.multiplicity[:, :, None]
        unit = centred(rollout.rewards, weight, GROUP_AXES)
        if self.scaled:
            unit = divide(unit, spread(rollout.rewards, weight, GROUP_AXES, ddof=self.ddof) + self.eps)
        return _weighted(unit, self.weights) if self.weights else jnp.sum(unit, 2)


@part
class KLInReward:
    """The divergence inside the reward, without gradient: r_i − coef·Σ_t D_{i,t}(π_old, π_ref); D is k1.

    Where coef is 0 the reference is not read.
    """

    inner: Shaping = Sum()
    coef: Number = number(0.0, low=0.0)
    divergence: Divergence = K1()
    reads_old_logp: ClassVar[bool] = True

    @property
    def reference_coef(self) -> Number:
        """coef."""
        return self.coef

    def __call__(self, rollout: Rollout) -> Array:
        old = rollout.old_logp
        gap = self.divergence(old, reference(rollout.ref_logp, self.coef, old))
        return self.inner(rollout) - self.coef * jnp.sum(jnp.where(rollout.mask > 0, gap, 0), 2)


@part
class ClampedReward:
    """r_i clamped to [low, high]."""

    inner: Shaping = Sum()
    low: Number = number(-10.0, nonfinite=True)
    high: Number = number(10.0, nonfinite=True)

    def __call__(self, rollout: Rollout) -> Array:
        return jnp.clip(self.inner(rollout), self.low, self.high)


@part
class Rescaled:
    """(r_i + bias)·scale."""

    inner: Shaping = Sum()
    bias: Number = number(0.0)
    scale: Number = number(1.0)

    def __call__(self, rollout: Rollout) -> Array:
        return (self.inner(rollout) + self.bias) * self.scale


@part
class LengthPenalty:
    """prime-rl's length penalty: r_i − weight·r̄·|o_i|/max_j |o_j|, mean and greatest length of i's group."""

    inner: Shaping = Sum()
    weight: Number = number(0.25, low=0.0)
    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True
    reads_lengths: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        rewards, length = self.inner(rollout), lengths(rollout)
        _, longest = extent(length, rollout.multiplicity, GROUP_AXES)
        level = mean(rewards, rollout.multiplicity, GROUP_AXES)
        return rewards - self.weight * level * divide(length, longest)


@part
class DivideByLength:
    """Length-corrected reward r_i / |o_i| of TIC-GRPO ([C]); 0 for an empty output."""

    inner: Shaping = Sum()

    def __call__(self, rollout: Rollout) -> Array:
        return divide(self.inner(rollout), lengths(rollout))


@part
class Overlong:
    """DAPO's soft overlong punishment (arXiv:2503.14476, equation (13)) as a fixed-shape formula.

    r_i − factor·clip((|o_i| − (limit − buffer))/buffer, 0, 1): none up to limit − buffer, all of it at the
    limit; without ``capped`` it goes on growing beyond (NeMo-RL, whose limit may be less than the budget).
    """

    inner: Shaping = Sum()
    limit: Number = number(low=0.0)
    buffer: Number = number(low=0.0, open_low=True)
    factor: Number = number(1.0, low=0.0)
    capped: bool = static(True)

    def __call__(self, rollout: Rollout) -> Array:
        excess = (lengths(rollout) - (self.limit - self.buffer)) / self.buffer
        return self.inner(rollout) - self.factor * jnp.clip(excess, 0, 1 if self.capped else None)


@part
class WithLength:
    """``inner`` sees one more reward, −weight·min(|o_i|/limit, 1): the length as a reward of its own.

    Summed it is r_i − weight·min(|o_i|/limit, 1), and a negative weight pays for length. Under
    ``inner=NormalizedSum(weights=(1, λ))`` outcome and length are normalised apart.
    """

    inner: Shaping = Sum()
    weight: Number = number(1.0)
    limit: Number = number(low=0.0, open_low=True)

    def __call__(self, rollout: Rollout) -> Array:
        cost = -self.weight * jnp.minimum(lengths(rollout) / self.limit, 1)
        runs = jnp.broadcast_shapes(rollout.rewards.shape[3:], cost.shape[2:])
        columns = [
            jnp.broadcast_to(column, (*column.shape[:3], *runs))
            for column in (rollout.rewards, cost[:, :, None])
        ]
        return self.inner(rollout._replace(rewards=jnp.concatenate(columns, 2)))


@part
class OnSuccess:
    """``inner`` where the task's own reward Σ_m r_{i,m} exceeds ``above``, that reward itself elsewhere.

    A success gate: what shaping adds counts only for answers that are right (prime-rl 3376).
    """

    inner: Shaping
    above: Number = number(0.0)

    def __call__(self, rollout: Rollout) -> Array:
        outcome = jnp.sum(rollout.rewards, 2)
        return jnp.where(outcome > self.above, self.inner(rollout), outcome)
