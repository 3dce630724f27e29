"""The surrogate's value is no progress meter.

Claim B5 of arXiv:2601.05002 (Proposition 4). Scenario A, where every ratio is 1: under length-normalised
weights and without masks J = -beta E[R], whatever the rewards; under constant weights J = C sum A_i len_i -
beta E[R]; in general sum A_i Omega_i = G Cov(A, Omega), Omega_i an output's total weight. Refuted if one of
these fails by more than 1e-12, or, over training (scenario B), if the value follows the true expected reward
in one of the methods it speaks of (mean correlation of 0.5 or more from some success rate, with SGD or AdamW,
while the mean reward of the batch, the control, has that with AdamW from 0.1). Qualified if GRPO's own value
falls as the reward rises, with a correlation of -0.5 or less: a strong meter, but a reversed one. GPG
and CISPO, whose value is a log-likelihood, are exempt; GTPO as printed has no value to follow here (its
entropy filter drops every output, which is checked), and is judged with its filter open.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import xarray as xr

from experiments.problems.lengths import (
    LEARNING,
    RATES,
    SPACE,
    STEPS,
    correlation,
    policy,
    problem,
    table_runs,
)
from experiments.verdict import Number, judge, mean, worst
from grpo_jax import methods, train
from grpo_jax.collectors import Sampled
from grpo_jax.part import aligned
from grpo_jax.surrogate import objective
from grpo_jax.tasks import trees

CLAIM = "B5"
PAPER = "B"
PRECISION = "float64"

SIZES = {"smoke": 16, "quick": 128, "full": 1024}
NORMALISED = ("grpo", "gspo", "gspo_token")
PENALISED = {"grpo": 0.04, "grpo_v32": 0.04, "dr_grpo": 0.0}
FOLLOWS = 0.5
"""Correlation from which on a value follows another."""
EXEMPT = ("gpg", "cispo")


def at_old(root: int, seeds: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Scenario A: each method's value at theta = theta_old, and by hand, on graded rewards: name -> [R]."""
    start = policy(np.full(len(seeds), 0.5))
    reference = start.logits + np.random.default_rng(root).normal(size=start.logits.shape)
    found = {}
    for name in (*NORMALISED, "dr_grpo", "dapo", "grpo_v32", "cppo", "gpg", "cispo"):
        config = problem(np.full(len(seeds), 0.5), methods.get(name), task=trees.graded(SPACE, seed=root))
        config = aligned(dataclasses.replace(config, reference=reference))
        state = train.init(config, seeds, root=root)
        batch = Sampled().collect(config, state)
        value = objective(config.method, batch.rollout, batch.advantages, batch.rollout.old_logp)
        found[name] = {"value": np.asarray(value), **by_hand(name, batch)}
    return found


def by_hand(name: str, batch) -> dict[str, np.ndarray]:
    """The three formulas [R], in numpy: -beta E[R]; constant weights; G Cov(A, Omega) - beta E[R]."""
    rollout, group = batch.rollout, batch.rollout.tokens.shape[1]
    mask = np.asarray(rollout.mask)[0]
    lengths = mask.sum(1)
    advantage = np.asarray(batch.advantages)[0, :, 0]
    x = np.asarray(rollout.ref_logp - rollout.old_logp)[0]
    divergence = ((np.exp(x) - x - 1) * mask).sum(1)
    flat = name == "dr_grpo"
    penalty = PENALISED.get(name, 0.0) * (divergence / (1 if flat else lengths)).mean(0)
    weight = {"dr_grpo": lengths / group, "dapo": lengths / lengths.sum(0)}.get(
        name, np.ones_like(lengths) / group
    )
    covariance = group * ((advantage - advantage.mean(0)) * (weight - weight.mean(0))).mean(0)
    return {
        "penalty": -penalty,
        "constant": (advantage * lengths).sum(0) / group - penalty,
        "covariance": covariance - penalty,
    }


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Values at theta_old with their formulas, and values beside rewards over training."""
    root = int(jax.random.key_data(key)[-1])
    seeds = np.arange(SIZES[size])
    first, runs = at_old(root, seeds), table_runs(root, seeds, size)
    fields = ("value", "penalty", "constant", "covariance")
    series = {
        name: np.stack([run[name] for run in runs.values()]) for name in ("surrogate", "expected_reward")
    }
    meters = [
        [correlation(run[meter], run["expected_reward"]) for meter in ("surrogate", "reward")]
        for run in runs.values()
    ]
    adam = list(LEARNING).index("AdamW")
    return xr.Dataset(
        {
            **{name: (("first", "seed"), np.stack([v[name] for v in first.values()])) for name in fields},
            "correlation": (("row", "meter", "optimizer", "rate", "seed"), np.array(meters)),
            **{name: (("row", "step", "seed"), value[:, :, adam, 0]) for name, value in series.items()},
            "greatest": ("row", [abs(run["surrogate"]).max() for run in runs.values()]),
        },
        coords={
            "first": list(first), "row": list(runs), "meter": ["surrogate", "reward"], "rate": RATES,
            "step": np.arange(1, STEPS + 1), "seed": seeds, "optimizer": list(LEARNING),
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """The formulas of scenario A and the correlations of scenario B."""
    at = data.sel(first=list(NORMALISED))
    numbers = {
        "length-normalised: J + beta E[R]": worst(at.value, expected=at.penalty, tolerance=1e-12),
        "constant weights: J - formula": worst(
            data.value.sel(first="dr_grpo"), expected=data.constant.sel(first="dr_grpo"), tolerance=1e-12
        ),
    }
    for name in ("grpo", "grpo_v32", "dr_grpo", "dapo"):
        here = data.sel(first=name)
        numbers[f"{name}: J - G Cov(A, Omega) + beta E[R]"] = worst(
            here.value, expected=here.covariance, tolerance=1e-12
        )
    numbers["cppo: J without the mask's condition"] = Number(float(abs(data.value.sel(first="cppo")).mean()))
    for name in EXEMPT:
        numbers[f"{name} (exempt): mean |J|"] = Number(float(abs(data.value.sel(first=name)).mean()))
    meters = _meters(data)
    judged = numbers | meters
    refutes = [name for name, number in judged.items() if number.expected is not None]
    reverse = min((n for name, n in meters.items() if VALUE in name), key=lambda number: number.value)
    where = next(name for name, number in meters.items() if number is reverse)
    judged[f"most reversed value: {where}"] = dataclasses.replace(reverse, expected=None)
    grpo = f"GRPO's value as a reversed meter (AdamW, from {RATES[0]:g})"
    samples = data.correlation.sel(row="grpo", optimizer="AdamW", rate=RATES[0], meter="surrogate")
    judged[grpo] = mean(samples, expected=-FOLLOWS, relation="at least")
    words = "for meters that rise with progress: GRPO's falls as the reward rises, strong but reversed"
    return judge(judged, refutes=refutes, qualifies={grpo: words})


VALUE = "correlation of value and true reward"


def _meters(data: xr.Dataset) -> dict[str, Number]:
    """Correlations over training; a value that does not vary is said to be zero, by name."""
    numbers = {}
    for row in data.row.values:
        if not data.correlation.sel(row=row, meter="surrogate").notnull().any():
            text = f"{row}: greatest |value| over training, its entropy filter drops every output"
            numbers[text] = Number(float(data.greatest.sel(row=row)), expected=0.0)
            continue
        for optimizer, rate in itertools.product(data.optimizer.values, data.rate.values):
            here = data.correlation.sel(row=row, optimizer=optimizer, rate=rate)
            value, control = (here.sel(meter=meter).dropna("seed") for meter in ("surrogate", "reward"))
            start = f"{row}, {optimizer}, from {rate:g}"
            if row in EXEMPT:
                numbers[f"{start} (exempt): value and true reward"] = mean(value)
            else:
                numbers[f"{start}: {VALUE}"] = mean(value, expected=FOLLOWS, relation="at most")
            text = f"{start}: correlation of batch reward, the control"
            told = optimizer == "AdamW" and rate == RATES[0]
            numbers[text] = mean(control, expected=FOLLOWS, relation="at least") if told else mean(control)
    return numbers


def draw(figure, data: xr.Dataset) -> None:
    """One training run's value beside its true reward, and the correlations of all methods."""
    figure.set_size_inches(12.5, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _draw_runs(left, data)
    _draw_correlations(right, data)
    for panel in (left, right):
        panel.spines["top"].set_visible(False)
    right.spines["right"].set_visible(False)


def _draw_runs(axes, data: xr.Dataset) -> None:
    other = axes.twinx()
    reward = data.expected_reward.sel(row="grpo")
    other.plot(data.step, reward.mean("seed"), color="#1b9e77", lw=2)
    other.fill_between(data.step, *reward.quantile([0.05, 0.95], "seed"), color="#1b9e77", alpha=0.2, lw=0)
    for name, color in (("grpo", "#d95f02"), ("dr_grpo", "#7570b3")):
        value = data.surrogate.sel(row=name)
        axes.plot(data.step, value.mean("seed"), color=color, lw=1.6, label=f"surrogate, {name}")
        axes.plot(data.step, value.isel(seed=0), color=color, lw=0.6, alpha=0.7)
    axes.set(xlabel="training step", ylabel="value of the surrogate")
    other.set_ylabel("true expected reward (grpo)", color="#1b9e77")
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.2))
    axes.set_title("Thick: mean over seeds. Thin: one run. From success rate 0.1", fontsize=9)


def _draw_correlations(axes, data: xr.Dataset) -> None:
    names = list(data.row.values)
    for row, name in enumerate(names):
        for (line, rate), (meter, color) in itertools.product(
            enumerate(data.rate.values), (("surrogate", "#d95f02"), ("reward", "#1b9e77"))
        ):
            here = data.correlation.sel(row=name, optimizer="AdamW", rate=rate, meter=meter)
            if here.notnull().sum() > 2:
                number, place = mean(here.dropna("seed")), row + 0.22 * (line - 1)
                axes.plot([number.low, number.high], [place, place], color=color, lw=2.2)
                axes.plot(number.value, place, "os^"[line], color=color, ms=4)
        if data.correlation.sel(row=name, meter="surrogate").isnull().all():
            axes.annotate("value 0: its filter drops every output", (0.03, row), fontsize=7, va="center")
    axes.plot([], [], "o-", color="#d95f02", label="value of the surrogate")
    axes.plot([], [], "o-", color="#1b9e77", label="mean reward of the batch")
    for marker, rate in zip("os^", data.rate.values, strict=True):
        axes.plot([], [], marker, color="0.4", ms=4, label=f"from {rate:g}")
    axes.axvline(0, color="k", lw=0.8, ls=":")
    axes.axvspan(-1, -FOLLOWS, color="0.93", zorder=0)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.annotate("reversed meter", (-0.98, len(names) - 0.6), fontsize=7.5, color="0.35")
    axes.set(xlim=(-1, 1), xlabel="correlation with the true expected reward over training (AdamW)")
    axes.legend(frameon=False, fontsize=7.5, loc="center right", bbox_to_anchor=(1.42, 0.5))
    axes.set_title("99.9 % intervals over seeds", fontsize=9)
