"""Questions with finitely many answers: a reward table, deterministic, Bernoulli or Gaussian."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from grpo_jax.part import number, part
from grpo_jax.sequences import at_prompts, lookup
from grpo_jax.tasks import noise as noises
from grpo_jax.tasks.noise import Noise
from grpo_jax.types import Array, Levels, Number


@part
class Questions:
    """r = φ·(reward of action k in context c, with noise).

    Args:
      table: [C, K] rewards (the success probabilities under Bernoulli noise); no NaN.
      noise: None, ``Bernoulli()``, ``Flips(...)`` or ``Gaussian(std=...)``.
      scale: φ, multiplies every reward ([B] Proposition 2).
    """

    table: Any = number(rank=2)
    noise: Noise | None = None
    scale: Number = number(1.0)
    one_token: ClassVar[bool] = True

    def check(self) -> None:
        """The table must be [contexts, actions]."""
        if np.ndim(self.table) not in (2, 3):
            raise ValueError(
                f"the reward table has shape {np.shape(self.table)}; it must be [contexts, actions]"
            )
        noises.check_means("the reward table", np.asarray(self.table), self.noise)

    def prompts(self, uniforms: Array) -> Array:
        """Contexts drawn uniformly. int [P]."""
        contexts = jnp.shape(self.table)[0]
        return jnp.minimum((uniforms * contexts).astype(int), contexts - 1)

    def means(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] expected reward of each answer."""
        return self.scale * noises.expected(self.noise, self._means(prompts, tokens))

    def _means(self, prompts: Array, tokens: Array) -> Array:
        return lookup(at_prompts(jnp.asarray(self.table, float), prompts), jnp.asarray(tokens)[:, :, 0])

    def rewards(self, prompts: Array, tokens: Array, mask: Array, uniforms: Array) -> Array:
        """[P, N, 1]."""
        return (self.scale * noises.draw(self.noise, self._means(prompts, tokens), uniforms))[:, :, None]

    def levels(self, prompts: Array, tokens: Array, mask: Array) -> Levels | None:
        """One level without noise, two under Bernoulli and flips, None under Gaussian. [P, N, L]."""
        return noises.levels(self.noise, self._means(prompts, tokens), self.scale)
