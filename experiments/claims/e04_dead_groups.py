"""(trl 6365.) "Exclude zero-variance groups from GRPO loss denominator and increase your accuracy".

The title of huggingface/trl's pull request 6365; 6368 reports +2.4 points. Groups whose rewards all tie have
advantage 0. They are kept in the denominator, left out of it, or refilled: by other prompts (DAPO,
arXiv:2503.14476; here 6 prompts at most for one) or by the same prompt (16 tries). Nine questions, success
rates from .05 to .95 at the start, 8 prompts drawn an iteration, groups of 8, r − r̄, SGD and AdamW. Accuracy
is the mean success rate over all questions, after as many answers drawn as kept groups take to the end.

Refuted if groups left out are not more than .01 ahead of groups kept at equal samples: for SGD and AdamW, at
the same learning rate and at equal steps: the kept ones' rate at every iteration times what leaving out makes
of a step there on average, under SGD P(some group is mixed)/E[share of mixed groups], under AdamW the ratio
of the mean lengths of a step. Second sentence (trl 3758, of refilling): refuted if groups refilled by other
prompts are not .01 ahead at equal samples, dead ones included, at the same rate and (SGD) at the same equal
steps. Third (arXiv:2605.07689, read as an abstract; groups of 4, r − r̄ as Dr. GRPO has it): refuted if A =
2r − 1 is not .01 ahead of r − r̄ at the same rate and (SGD) at equal steps, r − r̄ at 2/(1 − 1/G) times the
rate. Fourth (arXiv:2601.08521, read as an abstract): refuted if r̄, given a mixed group, is not above the
success rate where that is below 1/2 and below it where above, for groups of 8 and 16; qualified if over all
groups, dead ones included, it is the success rate to 1e-12 (sums over the binomial law, an identity: the row
can fall only if the code is wrong). Checks of the instrument: the library's update with refilling, the factor
1 + t + ... + t^(k-1) and every ordered group agree to 1e-10; with dead groups kept the exact update is (1 −
1/G) ∇J to 1e-10; what refilling draws is the formula's price; where no two rewards are equal leaving out
changes nothing (placebo).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import dead_groups as by_hand
from experiments.formulas.truncation import tree
from experiments.harness.numbers import Number, hardest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.dead_groups import (
    FREE,
    GROUP,
    HANDLINGS,
    KEPT,
    LEFT_OUT,
    OPTIMIZER,
    OTHER,
    PLAIN,
    PROMPTS,
    SAME,
    SIGN,
    SPACE,
    SUCCESS,
    config,
    table,
)
from grpo_jax import plotting
from grpo_jax.exact import expected_gradient
from grpo_jax.tasks import Gaussian

PRECISION = "float64"
SIZES = sizes(seeds=(64, 128, 1024), iterations=(120, 200, 400))

RATE, ADAM = 2.0, 0.03
GAIN, ZERO = 0.01, 1e-12
SMALL, TRIES, FEW = 3, 4, 4
"""Group and tries where everything is enumerated; the group of the third sentence."""
USUAL = (8, 16)
SGD, ADAMW = "SGD", "AdamW"
LEVEL, LEVEL_ADAMW = "SGD, equal steps", "AdamW, equal steps"
SAME_RATE = {f"{name}, same rate": (name, name) for name in (SGD, ADAMW)}
"""Comparison -> the optimizer of one and of the other."""


Setting = tuple[np.ndarray, float, float]


def learning(iterations: int, factors: Mapping[str, Any] | None = None) -> dict[str, Setting]:
    """(rates, b1, eps) of SGD and AdamW, or of the same at the rate times these factors."""
    slow, adam = (RATE * FREE, 0.0, FREE), (ADAM, 0.9, 1e-8)
    factors = factors or {SGD: 1.0, ADAMW: 1.0}
    start = {name: adam if name.startswith(ADAMW) else slow for name in factors}
    even = np.ones(iterations)
    return {name: (rate * factors[name] * even, b1, eps) for name, (rate, b1, eps) in start.items()}


def trained(
    seed: int,
    size: Any,
    method: gj.Method,
    refill: Any,
    *,
    group: int = GROUP,
    factors: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """J, the mean length of a step, and what was drawn and tied, by iteration."""
    data = gj.sweep(
        config(method, refill, group=group, steps=size.iterations),
        {OPTIMIZER: learning(size.iterations, factors)}, seeds=size.seeds,
        iterations=size.iterations, root=seed,
        record=["expected_reward", "samples_drawn", "tied", "update_norm"],
    )  # fmt: skip
    data = data.rename({"+".join(OPTIMIZER): "optimizer"})
    return data.drop_vars([name for name in data.coords if name not in data.dims]).drop_attrs()


def identities() -> xr.Dataset:
    """Largest gaps of the library's updates to the enumeration and to the factor 1/P(mixed)."""
    rng = np.random.default_rng(4)
    start = rng.normal(size=(2, 3, 3))
    coins, grades = rng.integers(0, 2, SPACE.size), rng.choice([0.0, 0.5, 1.0], SPACE.size)
    rewards = np.array([coins, grades], float)

    def update(refill: Any, group: int = SMALL) -> np.ndarray:
        given = gj.Config(
            policy=gj.TreePolicy(space=SPACE, logits=start), method=PLAIN, expectation=gj.Exact(),
            task=gj.SequenceTable(space=SPACE, table=rewards), loop=gj.Loop(group_size=group, refill=refill),
        )  # fmt: skip
        return 2 * np.asarray(expected_gradient(given, jnp.asarray(start)))

    pairs = [(tree(rows, SPACE.horizon), r) for rows, r in zip(start, rewards, strict=True)]
    known, once = (np.array([by_hand.refilled(t, r, SMALL, k) for t, r in pairs]) for k in (TRIES, 1))
    tie = np.array([sum((t.chance @ (r == v)) ** SMALL for v in np.unique(r)) for t, r in pairs])
    slope = np.array([t.slope(r) for t, r in pairs])
    found = update(gj.Refill(tries=TRIES))
    gaps = {
        "library - enumeration": abs(found - known).max(),
        "library - factor": abs(found - by_hand.price(tie, TRIES)[:, None, None] * once).max(),
        "dead groups kept - (1 - 1/G) grad J": abs(update(None, GROUP) - (1 - 1 / GROUP) * slope).max(),
        "no ties: left out - kept": placebo(),
    }
    return xr.Dataset({"gap": ("check", list(gaps.values()))}, {"check": list(gaps)})


def placebo() -> float:
    """What leaving out changes in training where no two rewards are equal."""
    ends = []
    task = gj.SequenceTable(space=SPACE, table=table(len(SUCCESS)), noise=Gaussian(std=0.3))
    for handling in (KEPT, LEFT_OUT):
        given = replace(config(*HANDLINGS[handling]), task=task, optimizer=gj.SGD(learning_rate=RATE))
        ends.append(gj.sweep(given, seeds=2, iterations=5, record=["expected_reward"], progress=False))
    return float(abs(ends[0].expected_reward - ends[1].expected_reward).max())


def exact(size: Any, handling: str) -> xr.Dataset:
    """Every question's success rate, with expectations over all groups."""
    given = replace(config(*HANDLINGS[handling], exact=True), optimizer=gj.SGD(learning_rate=RATE))
    record = ["prompt_reward", "samples_drawn"]
    data = gj.sweep(given, iterations=size.iterations, record=record, record_start=True)
    return data.isel(seed=0, drop=True).drop_attrs()


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Identities, exact training, and sampled training of every handling."""
    runs = {name: trained(seed, size, *HANDLINGS[name]) for name in HANDLINGS}
    mixed = 1 - runs[LEFT_OUT].tied.sel(optimizer=SGD)
    steps = [runs[name].update_norm.sel(optimizer=ADAMW).mean("seed") for name in (LEFT_OUT, KEPT)]
    factors = {LEVEL: (mixed > 0).mean("seed") / mixed.mean("seed"), LEVEL_ADAMW: steps[0] / steps[1]}
    level = trained(
        seed, size, *HANDLINGS[KEPT], factors={name: factor.values for name, factor in factors.items()}
    )
    few = trained(seed, size, PLAIN, None, group=FEW)
    fast = trained(seed, size, PLAIN, None, group=FEW, factors={LEVEL: 2 / (1 - 1 / FEW)})
    return {
        **runs,
        KEPT: xr.concat([runs[KEPT], level], "optimizer"),
        "identities": identities(),
        "exact": xr.concat([exact(size, n) for n in (KEPT, SAME)], xr.Variable("handling", [KEPT, SAME])),
        "factors": xr.Dataset({name: factor.drop_vars("optimizer") for name, factor in factors.items()}),
        "sign": trained(seed, size, SIGN, None, group=FEW),
        "few": xr.concat([few, fast], "optimizer"),
    }


def after(data: xr.Dataset, samples: float) -> xr.DataArray:
    """J when so many answers have been drawn."""
    spent = data.samples_drawn.cumsum("iteration")
    place = ((spent <= samples).sum("iteration") - 1).clip(0)
    return data.expected_reward.isel(iteration=place).drop_vars("iteration", errors="ignore")


def ahead(
    mine: xr.Dataset, base: xr.Dataset, pairs: Mapping[str, tuple[str, str]], samples: float
) -> dict[str, Number]:
    """How far one is ahead of the other after as many samples, for the optimizers of every comparison."""
    own, other = after(mine, samples), after(base, samples)
    gaps = {
        name: own.sel(optimizer=a, drop=True) - other.sel(optimizer=b, drop=True)
        for name, (a, b) in pairs.items()
    }
    return {name: mean(gap, expected=GAIN, relation="at least") for name, gap in gaps.items()}


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Handlings against each other, and the two abstracts."""
    kept, factors, known = data[KEPT], data["factors"], data["identities"].gap
    samples = float(kept.samples_drawn.isel(optimizer=0, seed=0).sum())
    gaps = {str(name): worst(known.sel(check=name), tolerance=1e-10) for name in known.check.values}
    claim.requires("gap", gaps)
    drawn = float(data["exact"].samples_drawn.sel(handling=SAME).isel(iteration=0))
    tie = by_hand.ties(np.array(SUCCESS), GROUP)
    price = GROUP * by_hand.price(tie, HANDLINGS[SAME][1].tries).sum()
    claim.requires("refilled, at the start: answers drawn / formula", Number(drawn / price, 1.0, 1e-9))
    pairs = SAME_RATE | {LEVEL: (SGD, LEVEL), LEVEL_ADAMW: (ADAMW, LEVEL_ADAMW)}
    numbers = ahead(data[LEFT_OUT], kept, pairs, samples)
    for name, number in numbers.items():
        claim.refutes(f"{name}: left out - kept", number)
    for which, factor in factors.items():
        claim.reports(f"{which}: mean factor of the rate", Number(float(factor.mean())))
    faster, level = numbers[f"{SGD}, same rate"], numbers[LEVEL]
    first, last = (float(factors[LEVEL].isel(iteration=place)) for place in (0, -1))
    claim.finds(
        f"Under SGD leaving dead groups out is a larger rate, {first:.1f} times as large at the start and "
        f"{last:.1f} at the end: {faster.value:+.3f} at the same rate, {round(level.value, 3) + 0.0:+.3f} at "
        "equal steps.",
        when=faster.holds is True and level.holds is False,
    )
    adam, calm = numbers[f"{ADAMW}, same rate"], numbers[LEVEL_ADAMW]
    claim.finds(
        f"AdamW divides a constant factor out and keeps what grows: {adam.value:+.3f} at the same rate, "
        f"{calm.value:+.3f} at equal steps.",
        when=calm.holds is False,
    )
    for group in USUAL:
        for p in SUCCESS[:5]:
            cost = 1 / (1 - float(by_hand.ties(p, group)))
            claim.reports(f"G {group}, success {p:g}: groups drawn for a mixed one", Number(cost))

    _refilled(data, claim, gaps, samples)
    _sign(data, claim, gaps)
    _baseline(claim)


def _refilled(data: dict[str, xr.Dataset], claim: Claim, gaps: dict[str, Number], samples: float) -> None:
    """Dead groups drawn anew against dead groups kept."""
    kept = data[KEPT]
    row = claim.also(
        '(trl 3758, of refilling.) It "makes the algorithm more efficient by avoiding training in samples '
        'with no learning signal".'
    )
    row.requires("gap", gaps)
    refilled = ahead(data[OTHER], kept, SAME_RATE | {LEVEL: (SGD, LEVEL)}, samples)
    for name, number in refilled.items():
        row.refutes(f"{name}: refilled by other prompts - kept", number)
    price = data[OTHER].samples_drawn.sel(optimizer=SGD).mean() / (GROUP * PROMPTS)
    row.reports("answers drawn for one that is kept", Number(float(price)))
    row.reports("refilled by the same prompt - kept", ahead(data[SAME], kept, SAME_RATE, samples))
    hard = data["exact"].prompt_reward.isel(context=0)
    for handling in (KEPT, SAME):
        told = float(hard.sel(handling=handling).isel(iteration=-1))
        row.reports(f"exact, the hardest question at the end: {handling}", Number(told))
    row.finds(
        "Other prompts in dead groups' places multiply every prompt's update by one factor, 1/(share of "
        "mixed groups), and the price by the same. The same prompt asked again multiplies each one's update "
        "by its own 1/P(mixed): it prefers what is hard and what is all but solved.",
        when=list(gaps.values()),
    )


def _sign(data: dict[str, xr.Dataset], claim: Claim, gaps: dict[str, Number]) -> None:
    """A = 2r − 1 against the group mean."""
    sign = claim.also(
        '(arXiv:2605.07689, abstract.) "The failure mode is gradient starvation": at groups of four '
        "A = 2r - 1 is ahead of the group mean."
    )
    sign.requires("gap", gaps)
    cost = FEW * PROMPTS * data["few"].sizes["iteration"]
    for name, number in ahead(data["sign"], data["few"], SAME_RATE | {LEVEL: (SGD, LEVEL)}, cost).items():
        sign.refutes(f"{name}: A = 2r - 1 less r - mean", number)
    sign.finds(
        "On average nothing starves: with dead groups kept the expected update is (1 - 1/G) grad J, "
        "whatever their share; that of A = 2r - 1 is 2 grad J.",
        when=gaps["dead groups kept - (1 - 1/G) grad J"],
    )


def _baseline(claim: Claim) -> None:
    """What the mean of a mixed group says of its prompt's success rate."""
    bias = claim.also(
        '(arXiv:2601.08521, abstract.) The group-relative advantage estimator "systematically underestimates '
        'advantages for hard prompts and overestimates them for easy prompts".'
    )
    wrong, whole = {}, {}
    for group in USUAL:
        for p in [p for p in SUCCESS if p != 0.5]:
            lifted = by_hand.baseline(p, group, mixed=True) - p
            name = f"G {group}, success {p:g}"
            wrong[name] = Number(lifted * np.sign(0.5 - p), ZERO, relation="at least")
            whole[name] = Number(by_hand.baseline(p, group, mixed=False) - p, 0.0, ZERO, relation="differs")
    bias.refutes("E[mean | mixed] less success rate, towards 1/2", hardest(wrong))
    bias.qualifies(
        "E[mean] less success rate, all groups", hardest(whole), only="given a group that does not tie"
    )
    bias.reports("E[mean | mixed] less success rate, towards 1/2", wrong)


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """J against answers drawn, SGD, at the same rate and at equal steps."""
    figure.set_size_inches(7, 2.9)
    left, right = plotting.panels(figure, 1, 2, sharey=True)
    total = float(data[KEPT].samples_drawn.isel(optimizer=0, seed=0).sum())
    grid = np.linspace(total / 30, total, 30)

    def line(name: str, optimizer: str) -> xr.DataArray:
        chosen = data[name].sel(optimizer=optimizer, drop=True)
        return xr.concat([after(chosen, n) for n in grid], xr.Variable("samples", grid / 1000))

    panels = {
        left: {KEPT: (KEPT, SGD, 0), LEFT_OUT: (LEFT_OUT, SGD, 1), OTHER: (OTHER, SGD, 2)},
        right: {f"{KEPT}, larger rate": (KEPT, LEVEL, 0), LEFT_OUT: (LEFT_OUT, SGD, 1)},
    }
    for axes, shown in panels.items():
        for label, (name, optimizer, hue) in shown.items():
            one = line(name, optimizer).expand_dims({"dead groups": [label]})
            one.attrs = {"long_name": "mean success rate"}
            style, colors = "-" if name == KEPT else "--", [plotting.COLORS[hue]]
            plotting.curves(axes, one, over="seed", by="dead groups", x="samples", colors=colors, style=style)
        axes.set(xlabel="answers drawn, thousands")
        axes.legend(loc="lower right")
    left.set_title("SGD, the same learning rate:\nrefilled as kept, answer for answer")
    right.set_title("SGD, equal steps:\nleft out as kept")
    right.set_ylabel("")
