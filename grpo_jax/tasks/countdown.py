"""Countdown: reach a number from given ones."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator

import jax.numpy as jnp
import numpy as np

from grpo_jax.bounds import whole
from grpo_jax.sequences import Sequences
from grpo_jax.tasks.answers import with_end
from grpo_jax.types import Array

MOST_NUMBERS = 4


@functools.cache
def _solved(numbers: int, largest: int, signs: str) -> dict[tuple[tuple[int, ...], int], str]:
    """(numbers in order, target from 0 on) -> the first expression that reaches it; every one of them."""
    found: dict[tuple[tuple[int, ...], int], str] = {}
    for given in itertools.combinations_with_replacement(range(1, largest + 1), numbers):
        for order in sorted(set(itertools.permutations(given))):
            for between in itertools.product(signs, repeat=numbers - 1):
                value = _value(order, between)
                if value >= 0:
                    said = "".join(itertools.chain(*zip(map(str, order), (*between, ""), strict=True)))
                    found.setdefault((given, value), said)
    return found


def _value(numbers: tuple[int, ...], signs: tuple[str, ...]) -> int:
    """Of an expression without brackets: products before sums."""
    terms = [numbers[0]]
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            terms[-1] *= number
        else:
            terms.append(number if sign == "+" else -number)
    return functools.reduce(operator.add, terms)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Countdown:
    """The target from all the numbers, each once, then EOS ("7:2,3,8=" -> "2+8-3"); any way is right.

    Problems are all sets of numbers with all targets, from 0 on, that they reach by + and − (and ×, which
    binds closer), without brackets. As in TinyZero (Pan et al. 2025) every number is to be used.

    Args:
      numbers: how many are given.
      largest: each is 1, ..., largest; of one digit.
      multiply: whether × is allowed.
    """

    numbers: int = 3
    largest: int = 9
    multiply: bool = False

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("numbers", self.numbers, 2, MOST_NUMBERS),
            ("largest", self.largest, 1, 9),
        ):
            if whole(name, value, low=low) > high:
                raise ValueError(f"{name} is {value}; it must be at most {high}")
        if not isinstance(self.multiply, bool):
            raise TypeError(f"multiply is {self.multiply!r}; it must be True or False")

    @property
    def signs(self) -> str:
        """The operations."""
        return "+-*" if self.multiply else "+-"

    @property
    def words(self) -> tuple[str, ...]:
        """Ten digits, operations, colon, comma, equals, EOS."""
        return (*"0123456789", *self.signs, *":,=", "<eos>")

    @property
    def count(self) -> int:
        """Problems."""
        return len(self._prompts)

    @property
    def prompt_length(self) -> int:
        """Q."""
        return self._prompts.shape[1]

    @functools.cached_property
    def space(self) -> Sequences:
        """Every answer of at most as many tokens as a right one."""
        vocab = len(self.words)
        return Sequences(vocab=vocab, horizon=2 * self.numbers, eos=vocab - 1)

    @property
    def eos(self) -> int:
        """The last token."""
        return len(self.words) - 1

    def _encoded(self, texts: list[str]) -> np.ndarray:
        """int [count, length], padded on the left."""
        symbols = {word: i for i, word in enumerate(self.words)}
        width = max(map(len, texts))
        return np.array([[-1] * (width - len(text)) + [symbols[c] for c in text] for text in texts], np.int32)

    @functools.cached_property
    def _prompts(self) -> np.ndarray:
        solved = _solved(self.numbers, self.largest, self.signs)
        return self._encoded([f"{target}:{','.join(map(str, given))}=" for given, target in solved])

    @functools.cached_property
    def _answers(self) -> np.ndarray:
        return self._encoded(list(_solved(self.numbers, self.largest, self.signs).values()))

    def prompt(self, index: Array) -> Array:
        """int [P, Q]."""
        return jnp.asarray(self._prompts)[index]

    def _asked(self, prompts: Array) -> tuple[Array, Array]:
        """Targets [P] and numbers, in order, [P, numbers]."""
        given = prompts[:, -2 * self.numbers :: 2]
        target = jnp.zeros_like(prompts[:, 0])
        for token in prompts[:, : -2 * self.numbers - 1].T:
            target = jnp.where(token >= 0, 10 * target + token, target)
        return target, given

    def formatted(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """bool [P, N]: numbers and operations in turn, all the given numbers once, then EOS."""
        said, signs = tokens[:, :, :-1:2], tokens[:, :, 1:-1:2]
        given = self._asked(prompts)[1]
        numbers = jnp.all(jnp.sort(said, axis=2) == given[:, None], 2)
        operations = jnp.all((signs >= 10) & (signs < 10 + len(self.signs)), 2)
        return numbers & operations & (tokens[:, :, -1] == self.eos) & jnp.all(mask > 0, 2)

    def value(self, tokens: Array) -> Array:
        """int [P, N] of expressions [P, N, T] that are well-formed; any number for others."""
        total, term = jnp.zeros_like(tokens[:, :, 0]), tokens[:, :, 0]
        for place in range(1, 2 * self.numbers - 2, 2):
            sign, number = tokens[:, :, place], tokens[:, :, place + 1]
            times = sign == 12 if self.multiply else jnp.zeros_like(sign, bool)
            total = jnp.where(times, total, total + term)
            term = jnp.where(times, term * number, jnp.where(sign == 10, number, -number))
        return total + term

    def grade(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] 1 where the answer is well-formed and reaches the target, else 0."""
        reached = self.value(tokens) == self._asked(prompts)[0][:, None]
        return jnp.where(reached & self.formatted(prompts, tokens, mask), 1.0, 0.0)

    def solution(self, index: Array) -> tuple[Array, Array]:
        """One way to the target. [P, T]."""
        answers = jnp.asarray(self._answers)[index]
        return with_end(answers, jnp.full(len(answers), answers.shape[1]), self.eos)
