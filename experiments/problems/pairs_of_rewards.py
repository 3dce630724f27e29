"""Questions whose answers earn two rewards: random ones of four kinds, and every group of reward pairs.

What is listed instead of sampled has its total reward only: for exact expectations `Looked` hands the two
rewards to a shaping, and samples come from a task that gives two. Used by the claim on rewards normalised
apart (E8).
"""

from __future__ import annotations

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

import grpo_jax as gj
from grpo_jax.part import number, part
from grpo_jax.parts.advantages import Normalized
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.ratios import Score
from grpo_jax.parts.reductions import Constant
from grpo_jax.parts.shaping import NormalizedSum, Shaping, Sum
from grpo_jax.sequences import at_prompts, lookup
from grpo_jax.surrogate import Method
from grpo_jax.types import Array, Rollout

SHIFT = Normalized(scale=None)
GDPO, SUM, PLAIN = "GDPO", "GRPO", "GRPO without σ"
INNER: dict[str, tuple[Shaping, Normalized]] = {
    GDPO: (NormalizedSum(ddof=0.0, eps=0.0), SHIFT),
    SUM: (Sum(), Normalized()),
    PLAIN: (Sum(), SHIFT),
}
"""Normalise then sum; sum then normalise; sum. No batch whitening: it only changes the rate."""
KINDS = ("coins", "graded", "a hard and an easy one", "one a tenth as large")


@part
class TwoRewards:
    """Two rewards for each answer, from tables [C, K], without noise."""

    first: Any = number(rank=2)
    second: Any = number(rank=2)
    noise: Any = None

    def prompts(self, uniforms: Array) -> Array:
        """Questions drawn uniformly."""
        count = jnp.shape(self.first)[0]
        return jnp.minimum((uniforms * count).astype(int), count - 1)

    def rewards(self, prompts: Array, tokens: Array, mask: Array, uniforms: Array) -> Array:
        """[P, N, 2]."""
        return _both(self, prompts, tokens)

    def means(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] their sum."""
        return jnp.sum(_both(self, prompts, jnp.asarray(tokens)), 2)


def _both(tables: Any, prompts: Array, tokens: Array) -> Array:
    """[P, N, 2] the rewards of answers, from `first` and `second`."""
    pair = (at_prompts(jnp.asarray(table, float), prompts) for table in (tables.first, tables.second))
    return jnp.stack([lookup(table, tokens[:, :, 0]) for table in pair], 2)


@part
class Looked:
    """`inner` sees the two rewards of each answer, from tables [C, K]."""

    inner: Shaping
    first: Any = number(rank=2)
    second: Any = number(rank=2)

    def __call__(self, rollout: Rollout) -> Array:
        """[P, N]."""
        return self.inner(rollout._replace(rewards=_both(self, rollout.prompts, rollout.tokens)))


def method(name: str, tables: np.ndarray | None = None) -> Method:
    """One plain step a batch; on the tables [2, C, K], where the task gives the sum only."""
    shaping, advantage = INNER[name]
    if tables is not None:
        shaping = Looked(inner=shaping, first=tables[0], second=tables[1])
    return Method(
        shaping=shaping, advantage=advantage, ratio=Score(), gain=Linear(), reduction=Constant(length=1.0)
    )


def config(
    name: str, tables: np.ndarray, logits: np.ndarray, *, group: int, exact: bool = True, **changes: Any
) -> gj.Config:
    """Questions with these rewards [2, C, K], from these logits [C, K]."""
    total = gj.Questions(table=tables.sum(0))
    base: dict[str, Any] = {
        "policy": gj.ActionPolicy(logits=logits),
        "task": total if exact else TwoRewards(first=tables[0], second=tables[1]),
        "method": method(name, tables if exact else None),
        "optimizer": gj.AdamW(learning_rate=1.0),
        "loop": gj.Loop(group_size=group),
        "expectation": gj.Exact(cells=0) if exact else gj.Sampled(),
    }
    return gj.Config(**(base | changes))


def questions(kind: str, count: int, seed: int, *, answers: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Tables [2, count, answers] and logits [count, answers] of random questions.

    Coins: both rewards 1 with probability .4, drawn anew until neither ties. Graded: uniform. A hard and an
    easy one: one right answer, and three of five well-formed. One a tenth as large: graded, the second × .1.
    """
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    tables = np.zeros((2, count, answers))
    for c in range(count):
        while any(np.ptp(tables[m, c]) == 0 for m in (0, 1)):
            tables[:, c] = rng.uniform(size=(2, answers))
            if kind == "coins":
                tables[:, c] = tables[:, c] < 0.4
            elif kind == "a hard and an easy one":
                tables[0, c] = np.arange(answers) == 0
                tables[1, c] = rng.permutation(answers) < 3
    if kind == "one a tenth as large":
        tables[1] *= 0.1
    return tables, rng.normal(size=(count, answers))


def groups(size: int, rewards: int = 2) -> list[np.ndarray]:
    """Every multiset [size, rewards] of binary rewards: the groups that differ."""
    outcomes = list(itertools.product((0.0, 1.0), repeat=rewards))
    return [np.array(rows) for rows in itertools.combinations_with_replacement(outcomes, size)]


def by_hand(rows: np.ndarray) -> dict[str, np.ndarray]:
    """[size] advantages of a group [size, rewards] under every method, in NumPy."""

    def unit(x: np.ndarray) -> np.ndarray:
        spread = x.std()
        return np.zeros_like(x) if spread < 1e-12 else (x - x.mean()) / spread

    total = rows.sum(1)
    return {GDPO: sum(unit(column) for column in rows.T), SUM: unit(total), PLAIN: total - total.mean()}
