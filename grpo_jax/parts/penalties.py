"""Slot 6, penalties: an estimate of the divergence from the reference, per token, times a coefficient.

With x = log π_ref − log π_θ at the sampled token (Schulman's k1, k2, k3): k1 = −x, k2 = x²/2, k3 = e^x − x −
1. [A] equation (3)'s penalty D is k3. In expectation, on-policy and in logits, k1 has gradient 0, k2 has
∇KL(π‖π_ref), k3 has ∇KL(π_ref‖π), and k3 times the differentiated ratio has ∇KL(π‖π_ref) (claim A3).
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from grpo_jax.kernels import clamp, exponential
from grpo_jax.part import number, part
from grpo_jax.parts.corrections import Correction
from grpo_jax.parts.ratios import Ratio, Score, Token
from grpo_jax.parts.reductions import Reduction, Rewarded
from grpo_jax.statistics import divide
from grpo_jax.types import Array, Evaluation, Number


class PenaltyTerm(Protocol):
    """What stands in the penalty slot: Evaluation -> β D [P, N, T], subtracted from the objective."""

    @property
    def reduce(self) -> Reduction | None:
        """Token weights of its own; None takes the gain's."""

    def __call__(self, at: Evaluation, /) -> Array: ...


class Divergence(Protocol):
    """(logp, ref_logp), both [P, N, T] -> D [P, N, T]."""

    def __call__(self, logp: Array, ref_logp: Array, /) -> Array: ...


class PenaltyWeight(Protocol):
    """(evaluation, D) -> weighted D [P, N, T]."""

    def __call__(self, at: Evaluation, divergence: Array, /) -> Array: ...


def reference(ref_logp: Array, coef: Number, logp: Array) -> Array:
    """log π_ref, and log π (detached) where the coefficient is 0, so that π_ref may have zeros there.

    [P, N, T(, R)].
    """
    return jnp.where(jnp.asarray(coef) == 0, jax.lax.stop_gradient(logp), ref_logp)


@part
class Penalty:
    """β·w·D: a coefficient times a divergence, weighted where ``weight`` says so.

    Reduced like the gain unless ``reduce`` is given. Where coef is 0 the reference is not read, so π_ref may
    have zeros there.
    """

    divergence: Divergence
    coef: Number = number(0.0, low=0.0)
    weight: PenaltyWeight | None = None
    reduce: Reduction | None = None

    @property
    def reference_coef(self) -> Number:
        """coef."""
        return self.coef

    def __call__(self, at: Evaluation) -> Array:
        divergence = self.divergence(at.logp, reference(at.rollout.ref_logp, self.coef, at.logp))
        return self.coef * (divergence if self.weight is None else self.weight(at, divergence))


@part
class K1:
    """log π_θ − log π_ref."""

    def __call__(self, logp: Array, ref_logp: Array) -> Array:
        return logp - ref_logp


@part
class Distance:
    """|log π_θ − log π_ref| (verl's "abs")."""

    def __call__(self, logp: Array, ref_logp: Array) -> Array:
        return jnp.abs(logp - ref_logp)


@part
class K2:
    """½ (log π_θ − log π_ref)²."""

    def __call__(self, logp: Array, ref_logp: Array) -> Array:
        return 0.5 * (logp - ref_logp) ** 2


@part
class K3:
    """e^x − x − 1, x = log π_ref − log π_θ clamped to ±``clamp`` (verl: 20)."""

    clamp: Number | None = number(None, low=0.0, nonfinite=True)

    def __call__(self, logp: Array, ref_logp: Array) -> Array:
        x = ref_logp - logp if self.clamp is None else clamp(ref_logp - logp, -self.clamp, self.clamp)
        return exponential(x) - x - 1


@part
class ClampedDivergence:
    """An inner divergence clamped to ±``limit``, with gradient 0 outside (verl's k3 and OpenRLHF: 10)."""

    inner: Divergence = K3()
    limit: Number = number(10.0, low=0.0, nonfinite=True)

    def __call__(self, logp: Array, ref_logp: Array) -> Array:
        return jnp.clip(self.inner(logp, ref_logp), -self.limit, self.limit)


@part
class ClampedInput:
    """An inner divergence of log π_θ − log π_ref clamped to ±``limit``; NeMo-RL: 20, open-instruct: 40.

    Its gradient is 0 outside.
    """

    inner: Divergence = K3()
    limit: Number = number(20.0, low=0.0, nonfinite=True)

    def __call__(self, logp: Array, ref_logp: Array) -> Array:
        gap = clamp(logp - ref_logp, -self.limit, self.limit)
        return self.inner(gap, jnp.zeros_like(gap))


@part
class StraightThrough:
    """The value of one divergence with the gradient of another (verl's "+", OpenRLHF's unbiased gradient)."""

    value: Divergence = K3()
    gradient: Divergence = K2()

    def __call__(self, logp: Array, ref_logp: Array) -> Array:
        moving = self.gradient(logp, ref_logp)
        return jax.lax.stop_gradient(self.value(logp, ref_logp) - moving) + moving


@part
class RatioWeight:
    """s·D, the ratio differentiated: [A] "direct KL", GRPO (V3.2), TRL with use_bias_correction_kl.

    The token ratio I_{i,t} unless ``ratio`` is another (TRL takes that of its importance sampling level).
    """

    ratio: Ratio = Token()

    def __call__(self, at: Evaluation, divergence: Array) -> Array:
        return exponential(self.ratio(at.rollout, at.logp)) * divergence


@part
class BoundedRatioWeight:
    """clip(s·D, ±limit), the ratio differentiated: NeMo-RL bounds the product.

    With ``Score`` s is 1, and its gradient D·∇log π_θ. s is a constant where |log π_θ − log π_ref| exceeds
    ``reach``.
    """

    ratio: Ratio = Score()
    reach: Number = number(20.0, low=0.0, nonfinite=True)
    limit: Number = number(10.0, low=0.0, nonfinite=True)

    def __call__(self, at: Evaluation, divergence: Array) -> Array:
        weight = exponential(self.ratio(at.rollout, at.logp))
        far = jnp.abs(at.logp - at.rollout.ref_logp) > self.reach
        weight = jnp.where(far, jax.lax.stop_gradient(weight), weight)
        return clamp(weight * divergence, -self.limit, self.limit)


@part
class GradientWeight:
    """The value of D with the gradient sg[min(I_{i,t}, cap)]·∇D (OpenRLHF's unbiased gradient: cap 10)."""

    cap: Number = number(float("inf"), low=0.0, nonfinite=True)

    def __call__(self, at: Evaluation, divergence: Array) -> Array:
        weight = jnp.minimum(exponential(at.logp - at.rollout.old_logp), self.cap)
        value = jax.lax.stop_gradient(divergence)
        return value + jax.lax.stop_gradient(weight) * (divergence - value)


@part
class EntropyPenalty:
    """GTPO's entropy term, [B] Table 1: coef·⟨H⟩_i I_{i,t} times constant ``factors`` (δ_i and λ_{i,t}).

    ⟨H⟩_i is the sequence's mean ``rollout.entropy``, a constant: it acts as a reduction of the sequence's
    advantage.
    """

    factors: tuple[Correction, ...] = ()
    coef: Number = number(0.0, low=0.0)
    reduce: Reduction | None = None

    def __call__(self, at: Evaluation) -> Array:
        rollout = at.rollout
        if rollout.entropy is None:
            raise ValueError("EntropyPenalty needs rollout.entropy")
        total = jnp.sum(rollout.entropy * rollout.mask, 2, keepdims=True)
        weight = divide(total, jnp.sum(rollout.mask, 2, keepdims=True))
        for factor in self.factors:
            weight = weight * factor(at)
        return self.coef * jax.lax.stop_gradient(weight) * exponential(at.log_ratio)


@part
class Likelihood:
    """−coef·log π_θ where ``reduce`` has weight: VAPO's loss on right answers (arXiv:2504.05118, (10))."""

    coef: Number = number(0.0, low=0.0)
    reduce: Reduction | None = Rewarded()

    def __call__(self, at: Evaluation) -> Array:
        return -self.coef * at.logp
