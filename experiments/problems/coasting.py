"""What Adam's updates do after the last live one: factors of the pair and of the tree, beside theory's."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.problems.past_the_clip import CLIP, RATE, STEPS, VARIANTS, coasted, in_steps, pair, tree
from grpo_jax.optimizers import Adam

DECAYS = [(0.9, 0.95), (0.9, 0.999), (0.8, 0.99), (0.95, 0.999), (0.0, 0.95), (0.99, 0.9)]
STEADY = DECAYS[:5]
"""Those with β1 ≤ √β2."""
LONG, COAST = 72, 40
"""Steps on a batch, and updates on zero gradient that are added up."""
LATE, NINE, FEW = 4000, 9, 4
"""Live steps from which on a factor is late; the last k that is compared; runs."""
DRAWS = 16


def factors(seed: int) -> xr.Dataset:
    """The pair: factors after the clip in a first batch and in a second one, late in Adam's count."""
    config = pair(optimizer=Adam(learning_rate=0.01, eps=0.0), loop=gj.Loop(group_size=64, inner_steps=LONG))
    axes = {("optimizer.b1", "optimizer.b2"): {str(decays): decays for decays in DECAYS}}
    data = gj.sweep(config, axes, seeds=DRAWS, iterations=2, record=[], measure=STEPS, root=seed)
    data = data.rename({"optimizer.b1+optimizer.b2": "decays"})
    right = in_steps(data[list(STEPS)].isel(context=0, row=0, coordinate=0, drop=True))
    right["change"] = right.change / 0.01
    return coasted(right, data["optimizer.b1"], data["optimizer.b2"]).drop_vars(
        ("optimizer.b1", "optimizer.b2"), errors="ignore"
    )


def late(seed: int) -> xr.Dataset:
    """The pair at a learning rate so small that it reaches its clip after thousands of steps."""
    odds = (1 + CLIP) / (1 - CLIP)  # of the right answer at the clip; they are even at the start
    rate = 0.5 * np.log(odds) / (LATE + 50)
    loop = gj.Loop(group_size=64, inner_steps=LATE + 100)
    config = pair(optimizer=Adam(learning_rate=rate, eps=0.0), loop=loop)
    axes = {("optimizer.b1", "optimizer.b2"): {str(decays): decays for decays in STEADY}}
    data = gj.sweep(config, axes, seeds=FEW, iterations=1, record=[], measure=STEPS, root=seed)
    data = data.rename({"optimizer.b1+optimizer.b2": "decays"})
    right = in_steps(data[list(STEPS)].isel(context=0, row=0, coordinate=0, drop=True))
    right["change"] = right.change / rate
    found = coasted(right, data["optimizer.b1"], data["optimizer.b2"])
    found = found.drop_vars(("optimizer.b1", "optimizer.b2"), errors="ignore")
    there = (found.live > LATE) & found.ratio.notnull()
    k = xr.DataArray(range(NINE + 1), {"k": range(NINE + 1)})
    return xr.Dataset({
        "ratio": found.ratio.where(there & (found.k == k)).mean("step"),
        "expected": found.expected.where(there & (found.k == k)).mean("step"),
    })  # fmt: skip


def branches(seed: int) -> xr.DataArray:
    """The tree: greatest |factor - C_{T,k}| of any coordinate by variant."""
    paths = ("inner.weight_decay", "learning_rate.end", "max_norm")
    data = gj.sweep(
        tree(), {paths: VARIANTS}, seeds=DRAWS, iterations=30, record=[], measure=STEPS, root=seed
    )
    steps = in_steps(data[list(STEPS)].rename({"+".join(paths): "variant"}))
    ends = [dataclasses.replace(RATE, end=end) for _, end, _ in VARIANTS.values()]
    rates = np.array([[float(rate(jnp.asarray(step - 1.0))) for step in steps.step.values] for rate in ends])
    labels = {"variant": list(VARIANTS), "step": steps.step.values}
    steps["change"] = steps.change / xr.DataArray(rates, labels)
    found = coasted(steps, 0.9, 0.999)
    return abs(found.ratio - found.expected).max(("context", "row", "coordinate", "step", "seed"))
