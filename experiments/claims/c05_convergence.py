"""TIC-GRPO converges faster than GRPO.

[C], abstract, v5 (23 March 2026: "we ... present the first convergence analysis for GRPO-style methods and
show that TIC-GRPO converges faster than GRPO"); v2 has an analysis of both, and "fast convergence" in its
title. The full text was not available. TIC-GRPO is the full method: trajectory ratio, clip above only, r/|o|;
GRPO has token ratios, a clip on both sides and 1/|o|. Random trees with binary or graded rewards, outputs of
four tokens or ending at EOS within three, exact and sampled (groups of 8), μ = 8 and 2 steps a batch, also
A/σ. Each method has the learning rate, of eight, at which its mean J over training is greatest.

Refuted if, for an optimizer and a kind of reward, TIC-GRPO is not ahead in mean J by more than 0.005, or not
in mean ‖∇J‖² by more than 1 % of its value before training, in whichever of these settings its lead is least
(99.9 % over trees). Both margins are 1 % of what there is: J starts near 0.5 and can reach 1. With binary
rewards no rate is too large and all methods are near J = 1 at once, which leaves nothing to be ahead in:
equal rates are a row of ours.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from experiments.harness.numbers import Number, each, extrapolated, share, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import trees
from experiments.problems.trees import EPS, KINDS, RATES, SETTINGS, member
from grpo_jax import plotting
from grpo_jax.sequences import Sequences

PRECISION = "float64"
SIZES = sizes(tables=(16, 48, 256), iterations=(6, 20, 40))

MARGINS = {"value": 0.005, "square": 0.01}
SPACES = {"four tokens": Sequences(vocab=2, horizon=4), "ending at EOS": Sequences(vocab=3, horizon=3, eos=2)}
WORDS = {"four tokens": "of one length", "ending at EOS": "of any length"}
PARTS = {"trajectory": "the trajectory ratio", "upper": "the upper-only clip", "length": "r/|o|"}
SWITCHES = list(itertools.product((False, True), repeat=len(PARTS)))
SMALL = 0.0025 * np.arange(1, 9)


def combination(trajectory: bool, upper: bool, length: bool) -> tuple[float, ...]:
    """GRPO with some of TIC-GRPO's three changes."""
    low = 1.0 if upper else EPS
    return member(trajectory=trajectory, low=low, high=EPS, loss_power=not length, reward_power=length)


TREES = {
    "GRPO": member(low=EPS, high=EPS),
    "TIC-GRPO": member(trajectory=1.0, high=EPS),
    "GRPO unclipped": member(),
    "TIC-GRPO unclipped": member(trajectory=1.0),
}
"""On outputs of one length, where r/|o| and 1/|o| are the same."""
NAMES: dict[tuple[bool, ...], str] = {
    (False,) * 3: "GRPO",
    (True,) * 3: "TIC-GRPO",
    (True, True, False): "TIC-GRPO with 1/|o|",
}
ENDING = {NAMES.get(on, "+".join(itertools.compress(PARTS, on))): combination(*on) for on in SWITCHES}
METHODS = {"four tokens": TREES, "ending at EOS": ENDING}
HORIZONS = (2, 3, 4, 5)


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Training by outputs and optimizer, what it starts from, and the leading order in the learning rate."""
    told = {"root": seed, "iterations": size.iterations}
    found = {}
    for outputs, space in SPACES.items():
        given = trees.problems(seed, space, tables=size.tables)
        found[f"{outputs}, start"] = trees.at_start(given)
        for name, settings in SETTINGS.items():
            if outputs == "ending at EOS":
                settings = {told: made for told, made in settings.items() if "steps" not in made}
            found[f"{outputs}, {name}"] = trees.by_setting(
                settings, given, METHODS[outputs], RATES[name], optimizer=name, **told
            )
    once = trees.problems(seed, SPACES["four tokens"], tables=size.tables)
    small = trees.trained(once, TREES, SMALL, optimizer="SGD", steps=4.0, period=1e6, **told)
    spaces = [Sequences(vocab=2, horizon=horizon) for horizon in HORIZONS]
    gaps = [trees.curvature_gaps(trees.problems(seed, space, tables=size.tables)) for space in spaces]
    found["leading order"] = xr.Dataset({
        "trained": small.value.sel(sampling="exact", drop=True),
        "gap": xr.concat(gaps, xr.Variable("horizon", list(HORIZONS))),
    })  # fmt: skip
    return found


def leads(
    data: dict[str, xr.Dataset], name: str, kind: str, measure: str, *, tuned: bool
) -> list[xr.DataArray]:
    """By outputs: TIC-GRPO's lead over GRPO for every setting and table, at best rates or at every rate."""
    found = []
    for outputs in SPACES:
        trained = data[f"{outputs}, {name}"].sel(kind=kind, algorithm=["GRPO", "TIC-GRPO"])
        values = (trees.at_best_rate(trained) if tuned else trained)[measure]
        lead = values.sel(algorithm="TIC-GRPO", drop=True) - values.sel(algorithm="GRPO", drop=True)
        if measure == "square":
            lead = -lead / data[f"{outputs}, start"].square.sel(kind=kind).mean("table")
        found.append(lead.expand_dims(outputs=[outputs]))
    return found


def judged(leads: list[xr.DataArray], expected: float, *, tolerance: float = 0.0) -> dict[str, Number]:
    """Means over tables, by outputs and setting, that should be at least this."""
    found: dict[str, Number] = {}
    for lead in leads:
        found |= each(lead, over="table", expected=expected, tolerance=tolerance, relation="at least")
    return found


def least(numbers: Mapping[str, Number]) -> Number:
    """The number that is least, one that fails before one that is open, and that before one that holds."""
    order = {False: 0, None: 1, True: 2}

    def rank(name: str) -> tuple[int, float]:
        number = numbers[name]
        return order[number.holds], number.value if number.low is None else number.low

    name = min(numbers, key=rank)
    return replace(numbers[name], at=name)


def span(numbers: Mapping[str, Number]) -> str:
    """Their least and greatest value."""
    values = [number.value for number in numbers.values()]
    return f"{min(values):+.3f} to {max(values):+.3f}"


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The printed sentence at best rates; then equal rates, each part, and the leading order."""
    equal = claim.ours("At one and the same learning rate TIC-GRPO is nowhere behind GRPO in mean J.")
    tuned: dict[str, dict[str, Number]] = {kind: {} for kind in KINDS}
    counted = []
    for name, kind in itertools.product(RATES, KINDS):
        for measure, margin in MARGINS.items():
            found = judged(leads(data, name, kind, measure, tuned=True), margin)
            claim.refutes(f"{name}, {kind}: lead in mean {trees.SYMBOLS[measure]}", least(found))
            if measure == "value":
                tuned[kind] |= {f"{name}, {at}": number for at, number in found.items()}
        margin = MARGINS["value"]
        found = judged(leads(data, name, kind, "value", tuned=False), 0.0, tolerance=margin)
        equal.refutes(f"{name}, {kind}: lead at one rate", least(found))
        leading = [replace(n, expected=margin, tolerance=0.0) for n in found.values()]
        trailing = [replace(n, expected=-margin, tolerance=0.0, relation="at most") for n in found.values()]
        ahead, behind = (sum(n.holds is True for n in numbers) for numbers in (leading, trailing))
        equal.reports(f"{name}, {kind}: settings where it is ahead, of {len(found)}", Number(float(ahead)))
        equal.reports(f"{name}, {kind}: settings where it is behind, of {len(found)}", Number(float(behind)))
        counted.append(f"{ahead} and {behind} of {len(found)} ({name}, {kind})")
    told = []
    for kind, (outputs, words) in itertools.product(KINDS, WORDS.items()):
        there = {at: number for at, number in tuned[kind].items() if outputs in at}
        told.append(f"{span(there)} with {kind} rewards and outputs {words}")
    claim.finds(f"With each method at its best learning rate TIC-GRPO's lead in mean J is {', '.join(told)}.")
    equal.finds(f"It is ahead and behind by more than {MARGINS['value']} in {', '.join(counted)}.")
    judge_parts(data, claim)
    judge_leading_order(data["leading order"], claim.ours(
        "Without a clip, μ small steps on one batch leave J(TIC-GRPO) - J(GRPO) = ½η²μ(μ-1)gᵀ(H - H_block)g, "
        "g = ∇J, H its Hessian at θ_old, H_block the blocks of H within one prefix."
    ))  # fmt: skip


def factorial(data: xr.Dataset) -> xr.DataArray:
    """Mean J of all combinations at their best rates, a dimension for each of the three parts."""
    value = trees.at_best_rate(data).value
    switches = {part: ("algorithm", [on[i] for on in SWITCHES]) for i, part in enumerate(PARTS)}
    return (
        value.drop_vars(["algorithm", "learning_rate"])
        .assign_coords(switches)
        .set_index(algorithm=list(PARTS))
        .unstack("algorithm")
    )


def judge_parts(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """What each of the three changes does to mean J, averaged over the other two."""
    for part, words in PARTS.items():
        row, told = claim.ours(f"Of TIC-GRPO's changes {words} raises mean J at best learning rates."), []
        others = [other for other in PARTS if other != part]
        for name, kind in itertools.product(RATES, KINDS):
            value = factorial(data[f"ending at EOS, {name}"].sel(kind=kind))
            effect = (value.sel({part: True}, drop=True) - value.sel({part: False}, drop=True)).mean(others)
            found = judged([effect], MARGINS["value"])
            row.refutes(f"{name}, {kind}: effect", least(found))
            told.append(f"{span(found)} ({name}, {kind})")
        row.finds(f"Where outputs end at EOS, it changes mean J by {', '.join(told)}.")


def judge_leading_order(data: xr.Dataset, row: Claim) -> None:
    """J after one batch of four small steps against the prediction, and how often that favours TIC-GRPO."""
    apart = data.trained.sel(algorithm="TIC-GRPO unclipped") - data.trained.sel(algorithm="GRPO unclipped")
    limit, _ = extrapolated(apart / apart.learning_rate**2, degree=4)
    predicted = 0.5 * 4 * 3 * data.gap.sel(horizon=4)
    scale = float(np.abs(predicted).max())
    row.refutes(
        "error at η → 0 over the largest prediction",
        worst(limit / scale, expected=predicted / scale, tolerance=1e-4),
    )
    shares = []
    for kind, horizon in itertools.product(KINDS, HORIZONS):
        gap = data.gap.sel(kind=kind, horizon=horizon)
        told = f"{kind}, T = {horizon}: share of trees where it favours TIC-GRPO"
        number = share(int((gap > 0).sum()), gap.size)
        row.reports(told, number)
        shares.append(number.value)
    row.finds(
        "The curvature between prefixes decides who is ahead, and it favours TIC-GRPO on "
        f"{min(shares):.0%} to {max(shares):.0%} of random trees.",
        when=[n for name, n in row.numbers.items() if row.roles[name] == "refutes"],
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Where outputs end at EOS: mean J less GRPO's over learning rates, with r/|o| and without."""
    figure.set_size_inches(7, 4.6)
    panels = plotting.panels(figure, 2, 2, sharey=True)
    shown = ["TIC-GRPO", "TIC-GRPO with 1/|o|"]
    for axes, (kind, name) in zip(panels, itertools.product(KINDS, RATES), strict=True):
        value = data[f"ending at EOS, {name}"].value.sel(kind=kind, setting="μ = 8")
        gap = value.sel(algorithm=shown) - value.sel(algorithm="GRPO", drop=True)
        plotting.curves(axes, gap, over="table", x="learning_rate", by=("algorithm", "sampling"))
        plotting.theory(axes, gap.learning_rate, 0.0, label=None)
        axes.get_legend().set_visible(axes is panels[0])
        axes.set_xscale("log", base=2)
        axes.set(title=f"{name}, {kind} rewards", ylabel="mean J - that of GRPO")
    figure.suptitle("TIC-GRPO's reward per token, r/|o|, costs it reward where rewards are graded")
