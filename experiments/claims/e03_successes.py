"""(MaxRL.) "The resulting objectives admit a simple, unbiased policy-gradient estimator and converge to
maximum likelihood optimization in the infinite-compute limit."

arXiv:2602.02710, read as an abstract. Scores averaged over the right ones among G answers, (r_i/r̄) in an
advantage's place, against ∇J_G, J_G = −Σ_{k≤G} (1 − p)^k/k, whose weight (1 − (1 − p)^G)/p tends to that of
log p. prime-rl's `max_rl` centres: (r_i − r̄)/r̄. Trees with whole sequences, on-policy; for training ten
prompts of success rates from .05 to .95 with logits of their own, groups of 8 and 16, SGD.

Refuted if the expected update of r/r̄ is not ∇J_G (1e-10, groups of 4 and 8), or if in groups of 1024 its
weight is not within 2 % of 1/p. A second sentence, "MaxRL Pareto-dominates existing methods in all models and
tasks we tested", we put to GRPO and to r − r̄ on our prompts, which are none of theirs: refuted if at equal
effective learning rates, or at each method's best one (equal samples), pass@1 or pass@8, means over prompts
and over training, is somewhere below the other's by more than .01, or if neither is ahead by .01 somewhere.
Effective rates are made equal at every step: a rate is divided there by the mean weight over prompts and runs
(found by running three times; the last time's product is the rate to 5 %, a check of the instrument). Best
ones are among constant rates.
Ours: centring leaves out the last term of J_G (1e-10), an identity: it can fall only if the code is wrong.
Ours: where prompts compete, MaxRL keeps the hard one and the others do not. One policy that cannot tell
prompts apart answers four of them, three of which want one answer (at .3 in the beginning) and one another
(at .1); refuted if in groups of 8, in exact ascent or sampled, at learning rates equal in effect at the
start, the success rate of the fourth ends below .15 under either form of MaxRL or above .02 under GRPO or r −
r̄. A guess of ours, that with logits of their own hard prompts come further under MaxRL than under GRPO by
.02 at equal effective rates, from updates with a tenth less signal to noise, failed in a draft; the row on
dominance says what came instead. Checks of our instrument: the library's update against all groups of 4 in
NumPy (1e-10), where exact ascent ends against 3w(1 − p) = w(p) (.01); control: in pairs centred MaxRL is
GRPO, run by run.
"""

import itertools
from typing import Any

import numpy as np
import xarray as xr

from experiments.harness.numbers import Number, at_best_rate, each, hardest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import competing, difficulties, max_rl, weighings
from experiments.problems.max_rl import GRPO, MAXRL, PLAIN, RULES, SUCCESSES
from grpo_jax import plotting

PRECISION = "float64"
SIZES = sizes(seeds=(24, 96, 512), iterations=(60, 120, 400))

OTHERS, OWN = (PLAIN, GRPO), (SUCCESSES, MAXRL)
GROUPS, PAIRS, K = [8, 16], 2, 8
RATES = np.linspace(0.05, 0.95, 91)
AHEAD, BEHIND, KEPT, LOST = 0.01, 0.01, 0.15, 0.02
OFF = 0.05
"""How equal effective rates have to be."""


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Identities, weights, noise, and training."""
    sampled = [max_rl.at_constant_rates(seed, size, g) for g in (PAIRS, *GROUPS)]
    equal = [max_rl.at_equal_rates(seed, size, g) for g in GROUPS]
    weight = weighings.table(RULES, [*GROUPS, 64, 1024], RATES)
    exact = competing.trained(seed, size, exact=True).isel(seed=0, drop=True)
    shared = {"exact": exact, "sampled": competing.trained(seed, size, exact=False)}
    return {
        "identities": max_rl.identities(),
        "weights": xr.Dataset({"weight": weight, "signal": max_rl.signal()}),
        "sampled": xr.concat(sampled, xr.Variable("group_size", [PAIRS, *GROUPS])).to_dataset(name="rate"),
        "matched": xr.concat(equal, xr.Variable("group_size", GROUPS)),
        "competing": xr.Dataset(shared | {"resting": competing.resting_shares()}),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The estimator and its limit; against GRPO in training."""
    gap, weight = data["identities"], data["weights"].weight
    claim.requires("library's update - all groups", worst(gap.groups, tolerance=1e-10))
    own = gap.objective
    claim.refutes("expected update of r/r̄ - ∇J_G", worst(own.sel(rule=SUCCESSES), tolerance=1e-10))
    ratio = weight.sel(rule=SUCCESSES) * weight.rate
    limit = worst(ratio.sel(group_size=1024), expected=1.0, tolerance=0.02)
    claim.refutes("groups of 1024: weight / (1/p)", limit)
    reached = ", ".join(f"{float(ratio.sel(group_size=g)[0]):.0%} at G = {g}" for g in (8, 16, 64))
    claim.finds(f"Likelihood's weight at a success rate of .05 is reached to {reached}.")
    noise = data["weights"].signal.isel(prompt=[0, -1])
    told = (f"{n} " + " and ".join(f"{float(x):.2f}" for x in noise.sel(rule=n)) for n in RULES)
    claim.finds(f"Signal to noise of one update, groups of 8, at .05 and at .95: {'; '.join(told)}.")
    dominance(data["sampled"].rate, data["matched"], claim)
    row = claim.ours("Centring, (r − r̄)/r̄, leaves out the last term: the update is ∇J_{G−1}.")
    row.refutes("expected update of (r − r̄)/r̄ - ∇J_{G−1}", worst(own.sel(rule=MAXRL), tolerance=1e-10))
    keeping(data["competing"], claim)


def passes(rate: xr.DataArray) -> xr.DataArray:
    """pass@1 and pass@8, means over prompts."""
    both = xr.concat([rate, 1 - (1 - rate) ** K], xr.Variable("measure", ["pass@1", f"pass@{K}"]))
    return both.mean([dim for dim in ("prompt", "iteration") if dim in rate.dims])


def dominance(rate: xr.DataArray, equal: xr.Dataset, claim: Claim) -> None:
    """Each form of MaxRL against each other method, at equal effective rates and at best constant ones."""
    row = claim.ours(
        "What the abstract reports of all models and tasks tested there, that MaxRL Pareto-dominates "
        "existing methods, holds on our prompts, too."
    )
    pairs = rate.sel(group_size=PAIRS)
    same = worst(pairs.sel(rule=MAXRL, drop=True) - pairs.sel(rule=GRPO, drop=True), tolerance=1e-9)
    row.requires("control, pairs: MaxRL centred - GRPO", same)
    row.requires("effective rate at every step, off by", worst(equal.off, tolerance=OFF))
    course = {"equal rates": passes(equal.rate)}
    course["best rates"] = at_best_rate(passes(rate.sel(group_size=GROUPS)))
    ahead: dict[str, Number] = {}
    for mine, other in itertools.product(OWN, OTHERS):
        for how, of in course.items():
            told = f"{mine} less {other}, {how}"
            gap = of.sel(rule=mine, drop=True) - of.sel(rule=other, drop=True)
            found = each(gap, expected=-BEHIND, relation="at least")
            row.refutes(f"{told}: least", hardest(found))
            ahead |= {f"{told}, {name}": number for name, number in found.items()}
    top = max(ahead, key=lambda name: ahead[name].low or 0.0)
    lead = ahead[top]
    row.refutes("ahead somewhere", Number(lead.value, AHEAD, None, lead.low, lead.high, "at least", top))
    behind = [name for name, number in ahead.items() if number.holds is False]
    most = -min(number.value for name, number in ahead.items() if "best rates" in name)
    hard = equal.rate.sel(prompt=difficulties.HARD, group_size=8, learning_rate=0.5).mean(["prompt", "seed"])
    early, late = (
        f"{float(here.sel(rule=MAXRL)):.2f} (GRPO {float(here.sel(rule=GRPO)):.2f})"
        for here in (hard.isel(iteration=2), hard.mean("iteration"))
    )
    row.finds(
        f"It is surely behind by over {BEHIND} in {len(behind)} of {len(ahead)} comparisons, at best rates "
        f"by {most:.3f} at most: 1/p favours hard prompts while they are hard. At equal effective "
        f"rates (.5, groups of 8) prompts of at most a quarter stand at {early} after a tenth of training, "
        f"and at {late} on average over it."
    )


def keeping(data: xr.Dataset, claim: Claim) -> None:
    """The success rate of the prompt that wants another answer than the other three."""
    row = claim.ours(
        "Where prompts compete for one policy, MaxRL keeps the hard one; GRPO and r − r̄ give it up."
    )
    ends = data.isel(iteration=-1)
    last = ends.isel(prompt=-1)
    gap = worst(last.exact, expected=data.resting, tolerance=0.01)
    row.requires("exact ascent - 3w(1 − p) = w(p)", gap)
    keeps: dict[str, Any] = {"expected": KEPT, "relation": "at least"}
    loses: dict[str, Any] = {"expected": LOST, "relation": "at most"}
    for name in RULES:
        goal = keeps if name in OWN else loses
        row.refutes(f"{name}, exact", Number(float(last.exact.sel(rule=name)), **goal))
        row.refutes(f"{name}, sampled", mean(last.sampled.sel(rule=name), **goal))
    both = passes(ends.sampled)
    one, eight = (both.sel(rule=MAXRL) - both.sel(rule=GRPO)).mean("seed")
    row.finds(
        f"At the end the fourth prompt stands at {float(last.exact.sel(rule=MAXRL)):.2f} under MaxRL; "
        f"against GRPO the four together have {float(one):+.2f} of pass@1 and {float(eight):+.2f} of "
        f"pass@{K}."
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """What each rule weighs, and what becomes of hard prompts."""
    figure.set_size_inches(7, 3.0)
    left, right = plotting.panels(figure, 1, 2)
    weight = data["weights"].weight.sel(group_size=8)
    for name, color in zip(RULES, plotting.COLORS, strict=False):
        here = weight.sel(rule=name)
        left.plot(RATES, here / here.sel(rate=0.5, method="nearest"), color=color, label=name)
    plotting.theory(left, RATES, 0.5 / RATES, label="log p")
    left.legend()
    left.set(xlabel="success rate p", ylabel="weight, relative to p = ½", yscale="log")
    left.set_title("Groups of 8: who looks at hard prompts")
    course = data["competing"].sampled.isel(prompt=-1)
    course.attrs = {"long_name": "success rate of the one"}
    plotting.curves(right, course, over="seed", by="rule", colors=list(plotting.COLORS[: len(RULES)]))
    right.get_legend().remove()
    right.set_title("One prompt against three: who keeps it")
