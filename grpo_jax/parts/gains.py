"""Slot 4, gains: what a token is worth, J_{i,t}(ratio, advantage), to be maximised.

Where a clip holds the gain constant is decided by strict inequalities: at a ratio of exactly 1 ± ε the token is
live and has the unclipped gradient (``jax.grad`` of a minimum would return a mixture of both branches there).
``held`` says where, for diagnostics and for theory.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from grpo_jax.part import number, part
from grpo_jax.parts.ratios import exponential
from grpo_jax.statistics import divide
from grpo_jax.types import Array, Number, Rollout


class Held(NamedTuple):
    """Boolean [P, N, T] masks of tokens whose gain a clip holds constant."""

    high: Array
    """The ratio is above the upper bound."""
    low: Array
    """The ratio is below the lower bound."""


class Gain(Protocol):
    """(rollout, log ratio, logp, advantages) -> [P, N, T]."""

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array, /) -> Array: ...


def held(gain: Gain, log_ratio: Array, advantages: Array) -> Held:
    """Where the gain's clip holds the gradient at zero; nowhere for a gain without a clip."""
    ask = getattr(gain, "held", None)
    if ask is not None:
        return ask(exponential(log_ratio), advantages)
    nowhere = jnp.zeros(jnp.broadcast_shapes(log_ratio.shape, advantages.shape), bool)
    return Held(high=nowhere, low=nowhere)


@part
class Linear:
    """J = s·A, no clip."""

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        return exponential(log_ratio) * advantages


@part
class Clip:
    """J = min(s A, clip(s, 1 − low, 1 + high) A), equation (1) of [B]; PPO's clip, asymmetric where low ≠ high."""

    low: Number = number(0.2, low=0.0, nonfinite=True)
    high: Number = number(0.2, low=0.0, nonfinite=True)

    def held(self, ratio: Array, advantages: Array) -> Held:
        """A > 0 above 1 + high, A < 0 below 1 − low."""
        return Held(
            high=(ratio > 1 + self.high) & (advantages > 0),
            low=(ratio < 1 - self.low) & (advantages < 0),
        )

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        ratio = exponential(log_ratio)
        out = self.held(ratio, advantages)
        bound = jnp.where(out.high, 1 + self.high, jnp.where(out.low, 1 - self.low, ratio))
        return bound * advantages


@part
class DualClip:
    """``Clip``, and for A < 0 at least cap·A: max(min(s A, clip(s) A), cap A) (arXiv:1912.09729)."""

    low: Number = number(0.2, low=0.0, nonfinite=True)
    high: Number = number(0.2, low=0.0, nonfinite=True)
    cap: Number = number(3.0, low=1.0, nonfinite=True)

    def held(self, ratio: Array, advantages: Array) -> Held:
        """As ``Clip``, and A < 0 above cap."""
        upper = jnp.where(advantages > 0, 1 + self.high, self.cap)
        return Held(high=(ratio > upper) & (advantages != 0), low=(ratio < 1 - self.low) & (advantages < 0))

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        ratio = exponential(log_ratio)
        out = self.held(ratio, advantages)
        upper = jnp.where(advantages > 0, 1 + self.high, self.cap)
        return jnp.where(out.high, upper, jnp.where(out.low, 1 - self.low, ratio)) * advantages


@part
class UpperClip:
    """Upper-only, first form (C4): J = min(s A, min(s, 1 + high) A). Only A > 0 is ever held."""

    high: Number = number(0.2, low=0.0, nonfinite=True)

    def held(self, ratio: Array, advantages: Array) -> Held:
        """A > 0 above 1 + high."""
        above = (ratio > 1 + self.high) & (advantages > 0)
        return Held(high=above, low=jnp.zeros_like(above))

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        ratio = exponential(log_ratio)
        return jnp.where(self.held(ratio, advantages).high, 1 + self.high, ratio) * advantages


@part
class Truncated:
    """Upper-only, second form (C4): J = min(s, 1 + high)·A differentiated, gradient 0 above for either sign of A."""

    high: Number = number(0.2, low=0.0, nonfinite=True)

    def held(self, ratio: Array, advantages: Array) -> Held:
        """Any A above 1 + high."""
        above = (ratio > 1 + self.high) & (advantages != 0)
        return Held(high=above, low=jnp.zeros_like(above))

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        ratio = exponential(log_ratio)
        return jnp.where(self.held(ratio, advantages).high, 1 + self.high, ratio) * advantages


@part
class TruncatedScore:
    """Third form (C4) and CISPO (arXiv:2506.13585): J = sg[clip(s, 1 − low, 1 + high)]·A·log π_θ(y_t|·).

    Every token keeps a gradient. low = 1 is no lower bound; TRL's absolute cap c is high = c − 1.
    """

    low: Number = number(1.0, low=0.0, nonfinite=True)
    high: Number = number(0.2, low=-1.0, nonfinite=True)

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        bounded = jnp.clip(exponential(log_ratio), 1 - self.low, 1 + self.high)
        return jax.lax.stop_gradient(bounded) * advantages * logp


@part
class LogLikelihood:
    """GPG and REINFORCE: J = A·log π_θ(y_t|·), no ratio at all."""

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        return advantages * logp


@part
class GeometricMean:
    """GMPO (arXiv:2507.20673): J_i = A_i·exp(mean_t d'), d' the pessimistic clip of log I_{i,t} to [−low, high].

    d' = min(d, clip d) for A > 0 and max(d, clip d) for A ≤ 0. The same value for every token of a sequence.
    ``eps`` is added to the length (verl: 1e-8).
    """

    low: Number = number(0.4, low=0.0, nonfinite=True)
    high: Number = number(0.4, low=0.0, nonfinite=True)
    eps: Number = number(0.0, low=0.0)

    def held(self, ratio: Array, advantages: Array) -> Held:
        """Single tokens whose d is held inside the mean."""
        d = jnp.log(ratio)
        return Held(high=(d > self.high) & (advantages > 0), low=(d < -self.low) & (advantages <= 0))

    def __call__(self, rollout: Rollout, log_ratio: Array, logp: Array, advantages: Array) -> Array:
        held_high = (log_ratio > self.high) & (advantages > 0)
        held_low = (log_ratio < -self.low) & (advantages <= 0)
        clipped = jnp.where(held_high, self.high, jnp.where(held_low, -self.low, log_ratio))
        clipped = jnp.where(rollout.mask > 0, clipped, 0)
        length = jnp.sum(rollout.mask, 2, keepdims=True) + self.eps
        mean = divide(jnp.sum(clipped, 2, keepdims=True), length)
        return jnp.broadcast_to(exponential(mean) * advantages, clipped.shape)
