"""Which parts of TIC-GRPO matter, and when: all eight combinations of its three changes.

The trajectory ratio for token ratios, the upper-only clip for the two-sided one, and r/|o| as the reward for
1/|o| in the loss, each switched on and off, on trees whose outputs end at EOS.
"""

import itertools

import numpy as np
import xarray as xr

from experiments.problems.trees import averages, grid, method, problem
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


def ends(number: Number) -> tuple[float, float]:
    """Its interval."""
    assert number.low is not None
    assert number.high is not None
    return number.low, number.high


def combination(switches: tuple[int, ...]) -> str:
    """The parts that are switched on, in words."""
    on = [NAMES[part] for part, switch in zip(PARTS, switches, strict=True) if switch]
    return {0: "GRPO", len(PARTS): "TIC-GRPO"}.get(len(on), " + ".join(on))


def page(data: xr.Dataset) -> dict[str, dict[tuple[str, float], Number]]:
    """Which parts of TIC-GRPO matter, when: row -> (sampling, η) -> mean J minus GRPO's, or a mean effect.

    First every combination of the three changes, then each change's effect averaged over the other two.
    """
    columns = [(sampling, eta) for sampling in ("exact", "sampled") for eta in SHOWN]

    def across(values: xr.DataArray) -> dict[tuple[str, float], Number]:
        return {(s, eta): mean(values.sel(sampling=s, eta=eta).mean("kind")) for s, eta in columns}

    gain = data.parts_value - data.parts_value.isel(dict.fromkeys(PARTS, 0))
    rows = {
        combination(on): across(gain.isel(dict(zip(PARTS, on, strict=True))))
        for on in list(itertools.product((0, 1), repeat=len(PARTS)))[1:]
    }
    return rows | {f"effect of {NAMES[part]}": across(effect) for part, effect in effects(data).items()}


def verdicts(data: xr.Dataset) -> list[str]:
    """In how many of the columns each change helps and hurts, and which combination has the most J."""
    rows, found = page(data), []
    for part in PARTS:
        effect = [ends(number) for number in rows[f"effect of {NAMES[part]}"].values()]
        helps, hurts = sum(low > 0 for low, _ in effect), sum(high < 0 for _, high in effect)
        found.append(f"{NAMES[part]}: helps in {helps} of {len(effect)} columns, hurts in {hurts}")
    combinations = [row for row in rows if "effect" not in row]
    columns = next(iter(rows.values()))
    best = [combinations[np.argmax([rows[row][at].value for row in combinations])] for at in columns]
    counts = {row: best.count(row) for row in dict.fromkeys(best)}
    found.append(
        "best of the eight: " + ", ".join(f"{row} ({n} of {len(best)})" for row, n in counts.items())
    )
    return found


def numbers(data: xr.Dataset) -> dict[str, Number]:
    """The page, by name."""
    return {
        f"mean J: {row}{'' if 'effect' in row else ' − GRPO'}, {sampling}, η = {eta:g}": number
        for row, cells in page(data).items()
        for (sampling, eta), number in cells.items()
    }


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
    """The table of ``page``, coloured by whether a change helps, and what it says."""
    axis = figure.subplots()
    axis.axis("off")
    rows = page(data)
    columns = list(next(iter(rows.values())))
    marks = {combination(on): on for on in itertools.product((0, 1), repeat=len(PARTS))}
    base = data.parts_value.isel(dict.fromkeys(PARTS, 0)).mean(("kind", "table"))
    text = [["GRPO: mean J", "", "", "", *(f"{float(base.sel(sampling=s, eta=e)):.3f}" for s, e in columns)]]
    shades = [["white"] * (4 + len(columns))]
    for row, cells in rows.items():
        on = ["●" if switch else "" for switch in marks.get(row, (0, 0, 0))]
        name = "" if row in marks and row != "TIC-GRPO" else row
        text.append([name, *on, *(f"{number.value:+.3f}" for number in cells.values())])
        shades.append(["white"] * 4 + [_shade(number) for number in cells.values()])
    titles = ["", *NAMES.values(), *(f"{sampling}, η = {eta:g}" for sampling, eta in columns)]
    table = axis.table(text, shades, colLabels=titles, cellLoc="center", bbox=[0, 0.19, 1, 0.81],
                       colWidths=[0.17, 0.105, 0.105, 0.105, *[0.086] * len(columns)])  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(7.5)
    for cell in table.get_celld().values():
        cell.set_edgecolor("0.85")
    axis.text(0.5, 0.15, "\n".join(verdicts(data)), ha="center", va="top", fontsize=8.5)
    axis.set_title(
        "Which parts of TIC-GRPO matter, when: mean J over training minus GRPO's for all combinations, "
        f"outputs that end at EOS, μ = {STEPS},\nand each change's effect averaged over the other two (green "
        "helps, red hurts, grey undecided at 99.9 %)", fontsize=9,
    )  # fmt: skip


def _shade(number: Number) -> str:
    low, high = ends(number)
    return "#cfe8d8" if low > 0 else "#f8d5c9" if high < 0 else "#f4f4f4"
