"""TIC-GRPO converges faster than GRPO.

[C], abstract, v5 (23 March 2026: "we ... present the first convergence analysis for GRPO-style methods and
show that TIC-GRPO converges faster than GRPO"); v2 has an analysis of both, and "fast convergence" in its
title. We could read the abstracts and the papers' beginnings only. TIC-GRPO is the abstracts': trajectory
ratio, clip above only, 1/|o|; GRPO has token ratios and a clip on both sides. With r/|o|, which public
reviews describe, it is a row of ours. Random trees with binary or graded rewards, outputs of four tokens or
ending at EOS within three, exact and sampled (groups of 8), μ = 8 and 2 steps a batch, also A/σ. Each method
has the learning rate, of six, at which its mean J over training is greatest.

Judged where GRPO leaves at least 0.02 (four margins) to the best answer of each tree, on average over trees;
other settings are reported. Refuted if in such a setting TIC-GRPO is behind in mean J by more than 0.005
(99.9 % over trees, each optimizer and kind of reward by itself). Qualified if it is not ahead by 0.005 in
one, and nowhere behind: a tie is not slower. A setting that its interval leaves open leaves the sentence
open. ‖∇J‖² is reported at equal rates, and J at equal rates is a row of ours.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from experiments.harness.numbers import Number, each, extrapolated, hardest, share, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import trees
from experiments.problems.trees import EPS, KINDS, RATES, SETTINGS, member
from grpo_jax import plotting
from grpo_jax.sequences import Sequences

PRECISION = "float64"
SIZES = sizes(tables=(16, 400, 800), ending=(16, 200, 400), iterations=(6, 20, 40))

MARGIN, ROOM = 0.005, 0.02
NOWHERE = Number(0.0, MARGIN, None, -np.inf, np.inf, "at least", at="no setting that is judged")
"""What is open where GRPO leaves too little room in every setting."""
SPACES = {"four tokens": Sequences(vocab=2, horizon=4), "ending at EOS": Sequences(vocab=3, horizon=3, eos=2)}
PARTS = {"trajectory": "the trajectory ratio", "upper": "the upper-only clip", "length": "r/|o|"}
SWITCHES = list(itertools.product((False, True), repeat=len(PARTS)))
SMALL = 0.0025 * np.arange(1, 7)


def combination(trajectory: bool, upper: bool, length: bool) -> tuple[float, ...]:
    """GRPO with some of TIC-GRPO's three changes."""
    low = 1.0 if upper else EPS
    return member(trajectory=trajectory, low=low, high=EPS, loss_power=not length, reward_power=length)


TREES = {"GRPO": member(low=EPS, high=EPS), "TIC-GRPO": member(trajectory=1.0, high=EPS)}
"""On outputs of one length, where r/|o| and 1/|o| are the same."""
UNCLIPPED = {"GRPO unclipped": member(), "TIC-GRPO unclipped": member(trajectory=1.0)}
PER_TOKEN = "TIC-GRPO with r/|o|"
NAMES: dict[tuple[bool, ...], str] = {
    (False,) * 3: "GRPO",
    (True, True, False): "TIC-GRPO",
    (True,) * 3: PER_TOKEN,
}
ENDING = {NAMES.get(on, "+".join(itertools.compress(PARTS, on))): combination(*on) for on in SWITCHES}
METHODS = {"four tokens": TREES, "ending at EOS": ENDING}
HORIZONS = (2, 3, 4, 5)


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Training by outputs and optimizer, what it starts from, and the leading order in the learning rate."""
    told = {"root": seed, "iterations": size.iterations}
    found = {}
    for outputs, space in SPACES.items():
        tables = size.ending if outputs == "ending at EOS" else size.tables
        given = trees.problems(seed, space, tables=tables)
        found[f"{outputs}, start"] = trees.at_start(given)
        for name, settings in SETTINGS.items():
            if outputs == "ending at EOS":
                settings = {told: made for told, made in settings.items() if "steps" not in made}
            found[f"{outputs}, {name}"] = trees.by_setting(
                settings, given, METHODS[outputs], RATES[name], optimizer=name, **told
            )
    once = trees.problems(seed, SPACES["four tokens"], tables=size.tables)
    four = trees.few_steps(4)
    small = trees.trained(once, UNCLIPPED, SMALL, optimizer="SGD", root=seed, iterations=1, **four)
    spaces = [Sequences(vocab=2, horizon=horizon) for horizon in HORIZONS]
    gaps = [trees.curvature_gaps(trees.problems(seed, space, tables=size.tables)) for space in spaces]
    found["leading order"] = xr.Dataset({
        "trained": small.value.sel(sampling="exact", drop=True),
        "gap": xr.concat(gaps, xr.Variable("horizon", list(HORIZONS))),
    })  # fmt: skip
    return found


Cells = Mapping[tuple[str, str], list[tuple[xr.DataArray, xr.DataArray]]]
"""By optimizer and kind of reward: for each kind of outputs the lead and GRPO's room, by tree."""


def room(data: dict[str, xr.Dataset], outputs: str, name: str, kind: str) -> xr.DataArray:
    """What GRPO at its best learning rate leaves to the best answer, by setting and table."""
    trained = trees.at_best_rate(data[f"{outputs}, {name}"].sel(kind=kind, drop=True))
    best = data[f"{outputs}, start"].best.sel(kind=kind, drop=True)
    left = best - trained.value.sel(algorithm="GRPO", drop=True)
    return left.drop_vars("learning_rate").expand_dims(outputs=[outputs])


def lead(
    data: dict[str, xr.Dataset], outputs: str, name: str, kind: str, *, method: str = "TIC-GRPO", tuned: bool
) -> xr.Dataset:
    """A method's lead over GRPO by setting and table, in J and in ‖∇J‖² over that before training."""
    trained = data[f"{outputs}, {name}"].sel(kind=kind, algorithm=["GRPO", method], drop=True)
    if tuned:
        trained = trees.at_best_rate(trained).drop_vars("learning_rate")
    gap = trained.sel(algorithm=method, drop=True) - trained.sel(algorithm="GRPO", drop=True)
    start = data[f"{outputs}, start"].square.sel(kind=kind, drop=True).mean("table")
    return gap.assign(square=-gap.square / start).expand_dims(outputs=[outputs])


def at_best(data: dict[str, xr.Dataset], spaces: Sequence[str], method: str) -> Cells:
    """A method's leads in J at best rates, and GRPO's room."""
    return {
        (name, kind): [
            (lead(data, o, name, kind, method=method, tuned=True).value, room(data, o, name, kind))
            for o in spaces
        ]
        for name, kind in itertools.product(RATES, KINDS)
    }


def judge(row: Claim, what: str, cells: Cells) -> None:
    """Nowhere behind where GRPO leaves room, by optimizer and kind of reward, and ahead everywhere there."""
    told, count, total = [], 0, 0
    for (name, kind), pairs in cells.items():
        found = {at: n for gap, _ in pairs for at, n in each(gap, over="table").items()}
        left = {at: n.value for _, rest in pairs for at, n in each(rest, over="table").items()}
        judged = {}
        for at, number in found.items():
            words = f"{at}, room {left[at]:.4f}"
            if left[at] < ROOM:
                row.reports(f"{name}, {kind}: {what} at {words}", number)
            else:
                judged[words] = number
        count, total = count + len(judged), total + len(found)
        if judged:
            row.refutes(f"{name}, {kind}: {what} not behind", hardest(asked(judged, -MARGIN)))
            row.qualifies(
                f"{name}, {kind}: {what} ahead", hardest(asked(judged, MARGIN)), only="where it leads"
            )
            told.append(f"{span(judged)} ({name}, {kind}; {len(judged)} of {len(found)})")
    if not count:
        row.refutes(what, NOWHERE)
    row.finds(
        f"In {count} of {total} settings GRPO at its best learning rate leaves {ROOM} or more to the best "
        f"answer; there the {what} in mean J is {', '.join(told)}.",
        when=count > 0,
    )


def asked(numbers: Mapping[str, Number], least: float) -> dict[str, Number]:
    """The same numbers, which should be at least this."""
    return {at: replace(number, expected=least, relation="at least") for at, number in numbers.items()}


def span(numbers: Mapping[str, Number]) -> str:
    """Their least and greatest value."""
    values = [number.value for number in numbers.values()]
    return f"{min(values):+.3f} to {max(values):+.3f}"


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The printed sentence at best rates; then equal rates, r/|o|, each part, and the leading order."""
    judge(claim, "lead", at_best(data, list(SPACES), "TIC-GRPO"))
    judge_equal_rates(
        data,
        claim,
        claim.ours("At one and the same learning rate TIC-GRPO is nowhere behind GRPO in mean J."),
    )
    per_token = "Where outputs end at EOS, TIC-GRPO with r/|o| converges faster than GRPO, too."
    judge(claim.ours(per_token), "lead", at_best(data, ["ending at EOS"], PER_TOKEN))
    judge_parts(data, claim)
    judge_leading_order(data["leading order"], claim.ours(
        "Without a clip, μ small steps on one batch leave J(TIC-GRPO) - J(GRPO) = ½η²μ(μ-1)gᵀ(H - H_block)g, "
        "g = ∇J, H its Hessian at θ_old, H_block the blocks of H within one prefix."
    ))  # fmt: skip


def judge_equal_rates(data: dict[str, xr.Dataset], claim: Claim, row: Claim) -> None:
    """J at every learning rate, setting by setting; ‖∇J‖² there is reported."""
    counted = []
    for name, kind in itertools.product(RATES, KINDS):
        gaps = [lead(data, outputs, name, kind, tuned=False) for outputs in SPACES]
        found = {at: n for gap in gaps for at, n in each(gap.value, over="table").items()}
        row.refutes(f"{name}, {kind}: lead at one rate", hardest(asked(found, -MARGIN)))
        ahead = sum(number.holds is True for number in asked(found, MARGIN).values())
        behind = sum(number.holds is False for number in asked(found, -MARGIN).values())
        row.reports(f"{name}, {kind}: settings where it is ahead, of {len(found)}", Number(float(ahead)))
        row.reports(f"{name}, {kind}: settings where it is behind, of {len(found)}", Number(float(behind)))
        counted.append(f"{ahead} and {behind} of {len(found)} ({name}, {kind})")
        slopes = {at: n for gap in gaps for at, n in each(gap.square, over="table").items()}
        for word, pick in (("least", min), ("greatest", max)):
            at = pick(slopes, key=lambda place: slopes[place].value)
            told = f"{name}, {kind}: {word} lead in mean ‖∇J‖² at one rate"
            claim.reports(told, replace(slopes[at], at=at))
    row.finds(f"It is ahead and behind by more than {MARGIN} in {', '.join(counted)}.")


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
    """What each of the three changes does to mean J, averaged over the other two, where GRPO leaves room."""
    outputs = "ending at EOS"
    values = {
        (name, kind): factorial(data[f"{outputs}, {name}"].sel(kind=kind, drop=True))
        for name, kind in itertools.product(RATES, KINDS)
    }
    for part, words in PARTS.items():
        others = [other for other in PARTS if other != part]
        cells = {}
        for (name, kind), value in values.items():
            gap = (value.sel({part: True}, drop=True) - value.sel({part: False}, drop=True)).mean(others)
            there = room(data, outputs, name, kind)
            cells[name, kind] = [(gap.expand_dims(outputs=[outputs]), there)]
        row = claim.ours(f"Where outputs end at EOS, {words} raises mean J at best learning rates.")
        judge(row, "effect", cells)


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
    figure.set_size_inches(7, 5)
    panels = plotting.panels(figure, 2, 2, sharey=True)
    shown = ["TIC-GRPO", PER_TOKEN]
    for axes, (kind, name) in zip(panels, itertools.product(KINDS, RATES), strict=True):
        value = data[f"ending at EOS, {name}"].value.sel(kind=kind, setting="μ = 8")
        gap = value.sel(algorithm=shown) - value.sel(algorithm="GRPO", drop=True)
        plotting.curves(axes, gap, over="table", x="learning_rate", by=("algorithm", "sampling"))
        plotting.theory(axes, gap.learning_rate, 0.0, label=None)
        axes.get_legend().set_visible(False)
        axes.set_xscale("log", base=2)
        axes.set_xticks(RATES[name], [f"{rate:g}" for rate in RATES[name]])
        axes.set(title=f"{name}, {kind} rewards", ylabel="mean J - that of GRPO")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle("Outputs ending at EOS: mean J less GRPO's at one learning rate, μ = 8")
