"""Slot 3, ratios: log-probabilities [P, N, T] -> log ratio [P, N, T] that the gain exponentiates.

Log-ratios are kept as logarithms; ``exponential`` saturates them where the dtype would overflow.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.folds import bounded
from grpo_jax.part import number, part
from grpo_jax.statistics import divide
from grpo_jax.types import Array, Number, Rollout


class Ratio(Protocol):
    """(rollout, logp [P, N, T]) -> log ratio [P, N, T]."""

    def __call__(self, rollout: Rollout, logp: Array, /) -> Array: ...


def exponential(log_ratio: Array) -> Array:
    """e^x, held with gradient 0 where |x| passes log(largest number)/1.05: 84.5 (float32), 676 (float64)."""
    limit = float(np.log(jnp.finfo(log_ratio.dtype).max)) / 1.05
    return jnp.exp(bounded(log_ratio, -limit, limit))


def _mean(rollout: Rollout, gap: Array) -> Array:
    length = jnp.sum(rollout.mask, 2, keepdims=True)
    return divide(jnp.sum(gap, 2, keepdims=True), length)


@part
class Token:
    """I_{i,t} = π_θ(y_t|·)/π_old(y_t|·). The log-ratio is clamped to ±``clamp`` (verl and OpenRLHF: 20)."""

    clamp: Number = number(float("inf"), low=0.0, nonfinite=True)

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        return bounded(logp - rollout.old_logp, -self.clamp, self.clamp)


@part
class SequenceMean:
    """GSPO (arXiv:2507.18071): s_i = (π_θ(y)/π_old(y))^{1/|y|}, one for all tokens, differentiated whole."""

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        gap = logp - rollout.old_logp
        return jnp.broadcast_to(_mean(rollout, gap), gap.shape)


@part
class SequenceMeanToken:
    """GSPO-token: sg[s_i]·π_θ(y_t)/sg[π_θ(y_t)], ``SequenceMean``'s value with each token's own gradient.

    This is the row printed in [B] Table 1. ``cap`` bounds the logarithm from above (verl: 10).
    """

    cap: Number = number(float("inf"), nonfinite=True)

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        frozen = jax.lax.stop_gradient(_mean(rollout, logp - rollout.old_logp))
        return jnp.minimum(frozen + logp - jax.lax.stop_gradient(logp), self.cap)


@part
class Trajectory:
    """w_i = π_θ(y)/π_old(y) = Π_t I_{i,t}: TIC-GRPO ([C]), GCPO and RLOO. The same for every token.

    ``clamp`` bounds each token's logarithm (VESPO: 20), ``clamp_sum`` their sum (verl's sampler correction:
    20).
    """

    clamp: Number = number(float("inf"), low=0.0, nonfinite=True)
    clamp_sum: Number = number(float("inf"), low=0.0, nonfinite=True)

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        gap = bounded(logp - rollout.old_logp, -self.clamp, self.clamp)
        gap = jnp.where(rollout.mask > 0, gap, 0)
        total = jnp.clip(jnp.sum(gap, 2, keepdims=True), -self.clamp_sum, self.clamp_sum)
        return jnp.broadcast_to(total, gap.shape)


@part
class FromSampler:
    """An inner ratio whose denominator is the sampler instead of the old policy (OpenRLHF's GSPO)."""

    inner: Ratio = SequenceMean()

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        return self.inner(rollout._replace(old_logp=rollout.sampling_logp), logp)


@part
class Score:
    """No importance sampling, second reading of [C]: value 1, gradient ∇log π_θ(y_t|·) at the current θ."""

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        return logp - jax.lax.stop_gradient(logp)


@part
class Frozen:
    """No importance sampling, first reading of [C]: as ``Score``, but the gradient is taken at θ_old.

    The training loop evaluates a method whose ratio has ``at_old`` at the old parameters, in every inner
    step.
    """

    at_old: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        return logp - jax.lax.stop_gradient(logp)
