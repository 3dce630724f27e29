"""Answers as dice: preferences that no reward of single answers can order."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp

import grpo_jax as gj
from grpo_jax.types import Array, Levels

CIRCLE = ((2.0, 4.0, 9.0), (1.0, 6.0, 8.0), (3.0, 5.0, 7.0))
"""Each die beats the next with probability 5/9."""


@gj.part
class Dice:
    """One question; answer k's reward is a face of its die, all equally likely."""

    faces: tuple[tuple[float, ...], ...] = gj.static()
    contexts: ClassVar[int] = 1

    def prompts(self, uniforms: Array) -> Array:
        """The one question."""
        return jnp.zeros(uniforms.shape, int)

    def rewards(self, prompts: Array, tokens: Array, mask: Array, uniforms: Array) -> Array:
        """[P, N, 1]."""
        faces = jnp.array(self.faces)
        face = jnp.minimum((uniforms * faces.shape[1]).astype(int), faces.shape[1] - 1)
        return faces[tokens[:, :, 0], face][:, :, None]

    def levels(self, prompts: Array, tokens: Array, mask: Array) -> Levels:
        """The faces of every answer's die."""
        answer = jnp.asarray(tokens)[:, :, 0]
        values = jnp.stack([jnp.array(column)[answer] for column in zip(*self.faces, strict=True)], 2)
        return Levels(values=values, probabilities=jnp.full(values.shape, 1 / len(self.faces[0])))
