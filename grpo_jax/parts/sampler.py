"""Slot 5, continued: corrections for a sampler that is not the old policy (an inference engine).

The mismatch is π_old/π_sampling, by token or by sequence, as one of the ratios of slot 3 measures it.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import jax.numpy as jnp

from grpo_jax.kernels import exponential
from grpo_jax.part import number, part, static
from grpo_jax.parts.corrections import Correction
from grpo_jax.parts.ratios import Ratio, Token
from grpo_jax.statistics import divide
from grpo_jax.types import Array, Evaluation, Number, Rollout


class Statistic(Protocol):
    """Rollout -> [P, N, T], how far sampler and old policy are apart."""

    def __call__(self, rollout: Rollout, /) -> Array: ...


def mismatch(ratio: Ratio, rollout: Rollout) -> Array:
    """π_old/π_sampling as ``ratio`` measures it, [P, N, T]."""
    return exponential(ratio(rollout._replace(old_logp=rollout.sampling_logp), rollout.old_logp))


@part
class SamplerMismatch:
    """Truncated importance sampling between sampler and trainer: clip(π_old/π_sampling, low, high)."""

    ratio: Ratio = Token()
    low: Number = number(0.0, low=0.0)
    high: Number = number(2.0, low=0.0, nonfinite=True)
    corrects_sampler: ClassVar[bool] = True

    def __call__(self, at: Evaluation) -> Array:
        return jnp.clip(mismatch(self.ratio, at.rollout), self.low, self.high)


@part
class MismatchRatio:
    """The statistic π_old/π_sampling itself."""

    ratio: Ratio = Token()

    def __call__(self, rollout: Rollout) -> Array:
        return mismatch(self.ratio, rollout)


@part
class SamplerMask:
    """π_old/π_sampling where a statistic lies in [low, high], and 0 elsewhere (IcePop)."""

    ratio: Ratio = Token()
    statistic: Statistic = MismatchRatio()
    low: Number = number(0.0, low=0.0)
    high: Number = number(2.0, low=0.0, nonfinite=True)
    corrects_sampler: ClassVar[bool] = True

    def __call__(self, at: Evaluation) -> Array:
        value = self.statistic(at.rollout)
        inside = (value >= self.low) & (value <= self.high)
        return jnp.where(inside, mismatch(self.ratio, at.rollout), 0)


def _probabilities(rollout: Rollout) -> tuple[Array, Array]:
    sampler = jnp.clip(exponential(rollout.sampling_logp), 1e-6, 1 - 1e-6)
    return sampler, jnp.clip(exponential(rollout.old_logp), 1e-6, 1 - 1e-6)


def _per_sequence(rollout: Rollout, value: Array) -> Array:
    total = jnp.sum(jnp.where(rollout.mask > 0, value, 0), 2, keepdims=True)
    return jnp.broadcast_to(divide(total, jnp.sum(rollout.mask, 2, keepdims=True)), value.shape)


@part
class BinaryKL:
    """The statistic p log(p/q) + (1 − p) log((1 − p)/(1 − q)), p the sampler's, q the old policy's.

    Probabilities are kept within [1e-6, 1 − 1e-6]; ``per_sequence`` takes the mean over tokens.
    """

    per_sequence: bool = static(False)

    def __call__(self, rollout: Rollout) -> Array:
        p, q = _probabilities(rollout)
        value = p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))
        return _per_sequence(rollout, value) if self.per_sequence else value


@part
class TotalVariation:
    """The statistic |p − q|, as ``BinaryKL``."""

    per_sequence: bool = static(False)

    def __call__(self, rollout: Rollout) -> Array:
        p, q = _probabilities(rollout)
        return _per_sequence(rollout, jnp.abs(p - q)) if self.per_sequence else jnp.abs(p - q)


@part
class SequenceGeometricMean:
    """The geometric mean of an inner correction: exp(Σ_t log(c + floor)/(|o| + eps)); verl's GMPO."""

    inner: Correction = SamplerMismatch()
    floor: Number = number(1e-10, low=0.0)
    eps: Number = number(1e-8, low=0.0)

    def __call__(self, at: Evaluation) -> Array:
        value = self.inner(at)
        total = jnp.sum(jnp.where(at.rollout.mask > 0, jnp.log(value + self.floor), 0), 2, keepdims=True)
        return exponential(divide(total, jnp.sum(at.rollout.mask, 2, keepdims=True) + self.eps))
