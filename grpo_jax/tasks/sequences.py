"""Rewards over token sequences: a table over the support, or any function of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.part import number, part, static
from grpo_jax.sequences import Sequences, at_prompts, lookup
from grpo_jax.tasks import noise as noises
from grpo_jax.tasks.noise import Noise
from grpo_jax.types import Array, Levels, Number, fits


class _Sequential:
    """What the two tasks share: a mean per sequence, noise around it, a scale φ."""

    noise: Noise | None
    scale: Number

    def _means(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        raise NotImplementedError("a sequence task defines the mean reward of each sequence")

    def means(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] expected reward of each sequence."""
        return self.scale * noises.expected(self.noise, self._means(prompts, tokens, mask))

    def rewards(self, prompts: Array, tokens: Array, mask: Array, uniforms: Array) -> Array:
        """[P, N, 1]."""
        return (self.scale * noises.draw(self.noise, self._means(prompts, tokens, mask), uniforms))[
            :, :, None
        ]

    def levels(self, prompts: Array, tokens: Array, mask: Array) -> Levels | None:
        """One level without noise, two under Bernoulli and flips, None under Gaussian."""
        return noises.levels(self.noise, self._means(prompts, tokens, mask), self.scale)


@part
class SequenceTable(_Sequential):
    """r = φ·table[c, s], s the sequence's row in ``space.support``.

    Args:
      space: the sequences.
      table: [C, S] rewards, no NaN.
      noise: None, ``Bernoulli()``, ``Flips(...)`` or ``Gaussian(std=...)``.
      scale: φ.
    """

    space: Sequences = static()
    table: Any = number(rank=2)
    noise: Noise | None = None
    scale: Number = number(1.0)

    def check(self) -> None:
        """The table must be [contexts, S]."""
        shape, size = np.shape(self.table), len(self.space.support[0])
        if len(shape) not in (2, 3) or shape[1] != size:
            raise ValueError(f"the reward table has shape {shape}; it must be [contexts, {size}]")
        noises.check_means("the reward table", np.asarray(self.table), self.noise)

    def prompts(self, uniforms: Array) -> Array:
        """Contexts drawn uniformly. int [P]."""
        contexts = jnp.shape(self.table)[0]
        return jnp.minimum((uniforms * contexts).astype(int), contexts - 1)

    def _means(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        place = self.space.place(jnp.asarray(tokens), jnp.asarray(mask))
        return lookup(at_prompts(jnp.asarray(self.table, float), prompts), place)


@part
class SequenceReward(_Sequential):
    """r = φ·function(prompts, tokens, mask).

    Args:
      function: (prompts [P], tokens [P, N, T], mask [P, N, T]) -> mean rewards [P, N], written with the
        leading axes positive so that runs may follow; its identity is part of the program.
      contexts: the number of prompts.
      noise: None, ``Bernoulli()``, ``Flips(...)`` or ``Gaussian(std=...)``.
      scale: φ.
    """

    function: Callable[[Array, Array, Array], Array] = static()
    contexts: int = static(1, low=1)
    noise: Noise | None = None
    scale: Number = number(1.0)

    def prompts(self, uniforms: Array) -> Array:
        """Contexts drawn uniformly. int [P]."""
        return jnp.minimum((uniforms * self.contexts).astype(int), self.contexts - 1)

    def _means(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
        self._check_shape(prompts, tokens, mask)
        means = self.function(prompts, tokens, mask)
        return means * jnp.ones(tokens.shape[:2] + (1,) * (tokens.ndim - 3))

    def _check_shape(self, prompts: Array, tokens: Array, mask: Array) -> None:
        """Traced with as many runs as no other axis has, so that a sum over the wrong axis shows."""
        runs = (tokens.shape[2] + 1,) * (tokens.ndim - 3)
        ids = prompts.shape[:1] + runs * (prompts.ndim - 1) if runs else prompts.shape
        one, other = (jax.ShapeDtypeStruct(x.shape[:3] + runs, x.dtype) for x in (tokens, mask))
        kind = jax.dtypes.canonicalize_dtype(prompts.dtype)
        found = jnp.shape(jax.eval_shape(self.function, jax.ShapeDtypeStruct(ids, kind), one, other))
        wanted = tokens.shape[:2] + runs
        if not fits(found, wanted):
            raise ValueError(
                f"the reward function gives shape {found} for tokens {one.shape}; it must give [P, N] = "
                f"{wanted[:2]}{f', then runs {runs}' if runs else ''}: T is axis 2, not the last"
            )
