"""Slot 5, corrections: detached factors [P, N, T] on the gain. They never touch the penalty or the denominators."""

from __future__ import annotations

from typing import ClassVar, Protocol

import jax.numpy as jnp

from grpo_jax.part import number, part
from grpo_jax.parts.ratios import exponential
from grpo_jax.statistics import divide, quantile
from grpo_jax.types import Array, Coupling, Number, Rollout


class Correction(Protocol):
    """(rollout, log ratio, logp, advantages) -> factor [P, N, T]; the surrogate detaches it."""

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array, /) -> Array: ...


@part
class SamplerMismatch:
    """Truncated importance sampling between sampler and trainer: clip(π_old/π_sampling, low, high)."""

    low: Number = number(0.0, low=0.0)
    high: Number = number(2.0, low=0.0, nonfinite=True)
    clamp: Number = number(float("inf"), low=0.0, nonfinite=True)

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        gap = jnp.clip(rollout.old_logp - rollout.sampling_logp, -self.clamp, self.clamp)
        return jnp.clip(exponential(gap), self.low, self.high)


@part
class OffPolicyMask:
    """GRPO (V3.2): drops sequences with A < 0 and mean_t log(π_old/π_θ) > threshold."""

    threshold: Number = number(0.1, nonfinite=True)

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        gap = jnp.where(rollout.mask > 0, rollout.old_logp - logp, 0)
        drift = divide(jnp.sum(gap, 2, keepdims=True), jnp.sum(rollout.mask, 2, keepdims=True))
        return jnp.where((advantages >= 0) | (drift <= self.threshold), 1.0, 0.0)


@part
class Prune:
    """CPPO (arXiv:2503.22342): 1{|A_i| > threshold}."""

    threshold: Number = number(0.0, low=0.0)

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        return jnp.where(jnp.abs(advantages) > self.threshold, 1.0, 0.0)


@part
class TopEntropy:
    """Keeps the ``share`` of valid tokens of highest entropy (arXiv:2506.01939); denominators are not reduced.

    Needs ``rollout.entropy``.
    """

    share: Number = number(0.2, low=0.0, high=1.0)
    couples: ClassVar[Coupling] = Coupling.BATCH

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        if rollout.entropy is None:
            raise ValueError("TopEntropy needs rollout.entropy")
        weight = rollout.multiplicity[:, :, None] * rollout.mask
        threshold = quantile(rollout.entropy, weight, 1 - self.share, (0, 1, 2))
        return jnp.where(rollout.entropy >= threshold, 1.0, 0.0)
