"""Ascending E_q[(r − V) log π] for a sampler q that never changes, and where it ends.

Rewards are standardised under q, E_q r = 0 and σ_q = 1, so that V counts in standard deviations from the
expected reward and J is the improvement on q.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import grpo_jax as gj
from experiments.formulas import sampler_bias as by_hand
from experiments.problems.trees import Blend, Groups, Problem, Stepper, problem, questions
from experiments.problems.weights import LengthPower
from grpo_jax.measures import View
from grpo_jax.part import number, part
from grpo_jax.parts.advantages import Normalized
from grpo_jax.parts.gains import Clip
from grpo_jax.sequences import Sequences
from grpo_jax.statistics import GROUP_AXES, centred
from grpo_jax.types import Array, Number, Rollout

NEVER = 2**30
"""Iterations between refreshes of the sampler."""
PATHS = ("center.value", "center.own", "ratio.score", "clip_low", "clip_high")
INF = float("inf")


@part
class Level:
    """r − V: a constant at ``own`` 0, the group's own mean at 1."""

    value: Number = number(0.0)
    own: Number = number(0.0, low=0.0, high=1.0)

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        mean = centred(rewards, rollout.multiplicity, GROUP_AXES)
        return jnp.where(self.own > 0, mean, rewards - self.value)


def constant(value: float) -> tuple[float, ...]:
    """∇log π, weighed by r − V."""
    return value, 0.0, 1.0, 1.0, INF


GROUP = (0.0, 1.0, 1.0, 1.0, INF)
"""∇log π, weighed by r less the group's mean."""
RATIO = (0.0, 1.0, 0.0, 1.0, INF)
"""GRPO with importance sampling against q, unclipped."""
CLIPPED = (0.0, 1.0, 0.0, 0.2, 0.2)
"""GRPO with PPO's clip."""


def standardised(root: int, space: Sequences, *, tables: int, kind: str = "graded") -> Problem:
    """Problems whose rewards have mean 0 and standard deviation 1 under the starting policy."""
    given = problem(root, space, tables=tables, kind=kind, spread=1.0)
    chance = by_hand.products(by_hand.softmax(given.logits))
    apart = given.table - (chance * given.table).sum(0)
    return given._replace(table=apart / np.sqrt((chance * apart**2).sum(0)))


def training(given: Problem, *, refresh: int = NEVER, rate: float = 0.5) -> gj.Config:
    """Groups of 8 from the start; every table is a question trained as if alone."""
    logits, table = questions(given)
    return gj.Config(
        policy=gj.TreePolicy(space=given.space, logits=logits),
        task=gj.SequenceTable(space=given.space, table=table),
        method=gj.Method(
            advantage=Normalized(center=Level(), scale=None),
            ratio=Blend(score=1.0),
            gain=Clip(low=1.0, high=INF),
            reduction=LengthPower(apart=True),
        ),
        optimizer=Stepper(learning_rate=rate, steps=1.0, period=1.0),
        loop=gj.Loop(group_size=8, refresh_every=refresh),
        expectation=Groups(exact=1.0),
    )


@gj.measure("context", "output", about="probability of every output")
def policy(view: View) -> Array:
    """[context, output]."""
    return view.probabilities


def limit(chance: Any, rewards: Any, value: float) -> np.ndarray:
    """[S, R] where ascent of Σ_o q(o)(r(o) − V) log π(o) ends over single answers, V < E_q r.

    π(o) = (q(o)(r(o) − V) − c)₊/(E_q r − V), c ≥ 0 the number with which it sums to one: answers of weight
    q(r − V) below c vanish. At V ≤ min r c is 0 and all are kept.
    """
    weight = np.asarray(chance) * (np.asarray(rewards) - value)
    total = weight.sum(0)
    if not (total > 0).all():
        raise ValueError(f"V is {value:g}, not below every E_q r: ascent has no limit inside the simplex")
    ranked = -np.sort(-weight, 0)
    count = np.arange(1, len(weight) + 1)[:, None]
    levels = (np.cumsum(ranked, 0) - total) / count
    kept = (ranked > levels).sum(0)
    floor = np.take_along_axis(levels, kept[None] - 1, 0)
    return np.maximum(weight - floor, 0) / total
