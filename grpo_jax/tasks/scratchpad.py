"""Room to think: tokens of any number before a marker, and only what follows it is graded."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from grpo_jax.bounds import whole
from grpo_jax.sequences import Sequences
from grpo_jax.tasks.answers import ended, length, with_end
from grpo_jax.tasks.verifiable import Problems
from grpo_jax.types import Array


@runtime_checkable
class ShowsWork(Problems, Protocol):
    """Problems whose solution has steps that one may write down first."""

    def work(self, prompts: Array) -> tuple[Array, Array]:
        """Tokens [P, W] and their number [P]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scratchpad:
    """A scratchpad of free length, the marker "#", then the answer ("12+34=" -> "64#46").

    Nothing before the first marker is graded (Nye et al., *Show your work*, 2112.00114), and everything
    behind it is, by the inner problems' own rule; an answer without a marker is wrong. Solutions write down
    the inner problems' ``work``, cut to the room.

    Args:
      inner: what is asked: ``Addition(...)`` or ``Parity(...)``, or other problems with EOS and ``work``.
      room: tokens of scratchpad that leave place for the longest answer; shorter answers leave more.
    """

    inner: Any
    room: int = 4

    def __post_init__(self) -> None:
        whole("room", self.room, low=0)
        if not isinstance(self.inner, ShowsWork) or isinstance(self.inner, type):
            raise TypeError(
                f"inner is {self.inner!r}; it must be problems that have ``work``: Addition, Parity"
            )
        space = self.inner.space
        if space.eos is None:
            raise ValueError("inner has no EOS: nothing tells where an answer behind a scratchpad ends")
        if space.forbidden:
            raise ValueError(
                "inner forbids tokens at some steps; behind a scratchpad steps have no fixed place"
            )

    @property
    def count(self) -> int:
        """Problems, the inner ones'."""
        return self.inner.count

    @property
    def words(self) -> tuple[str, ...]:
        """The inner problems', then the marker."""
        return (*self.inner.words, "#")

    @property
    def eos(self) -> int:
        """The inner problems'."""
        return int(self.inner.space.eos)

    @property
    def marker(self) -> int:
        """The token between scratchpad and answer."""
        return self.inner.space.vocab

    @property
    def prompt_length(self) -> int:
        """Q, the inner problems'."""
        return self.inner.prompt_length

    @functools.cached_property
    def space(self) -> Sequences:
        """Scratchpad, marker and answer."""
        inner = self.inner.space
        return Sequences(vocab=inner.vocab + 1, horizon=self.room + 1 + inner.horizon, eos=inner.eos)

    def prompt(self, index: Array) -> Array:
        """int [P, Q], the inner problems'."""
        return self.inner.prompt(index)

    def _marked(self, tokens: Array, mask: Array) -> Array:
        """bool [P, N, T]."""
        return (tokens == self.marker) & (mask > 0)

    def grade(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] the inner grade of what follows the first marker; 0 without one."""
        marked, horizon = self._marked(tokens, mask), self.space.horizon
        step = jnp.argmax(marked, 2)[:, :, None] + 1 + jnp.arange(horizon)
        behind = jnp.minimum(step, horizon - 1)
        answer = jnp.take_along_axis(tokens, behind, axis=2)
        live = jnp.where(step < horizon, jnp.take_along_axis(mask, behind, axis=2), 0)
        most = self.inner.space.horizon
        fits = jnp.any(marked, 2) & (length(live) <= most)
        return jnp.where(fits, self.inner.grade(prompts, answer[:, :, :most], live[:, :, :most]), 0.0)

    def formatted(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """bool [P, N]: one marker, no more, and EOS at the end."""
        return (jnp.sum(self._marked(tokens, mask), 2) == 1) & ended(tokens, mask, self.eos)

    def solution(self, index: Array) -> tuple[Array, Array]:
        """The work, the marker, the right answer. [P, T]."""
        work, steps = self.inner.work(self.inner.prompt(index))
        answer, live = self.inner.solution(index)
        before = jnp.minimum(steps, self.room)[:, None]
        step = jnp.arange(self.space.horizon - 1)

        def at(tokens: Array, place: Array) -> Array:
            place = jnp.clip(jnp.broadcast_to(place, (len(index), len(step))), 0, tokens.shape[1] - 1)
            return jnp.take_along_axis(tokens, place, axis=1)

        tokens = jnp.where(step < before, at(work, step), at(answer, step - before - 1))
        tokens = jnp.where(step == before, self.marker, tokens)
        words = jnp.sum(live > 0, 1) - 1
        return with_end(tokens, before[:, 0] + 1 + words, self.eos)
