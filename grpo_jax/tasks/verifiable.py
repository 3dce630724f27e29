"""Problems as token sequences, with answers that a function checks: what networks are trained on."""

from __future__ import annotations

import functools
import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from grpo_jax.bounds import whole
from grpo_jax.part import number, part, static
from grpo_jax.sequences import Sequences
from grpo_jax.tasks import answers
from grpo_jax.tasks import noise as noises
from grpo_jax.tasks.noise import Noise
from grpo_jax.types import Array, Levels, Number


class Problems(Protocol):
    """A family of problems, numbered 0..count − 1; hashable, since it is structure.

    A problem is a function of its number, so that nothing is stored and every machine sees the same ones.
    All of it is written in ``jnp`` for one run, and is traced.
    """

    @property
    def count(self) -> int:
        """How many problems there are; below 2³¹."""

    @property
    def words(self) -> tuple[str, ...]:
        """What each token of the vocabulary stands for."""

    @property
    def prompt_length(self) -> int:
        """Q, the length of the longest prompt."""

    @property
    def space(self) -> Sequences:
        """The answers: vocabulary, horizon T, EOS."""

    def prompt(self, index: Array) -> Array:
        """int [P, Q] tokens of problems [P], padded on the left with −1."""

    def grade(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] in [0, 1], 1 for a right answer, from tokens and mask [P, N, T]; reads no masked token."""

    def solution(self, index: Array) -> tuple[Array, Array]:
        """Tokens and mask [P, T] of a right answer to problems [P]: what a warm start imitates."""


@runtime_checkable
class HasFormat(Protocol):
    """Problems that say which answers are well-formed, right or wrong; otherwise those that end with EOS."""

    def formatted(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """bool [P, N]."""


@runtime_checkable
class HasShortSolution(Protocol):
    """Problems with right answers that show no work, beside their solutions that do."""

    def short_solution(self, index: Array) -> tuple[Array, Array]:
        """As ``Problems.solution``. [P, T]."""


MOST = 2**31 - 1


@functools.cache
def _multiplier(count: int) -> int:
    """The number nearest to count/φ (the golden ratio) that has no divisor in common with ``count``.

    Multiples of the golden ratio spread evenly over a circle however many there are: so does a share of the
    problems over the family.
    """
    near = round(count * (math.sqrt(5) - 1) / 2)
    return next(
        a for d in range(count + 1) for a in (near - d, near + d) if a > 0 and math.gcd(a, count) == 1
    )


def shuffled(place: Array, count: int) -> Array:
    """(a·k + b) mod count for k in 0..count − 1: a fixed permutation of the problems' numbers. Elementwise.

    Products are taken piece by piece, in unsigned 32-bit integers that never overflow.
    """
    factor, bits = _multiplier(count), 32 - count.bit_length()
    rest, found = jnp.asarray(place).astype(jnp.uint32), jnp.uint32(0)
    for piece in reversed(range(-(-count.bit_length() // bits))):
        digit = (rest >> (bits * piece)) & (2**bits - 1)
        found = ((found << bits) % count + digit * jnp.uint32(factor) % count) % count
    return ((found + count // 3) % count).astype(int)


def _pick(uniforms: Array, first: int, size: int) -> Array:
    """first..first + size − 1, each equally likely."""
    return first + jnp.minimum((jnp.asarray(uniforms, float) * size).astype(int), size - 1)


@part
class Verifiable:
    """r = φ·(v + b·1{the answer is well-formed} − c·|o|), v the verifier's verdict on a grade in [0, 1].

    Reinforcement learning with verifiable rewards (Lambert et al., *Tülu 3*, 2411.15124) on problems that are
    token sequences. v is the grade itself, or drawn around it (``noise``). Problem numbers are permuted once
    and for all; the first ``held_out`` of them are never trained on. Single-precision uniforms
    tell 2²⁴ problems apart: of larger families that many are drawn.

    Args:
      problems: ``Addition()``, ``Parity()``, ...; of your own, ``from_function``.
      held_out: share of the problems kept from training, in [0, 1).
      noise: the verifier's: None, ``Flips(...)``, ``Bernoulli()`` (the grade is a probability) or
        ``Gaussian(...)``.
      format_bonus: b, for answers that are well-formed: that end with EOS, unless the problems say more.
      length_cost: c for each token, EOS included.
      scale: φ.
    """

    problems: Problems = static()
    held_out: float = static(0.1)
    noise: Noise | None = None
    format_bonus: Number = number(0.0)
    length_cost: Number = number(0.0)
    scale: Number = number(1.0)

    def check(self) -> None:
        """The problems are complete and agree with themselves; some are left to train on."""
        check_problems(self.problems)
        share = self.held_out
        if isinstance(share, bool) or not isinstance(share, (int, float, np.number)):
            raise TypeError(f"held_out is {share!r}; it must be a number in [0, 1)")
        if not 0 <= share < 1:
            raise ValueError(f"held_out is {share:g}; it must be a share in [0, 1)")
        if self.held_out_count == self.problems.count:
            raise ValueError(
                f"held_out is {share:g}: of {self.problems.count} problems none is left to train on"
            )

    @property
    def space(self) -> Sequences:
        """The answers."""
        return self.problems.space

    @property
    def prompt_length(self) -> int:
        """Q."""
        return self.problems.prompt_length

    @property
    def held_out_count(self) -> int:
        """Problems that are never trained on."""
        return round(self.held_out * self.problems.count)

    def training_index(self, uniforms: Array) -> Array:
        """int [P] numbers of training problems, equally likely, from uniforms [P]."""
        count, apart = self.problems.count, self.held_out_count
        return shuffled(_pick(uniforms, apart, count - apart), count)

    def held_out_index(self, uniforms: Array) -> Array:
        """int [P] numbers of held-out problems; ValueError where there are none."""
        if not self.held_out_count:
            raise ValueError(
                f"no problem is held out: held_out is {self.held_out:g} of {self.problems.count} problems"
            )
        return shuffled(_pick(uniforms, 0, self.held_out_count), self.problems.count)

    def prompts(self, uniforms: Array) -> Array:
        """int [P, Q] training prompts."""
        return self.problems.prompt(self.training_index(uniforms))

    def held_out_prompts(self, uniforms: Array) -> Array:
        """int [P, Q] prompts that are never trained on."""
        return self.problems.prompt(self.held_out_index(uniforms))

    def demonstrations(self, uniforms: Array) -> tuple[Array, Array, Array]:
        """Training prompts [P, Q], and tokens and mask [P, T] of a right answer to each."""
        index = self.training_index(uniforms)
        return (self.problems.prompt(index), *self.problems.solution(index))

    def short_demonstrations(self, uniforms: Array) -> tuple[Array, Array, Array]:
        """As ``demonstrations``, without a chain of thought: [P, Q], [P, T], [P, T].

        ValueError where the problems know no such answers (no ``short_solution``).
        """
        if not isinstance(self.problems, HasShortSolution):
            raise ValueError(
                f"{type(self.problems).__name__} has no answers without a chain of thought (no "
                '``short_solution``); Parity(chain="optional") has'
            )
        index = self.training_index(uniforms)
        return (self.problems.prompt(index), *self.problems.short_solution(index))

    def solution(self, index: Array) -> tuple[Array, Array]:
        """Tokens and mask [P, T] of right answers to problems [P]."""
        return self.problems.solution(index)

    def grade(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] in [0, 1], without noise and wrappers: what accuracy is measured by."""
        return self.problems.grade(prompts, jnp.asarray(tokens), jnp.asarray(mask))

    def _wrappers(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] the part of the reward that the verifier has no say in."""
        tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
        if isinstance(self.problems, HasFormat):
            right = self.problems.formatted(prompts, tokens, mask)
        else:
            right = answers.ended(tokens, mask, self.space.eos)
        return self.format_bonus * right - self.length_cost * answers.length(mask)

    def means(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] expected reward of each answer."""
        verdict = noises.expected(self.noise, self.grade(prompts, tokens, mask))
        return self.scale * (verdict + self._wrappers(prompts, tokens, mask))

    def rewards(self, prompts: Array, tokens: Array, mask: Array, uniforms: Array) -> Array:
        """[P, N, 1]."""
        verdict = noises.draw(self.noise, self.grade(prompts, tokens, mask), uniforms)
        return (self.scale * (verdict + self._wrappers(prompts, tokens, mask)))[:, :, None]

    def levels(self, prompts: Array, tokens: Array, mask: Array) -> Levels | None:
        """One level without noise, two where a verdict is 0 or 1, None under Gaussian noise. [P, N, L]."""
        law = noises.levels(self.noise, self.grade(prompts, tokens, mask), 1.0)
        if law is None:
            return None
        wrappers = self._wrappers(prompts, tokens, mask)[:, :, None]
        return law._replace(values=self.scale * (law.values + wrappers))

    def say(self, prompts: Array, tokens: Array, mask: Array) -> list[list[str]]:
        """For people: every answer, lists [P, N], behind its question, with its grade."""
        grades = np.asarray(self.grade(prompts, tokens, mask))
        asked = [self._text(question) for question in np.asarray(prompts)]
        said, live = np.asarray(tokens), np.asarray(mask)
        return [
            [f"{asked[p]}{self._text(said[p, n], live[p, n])}  {grades[p, n]:g}" for n in range(len(said[p]))]
            for p in range(len(asked))
        ]

    def _text(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> str:
        live = tokens >= 0 if mask is None else mask > 0
        return "".join(self.problems.words[token] for token in tokens[live])


_NEEDED = ("count", "words", "prompt_length", "space", "prompt", "grade", "solution")


def check_problems(problems: Problems) -> None:
    """Raise unless problems have everything that the protocol asks, and it fits together."""
    lacking = [name for name in _NEEDED if not hasattr(problems, name)]
    if isinstance(problems, type) or lacking:
        what = "a class, not an instance" if isinstance(problems, type) else f"without {', '.join(lacking)}"
        raise TypeError(f"problems is {problems!r}, {what}")
    if whole("problems.count", problems.count) > MOST:
        raise ValueError(f"there are {problems.count} problems; their numbers must stay below 2^31")
    whole("problems.prompt_length", problems.prompt_length)
    if not isinstance(problems.space, Sequences):
        raise TypeError(f"problems.space is {problems.space!r}; it must be Sequences(vocab, horizon, eos)")
    if len(problems.words) != problems.space.vocab:
        raise ValueError(
            f"the problems have {len(problems.words)} words for a vocabulary of {problems.space.vocab} tokens"
        )
