"""One batch, many optimizer steps: how far do the ratios go past the clip, and what does the optimizer add?

A pair of answers, a small network and a sequence tree; used by the claim on momentum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from grpo_jax import methods
from grpo_jax.measures import Measure, StepView, measure
from grpo_jax.optimizers import ClippedNorm, Cosine
from grpo_jax.policies import MLPPolicy, TreePolicy
from grpo_jax.policies.tree import share_rows
from grpo_jax.tasks import trees
from grpo_jax.theory.optimizer import coasting
from grpo_jax.types import Array

SPACE = trees.free_length(vocab=3, horizon=4)
ADAM = ("optimizer.learning_rate", "optimizer.b1", "optimizer.b2", "optimizer.eps")
CLIP = 0.2
LEAST = 1e-3
"""Share of a learning rate from which on a last live update counts."""


@measure(per="step", about="greatest ratio of a token with A > 0")
def winner(view: StepView) -> Array:
    """1 where there is none."""
    return jnp.exp(jnp.max(jnp.where(view.batch.advantages > 0, view.log_ratio, 0), (0, 1, 2)))


@measure(per="step", about="least ratio of a token with A < 0")
def loser(view: StepView) -> Array:
    """1 where there is none."""
    return jnp.exp(jnp.min(jnp.where(view.batch.advantages < 0, view.log_ratio, 0), (0, 1, 2)))


@measure(per="step", about="share of tokens whose gradient the clip holds at zero")
def held(view: StepView) -> Array:
    """Of live tokens."""
    live, mask = view.batch.rollout.mask > 0, view.clip_mask
    return jnp.sum((mask.high | mask.low) & live, (0, 1, 2)) / jnp.sum(live, (0, 1, 2))


@measure(per="step", about="mean |log ratio| of live tokens")
def moved(view: StepView) -> Array:
    """0 at the first step of a batch."""
    live = view.batch.rollout.mask > 0
    return jnp.sum(abs(view.log_ratio) * live, (0, 1, 2)) / jnp.sum(live, (0, 1, 2))


@measure("context", "row", "coordinate", per="step", about="what the optimizer adds to the logits")
def change(view: StepView) -> Array:
    """[C, rows, V] of a tree, [C, 1, K] of answers."""
    return view.updates if view.params.ndim == 3 + view.runs else view.updates[:, None]


@measure("context", "row", "coordinate", per="step", about="gradient of the loss in the logits")
def slope(view: StepView) -> Array:
    """Shaped like `change`."""
    return view.grads if view.params.ndim == 3 + view.runs else view.grads[:, None]


RATIOS: Mapping[str, Measure] = {"winner": winner, "loser": loser, "held": held, "moved": moved}
STEPS: Mapping[str, Measure] = {"change": change, "slope": slope}


def pair(**changes: Any) -> gj.Config:
    """One question with a right and a wrong answer, equally likely: both reach their clip together."""
    base: dict[str, Any] = {
        "policy": gj.ActionPolicy(logits=np.zeros((1, 2))),
        "task": gj.Questions(table=np.array([[1.0, 0.0]])),
        "method": dataclasses.replace(methods.grpo, penalty=None),
        "optimizer": gj.AdamW(learning_rate=0.02),
        "loop": gj.Loop(group_size=64),
    }
    return gj.Config(**(base | changes))


def network(*, passes: int) -> gj.Config:
    """Two contexts with different right first tokens, a hidden layer of 32."""
    return gj.Config(
        policy=MLPPolicy(space=SPACE, contexts=2, width=32),
        task=trees.tabulated(SPACE, lambda y: y[0] == 0, lambda y: y[0] == 1),
        method=dataclasses.replace(methods.dr_grpo, penalty=None),
        optimizer=gj.AdamW(learning_rate=0.01),
        loop=gj.Loop(group_size=8, inner_steps=passes),
    )


VARIANTS = {
    "plain": (0.0, 1.0, 1e30),
    "weight decay": (0.5, 1.0, 1e30),
    "cosine rate": (0.0, 0.0, 1e30),
    "clipped at every step": (0.0, 1.0, 1e-5),
}
"""Weight decay, end of a cosine schedule and greatest gradient norm."""
RATE = Cosine(init=0.02, steps=60.0, end=1.0)


def tree() -> gj.Config:
    """A tree whose tail is shared between first tokens; prefixes that no sample visits have no gradient."""
    tie = share_rows(SPACE, lambda prefix: (len(prefix), prefix[1:]))
    logits = np.random.default_rng(0).normal(size=(2, max(tie) + 1, SPACE.vocab))
    inner = gj.AdamW(learning_rate=RATE, eps=0.0)
    return gj.Config(
        policy=TreePolicy(space=SPACE, logits=logits, tie=tie),
        task=trees.tabulated(SPACE, lambda y: y[0] == 0, lambda y: 0.5 * (y[0] == 1) + 0.1 * len(y)),
        method=dataclasses.replace(methods.dr_grpo, penalty=None),
        optimizer=ClippedNorm(inner=inner, max_norm=1e30),
        loop=gj.Loop(group_size=8, inner_steps=2),
    )


def in_steps(data: xr.Dataset) -> xr.Dataset:
    """Iterations and their inner steps as one dimension `step`, the optimizer's count from 1."""
    flat = data.stack(step=("iteration", "inner_step")).drop_vars(("step", "iteration", "inner_step"))
    return flat.assign_coords(step=np.arange(1, flat.sizes["step"] + 1))


def coasted(data: xr.Dataset, b1: Any, b2: Any) -> xr.Dataset:
    """Updates on zero gradient over the last live one, coordinate by coordinate, beside C_{T,k}.

    Args:
      data: `change` (over the learning rate) and `slope` along `step`, as `in_steps` gives them.
      b1: decay rate, a number or labelled.
      b2: the other one.

    Returns: `ratio` and `expected`, NaN on live gradients and before them; `k` and `live`.
    """
    alive = data.slope != 0
    last = xr.apply_ufunc(
        np.maximum.accumulate, alive.where(alive, 0) * data.step, input_core_dims=[["step"]],
        output_core_dims=[["step"]], kwargs={"axis": -1},
    ).astype(int)  # fmt: skip
    place = np.maximum(last - 1, 0).drop_vars("step")
    base = data.change.drop_vars("step").isel(step=place).assign_coords(step=data.step)
    told = (last > 0) & ~alive & (abs(base) > LEAST)
    k = (data.step - last - 1).where(told, 0)
    live = last.where(told, 1)
    expected = xr.apply_ufunc(lambda x, y, n, m: np.asarray(coasting(x, y, live=n, k=m)), b1, b2, live, k)
    ratio = (data.change / base.where(told)).where(told)
    return xr.Dataset({"ratio": ratio, "expected": expected.where(told), "k": k, "live": live})
