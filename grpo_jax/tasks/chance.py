"""Chance level: how often uniform random tokens are right, the floor that training starts from."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

from grpo_jax.bounds import whole
from grpo_jax.tasks.arithmetic import Addition, Parity
from grpo_jax.tasks.countdown import Countdown
from grpo_jax.tasks.scratchpad import Scratchpad
from grpo_jax.tasks.strings import Copy, Sort, UnequalSuffixes
from grpo_jax.tasks.verifiable import Problems

MOST_GRADES = 4_000_000
"""Grades (problems times answers) up to which everything is listed."""
AT_ONCE = 200_000
"""Grades of one call."""
CONFIDENCE = 0.999


class Chance(NamedTuple):
    """The mean grade of uniform random answers to uniform random problems."""

    level: float
    low: float
    """Of a 99.9 % interval; the level itself where everything was listed."""
    high: float
    exact: bool


def chance_level(problems: Problems, *, draws: int = 1_000_000, seed: int = 0) -> Chance:
    """E[grade] of uniform problems and of tokens uniform over those allowed at each step, up to EOS.

    Exact, by summing over every problem and every answer, where these are few enough; else from ``draws``
    random pairs, with an interval by Clopper and Pearson (1934). A grade between 0 and 1 counts as a
    success of that probability, drawn.

    Args:
      problems: the whole family, held-out ones included.
      draws: how many answers are sampled where they are too many to list.
      seed: of the draws.

    >>> chance_level(Parity(bits=3))
    Chance(level=0.0625, low=0.0625, high=0.0625, exact=True)
    """
    whole("draws", draws)
    space = problems.space
    if space.listable and problems.count * space.size <= MOST_GRADES:
        level = _listed(problems)
        return Chance(level, level, level, exact=True)
    hits = _hits(problems, draws, np.random.default_rng(seed))
    rest = (1 - CONFIDENCE) / 2
    low = float(betaincinv(hits, draws - hits + 1, rest)) if hits else 0.0
    high = float(betaincinv(hits + 1, draws - hits, 1 - rest)) if hits < draws else 1.0
    return Chance(hits / draws, low, high, exact=False)


def _listed(problems: Problems) -> float:
    tokens, mask = problems.space.support
    each = np.where(mask > 0, 1 / problems.space.allowed.sum(1), 1.0)
    weight = np.prod(each, 1)

    @jax.jit
    def grades(index: Any) -> Any:
        every = (len(index), *tokens.shape)
        prompts = problems.prompt(index)
        return problems.grade(prompts, jnp.broadcast_to(tokens, every), jnp.broadcast_to(mask, every))

    step = max(1, min(problems.count, AT_ONCE // len(tokens)))
    total = 0.0
    for first in range(0, problems.count, step):
        index = np.minimum(np.arange(first, first + step), problems.count - 1)
        found = np.asarray(grades(jnp.asarray(index)), np.float64) @ weight
        total += math.fsum(found[: problems.count - first])
    return total / problems.count


def _hits(problems: Problems, draws: int, rng: np.random.Generator) -> int:
    space = problems.space

    @jax.jit
    def grades(index: Any, tokens: Any) -> Any:
        return problems.grade(problems.prompt(index), *space.ended(tokens))

    hits = 0
    for first in range(0, draws, AT_ONCE):
        index = rng.integers(0, problems.count, AT_ONCE)
        steps = [rng.choice(np.flatnonzero(row), (AT_ONCE, 1)) for row in space.allowed]
        found = np.asarray(grades(jnp.asarray(index, int), jnp.asarray(np.stack(steps, 2), int)))[:, 0]
        hits += int((rng.uniform(size=AT_ONCE) < found)[: draws - first].sum())
    return hits


GENERATORS: tuple[Problems, ...] = (
    Addition(),
    Addition(digits=3),
    Parity(),
    Parity(bits=8, chain="optional"),
    Parity(bits=8, chain="graded"),
    Scratchpad(inner=Addition()),
    Scratchpad(inner=Parity(bits=8), room=8),
    UnequalSuffixes(),
    Copy(),
    Sort(),
    Countdown(),
    Countdown(multiply=True),
)
"""One or two settings of every generator: what the table lists."""


def spelled(problems: Any) -> str:
    """As it is written down, without what is by default."""
    given = []
    for field in dataclasses.fields(problems):
        value = getattr(problems, field.name)
        if value != field.default:
            given.append(f"{field.name}={spelled(value) if dataclasses.is_dataclass(value) else repr(value)}")
    return f"{type(problems).__name__}({', '.join(given)})"


def example(problems: Problems) -> tuple[str, str]:
    """The text of a problem in the middle of the family, and of its solution without EOS."""
    index = jnp.array([problems.count * 5 // 8])
    words = (*problems.words, "")
    question = "".join(words[token] for token in np.asarray(problems.prompt(index))[0])
    tokens, mask = (np.asarray(x)[0] for x in problems.solution(index))
    return question, "".join(words[t] for t in tokens[mask > 0] if t != problems.space.eos)


def table(families: tuple[Problems, ...] = GENERATORS, *, draws: int = 1_000_000) -> str:
    """Problems, vocabulary, lengths and chance level of each family, in Markdown."""
    lines = [
        "| problems | example | how many | vocabulary | prompt | answer | chance level |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for problems in families:
        question, answer = example(problems)
        chance, space = chance_level(problems, draws=draws), problems.space
        level = f"{100 * chance.level:.3g} %"
        if not chance.exact:
            level += f" ({100 * chance.low:.2g} to {100 * chance.high:.2g})"
        lines.append(
            f"| `{spelled(problems)}` | `{question}` → `{answer}` | {problems.count:,} | {space.vocab} | "
            f"{problems.prompt_length} | {space.horizon} | {level} |"
        )
    return "\n".join(lines)
