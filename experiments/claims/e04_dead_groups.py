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
from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas import dead_groups as by_hand
from experiments.harness.numbers import Number, hardest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import dead_groups as questions
from experiments.problems.dead_groups import ADAMW, HANDLINGS, KEPT, LEFT_OUT, OTHER, SAME, SGD, SUCCESS
from experiments.problems.updates import PLAIN
from grpo_jax import plotting

PRECISION = "float64"
SIZES = sizes(seeds=(64, 128, 1024), iterations=(120, 200, 400))

GAIN, ZERO, EXACT = 0.01, 1e-12, 1e-10
FEW = 4
"""The group of the third sentence."""
USUAL = (8, 16)
LEVEL, LEVEL_ADAMW = "SGD, equal steps", "AdamW, equal steps"
SAME_RATE = {f"{name}, same rate": (name, name) for name in (SGD, ADAMW)}
"""Comparison -> the optimizer of one and of the other."""
WITH_LEVEL = SAME_RATE | {LEVEL: (SGD, LEVEL)}


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Identities, and sampled training of every handling, at the same rate and at equal steps."""
    runs = {name: questions.trained(seed, size, *HANDLINGS[name]) for name in HANDLINGS}
    mixed = 1 - runs[LEFT_OUT].tied.sel(optimizer=SGD, drop=True)
    steps = [runs[name].update_norm.sel(optimizer=ADAMW, drop=True).mean("seed") for name in (LEFT_OUT, KEPT)]
    factors = {LEVEL: (mixed > 0).mean("seed") / mixed.mean("seed"), LEVEL_ADAMW: steps[0] / steps[1]}
    rates = {name: factor.values for name, factor in factors.items()}
    level = questions.trained(seed, size, *HANDLINGS[KEPT], factors=rates)
    few = questions.trained(seed, size, PLAIN, None, group=FEW)
    fast = questions.trained(seed, size, PLAIN, None, group=FEW, factors={LEVEL: 2 / (1 - 1 / FEW)})
    return {
        **runs,
        KEPT: xr.concat([runs[KEPT], level], "optimizer"),
        "identities": questions.identities(),
        "factors": xr.Dataset(factors),
        "sign": questions.trained(seed, size, questions.SIGN, None, group=FEW),
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
    return {
        name: mean(own.sel(optimizer=a) - other.sel(optimizer=b), expected=GAIN, relation="at least")
        for name, (a, b) in pairs.items()
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Handlings against each other, and the two abstracts."""
    kept, factors, known = data[KEPT], data["factors"], data["identities"]
    samples = float(kept.samples_drawn.isel(optimizer=0, seed=0).sum())
    gaps = {str(name): worst(known.gap.sel(check=name), tolerance=EXACT) for name in known.check.values}
    claim.requires("gap", gaps)
    price = Number(float(known.drawn), 1.0, 1e-9)
    claim.requires("refilled, at the start: answers drawn / formula", price)
    pairs = WITH_LEVEL | {LEVEL_ADAMW: (ADAMW, LEVEL_ADAMW)}
    numbers = ahead(data[LEFT_OUT], kept, pairs, samples)
    for name, number in numbers.items():
        claim.refutes(f"{name}: left out - kept", number)
    faster, adam, level, calm = numbers.values()
    first, last = (float(factors[LEVEL].isel(iteration=place)) for place in (0, -1))
    claim.finds(
        f"Under SGD leaving dead groups out is a larger rate, {first:.1f} times as large at the start and "
        f"{last:.1f} at the end: {faster.value:+.3f} at the same rate, {round(level.value, 3) + 0.0:+.3f} at "
        "equal steps.",
        when=faster.holds is True and level.holds is False,
    )
    claim.finds(
        f"AdamW divides a constant factor out and keeps what grows: {adam.value:+.3f} at the same rate, "
        f"{calm.value:+.3f} at equal steps.",
        when=calm.holds is False,
    )

    row = claim.also(
        '(trl 3758, of refilling.) It "makes the algorithm more efficient by avoiding training in samples '
        'with no learning signal".'
    )
    row.requires("gap", gaps)
    for name, number in ahead(data[OTHER], kept, WITH_LEVEL, samples).items():
        row.refutes(f"{name}: refilled by other prompts - kept", number)
    row.reports("refilled by the same prompt - kept", ahead(data[SAME], kept, SAME_RATE, samples))
    row.finds(
        "Other prompts in dead groups' places multiply every prompt's update by one factor, 1/(share of "
        "mixed groups), and the price by the same. The same prompt asked again multiplies each one's update "
        "by its own 1/P(mixed): it prefers what is hard and what is all but solved.",
        when=list(gaps.values()),
    )

    sign = claim.also(
        '(arXiv:2605.07689, abstract.) "The failure mode is gradient starvation": at groups of four '
        "A = 2r - 1 is ahead of the group mean."
    )
    sign.requires("gap", gaps)
    spent = FEW * questions.PROMPTS * data["few"].sizes["iteration"]
    for name, number in ahead(data["sign"], data["few"], WITH_LEVEL, spent).items():
        sign.refutes(f"{name}: A = 2r - 1 less r - mean", number)
    sign.finds(
        "On average nothing starves: with dead groups kept the expected update is (1 - 1/G) grad J, "
        "whatever their share; that of A = 2r - 1 is 2 grad J.",
        when=gaps["dead groups kept - (1 - 1/G) grad J"],
    )
    baseline(claim)


def baseline(claim: Claim) -> None:
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
    only = "given a group that does not tie"
    bias.qualifies("E[mean] less success rate, all groups", hardest(whole), only=only)


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
