"""Sums and parities: problems whose answer is a number that a few tokens spell."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, get_args

import jax.numpy as jnp

from grpo_jax.bounds import whole
from grpo_jax.sequences import Sequences
from grpo_jax.tasks.answers import (
    digits_of,
    ended,
    exact_match,
    length,
    number_length,
    padded_left,
    spelled,
    take,
    with_end,
)
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
        """The right answer. [P, T]."""
        return self.right(self.prompt(index))

    def work(self, prompts: Array) -> tuple[Array, Array]:
        """For a scratchpad: the sum, least significant digit first; tokens [P, W], length [P]."""
        value = self.total(prompts)
        return digits_of(value, self.width), number_length(value, self.width)


Chain = Literal["none", "optional", "graded"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """The sum of the bits modulo two, then EOS ("1101=" -> "1"), after a chain of running parities or none.

    Args:
      bits: of the prompt; there are 2^bits problems.
      chain: what may stand before the answer. "none": nothing. "optional": anything, of any length (running
        parities in solutions); graded 1 where the last token before EOS is right. "graded": the running
        parities, each of which must be right ("1101=" -> "1001").
    """

    bits: int = 4
    chain: Chain = "none"

    def __post_init__(self) -> None:
        if whole("bits", self.bits) > 30:
            raise ValueError(f"bits is {self.bits}; it must be at most 30")
        if self.chain not in get_args(Chain):
            raise ValueError(f"chain is {self.chain!r}; it must be one of {', '.join(get_args(Chain))}")

    equals, eos = 2, 3

    @property
    def count(self) -> int:
        """Problems."""
        return 2**self.bits

    @property
    def words(self) -> tuple[str, ...]:
        """Two bits, equals, EOS."""
        return (*"01=", "<eos>")

    @property
    def prompt_length(self) -> int:
        """Q."""
        return self.bits + 1

    @functools.cached_property
    def space(self) -> Sequences:
        """Every answer of at most a token (with a chain, as many as there are bits) and its EOS."""
        steps = 1 if self.chain == "none" else self.bits
        return Sequences(vocab=len(self.words), horizon=steps + 1, eos=self.eos)

    def prompt(self, index: Array) -> Array:
        """int [P, Q]; the most significant bit of the problem's number comes first."""
        bits = digits_of(index, self.bits, 2)[:, ::-1]
        return jnp.pad(bits, ((0, 0), (0, 1)), constant_values=self.equals)

    def running(self, prompts: Array) -> Array:
        """int [P, bits] parity of the first bits, of which the last is the answer."""
        return jnp.cumsum(prompts[:, :-1], 1) % 2

    def grade(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] 1 for a right answer, else 0."""
        if self.chain != "optional":
            return exact_match(tokens, mask, *self._right(self.running(prompts)))
        said = take(tokens, length(mask) - 2)
        right = (said == self.running(prompts)[:, -1:]) & (length(mask) > 1) & ended(tokens, mask, self.eos)
        return jnp.where(right, 1.0, 0.0)

    def _right(self, running: Array, *, short: bool = False) -> tuple[Array, Array]:
        steps = self.space.horizon - 1
        if not short:
            return with_end(running[:, -steps:], jnp.full(len(running), steps), self.eos)
        return with_end(jnp.repeat(running[:, -1:], steps, 1), jnp.ones(len(running), int), self.eos)

    def solution(self, index: Array) -> tuple[Array, Array]:
        """The right answer, after the whole chain where there may be one. [P, T]."""
        return self._right(self.running(self.prompt(index)))

    def short_solution(self, index: Array) -> tuple[Array, Array]:
        """The right answer at once, without a chain. [P, T]."""
        return self._right(self.running(self.prompt(index)), short=True)

    def work(self, prompts: Array) -> tuple[Array, Array]:
        """For a scratchpad: all running parities; tokens [P, W], length [P]."""
        return self.running(prompts), jnp.full(len(prompts), self.bits)
