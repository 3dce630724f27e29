"""Which parts of TIC-GRPO matter, and when: all eight combinations of its three changes.

The trajectory ratio for token ratios, the upper-only clip for the two-sided one, and r/|o| as the reward for
1/|o| in the loss, each switched on and off, on trees whose outputs end at EOS.
"""

import itertools

import numpy as np
import xarray as xr

from experiments.trees import averages, grid, method, problem
from experiments.verdict import Number, mean
from grpo_jax.sequences import Sequences

EPS, GROUP, STEPS = 0.2, 8, 8
KINDS = ("binary", "graded")
PARTS = ("trajectory", "upper", "length")
NAMES = {"trajectory": "trajectory ratio", "upper": "upper-only clip", "length": "r/|o| for 1/|o|"}
ENDING = Sequences(vocab=3, horizon=3, eos=2)
RATES = 2.0 ** np.arange(-1, 4)
SHOWN = RATES[[0, 2, 4]]


def factorial(root: int, tables: int, iterations: int) -> xr.Dataset:
    """All eight combinations of TIC-GRPO's three changes, on trees whose outputs end at EOS."""
    axes = {part: [0.0, 1.0] for part in PARTS}
    cells = grid(table=np.arange(tables), **axes, rate=RATES, steps=[STEPS])
    low = np.where(cells["upper"] == 1, 1.0, EPS)
    chosen = method(
        trajectory=cells["trajectory"], low=low, high=np.full_like(low, EPS),
        loss_power=1 - cells["length"], reward_power=cells["length"],
    )  # fmt: skip
    found = [
        [
            averages(problem(root, ENDING, tables=tables, kind=k), root, cells, chosen, g, iterations)
            for g in (None, GROUP)
        ]
        for k in KINDS
    ]
    shape = (len(KINDS), 2, 3, tables, 2, 2, 2, 5)
    dims = ("kind", "sampling", "table", *PARTS, "eta")
    split = np.moveaxis(np.array(found).reshape(shape), 2, 0)
    coords = {"eta": RATES, "kind": list(KINDS), "sampling": ["exact", "sampled"]}
    return xr.Dataset(
        {f"parts_{n}": (dims, x) for n, x in zip(("value", "square", "final"), split, strict=True)}, coords
    )


def effects(data: xr.Dataset) -> dict[str, xr.DataArray]:
    """Part -> [kind, sampling, table, eta] what switching it on does to mean J, mean over the other two."""
    others = {part: [p for p in PARTS if p != part] for part in PARTS}
    return {
        part: (data.parts_value.isel({part: 1}) - data.parts_value.isel({part: 0})).mean(others[part])
        for part in PARTS
    }


def totals(data: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean J minus GRPO's: of TIC-GRPO [kind, sampling, table, eta], and of every combination."""
    gain = data.parts_value - data.parts_value.isel(dict.fromkeys(PARTS, 0))
    return gain.isel(dict.fromkeys(PARTS, 1)), gain


def best_combination(data: xr.Dataset, sampling: str, eta: float) -> tuple[str, Number]:
    """The combination with the greatest mean J, by the parts that are switched on, and its lead over GRPO."""
    gain = totals(data)[1].sel(sampling=sampling, eta=eta).mean("kind")
    switches = np.unravel_index(int(gain.mean("table").transpose(*PARTS).values.argmax()), (2, 2, 2))
    on = [NAMES[part] for part, switch in zip(PARTS, switches, strict=True) if switch]
    number = (
        mean(gain.isel(dict(zip(PARTS, switches, strict=True)))) if on else Number(0.0, low=0.0, high=0.0)
    )
    return " + ".join(on) or "GRPO", number


def ends(number: Number) -> tuple[float, float]:
    """Its interval."""
    assert number.low is not None
    assert number.high is not None
    return number.low, number.high


def numbers(data: xr.Dataset) -> dict[str, Number]:
    """The mean effect of each change on mean J, and every combination's mean J minus GRPO's at η = 2."""
    found = {
        f"effect of {NAMES[part]} on mean J: {sampling}, η = {eta:g}": mean(
            effect.sel(sampling=sampling, eta=eta).mean("kind")
        )
        for part, effect in effects(data).items()
        for sampling in ("exact", "sampled")
        for eta in SHOWN
    }
    gain = totals(data)[1].sel(eta=SHOWN[1]).mean("kind")
    for on in list(itertools.product((0, 1), repeat=3))[1:]:
        words = " + ".join(NAMES[part] for part, switch in zip(PARTS, on, strict=True) if switch)
        for sampling in ("exact", "sampled"):
            here = gain.sel(sampling=sampling).isel(dict(zip(PARTS, on, strict=True)))
            found[f"mean J − GRPO's: {words}, {sampling}, η = {SHOWN[1]:g}"] = mean(here)
    return found


def page(data: xr.Dataset) -> tuple[list[str], list[list[tuple[str, Number]]]]:
    """Which parts of TIC-GRPO matter, when: column titles, and rows of (text, number) after a name."""
    columns = [(sampling, eta) for sampling in ("exact", "sampled") for eta in SHOWN]
    changes = {NAMES[part]: effect for part, effect in effects(data).items()}
    changes["all three: TIC-GRPO − GRPO"] = totals(data)[0]
    rows = [
        [(name, Number(0.0))] + [
            ("{0:+.3f}", mean(effect.sel(sampling=s, eta=eta).mean("kind"))) for s, eta in columns
        ]
        for name, effect in changes.items()
    ]  # fmt: skip
    best = [best_combination(data, s, eta) for s, eta in columns]
    rows.append(
        [("best of the eight", Number(0.0))] + [(f"{name}\n{{0:+.3f}}", number) for name, number in best]
    )
    return ["change", *(f"{s}, η = {eta:g}" for s, eta in columns)], rows


def draw_effects(axis, data: xr.Dataset) -> None:
    """What each change does to mean J over learning rates."""
    colors = ("#7570b3", "#1b9e77", "#d95f02")
    for (part, effect), color in zip(effects(data).items(), colors, strict=True):
        for sampling, style in (("exact", "-"), ("sampled", "--")):
            rows = [mean(effect.sel(sampling=sampling, eta=eta).mean("kind")) for eta in data.eta.values]
            middle = np.array([n.value for n in rows])
            label = NAMES[part] if sampling == "exact" else None
            axis.plot(data.eta, middle, style, color=color, lw=1.5, marker="o", ms=3.5, label=label)
            axis.fill_between(
                data.eta, [n.low for n in rows], [n.high for n in rows], color=color, alpha=0.15, lw=0
            )
    axis.axhline(0, color="0.6", lw=0.8)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="learning rate η", ylabel="effect on mean J", xticks=data.eta)
    axis.set_xticklabels([f"{eta:g}" for eta in data.eta.values])
    axis.set_title(f"Each change, μ = {STEPS} (dashed: sampled)", fontsize=9)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def draw_page(figure, data: xr.Dataset) -> None:
    """The table of ``page``, coloured by whether a change helps."""
    axis = figure.subplots()
    axis.axis("off")
    titles, rows = page(data)
    text = [[words.format(n.value) for words, n in row] for row in rows]
    table = axis.table(text, colLabels=titles, loc="center", cellLoc="center", colWidths=[0.2] + [0.133] * 6)
    table.auto_set_font_size(False)
    table.set_fontsize(7.5)
    for (row, column), cell in table.get_celld().items():
        cell.set(edgecolor="0.85", height=0.24 if row == len(rows) else 0.145)
        if row and column:
            number = rows[row - 1][column][1]
            low, high = ends(number)
            cell.set_facecolor("#cfe8d8" if low > 0 else "#f8d5c9" if high < 0 else "#f4f4f4")
    axis.set_title(
        "Which parts of TIC-GRPO matter, when: effect on mean J over training, outputs that end at EOS, "
        "mean over the other changes\n(green helps, red hurts, grey undecided at 99.9 %)", fontsize=9,
    )  # fmt: skip
