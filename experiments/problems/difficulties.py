"""Prompts from hard to easy, each with a tree of its own, trained with one weighing or another.

An answer is two tokens out of three; two answers are right. Every prompt has its own logits, so
that a weight w(p) is nothing but a learning rate of the prompt; `Constant(length=w̄)` in the reduction
divides updates by the mean weight over prompts at the start: the *effective* learning rate is equal then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import difficulty
from experiments.problems import updates
from experiments.problems.optimizers import named
from grpo_jax.part import number, part
from grpo_jax.parts.advantages import Advantage, GroupLevel, GroupMean, GroupSpread, Normalized
from grpo_jax.statistics import present
from grpo_jax.types import Array, Coupling, Number, Rollout

SPACE = gj.Sequences(vocab=3, horizon=2)
RIGHT = np.array([1.0, 1.0, 0, 0, 0, 0, 0, 0, 0])
"""[S]: two answers are right, both begin with the first token."""
PROMPTS = np.linspace(0.05, 0.95, 10)
"""Success rates at the start."""
PLAIN, SCALED = "r − r̄", "(r − r̄)/σ"
HARD = slice(None, 0.26)
"""Prompts of at most a quarter at the start."""


def logits(rates: np.ndarray) -> np.ndarray:
    """[C, rows, V] of these success rates: √p at either token; the two right answers are as 7 : 3."""
    half = np.sqrt(np.asarray(rates, float))
    found = np.zeros((len(half), SPACE.offsets[-1], SPACE.vocab))
    found[:, 0] = np.log(np.stack([half, (1 - half) / 2, (1 - half) / 2], 1))
    found[:, 1] = np.log(np.stack([0.7 * half, 0.3 * half, 1 - half], 1))
    return found


@part
class Weighing:
    """(r − centre·r̄)/(σ^spread r̄^level), every switch a number; 0 in groups whose rewards tie at 0.

    ``SHIFT`` at centre 1, GRPO with spread 1, too; MaxRL with level 1 (``max_rl``; centre 0
    ``max_rl_successes``).
    """

    centre: Number = number(1.0, low=0.0, high=1.0)
    spread: Number = number(0.0, low=0.0, high=1.0)
    level: Number = number(0.0, low=0.0, high=1.0)
    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        deviation, sigma = GroupMean()(rollout, rewards), GroupSpread()(rollout, rewards)
        mean = GroupLevel()(rollout, rewards)
        sigma = jnp.where((sigma > 0) & (self.spread > 0), sigma, 1)
        mean = jnp.where((mean > 0) & (self.level > 0), mean, 1)
        value = deviation + (1 - self.centre) * (rewards - deviation)
        return present(value / (sigma * mean), rollout.multiplicity)[:, :, None]


def config(advantage: Advantage, *, group_size: int, exact: bool = False) -> gj.Config:
    """Every prompt once a batch, on-policy, without a clip or a penalty."""
    return gj.Config(
        policy=gj.TreePolicy(space=SPACE, logits=logits(PROMPTS)),
        task=gj.SequenceTable(space=SPACE, table=np.tile(RIGHT, (len(PROMPTS), 1))),
        method=replace(updates.PLAIN, advantage=advantage),
        optimizer=gj.SGD(learning_rate=1.0),
        loop=gj.Loop(group_size=group_size),
        expectation=gj.Exact() if exact else None,
    )


def trained(
    given: gj.Config,
    handlings: Mapping[Any, Any],
    rates: Sequence[float],
    *,
    iterations: int,
    seeds: int = 1,
    root: int = 0,
) -> xr.DataArray:
    """Success rates by handling, effective learning rate, seed, iteration and prompt.

    Args:
      given: the configuration, of all PROMPTS.
      handlings: the axes that tell handlings apart.
      rates: learning rates of one prompt; a batch's is as many times greater as there are prompts.
      iterations, seeds, root: as in ``gj.sweep``.
    """
    axes = {**handlings, "learning_rate": [len(PROMPTS) * rate for rate in rates]}
    data = gj.sweep(
        given, axes, seeds=seeds, root=root,
        iterations=iterations, record_every=max(iterations // 20, 1), record=["prompt_reward"],
        record_start=True, progress=False,
    )  # fmt: skip
    found = data.prompt_reward.rename(context="prompt").assign_coords(learning_rate=list(rates))
    return found.assign_coords(prompt=PROMPTS.round(12))


def normalised(seed: int, size: Any, rates: Sequence[float], *, group_size: int) -> xr.DataArray:
    """Success rates with and without division by σ, at learning rates equal in effect at the start."""
    start = difficulty.weight_of(difficulty.divided, PROMPTS, group_size).mean()
    paths = ("advantage.power", "reduction.length")
    axes = {paths: {PLAIN: (0.0, 1 - 1 / group_size), SCALED: (1.0, float(start))}}
    found = trained(
        config(Normalized(), group_size=group_size), axes, rates,
        iterations=size.iterations, root=seed, seeds=size.seeds,
    )  # fmt: skip
    return named(found, {paths: "handling"})
