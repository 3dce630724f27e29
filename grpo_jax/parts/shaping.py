"""Slot 1, shaping: a rollout's M rewards -> the one reward [P, N] that advantages are made of."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import jax.numpy as jnp

from grpo_jax.part import number, part
from grpo_jax.statistics import GROUP_AXES, centred, divide, spread
from grpo_jax.types import Array, Coupling, Number, Rollout


class Shaping(Protocol):
    """Rollout -> [P, N]."""

    def __call__(self, rollout: Rollout, /) -> Array: ...


def lengths(rollout: Rollout) -> Array:
    """[P, N] number of unmasked tokens."""
    return jnp.sum(rollout.mask, 2)


@part
class Sum:
    """r_i = Σ_m r_{i,m}."""

    def __call__(self, rollout: Rollout) -> Array:
        return jnp.sum(rollout.rewards, 2)


@part
class WeightedSum:
    """r_i = Σ_m w_m r_{i,m}; ``weights`` [M]."""

    weights: Any

    def __call__(self, rollout: Rollout) -> Array:
        return jnp.sum(rollout.rewards * jnp.asarray(self.weights), 2)


@part
class NormalizedSum:
    """GDPO: each reward is normalised within its group, then weighted: Σ_m w_m (r_{i,m} − r̄_m)/(σ_m + eps)."""

    weights: Any
    ddof: Number = number(1.0, low=0.0)
    eps: Number = number(1e-4, low=0.0)
    couples: ClassVar[Coupling] = Coupling.GROUP

    def __call__(self, rollout: Rollout) -> Array:
        weight = rollout.multiplicity[:, :, None]
        scale = spread(rollout.rewards, weight, GROUP_AXES, ddof=self.ddof) + self.eps
        unit = divide(centred(rollout.rewards, weight, GROUP_AXES), scale)
        return jnp.sum(unit * jnp.asarray(self.weights), 2)


@part
class KLInReward:
    """The sequence's k1 inside the reward, without gradient: r_i − coef·Σ_t (log π_old − log π_ref)."""

    inner: Shaping = Sum()
    coef: Number = number(0.0, low=0.0)

    def __call__(self, rollout: Rollout) -> Array:
        gap = jnp.where(rollout.mask > 0, rollout.old_logp - rollout.ref_logp, 0)
        return self.inner(rollout) - self.coef * jnp.sum(gap, 2)


@part
class PerToken:
    """Length-corrected reward r_i / |o_i| of TIC-GRPO ([C]); 0 for an empty output."""

    inner: Shaping = Sum()

    def __call__(self, rollout: Rollout) -> Array:
        return divide(self.inner(rollout), lengths(rollout))
