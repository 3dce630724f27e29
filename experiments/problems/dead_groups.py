"""Questions from hard to easy, each with a tree of its own, and what becomes of groups whose rewards tie.

An answer is right if its two tokens are: the chance of a right one is the product of two equal chances.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

import grpo_jax as gj
from grpo_jax.methods import SHIFT
from grpo_jax.part import number, part
from grpo_jax.parts.advantages import NoBaseline, Normalized
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.ratios import Score
from grpo_jax.parts.reductions import Constant, Informative
from grpo_jax.parts.shaping import Rescaled
from grpo_jax.policies import TreePolicy
from grpo_jax.types import Array

SPACE = gj.Sequences(vocab=3, horizon=2, eos=2)
RIGHT = (0, 2)
"""A token, then the end."""
SUCCESS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)
"""At the start."""
GROUP, PROMPTS = 8, 8
FREE = 1e9
"""AdamW with an eps as great is SGD: second moments do not count."""
OPTIMIZER = ("optimizer.learning_rate.rates", "optimizer.b1", "optimizer.eps")


@part
class Tabulated:
    """The learning rate of every step, [steps]."""

    rates: Any = number(rank=1, low=0.0)

    def __call__(self, count: Array) -> Array:
        return jnp.asarray(self.rates)[count]


KEPT, LEFT_OUT, OTHER, SAME = "kept", "left out", "refilled by other prompts", "refilled by the same prompt"
PLAIN = gj.Method(advantage=SHIFT, ratio=Score(), gain=Linear(), reduction=Constant(length=1.0))
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
