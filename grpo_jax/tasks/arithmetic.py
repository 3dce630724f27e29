"""Sums and parities: problems whose answer is a number that a few tokens spell."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp

from grpo_jax.bounds import whole
from grpo_jax.sequences import Sequences
from grpo_jax.tasks.answers import digits_of, exact_match, padded_left, spelled
from grpo_jax.types import Array

MOST_DIGITS = 9
"""Digits of all operands together: problem numbers are 32-bit integers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Addition:
    """The sum, digit by digit, then EOS ("12+34=" -> "46"); graded 1 by exact match, else 0.

    Problem number ``index`` has the operands that its decimal digits spell, so that there are
    10^(digits·operands) problems. The answer has as many digits as the sum and no leading zeros.

    Args:
      digits: of each operand, at most.
      operands: how many are added.
      least_first: the answer's least significant digit comes first (Lee et al., *Teaching arithmetic to small
        transformers*, 2307.03381: "reverse").
      leading_zeros: operands are written with all their digits; otherwise prompts differ in length, and are
        padded on the left.
    """

    digits: int = 2
    operands: int = 2
    least_first: bool = False
    leading_zeros: bool = False

    def __post_init__(self) -> None:
        whole("digits", self.digits)
        whole("operands", self.operands, low=2)
        if self.digits * self.operands > MOST_DIGITS:
            raise ValueError(
                f"{self.operands} operands of {self.digits} digits give 10^{self.digits * self.operands} "
                f"problems; digits x operands must be at most {MOST_DIGITS}"
            )

    plus, equals, eos = 10, 11, 12

    @property
    def count(self) -> int:
        """Problems."""
        return 10 ** (self.digits * self.operands)

    @property
    def words(self) -> tuple[str, ...]:
        """Ten digits, plus, equals, EOS."""
        return (*"0123456789+=", "<eos>")

    @property
    def prompt_length(self) -> int:
        """Q."""
        return self.operands * (self.digits + 1)

    @property
    def width(self) -> int:
        """Digits of the greatest sum."""
        return len(str(self.operands * (10**self.digits - 1)))

    @functools.cached_property
    def space(self) -> Sequences:
        """Every answer of at most as many tokens as the greatest sum and its EOS."""
        return Sequences(vocab=len(self.words), horizon=self.width + 1, eos=self.eos)

    def prompt(self, index: Array) -> Array:
        """int [P, Q]."""
        tokens, live = [], []
        for place in reversed(range(self.operands)):
            value = index // 10 ** (self.digits * place) % 10**self.digits
            step = jnp.arange(self.digits)[::-1]
            tokens.append(digits_of(value, self.digits)[:, ::-1])
            live.append((value[:, None] >= 10**step) | (step == 0) | self.leading_zeros)
            tokens.append(jnp.full_like(index, self.plus if place else self.equals)[:, None])
            live.append(jnp.ones((len(index), 1), bool))
        return padded_left(jnp.concatenate(tokens, 1), jnp.concatenate(live, 1))

    def total(self, prompts: Array) -> Array:
        """[P] sums that prompts [P, Q] ask for."""
        found = value = jnp.zeros_like(prompts[:, 0])
        for token in prompts.T:
            digit, sign = (token >= 0) & (token < 10), token >= self.plus
            value = jnp.where(digit, 10 * value + token, value)
            found, value = jnp.where(sign, found + value, found), jnp.where(sign, 0, value)
        return found

    def right(self, prompts: Array) -> tuple[Array, Array]:
        """Tokens and mask [P, T] of the one right answer."""
        return spelled(self.total(prompts), self.width, eos=self.eos, least_first=self.least_first)

    def grade(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] exact match."""
        return exact_match(tokens, mask, *self.right(prompts))

    def solution(self, index: Array) -> tuple[Array, Array]:
        """The right answer."""
        return self.right(self.prompt(index))
