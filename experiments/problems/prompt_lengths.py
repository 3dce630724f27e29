"""Prompts whose answers are short or long, while the first token alone decides whether they are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import denominators
from experiments.problems.optimizers import named
from experiments.problems.token_means import GROUP, MEANS, PARTS
from experiments.problems.updates import PLAIN
from grpo_jax.measures import StepView, View
from grpo_jax.parts.reductions import Reduction
from grpo_jax.policies import share_rows
from grpo_jax.tasks import trees
from grpo_jax.types import Array

HORIZON, EOS = 8, 2
SPACE = gj.Sequences(
    vocab=3, horizon=HORIZON, eos=EOS, forbidden=((0, EOS), *((t, 1) for t in range(1, HORIZON)))
)
"""Token 0 (right) or 1, then zeros until EOS: from 2 to 8 tokens."""
LENGTHS = SPACE.support[1].sum(1)
TIE = share_rows(SPACE, lambda prefix: (len(prefix), prefix[:1]))
"""A row for every step, by first token."""
TABLE = trees.first_token(SPACE).table
START, HARD = 0.3, 0.05
"""Success rate of a prompt at the start; that of hard prompts."""
ORDERS: dict[str, Sequence[int | None]] = {
    "sorted": [2, 2, 3, 3, 5, 5, 8, 8],
    "alike": [5, 5, 5, 5, 5, 5, 5, 5],
    "any": [None] * 8,
    "any, hard": [None] * 8,
}
"""Typical lengths of the prompts, in the order in which they are split into micro-batches; None is any.

Those of "any, hard" start from the success rate HARD.
"""


def logits(order: str) -> np.ndarray:
    """[P, rows, V]: an answer ends at its typical length with probability .9, elsewhere with .018.

    One of any length ends with probability .3 at every step.
    """
    start = HARD if "hard" in order else START
    found = np.zeros((len(ORDERS[order]), max(TIE) + 1, SPACE.vocab))
    found[:, TIE[0], 0] = np.log(start / (1 - start))
    by_row = dict(zip(TIE, SPACE.depths.tolist(), strict=True))
    for prompt, length in enumerate(ORDERS[order]):
        for row, depth in by_row.items():
            if depth and length is None:
                found[prompt, row, EOS] = np.log(3 / 7)
            elif depth:
                found[prompt, row, EOS] = np.log(9.0) if depth + 1 == length else -4.0
    return found


def config(reduction: Reduction, order: str) -> gj.Config:
    """Shift-only advantages, on-policy, no clip, no penalty, SGD."""
    return gj.Config(
        policy=gj.TreePolicy(space=SPACE, logits=logits(order), tie=TIE),
        task=gj.SequenceTable(space=SPACE, table=np.tile(TABLE, (len(ORDERS[order]), 1))),
        method=replace(PLAIN, reduction=reduction),
        optimizer=gj.SGD(learning_rate=1.0),
        loop=gj.Loop(group_size=GROUP),
        expectation=gj.Counts(),
    )


@gj.measure("context", about="mean length of answers, tokens")
def mean_length(view: View) -> Array:
    """[C(, R)]."""
    chance: Any = view.probabilities
    return jnp.sum(chance * LENGTHS.reshape((1, -1) + (1,) * (chance.ndim - 2)), 1)


@gj.measure("context", per="step", mean=True, about="squared norm of the update of a prompt's logits")
def square(view: StepView) -> Array:
    """[C(, R)]."""
    return jnp.sum(view.grads**2, (1, 2))


def trained(seed: int, size: Any, mean: str, rates: Sequence[float]) -> xr.Dataset:
    """Success rates, lengths and shares of the update by order of prompts, rate and prompt.

    The rates are those of one prompt, equal in effect: divided by the mean weight over the prompts of
    "sorted".
    """
    typical = np.array(ORDERS["sorted"], float)[:, None]
    scale = denominators.token_weights(np.repeat(typical, GROUP, 1), mean, parts=PARTS)
    learning = [rate / (GROUP * float(scale.mean())) for rate in rates]
    data = gj.sweep(
        config(MEANS[mean], "sorted"),
        {"policy.logits": {order: logits(order) for order in ORDERS}, "learning_rate": learning},
        seeds=size.seeds, iterations=size.iterations, record_every=size.iterations // 20, root=seed,
        record=["prompt_reward"], record_start=True, progress=False,
        measure={"tokens": mean_length, "square": square},
    )  # fmt: skip
    data = named(data, {"policy.logits": "order"}).assign_coords(learning_rate=list(rates))
    return data[["prompt_reward", "tokens", "square"]]
