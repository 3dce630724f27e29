"""The table, the targets and the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import SHAPES
from benchmarks.measure import SPREAD, Row

OURS = "grpo_jax"
TARGETS = {"numpy": (20.0, 12.0), "torch.compile": (4.0, 2.5), "numba": (5.0, 3.0), "C": (0.5, 0.3)}
"""Name -> (geometric mean over shapes, least of any shape) of our rate over theirs."""


def table(rows: Sequence[Row], runs: int, *, per_core: bool = False) -> str:
    """Markdown: million updates a second by shape at one sweep width; ~ marks an unsteady row."""
    unit = "core-second" if per_core else "second"
    names = list(dict.fromkeys(row.name for row in rows))
    lines = [f"| million updates a {unit} | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for shape in dict.fromkeys(row.shape for row in rows):
        found = {row.name: row for row in rows if row.shape == shape and row.runs == runs}
        if found:
            lines.append(
                f"| {shape} | " + " | ".join(_cell(found.get(name), per_core) for name in names) + " |"
            )
    return "\n".join(lines)


def _cell(row: Row | None, per_core: bool) -> str:
    if row is None:
        return "–"
    if per_core:
        return f"{row.per_core:.3g}"
    return f"{'~' if row.spread > SPREAD else ''}{row.rate:.3g}"


def ratios(rows: Sequence[Row], runs: int, *, per_core: bool = False) -> dict[str, dict[str, Any]]:
    """Our rate over every other's, by shape, with geometric mean, least, and target where there is one."""
    rate = {(r.name, r.shape): r.per_core if per_core else r.rate for r in rows if r.runs == runs}
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row.name for row in rows if row.name != OURS):
        each = {
            str(s): rate[OURS, s] / rate[name, s] for s in SHAPES if (name, s) in rate and (OURS, s) in rate
        }
        if each:
            mean = math.exp(sum(map(math.log, each.values())) / len(each))
            found[name] = {"shapes": each, "mean": mean, "least": min(each.values())}
            if name in TARGETS:
                want_mean, want_least = TARGETS[name]
                met = mean >= want_mean and min(each.values()) >= want_least
                found[name] |= {"target mean": want_mean, "target least": want_least, "met": met}
    return found


def summary(found: dict[str, dict[str, Any]]) -> str:
    """One line an opponent."""
    lines = []
    for name, entry in found.items():
        line = f"{OURS} / {name}: geometric mean {entry['mean']:.2f}, least {entry['least']:.2f}"
        if "met" in entry:
            verdict = "met" if entry["met"] else "NOT met"
            line += f"; target {entry['target mean']:g} and {entry['target least']:g}: {verdict}"
        lines.append(line)
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Updates a second against the width of the sweep, a panel a shape, log-log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = list(dict.fromkeys(row.shape for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    columns = min(4, len(shapes))
    lines = -(-len(shapes) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.2 * columns, 2.9 * lines), squeeze=False, layout="constrained"
    )
    for axis, shape in zip(axes.flat, shapes, strict=False):
        for i, name in enumerate(names):
            points = sorted(
                (row.runs, row.rate * 1e6) for row in rows if row.name == name and row.shape == shape
            )
            if points:
                style = (
                    {"color": "black", "lw": 2.2, "zorder": 5}
                    if name == OURS
                    else {"color": f"C{i}", "lw": 1.2}
                )
                axis.loglog(
                    *zip(*points, strict=True), "o-" if name != "C" else "s--", ms=3.5, label=name, **style
                )
        axis.set_title(str(shape), fontsize=9)
        axis.grid(True, which="major", color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(shapes) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("updates per second")
    for axis in axes[-1]:
        axis.set_xlabel("runs in the sweep")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    spare, place = axes.flat[-1], "center" if len(shapes) < axes.size else "lower right"
    spare.legend(handles, labels, loc=place, fontsize=8, frameon=False)
    figure.savefig(path, dpi=160)
    plt.close(figure)
