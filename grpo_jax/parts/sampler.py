"""Slot 5, continued: corrections for a sampler that is not the old policy (an inference engine).

The mismatch is π_old/π_sampling, by token or by sequence, as one of the ratios of slot 3 measures it.
"""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import jax.numpy as jnp

from grpo_jax.kernels import exponential
from grpo_jax.part import nearest, number, part, static
from grpo_jax.parts.corrections import Correction
from grpo_jax.parts.penalties import K2, K3, Divergence
from grpo_jax.parts.ratios import Ratio, Token
from grpo_jax.parts.reductions import Reduction
from grpo_jax.statistics import divide, mean
from grpo_jax.types import Array, Coupling, Evaluation, Number, Rollout

AGGREGATES = ("mean", "sum", "max", "min")


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

    def limited(self, rollout: Rollout) -> Array:
        """bool [P, N, T], where the weight is truncated."""
        value = mismatch(self.ratio, rollout)
        return (value < self.low) | (value > self.high)


@part
class MismatchRatio:
    """The statistic π_old/π_sampling itself."""

    ratio: Ratio = Token()

    def __call__(self, rollout: Rollout) -> Array:
        return mismatch(self.ratio, rollout)


@part
class RatioDistance:
    """The statistic |π_old/π_sampling − 1|; VACO bounds its mean over a sequence (arXiv:2603.01365)."""

    ratio: Ratio = Token()

    def __call__(self, rollout: Rollout) -> Array:
        return jnp.abs(mismatch(self.ratio, rollout) - 1)


@part
class RatioFactor:
    """The statistic e^|log π_old − log π_sampling|: by what factor the two differ, either way (NeMo-RL)."""

    def __call__(self, rollout: Rollout) -> Array:
        return exponential(jnp.abs(rollout.old_logp - rollout.sampling_logp))


@part
class SamplerMask:
    """π_old/π_sampling where a statistic lies in [low, high], and 0 elsewhere (IcePop, arXiv:2510.18855)."""

    ratio: Ratio = Token()
    statistic: Statistic = MismatchRatio()
    low: Number = number(0.0, nonfinite=True)
    high: Number = number(2.0, low=0.0, nonfinite=True)
    corrects_sampler: ClassVar[bool] = True

    def __call__(self, at: Evaluation) -> Array:
        return jnp.where(self.limited(at.rollout), 0, mismatch(self.ratio, at.rollout))

    def limited(self, rollout: Rollout) -> Array:
        """bool [P, N, T], what is masked."""
        value = self.statistic(rollout)
        return ~((value >= self.low) & (value <= self.high))


def _probabilities(rollout: Rollout) -> tuple[Array, Array]:
    sampler = jnp.clip(exponential(rollout.sampling_logp), 1e-6, 1 - 1e-6)
    return sampler, jnp.clip(exponential(rollout.old_logp), 1e-6, 1 - 1e-6)


def _two_outcomes(p: Array, q: Array) -> Array:
    """KL between "this token or any other" under p and under q.

    Rounding can leave a divergence of 0 just below it, where a mask that starts at 0 would drop the token.
    """
    return jnp.maximum(p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q)), 0)


def _per_sequence(rollout: Rollout, value: Array) -> Array:
    total = jnp.sum(jnp.where(rollout.mask > 0, value, 0), 2, keepdims=True)
    return jnp.broadcast_to(divide(total, jnp.sum(rollout.mask, 2, keepdims=True)), value.shape)


@part
class BinaryKL:
    """The statistic p log(p/q) + (1 − p) log((1 − p)/(1 − q)), p the sampler's, q the old policy's.

    Probabilities are kept within [1e-6, 1 − 1e-6]; ``per_sequence`` takes the mean over tokens, ``signed``
    gives it the sign of q − p.
    """

    per_sequence: bool = static(False)
    signed: bool = static(False)

    def __call__(self, rollout: Rollout) -> Array:
        p, q = _probabilities(rollout)
        value = _two_outcomes(p, q) * (jnp.sign(q - p) if self.signed else 1)
        return _per_sequence(rollout, value) if self.per_sequence else value


@part
class BothBinaryKL:
    """KPop's statistic max{D(p‖q), D(q‖p)}, D as in ``BinaryKL``: ringtech.notion.site/kpop (2026).

    It keeps a token where neither direction exceeds φ (0.1 there).
    """

    def __call__(self, rollout: Rollout) -> Array:
        p, q = _probabilities(rollout)
        return jnp.maximum(_two_outcomes(p, q), _two_outcomes(q, p))


@part
class TotalVariation:
    """The statistic |p − q|, as ``BinaryKL``."""

    per_sequence: bool = static(False)

    def __call__(self, rollout: Rollout) -> Array:
        p, q = _probabilities(rollout)
        return _per_sequence(rollout, jnp.abs(p - q)) if self.per_sequence else jnp.abs(p - q)


@part
class Rise:
    """The statistic π_old − π_sampling of the token, with its sign."""

    def __call__(self, rollout: Rollout) -> Array:
        return exponential(rollout.old_logp) - exponential(rollout.sampling_logp)


@part
class MismatchDivergence:
    """The statistic D(log π_old, log π_sampling) of a token, D one of k1, k2, k3 (AReaL).

    ``reverse`` exchanges the two (verl).
    """

    divergence: Divergence = K3()
    reverse: bool = static(False)

    def __call__(self, rollout: Rollout) -> Array:
        pair = (rollout.old_logp, rollout.sampling_logp)
        return self.divergence(*(pair[::-1] if self.reverse else pair))


@part
class OverSequence:
    """An inner statistic's mean, sum, greatest or least value over a sequence, one for all its tokens."""

    inner: Statistic = MismatchDivergence()
    how: str = static("mean")

    def check(self) -> None:
        """``how`` is one of four."""
        if self.how not in AGGREGATES:
            raise ValueError(f"how is {self.how!r}; {nearest(self.how, AGGREGATES)}")

    def __call__(self, rollout: Rollout) -> Array:
        value, live = self.inner(rollout), rollout.mask > 0
        if self.how == "mean":
            return _per_sequence(rollout, value)
        if self.how == "sum":
            whole = jnp.sum(jnp.where(live, value, 0), 2, keepdims=True)
        elif self.how == "max":
            whole = jnp.max(jnp.where(live, value, -jnp.inf), 2, keepdims=True)
        else:
            whole = jnp.min(jnp.where(live, value, jnp.inf), 2, keepdims=True)
        return jnp.broadcast_to(whole, value.shape)


@part
class TrustRegion:
    """1 where a statistic of π_θ against the sampler lies in [low, high], else 0, at every inner step anew.

    It takes ``SamplerMask``'s statistics with π_θ in the place of π_old. ``one_sided`` drops a token above
    high only where A > 0 and below low only elsewhere, so that a token may always come back.

    prime-rl's IPO is ``Rise`` within ±0.1; DPPO (arXiv:2602.04879) is ``Rise`` or the signed ``BinaryKL``,
    one-sided; KPop is ``BothBinaryKL``; IcePop at θ (arXiv:2512.16144, equation (1)) is ``MismatchRatio``.
    """

    statistic: Statistic = Rise()
    low: Number = number(-math.inf, nonfinite=True)
    high: Number = number(math.inf, nonfinite=True)
    one_sided: bool = static(False)

    def __call__(self, at: Evaluation) -> Array:
        value = self.statistic(at.rollout._replace(old_logp=at.logp))
        above, below = value > self.high, value < self.low
        out = jnp.where(at.advantages > 0, above, below) if self.one_sided else above | below
        return jnp.where(out, 0.0, 1.0)


@part
class SamplerPenalty:
    """coef·D(log π_θ, log π_sampling): a penalty that holds on to whoever sampled, not to the reference."""

    divergence: Divergence = K2()
    coef: Number = number(0.0, low=0.0)
    reduce: Reduction | None = None

    def __call__(self, at: Evaluation) -> Array:
        return self.coef * self.divergence(at.logp, at.rollout.sampling_logp)


@part
class AtTheta:
    """An inner correction with π_θ in the place of π_old: for libraries that take the first for the second.

    So do open-instruct and NeMo-RL where a batch has one step: there the two are equal.
    """

    inner: Correction = SamplerMismatch()

    def __call__(self, at: Evaluation) -> Array:
        return self.inner(at._replace(rollout=at.rollout._replace(old_logp=at.logp)))


@part
class MeanOne:
    """An inner correction divided by its mean over the batch's tokens, or over its sequences (verl)."""

    inner: Correction = SamplerMismatch()
    by_sequence: bool = static(False)
    couples: ClassVar[Coupling] = Coupling.BATCH

    def __call__(self, at: Evaluation) -> Array:
        value, mask = self.inner(at), at.rollout.mask
        weight = at.rollout.multiplicity[:, :, None] * mask
        if self.by_sequence:
            weight = divide(weight, jnp.sum(mask, 2, keepdims=True))
        level = mean(value, weight, (0, 1, 2))
        return jnp.where(level > 0, divide(value, level), value)


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
