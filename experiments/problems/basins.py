"""Where training under the direct penalty ends that starts beside one of its roots, in log odds."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas.direct_phases import lower_root, odds, phases
from experiments.harness.numbers import tabulated
from experiments.problems.answers import question, settled, time_averages
from grpo_jax import theory

GROUPS = [8, 32]
"""Whose basins are tried."""
NUDGE = 0.3
"""Log odds beside a root at which runs start."""
LARGE = 2048
"""A group so large that the upper root of infinite ones lies well inside what it can see: G (1 − x) > 5."""
BESIDE = {"reference": [0.05, 0.2, 0.5], "beta": [1.6, 2.0]}
"""Settings in which large groups have two roots."""


def pair_logits(z: float) -> np.ndarray:
    """[1, 2] logits of two answers with these log odds."""
    return -np.logaddexp(0, [[-z, z]])


def climbed(settings: xr.Dataset, *, group_size: int, rate: float, iterations: int) -> xr.DataArray:
    """Log odds where exact ascent ends, for every β, logit π_ref and start."""
    z_ref, start, beta = xr.broadcast(settings.z_ref, settings.start, settings.beta)
    flat = xr.Dataset({"z_ref": z_ref, "start": start, "beta": beta}).stack(case=start.dims)
    rows = zip(flat.z_ref.values, flat.start.values, flat.beta.values, strict=True)
    axis = {i: (pair_logits(z), pair_logits(first), b) for i, (z, first, b) in enumerate(rows)}
    config = question([1.0, 0.0], group_size=group_size, direct=True, optimizer=gj.SGD(learning_rate=rate))
    paths = ("reference", "policy.logits", "kl_coef")
    found = settled(config, {paths: axis}, iterations=iterations)
    ratio = found.isel(output=0) / found.isel(output=1)
    return flat.start.copy(data=np.log(ratio)).unstack("case")


def basins(group_size: int) -> xr.Dataset:
    """Roots of finite groups, and where exact ascent ends that starts on every side of them."""
    told = phases(group_size)
    low, middle, high = (told.root.sel(which=which, drop=True) for which in told.which.values)
    sides = xr.Variable("side", ["far below", "below the middle", "above the middle", "far above"])
    starts = xr.concat([low - 2, middle - NUDGE, middle + NUDGE, high + 1], sides)
    ends = climbed(told.assign(start=starts), group_size=group_size, rate=4.0, iterations=6000)
    return told.assign(start=starts, end=ends, expected=xr.concat([low, low, high, high], sides))


def beside() -> xr.Dataset:
    """Exact ascent in groups of LARGE that starts beside either root of infinite groups, in log odds."""
    told = {
        "lower": tabulated(np.vectorize(lambda r, b: lower_root(r, b, group_size=LARGE)), **BESIDE),
        "upper": tabulated(
            lambda r, b: theory.direct_roots(r, b, group_size=np.inf).log_odds[..., 1], **BESIDE
        ),
    }
    root = xr.concat(list(told.values()), xr.Variable("root", list(told)))
    start = root + xr.DataArray([-NUDGE, NUDGE], {"side": ["below", "above"]})
    anchor = np.log(root.reference / (1 - root.reference))
    settings = xr.Dataset({"z_ref": anchor, "start": start, "beta": root.beta})
    return xr.Dataset({
        "at": root, "end": climbed(settings, group_size=LARGE, rate=1.5, iterations=500)
    })  # fmt: skip


def kept(seed: int, size: Any, told: xr.Dataset) -> xr.DataArray:
    """Whether sampled training that starts on either attractor is still on its side of the middle root."""
    here = told.isel(level=0, place=1)
    low, middle, high = (float(here.root.sel(which=which)) for which in told.which.values)
    config = question(
        [1.0, 0.0], group_size=GROUPS[1], reference=odds(np.array([1, -1]) * float(here.z_ref)), direct=True,
        optimizer=gj.SGD(learning_rate=0.02),
    )  # fmt: skip
    axes = {
        "policy.logits": {"low": pair_logits(low), "high": pair_logits(high)},
        "kl_coef": [float(here.beta)],
    }
    average = time_averages(config, axes, size, seed).squeeze("kl_coef", drop=True)
    above = average > odds(middle)
    return above == xr.DataArray([False, True], {"policy.logits": ["low", "high"]})
