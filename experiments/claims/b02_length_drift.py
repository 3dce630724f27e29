"""Weights of 1/len shorten correct answers and lengthen wrong ones.

Claim B2 of arXiv:2601.05002 (Proposition 1 in training): the reward looks at the first token only, so
nothing ought to happen to what follows. Under 1/len the expected gradient in the tail behind first token a
is (1 - 1/G) pi(a) (r(a) - E r) grad E[1/len | a] with shift-only advantages, and phi_G(p)/(p (1 - p)) stands
for 1 - 1/G with sigma-normalised ones; under constant weights it is 0. Judged by contrasts on the same seeds:
1/len less constant weights; that, less the same for a placebo (rewards by the toss of a coin, not null under
1/len); that, less the same for a tail that cannot see the first token. Refuted if the exact gradient differs;
if by any of the three, in any setting, correct answers do not get shorter or wrong ones not longer; if with
shift-only advantages lengths move by 0.1 tokens under constant weights, or by the weights where the tail is
tied; if the mean length does not set out upwards from a success rate of 0.1 and downwards from 0.9; if a
method of Table 1 drifts from 0.5 otherwise than its omega says (shorter or longer than under Dr. GRPO, or
less than 0.3 tokens), or anywhere against the sign that omega gives.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.grid import grid
from experiments.formulas.length_forecast import forecast
from experiments.problems.lengths import (
    GROUP,
    LEARNING,
    OPEN,
    PROMPTS,
    RATES,
    RIGHT,
    SPACE,
    STEPS,
    coin,
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
OPTIMIZERS = list(LEARNING)
NORMS = ["shift", "sigma"]
SIZES = {"smoke": 96, "quick": 128, "full": 1024}
MARGIN = 0.1
"""Tokens that do not count as a drift."""
CONTRAST = 0.3
"""Tokens by which right answers get shorter against wrong ones, from which on a method counts as biased."""
TINY = 1e-9
"""Forecasts below it are zero."""


def lengths(root: int, seeds: np.ndarray) -> np.ndarray:
    """[time, kind, world, optimizer, power, normalized, rate, seed] expected lengths in training.

    Worlds: the task, and the placebo.
    """
    axes = (np.arange(2), np.arange(len(OPTIMIZERS)), POWERS, np.arange(2), RATES, seeds)
    placebo, adam, power, normalized, rate, seed = grid(*axes)
    config = problem(rate, weighted(power, normalized), adam, task=coin(rate, placebo))
    seen = watched(config, seed, root, steps=STEPS)["length"]
    return seen.reshape(*seen.shape[:2], *(len(axis) for axis in axes))


def tied_drift(root: int, seeds: np.ndarray) -> np.ndarray:
    """[kind, optimizer, power, normalized, rate, seed] change of lengths if the tail cannot see the start."""
    axes = (np.arange(len(OPTIMIZERS)), POWERS, np.arange(2), RATES, seeds)
    adam, power, normalized, rate, seed = grid(*axes)
    config = problem(rate, weighted(power, normalized), adam, policy=policy(rate, blind=True))
    seen = watched(config, seed, root, steps=STEPS, every=STEPS)["length"]
    return (seen[-1] - seen[0]).reshape(-1, *(len(axis) for axis in axes))


def exact_lengths(root: int, **changes) -> np.ndarray:
    """[time, kind, power, normalized, rate] under the expected gradient and SGD."""
    power, normalized, rate = grid(POWERS, [0.0, 1.0], RATES)
    config = problem(rate, weighted(power, normalized), expectation=Exact(cells=2), **changes)
    seen = watched(config, np.zeros(len(rate), int), root, steps=STEPS)["length"]
    return seen.reshape(*seen.shape[:2], len(POWERS), 2, len(RATES))


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
    gradient, formula = tail_gradient()
    dims = ("time", "kind", "power", "normalized", "rate")
    table, sampled = table_runs(root, seeds, size), lengths(root, seeds)
    drift = np.stack([*np.moveaxis(sampled[-1] - sampled[0], 1, 0), tied_drift(root, seeds)])
    ends = np.array([runs["length"][-1, :2] - runs["length"][0, :2] for runs in table.values()])
    return xr.Dataset(
        {
            "gradient": (("power", "normalized", "rate", "coordinate"), gradient),
            "formula": (("power", "normalized", "rate", "coordinate"), formula),
            "exact": (dims, exact_lengths(root)),
            "SGD": ((*dims, "seed"), sampled[:, :, 0, 0]),
            "drift": (("world", "kind", "optimizer", *dims[2:], "seed"), drift),
            "final_answer": (dims, exact_lengths(root, task=trees.final_answer(SPACE))),
            "table": (("row", "answer", "optimizer", "rate", "seed"), ends),
            "forecast": (("row", "answer", "rate"), forecast(list(table))),
        },
        coords={
            "time": np.arange(0, STEPS + 1, 10), "kind": KINDS, "power": POWERS, "normalized": NORMS,
            "rate": RATES, "row": list(table), "seed": seeds, "world": ["task", "placebo", "tied tail"],
            "optimizer": OPTIMIZERS, "answer": KINDS[:2],
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """Gradients, contrasts, nulls, the mean length's first steps, and each method against its omega."""
    numbers = {
        "tail gradient - formula": worst(data.gradient, expected=data.formula, tolerance=1e-12),
        "tail gradient, constant weights": worst(data.gradient.sel(power=0), expected=0, tolerance=1e-12),
        **contrasts(data),
        **controls(data),
        **_first_steps(data),
        **_methods(data),
    }
    judged = [name for name, number in numbers.items() if number.expected is not None]
    return judge(numbers, refutes=judged)


def contrasts(data: xr.Dataset) -> dict[str, Number]:
    """1/len less constant weights, bare and less the controls' own, in every setting."""
    weight = data.drift.sel(power=1) - data.drift.sel(power=0)
    bare = weight.sel(world="task")
    kinds: dict[str, Relation] = {"right": "at most", "wrong": "at least"}
    against = {
        "1/len - constant": bare,
        "the same, task - placebo": bare - weight.sel(world="placebo"),
        "the same, full - tied tail": bare - weight.sel(world="tied tail"),
    }
    return {
        f"{setting(at)}, {kind}: {name}": mean(samples.sel(kind=kind, **at), expected=0, relation=relation)
        for name, samples in against.items()
        for at in settings(data)
        for kind, relation in kinds.items()
    }


def settings(data: xr.Dataset) -> list[dict[str, Any]]:
    """Every optimizer, normalisation and success rate, as an index."""
    product = itertools.product(data.optimizer.values, data.normalized.values, data.rate.values)
    return [{"optimizer": o, "normalized": n, "rate": p} for o, n, p in product]


def setting(at: dict[str, Any]) -> str:
    """The index in words."""
    return f"{at['optimizer']}, {at['normalized']}, from {at['rate']:g}"


def controls(data: xr.Dataset) -> dict[str, Number]:
    """Drift through the weights without a cause: tied tail and constant weights judged, placebo reported."""
    weight = data.drift.sel(power=1) - data.drift.sel(power=0)
    still = {
        "tied tail, 1/len - constant": weight.sel(world="tied tail"),
        "constant weights": data.drift.sel(world="task", power=0),
        "placebo, 1/len - constant": weight.sel(world="placebo"),
    }
    numbers = {}
    for (name, samples), at, kind in itertools.product(still.items(), settings(data), KINDS[:2]):
        judged = at["normalized"] == "shift" and not name.startswith("placebo")
        here = samples.sel(kind=kind, **at)
        numbers[f"{setting(at)}, {kind}: {name}"] = (
            mean(here, expected=0, tolerance=MARGIN) if judged else mean(here)
        )
    return numbers


def _first_steps(data: xr.Dataset) -> dict[str, Number]:
    """Where the mean length sets out to, where it ends, and how far samples are from the exact path."""
    numbers: dict[str, Number] = {}
    path = data.exact.sel(power=1, normalized="shift") - data.exact.sel(power=1, normalized="shift", time=0)
    relations: dict[float, Relation] = {0.1: "at least", 0.9: "at most"}
    for rate in RATES:
        relation, here = relations.get(rate), path.sel(rate=rate)
        numbers[f"mean length after 10 exact steps from {rate:g}"] = Number(
            float(here.sel(kind="all", time=10)), 0.0 if relation else None, relation=relation or "equals"
        )
        numbers[f"mean length after {STEPS} exact steps from {rate:g}"] = Number(
            float(here.sel(kind="all", time=STEPS))
        )
        for kind in KINDS[:2]:
            sampled = data.drift.sel(
                world="task", optimizer="SGD", power=1, normalized="shift", kind=kind, rate=rate
            )
            numbers[f"sampled - exact, {kind}, from {rate:g}"] = mean(
                sampled - here.sel(kind=kind, time=STEPS)
            )
    final = data.final_answer.sel(power=0, normalized="shift", rate=0.5, kind="all")
    name = "final-answer task, constant weights, exact: mean length"
    return numbers | {name: Number(float(final.sel(time=STEPS) - final.sel(time=0)))}


def _methods(data: xr.Dataset) -> dict[str, Number]:
    """Each method against its forecast: at 0.5 beside Dr. GRPO on the same seeds, and signs everywhere."""
    numbers: dict[str, Number] = {}
    contrast, told = (
        data[of].sel(answer="right") - data[of].sel(answer="wrong") for of in ("table", "forecast")
    )
    for optimizer, row in itertools.product(data.optimizer.values, data.row.values):
        here = contrast.sel(optimizer=optimizer)
        for rate in data.rate.values:
            name = f"{optimizer}, {row}, from {rate:g}: right - wrong"
            numbers[name] = mean(here.sel(row=row, rate=rate))
        sign, less = _sign(told.sel(row=row, rate=0.5)), here.sel(rate=0.5)
        if sign:
            relation: Relation = "at most" if sign < 0 else "at least"
            less = less.sel(row=row) - less.sel(row="dr_grpo")
            name = f"{optimizer}, {row}, from 0.5: right - wrong, less Dr. GRPO's"
            numbers[name] = mean(less, expected=0, relation=relation)
        else:
            name = f"{optimizer}, {row}, from 0.5: right - wrong"
            numbers[name] = mean(less.sel(row=row), expected=0, tolerance=CONTRAST)
    for name, rows in {"Table 1": [row for row in data.row.values if row != OPEN], OPEN: [OPEN]}.items():
        along, against, signed = _signs(data.sel(row=rows))
        expected = 0.0 if name == "Table 1" else None
        numbers[f"{name}: drifts against the forecast's sign"] = Number(float(against), expected=expected)
        numbers[f"{name}: share of drifts along the forecast's sign"] = Number(along / signed)
    return numbers


def _signs(data: xr.Dataset) -> tuple[int, int, int]:
    """How many drifts lie along, how many against the sign of their forecast, and how many have one."""
    along = against = signed = 0
    for row, answer, rate in itertools.product(data.row.values, data.answer.values, data.rate.values):
        sign = _sign(data.forecast.sel(row=row, answer=answer, rate=rate))
        for optimizer in data.optimizer.values if sign else ():
            number = mean(sign * data.table.sel(row=row, answer=answer, rate=rate, optimizer=optimizer))
            along += (number.low or 0.0) > 0
            against += (number.high or 0.0) < 0
            signed += 1
    return along, against, signed


def _sign(forecast: xr.DataArray) -> int:
    return 0 if abs(float(forecast)) < TINY else int(np.sign(forecast))


COLORS = {"right": "#1b9e77", "wrong": "#d95f02", "all": "#333333"}


def draw(figure, data: xr.Dataset) -> None:
    """Lengths of right and wrong answers under both weights, contrasts with controls, methods of Table 1."""
    figure.set_size_inches(12.0, 8.2)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.12))
    panels = above.subplots(1, 3, sharey=True)
    for panel, rate in zip(panels, RATES, strict=True):
        _draw_lengths(panel, data, rate)
    panels[0].set_ylabel("expected length, tokens")
    panels[0].legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1.0, 0.44))
    left, right = below.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_contrasts(left, data)
    _draw_table(right, data)
    for panel in (*panels, left, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "The reward looks at the first token only. Solid: weights 1/len. Dotted: constant weights. "
        "Bands and bars: 99.9 %, sampled; lines: exact",
        fontsize=9,
    )


def _draw_contrasts(axes, data: xr.Dataset) -> None:
    weight = (data.drift.sel(power=1) - data.drift.sel(power=0)).sel(normalized="shift")
    labels, places = [], []
    for block, world in enumerate(data.world.values):
        for line, rate in enumerate(data.rate.values):
            row = 4 * block + line
            for optimizer, shift in (("SGD", -0.16), ("AdamW", 0.16)):
                for kind in KINDS[:2]:
                    here = weight.sel(world=world, rate=rate, optimizer=optimizer, kind=kind)
                    _bar(axes, mean(here), row + shift, COLORS[kind], hollow=optimizer == "SGD")
            labels.append(f"{world}, from {rate:g}")
            places.append(row)
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="k", lw=0.8, ls=":")
    axes.set(xlabel="change of length under 1/len, less under constant weights")
    axes.set_title("What the weight does, and the controls (shift-only)", fontsize=9)
    for optimizer, fill in (("SGD", "white"), ("AdamW", "0.3")):
        axes.plot([], [], "o-", color="0.3", mfc=fill, ms=4, label=optimizer)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _bar(axes, number: Number, place: float, color: str, *, hollow: bool) -> None:
    axes.plot([number.low, number.high], [place, place], color=color, lw=2)
    axes.plot(number.value, place, "o", ms=4, color=color, mfc="white" if hollow else color)


def _draw_lengths(axes, data: xr.Dataset, rate: float) -> None:
    for kind, color in COLORS.items():
        where = {"kind": kind, "normalized": "shift", "rate": rate}
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
    axes.set(xlabel="training step (SGD, shift-only)")
    axes.set_title(f"success rate {rate:g} at first", fontsize=9)


def _draw_table(axes, data: xr.Dataset) -> None:
    for row, name in enumerate(data.row.values):
        for kind in KINDS[:2]:
            here = {"row": name, "answer": kind, "rate": 0.5}
            for optimizer, shift in (("SGD", -0.17), ("AdamW", 0.17)):
                number = mean(data.table.sel(optimizer=optimizer, **here))
                _bar(axes, number, row + shift, COLORS[kind], hollow=optimizer == "SGD")
            sign = _sign(data.forecast.sel(**here))
            if sign:
                axes.plot(1.3 * sign, row, "<" if sign < 0 else ">", color=COLORS[kind], ms=5)
    axes.axvline(0, color="k", lw=0.8, ls=":")
    axes.set_yticks(range(data.row.size), list(data.row.values), fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="change of length, tokens", xlim=(-1.4, 1.4))
    axes.set_title("Methods of Table 1, from 0.5. Triangles: where their ω sends lengths", fontsize=9)
