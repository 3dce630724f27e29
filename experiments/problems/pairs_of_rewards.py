"""Questions whose answers earn two rewards: random ones of four kinds, and every group of reward pairs.

What is listed instead of sampled has its total reward only: for exact expectations `Looked` hands the two
rewards to a shaping, and samples come from a task that gives two. Used by the claim on rewards normalised
apart (E8).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import difficulty
from experiments.problems import updates
from experiments.problems.optimizers import OPTIMIZER, adamw, named, sgd
from grpo_jax.exact import expected_gradient
from grpo_jax.methods import SHIFT
from grpo_jax.part import number, part
from grpo_jax.parts.advantages import Normalized
from grpo_jax.parts.shaping import NormalizedSum, Shaping, Sum
from grpo_jax.sequences import at_prompts, lookup
from grpo_jax.surrogate import Method, advantages
from grpo_jax.types import Array, Rollout

GDPO, SUM, PLAIN = "GDPO", "GRPO", "GRPO without σ"
INNER: dict[str, tuple[Shaping, Normalized]] = {
    GDPO: (NormalizedSum(ddof=0.0, eps=0.0), SHIFT),
    SUM: (Sum(), Normalized()),
    PLAIN: (Sum(), SHIFT),
}
"""Normalise then sum; sum then normalise; sum. No batch whitening: it only changes the rate."""
GROUP, TRIED = 8, 3
"""Of training, and where everything is enumerated."""
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
    return replace(updates.PLAIN, shaping=shaping, advantage=advantage)


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


def counted(sizes: Sequence[int]) -> xr.DataArray:
    """How many advantage vectors all groups of pairs of binary rewards have, by method and group size."""
    found = np.zeros((len(INNER), len(sizes)))
    for j, size in enumerate(sizes):
        told: dict[str, set[Any]] = {name: set() for name in INNER}
        for rows in groups(size):
            for name, values in by_hand(rows).items():
                told[name].add(tuple(np.sort(values.round(9) + 0.0)))
        found[:, j] = [len(told[name]) for name in INNER]
    return xr.DataArray(found, {"algorithm": list(INNER), "group": list(sizes)})


def silent(rewards: int) -> float:
    """Greatest GDPO advantage in groups whose sums tie: of eight, with more than two rewards of four."""
    tied = [rows for rows in groups(4 if rewards > 2 else GROUP, rewards) if np.ptp(rows.sum(1)) == 0]
    return max(abs(by_hand(rows)[GDPO]).max() for rows in tied)


def identities() -> xr.Dataset:
    """Gaps of the library's advantages to NumPy's, and of GDPO's update to Σ_m w_G(p_m) ∇p_m.

    The placebo is what GDPO's update misses of twice GRPO's where both rewards are the same.
    """
    apart = []
    for rows in groups(4)[::7]:
        blank = jnp.zeros((1, 4, 1))
        rollout = gj.Rollout(
            prompts=jnp.arange(1), tokens=jnp.arange(4)[None, :, None], mask=jnp.ones((1, 4, 1)),
            rewards=jnp.asarray(rows.sum(1)[None, :, None]), multiplicity=jnp.ones((1, 4)),
            sampling_logp=blank, old_logp=blank, ref_logp=blank,
        )  # fmt: skip
        for name, values in by_hand(rows).items():
            library = np.asarray(advantages(method(name, rows.T[:, None]), rollout))[0, :, 0]
            apart.append(abs(library - values).max())
    tables, logits = questions("coins", 3, 1)
    odds = _odds(logits)
    hand = np.zeros_like(logits)
    for c, m in itertools.product(range(len(logits)), range(2)):
        p = odds[c] @ tables[m, c]
        weight = difficulty.weight_of(difficulty.divided, p, TRIED)
        hand[c] += weight * odds[c] * (tables[m, c] - p) / len(logits)
    same = np.stack([tables[0], tables[0]])
    gaps = {
        "update": _moved(GDPO, tables, logits) - hand,
        "placebo": _moved(GDPO, same, logits) - 2 * _moved(SUM, same, logits),
    }
    return xr.Dataset({"advantage": max(apart)} | {name: abs(gap).max() for name, gap in gaps.items()})


def _moved(name: str, tables: np.ndarray, logits: np.ndarray) -> np.ndarray:
    given = config(name, tables, logits, group=TRIED)
    return np.asarray(expected_gradient(given, jnp.asarray(logits)))


def _odds(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def scale(tables: np.ndarray, logits: np.ndarray, seed: int) -> float:
    """Root mean square of GRPO's advantages over GDPO's, at the start, from 200 groups a question."""
    rng = np.random.default_rng(seed)
    odds = _odds(logits)
    square = dict.fromkeys(INNER, 0.0)
    for c in range(len(logits)):
        for _ in range(200):
            rows = tables[:, c, rng.choice(odds.shape[1], GROUP, p=odds[c])].T
            for name, values in by_hand(rows).items():
                square[name] += float((values**2).sum())
    return float(np.sqrt(square[SUM] / square[GDPO]))


def trained(kind: str, seed: int, size: Any, *, exact: bool) -> xr.DataArray:
    """Total reward as a share of the best answer's, by method, optimizer, iteration and question."""
    count = size.listed if exact else size.drawn
    tables, logits = questions(kind, count, seed)
    equal, found = scale(tables, logits, seed), []
    for name in INNER:
        optimizers = {
            "SGD": sgd(1.0),
            "SGD, equal advantages": sgd(equal if name == GDPO else 1.0),
            "AdamW": adamw(0.05),
        }
        data = gj.sweep(
            config(name, tables, logits, group=GROUP, exact=exact), {OPTIMIZER: optimizers},
            seeds=1 if exact else size.seeds, iterations=size.iterations, root=seed,
            record=["prompt_reward"], record_every=size.iterations // 20,
        )  # fmt: skip
        found.append(named(data, {OPTIMIZER: "optimizer"}).prompt_reward)
    best = xr.DataArray(tables.sum(0).max(1), {"context": np.arange(count)})
    return xr.concat(found, xr.Variable("algorithm", list(INNER))).mean("seed") / best


def between_sizes() -> xr.DataArray:
    """π of the first of two answers with rewards (1, 0) and (0, .1) after exact training, from .3."""
    tables, logits = np.array([[[1.0, 0.0]], [[0.0, 0.1]]]), np.log([[0.3, 0.7]])
    ends = []
    for name in INNER:
        given = config(name, tables, logits, group=GROUP, optimizer=gj.SGD(learning_rate=1.0))
        data = gj.sweep(given, iterations=400, record_every=400, record=["probabilities"])
        ends.append(float(data.probabilities.isel(iteration=-1, output=0).squeeze()))
    return xr.DataArray(ends, {"algorithm": list(INNER)})
