"""To which gradient an expected update is nearest: an atlas over horizon and drift, and what it says.

For every ratio, clip and advantage, on random tables with binary and graded rewards. Distances are those of
the update over its scale at θ_old (1 - 1/G if shift-only), in units of ‖∇J(θ_old)‖.
"""

import numpy as np
import xarray as xr
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.formulas import expected_updates as closed
from experiments.problems import trees
from experiments.problems.estimands import TARGETS
from experiments.formulas.expected_updates import CLIP_NAMES, CLIPS, DIRECTIONS, ESTIMATORS
from experiments.verdict import Number, share
from grpo_jax.sequences import Sequences

KINDS = ("binary", "graded")
ADVANTAGES = ("shift-only", "σ-normalised")
NEAR = 0.1
"""Of ‖∇J(θ_old)‖."""
QUANTILES = (0.1, 0.5, 0.9)
PUBLISHED = dict(zip(ESTIMATORS, ("two-sided", "upper, minimum", "two-sided", "none", "none"), strict=True))
NAMES = {
    "GRPO": "GRPO\ntoken ratio",
    "TIC-GRPO": "TIC-GRPO\ntrajectory ratio",
    "GSPO": "GSPO\nsequence mean",
    "score": "no ratio,\nscore at θ",
    "frozen": "no ratio,\nfrozen at θ$_{old}$",
}
COLORS = dict(zip(TARGETS, ("#d95f02", "#6a51a3", "#1b9e77"), strict=True))
LABELS = dict(zip(TARGETS, ("∇J(θ$_{old}$)", "∇J(θ)", "local surrogate's"), strict=True))


def compared(
    found: np.ndarray, targets: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances and angles [2, 3, Q], Q quantiles over tables, and how many tables are nearer to the first.

    Args:
      found: [2, rows, V, R] updates with either advantage.
      targets: [3, rows, V, R].
      scale: [2, R] of the updates at θ_old.
    """
    runs = found.shape[-1]
    mine, yours = found.reshape(2, -1, runs) / scale[:, None], targets.reshape(3, -1, runs)
    cross = np.einsum("akr,tkr->atr", mine, yours)
    here, there = np.einsum("akr,akr->ar", mine, mine)[:, None], np.einsum("tkr,tkr->tr", yours, yours)
    distance = np.sqrt(np.maximum(here - 2 * cross + there, 0) / there[0])
    both = np.sqrt(here * there)
    angle = np.degrees(np.arccos(np.clip(np.where(both > 0, cross / np.where(both > 0, both, 1), 0), -1, 1)))
    spread = (np.moveaxis(np.quantile(x, QUANTILES, -1), 0, -1) for x in (distance, angle))
    return (*spread, np.sum(distance[:, 0] < distance[:, 1], -1))


def one_place(old: closed.Batch, params: np.ndarray, frozen: np.ndarray, scale: np.ndarray) -> list[list]:
    """[estimator][clip] what ``compared`` says at θ = ``params``; a ratio of 1 is never clipped."""
    at = closed.point(old.given.space, old.given.logits, params)
    targets = closed.candidates(old.given, at)
    found = []
    for estimator in ESTIMATORS[:3]:
        moved = (closed.updates(old, at, estimator, clip) for clip in CLIPS)
        found.append([compared(each, targets, scale) for each in moved])
    for update in (closed.updates(old, at, "score", "none"), frozen):
        found.append([compared(update, targets, scale)] * len(CLIPS))
    return found


def one_horizon(given: trees.Problem, drifts: np.ndarray, *, group_size: int) -> list[np.ndarray]:
    """Distances, angles and counts over [direction, drift, estimator, clip, advantage, ...]."""
    old = closed.batch(given, group_size=group_size)
    still = closed.point(given.space, given.logits, given.logits)
    frozen, target = closed.updates(old, still, "score", "none"), closed.old_gradient(given)
    scale = np.sum(frozen * target, (1, 2)) / np.sum(target**2, (0, 1))
    found = []
    for name in DIRECTIONS:
        towards = closed.direction(given, name)
        places = (closed.drifted(given, towards, float(kl)) for kl in drifts)
        found.append([one_place(old, params, frozen, scale) for params in places])
    shape = (len(DIRECTIONS), len(drifts), len(ESTIMATORS), len(CLIPS), 2)
    cells = [cell for direction in found for drift in direction for row in drift for cell in row]
    return [np.array(part).reshape(*shape, *part[0].shape[1:]) for part in zip(*cells, strict=True)]


def measured(
    root: int, horizons: np.ndarray, drifts: np.ndarray, *, tables: int, group_size: int
) -> xr.Dataset:
    """The atlas on ``tables`` random reward tables for every horizon and kind of reward."""
    found = []
    for kind in KINDS:
        for horizon in horizons:
            given = trees.problem(root, Sequences(vocab=2, horizon=int(horizon)), tables=tables, kind=kind)
            found.append(one_horizon(given, drifts, group_size=group_size))
    shape = (len(KINDS), len(horizons))
    distance, angle, count = (
        np.array(part).reshape(*shape, *part[0].shape) for part in zip(*found, strict=True)
    )
    axes = ("kind", "horizon", "direction", "drift", "estimator", "clip", "advantage")
    wide = (*axes, "target", "quantile")
    return xr.Dataset(
        {"distance": (wide, distance), "angle": (wide, angle), "nearer": (axes, count)},
        {
            "kind": list(KINDS), "horizon": horizons, "direction": list(DIRECTIONS), "drift": drifts,
            "estimator": list(ESTIMATORS), "clip": list(CLIPS), "advantage": list(ADVANTAGES),
            "target": list(TARGETS), "quantile": list(QUANTILES),
        },
        {"tables": tables},
    )  # fmt: skip


def sentence(data: xr.Dataset) -> xr.Dataset:
    """Where "the update estimates the gradient at the old policy" is true, for each estimator.

    ``start`` is the horizon from which on most tables (99.9 %) have the update nearer to ∇J(θ_old) than to
    ∇J(θ), after every drift; NaN if there is none. ``reach`` is the drift up to which the median table has it
    within a tenth of ‖∇J(θ_old)‖ at every horizon; 0 if there is none.
    """
    tables = int(data.attrs["tables"])
    enough = next((n for n in range(tables + 1) if _low(n, tables) > 0.5), tables + 1)
    most = (data.nearer >= enough).all(("direction", "drift"))
    onward = most.isel(horizon=slice(None, None, -1)).cumprod("horizon") > 0
    start = data.horizon.where(onward.isel(horizon=slice(None, None, -1))).min("horizon")
    far = data.distance.sel(target=TARGETS[0], quantile=0.5).max(("direction", "horizon"))
    reach = data.drift.where((far <= NEAR).cumprod("drift") > 0).max("drift").fillna(0.0)
    return xr.Dataset({"start": start, "reach": reach})


def _low(successes: int, trials: int) -> float:
    low = share(successes, trials).low
    assert low is not None
    return low


def rows() -> list[tuple[str, str]]:
    """Every estimator with every clip that can act on it."""
    return [(e, clip) for e in ESTIMATORS for clip in (CLIPS if e in ESTIMATORS[:3] else CLIPS[:1])]


def numbers(data: xr.Dataset) -> dict[str, Number]:
    """The sentence for every estimator, clip, advantage and kind of reward."""
    where, found = sentence(data), {}
    for estimator, clip in rows():
        for advantage in ADVANTAGES:
            for kind in KINDS:
                at = where.sel(estimator=estimator, clip=clip, advantage=advantage, kind=kind)
                name = f"{estimator}, {CLIP_NAMES[clip]}, {advantage}, {kind}"
                found[f"{name}: nearer to the old gradient from T"] = Number(float(at.start))
                found[f"{name}: within a tenth of it up to, nats"] = Number(float(at.reach))
    return found


def draw_atlas(figure, data: xr.Dataset) -> None:
    """Small multiples, horizon by drift: an estimator each row, the nearest gradient by its colour."""
    places = [(clip, advantage, kind) for clip in (False, True) for advantage in ADVANTAGES for kind in KINDS]
    axes = figure.subplots(len(ESTIMATORS), len(places), sharex=True, sharey=True)
    for row, estimator in zip(axes, ESTIMATORS, strict=True):
        for axis, (clipped, advantage, kind) in zip(row, places, strict=True):
            clip = PUBLISHED[estimator] if clipped else "none"
            here = data.distance.sel(estimator=estimator, clip=clip, advantage=advantage, kind=kind)
            _draw_cells(axis, here.sel(direction="ascent", quantile=0.5))
        row[0].set_ylabel(NAMES[estimator], fontsize=9)
    for axis, (clipped, advantage, kind) in zip(axes[0], places, strict=True):
        axis.set_title(f"{advantage},\n{kind},\n{'its own clip' if clipped else 'no clip'}", fontsize=8.5)
    drifts, horizons = data.drift.values, data.horizon.values
    axes[0, 0].set_xticks(range(0, len(drifts), 2), [f"{kl:g}" for kl in drifts[::2]])
    axes[0, 0].set_yticks(range(1, len(horizons), 2), [f"T = {t}" for t in horizons[1::2]])
    for axis in axes.ravel():
        axis.tick_params(length=0, labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("drift, nats", fontsize=8)
    figure.suptitle(
        "Which gradient the expected update is nearest to after an ascent, and how near (median of "
        f"{int(data.attrs['tables'])} tables; at T = 1 the local surrogate's gradient is ∇J(θ))",
        fontsize=9.5,
    )  # fmt: skip
    _draw_key(figure)


def _draw_cells(axis, distance: xr.DataArray) -> None:
    values = distance.transpose("horizon", "drift", "target").values
    order = [1, 0, 2]  # where two gradients coincide the first of these is named
    nearest = np.take(order, np.argmin(np.round(values[..., order], 6), -1))
    least = values.min(-1)
    shades = [shade(COLORS[TARGETS[i]], _strength(x)) for i, x in zip(nearest.flat, least.flat, strict=True)]
    axis.imshow(np.reshape(shades, (*least.shape, 3)), origin="lower", aspect="auto")
    exact = np.argwhere(least < 1e-6)
    axis.plot(exact[:, 1], exact[:, 0], "o", ms=2, color="white")


def shade(color: str, strength: float) -> np.ndarray:
    """[3] the colour, mixed with white."""
    return 1 - (1 - np.array(to_rgb(color))) * strength


def _strength(distance: float) -> float:
    """1 up to a distance of 0.02, falling with its logarithm to 0.08 at 1."""
    return float(np.interp(np.log10(max(distance, 1e-9)), [np.log10(0.02), 0.0], [1.0, 0.08]))


def _draw_key(figure) -> None:
    marks = (0.02, NEAR, 0.3, 1.0)
    handles: list[Patch | Line2D] = []
    for name in TARGETS:
        for mark in marks:
            text = f"{LABELS[name]} at a distance of {mark:g}" if mark == marks[0] else f"{mark:g}"
            color = tuple(shade(COLORS[name], _strength(mark)))
            handles.append(Patch(facecolor=color, edgecolor="0.7", lw=0.5, label=text))
    handles.append(Line2D([], [], ls="", marker="o", ms=4, mfc="white", mec="0.4", label="exact"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7.5, frameon=False,
        handlelength=1.2, columnspacing=0.9,
    )  # fmt: skip


def draw_sentence(figure, data: xr.Dataset) -> None:
    """A table: from which horizon, and up to which drift, every estimator's update is ∇J(θ_old)."""
    axis, where = figure.subplots(), sentence(data)
    axis.axis("off")
    places = [(advantage, kind) for advantage in ADVANTAGES for kind in KINDS]
    text, shades = [], []
    for estimator, clip in rows():
        each = [where.sel(estimator=estimator, clip=clip, advantage=a, kind=k) for a, k in places]
        first = f"{NAMES[estimator].splitlines()[0].rstrip(',')}, {NAMES[estimator].splitlines()[1]}"
        text.append([first, CLIP_NAMES[clip], *(_words(float(at.start), float(at.reach)) for at in each)])
        shades.append(["white", "white", *(_shade(float(at.start), float(at.reach)) for at in each)])
    titles = ["estimator", "clip (ε = 0.2)", *(f"{advantage}, {kind}" for advantage, kind in places)]
    table = axis.table(text, shades, colLabels=titles, loc="center", cellLoc="center", bbox=[0, 0, 1, 1],
                       colWidths=[0.19, 0.15, *[0.165] * 4])  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(7.5)
    for cell in table.get_celld().values():
        cell.set_edgecolor("0.85")
    axis.set_title(
        "“The update estimates the gradient at the old policy”: the horizons T from which on most tables "
        "have it nearer to ∇J(θ$_{old}$) than to ∇J(θ) after every drift;\nand the drift, in nats, "
        "up to which the median table has it within a tenth of ‖∇J(θ$_{old}$)‖ at every T", fontsize=9,
    )  # fmt: skip


def _words(start: float, reach: float) -> str:
    first = "at no T" if np.isnan(start) else "at every T" if start == 1 else f"from T = {start:g}"
    return f"{first}; {f'to {reach:g}' if reach else 'at no drift'}"


def _shade(start: float, reach: float) -> str:
    if np.isnan(start):
        return "#f8d5c9" if reach < 0.1 else "#fbead2"
    return "#cfe8d8" if start == 1 and reach >= 0.1 else "#fbead2"
