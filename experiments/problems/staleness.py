"""Asynchronous training on stale answers, over lag, learning rate, clip, group size and objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

import grpo_jax as gj
from grpo_jax.parts.advantages import GroupMean, GroupSpread, Normalized
from grpo_jax.parts.gains import Clip
from grpo_jax.parts.ratios import Token
from grpo_jax.parts.sampler import SamplerMismatch
from grpo_jax.policies.tree import share_rows

SPACE = gj.Sequences(vocab=4, horizon=3)
ROWS = share_rows(SPACE, lambda prefix: ())
"""One row of logits a position, whatever came before: outputs share parameters."""
RIGHT = 0.1
"""Share of outputs that are right in a random task."""
CAP = 2.0
"""Of the decoupled objective's importance weights, as TRL, verl and open-instruct set it."""
OBJECTIVES = {
    "one ratio, against the sampler": (1.0, 1.0, 1.0),
    "decoupled": (0.0, 0.0, CAP),
    "recomputed, no weight": (0.0, 1.0, 1.0),
}
"""Weight of the sampler in the proximal policy, and the bounds of π_prox/q: both 1 leave it out."""
PATHS = ("behavior.proximal.weight", "method.corrections.0.low", "method.corrections.0.high")
CLIPS = {"0.2": (0.2, 0.2), "0.8": (0.8, 0.8), "none": (1e6, 1e6)}
LAGS = [0, 1, 2, 4, 8, 16]


def tables(seed: int, count: int) -> dict[int, np.ndarray]:
    """Random tasks: rewards 1 for RIGHT of the outputs, else 0."""
    rng = np.random.default_rng(seed)
    outputs = SPACE.size
    found = np.zeros((count, 1, outputs))
    for table in found:
        table[0, rng.choice(outputs, round(RIGHT * outputs), replace=False)] = 1
    return dict(enumerate(found))


def config(
    *, shared: bool = True, group_size: int = 8, depth: int = LAGS[-1], inner_steps: int = 1
) -> gj.Config:
    """GRPO without penalty on a tree, with AdamW; rows ``shared`` as ``ROWS``, or one for every prefix."""
    tie = ROWS if shared else None
    rows = SPACE.offsets[-1] if tie is None else max(tie) + 1
    return gj.Config(
        policy=gj.TreePolicy(space=SPACE, logits=np.zeros((1, rows, SPACE.vocab)), tie=tie),
        task=gj.SequenceTable(space=SPACE, table=np.zeros((1, SPACE.size))),
        method=gj.Method(
            advantage=Normalized(center=GroupMean(), scale=GroupSpread(), eps=1e-4),
            ratio=Token(),
            gain=Clip(),
            corrections=(SamplerMismatch(high=CAP),),
            penalty=None,
        ),
        optimizer=gj.AdamW(),
        loop=gj.Loop(group_size=group_size, inner_steps=inner_steps),
        expectation=gj.Counts(),
        behavior=gj.Behavior(age=gj.Age(depth=depth), proximal=gj.Proximal()),
    )


def trained(
    base: gj.Config,
    *,
    seed: int,
    tasks: int,
    seeds: int,
    rates: Sequence[float],
    iterations: int,
    record: Sequence[str],
    measure: Mapping[str, Any] | None = None,
    objectives: Sequence[str] = tuple(OBJECTIVES),
    clips: Sequence[str] = tuple(CLIPS),
    lags: Sequence[int] = LAGS,
    variants: dict[str, Any] | None = None,
) -> xr.Dataset:
    """Every objective, clip, lag, rate, task and seed."""
    axes = {
        PATHS: {name: OBJECTIVES[name] for name in objectives},
        ("clip_low", "clip_high"): {name: CLIPS[name] for name in clips},
        "lag": list(lags),
        "learning_rate": list(rates),
        "task.table": tables(seed, tasks),
    }
    axes = {("behavior.age.lag" if name == "lag" else name): values for name, values in axes.items()}
    data = gj.sweep(
        base, axes, variants=variants, seeds=seeds, iterations=iterations, root=seed, record=list(record),
        measure=measure,
    )  # fmt: skip
    names = {"+".join(PATHS): "objective", "clip_low+clip_high": "clip", "behavior.age.lag": "lag"}
    data = data.rename(names | {"task.table": "task"})
    return data.drop_vars([*PATHS, "clip_low", "clip_high"], errors="ignore")
