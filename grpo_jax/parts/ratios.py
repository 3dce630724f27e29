"""Slot 3, ratios: log-probabilities [P, N, T] -> log ratio [P, N, T] that the gain exponentiates.

Log-ratios are kept as logarithms; ``kernels.exponential`` saturates them where the dtype would overflow.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from grpo_jax.kernels import clamp
from grpo_jax.part import number, part, static
from grpo_jax.statistics import divide
from grpo_jax.types import Array, Number, Rollout


class Ratio(Protocol):
    """(rollout, logp [P, N, T]) -> log ratio [P, N, T]."""

    def __call__(self, rollout: Rollout, logp: Array, /) -> Array: ...


def _clamped(x: Array, limit: Number | None) -> Array:
    return x if limit is None else clamp(x, -limit, limit)


def _mean(rollout: Rollout, gap: Array) -> Array:
    length = jnp.sum(rollout.mask, 2, keepdims=True)
    return divide(jnp.sum(gap, 2, keepdims=True), length)


@part
class Token:
    """I_{i,t} = π_θ(y_t|·)/π_old(y_t|·). Its logarithm is clamped to ±``clamp`` (verl and OpenRLHF: 20)."""

    clamp: Number | None = number(None, low=0.0, nonfinite=True)

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        return _clamped(logp - rollout.old_logp, self.clamp)


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

    cap: Number | None = number(None, nonfinite=True)

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        frozen = jax.lax.stop_gradient(_mean(rollout, logp - rollout.old_logp))
        whole = frozen + logp - jax.lax.stop_gradient(logp)
        return whole if self.cap is None else jnp.minimum(whole, self.cap)


@part
class Trajectory:
    """w_i = π_θ(y)/π_old(y) = Π_t I_{i,t}: TIC-GRPO ([C]), GCPO and RLOO. The same for every token.

    ``clamp`` bounds each token's logarithm (VESPO: 20), ``clamp_sum`` their sum (verl's sampler correction:
    20).
    """

    clamp: Number | None = number(None, low=0.0, nonfinite=True)
    clamp_sum: Number | None = number(None, low=0.0, nonfinite=True)

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        gap = jnp.where(rollout.mask > 0, _clamped(logp - rollout.old_logp, self.clamp), 0)
        total = jnp.sum(gap, 2, keepdims=True)
        if self.clamp_sum is not None:
            total = jnp.clip(total, -self.clamp_sum, self.clamp_sum)
        return jnp.broadcast_to(total, gap.shape)


@part
class FromSampler:
    """An inner ratio whose denominator is the sampler instead of the old policy (OpenRLHF's GSPO).

    ``correction`` False says that this is the method's own ratio and corrects nothing: prime-rl, AReaL.
    """

    inner: Ratio = SequenceMean()
    correction: bool = static(True)

    @property
    def corrects_sampler(self) -> bool:
        """correction."""
        return self.correction

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
