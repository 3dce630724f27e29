"""One question with a few answers, trained on-policy (one step a batch), no clip: the setting of [A]."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

import grpo_jax as gj
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.penalties import K3, Penalty, RatioWeight

BURN = 0.25
"""Share of a sampled run that its time average leaves out."""
EVERY = 5
"""Iterations from one policy that a time average takes to the next."""


def method(*, direct: bool = False) -> gj.Method:
    """GRPO of [A]: no clip, k3 penalty; `direct` multiplies the penalty by the ratio."""
    penalty = Penalty(divergence=K3(), weight=RatioWeight() if direct else None, coef=1.0)
    return dataclasses.replace(gj.methods.grpo, gain=Linear(), penalty=penalty)


def logits(policy: ArrayLike) -> np.ndarray:
    """[1, K] logits of a policy [K] over the answers of one question; log 0 is -inf."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(policy, float))[None]


def pairs(chances: Iterable[float]) -> dict[float, np.ndarray]:
    """Policies over two answers as an axis of a sweep: chance of the first answer -> logits [1, 2]."""
    return {float(p): logits([p, 1 - p]) for p in chances}


def question(
    rewards: ArrayLike,
    *,
    group_size: int,
    reference: ArrayLike | None = None,
    start: ArrayLike | None = None,
    direct: bool = False,
    noise: Any = None,
    **changes: Any,
) -> gj.Config:
    """One question with K answers.

    Args:
      rewards: [K] rewards, or success probabilities if `noise` is Bernoulli.
      group_size: G.
      reference: [K] pi_ref; uniform by default.
      start: [K] policy to start from; the reference by default.
      direct: the penalty is multiplied by the ratio.
      noise: of the rewards.
      changes: fields of `Config`; `expectation` is exact by default.
    """
    table = np.asarray(rewards, float)[None]
    anchor = np.full(table.shape[1], 1 / table.shape[1]) if reference is None else reference
    base: dict[str, Any] = {
        "policy": gj.ActionPolicy(logits=logits(anchor if start is None else start)),
        "task": gj.Questions(table=table, noise=noise),
        "method": method(direct=direct),
        "optimizer": gj.SGD(learning_rate=0.1),
        "loop": gj.Loop(group_size=group_size),
        "expectation": gj.Exact(),
        "reference": logits(anchor),
    }
    return gj.Config(**(base | changes))


def settled(config: gj.Config, axes: dict[Any, Any], *, iterations: int) -> xr.DataArray:
    """pi(.) [..., output] where exact ascent ends, by setting."""
    data = gj.sweep(config, axes, iterations=iterations, record_every=iterations, record=["probabilities"])
    return data.probabilities.isel(context=0, seed=0, iteration=0, drop=True)


def ended(config: gj.Config, axes: dict[Any, Any], *, iterations: int) -> xr.DataArray:
    """pi(a) of the first answer where exact ascent ends, by setting."""
    return settled(config, axes, iterations=iterations).isel(output=0, drop=True)


def averaged(config: gj.Config, axes: dict[Any, Any], size: Any, seed: int) -> xr.DataArray:
    """Mean pi(.) [..., seed, output] over each sampled run but for its burn-in, by setting and seed."""
    data = gj.sweep(
        dataclasses.replace(config, expectation=None), axes, seeds=size.seeds, iterations=size.iterations,
        root=seed, record=["probabilities"], record_every=EVERY, average_from=BURN,
    )  # fmt: skip
    return data.probabilities.isel(context=0, drop=True)


def time_averages(config: gj.Config, axes: dict[Any, Any], size: Any, seed: int) -> xr.DataArray:
    """Mean pi(a) of the first answer over each sampled run but for its burn-in, by setting and seed."""
    return averaged(config, axes, size, seed).isel(output=0, drop=True)


@gj.measure("output", about="expected gradient in the logits of the first question", per="step", mean=True)
def _force(view: Any) -> Any:
    return -view.grads[0]  # an optimizer descends


def force(config: gj.Config, axes: dict[Any, Any]) -> xr.DataArray:
    """Expected gradient [..., output] of what is ascended, in the logits, at the policies of each setting."""
    data = gj.sweep(config, axes, iterations=1, record=[], measure={"force": _force})
    return data.force.isel(seed=0, iteration=0, drop=True)


def steady_rate(beta: ArrayLike) -> Any:
    """A learning rate of SGD at which exact ascent is stable for every group size: 3 / (1 + beta)."""
    return 3 / (1 + np.asarray(beta, float))
