"""Reward noise: the law of a reward given its mean."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from grpo_jax.part import number, part
from grpo_jax.types import Array, Levels, Number


class Noise(Protocol):
    """The law of a reward around its mean, without the task's scale φ."""

    def draw(self, mean: Array, uniforms: Array) -> Array:
        """A reward for every mean, from uniforms of the same shape."""

    def levels(self, mean: Array) -> Levels | None:
        """The finite law [P, S, L] for means [P, S], or None where it is not finite."""


@runtime_checkable
class Biased(Protocol):
    """A law of rewards whose mean is another than the one it is given."""

    def expected(self, mean: Array) -> Array:
        """Its mean."""


@part
class Bernoulli:
    """1 with probability equal to the mean, else 0; means must lie in [0, 1]."""

    def draw(self, mean: Array, uniforms: Array) -> Array:
        """1{u < mean}. Elementwise."""
        return jnp.where(uniforms < mean, 1.0, 0.0)

    def levels(self, mean: Array) -> Levels:
        """Values (0, 1) with probabilities (1 − mean, mean). [P, S] -> [P, S, 2]."""
        return Levels(
            values=jnp.stack([jnp.zeros_like(mean), jnp.ones_like(mean)], 2),
            probabilities=jnp.stack([1 - mean, mean], 2),
        )


@part
class Flips:
    """A verdict, 1 with probability equal to the mean (Bernoulli), that a noisy verifier then gets wrong.

    P(v = 1) = ε₊ + (1 − ε₊ − ε₋)·mean. At means 0 and 1 these are the verifier's two error rates.

    Args:
      false_positive: ε₊, probability that a wrong answer is judged right.
      false_negative: ε₋, probability that a right answer is judged wrong.
    """

    false_positive: Number = number(0.0, low=0.0, high=1.0)
    false_negative: Number = number(0.0, low=0.0, high=1.0)

    def expected(self, mean: Array) -> Array:
        """P(v = 1). Elementwise."""
        return self.false_positive + (1 - self.false_positive - self.false_negative) * mean

    def draw(self, mean: Array, uniforms: Array) -> Array:
        """1{u < P(v = 1)}. Elementwise."""
        return Bernoulli().draw(self.expected(mean), uniforms)

    def levels(self, mean: Array) -> Levels:
        """Values (0, 1) with probabilities (1 − P(v = 1), P(v = 1)). [P, S] -> [P, S, 2]."""
        return Bernoulli().levels(self.expected(mean))


@part
class Gaussian:
    """mean + std·z, z standard normal."""

    std: Number = number(1.0, low=0.0)

    def draw(self, mean: Array, uniforms: Array) -> Array:
        """mean + std·Φ⁻¹(u); u = 0 stands for half the distance to the next uniform, so that z is finite.

        Elementwise.
        """
        half_cell = jnp.finfo(uniforms.dtype).eps / 4
        return mean + self.std * ndtri(jnp.maximum(uniforms, half_cell))

    def levels(self, mean: Array) -> None:
        """Not finite. Means [P, S]."""
        return None


def draw(noise: Noise | None, mean: Array, uniforms: Array) -> Array:
    """The reward itself for a task without noise. All [P, N(, R)]."""
    return mean if noise is None else noise.draw(mean, uniforms)


def expected(noise: Noise | None, mean: Array) -> Array:
    """The mean of a law around ``mean``, which is ``mean`` itself unless the law is ``Biased``.

    Elementwise.
    """
    return noise.expected(mean) if isinstance(noise, Biased) else mean


def levels(noise: Noise | None, mean: Array, scale: Number) -> Levels | None:
    """The law of scale times the reward. Means [P, S]; its values [P, S, L]."""
    if noise is None:
        return Levels(values=scale * mean[:, :, None], probabilities=jnp.ones_like(mean)[:, :, None])
    law = noise.levels(mean)
    return None if law is None else law._replace(values=scale * law.values)


def check_means(name: str, means: Array | np.ndarray, noise: Noise | None) -> None:
    """Means of a verdict, 0 or 1, must be probabilities. Any shape."""
    if isinstance(noise, (Bernoulli, Flips)) and (np.min(means) < 0 or np.max(means) > 1):
        raise ValueError(f"{name} must lie in [0, 1] under {type(noise).__name__} noise")
