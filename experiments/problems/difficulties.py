"""Prompts from hard to easy, each with a tree of its own, trained with one weighing or another.

An answer is two tokens out of two and is right if both are the first. Every prompt has its own logits, so
that a weight w(p) is nothing but a learning rate of the prompt; `Constant(length=w̄)` in the reduction
divides updates by the mean weight over prompts at the start: the *effective* learning rate is equal then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

import grpo_jax as gj
from grpo_jax.parts.advantages import Advantage
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.ratios import Score
from grpo_jax.parts.reductions import Constant

SPACE = gj.Sequences(vocab=2, horizon=2)
RIGHT = np.array([1.0, 0.0, 0.0, 0.0])
"""[S]."""
PROMPTS = np.linspace(0.05, 0.95, 10)
"""Success rates at the start."""
HARD = slice(None, 0.26)
"""Prompts of at most a quarter at the start."""


def logits(rates: np.ndarray) -> np.ndarray:
    """[C, rows, V]: both tokens of a right answer are equally likely, and so is either after a wrong one."""
    first = np.sqrt(np.asarray(rates, float))
    found = np.zeros((len(first), SPACE.offsets[-1], SPACE.vocab))
    for row in (0, 1):
        found[:, row, 0], found[:, row, 1] = np.log(first), np.log(1 - first)
    return found


def config(advantage: Advantage, *, group_size: int, exact: bool = False) -> gj.Config:
    """Every prompt once a batch, on-policy, without a clip or a penalty."""
    return gj.Config(
        policy=gj.TreePolicy(space=SPACE, logits=logits(PROMPTS)),
        task=gj.SequenceTable(space=SPACE, table=np.tile(RIGHT, (len(PROMPTS), 1))),
        method=gj.Method(advantage=advantage, ratio=Score(), gain=Linear(), reduction=Constant(length=1.0)),
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
