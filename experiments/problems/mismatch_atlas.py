"""One update under every correction, over kinds and sizes of mismatch and T: bias, variance, what is dropped.

And single draws of single states: which tokens a ratio clip stops, and which DPPO's mask.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas import expected_updates as closed
from experiments.harness.numbers import Number, hardest, share
from experiments.problems import mismatches, trees
from experiments.problems.mismatches import EVERY, REGION, Update
from grpo_jax.sequences import Sequences

KINDS = ("fixed", "fresh", "expert", "older", "bfloat16")
NOISE = np.array([0.1, 0.2, 0.4, 0.8])
"""Root mean square of the noise on logits; an older policy is as far away in nats as this noise is."""
HORIZONS = np.array([1, 2, 4, 6])
GROUP, BATCH = 8, 64
SPREAD = 1.5
"""Of the policy's logits: probabilities from rare to common."""
EPS, DELTA, RARE, COMMON = 0.2, 0.1, 0.05, 0.5
"""Of the ratio clip; half of it, the greatest variation distance of a state none of whose tokens leaves the
clip; probabilities below and from which a token is rare and common."""
ENGINES = ("fixed", "expert")
BATCHES = 20
NEAR = 0.01
"""Relative difference below which two errors are equal."""


def older(given: trees.Problem, size: float) -> np.ndarray:
    """[rows, V, R] logits before a step along the gradient, as far away as noise of this size on average."""
    steps = np.exp(closed.log_softmax(given.logits))
    nats = 0.5 * size**2 * np.mean(1 - np.sum(steps**2, 1)) * given.space.horizon
    return closed.drifted(given, -closed.direction(given, "ascent", 0), float(nats))


def sampled(given: trees.Problem, kind: str, size: float, *, root: int, draw: int) -> np.ndarray:
    """[rows, V, R] logits of whoever samples."""
    if kind == "older":
        return older(given, size)
    return mismatches.held(mismatches.engine(kind, size), given.logits, root=root, draw=draw)


def atlas(root: int, size: Any) -> xr.Dataset:
    """Squared bias and variance of every row over kind, noise, T and table; shares kept, and lost.

    ``square`` and ``own`` are ‖f∇J‖² and the variance of the policy's own groups, means over tables.
    """
    cells, scales = {}, []
    for T in HORIZONS:
        space = Sequences(vocab=3, horizon=int(T))
        given = trees.problem(root, space, tables=size.tables, kind="binary", spread=SPREAD)
        target = mismatches.aim(given, group_size=GROUP)
        own = mismatches.one_update(given, given.logits, group_size=GROUP).variance[0]
        scales.append([np.sum(target**2, (0, 1)).mean(), own.mean()])
        for kind, scale in itertools.product(("fixed", "expert", "older", "bfloat16"), NOISE):
            if kind == "bfloat16" and scale != NOISE[0]:
                continue
            draws = size.draws if kind in ENGINES else 1
            every = [
                mismatches.one_update(given, sampled(given, kind, scale, root=root, draw=d), group_size=GROUP)
                for d in range(draws)
            ]
            cells[kind, scale, T], fresh = [_cell(e, every) for e in mismatches.errors(every, target)]
            if kind == "fixed":
                cells["fresh", scale, T] = fresh
    found = [
        [[cells[k, NOISE[0] if k == "bfloat16" else s, T] for T in HORIZONS] for s in NOISE] for k in KINDS
    ]
    axes = {"kind": list(KINDS), "noise": NOISE, "horizon": HORIZONS, "row": EVERY}
    each = xr.DataArray(found, axes, ("kind", "noise", "horizon", "what", "row", "table"))
    table = each.assign_coords(what=["bias", "variance", "kept", "lost"]).to_dataset("what")
    square, own = np.array(scales).T
    return table.assign(square=("horizon", square), own=("horizon", own))


def _cell(error: mismatches.Errors, updates: list[Update]) -> np.ndarray:
    """[what, row, table]."""
    kept, lost = (np.mean([getattr(u, name) for u in updates], 0) for name in ("kept", "lost"))
    return np.stack([error.bias, error.variance, kept, lost])


def draws_of_states(root: int, states: int) -> xr.DataArray:
    """[kind, noise, what, batch] masses of draws by token, state and whether the clip or DPPO's mask acts."""
    space = Sequences(vocab=16, horizon=1)
    given = trees.problem(root, space, tables=states, kind="binary", spread=2.0)
    new = np.exp(closed.log_softmax(given.logits))[0]
    found = []
    for kind, size in itertools.product((*ENGINES, "older"), NOISE):
        q = np.exp(closed.log_softmax(sampled(given, kind, size, root=root, draw=0)))[0]
        beyond = np.broadcast_to(0.5 * np.sum(np.abs(new - q), 0) > DELTA, q.shape)
        out, moved = np.abs(new / q - 1) > EPS, np.abs(new - q) > REGION
        rare, common = q < RARE, q >= COMMON
        masses = {
            "stopped": out,
            "within": ~beyond,
            "rare within": rare & ~beyond,
            "rare within, stopped": rare & ~beyond & out,
            "rare beyond": rare & beyond,
            "rare beyond, stopped": rare & beyond & out,
            "rare beyond, stopped by DPPO": rare & beyond & moved,
            "common beyond": common & beyond,
            "common beyond, stopped": common & beyond & out,
        }
        found.append([np.sum(q * m, 0).reshape(BATCHES, -1).mean(1) for m in masses.values()])
    shape = (len(ENGINES) + 1, len(NOISE), len(masses), BATCHES)
    axes = {"kind": [*ENGINES, "older"], "noise": NOISE, "what": list(masses)}
    return xr.DataArray(np.array(found).reshape(shape), axes, (*axes, "batch"))


def error(cells: xr.Dataset, row: str, batch: int = BATCH) -> xr.DataArray:
    """Squared error of a batch's mean update."""
    return (cells.bias + cells.variance / batch).sel(row=row, drop=True)


def ahead(cells: xr.Dataset, better: str, worse: str, kinds: tuple[str, ...]) -> dict[str, Number]:
    """By kind, the setting that fails first: share of the tables on which ``better`` errs less.

    A kind without a setting in which errors differ on a third of the tables is left out.
    """
    found = {}
    for kind in kinds:
        here = {}
        for noise, T in itertools.product(cells.noise.values, cells.horizon.values):
            at = {"kind": kind, "noise": noise, "horizon": T}
            ratio = error(cells.sel(at), better) / error(cells.sel(at), worse)
            apart = int((abs(ratio - 1) > NEAR).sum())
            if apart >= ratio.size / 3:
                won = share(int((ratio < 1 - NEAR).sum()), apart, expected=0.5, relation="at least")
                here[f"noise {noise:g}, T = {T}"] = won
        if here:
            found[kind] = hardest(here)
    return found


def pooled(cells: xr.Dataset, names: tuple[str, ...] = ("bias", "variance")) -> xr.DataArray:
    """[what, kind, noise, horizon, row] mean over tables."""
    return xr.concat([cells[name].mean("table") for name in names], xr.Variable("what", list(names)))


def dominated(at: xr.DataArray) -> dict[str, list[str]]:
    """Rows, and who beats them everywhere: never more bias nor variance, less of one in every setting.

    More and less mean by 1 % of what there is without a correction.
    """
    scale = NEAR * at.sel(row="none", drop=True)
    found: dict[str, list[str]] = {}
    for row, other in itertools.permutations(at.row.values, 2):
        gap = (at.sel(row=row) - at.sel(row=other)) / scale
        if bool((gap >= -1).all()) and bool((gap.max("what") > 1).all()):
            found.setdefault(row, []).append(other)
    return found


def winners(losers: dict[str, list[str]]) -> dict[str, list[str]]:
    """Whom each beats, the one that beats most first, then who beats most of the rest, until all are named.

    >>> winners({"a": ["c"], "b": ["c", "d"], "c": ["d"]})
    {'c': ['a', 'b'], 'd': ['c']}
    """
    left, found = dict(losers), {}
    while left:
        names = [name for others in left.values() for name in others]
        best = max(dict.fromkeys(names), key=names.count)
        found[best] = [loser for loser, others in left.items() if best in others]
        left = {loser: others for loser, others in left.items() if loser not in found[best]}
    return found
