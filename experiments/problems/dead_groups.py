"""Questions from hard to easy, each with a tree of its own, and what becomes of groups whose rewards tie.

An answer is right if its two tokens are: the chance of a right one is the product of two equal chances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import dead_groups as by_hand
from experiments.formulas.truncation import tree
from experiments.problems.optimizers import adamw, named, sgd
from experiments.problems.updates import PLAIN, expected_update
from grpo_jax.part import number, part
from grpo_jax.parts.advantages import NoBaseline, Normalized
from grpo_jax.parts.reductions import Informative
from grpo_jax.parts.shaping import Rescaled
from grpo_jax.policies import TreePolicy
from grpo_jax.tasks import Gaussian
from grpo_jax.types import Array

SPACE = gj.Sequences(vocab=3, horizon=2, eos=2)
RIGHT = (0, 2)
"""A token, then the end."""
SUCCESS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)
"""At the start."""
GROUP, PROMPTS = 8, 8
OPTIMIZER = ("optimizer.learning_rate.rates", "optimizer.b1", "optimizer.eps")
RATE, ADAM = 2.0, 0.03
SGD, ADAMW = "SGD", "AdamW"
SMALL, TRIES = 3, 4
"""Group and tries where everything is enumerated."""


@part
class Tabulated:
    """The learning rate of every step, [steps]."""

    rates: Any = number(rank=1, low=0.0)

    def __call__(self, count: Array) -> Array:
        return jnp.asarray(self.rates)[count]


KEPT, LEFT_OUT, OTHER, SAME = "kept", "left out", "refilled by other prompts", "refilled by the same prompt"
SIGN = replace(
    PLAIN, shaping=Rescaled(bias=-0.5, scale=2.0), advantage=Normalized(center=NoBaseline(), scale=None)
)
"""A = 2r − 1 (arXiv:2605.07689)."""
HANDLINGS: dict[str, tuple[gj.Method, Any]] = {
    KEPT: (PLAIN, None),
    LEFT_OUT: (replace(PLAIN, reduction=Informative(inner=PLAIN.reduction)), None),
    OTHER: (PLAIN, gj.Refill(tries=6, other=True)),
    SAME: (PLAIN, gj.Refill(tries=16)),
}
"""Handling -> method and refill."""


def table(contexts: int) -> np.ndarray:
    """[contexts, outputs] 1 for the right answer."""
    rows, mask = SPACE.support
    outputs = [tuple(row[: int(n)]) for row, n in zip(rows, mask.sum(1), strict=True)]
    return np.tile([1.0 * (output == RIGHT) for output in outputs], (contexts, 1))


def logits(success: tuple[float, ...]) -> np.ndarray:
    """[contexts, 3, 3]: each of the two right tokens has the square root of the success rate."""
    found = np.zeros((len(success), 3, 3))
    for rows, rate in zip(found, success, strict=True):
        right, wrong = np.log(np.sqrt(rate)), np.log((1 - np.sqrt(rate)) / 2)
        rows[0] = right, wrong, wrong
        rows[1] = wrong, wrong, right
    return found


def config(
    method: gj.Method, refill: Any, *, group: int = GROUP, exact: bool = False, steps: int = 1
) -> gj.Config:
    """Prompts drawn from all questions; every question once where expectations are exact."""
    rate: Any = Tabulated(rates=np.ones(steps))
    return gj.Config(
        policy=TreePolicy(space=SPACE, logits=logits(SUCCESS)),
        task=gj.SequenceTable(space=SPACE, table=table(len(SUCCESS))),
        method=method,
        optimizer=gj.AdamW(learning_rate=rate),
        loop=gj.Loop(group_size=group, prompts=None if exact else PROMPTS, refill=refill),
        expectation=gj.Exact() if exact else gj.Sampled(),
    )


def learning(iterations: int, factors: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """(rates, b1, eps) of SGD and AdamW, or of what is named after them at the rate times these factors."""
    found = {}
    for name, factor in (factors or {SGD: 1.0, ADAMW: 1.0}).items():
        rate, b1, eps = adamw(ADAM) if name.startswith(ADAMW) else sgd(RATE)
        found[name] = (rate * factor * np.ones(iterations), b1, eps)
    return found


def trained(
    seed: int,
    size: Any,
    method: gj.Method,
    refill: Any,
    *,
    group: int = GROUP,
    factors: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """J, the mean length of a step, and what was drawn and tied, for every optimizer of ``learning``."""
    data = gj.sweep(
        config(method, refill, group=group, steps=size.iterations),
        {OPTIMIZER: learning(size.iterations, factors)}, seeds=size.seeds,
        iterations=size.iterations, root=seed,
        record=["expected_reward", "samples_drawn", "tied", "update_norm"],
    )  # fmt: skip
    return named(data, {OPTIMIZER: "optimizer"}).drop_attrs()


def identities() -> xr.Dataset:
    """Largest gaps of the library's updates to what they should be, and what refilling draws at the start.

    The updates are of two random trees, one with grades, in groups of three: against the enumeration, and
    against the factor 1 + t + ... that refilling by the same prompt puts before each prompt's own.
    """
    rng = np.random.default_rng(4)
    start = rng.normal(size=(2, 3, 3))
    coins, grades = rng.integers(0, 2, SPACE.size), rng.choice([0.0, 0.5, 1.0], SPACE.size)
    rewards = np.array([coins, grades], float)
    pairs = [(tree(rows, SPACE.horizon), r) for rows, r in zip(start, rewards, strict=True)]
    known, once = (np.array([by_hand.refilled(t, r, SMALL, k) for t, r in pairs]) for k in (TRIES, 1))
    tie = np.array([sum((t.chance @ (r == v)) ** SMALL for v in np.unique(r)) for t, r in pairs])
    slope = np.array([t.slope(r) for t, r in pairs])
    refill = gj.Refill(tries=TRIES)
    found = 2 * expected_update(PLAIN, SPACE, start, rewards, group_size=SMALL, refill=refill)
    plain = 2 * expected_update(PLAIN, SPACE, start, rewards, group_size=GROUP)
    gaps = {
        "library - enumeration": abs(found - known).max(),
        "library - factor": abs(found - by_hand.price(tie, TRIES)[:, None, None] * once).max(),
        "dead groups kept - (1 - 1/G) grad J": abs(plain - (1 - 1 / GROUP) * slope).max(),
        "no ties: left out - kept": placebo(),
    }
    return xr.Dataset({"gap": ("check", list(gaps.values())), "drawn": drawn()}, {"check": list(gaps)})


def placebo() -> float:
    """What leaving out changes in training where no two rewards are equal."""
    ends = []
    task = gj.SequenceTable(space=SPACE, table=table(len(SUCCESS)), noise=Gaussian(std=0.3))
    for handling in (KEPT, LEFT_OUT):
        given = replace(config(*HANDLINGS[handling]), task=task, optimizer=gj.SGD(learning_rate=RATE))
        ends.append(gj.sweep(given, seeds=2, iterations=5, record=["expected_reward"], progress=False))
    return float(abs(ends[0].expected_reward - ends[1].expected_reward).max())


def drawn() -> float:
    """Answers that the library expects to draw at the start, dead groups refilled by the same prompt, over
    what the formula says."""
    method, refill = HANDLINGS[SAME]
    given = replace(config(method, refill, exact=True), optimizer=gj.SGD(learning_rate=RATE))
    data = gj.sweep(given, iterations=1, record=["samples_drawn"], record_start=True, progress=False)
    formula = GROUP * by_hand.price(by_hand.ties(np.array(SUCCESS), GROUP), refill.tries).sum()
    return float(data.samples_drawn.isel(seed=0, iteration=0)) / formula
