"""GRPO's update estimates the gradient at the old policy.

Claim C1 of arXiv:2508.02833, whose full text was not available: the sentence is from its abstract.
Shift-only, unclipped and without 1/len the expected update at θ is (1 - 1/G) times
sum_s d_old(s) sum_a ∇π_θ(a|s) Q_old(s, a), the gradient at θ of the local (CPI/TRPO) surrogate. Refuted if
the update at θ_old is not (1 - 1/G) ∇J(θ_old), or the update elsewhere not that formula, to 1e-10. Qualified
if, away from θ_old, most tables have it nearer to ∇J(θ) than to ∇J(θ_old) at some horizon, or the median
table has it further from ∇J(θ_old) than a tenth of that gradient's norm.
"""

import jax
import numpy as np
import xarray as xr

from experiments import estimands, trees
from experiments.estimands import DIRECTIONS, RATIOS, TARGETS
from experiments.grid import grid
from experiments.verdict import Number, judge, share, worst
from grpo_jax.sequences import Sequences

CLAIM = "C1"
PAPER = "C"
PRECISION = "float64"

HORIZONS = np.arange(1, 9)
DRIFTS = np.array([0.001, 0.01, 0.1, 1.0])
"""KL(π_old‖π_θ) over whole sequences, nats."""
KINDS = ("binary", "graded")
GROUP = 8
ATLAS_HORIZON, ATLAS_DRIFT = 4, 0.1
FEW = 8
"""Tables on which the identities go through every group."""
CHECKED = [1, 2, 3, 4, 5]
SHORT, LONG = Sequences(vocab=2, horizon=5), Sequences(vocab=2, horizon=8)
SIZES = {"smoke": 24, "quick": 200, "full": 1000}
NEAR = 0.1


def identities(root: int, horizon: int, kind: str) -> list[float]:
    """Largest deviation of the expected update from its formula, at θ_old and a tenth of a nat away."""
    given = estimands.embedded(root, horizon, within=SHORT, tables=FEW, kind=kind)
    runs = np.arange(FEW)
    drifted = estimands.drifts(given, runs, runs % 2 == 0, np.full(FEW, 0.1))
    problem = estimands.made(SHORT, given.logits, given.table)
    found = []
    for params, name in ((given.logits, TARGETS[0]), (drifted, TARGETS[2])):
        aim = estimands.candidates(*problem, params[None], given.logits[None])[name]
        moved = estimands.update(problem, estimands.method(normalized=0 * runs), params, group_size=GROUP)
        found.append(np.abs(moved - (1 - 1 / GROUP) * np.asarray(aim)).max())
    return found


def distances(root: int, horizon: int, kind: str, tables: int) -> np.ndarray:
    """[candidate, direction, drift, table] distance of the update to ∇J(θ_old), ∇J(θ), over ‖∇J(θ_old)‖.

    One norm for both: under an ascent ∇J(θ) shrinks, and relative to itself everything is far from it.
    """
    given = estimands.embedded(root, horizon, within=LONG, tables=tables, kind=kind)
    ascent, kl, which = grid(np.arange(2), DRIFTS, np.arange(tables))
    params = estimands.drifts(given, which, ascent == 1, kl)
    policy, task = estimands.made(LONG, given.logits[..., which], given.table[..., which])
    aims = estimands.candidates(policy, task, params[None], policy.logits)
    update, old = (np.asarray(aims[name]) for name in ("local surrogate", TARGETS[0]))
    found = [estimands.norm(update - np.asarray(aims[name])) / estimands.norm(old) for name in TARGETS[:2]]
    return np.stack(found).reshape(2, 2, len(DRIFTS), tables)


def atlas(root: int, kind: str, tables: int) -> np.ndarray:
    """[ratio, normalized, clipped, target, table] cosines after an ascent of ``ATLAS_DRIFT`` at T = 4."""
    space = Sequences(vocab=2, horizon=ATLAS_HORIZON)
    given = trees.problem(root, space, tables=tables, kind=kind)
    every = np.arange(tables)
    drifted = estimands.drifts(given, every, every >= 0, np.full(tables, ATLAS_DRIFT))
    problem = estimands.made(space, given.logits, given.table)
    aims = estimands.candidates(*problem, drifted[None], given.logits[None])
    blends = [blend for blend in RATIOS.values() if blend]
    found = []
    for mine in (blends, [None]):
        ratio, normalized, clipped, which = grid(np.arange(len(mine)), np.arange(2.0), np.arange(2), every)
        edge = np.where(clipped == 1, 0.2, np.inf)
        setting = {"normalized": normalized, "low": edge, "high": edge}
        if mine[0] is None:
            method = estimands.sequence_mean(**setting)
        else:
            numbers = {name: np.array([blend[name] for blend in mine])[ratio] for name in mine[0]}
            method = estimands.method(**numbers, **setting)
        here = estimands.made(space, given.logits[..., which], given.table[..., which])
        moved = estimands.update(here, method, drifted[..., which], group_size=GROUP)
        aim = {name: np.asarray(value)[..., which] for name, value in aims.items()}
        found.append(estimands.cosines(moved, aim).reshape(len(TARGETS), len(mine), 2, 2, tables))
    return np.moveaxis(np.concatenate(found, 1), 0, 3)


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Identities through every group; distances for every horizon and drift; the atlas of ratios."""
    root, tables = int(jax.random.key_data(key)[-1]), SIZES[size]
    exact = [[identities(root, t, kind) for t in CHECKED] for kind in KINDS]
    away = [[distances(root, int(t), kind, tables) for t in HORIZONS] for kind in KINDS]
    maps = [atlas(root, kind, tables) for kind in KINDS]
    axes = ("kind", "horizon", "candidate", "direction", "drift", "table")
    return xr.Dataset(
        {
            "residual": (("kind", "checked", "place"), np.array(exact)),
            "distance": (axes, np.array(away)),
            "cosine": (("kind", "ratio", "normalized", "clipped", "target", "table"), np.array(maps)),
        },
        {
            "kind": list(KINDS),
            "horizon": HORIZONS,
            "checked": CHECKED,
            "place": ["at the old policy", "away from it"],
            "candidate": list(TARGETS[:2]),
            "direction": list(DIRECTIONS),
            "drift": DRIFTS,
            "ratio": list(RATIOS),
            "normalized": [0, 1],
            "clipped": [0, 1],
            "target": list(TARGETS),
        },
    )


def check(data: xr.Dataset):
    """The identities refute; where the old policy's gradient is not the nearest, or not near, qualifies."""
    gap = data.distance.sel(candidate=TARGETS[0]) - data.distance.sel(candidate=TARGETS[1])
    nearer = (gap < 0).mean("table")
    far = data.distance.sel(candidate=TARGETS[0]).median("table")
    sure = xr.apply_ufunc(np.vectorize(lambda n: share(int(n), gap.table.size).low), (gap < 0).sum("table"))
    always = sure.min(("kind", "direction", "drift")) > 0.5
    late = HORIZONS[np.asarray(always)]
    start = int(late.min()) if late.size and bool(always.sel(horizon=slice(late.min(), None)).all()) else None
    near = far.max(("kind", "direction", "horizon")) <= NEAR
    reach = float(DRIFTS[np.asarray(near)].max()) if near.any() else 0.0
    numbers = {
        "update at the old policy": worst(data.residual.isel(place=0), expected=0, tolerance=1e-10),
        "update away from it": worst(data.residual.isel(place=1), expected=0, tolerance=1e-10),
        "share of tables nearer to the old gradient, T = 1": Number(
            float(nearer.sel(horizon=1).max()), expected=0.5, relation="at least"
        ),
        **{
            f"least share at T = {t}, drifts up to {most:g} nats": Number(
                float(nearer.sel(horizon=t, drift=slice(0, most)).min())
            )
            for t in (2, 3, 4, 8)
            for most in (0.1, 1.0)
        },
        "median distance to the old gradient at 1 nat": Number(
            float(far.sel(drift=1.0).max()), expected=NEAR, relation="at most"
        ),
        "median distance to the old gradient at 0.001 nat": Number(float(far.sel(drift=0.001).max())),
    }
    onward = f"from T = {start} on" if start else "at no horizon for all drifts"
    return judge(
        numbers,
        refutes=["update at the old policy", "update away from it"],
        qualifies={
            "share of tables nearer to the old gradient, T = 1": (
                f"{onward} (for most tables at 99.9 %, every drift and kind of reward)"
            ),
            "median distance to the old gradient at 1 nat": (
                f"up to a drift of {reach:g} nats if within a tenth is near"
                if reach
                else "at the old policy itself"
            ),
        },
    )


def draw(figure, data: xr.Dataset) -> None:
    """Distances against drift, who is nearer against horizon, and the atlas of ratios."""
    figure.set_size_inches(11, 6.6)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 0.92))
    axes = top.subplots(1, 3)
    colors = {TARGETS[0]: "#b2182b", TARGETS[1]: "#2166ac"}
    for axis, horizon in zip(axes[:2], (2, 8), strict=True):
        _draw_distances(axis, data.sel(horizon=horizon, kind="graded"), colors, horizon)
    axes[0].set_ylabel("distance of the expected update\nto a gradient / ‖∇J(θ$_{old}$)‖")
    axes[0].legend(frameon=False, fontsize=8)
    _draw_nearer(axes[2], data)
    _draw_atlas(bottom, data.sel(kind="graded"))


def _draw_distances(axis, data: xr.Dataset, colors: dict, horizon: int) -> None:
    for name, color in colors.items():
        for direction, style in zip(DIRECTIONS, ("--", "-"), strict=True):
            values = data.distance.sel(candidate=name, direction=direction)
            label = f"to ∇J({'θ$_{old}$' if name == TARGETS[0] else 'θ'}), {direction} drift"
            axis.plot(DRIFTS, values.median("table"), style, color=color, marker="o", ms=3, label=label)
            if direction == "ascent":
                low, high = values.quantile([0.1, 0.9], "table")
                axis.fill_between(DRIFTS, low, high, color=color, alpha=0.15, lw=0)
    axis.set(xscale="log", yscale="log", xlabel="drift KL(π$_{old}$‖π$_θ$), nats")
    axis.set_title(f"T = {horizon}, graded rewards", fontsize=9)


def _draw_nearer(axis, data: xr.Dataset) -> None:
    gap = data.distance.sel(candidate=TARGETS[0]) < data.distance.sel(candidate=TARGETS[1])
    share = gap.sel(kind="graded").mean("table")
    shades = ("#c6dbef", "#6baed6", "#2171b5", "#08306b")
    for drift, color in zip(DRIFTS, shades, strict=True):
        for direction, style in zip(DIRECTIONS, ("--", "-"), strict=True):
            label = f"{drift:g} nats" if direction == "ascent" else None
            axis.plot(HORIZONS, share.sel(drift=drift, direction=direction), style, color=color, label=label)
    axis.axhline(0.5, color="0.6", lw=0.8)
    axis.set(xlabel="horizon T", ylabel="share of tables", ylim=(-0.03, 1.03))
    axis.set_title("update nearer to ∇J(θ$_{old}$) than to ∇J(θ)", fontsize=9)
    axis.legend(frameon=False, fontsize=8, title="ascent (dashed: random)", title_fontsize=8)


def _draw_atlas(figure, data: xr.Dataset) -> None:
    axes = figure.subplots(1, 4, sharey=True)
    ratios = list(RATIOS)
    panels = [(0, 0, "A = r − r̄, no clip"), (1, 0, "A = (r − r̄)/σ, no clip")]
    panels += [(0, 1, "A = r − r̄, clip 0.2"), (1, 1, "A = (r − r̄)/σ, clip 0.2")]
    for axis, (normalized, clipped, title) in zip(axes, panels, strict=True):
        angle = np.degrees(np.arccos(np.clip(data.cosine.sel(normalized=normalized, clipped=clipped), -1, 1)))
        middle = np.median(angle, -1)
        axis.imshow(middle, cmap="Blues", vmin=0, vmax=np.degrees(1) / 2, aspect="auto")
        for row in range(len(ratios)):
            for column in range(len(TARGETS)):
                value = middle[row, column]
                text = "0" if value < 1e-4 else f"{value:.1f}"
                axis.text(column, row, f"{text}°", ha="center", va="center", fontsize=9,
                          color="white" if value > 17 else "black")  # fmt: skip
        axis.set_xticks(range(3), ["∇J(θ$_{old}$)", "∇J(θ)", "local"], fontsize=9)
        axis.set_yticks(range(len(ratios)), ratios, fontsize=9)
        axis.set_title(title, fontsize=9)
        axis.tick_params(length=0)
    figure.suptitle(
        f"angle between the expected update and each gradient (median of graded tables, T = {ATLAS_HORIZON}, "
        f"G = {GROUP}, after an ascent of {ATLAS_DRIFT} nat)", fontsize=9,
    )  # fmt: skip
