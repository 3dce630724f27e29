"""Slot 4, continued: gains that weigh tokens smoothly, by the sequence, or by another trust region."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from grpo_jax.kernels import exponential
from grpo_jax.part import number, part
from grpo_jax.parts.corrections import Correction
from grpo_jax.parts.gains import Clip, ClipMask, Gain, clip_mask
from grpo_jax.parts.penalties import reference
from grpo_jax.statistics import divide, mean, present
from grpo_jax.types import Array, Coupling, Evaluation, Number, Rollout

BATCH_TOKENS = (0, 1, 2)


@part
class GeometricMean:
    """GMPO (arXiv:2507.20673): J_i = Ā_i·exp(mean_t d'), d' the clip of d = log I_{i,t} to [−low, high].

    d' = min(d, clip d) for A > 0, max(d, clip d) for A < 0, 0 for A = 0. The same value for every token of a
    sequence. ``eps`` is added to the length (verl: 1e-8); ``keep`` restricts the mean of d' to some tokens
    (TRL: top entropy).
    """

    low: Number = number(0.4, low=0.0, nonfinite=True)
    high: Number = number(0.4, low=0.0, nonfinite=True)
    eps: Number = number(0.0, low=0.0)
    keep: Correction | None = None

    def clip_mask(self, ratio: Array, advantages: Array) -> ClipMask:
        """Single tokens whose d is held inside the mean."""
        d = jnp.log(ratio)
        return ClipMask(high=(d > self.high) & (advantages > 0), low=(d < -self.low) & (advantages < 0))

    def __call__(self, at: Evaluation) -> Array:
        above = (at.log_ratio > self.high) & (at.advantages > 0)
        below = (at.log_ratio < -self.low) & (at.advantages < 0)
        clipped = jnp.where(above, self.high, jnp.where(below, -self.low, at.log_ratio))
        clipped = jnp.where(at.advantages == 0, 0, clipped)
        inside = at.rollout.mask
        if self.keep is not None:
            inside = inside * jax.lax.stop_gradient(self.keep(at))
        exponent = _sequence_mean(clipped, inside, self.eps)
        level = _sequence_mean(at.advantages, at.rollout.mask, self.eps)
        return jnp.broadcast_to(exponential(exponent) * level, clipped.shape)


def _sequence_mean(x: Array, mask: Array, eps: Number) -> Array:
    total = jnp.sum(mask * jnp.where(mask > 0, x, 0), 2, keepdims=True)
    return divide(total, jnp.sum(mask, 2, keepdims=True) + eps)


@part
class Sapo:
    """SAPO (arXiv:2511.20347): J = A·(4/τ)·sigmoid(τ(s − 1)), τ = tau_pos for A > 0 and tau_neg otherwise."""

    tau_pos: Number = number(1.0, low=0.0, open_low=True)
    tau_neg: Number = number(1.05, low=0.0, open_low=True)

    def __call__(self, at: Evaluation) -> Array:
        tau = jnp.where(at.advantages > 0, self.tau_pos, self.tau_neg)
        return jax.nn.sigmoid(tau * (exponential(at.log_ratio) - 1)) * (4 / tau) * at.advantages


@part
class Vespo:
    """VESPO (arXiv:2602.10693): J = sg[φ(w)]·A·log π_θ(y_t|·), φ(w) = e^λ w^k e^{−λw}, w = Π_t I_{i,t}.

    (k, λ) is (k_pos, lambda_pos) for A ≥ 0 and (k_neg, lambda_neg) otherwise; w is kept within [1e-8, e^20].
    A ``sampler`` correction enters w: Σ_t log c_{i,t} is added to log w.
    """

    k_pos: Number = number(2.0, low=0.0)
    lambda_pos: Number = number(3.0, low=0.0)
    k_neg: Number = number(3.0, low=0.0)
    lambda_neg: Number = number(2.0, low=0.0)
    sampler: Correction | None = None

    def __call__(self, at: Evaluation) -> Array:
        low, high = math.log(1e-8), 20.0
        log_ratio = at.log_ratio
        if self.sampler is not None:
            factor = self.sampler(at)
            logs = jnp.clip(jnp.log(factor), low, high)
            log_ratio = log_ratio + jnp.sum(jnp.where(at.rollout.mask > 0, logs, 0), 2, keepdims=True)
        log_w = jnp.clip(log_ratio, low, high)
        k = jnp.where(at.advantages >= 0, self.k_pos, self.k_neg)
        rate = jnp.maximum(jnp.where(at.advantages >= 0, self.lambda_pos, self.lambda_neg), 1e-4)
        phi = exponential(rate + k * log_w - rate * jnp.exp(log_w))
        return jax.lax.stop_gradient(phi) * at.advantages * at.logp


@part
class QuadraticLogLikelihood:
    """DRO (arXiv:2405.19107): J = A log π_θ(y_t|·) − ½ beta (log π_θ − log π_old)²."""

    beta: Number = number(0.1, low=0.0, open_low=True)

    def __call__(self, at: Evaluation) -> Array:
        return at.advantages * at.logp - 0.5 * self.beta * (at.logp - at.rollout.old_logp) ** 2


@part
class VariationRegion:
    """DPPO, total variation (arXiv:2602.04879): J = sg[min(s, cap)·M]·A·log π_θ(y_t|·), M the trust region.

    M = 1{π_θ − π_old ≤ high} for A > 0 and 1{π_θ − π_old ≥ −low} otherwise, at the sampled token.
    """

    low: Number = number(0.2, low=0.0, nonfinite=True)
    high: Number = number(0.2, low=0.0, nonfinite=True)
    cap: Number = number(20.0, low=0.0, nonfinite=True)

    def __call__(self, at: Evaluation) -> Array:
        moved = exponential(at.logp) - exponential(at.rollout.old_logp)
        inside = jnp.where(at.advantages > 0, moved <= self.high, moved >= -self.low)
        weight = jnp.where(inside, jnp.minimum(exponential(at.log_ratio), self.cap), 0)
        return jax.lax.stop_gradient(weight) * at.advantages * at.logp


@part
class BinaryKLRegion:
    """DPPO, binary KL (arXiv:2602.04879): ``VariationRegion`` with the token's two-outcome KL(π_old‖π_θ).

    A token that moves against its advantage's direction is always inside. ``guard`` keeps the logarithm
    finite.
    """

    low: Number = number(0.2, low=0.0, nonfinite=True)
    high: Number = number(0.2, low=0.0, nonfinite=True)
    cap: Number = number(20.0, low=0.0, nonfinite=True)
    guard: Number = number(1e-8, low=0.0)

    def __call__(self, at: Evaluation) -> Array:
        new, old = exponential(at.logp), exponential(at.rollout.old_logp)
        rest = jnp.log((1 - old + self.guard) / (1 - new + self.guard))
        divergence = old * (at.rollout.old_logp - at.logp) + (1 - old) * rest
        rising = (divergence <= self.high) | (new <= old)
        falling = (divergence <= self.low) | (new >= old)
        inside = jnp.where(at.advantages > 0, rising, falling)
        weight = jnp.where(inside, jnp.minimum(exponential(at.log_ratio), self.cap), 0)
        return jax.lax.stop_gradient(weight) * at.advantages * at.logp


@part
class LeashedScore:
    """prime-rl 0.4.0: J = sg[min(s, cap)·(scale·A − leash·x + pull·log(π_ref/π_θ))]·log π_θ(y_t|·).

    x = log π_θ/π_sampling of the token, so that ``leash`` is a k1 penalty against the sampler, in REINFORCE's
    form. ``pull`` is the same against the reference (the library's teacher).
    """

    cap: Number = number(math.inf, low=0.0, nonfinite=True)
    scale: Number = number(1.0, low=0.0)
    leash: Number = number(0.0, low=0.0)
    pull: Number = number(0.0, low=0.0)

    @property
    def reference_coef(self) -> Number:
        """pull."""
        return self.pull

    def __call__(self, at: Evaluation) -> Array:
        away = self.leash * (at.logp - at.rollout.sampling_logp)
        towards = self.pull * (reference(at.rollout.ref_logp, self.pull, at.logp) - at.logp)
        weight = jnp.minimum(exponential(at.log_ratio), self.cap) * (
            self.scale * at.advantages - away + towards
        )
        return jax.lax.stop_gradient(weight) * at.logp


def covariance(rollout: Rollout, logp: Array, advantages: Array) -> Array:
    """(A − Ā)(log π_θ − mean log π_θ) over the batch's tokens (arXiv:2505.22617), a constant [P, N, T]."""
    weight = rollout.multiplicity[:, :, None] * rollout.mask
    level = advantages + jnp.zeros_like(logp)
    product = (level - mean(level, weight, BATCH_TOKENS)) * (logp - mean(logp, weight, BATCH_TOKENS))
    return jax.lax.stop_gradient(product)


@part
class CovarianceClip:
    """Clip-Cov (arXiv:2505.22617): ``inner`` without the tokens of covariance within (lower, upper).

    Tokens that the clip already holds stay as they are. The paper leaves out a random
    subset of these tokens; here all of them (verl's ratio 1).
    """

    inner: Gain = Clip()
    lower: Number = number(1.0, nonfinite=True)
    upper: Number = number(5.0, nonfinite=True)
    couples: ClassVar[Coupling] = Coupling.BATCH

    def clip_mask(self, ratio: Array, advantages: Array) -> ClipMask:
        """As the inner gain."""
        return clip_mask(self.inner, jnp.log(ratio), advantages)

    def __call__(self, at: Evaluation) -> Array:
        cov = covariance(at.rollout, at.logp, at.advantages)
        out = clip_mask(self.inner, at.log_ratio, at.advantages)
        drop = (cov > self.lower) & (cov < self.upper) & ~(out.high | out.low)
        return jnp.where(drop, 0, self.inner(at))


@part
class CovariancePenalty:
    """KL-Cov (arXiv:2505.22617): J = s A − coef·|log π_θ − log π_old| at the ``share`` of highest covariance.

    At least one token; of an entry that stands for several samples a part may be chosen.
    """

    share: Number = number(0.0002, low=0.0, high=1.0)
    coef: Number = number(1.0, low=0.0)
    couples: ClassVar[Coupling] = Coupling.BATCH

    def __call__(self, at: Evaluation) -> Array:
        chosen = self._chosen(at.rollout, covariance(at.rollout, at.logp, at.advantages))
        return exponential(at.log_ratio) * at.advantages - self.coef * chosen * jnp.abs(
            at.logp - at.rollout.old_logp
        )

    def _chosen(self, rollout: Rollout, cov: Array) -> Array:
        """[P, N, T] share of each entry's copies among the top ones; ties go to the earlier token."""
        weight = jnp.broadcast_to(rollout.multiplicity[:, :, None] * rollout.mask, cov.shape)
        runs = cov.shape[3:]
        flat = weight.reshape((-1, *runs))
        key = jnp.where(flat > 0, -cov.reshape((-1, *runs)), jnp.inf)
        order = jnp.argsort(key, axis=0)
        mass = jnp.take_along_axis(flat, order, axis=0)
        before = jnp.cumsum(mass, 0) - mass
        wanted = jnp.maximum(jnp.floor(jnp.sum(mass, 0) * self.share), 1)
        taken = divide(jnp.clip(wanted - before, 0, mass), mass)
        back = jnp.argsort(order, axis=0)
        return present(jnp.take_along_axis(taken, back, axis=0).reshape(cov.shape), weight)
