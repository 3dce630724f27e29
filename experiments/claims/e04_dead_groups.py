"""(trl 6365.) "Exclude zero-variance groups from GRPO loss denominator and increase your accuracy".

The title of huggingface/trl's pull request 6365; 6368 reports +2.4 points. Groups whose rewards all tie have
advantage 0. They are kept in the denominator, left out of it, or refilled: by other prompts (DAPO,
arXiv:2503.14476; here 6 prompts at most for one) or by the same prompt (16 tries). Nine questions, success
rates from .05 to .95 at the start, 8 prompts drawn an iteration, groups of 8, r − r̄, SGD and AdamW. "Accuracy"
is the mean success rate over all questions, after as many answers drawn as kept groups take to the end.

Refuted if at the end groups left out are not more than .01 ahead of groups kept: at the same learning rate
and at equal effective one (SGD: the kept ones' rate times the mean of 1/(share of mixed groups) of the run that
leaves out), SGD and AdamW, at equal samples. Second sentence (trl 3758, of refilling: it "makes the algorithm
more efficient by avoiding training in samples with no learning signal"): refuted if groups refilled by other
prompts are not .01 ahead at equal samples drawn, dead ones included, at the same rate and at equal steps. Third
(arXiv:2605.07689, abstract, groups of 4): refuted if A = 2r - 1 is not .01 ahead of r - r̄ at the same rate and
at equal steps (SGD: r - r̄ at 2/(1 - 1/G) times the rate). Fourth (arXiv:2601.08521, abstract): refuted if r̄,
given a mixed group, is not above the success rate where that is below 1/2 and under it where above, at groups
of 8 and 16; qualified if over all groups, dead ones included, it is the success rate to 1e-12. Checks of the
instrument: the library's update with refilling, the factor 1/P(mixed) and every ordered group agree to 1e-10;
exact training with dead groups is that of J itself at the rate times 1 - 1/G to 1e-10 (dead groups take nothing
away); what refilling draws is the formula's price; with no ties to drop (a placebo of rewards that differ in
every group) leaving out changes nothing.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import dead_groups as by_hand
from experiments.formulas.truncation import tree
from experiments.harness.numbers import Number, each, hardest, mean, worst
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
    logits,
    table,
)
from grpo_jax import plotting
from grpo_jax.exact import expected_gradient
from grpo_jax.tasks import Gaussian

PRECISION = "float64"
SIZES = sizes(seeds=(64, 320, 1024), iterations=(120, 200, 400))

RATE, ADAM = 2.0, 0.03
GAIN, ZERO = 0.01, 1e-12
SMALL, TRIES, FEW = 3, 4, 4
"""Group and tries where everything is enumerated; the group of the third sentence."""
SIZES_IN_USE = (8, 16)
SGD, ADAMW = "SGD", "AdamW"


def learning(**factors: float) -> dict[str, tuple[float, float, float]]:
    """(rate, b1, eps) of SGD and AdamW, and of SGD at other rates."""
    slow = {SGD: (RATE * FREE, 0.0, FREE), ADAMW: (ADAM, 0.9, 1e-8)}
    return slow | {name: (RATE * FREE * factor, 0.0, FREE) for name, factor in factors.items()}


def trained(seed: int, size: Any, method: gj.Method, refill: Any, *, group: int = GROUP, **factors: float):
    """J, and what was drawn and tied, by iteration."""
    data = gj.sweep(
        config(method, refill, group=group), {OPTIMIZER: learning(**factors)}, seeds=size.seeds,
        iterations=size.iterations, root=seed, record=["expected_reward", "samples_drawn", "tied"],
    )  # fmt: skip
    data = data.rename({"+".join(OPTIMIZER): "optimizer"})
    return data.drop_vars([name for name in data.coords if name not in data.dims]).drop_attrs()


def identities() -> xr.Dataset:
    """Largest gaps of the library's updates to the enumeration and to the factor 1/P(mixed)."""
    rng = np.random.default_rng(4)
    start = rng.normal(size=(2, 3, 3))
    rewards = np.array([rng.integers(0, 2, SPACE.size), rng.choice([0.0, 0.5, 1.0], SPACE.size)]).astype(
        float
    )

    def update(refill: Any, group: int = SMALL) -> np.ndarray:
        given = gj.Config(
            policy=gj.TreePolicy(space=SPACE, logits=start), method=PLAIN, expectation=gj.Exact(),
            task=gj.SequenceTable(space=SPACE, table=rewards), loop=gj.Loop(group_size=group, refill=refill),
        )  # fmt: skip
        return 2 * np.asarray(expected_gradient(given, jnp.asarray(start)))

    trees = [tree(rows, SPACE.horizon) for rows in start]
    known = np.array([by_hand.refilled(t, r, SMALL, TRIES) for t, r in zip(trees, rewards, strict=True)])
    once = np.array([by_hand.refilled(t, r, SMALL, 1) for t, r in zip(trees, rewards, strict=True)])
    ties = np.array([
        sum((t.chance @ (r == level)) ** SMALL for level in np.unique(r))
        for t, r in zip(trees, rewards, strict=True)
    ])  # fmt: skip
    slope = np.array([t.slope(r) for t, r in zip(trees, rewards, strict=True)])
    found = update(gj.Refill(tries=TRIES))
    gaps = {
        "library - enumeration": abs(found - known).max(),
        "library - factor": abs(found - by_hand.price(ties, TRIES)[:, None, None] * once).max(),
        "dead groups kept - (1 - 1/G) grad J": abs(update(None, GROUP) - (1 - 1 / GROUP) * slope).max(),
        "no ties: left out - kept": placebo(),
    }
    return xr.Dataset({"gap": ("check", list(gaps.values()))}, {"check": list(gaps)})


def placebo() -> float:
    """What leaving out changes in training where no two rewards are equal."""
    ends = []
    for handling in (KEPT, LEFT_OUT):
        given = config(*HANDLINGS[handling])
        given = replace(
            given, task=replace(given.task, noise=Gaussian(std=0.3)), optimizer=gj.SGD(learning_rate=RATE)
        )
        ends.append(gj.sweep(given, seeds=2, iterations=5, record=["expected_reward"], progress=False))
    return float(abs(ends[0].expected_reward - ends[1].expected_reward).max())


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Identities, exact training, and sampled training of every handling."""
    runs = {name: trained(seed, size, *HANDLINGS[name]) for name in (LEFT_OUT, OTHER, SAME)}
    mixed = runs[LEFT_OUT].tied.sel(optimizer=SGD)
    factors = {LEFT_OUT: float((1 / (1 - mixed)).where(mixed < 1).mean())}
    factors[OTHER] = float(runs[OTHER].samples_drawn.sel(optimizer=SGD).mean()) / (GROUP * PROMPTS)
    runs[KEPT] = trained(seed, size, *HANDLINGS[KEPT], **factors)
    sign = trained(seed, size, SIGN, None, group=FEW)
    few = trained(seed, size, PLAIN, None, group=FEW, sign=2 / (1 - 1 / FEW))
    exact = [
        gj.sweep(
            replace(config(*HANDLINGS[name], exact=True), optimizer=gj.SGD(learning_rate=RATE)),
            iterations=size.iterations, record=["prompt_reward", "samples_drawn"], record_start=True,
        ).isel(seed=0, drop=True).drop_attrs()
        for name in (KEPT, SAME)
    ]  # fmt: skip
    return {
        "identities": identities(),
        "exact": xr.concat(exact, xr.Variable("handling", [KEPT, SAME])),
        "factors": xr.Dataset({"factor": ("handling", list(factors.values()))}, {"handling": list(factors)}),
        "sign": sign,
        "few": few,
        **runs,
    }


def after(data: xr.Dataset, samples: float) -> xr.DataArray:
    """J when so many answers have been drawn."""
    spent = data.samples_drawn.cumsum("iteration")
    place = (spent <= samples).sum("iteration") - 1
    return data.expected_reward.isel(iteration=place.clip(0)).drop_vars("iteration")


def ahead(
    mine: xr.Dataset, base: xr.Dataset, pairs: dict[str, tuple[str, str]], samples: float
) -> dict[str, Number]:
    """How far one is ahead of the other after as many samples, for (its optimizer, the other's) by name."""
    own, other = after(mine, samples), after(base, samples)
    return {
        name: mean(
            own.sel(optimizer=a, drop=True) - other.sel(optimizer=b, drop=True), expected=GAIN, relation="at least"
        )
        for name, (a, b) in pairs.items()
    }  # fmt: skip


def check(data: dict[str, Any], claim: Claim) -> None:
    """Handlings against each other, and the two abstracts."""
    kept, steps = data[KEPT], data["factors"].factor
    samples = float(kept.samples_drawn.isel(optimizer=0, seed=0).sum())
    gaps = {
        str(name): worst(data["identities"].gap.sel(check=name), tolerance=1e-10)
        for name in data["identities"].check.values
    }
    claim.requires("gap", gaps)
    drawn = data["exact"].samples_drawn.sel(handling=SAME).isel(iteration=0)
    tie = by_hand.ties(np.array(SUCCESS), GROUP)
    price = GROUP * by_hand.price(tie, HANDLINGS[SAME][1].tries).sum()
    claim.requires("refilled, at the start: answers drawn / formula", Number(float(drawn) / price, 1.0, 1e-9))
    same, equal = {f"{o}, same rate": (o, o) for o in (SGD, ADAMW)}, "SGD, equal steps"
    numbers = ahead(data[LEFT_OUT], kept, same | {equal: (SGD, LEFT_OUT)}, samples)
    for name, number in numbers.items():
        claim.refutes(f"{name}: left out - kept", number)
    claim.reports("mean of 1/(share of mixed groups)", Number(float(steps.sel(handling=LEFT_OUT))))
    flat = [n for name, n in numbers.items() if name != f"{SGD}, same rate" and n.holds is False]
    claim.finds(
        f"Leaving dead groups out is a learning rate {float(steps.sel(handling=LEFT_OUT)):.2f} times as large "
        f"under SGD ({numbers[f'{SGD}, same rate'].value:+.3f}); at equal steps it gives {numbers[equal].value:+.3f}, "
        f"and under AdamW, which divides such factors out, {numbers[f'{ADAMW}, same rate'].value:+.3f}.",
        when=len(flat) == 2 and numbers[f"{SGD}, same rate"].holds is True,
    )
    for group in SIZES_IN_USE:
        for p in SUCCESS[:5]:
            found = 1 / (1 - float(by_hand.ties(p, group)))
            claim.reports(f"G {group}, success {p:g}: groups drawn for a mixed one", Number(found))

    row = claim.also('(trl 3758, of refilling.) It "makes the algorithm more efficient".')
    row.requires("gap", gaps)
    refilled = ahead(data[OTHER], kept, same | {equal: (SGD, OTHER)}, samples)
    for name, number in refilled.items():
        row.refutes(f"{name}: refilled by other prompts - kept, equal samples", number)
    row.reports("answers drawn for one that is kept", Number(float(steps.sel(handling=OTHER))))
    row.reports("same prompt: refilled - kept, equal samples", ahead(data[SAME], kept, same, samples))
    row.finds(
        "Other prompts in dead groups' places multiply every prompt's update by one factor, 1/(share of mixed "
        "groups), and the price by the same: no question gains on another. Asking the same prompt again "
        "multiplies each prompt's update by its own 1/P(mixed), hard and easy ones most.",
        when=all(number.holds is True for number in gaps.values()),
    )

    sign = claim.also(
        '(arXiv:2605.07689, abstract.) Dead groups are "gradient starvation"; A = 2r - 1 reaches more than the '
        "group mean at groups of four."
    )
    sign.requires("gap", gaps)
    cost = FEW * PROMPTS * data["few"].sizes["iteration"]
    for name, number in ahead(data["sign"], data["few"], same | {equal: (SGD, "sign")}, cost).items():
        sign.refutes(f"{name}: A = 2r - 1 less r - mean", number)
    sign.finds(
        "On average nothing starves: with dead groups kept the expected update is (1 - 1/G) grad J, whatever their "
        "share; A = 2r - 1 has 2 grad J, and more noise.",
        when=gaps["dead groups kept - (1 - 1/G) grad J"],
    )

    bias = claim.also(
        '(arXiv:2601.08521, abstract.) The group-relative advantage estimator "systematically underestimates '
        'advantages for hard prompts and overestimates them for easy prompts".'
    )
    wrong, whole = {}, {}
    for group in SIZES_IN_USE:
        for p in [p for p in SUCCESS if p != 0.5]:
            lifted = by_hand.baseline(p, group, mixed=True) - p
            name = f"G {group}, success {p:g}"
            wrong[name] = Number(lifted * np.sign(0.5 - p), 0.0, relation="at least")
            whole[name] = Number(by_hand.baseline(p, group, mixed=False) - p, 0.0, ZERO, relation="differs")
    bias.refutes("E[mean | mixed] less success rate, towards 1/2", hardest(wrong))
    bias.qualifies(
        "E[mean] less success rate, all groups", hardest(whole), only="given a group that does not tie"
    )
    for name, number in wrong.items():
        bias.reports(f"{name}: by how much", Number(number.value))


def draw(figure: Any, data: dict[str, Any]) -> None:
    """J against answers drawn, SGD, at the same rate and at equal steps."""
    figure.set_size_inches(7, 2.9)
    left, right = plotting.panels(figure, 1, 2, sharey=True)
    total = float(data[KEPT].samples_drawn.isel(optimizer=0, seed=0).sum())
    grid = np.linspace(total / 30, total, 30)

    def line(name: str, optimizer: str) -> xr.DataArray:
        found = [after(data[name].sel(optimizer=optimizer, drop=True), samples) for samples in grid]
        return xr.concat(found, xr.Variable("samples", grid / 1000))

    panels = {
        left: {KEPT: (KEPT, SGD), LEFT_OUT: (LEFT_OUT, SGD), OTHER: (OTHER, SGD)},
        right: {f"{KEPT}, larger rate": (KEPT, LEFT_OUT), LEFT_OUT: (LEFT_OUT, SGD), OTHER: (OTHER, SGD)},
    }
    for axes, shown in panels.items():
        lines = xr.concat([line(*of) for of in shown.values()], xr.Variable("dead groups", list(shown)))
        lines.attrs = {"long_name": "mean success rate"}
        plotting.curves(axes, lines, over="seed", by="dead groups", x="samples")
        axes.set(xlabel="answers drawn, thousands")
        axes.legend(loc="lower right")
    left.set_title("SGD at the same learning rate")
    right.set_title("kept at the rate of equal steps")
    right.set_ylabel("")
