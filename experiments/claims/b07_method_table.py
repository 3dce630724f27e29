"""The biases come with the weights of Table 1: a method that divides by an answer's length shows the length
bias, and a method whose weights are constant does not.

[B] Section 3, Table 1 with Proposition 1, read as a forecast of training; the table's α as printed: by the
own length in GRPO, GRPO (V3.2), GSPO, GTPO and CPPO; constant in Dr. GRPO and GCPO; equal within a batch,
by its summed length, in DAPO, GPG and CISPO. All ten train on the task of B2, whose reward looks at the
first token only, with two passes a batch, under SGD and AdamW, from a success rate of 0.5; the number is
the change in length of right answers less that of wrong ones, in tokens. Runs and programs are B5's. What ω
of each row does before any training is B1.

Refuted if, with one of the optimizers, GRPO, GRPO (V3.2), GSPO or CPPO does not shorten right answers against
wrong ones by 0.3 tokens at least, or if Dr. GRPO or GCPO does so, or the reverse, by as much. Qualified if
GTPO does not, as printed (its entropy filter drops every output of this task, and it learns nothing) or with
its filter open, or if a method with weights that are equal within a batch is not within 0.1 tokens of Dr.
GRPO on the same seeds. That the others learn the task (reward up by 0.1 from a success rate of 0.1) is a
check of the instrument.
"""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import xarray as xr

from experiments.formulas.length_forecast import forecast
from experiments.harness.numbers import Number, Relation, interval, mean
from experiments.harness.verdict import Claim
from experiments.problems.lengths import FREED, MEAN_LENGTH, OPEN, RATES, TABLE_SIZES, table_runs
from grpo_jax import plotting

SIZES = TABLE_SIZES
OWN = ("grpo", "grpo_v32", "gspo", "cppo", "gtpo", OPEN)
EQUAL = ("dapo", "gpg", "cispo")
CONSTANT = ("dr_grpo", "gcpo")
CONTRAST = 0.3
"""Tokens by which right answers get shorter against wrong ones, from which on a method counts as biased."""
MARGIN = 0.1
"""Tokens that do not count as a difference from Dr. GRPO."""
TINY = 1e-6
"""Forecasts below it are zero."""
SILENT = "where GTPO's entropy filter lets outputs pass: as printed it drops every output of this task"
MIXED = "without GTPO's other factors, its conflict weights and its entropy term"
SHARED = "for weights that do not depend on the lengths in the group"


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Every method of Table 1: changes of length and of reward in training, and the forecast from ω."""
    runs = table_runs(seed, size, backwards=True).drop_sel(algorithm=FREED)
    with jax.enable_x64(True):
        told = forecast(list(runs.algorithm.values))
    gained = runs.expected_reward.isel(iteration=-1) - runs.rate
    drift = (runs.lengths.isel(iteration=-1) - MEAN_LENGTH).sel(kind=["right", "wrong"])
    return {
        "runs": xr.Dataset({"drift": drift, "gained": gained.sel(rate=RATES[0], drop=True)}),
        "forecast": xr.Dataset({"drift": told}),
    }


def contrast(drift: xr.DataArray) -> xr.DataArray:
    """Right answers less wrong ones."""
    return drift.sel(kind="right", drop=True) - drift.sel(kind="wrong", drop=True)


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The contrast of each method from 0.5, and whether it learns."""
    drift, gained = data["runs"].drift, data["runs"].gained
    every = contrast(drift)
    found: dict[tuple[str, str], Number] = {}
    for optimizer, name in itertools.product(every.optimizer.values, every.algorithm.values):
        here = every.sel(optimizer=optimizer, rate=0.5, algorithm=name)
        told = f"{optimizer}, {name}: right - wrong"
        found[optimizer, name] = number = mean(here)
        if name in OWN:
            number = dataclasses.replace(number, expected=-CONTRAST, relation="at most")
        elif name in CONSTANT:
            number = dataclasses.replace(number, expected=0.0, tolerance=CONTRAST)
        if name in EQUAL:
            claim.reports(told, number)
            paired = here - every.sel(optimizer=optimizer, rate=0.5, algorithm="dr_grpo")
            claim.qualifies(
                f"{told}, less Dr. GRPO's", mean(paired, expected=0, tolerance=MARGIN), only=SHARED
            )
        elif name in ("gtpo", OPEN):
            claim.qualifies(told, number, only=SILENT if name == "gtpo" else MIXED)
        else:
            claim.refutes(told, number)
        learned = mean(gained.sel(optimizer=optimizer, algorithm=name), expected=0.1, relation="at least")
        if name == "gtpo":
            claim.qualifies(f"{optimizer}, gtpo: reward gained from 0.1", learned, only=SILENT)
        else:
            claim.requires(f"{optimizer}, {name}: reward gained from 0.1", learned)
        for rate in (0.1, 0.9):
            claim.reports(
                f"{told}, from {rate:g}", mean(every.sel(optimizer=optimizer, rate=rate, algorithm=name))
            )
    grpo, dr_grpo, gcpo = (found["AdamW", name] for name in ("grpo", "dr_grpo", "gcpo"))
    claim.finds(
        f"GCPO has constant weights and the greatest bias of all, the other way: right answers end "
        f"{gcpo.value:.2f} tokens longer against wrong ones (GRPO: {grpo.value:.2f}, Dr. GRPO: "
        f"{dr_grpo.value:.2f}). Its ratio, that of the whole answer summed over its tokens, brings the "
        "length back in.",
        when=abs(gcpo.low or 0.0) > max(abs(number.value) for (o, n), number in found.items() if n != "gcpo"),
    )
    equal = [found["AdamW", name] for name in EQUAL]
    claim.finds(
        f"DAPO, GPG and CISPO, which divide by the batch's length, keep a small bias "
        f"({min(n.value for n in equal):.2f} to {max(n.value for n in equal):.2f} with AdamW).",
        when=all((number.high or 0.0) < 0 for number in equal),
    )
    judge_forecast(drift, data["forecast"].drift, claim)


def judge_forecast(drift: xr.DataArray, told: xr.DataArray, claim: Claim) -> None:
    """Each method's drift against the sign that its ω gives before any training."""
    row = claim.ours(
        "The gradient's weights, with s differentiated, foretell which way each method moves lengths."
    )
    every, ahead = contrast(drift), contrast(told)
    for optimizer, name in itertools.product(every.optimizer.values, every.algorithm.values):
        sign = signed(ahead.sel(algorithm=name, rate=0.5))
        if sign and name != OPEN:
            here = every.sel(optimizer=optimizer, rate=0.5)
            relation: Relation = "at most" if sign < 0 else "at least"
            less = here.sel(algorithm=name) - here.sel(algorithm="dr_grpo")
            number = mean(less, expected=0, relation=relation)
            row.refutes(f"{optimizer}, {name}: right - wrong, less Dr. GRPO's", number)
    printed = [name for name in drift.algorithm.values if name != OPEN]
    for words, names in {"Table 1": printed, OPEN: [OPEN]}.items():
        along, against, count = signs(drift.sel(algorithm=names), told.sel(algorithm=names))
        row.reports(f"{words}: share of drifts along the forecast's sign", Number(along / count))
        name, number = f"{words}: drifts against the forecast's sign", Number(float(against), 0.0)
        if words == OPEN:
            row.reports(name, number)
            continue
        row.refutes(name, number)
        row.finds(
            f"Of {count} drifts whose sign the weights foretell (ten methods, two optimizers, three success "
            f"rates, right and wrong answers), {along} go that way, none the other, and the rest cannot be "
            "told from zero.",
            when=number,
        )


def signs(drift: xr.DataArray, told: xr.DataArray) -> tuple[int, int, int]:
    """How many drifts lie along, how many against the sign of their forecast, and how many have one."""
    along = against = count = 0
    found = interval(drift)
    for name, kind, rate in itertools.product(told.algorithm.values, told.kind.values, told.rate.values):
        at = {"algorithm": name, "kind": kind, "rate": rate}
        sign = signed(told.sel(at))
        for optimizer in drift.optimizer.values if sign else ():
            ends = sorted(
                sign * float(found[end].sel(at | {"optimizer": optimizer})) for end in ("low", "high")
            )
            along, against, count = along + (ends[0] > 0), against + (ends[1] < 0), count + 1
    return along, against, count


def signed(value: xr.DataArray) -> int:
    """The sign of a forecast; 0 where it is none."""
    return 0 if abs(float(value)) < TINY else int(np.sign(value))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Right less wrong answers' length for all methods, coloured by their weights as printed."""
    figure.set_size_inches(7, 3.8)
    every = contrast(data["runs"].drift).sel(rate=0.5)
    kinds = {"divides by the own length": OWN, "equal within a batch": EQUAL, "constant": CONSTANT}
    panels = plotting.panels(figure, 1, 2, sharex=True, sharey=True)
    names = [name for group in kinds.values() for name in group if name in every.algorithm.values]
    for axes, optimizer in zip(panels, ("SGD", "AdamW"), strict=True):
        rows = {name: interval(every.sel(optimizer=optimizer, algorithm=name)) for name in names}
        hue = {
            name: color
            for group, color in zip(kinds.values(), plotting.COLORS, strict=False)
            for name in group
        }
        colors = {name: hue[name] for name in names}
        plotting.intervals(axes, rows, expected=0, margin=CONTRAST, colors=colors)
        axes.set(xlabel="right less wrong answers' change of length, tokens", title=optimizer)
    for words, color in zip(kinds, plotting.COLORS, strict=False):
        panels[0].plot([], [], "o-", color=color, label=words)
    panels[0].legend(title="weights in Table 1", loc="upper right")
