"""Ours: the length bias comes with the weights of Table 1: a method that divides by an answer's own length
shortens right answers against wrong ones, and a method whose weights are constant does not.

[B] Section 3, Table 1 with Proposition 1, read as a forecast of training, which the paper does not make; the
table's α as printed: by the own length in GRPO, GRPO (V3.2), GSPO, GTPO and CPPO; constant in Dr. GRPO and
GCPO, whose ratio of whole answers stands at every token and is summed, as printed; equal within a batch, by
its summed length, in DAPO, GPG and CISPO. All ten train on the task of B2, whose reward looks at the first
token only, with two passes a batch, under SGD and AdamW, from three success rates; the number is the change
in length of right answers less that of wrong ones, in tokens. Runs and programs are B5's. What ω of each row
does before any training is B1.

Refuted if, with one of the optimizers and from one of the success rates, GRPO, GRPO (V3.2), GSPO or CPPO does
not shorten right answers against wrong ones by 0.3 tokens at least, or if Dr. GRPO or GCPO does so, or the
reverse, by as much. Qualified if GTPO does not, as printed (its entropy filter drops every output of this
task, and it learns nothing) or with its filter open, or if a method with weights that are equal within a
batch is not within 0.1 tokens of Dr. GRPO on the same seeds. That the others learn the task (reward up by 0.1
from a success rate of 0.1) is a check of the instrument.
"""

import itertools
from typing import Any

import jax
import numpy as np
import xarray as xr

from experiments.formulas.length_forecast import forecast
from experiments.harness.numbers import Number, Relation, hardest, interval, mean, worst
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
ROUNDING = 1e-5
"""Tokens by which runs of equal methods differ in single precision."""
SILENT = "where GTPO's entropy filter lets outputs pass: as printed it drops every output of this task"
PRINTED = {
    "grpo": "GRPO", "grpo_v32": "GRPO (V3.2)", "gspo": "GSPO", "cppo": "CPPO", "gtpo": "GTPO",
    OPEN: "GTPO, filter open", "dapo": "DAPO", "gpg": "GPG", "cispo": "CISPO", "dr_grpo": "Dr. GRPO",
    "gcpo": "GCPO",
}  # fmt: skip
"""Names as Table 1 writes them."""


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
    """The contrast of each method from every success rate, and whether it learns."""
    drift, gained = data["runs"].drift, data["runs"].gained
    every = contrast(drift)
    found: dict[tuple[str, str], dict[str, Number]] = {}
    paired: dict[tuple[str, str], dict[str, Number]] = {}
    for optimizer, name in itertools.product(every.optimizer.values, every.algorithm.values):
        here = every.sel(optimizer=optimizer, algorithm=name)
        told = f"{optimizer}, {name}: right - wrong"
        found[optimizer, name] = numbers = by_rate(here)
        claim.reports(told, numbers)
        if name in OWN:
            short = hardest(by_rate(here, expected=-CONTRAST, relation="at most"))
            if name in ("gtpo", OPEN):
                only = SILENT if name == "gtpo" else "without GTPO"
                claim.qualifies(f"{told}, the rate that fails first", short, only=only)
            else:
                claim.refutes(f"{told}, the rate that fails first", short)
        elif name in CONSTANT:
            flat = hardest(by_rate(here, expected=0.0, tolerance=CONTRAST))
            claim.refutes(f"{told}, the rate that fails first", flat)
        else:
            less = here - every.sel(optimizer=optimizer, algorithm="dr_grpo")
            paired[optimizer, name] = by_rate(less, expected=0.0, tolerance=MARGIN)
            same = hardest(paired[optimizer, name])
            claim.qualifies(f"{told}, less Dr. GRPO's", same, only=f"without {PRINTED[name]}")
        learned = mean(gained.sel(optimizer=optimizer, algorithm=name), expected=0.1, relation="at least")
        if name == "gtpo":
            claim.qualifies(f"{optimizer}, gtpo: reward gained from 0.1", learned, only=SILENT)
        else:
            claim.requires(f"{optimizer}, {name}: reward gained from 0.1", learned)
    say(found, paired, claim)
    if "cispo" in every.algorithm.values:
        twins = worst(
            every.sel(algorithm="dapo", drop=True), expected=every.sel(algorithm="cispo", drop=True)
        )
        claim.reports("dapo - cispo, greatest difference of a run", twins)
        claim.finds(
            "DAPO and CISPO are one experiment here: their runs are the same, as no ratio reaches a clip.",
            when=abs(twins.value) < ROUNDING,
        )
    judge_forecast(drift, data["forecast"].drift, claim)


def by_rate(samples: xr.DataArray, **judged: Any) -> dict[str, Number]:
    """A mean over seeds from each success rate."""
    return {f"success rate {rate:g}": mean(samples.sel(rate=rate), **judged) for rate in RATES}


def say(
    found: dict[tuple[str, str], dict[str, Number]],
    paired: dict[tuple[str, str], dict[str, Number]],
    claim: Claim,
) -> None:
    """What AdamW does from a success rate of 0.5, in words."""
    half = {
        name: numbers["success rate 0.5"]
        for (optimizer, name), numbers in found.items()
        if optimizer == "AdamW"
    }
    grpo, dr_grpo, gcpo = (half[name] for name in ("grpo", "dr_grpo", "gcpo"))
    reach = max(max(-(n.low or 0.0), n.high or 0.0) for name, n in half.items() if name != "gcpo")
    claim.finds(
        "GCPO as Table 1 prints it (constant weights, the ratio of the whole answer at every token) has the "
        f"greatest bias of all, the other way: with AdamW from a success rate of 0.5 right answers end "
        f"{gcpo.value:.2f} tokens longer against wrong ones (GRPO: {grpo.value:.2f}, Dr. GRPO: "
        f"{dr_grpo.value:.2f}).",
        when=(gcpo.low or 0.0) > max(reach, CONTRAST),
    )
    less = {name: paired["AdamW", name]["success rate 0.5"] for name in EQUAL if ("AdamW", name) in paired}
    ends = sorted({f"{-number.value:.2f}" for number in less.values()}, key=float)
    claim.finds(
        f"Weights that divide by the batch's length ({', '.join(PRINTED[name] for name in less)}) leave "
        f"right answers {' to '.join([ends[0], *ends[1:][-1:]])} tokens shorter against wrong ones than "
        "Dr. GRPO's do.",
        when=all((number.high or 0.0) < -MARGIN for number in less.values()),
    )


def judge_forecast(drift: xr.DataArray, told: xr.DataArray, claim: Claim) -> None:
    """Each method's drift against the sign that its ω gives before any training."""
    row = claim.ours(
        "The gradient's weights, with s differentiated, foretell which way each method moves lengths."
    )
    every, ahead = contrast(drift), contrast(told)
    for optimizer, name in itertools.product(every.optimizer.values, every.algorithm.values):
        sign = signed(ahead.sel(algorithm=name, rate=0.5))
        if sign:
            here = every.sel(optimizer=optimizer, rate=0.5)
            relation: Relation = "at most" if sign < 0 else "at least"
            less = here.sel(algorithm=name) - here.sel(algorithm="dr_grpo")
            number = mean(less, expected=sign * MARGIN, relation=relation)
            row.refutes(f"{optimizer}, {name}: right - wrong, less Dr. GRPO's", number)
    groups = {"GTPO": [OPEN], "all others": [name for name in drift.algorithm.values if name != OPEN]}
    for words, names in groups.items():
        along, against, count = signs(drift.sel(algorithm=names), told.sel(algorithm=names))
        row.reports(f"{words}: share of drifts along the forecast's sign", Number(along / count))
        number = Number(float(against), 0.0)
        row.refutes(f"{words}: drifts against the forecast's sign", number)
        methods = sum(bool(abs(told.sel(algorithm=name)).max() >= TINY) for name in names)
        whose = f"in {methods} methods" if methods > 1 else "in GTPO with its filter open"
        row.finds(
            f"Of {count} drifts whose sign the weights foretell {whose} (by optimizer, rate, right and "
            f"wrong answers), {along} go that way by {MARGIN:g} tokens at least, {against} the other."
        )


def signs(drift: xr.DataArray, told: xr.DataArray) -> tuple[int, int, int]:
    """How many drifts go MARGIN or more along, how many against their forecast's sign, how many have one."""
    along = against = count = 0
    found = interval(drift)
    for name, kind, rate in itertools.product(told.algorithm.values, told.kind.values, told.rate.values):
        at = {"algorithm": name, "kind": kind, "rate": rate}
        sign = signed(told.sel(at))
        for optimizer in drift.optimizer.values if sign else ():
            ends = sorted(
                sign * float(found[end].sel(at | {"optimizer": optimizer})) for end in ("low", "high")
            )
            along, against, count = along + (ends[0] > MARGIN), against + (ends[1] < -MARGIN), count + 1
    return along, against, count


def signed(value: xr.DataArray) -> int:
    """The sign of a forecast; 0 where it is none."""
    return 0 if abs(float(value)) < TINY else int(np.sign(value))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Right less wrong answers' length for all methods, coloured by their weights as printed."""
    figure.set_size_inches(7, 4.2)
    every = contrast(data["runs"].drift).sel(rate=0.5)
    kinds = {"divided by the own length": OWN, "equal within a batch": EQUAL, "constant": CONSTANT}
    panels = plotting.panels(figure, 1, 2, sharex=True, sharey=True)
    hue = {n: color for group, color in zip(kinds.values(), plotting.COLORS, strict=False) for n in group}
    names = [name for name in hue if name in every.algorithm.values]
    for axes, optimizer in zip(panels, ("SGD", "AdamW"), strict=True):
        rows = {name: interval(every.sel(optimizer=optimizer, algorithm=name)) for name in names}
        colors = {name: hue[name] for name in names}
        labels = {name: PRINTED[name] for name in names}
        plotting.intervals(axes, rows, expected=0, margin=CONTRAST, colors=colors, labels=labels)
        axes.set(xlabel="change of length, right less wrong (tokens)", title=f"{optimizer}, success rate 0.5")
    for words, color in zip(kinds, plotting.COLORS, strict=False):
        panels[0].plot([], [], "o-", color=color, label=words)
    figure.legend(title="weights in Table 1", loc="outside lower center", ncols=3)
    figure.suptitle("Weights 1/len shorten right answers; GCPO's constant ones lengthen them")
