"""Slot 6, penalties: an estimate of the divergence from the reference, per token, times a coefficient.

With x = log π_ref − log π_θ at the sampled token (Schulman's k1, k2, k3): k1 = −x, k2 = x²/2, k3 = e^x − x − 1.
[A] equation (3)'s penalty D is k3. In expectation, on-policy and in logits, k1 has gradient 0, k2 has ∇KL(π‖π_ref), k3 has
∇KL(π_ref‖π), and k3 times the differentiated ratio has ∇KL(π‖π_ref) (claim A3).
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from grpo_jax.part import number, part
from grpo_jax.parts.ratios import exponential
from grpo_jax.parts.reductions import Reduction
from grpo_jax.types import Array, Number, Rollout


class Divergence(Protocol):
    """(rollout, log ratio, logp, advantages) -> [P, N, T]."""

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array, /) -> Array: ...


@part
class Penalty:
    """coef times a divergence; reduced like the gain unless ``reduce`` is given.

    Where coef is 0 the reference is not read, so π_ref may have zeros there.
    """

    divergence: Divergence
    coef: Number = number(0.0, low=0.0)
    reduce: Reduction | None = None

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        ref_logp = jnp.where(jnp.asarray(self.coef) == 0, jax.lax.stop_gradient(logp), rollout.ref_logp)
        rollout = rollout._replace(ref_logp=ref_logp)
        return self.coef * self.divergence(rollout, log_ratio, logp, advantages)


@part
class K1:
    """log π_θ − log π_ref."""

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        return logp - rollout.ref_logp


@part
class K2:
    """½ (log π_θ − log π_ref)²."""

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        return 0.5 * (logp - rollout.ref_logp) ** 2


@part
class K3:
    """e^x − x − 1, x = log π_ref − log π_θ clamped to ±``clamp``, the value clamped to ±``cap`` (verl: 20, 10)."""

    clamp: Number = number(float("inf"), low=0.0, nonfinite=True)
    cap: Number = number(float("inf"), low=0.0, nonfinite=True)

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        x = jnp.clip(rollout.ref_logp - logp, -self.clamp, self.clamp)
        return jnp.clip(exponential(x) - x - 1, -self.cap, self.cap)


@part
class Weighted:
    """An inner divergence times the differentiated token ratio I_{i,t} ([A] "direct KL", GRPO (V3.2), TRL's default)."""

    inner: Divergence = K3()

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        ratio = exponential(logp - rollout.old_logp)
        return ratio * self.inner(rollout, log_ratio, logp, advantages)
