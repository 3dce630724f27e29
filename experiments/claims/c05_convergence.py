"""TIC-GRPO converges faster than GRPO, depending on the clip, the drift and the rewards.

Claim C5 of arXiv:2508.02833, on random sequence trees, judged by the means of ‖∇J‖² and of J over outer
iterations, in regimes: exact and sampled, clipped and not, binary and graded, over learning rates and μ, SGD
and AdamW, σ-normalised, and T = 2 to 5 (exact). A regime is won by the method that is ahead on most of the
tables where the two differ (99.9 % over all regimes together). Refuted if TIC-GRPO wins none or loses more
than it wins, or if after one iteration J(TIC) − J(GRPO) is not ½η²μ(μ−1)gᵀ(H − H_block)g to leading order.
Qualified if it loses any.
"""

from typing import NamedTuple

import jax
import numpy as np
import xarray as xr
from matplotlib.colors import TwoSlopeNorm

from experiments.claims import tic_parts
from experiments.claims.tic_parts import EPS, GROUP, KINDS, ends
from experiments.problems.trees import INF, averages, curvature_gap, grid, method, problem
from experiments.verdict import CONFIDENCE, Number, judge, mean, share
from grpo_jax.sequences import Sequences

CLAIM = "C5"
PAPER = "C"
PRECISION = "float64"

RATES = 2.0 ** np.arange(-1, 5)
ADAMW_RATES = 2.0 ** np.arange(-7, 1, 2)
STEPS = np.array([2.0, 4.0, 8.0])
SMALL = np.array([0.0025, 0.005, 0.01])
REGIME = ("kind", "sampling", "clipped", "steps", "rate")
MEASURES = {"J": ("value", "more"), "‖∇J‖²": ("square", "less")}
OUTCOMES = ("value", "square", "final")
OWN = ("sampling", "rate", "steps")
"""Axes on which scopes differ."""
TREE = Sequences(vocab=2, horizon=4)
SCOPES = {
    "sgd": "SGD",
    "adamw": "AdamW",
    "sigma": "SGD, σ-normalised",
    "t2": "SGD, T = 2",
    "t3": "SGD, T = 3",
    "t5": "SGD, T = 5",
}
"""Shift-only and T = 4 unless they say otherwise."""
SIZES = {"smoke": (24, 8), "quick": (200, 20), "full": (1000, 60)}


class Map(NamedTuple):
    """Learning rates and numbers of inner steps, and the power of σ in the advantage, 0 or 1."""

    rates: np.ndarray
    steps: np.ndarray
    power: float = 0.0


def head_to_head(
    root: int,
    space: Sequences,
    tables: int,
    iterations: int,
    *maps: Map,
    optimizer: str = "SGD",
    groups: tuple[int | None, ...] = (None, GROUP),
) -> list[xr.Dataset]:
    """GRPO and TIC-GRPO, without a clip and each with its own, over tables; for every map, in one program.

    ``groups``: their size; None is the exact expectation.
    """
    axes = {"table": np.arange(tables), "tic": [0.0, 1.0], "clipped": [0, 1]}
    grids = [grid(**axes, rate=each.rates, steps=each.steps, power=[each.power]) for each in maps]
    cells = {name: np.concatenate([each[name] for each in grids]) for name in grids[0]}
    bound = np.where(cells["clipped"] == 1, EPS, INF)
    low = np.where((cells["clipped"] == 1) & (cells["tic"] == 0), EPS, 1.0)
    chosen = method(trajectory=cells["tic"], low=low, high=bound, spread_power=cells["power"])
    found = []
    for kind in KINDS:
        given = problem(root, space, tables=tables, kind=kind)
        for group in groups:
            found.append(averages(given, root, cells, chosen, group, iterations, optimizer=optimizer))
    stops = np.cumsum([len(each["table"]) for each in grids])[:-1]
    parts = np.split(np.array(found), stops, axis=2)
    return [_labelled(part, each, tables) for part, each in zip(parts, maps, strict=True)]


def _labelled(found: np.ndarray, each: Map, tables: int) -> xr.Dataset:
    """Of one map, from [kind and sampling, measure, run]."""
    sampling = ["exact", "sampled"][: len(found) // len(KINDS)]
    shape = (len(KINDS), len(sampling), 3, tables, 2, 2, len(each.rates), len(each.steps))
    dims = ("kind", "sampling", "table", "tic", "clipped", "rate", "steps")
    split = np.moveaxis(found.reshape(shape), 2, 0)
    coords = {
        "kind": list(KINDS), "sampling": sampling, "rate": each.rates, "steps": each.steps,
        "tic": ["GRPO", "TIC-GRPO"], "clipped": ["unclipped", "clipped"],
    }  # fmt: skip
    return xr.Dataset({n: (dims, x) for n, x in zip(OUTCOMES, split, strict=True)}, coords=coords)


def stored(scope: str, found: xr.Dataset) -> xr.Dataset:
    """The same beside other scopes, whose learning rates and μ differ."""
    return found.rename({name: f"{scope}_{name}" for name in (*OUTCOMES, *OWN)})


def recalled(data: xr.Dataset, scope: str) -> xr.Dataset:
    """What ``stored`` was given."""
    found = xr.Dataset({name: data[f"{scope}_{name}"] for name in OUTCOMES})
    return found.rename({f"{scope}_{name}": name for name in OWN})


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
    """Every scope's map over (μ, lr), the factorial of TIC-GRPO's parts, and the leading order."""
    tables, iterations = SIZES[size]
    root = int(jax.random.randint(key, (), 0, 2**31 - 1))
    few = (root, TREE, tables, iterations)
    found = dict(zip(
        ("sgd", "sigma"),
        head_to_head(*few, Map(RATES, STEPS), Map(RATES[::2], STEPS[[0, 2]], power=1.0)), strict=True,
    ))  # fmt: skip
    (found["adamw"],) = head_to_head(*few, Map(ADAMW_RATES, STEPS[[0, 2]]), optimizer="AdamW")
    for horizon in (2, 3, 5):
        space = Sequences(vocab=2, horizon=horizon)
        few_rates = Map(RATES[[1, 4]], STEPS[1:2])
        (here,) = head_to_head(root, space, tables, iterations, few_rates, groups=(None,))
        found[f"t{horizon}"] = here
    maps = [stored(scope, each) for scope, each in found.items()]
    return xr.merge([*maps, tic_parts.factorial(root, tables, iterations), leading_order(root, tables)])


def wins(data: xr.Dataset, name: str, better: str = "more") -> xr.DataArray:
    """1 where TIC-GRPO has more (or less) than GRPO, 0 where less, NaN where the same, on each table."""
    gap = data[name].sel(tic="TIC-GRPO") - data[name].sel(tic="GRPO")
    return ((gap > 0) if better == "more" else (gap < 0)).astype(float).where(gap != 0)


def regimes(data: xr.Dataset) -> dict[tuple[str, ...], Number]:
    """Win rates over tables in every regime of every scope, on both measures; intervals for all at once."""
    counts = {}
    for scope in SCOPES:
        for measure, (name, better) in MEASURES.items():
            won = wins(recalled(data, scope), name, better).stack(regime=REGIME)
            pairs = zip(won.sum("table").values, won.notnull().sum("table").values, strict=True)
            for (kind, sampling, clipped, steps, rate), pair in zip(won.regime.values, pairs, strict=True):
                label = (SCOPES[scope], measure, kind, sampling, clipped, f"μ = {steps:g}", f"η = {rate:g}")
                counts[label] = pair
    together = 1 - (1 - CONFIDENCE) / len(counts)
    return {
        label: share(int(ahead), int(differ), expected=0.5, relation="at least", confidence=together)
        for label, (ahead, differ) in counts.items()
        if differ
    }


def counted(found: dict[tuple[str, ...], Number], *words: str) -> tuple[int, int, int]:
    """Regimes that TIC-GRPO wins and loses, and all, among those whose label has these words."""
    here = [number for label, number in found.items() if set(words) <= set(label)]
    return sum(ends(n)[0] > 0.5 for n in here), sum(ends(n)[1] < 0.5 for n in here), len(here)


def leads(data: xr.Dataset) -> dict[str, Number]:
    """Mean J of TIC-GRPO minus GRPO's at μ = 8, each at the learning rate that is best for it."""
    found = {}
    for scope in ("sgd", "adamw"):
        value = recalled(data, scope).value.sel(steps=8.0)
        best = value.isel(rate=value.mean("table").argmax("rate"))
        gap = best.sel(tic="TIC-GRPO") - best.sel(tic="GRPO")
        for at, one in gap.stack(regime=REGIME[:3]).groupby("regime"):
            found[f"mean J at best rates: {SCOPES[scope]}, {', '.join(at)}"] = mean(one)
    return found


def check(data: xr.Dataset):
    """Refuted if TIC-GRPO loses more regimes than it wins or the leading order fails; qualified if any."""
    found = regimes(data)
    won, lost, total = counted(found)
    error = np.abs(data.measured - data.predicted).max() / np.abs(data.predicted).max()
    numbers = {
        "regimes won by TIC-GRPO": Number(float(won), 1.0, relation="at least"),
        "regimes won by TIC-GRPO minus those won by GRPO": Number(
            float(won - lost), 0.0, relation="at least"
        ),
        "leading order of J(TIC) − J(GRPO), largest relative error": Number(float(error), 0.0, 1e-4),
        "regimes won by GRPO": Number(float(lost), 0.0, relation="at most"),
        "regimes": Number(float(total)),
    }
    scopes = {scope: counted(found, scope) for scope in SCOPES.values()}
    tally = ", ".join(f"{scope} {up} to {down} of {of}" for scope, (up, down, of) in scopes.items())
    words = f"in {won} of {total} regimes, against {lost} where GRPO wins and the rest undecided ({tally})"
    for scope in SCOPES.values():
        for measure in MEASURES:
            for clipped in ("unclipped", "clipped"):
                ahead, behind, every = counted(found, scope, measure, clipped)
                label = f"{scope}, {clipped}, on {measure} (of {every})"
                numbers[f"won by TIC-GRPO: {label}"] = Number(float(ahead))
                numbers[f"won by GRPO: {label}"] = Number(float(behind))
    best, worst = (max(found, key=key) for key in (lambda n: ends(found[n])[0], lambda n: -ends(found[n])[1]))
    for name, where in (("best", best), ("worst", worst)):
        low, high = ends(found[where])
        rate = Number(found[where].value, low=low, high=high)
        numbers[f"TIC-GRPO's {name} win rate ({', '.join(where)})"] = rate
    for kind in KINDS:
        favoured = data.predicted.sel(kind=kind) > 0
        numbers[f"{kind}: share of tables where leading order favours TIC-GRPO"] = share(
            int(favoured.sum()), favoured.size
        )
    return judge(
        numbers | leads(data) | tic_parts.numbers(data),
        refutes=list(numbers)[:3],
        qualifies={"regimes won by GRPO": words},
    )


def draw(figure, data: xr.Dataset) -> None:
    """Maps of who wins; leading order, horizon and parts; and the table of which parts matter, when."""
    figure.set_size_inches(11.5, 16.5)
    first, second, middle, bottom = figure.subfigures(4, 1, height_ratios=(1.8, 1.35, 1.1, 1.35))
    found = regimes(data)
    for part, scope in ((first, "sgd"), (second, "adamw")):
        _draw_maps(part, recalled(data, scope), found, SCOPES[scope])
    left, centre, right = middle.subplots(1, 3)
    _draw_leading_order(left, data)
    _draw_horizon(centre, data)
    tic_parts.draw_effects(right, data)
    tic_parts.draw_page(bottom, data)


def _draw_maps(figure, data: xr.Dataset, found: dict[tuple[str, ...], Number], scope: str) -> None:
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    places = [
        (sampling, clipped) for clipped in ("unclipped", "clipped") for sampling in ("exact", "sampled")
    ]
    for row, kind in zip(axes, KINDS, strict=True):
        for axis, (sampling, clipped) in zip(row, places, strict=True):
            here = (scope, kind, sampling, clipped)
            image = _draw_map(axis, data, found, here)
            axis.set_title(f"{kind} rewards, {sampling}, {clipped}", fontsize=9)
    for axis in axes[1]:
        axis.set_xlabel("learning rate η")
    for axis in axes[:, 0]:
        axis.set_ylabel("inner steps μ")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01)
    bar.set_label("share of tables where TIC-GRPO\nhas the greater mean J", fontsize=8.5)
    figure.suptitle(
        f"{scope}: who is ahead (in brackets: share with the smaller mean ‖∇J‖²; bold: decided)", fontsize=9.5
    )


def _draw_map(axis, data: xr.Dataset, found: dict[tuple[str, ...], Number], here: tuple[str, ...]):
    scope, kind, sampling, clipped = here
    rates, steps = data.rate.values, data.steps.values
    at = {"kind": kind, "sampling": sampling, "clipped": clipped}
    shares = [
        wins(data, *MEASURES[measure]).sel(at).mean("table").transpose("steps", "rate").values
        for measure in MEASURES
    ]
    image = axis.imshow(shares[0], origin="lower", cmap="RdBu", norm=TwoSlopeNorm(0.5, 0, 1), aspect="auto")
    for (y, x), rate in np.ndenumerate(shares[0]):
        for measure, shift, text in zip(MEASURES, (0.17, -0.2), ("{:.2f}", "({:.2f})"), strict=True):
            value = shares[list(MEASURES).index(measure)][y, x]
            label = (scope, measure, kind, sampling, clipped, f"μ = {steps[y]:g}", f"η = {rates[x]:g}")
            decided = label in found and not ends(found[label])[0] <= 0.5 <= ends(found[label])[1]
            axis.text(
                x, y + shift, text.format(value), ha="center", va="center", fontsize=6.5,
                color="w" if abs(rate - 0.5) > 0.33 else "k", weight="bold" if decided else "normal",
            )  # fmt: skip
    axis.set_xticks(range(len(rates)), [f"{rate:g}" if rate >= 0.1 else f"1/{1 / rate:g}" for rate in rates])
    axis.set_yticks(range(len(steps)), [f"{step:g}" for step in steps])
    return image


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
    scopes = {2: "t2", 3: "t3", 4: "sgd", 5: "t5"}
    for clipped, color in (("unclipped", "#222222"), ("clipped", "#e7298a")):
        for rate, style in zip(RATES[[1, 4]], ("--", "-"), strict=True):
            rows = []
            for scope in scopes.values():
                value = recalled(data, scope).value
                value = value.sel(sampling="exact", steps=STEPS[1], rate=rate, clipped=clipped).mean("kind")
                rows.append(mean(value.sel(tic="TIC-GRPO") - value.sel(tic="GRPO")))
            middle = [n.value for n in rows]
            reach = [n.value - ends(n)[0] for n in rows]
            look = {"ls": style, "color": color, "lw": 1.4, "marker": "o", "ms": 4, "capsize": 2}
            axis.errorbar(list(scopes), middle, reach, label=f"{clipped}, η = {rate:g}", **look)
    axis.axhline(0, color="0.6", lw=0.8)
    axis.set(xlabel="T", xticks=list(scopes), ylabel="mean J of TIC-GRPO − GRPO")
    axis.set_title("Horizon, exact, μ = 4", fontsize=9)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.3 * (high - low))
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    axis.spines[["top", "right"]].set_visible(False)
