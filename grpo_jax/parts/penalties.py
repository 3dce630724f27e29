"""Slot 6, penalties: an estimate of the divergence from the reference, per token, times a coefficient.

With x = log π_ref − log π_θ at the sampled token (Schulman's k1, k2, k3): k1 = −x, k2 = x²/2, k3 = e^x − x −
1. [A] equation (3)'s penalty D is k3. In expectation, on-policy and in logits, k1 has gradient 0, k2 has
∇KL(π‖π_ref), k3 has ∇KL(π_ref‖π), and k3 times the differentiated ratio has ∇KL(π‖π_ref) (claim A3).
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from grpo_jax.part import number, part
from grpo_jax.parts.ratios import Ratio, Token, clamped, exponential
from grpo_jax.parts.reductions import Reduction
from grpo_jax.statistics import divide
from grpo_jax.types import Array, Number, Rollout


class Divergence(Protocol):
    """(rollout, log ratio, logp, advantages) -> [P, N, T]."""

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array, /) -> Array: ...


def anchored(rollout: Rollout, coef: Number, logp: Array) -> Rollout:
    """The rollout with π_ref := π where the coefficient is 0, so that the reference may have zeros there."""
    here = jax.lax.stop_gradient(logp)
    return rollout._replace(ref_logp=jnp.where(jnp.asarray(coef) == 0, here, rollout.ref_logp))


@part
class Penalty:
    """coef times a divergence; reduced like the gain unless ``reduce`` is given.

    Where coef is 0 the reference is not read, so π_ref may have zeros there.
    """

    divergence: Divergence
    coef: Number = number(0.0, low=0.0)
    reduce: Reduction | None = None

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        rollout = anchored(rollout, self.coef, logp)
        return self.coef * self.divergence(rollout, log_ratio, logp, advantages)


@part
class K1:
    """log π_θ − log π_ref."""

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        return logp - rollout.ref_logp


@part
class Distance:
    """|log π_θ − log π_ref| (verl's "abs")."""

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        return jnp.abs(logp - rollout.ref_logp)


@part
class K2:
    """½ (log π_θ − log π_ref)²."""

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        return 0.5 * (logp - rollout.ref_logp) ** 2


@part
class K3:
    """e^x − x − 1, x = log π_ref − log π_θ held within ±``clamp`` (verl: 20)."""

    clamp: Number | None = number(None, low=0.0, nonfinite=True)

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        x = clamped(rollout.ref_logp - logp, self.clamp)
        return exponential(x) - x - 1


@part
class Capped:
    """An inner divergence held within ±``cap``, with gradient 0 outside (verl's k3 and OpenRLHF: 10)."""

    inner: Divergence = K3()
    cap: Number = number(10.0, low=0.0, nonfinite=True)

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        return jnp.clip(self.inner(rollout, log_ratio, logp, advantages), -self.cap, self.cap)


@part
class Weighted:
    """An inner divergence times a differentiated ratio: [A] "direct KL", GRPO (V3.2), TRL's default.

    The token ratio I_{i,t} unless ``ratio`` is another (TRL takes that of its importance sampling level).
    """

    inner: Divergence = K3()
    ratio: Ratio = Token()

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        return exponential(self.ratio(rollout, logp)) * self.inner(rollout, log_ratio, logp, advantages)


@part
class Reweighted:
    """An inner divergence times the constant sg[min(I_{i,t}, cap)] (OpenRLHF's unbiased gradient: cap 10)."""

    inner: Divergence = K2()
    cap: Number = number(float("inf"), low=0.0, nonfinite=True)

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        weight = jnp.minimum(exponential(logp - rollout.old_logp), self.cap)
        return jax.lax.stop_gradient(weight) * self.inner(rollout, log_ratio, logp, advantages)


@part
class StraightThrough:
    """The value of one divergence with the gradient of another (verl's "+", OpenRLHF's unbiased gradient)."""

    value: Divergence = K3()
    gradient: Divergence = K2()

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        value = jax.lax.stop_gradient(self.value(rollout, log_ratio, logp, advantages))
        moving = self.gradient(rollout, log_ratio, logp, advantages)
        return value + moving - jax.lax.stop_gradient(moving)


@part
class WeightedEntropy:
    """GTPO's entropy term, [B] Table 1: ⟨H⟩_i I_{i,t} times constant ``factors`` (δ_i and λ_{i,t}).

    ⟨H⟩_i is the sequence's mean ``rollout.entropy``, a constant: it acts as a reduction of the sequence's
    advantage.
    """

    factors: tuple[Any, ...] = ()

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        if rollout.entropy is None:
            raise ValueError("WeightedEntropy needs rollout.entropy")
        total = jnp.sum(rollout.entropy * rollout.mask, 2, keepdims=True)
        weight = divide(total, jnp.sum(rollout.mask, 2, keepdims=True))
        for factor in self.factors:
            weight = weight * factor(rollout, log_ratio, logp, advantages)
        return jax.lax.stop_gradient(weight) * exponential(log_ratio)
