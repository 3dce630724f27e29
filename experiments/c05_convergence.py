"""TIC-GRPO converges faster than GRPO, depending on the clip, the drift and the rewards.

Claim C5 of arXiv:2508.02833, on random sequence trees: exact and sampled, clipped and not, judged by the
means of ‖∇J‖² and of J over outer iterations, at equal learning rates and at each method's best. Refuted if
TIC-GRPO wins nowhere: if in no regime it beats GRPO on more than half of the tables (intervals of 99.9 % over
all regimes together), or if after one iteration J(TIC) − J(GRPO) is not ½η²μ(μ−1)gᵀ(H − H_block)g to leading
order. Qualified if GRPO wins somewhere.
"""

import jax
import numpy as np
import xarray as xr
from matplotlib.colors import TwoSlopeNorm

from experiments import tic_parts
from experiments.tic_parts import EPS, GROUP, KINDS, ends
from experiments.trees import INF, averages, curvature_gap, grid, method, problem
from experiments.verdict import CONFIDENCE, Number, judge, mean, share
from grpo_jax.sequences import Sequences

CLAIM = "C5"
PAPER = "C"
PRECISION = "float64"

RATES = 2.0 ** np.arange(-1, 5)
STEPS = np.array([2.0, 4.0, 8.0])
SMALL = np.array([0.0025, 0.005, 0.01])
REGIME = ("kind", "sampling", "clipped")
TOGETHER = 1 - (1 - CONFIDENCE) / 64  # 64 regimes are judged at once
TREE = Sequences(vocab=2, horizon=4)
SIZES = {"smoke": (24, 8), "quick": (200, 20), "full": (1000, 60)}


def head_to_head(
    root: int, space: Sequences, tables: int, iterations: int, rates, steps, groups, *, spread_power=0.0
) -> xr.Dataset:
    """GRPO and TIC-GRPO, without a clip and each with its own, over tables, learning rates and μ."""
    cells = grid(table=np.arange(tables), tic=[0.0, 1.0], clipped=[0, 1], rate=rates, steps=steps)
    bound = np.where(cells["clipped"] == 1, EPS, INF)
    low = np.where((cells["clipped"] == 1) & (cells["tic"] == 0), EPS, 1.0)
    chosen = method(trajectory=cells["tic"], low=low, high=bound, spread_power=spread_power)
    found = [
        [
            averages(problem(root, space, tables=tables, kind=k), root, cells, chosen, g, iterations)
            for g in groups
        ]
        for k in KINDS
    ]
    shape = (len(KINDS), len(groups), 3, tables, 2, 2, len(rates), len(steps))
    dims = ("kind", "sampling", "table", "tic", "clipped", "rate", "steps")
    names = ("value", "square", "final")
    split = np.moveaxis(np.array(found).reshape(shape), 2, 0)
    coords = {
        "kind": list(KINDS), "sampling": ["exact", "sampled"][: len(groups)], "rate": rates, "steps": steps,
        "tic": ["GRPO", "TIC-GRPO"], "clipped": ["unclipped", "clipped"],
    }  # fmt: skip
    return xr.Dataset({n: (dims, x) for n, x in zip(names, split, strict=True)}, coords=coords)


def leading_order(root: int, tables: int) -> xr.Dataset:
    """J(TIC) − J(GRPO) after one iteration of μ = 4 small steps over η², against the prediction."""
    found = []
    for kind in KINDS:
        given = problem(root, TREE, tables=tables, kind=kind)
        cells = grid(table=np.arange(tables), tic=[0.0, 1.0], rate=SMALL, steps=[4.0])
        chosen = method(
            trajectory=cells["tic"], low=np.ones(len(cells["tic"])), high=np.full(len(cells["tic"]), INF)
        )
        final = averages(given, root, cells, chosen, None, 1)[2].reshape(tables, 2, len(SMALL))
        quadratic = (final[:, 1] - final[:, 0]) / SMALL**2
        limit = np.polynomial.polynomial.polyfit(SMALL, quadratic.T, 2)[0]
        found.append([limit, 0.5 * 4 * 3 * curvature_gap(given)])
    measured, predicted = np.moveaxis(np.array(found), 1, 0)
    return xr.Dataset(
        {"measured": (("kind", "table"), measured), "predicted": (("kind", "table"), predicted)}
    )


def simulate(key, size: str) -> xr.Dataset:
    """Maps over (μ, lr), horizons, the factorial of TIC-GRPO's parts, and the leading order."""
    tables, iterations = SIZES[size]
    root = int(jax.random.randint(key, (), 0, 2**31 - 1))
    maps = head_to_head(root, TREE, tables, iterations, RATES, STEPS, (None, GROUP))
    horizons = [
        head_to_head(
            root, Sequences(vocab=2, horizon=T), tables, iterations, RATES[[1, 4]], STEPS[1:2], (None,)
        )
        for T in (2, 3, 5)
    ]
    horizon = xr.concat(horizons, xr.Variable("horizon", [2, 3, 5])).isel(sampling=0, steps=0)
    horizon = horizon.rename({n: f"horizon_{n}" for n in ("value", "square", "final")})
    horizon = horizon.rename({"rate": "rate_of_two"}).drop_vars(["sampling", "steps"])
    corners = RATES[[0, 4]], STEPS[[0, 2]]
    normalised = head_to_head(root, TREE, tables, iterations, *corners, (None, GROUP), spread_power=1.0)
    normalised = normalised.rename({n: f"normalised_{n}" for n in ("value", "square", "final")})
    normalised = normalised.rename({"rate": "corner_rate", "steps": "corner_steps"})
    parts = (tic_parts.factorial(root, tables, iterations), leading_order(root, tables))
    return xr.merge([maps, horizon, normalised, *parts])


def wins(data: xr.Dataset, name: str, better: str = "more") -> xr.DataArray:
    """1 where TIC-GRPO has more (or less) than GRPO, 0 where less, NaN where the same, on each table."""
    gap = data[name].sel(tic="TIC-GRPO") - data[name].sel(tic="GRPO")
    return ((gap > 0) if better == "more" else (gap < 0)).astype(float).where(gap != 0)


def tuned(data: xr.Dataset) -> xr.DataArray:
    """Mean J of each method at the learning rate that is best for it on average over tables."""
    best = data.value.mean("table").argmax("rate")
    return data.value.isel(rate=best)


def regimes(data: xr.Dataset) -> dict[str, Number]:
    """Win rates over tables on both measures, with small and large steps, shift-only and σ-normalised."""
    numbers = {}
    drifts = {"small steps": (RATES[0], 2.0), "large steps": (RATES[4], 8.0)}
    measures = {"J": ("value", "more"), "‖∇J‖²": ("square", "less")}
    kinds = {
        "shift-only": ("", "rate", "steps"),
        "σ-normalised": ("normalised_", "corner_rate", "corner_steps"),
    }
    for advantage, (prefix, rate, steps) in kinds.items():
        for what, (name, better) in measures.items():
            won = wins(data, prefix + name, better)
            for drift, place in drifts.items():
                here = won.sel(dict(zip((rate, steps), place, strict=True))).stack(regime=REGIME)
                for label, each in here.groupby("regime"):
                    one = each.dropna("table")
                    numbers[f"on {what}: {', '.join(label)}, {advantage}, {drift}"] = share(
                        int(one.sum()), one.size, expected=0.5, relation="at least", confidence=TOGETHER
                    )
    return numbers


def leads(data: xr.Dataset) -> dict[str, Number]:
    """Mean J of TIC-GRPO minus GRPO's at μ = 8, each at the learning rate that is best for it."""
    best = tuned(data).sel(steps=8.0)
    gap = (best.sel(tic="TIC-GRPO") - best.sel(tic="GRPO")).stack(regime=REGIME)
    return {f"mean J at best rates: {', '.join(at)}": mean(one) for at, one in gap.groupby("regime")}


def check(data: xr.Dataset):
    """Refuted if TIC-GRPO wins nowhere or the leading order fails; qualified if GRPO wins somewhere."""
    found = regimes(data)
    best = max(found, key=lambda name: ends(found[name])[0])
    worst_ = min(found, key=lambda name: ends(found[name])[1])
    error = np.abs(data.measured - data.predicted).max() / np.abs(data.predicted).max()
    numbers = {
        f"TIC-GRPO's best win rate ({best})": found[best],
        "leading order of J(TIC) − J(GRPO), largest relative error": Number(float(error), 0.0, 1e-4),
        f"TIC-GRPO's worst win rate ({worst_})": found[worst_],
    }
    won, lost = (sum(number.holds is held for number in found.values()) for held in (True, False))
    words = f"in {won} of {len(found)} regimes, against {lost} where GRPO wins and the rest undecided"
    refutes, qualifies = list(numbers)[:2], {list(numbers)[2]: words}
    for kind in KINDS:
        ahead = data.predicted.sel(kind=kind) > 0
        numbers[f"{kind}: share of tables where leading order favours TIC-GRPO"] = share(
            int(ahead.sum()), ahead.size
        )
    reported = {f"win rate {name}": Number(n.value, low=n.low, high=n.high) for name, n in found.items()}
    return judge(
        numbers | reported | leads(data) | tic_parts.numbers(data),
        refutes=refutes,
        qualifies=qualifies,
    )


def draw(figure, data: xr.Dataset) -> None:
    """Maps of who wins; leading order, horizon and parts; and the table of which parts matter, when."""
    figure.set_size_inches(11.5, 11.5)
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.9, 1.15, 0.72))
    _draw_maps(top, data)
    left, centre, right = middle.subplots(1, 3)
    _draw_leading_order(left, data)
    _draw_horizon(centre, data)
    tic_parts.draw_effects(right, data)
    tic_parts.draw_page(bottom, data)


def _draw_maps(figure, data: xr.Dataset) -> None:
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    won, square = wins(data, "value").mean("table"), wins(data, "square", "less").mean("table")
    norm = TwoSlopeNorm(0.5, 0, 1)
    for row, kind in enumerate(KINDS):
        for column, (sampling, clipped) in enumerate(
            (s, c) for c in ("unclipped", "clipped") for s in ("exact", "sampled")
        ):
            axis = axes[row, column]
            at = {"kind": kind, "sampling": sampling, "clipped": clipped}
            grid_ = won.sel(at).transpose("steps", "rate")
            image = axis.imshow(grid_, origin="lower", cmap="RdBu", norm=norm, aspect="auto")
            marks = square.sel(at).transpose("steps", "rate")
            for (y, x), rate in np.ndenumerate(grid_.values):
                color = "w" if abs(rate - 0.5) > 0.33 else "k"
                text = f"{rate:.2f}\n({marks.values[y, x]:.2f})"
                axis.text(x, y, text, ha="center", va="center", fontsize=6.5, color=color)
            axis.set_title(f"{kind} rewards, {sampling}, {clipped}", fontsize=9)
            axis.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
            axis.set_yticks(range(len(STEPS)), [f"{step:g}" for step in STEPS])
    for axis in axes[1]:
        axis.set_xlabel("learning rate η")
    for axis in axes[:, 0]:
        axis.set_ylabel("inner steps μ")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01)
    bar.set_label(
        "share of tables where TIC-GRPO has the greater mean J\n(in brackets: the smaller mean ‖∇J‖²)"
    )


def _draw_leading_order(axis, data: xr.Dataset) -> None:
    for kind, color in zip(KINDS, ("#1b9e77", "#d95f02"), strict=True):
        at = data.sel(kind=kind)
        axis.plot(at.predicted, at.measured, "o", ms=3.5, mec="none", alpha=0.6, color=color, label=kind)
    line = [data.predicted.min(), data.predicted.max()]
    axis.plot(line, line, color="0.3", lw=0.8, zorder=0)
    axis.axvline(0, color="0.8", lw=0.8, zorder=0)
    axis.axhline(0, color="0.8", lw=0.8, zorder=0)
    axis.locator_params(nbins=5)
    axis.set(xlabel="½μ(μ−1) gᵀ(H − H$_{block}$)g", ylabel="(J(TIC) − J(GRPO))/η² after one iteration")
    axis.set_title("Leading order, unclipped, μ = 4: a table each", fontsize=9)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_horizon(axis, data: xr.Dataset) -> None:
    rates = RATES[[1, 4]]
    at_four = data.value.sel(sampling="exact", steps=STEPS[1], rate=rates)
    for clipped, color in (("unclipped", "#222222"), ("clipped", "#e7298a")):
        for rate, style in zip(rates, ("--", "-"), strict=True):
            rows = []
            for T in (2, 3, 4, 5):
                value = (
                    at_four.sel(rate=rate) if T == 4 else data.horizon_value.sel(horizon=T, rate_of_two=rate)
                )
                value = value.sel(clipped=clipped).mean("kind")
                rows.append(mean(value.sel(tic="TIC-GRPO") - value.sel(tic="GRPO")))
            middle = [n.value for n in rows]
            reach = [n.value - ends(n)[0] for n in rows]
            look = {"ls": style, "color": color, "lw": 1.4, "marker": "o", "ms": 4, "capsize": 2}
            axis.errorbar((2, 3, 4, 5), middle, reach, label=f"{clipped}, η = {rate:g}", **look)
    axis.axhline(0, color="0.6", lw=0.8)
    axis.set(xlabel="T", xticks=(2, 3, 4, 5), ylabel="mean J of TIC-GRPO − GRPO")
    axis.set_title("Horizon, exact, μ = 4", fontsize=9)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.3 * (high - low))
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    axis.spines[["top", "right"]].set_visible(False)
