"""Weights of 1/len shorten correct answers and lengthen wrong ones.

Claim B2 of arXiv:2601.05002 (Proposition 1 in training): the reward looks at the first token only, so
nothing ought to happen to what follows. Under 1/len the expected gradient in the tail behind first token a
is (1 - 1/G) pi(a) (r(a) - E r) grad E[1/len | a] with shift-only advantages, and phi_G(p)/(p (1 - p)) stands
for 1 - 1/G with sigma-normalised ones; under constant weights it is 0. Refuted if the exact gradient
differs, if correct answers do not get shorter and wrong ones longer than under constant weights in every
setting, if a control drifts (a tail that cannot see the first token; rewards by the toss of a coin), or if
the mean length does not set out upwards from a success rate of 0.1 and downwards from 0.9.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.grid import grid
from experiments.length_task import (
    GROUP,
    PROMPTS,
    RATES,
    RIGHT,
    SPACE,
    STEPS,
    mean_length,
    policy,
    problem,
    table_runs,
    watched,
    weighted,
)
from experiments.verdict import Number, Relation, judge, mean, worst
from grpo_jax.diagnostics import log_support
from grpo_jax.exact import Exact, expected_gradient
from grpo_jax.tasks import trees
from grpo_jax.theory import preference_gap

CLAIM = "B2"
PAPER = "B"
PRECISION = "float64"

POWERS = np.array([0.0, 1.0])
"""Of L0/len in the token weight: constant, and 1/len."""
KINDS = ["right", "wrong", "all"]
SIZES = {"smoke": 16, "quick": 128, "full": 1024}
MARGIN = 0.1
"""Tokens that do not count as a drift."""


def lengths(root: int, seeds: np.ndarray, name: str, *, exact: bool = False, **changes) -> np.ndarray:
    """[time, kind, power, normalized, rate, seed] expected lengths in training."""
    power, normalized, rate, seed = grid(POWERS, [0.0, 1.0], RATES, seeds)
    if exact:
        changes["expectation"] = Exact(cells=2)
    config = problem(rate, weighted(power, normalized), name, **changes)
    seen = watched(config, seed, root, steps=STEPS)["length"]
    return seen.reshape(*seen.shape[:2], len(POWERS), 2, len(RATES), len(seeds))


def control(root: int, seeds: np.ndarray, **changes) -> np.ndarray:
    """[kind, seed] change of the expected lengths under 1/len, shift-only, from 0.5, over many seeds."""
    seeds = np.arange(8 * len(seeds))
    one = np.ones(len(seeds))
    config = problem(0.5 * one, weighted(one, 0 * one), **changes)
    seen = watched(config, seeds, root, steps=STEPS)["length"]
    return seen[-1] - seen[0]


def tail_gradient() -> tuple[np.ndarray, np.ndarray]:
    """Exact gradient in the tail at the start and its formula [power, normalized, rate, nodes, tokens]."""
    power, normalized, rate = grid(POWERS, [0.0, 1.0], RATES)
    config = problem(rate, weighted(power, normalized), expectation=Exact(cells=2))
    start = policy(rate)
    logits = jnp.asarray(start.logits)
    found = np.asarray(expected_gradient(config, logits))[0, 1:]
    lengths = SPACE.support[1].sum(1)

    def inverse(params: jax.Array, right: np.ndarray) -> jax.Array:
        probability = jnp.exp(log_support(start, params, PROMPTS))[0]
        inside = probability * right[:, None]
        return jnp.sum((inside * (mean_length() / lengths)[:, None]).sum(0) / inside.sum(0))

    formula = np.zeros_like(found)
    for right, reward, share in ((RIGHT, 1, rate), (~RIGHT, 0, 1 - rate)):
        gap = preference_gap(jnp.asarray(rate), group_size=GROUP)
        factor = np.where(normalized > 0, gap, 1 - 1 / GROUP) * share * (reward - rate) * power
        formula += np.asarray(jax.grad(inverse)(logits, right))[0, 1:] * factor
    shape = (len(POWERS), 2, len(RATES), -1)
    return np.moveaxis(found, -1, 0).reshape(shape), np.moveaxis(formula, -1, 0).reshape(shape)


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Lengths in training: sampled and exact, with their controls, and under every method of Table 1."""
    root = int(jax.random.key_data(key)[-1])
    seeds = np.arange(SIZES[size])
    one = seeds[:1]
    gradient, formula = tail_gradient()
    dims = ("time", "kind", "power", "normalized", "rate")
    table = table_runs(root, seeds, size)
    ends = np.array([runs["length"][-1] - runs["length"][0] for runs in table.values()])
    final = lengths(root, one, "SGD", exact=True, task=trees.final_answer(SPACE))
    blind = control(root, seeds, policy=policy(np.full(8 * len(seeds), 0.5), blind=True))
    placebo = control(root, seeds, task=trees.placebo(SPACE))
    return xr.Dataset(
        {
            "gradient": (("power", "normalized", "rate", "coordinate"), gradient),
            "formula": (("power", "normalized", "rate", "coordinate"), formula),
            "exact": (dims, lengths(root, one, "SGD", exact=True)[..., 0]),
            "SGD": ((*dims, "seed"), lengths(root, seeds, "SGD")),
            "AdamW": ((*dims, "seed"), lengths(root, seeds, "AdamW")),
            "blind": (("kind", "draw"), blind),
            "placebo": (("kind", "draw"), placebo),
            "final_answer": (dims, final[..., 0]),
            "table": (("row", "kind", "rate", "seed"), ends),
        },
        coords={
            "time": np.arange(0, STEPS + 1, 10), "kind": KINDS, "power": POWERS, "normalized": [0, 1],
            "rate": RATES, "row": list(table), "seed": seeds,
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """Gradients, the drift against constant weights, controls, and the sign of the mean length's drift."""
    numbers = {
        "tail gradient - formula": worst(data.gradient, expected=data.formula, tolerance=1e-12),
        "tail gradient, constant weights": worst(data.gradient.sel(power=0), expected=0, tolerance=1e-12),
    }
    for name in ("SGD", "AdamW"):
        drift = data[name].isel(time=-1) - data[name].isel(time=0)
        contrast = drift.sel(power=1) - drift.sel(power=0)
        for normalized, rate in ((n, p) for n in (0, 1) for p in RATES):
            where = f"{name}, {('shift', 'sigma')[normalized]}, from {rate:g}"
            here = contrast.sel(normalized=normalized, rate=rate)
            numbers[f"right, {where}"] = mean(here.sel(kind="right"), expected=0, relation="at most")
            numbers[f"wrong, {where}"] = mean(here.sel(kind="wrong"), expected=0, relation="at least")
    numbers |= _controls(data)
    early = data.exact.sel(time=10, kind="all", power=1, normalized=0) - data.exact.sel(
        time=0, kind="all", power=1, normalized=0
    )
    relations: dict[float, Relation] = {0.1: "at least", 0.9: "at most"}
    for rate in RATES:
        relation = relations.get(rate)
        number = Number(float(early.sel(rate=rate)), 0.0 if relation else None, relation=relation or "equals")
        numbers[f"mean length after 10 exact steps from {rate:g}"] = number
        late = data.exact.sel(kind="all", power=1, normalized=0, rate=rate)
        name = f"mean length after {STEPS} exact steps from {rate:g}"
        numbers[name] = Number(float(late.isel(time=-1) - late.isel(time=0)))
    for method in data.row.values:
        ends = data.table.sel(row=method, rate=0.5)
        numbers[f"{method}: right - wrong"] = mean(ends.sel(kind="right") - ends.sel(kind="wrong"))
    return judge(numbers, refutes=[name for name, number in numbers.items() if number.expected is not None])


def _controls(data: xr.Dataset) -> dict[str, Number]:
    numbers = {}
    drift = data.SGD.isel(time=-1) - data.SGD.isel(time=0)
    for kind in KINDS[:2]:
        constant = drift.sel(power=0, normalized=0, kind=kind)
        off = (drift.sel(power=1, normalized=0, kind=kind) - data.exact.isel(time=-1).sel(
            power=1, normalized=0, kind=kind
        ) + data.exact.isel(time=0).sel(power=1, normalized=0, kind=kind))  # fmt: skip
        for rate in RATES:
            numbers[f"constant weights, {kind}, from {rate:g}"] = mean(
                constant.sel(rate=rate), expected=0, tolerance=MARGIN
            )
            numbers[f"sampled - exact, {kind}, from {rate:g}"] = mean(off.sel(rate=rate))
    for name in ("blind", "placebo"):
        for kind in KINDS[:2]:
            numbers[f"{name}, {kind}"] = mean(data[name].sel(kind=kind), expected=0, tolerance=MARGIN)
    final = (data.final_answer.isel(time=-1) - data.final_answer.isel(time=0)).sel(
        power=0, normalized=0, rate=0.5
    )
    numbers["final-answer task, constant weights, exact: mean length"] = Number(float(final.sel(kind="all")))
    return numbers


COLORS = {"right": "#1b9e77", "wrong": "#d95f02", "all": "#333333"}


def draw(figure, data: xr.Dataset) -> None:
    """Lengths of right and wrong answers under both weights, and under the methods of Table 1."""
    figure.set_size_inches(12.5, 4.4)
    panels = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.25))
    for panel, rate in zip(panels, RATES, strict=False):
        _draw_lengths(panel, data, rate)
        panel.sharey(panels[0])
    panels[0].set_ylabel("expected length, tokens")
    panels[0].legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1.0, 0.48))
    _draw_table(panels[3], data)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "The reward looks at the first token only. Solid: weights 1/len. Dotted: constant weights. "
        "Bands: 99.9 %, sampled; lines: exact",
        fontsize=9,
    )


def _draw_lengths(axes, data: xr.Dataset, rate: float) -> None:
    for kind, color in COLORS.items():
        where = {"kind": kind, "normalized": 0, "rate": rate}
        for power, style in ((1, "-"), (0, ":")):
            if kind == "all" and power == 0:
                continue
            sampled = [mean(data.SGD.sel(power=power, **where).sel(time=t)) for t in data.time[1:]]
            start = float(data.exact.sel(power=power, time=0, **where))
            low, high = ([start] + [getattr(n, end) for n in sampled] for end in ("low", "high"))
            axes.fill_between(data.time, low, high, color=color, alpha=0.25, lw=0)
            label = (
                {"right": "right answers", "wrong": "wrong answers", "all": "mean"}[kind] if power else None
            )
            axes.plot(
                data.time, data.exact.sel(power=power, **where), style, color=color, lw=1.6, label=label
            )
    axes.set(xlabel="training step (SGD)")
    axes.set_title(f"success rate {rate:g} at first", fontsize=9)


def _draw_table(axes, data: xr.Dataset) -> None:
    names = list(data.row.values)[::-1]
    for row, name in enumerate(names):
        for kind in KINDS[:2]:
            number = mean(data.table.sel(row=name, rate=0.5, kind=kind))
            axes.plot([number.low, number.high], [row, row], color=COLORS[kind], lw=4, solid_capstyle="butt")
            axes.plot(number.value, row, "o", color=COLORS[kind], ms=4)
    axes.axvline(0, color="k", lw=0.8, ls=":")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.annotate("(its entropy filter drops all)", (0.05, names.index("gtpo")), fontsize=7, va="center")
    axes.set(xlabel="change of length, tokens (AdamW)")
    axes.set_title("methods of Table 1, from 0.5", fontsize=9)
