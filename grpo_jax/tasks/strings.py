"""Strings of letters: to be copied or sorted, for partial credit, or to be gone on from."""

from __future__ import annotations

import dataclasses
import functools
import string
from typing import Literal, get_args

import jax.numpy as jnp

from grpo_jax.bounds import whole
from grpo_jax.sequences import Sequences
from grpo_jax.tasks.answers import digits_of, exact_match, length, same, take, with_end
from grpo_jax.tasks.trees import free_length
from grpo_jax.types import Array

MOST = 2**31 - 1


def _check_size(what: str, size: int, letters: int) -> None:
    whole(what, size)
    whole("letters", letters, low=2)
    if letters > len(string.ascii_lowercase):
        raise ValueError(f"letters is {letters}; there are {len(string.ascii_lowercase)}")
    if letters**size > MOST:
        raise ValueError(
            f"{letters}^{size} problems are more than {MOST}; use fewer letters or a less {what}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rewritten:
    """A string of letters and what is to be made of it; ``_wanted`` says what."""

    size: int = 4
    letters: int = 4
    partial: bool = True

    def __post_init__(self) -> None:
        _check_size("size", self.size, self.letters)
        if not isinstance(self.partial, bool):
            raise TypeError(f"partial is {self.partial!r}; it must be True or False")

    @property
    def count(self) -> int:
        """Problems."""
        return self.letters**self.size

    @property
    def words(self) -> tuple[str, ...]:
        """Letters, equals, EOS."""
        return (*string.ascii_lowercase[: self.letters], "=", "<eos>")

    @property
    def prompt_length(self) -> int:
        """Q."""
        return self.size + 1

    @functools.cached_property
    def space(self) -> Sequences:
        """Every answer of at most as many tokens as the right one."""
        return Sequences(vocab=self.letters + 2, horizon=self.size + 1, eos=self.letters + 1)

    def prompt(self, index: Array) -> Array:
        """int [P, Q]."""
        letters = digits_of(index, self.size, self.letters)[:, ::-1]
        return jnp.pad(letters, ((0, 0), (0, 1)), constant_values=self.letters)

    def _wanted(self, letters: Array) -> Array:
        raise NotImplementedError("what is to be made of the letters [P, size]")

    def _right(self, prompts: Array) -> tuple[Array, Array]:
        wanted = self._wanted(prompts[:, :-1])
        return with_end(wanted, jnp.full(len(prompts), self.size), self.letters + 1)

    def grade(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] share of the positions, the end's among them, that are right; or 1 for all and else 0.

        The share is of the longer of the given and the right answer, so that only the right one has 1.
        """
        right, live = self._right(prompts)
        if not self.partial:
            return exact_match(tokens, mask, right, live)
        hits = jnp.sum(same(tokens, mask, right, live) & (mask > 0), 2)
        return hits / jnp.maximum(length(mask), self.size + 1)

    def solution(self, index: Array) -> tuple[Array, Array]:
        """The right answer."""
        return self._right(self.prompt(index))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy(_Rewritten):
    """The string again, then EOS ("dab=" -> "dab"), with partial credit: the share of right positions.

    Args:
      size: of the string; there are letters^size problems.
      letters: of the alphabet.
      partial: False for exact match.
    """

    def _wanted(self, letters: Array) -> Array:
        return letters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sort(_Rewritten):
    """The string's letters in order, then EOS ("dab=" -> "abd"), with partial credit as in ``Copy``.

    Args:
      size: of the string; there are letters^size problems.
      letters: of the alphabet.
      partial: False for exact match.
    """

    def _wanted(self, letters: Array) -> Array:
        return jnp.sort(letters, axis=1)


Decides = Literal["first", "last"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnequalSuffixes:
    """A prefix of letters, then a suffix of any length of which one letter decides: is a bias by length seen?

    The prompts are the nodes of a tree at one depth, so that they share their first letters. The right
    letter is the sum of the prefix's letters (a = 0, b = 1, ...) modulo their number. As in ``tasks.trees``,
    which tabulates such trees: where the first letter decides, what follows does not matter, so that whatever
    happens to it is a bias.

    Args:
      prefix: letters of a prompt; there are letters^prefix problems.
      letters: of the alphabet.
      horizon: greatest length of a suffix, its EOS included.
      decides: "first", the suffix's first letter; or "last", its last before EOS, as the answer after a chain
        of thought. Without EOS it is the one at the horizon.
    """

    prefix: int = 2
    letters: int = 2
    horizon: int = 6
    decides: Decides = "first"

    def __post_init__(self) -> None:
        _check_size("prefix", self.prefix, self.letters)
        whole("horizon", self.horizon, low=2)
        if self.decides not in get_args(Decides):
            raise ValueError(f"decides is {self.decides!r}; it must be one of {', '.join(get_args(Decides))}")

    @property
    def count(self) -> int:
        """Problems."""
        return self.letters**self.prefix

    @property
    def words(self) -> tuple[str, ...]:
        """Letters, EOS."""
        return (*string.ascii_lowercase[: self.letters], "<eos>")

    @property
    def prompt_length(self) -> int:
        """Q."""
        return self.prefix

    @functools.cached_property
    def space(self) -> Sequences:
        """Every suffix of one letter or more."""
        return free_length(vocab=self.letters + 1, horizon=self.horizon)

    def prompt(self, index: Array) -> Array:
        """int [P, Q]."""
        return digits_of(index, self.prefix, self.letters)[:, ::-1]

    def right(self, prompts: Array) -> Array:
        """int [P] the letter that a suffix needs."""
        return jnp.sum(prompts, 1) % self.letters

    def grade(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] 1 where the deciding letter is right, else 0."""
        given = jnp.sum((mask > 0) & (tokens != self.letters), 2)
        said = tokens[:, :, 0] if self.decides == "first" else take(tokens, given - 1)
        return jnp.where((said == self.right(prompts)[:, None]) & (given > 0), 1.0, 0.0)

    def solution(self, index: Array) -> tuple[Array, Array]:
        """The right letter once, twice, ..., horizon − 1 times, from problem to problem in turn. [P, T]."""
        index = jnp.asarray(index)
        letter = self.right(self.prompt(index))
        times = 1 + index % (self.horizon - 1)
        return with_end(jnp.repeat(letter[:, None], self.horizon - 1, 1), times, self.letters)
