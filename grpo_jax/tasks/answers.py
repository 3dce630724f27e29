"""What generators of problems share: prompts padded on the left, numbers as digits, answers compared."""

from __future__ import annotations

import jax.numpy as jnp

from grpo_jax.types import Array

PAD = -1
"""What stands to the left of a prompt that is shorter than the longest."""


def padded_left(tokens: Array, live: Array) -> Array:
    """int [P, Q] live tokens in order at the right end, −1 before them; bool ``live`` is [P, Q]."""
    order = jnp.argsort(live, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(live, tokens, PAD), order, axis=1)


def digits_of(value: Array, width: int, base: int = 10) -> Array:
    """int [P, width] digits of numbers [P], the least significant first."""
    return value[:, None] // base ** jnp.arange(width) % base


def number_length(value: Array, width: int, base: int = 10) -> Array:
    """[P] digits that a number has without leading zeros, at most ``width``; 0 has one."""
    return 1 + jnp.sum(value[:, None] >= base ** jnp.arange(1, width), 1)


def with_end(tokens: Array, length: Array, eos: int) -> tuple[Array, Array]:
    """Tokens and mask [P, T] of answers [P, T − 1] of which the first ``length`` [P] count, then EOS.

    What follows the EOS is masked, and is EOS.
    """
    step = jnp.arange(tokens.shape[1] + 1)
    longer = jnp.pad(tokens, ((0, 0), (0, 1)))
    return jnp.where(step < length[:, None], longer, eos), jnp.where(step <= length[:, None], 1.0, 0.0)


def spelled(value: Array, width: int, *, eos: int, least_first: bool) -> tuple[Array, Array]:
    """Tokens and mask [P, width + 1] of numbers [P] in base ten without leading zeros, then EOS."""
    length = number_length(value, width)
    digits = digits_of(value, width)
    if not least_first:
        place = jnp.maximum(length[:, None] - 1 - jnp.arange(width), 0)
        digits = jnp.take_along_axis(digits, place, axis=1)
    return with_end(digits, length, eos)


def same(tokens: Array, mask: Array, right: Array, live: Array) -> Array:
    """bool [P, N, T], where an answer has the right token, or nothing as the right one has nothing.

    Args:
      tokens: [P, N, T]; masked ones are not read.
      mask: [P, N, T].
      right: [P, T].
      live: [P, T], the right answer's mask.
    """
    here, there = mask > 0, live[:, None] > 0
    return (here == there) & (~here | (tokens == right[:, None]))


def exact_match(tokens: Array, mask: Array, right: Array, live: Array) -> Array:
    """[P, N] 1 where the answer is the right one, token by token and in length; else 0."""
    return jnp.where(jnp.all(same(tokens, mask, right, live), 2), 1.0, 0.0)


def length(mask: Array) -> Array:
    """int [P, N] tokens that count, EOS included."""
    return jnp.sum(mask > 0, 2)


def ended(tokens: Array, mask: Array, eos: int | None) -> Array:
    """bool [P, N], whether an answer has its EOS rather than being cut at the horizon."""
    if eos is None:
        return jnp.ones(tokens.shape[:2], bool)
    return jnp.any((tokens == eos) & (mask > 0), 2)


def take(tokens: Array, place: Array) -> Array:
    """int [P, N] the token [P, N, T] at step ``place`` [P, N] (the nearest step where there is none)."""
    step = jnp.clip(place, 0, tokens.shape[2] - 1)
    return jnp.take_along_axis(tokens, step[:, :, None], axis=2)[:, :, 0]
