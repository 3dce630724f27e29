"""Slot 2, continued: advantages made from other advantages (whitening, returns, bounds, factors)."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from grpo_jax.part import number, part, static
from grpo_jax.parts.advantages import Advantage, NoBaseline, Normalized
from grpo_jax.parts.penalties import K1, Divergence, reference
from grpo_jax.statistics import BATCH_AXES, GROUP_AXES, centred, divide, present, spread, tied
from grpo_jax.types import TOKEN, Array, Coupling, Number, Rollout


@part
class Standardized:
    """An inner advantage standardised over the batch's entries: (x − x̄)/(σ + eps). TRL's RLOO option."""

    inner: Advantage
    ddof: Number = number(1.0, low=0.0)
    eps: Number = number(1e-4, low=0.0)
    couples: ClassVar[Coupling] = Coupling.BATCH
    cell_safe: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        weight = rollout.multiplicity[:, :, None]
        inner = self.inner(rollout, rewards)
        scale = spread(inner, weight, BATCH_AXES, ddof=self.ddof) + self.eps
        return present(divide(centred(inner, weight, BATCH_AXES), scale), weight)


@part
class Whitened:
    """An inner advantage whitened over all valid tokens of the batch: (x − x̄)/√max(var + eps, floor).

    REINFORCE++ (arXiv:2501.03262) whitens returns, its baseline variant rewards minus the group mean.
    ``eps`` 1e-8 with ddof 1 is verl's, ``floor`` 1e-8 with ddof 0 is OpenRLHF's. ``scaled`` False only
    centres.
    """

    inner: Advantage
    ddof: Number = number(1.0, low=0.0)
    eps: Number = number(1e-8, low=0.0)
    floor: Number = number(0.0, low=0.0)
    scaled: bool = static(True)
    couples: ClassVar[Coupling] = Coupling.BATCH

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        weight = rollout.multiplicity[:, :, None] * rollout.mask
        inner = self.inner(rollout, rewards) + jnp.zeros_like(weight)
        axes = (*BATCH_AXES, 2)
        deviation = centred(inner, weight, axes)
        if not self.scaled:
            return present(deviation, weight)
        count = jnp.sum(weight, axes, keepdims=True)
        squares = jnp.sum(weight * present(deviation, weight) ** 2, axes, keepdims=True)
        variance = divide(squares, jnp.maximum(count - self.ddof, 0))
        scale = jnp.sqrt(jnp.maximum(variance + self.eps, self.floor))
        return present(divide(deviation, scale), weight)


@part
class ReturnToGo:
    """G_t = Σ_{u≥t} γ^{u−t} r_u, with an inner advantage (the reward itself) on the last valid token.

    Every token also earns −kl_coef·D_u, D the divergence of π_old from π_ref (of the sampler, with
    ``from_sampler``). Masked tokens do not discount, unless ``count_masked``. An empty output has return 0.
    """

    inner: Advantage = Normalized(center=NoBaseline(), scale=None)
    discount: Number = number(1.0, low=0.0, high=1.0)
    kl_coef: Number = number(0.0, low=0.0)
    divergence: Divergence = K1()
    count_masked: bool = static(False)
    from_sampler: bool = static(False)
    reads_old_logp: ClassVar[bool] = True

    @property
    def reference_coef(self) -> Number:
        """kl_coef."""
        return self.kl_coef

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        old = rollout.sampling_logp if self.from_sampler else rollout.old_logp
        valid = rollout.mask > 0
        kl = self.divergence(old, reference(rollout.ref_logp, self.kl_coef, old))
        position = jnp.cumsum(rollout.mask, TOKEN)
        last = valid & (position == jnp.max(position, TOKEN, keepdims=True))
        earned = jnp.where(last, self.inner(rollout, rewards), 0) - jnp.where(valid, self.kl_coef * kl, 0)
        steps = valid | self.count_masked

        def backwards(after: Array, token: tuple[Array, Array]) -> tuple[Array, Array]:
            reward, step = token
            value = jnp.where(step, reward + self.discount * after, after)
            return value, value

        steps = jnp.broadcast_to(steps, earned.shape)
        swept = (jnp.moveaxis(earned, TOKEN, 0), jnp.moveaxis(steps, TOKEN, 0))
        start = jnp.zeros_like(earned[:, :, 0] * self.discount)
        returns = jnp.moveaxis(jax.lax.scan(backwards, start, swept, reverse=True)[1], 0, TOKEN)
        return present(returns, rollout.mask)


@part
class LessDivergence:
    """A_i − coef·D(log π_old, log π_ref) at every token, of that token alone (NeMo-RL's REINFORCE++).

    What follows a token is not added up, so that it is no return. Where coef is 0 the reference is not read.
    """

    inner: Advantage
    coef: Number = number(0.0, low=0.0)
    divergence: Divergence = K1()
    reads_old_logp: ClassVar[bool] = True

    @property
    def reference_coef(self) -> Number:
        """coef."""
        return self.coef

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        old = rollout.old_logp
        gap = self.divergence(old, reference(rollout.ref_logp, self.coef, old))
        return present(self.inner(rollout, rewards) - self.coef * gap, rollout.mask)


@part
class ClampedAdvantage:
    """An inner advantage clamped to [low, high] (OpenRLHF: ±10)."""

    inner: Advantage
    low: Number = number(-10.0, nonfinite=True)
    high: Number = number(10.0, nonfinite=True)

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        return jnp.clip(self.inner(rollout, rewards), self.low, self.high)


@part
class MixedOnly:
    """An inner advantage, 0 in groups whose rewards from the task all tie, whatever shaping makes of them.

    An outcome gate: verl's ``filter_groups.metric=acc`` by advantages, so that no denominator changes. With
    several rewards a group ties where their sums do; with ``apart`` only where each of them does.
    """

    inner: Advantage
    apart: bool = static(False)
    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True

    @property
    def splits_rewards(self) -> bool:
        """Whether several rewards are read one by one."""
        return self.apart

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        given = rollout.rewards if self.apart else jnp.sum(rollout.rewards, 2, keepdims=True)
        flat = jnp.all(tied(given, rollout.multiplicity[:, :, None], GROUP_AXES), 2, keepdims=True)
        return jnp.where(flat, 0, self.inner(rollout, rewards))


@part
class PerInformative:
    """GPG's α̂ (arXiv:2504.02546): an inner advantage times groups / (norm · groups that do not tie)."""

    inner: Advantage
    norm: Number = number(1.0, low=0.0, open_low=True)
    couples: ClassVar[Coupling] = Coupling.BATCH
    cell_safe: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        some = jnp.any(rollout.multiplicity > 0, 1, keepdims=True)
        informative = some & ~tied(rewards, rollout.multiplicity, GROUP_AXES)
        factor = divide(jnp.sum(some, 0, keepdims=True), jnp.sum(informative, 0, keepdims=True) * self.norm)
        return self.inner(rollout, rewards) * factor[:, :, None]


@part
class PerNonzero:
    """verl's α̂ for GPG: an inner advantage times entries / entries whose reward is not 0 (at least one)."""

    inner: Advantage
    couples: ClassVar[Coupling] = Coupling.BATCH
    cell_safe: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        weight = rollout.multiplicity
        hits = jnp.sum(jnp.where(rewards != 0, weight, 0), BATCH_AXES, keepdims=True)
        factor = jnp.sum(weight, BATCH_AXES, keepdims=True) / jnp.maximum(hits, 1)
        return self.inner(rollout, rewards) * factor[:, :, None]
