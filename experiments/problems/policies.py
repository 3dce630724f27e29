"""Whole policies over the answers of one question: where ascent ends, time averages, forces on logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import xarray as xr

import grpo_jax as gj
from experiments.problems.answers import BURN, EVERY


def settled(config: gj.Config, axes: dict[Any, Any], *, iterations: int) -> xr.DataArray:
    """pi(.) [..., output] where exact ascent ends, by setting."""
    data = gj.sweep(config, axes, iterations=iterations, record_every=iterations, record=["probabilities"])
    return data.probabilities.isel(context=0, seed=0, iteration=0, drop=True)


def averaged(config: gj.Config, axes: dict[Any, Any], size: Any, seed: int) -> xr.DataArray:
    """Mean pi(.) [..., seed, output] over each sampled run but for its burn-in, by setting and seed."""
    data = gj.sweep(
        dataclasses.replace(config, expectation=None), axes, seeds=size.seeds, iterations=size.iterations,
        root=seed, record=["probabilities"], record_every=EVERY, average_from=BURN,
    )  # fmt: skip
    return data.probabilities.isel(context=0, drop=True)


@gj.measure("output", about="expected gradient in the logits of the first question", per="step", mean=True)
def _force(view: Any) -> Any:
    return -view.grads[0]  # an optimizer descends


def force(config: gj.Config, axes: dict[Any, Any]) -> xr.DataArray:
    """Expected gradient [..., output] of what is ascended, in the logits, at the policies of each setting."""
    data = gj.sweep(config, axes, iterations=1, record=[], measure={"force": _force})
    return data.force.isel(seed=0, iteration=0, drop=True)
