"""To which gradient an expected update is nearest: an atlas over horizon and drift, and what it says.

For every ratio, clip and advantage, on random tables with binary and graded rewards. Distances are those of
the update over its scale at θ_old (1 - 1/G if shift-only), in units of ‖∇J(θ_old)‖.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from experiments.formulas import expected_updates as closed
from experiments.formulas.expected_updates import CLIPS, DIRECTIONS, ESTIMATORS
from experiments.harness.numbers import share
from experiments.problems import trees
from experiments.problems.estimands import TARGETS
from grpo_jax import Sequences

KINDS = ("binary", "graded")
ADVANTAGES = ("shift-only", "σ-normalised")
NEAR = 0.1
"""Of ‖∇J(θ_old)‖."""
QUANTILES = (0.1, 0.5, 0.9)


def compared(found: np.ndarray, targets: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """[7, 2, 3] quantiles over tables of distance and angle; how many tables are nearer to the first target.

    Args:
      found: [2, rows, V, R] updates with either advantage.
      targets: [3, rows, V, R].
      scale: [2, R] of the updates at θ_old.
    """
    mine = found / scale[:, None, None]
    cross = np.einsum("anvr,tnvr->atr", mine, targets)
    here = np.einsum("anvr,anvr->ar", mine, mine)[:, None]
    there = np.einsum("tnvr,tnvr->tr", targets, targets)
    distance = np.sqrt(np.maximum(here - 2 * cross + there, 0) / there[0])
    both = np.sqrt(here * there)
    angle = np.degrees(np.arccos(np.clip(np.where(both > 0, cross / np.where(both > 0, both, 1), 0), -1, 1)))
    nearer = np.sum(distance[:, :1] < distance, -1)
    return np.stack([*np.quantile(distance, QUANTILES, -1), *np.quantile(angle, QUANTILES, -1), nearer])


def one_place(
    old: closed.Batch, params: np.ndarray, frozen: np.ndarray, scale: np.ndarray
) -> list[list[np.ndarray]]:
    """[estimator][clip] what ``compared`` says at θ = ``params``; a ratio of 1 is never clipped."""
    at = closed.point(old.given.space, old.given.logits, params)
    targets = closed.candidates(old.given, at)
    found = [
        [compared(closed.updates(old, at, estimator, clip), targets, scale) for clip in CLIPS]
        for estimator in ESTIMATORS[:3]
    ]
    alone = (closed.updates(old, at, "score", "none"), frozen)
    return found + [[compared(update, targets, scale)] * len(CLIPS) for update in alone]


def one_horizon(given: trees.Problem, drifts: np.ndarray, *, root: int, group_size: int) -> list[list]:
    """[direction][drift] ``one_place``."""
    old = closed.batch(given, group_size=group_size)
    still = closed.point(given.space, given.logits, given.logits)
    frozen, target = closed.updates(old, still, "score", "none"), closed.old_gradient(given)
    scale = np.sum(frozen * target, (1, 2)) / np.sum(target**2, (0, 1))
    ways = [closed.direction(given, name, root) for name in DIRECTIONS]
    return [
        [one_place(old, closed.drifted(given, way, float(kl)), frozen, scale) for kl in drifts]
        for way in ways
    ]


def measured(
    root: int, horizons: np.ndarray, drifts: np.ndarray, *, tables: int, group_size: int
) -> xr.Dataset:
    """The atlas on ``tables`` random reward tables for every horizon and kind of reward.

    ``distance`` and ``angle`` (degrees) by target and quantile, and ``nearer``, how many tables have the
    update nearer to ∇J(θ_old) than to ∇J(θ).
    """
    found = [
        [
            one_horizon(
                trees.problem(root, Sequences(vocab=2, horizon=int(horizon)), tables=tables, kind=kind),
                drifts,
                root=root,
                group_size=group_size,
            )
            for horizon in horizons
        ]
        for kind in KINDS
    ]
    axes = {
        "kind": list(KINDS), "horizon": horizons, "direction": list(DIRECTIONS), "drift": drifts,
        "estimator": list(ESTIMATORS), "clip": list(CLIPS), "what": np.arange(2 * len(QUANTILES) + 1),
        "advantage": list(ADVANTAGES), "target": list(TARGETS),
    }  # fmt: skip
    table = xr.DataArray(found, axes, tuple(axes))
    spreads = [
        table.isel(what=slice(first, first + len(QUANTILES))).rename(what="quantile")
        for first in (0, len(QUANTILES))
    ]
    distance, angle = (part.assign_coords(quantile=list(QUANTILES)) for part in spreads)
    nearer = table.isel(what=-1, drop=True).sel(target=TARGETS[1], drop=True)
    return xr.Dataset({"distance": distance, "angle": angle, "nearer": nearer}, attrs={"tables": tables})


def sentence(data: xr.Dataset) -> xr.Dataset:
    """Where "the update estimates the gradient at the old policy" is true, for each estimator.

    ``start`` is the horizon from which on most tables (99.9 %) have the update nearer to ∇J(θ_old) than to
    ∇J(θ), after every drift; NaN if there is none. ``reach`` is the drift up to which the median table has it
    within a tenth of ‖∇J(θ_old)‖ at every horizon; 0 if there is none.
    """
    tables = int(data.attrs["tables"])
    enough = next((n for n in range(tables + 1) if _most(n, tables)), tables + 1)
    most = (data.nearer >= enough).all(("direction", "drift"))
    onward = most.isel(horizon=slice(None, None, -1)).cumprod("horizon") > 0
    start = data.horizon.where(onward.isel(horizon=slice(None, None, -1))).min("horizon")
    far = data.distance.sel(target=TARGETS[0], quantile=0.5).max(("direction", "horizon"))
    reach = data.drift.where((far <= NEAR).cumprod("drift") > 0).max("drift").fillna(0.0)
    return xr.Dataset({"start": start, "reach": reach})


def _most(successes: int, trials: int) -> bool:
    """Whether more than half is certain (99.9 %)."""
    return share(successes, trials, expected=0.5, relation="at least").holds is True


def rows() -> list[tuple[str, str]]:
    """Every estimator with every clip that can act on it."""
    return [(e, clip) for e in ESTIMATORS for clip in (CLIPS if e in ESTIMATORS[:3] else CLIPS[:1])]
