"""Slot 4, gains: what a token is worth, J_{i,t}(ratio, advantage), to be maximised.

Where a clip holds the gain constant is decided by strict inequalities: at a ratio of exactly 1 ± ε the token
is live and has the unclipped gradient (``jax.grad`` of a minimum would return a mixture of both branches
there). ``clip_mask`` says where, for diagnostics and for theory.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from grpo_jax.kernels import exponential
from grpo_jax.part import number, part
from grpo_jax.types import Array, Evaluation, Number


class ClipMask(NamedTuple):
    """Boolean [P, N, T] masks of tokens whose gain a clip holds constant."""

    high: Array
    """The ratio is above the upper bound."""
    low: Array
    """The ratio is below the lower bound."""


class Gain(Protocol):
    """Evaluation -> [P, N, T]."""

    def __call__(self, at: Evaluation, /) -> Array: ...


@runtime_checkable
class Clips(Protocol):
    """A gain with a clip: it says where the clip holds it constant."""

    def clip_mask(self, ratio: Array, advantages: Array) -> ClipMask:
        """Masks [P, N, T] for ratios [P, N, T] and advantages [P, N, 1 or T]."""


def clip_mask(gain: Gain, log_ratio: Array, advantages: Array) -> ClipMask:
    """Where the gain's clip holds the gradient at zero; nowhere for a gain without a clip.

    Masks [P, N, T]; ratios [P, N, T], advantages [P, N, 1 or T].
    """
    if isinstance(gain, Clips):
        return gain.clip_mask(exponential(log_ratio), advantages)
    nowhere = jnp.zeros(jnp.broadcast_shapes(log_ratio.shape, advantages.shape), bool)
    return ClipMask(high=nowhere, low=nowhere)


@part
class Linear:
    """J = s·A, no clip."""

    def __call__(self, at: Evaluation) -> Array:
        return exponential(at.log_ratio) * at.advantages


@part
class Clip:
    """J = min(s A, clip(s, 1 − low, 1 + high) A), equation (1) of [B]: PPO's clip."""

    low: Number = number(0.2, low=0.0, nonfinite=True)
    high: Number = number(0.2, low=0.0, nonfinite=True)

    def clip_mask(self, ratio: Array, advantages: Array) -> ClipMask:
        """A > 0 above 1 + high, A < 0 below 1 − low."""
        return ClipMask(
            high=(ratio > 1 + self.high) & (advantages > 0),
            low=(ratio < 1 - self.low) & (advantages < 0),
        )

    def __call__(self, at: Evaluation) -> Array:
        ratio = exponential(at.log_ratio)
        out = self.clip_mask(ratio, at.advantages)
        bound = jnp.where(out.high, 1 + self.high, jnp.where(out.low, 1 - self.low, ratio))
        return bound * at.advantages


@part
class DualClip:
    """``Clip``, and for A < 0 at least cap·A: max(min(s A, clip(s) A), cap A) (arXiv:1912.09729)."""

    low: Number = number(0.2, low=0.0, nonfinite=True)
    high: Number = number(0.2, low=0.0, nonfinite=True)
    cap: Number = number(3.0, low=1.0, nonfinite=True)

    def clip_mask(self, ratio: Array, advantages: Array) -> ClipMask:
        """As ``Clip``, and A < 0 above cap."""
        upper = jnp.where(advantages > 0, 1 + self.high, self.cap)
        return ClipMask(
            high=(ratio > upper) & (advantages != 0), low=(ratio < 1 - self.low) & (advantages < 0)
        )

    def __call__(self, at: Evaluation) -> Array:
        ratio = exponential(at.log_ratio)
        out = self.clip_mask(ratio, at.advantages)
        upper = jnp.where(at.advantages > 0, 1 + self.high, self.cap)
        return jnp.where(out.high, upper, jnp.where(out.low, 1 - self.low, ratio)) * at.advantages


@part
class TwoSided:
    """INTELLECT-2's two-sided clip as TRL computes it: min(min(s, delta) A, clip(s, 1 − low, 1 + high) A).

    For A < 0 the ratio is held above max(delta, 1 + high), for A > 0 above min(delta, 1 + high).
    """

    low: Number = number(0.2, low=0.0, nonfinite=True)
    high: Number = number(0.2, low=0.0, nonfinite=True)
    delta: Number = number(4.0, low=0.0, open_low=True, nonfinite=True)

    def _upper(self, advantages: Array) -> Array:
        over, under = jnp.minimum(self.delta, 1 + self.high), jnp.maximum(self.delta, 1 + self.high)
        return jnp.where(advantages > 0, over, under)

    def clip_mask(self, ratio: Array, advantages: Array) -> ClipMask:
        """Either sign above its bound, A < 0 below 1 − low."""
        above = (ratio > self._upper(advantages)) & (advantages != 0)
        return ClipMask(high=above, low=(ratio < 1 - self.low) & (advantages < 0))

    def __call__(self, at: Evaluation) -> Array:
        ratio = exponential(at.log_ratio)
        out = self.clip_mask(ratio, at.advantages)
        bound = jnp.where(out.high, self._upper(at.advantages), jnp.where(out.low, 1 - self.low, ratio))
        return bound * at.advantages


@part
class UpperClip:
    """Upper-only, first form (C4): J = min(s A, min(s, 1 + high) A). Only A > 0 is ever held."""

    high: Number = number(0.2, low=0.0, nonfinite=True)

    def clip_mask(self, ratio: Array, advantages: Array) -> ClipMask:
        """A > 0 above 1 + high."""
        above = (ratio > 1 + self.high) & (advantages > 0)
        return ClipMask(high=above, low=jnp.zeros_like(above))

    def __call__(self, at: Evaluation) -> Array:
        ratio = exponential(at.log_ratio)
        return jnp.where(self.clip_mask(ratio, at.advantages).high, 1 + self.high, ratio) * at.advantages


@part
class Truncated:
    """Upper-only, second form (C4): J = min(s, 1 + high)·A, gradient 0 above for either sign of A."""

    high: Number = number(0.2, low=0.0, nonfinite=True)

    def clip_mask(self, ratio: Array, advantages: Array) -> ClipMask:
        """Any A above 1 + high."""
        above = (ratio > 1 + self.high) & (advantages != 0)
        return ClipMask(high=above, low=jnp.zeros_like(above))

    def __call__(self, at: Evaluation) -> Array:
        ratio = exponential(at.log_ratio)
        return jnp.where(self.clip_mask(ratio, at.advantages).high, 1 + self.high, ratio) * at.advantages


@part
class TruncatedScore:
    """Third form (C4) and CISPO (arXiv:2506.13585): J = sg[clip(s, 1 − low, 1 + high)]·A·log π_θ(y_t|·).

    Every token keeps a gradient. low = 1 is no lower bound; TRL's absolute cap c is high = c − 1.
    """

    low: Number = number(1.0, low=0.0, nonfinite=True)
    high: Number = number(0.2, low=-1.0, nonfinite=True)

    def __call__(self, at: Evaluation) -> Array:
        bounded = jnp.clip(exponential(at.log_ratio), 1 - self.low, 1 + self.high)
        return jax.lax.stop_gradient(bounded) * at.advantages * at.logp


@part
class LogLikelihood:
    """GPG and REINFORCE: J = A·log π_θ(y_t|·), no ratio at all."""

    def __call__(self, at: Evaluation) -> Array:
        return at.advantages * at.logp
