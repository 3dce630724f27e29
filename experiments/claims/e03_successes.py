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
Ours: centring leaves out the last term of J_G (1e-10). Ours: at equal effective learning rates MaxRL brings
prompts of at most a quarter further than GRPO, by .02 on average over training, and they have at least a
tenth less signal to noise in one update than GRPO's hard prompts. Checks of our instrument: the library's
update against all groups of 4 in NumPy (1e-10); control: in pairs centred MaxRL is GRPO, run by run.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import difficulty
from experiments.harness.numbers import Number, each, hardest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import difficulties
from grpo_jax import plotting
from grpo_jax.exact import expected_gradient, gradient_law
from grpo_jax.methods import SHIFT, max_rl, max_rl_successes
from grpo_jax.parts.advantages import Normalized
from grpo_jax.tasks import SequenceTable

PRECISION = "float64"
SIZES = sizes(seeds=(24, 96, 512), iterations=(60, 120, 400))

PLAIN, GRPO, SUCCESSES, MAXRL = "r − r̄", "GRPO: (r − r̄)/σ", "MaxRL: r/r̄", "MaxRL centred: (r − r̄)/r̄"
RULES: dict[str, tuple[Any, difficulty.Rule]] = {
    PLAIN: (SHIFT, difficulty.centred),
    GRPO: (Normalized(), difficulty.divided),
    SUCCESSES: (max_rl_successes.advantage, difficulty.over_mean),
    MAXRL: (max_rl.advantage, partial(difficulty.over_mean, centre=True)),
}
OTHERS, OWN = (PLAIN, GRPO), (SUCCESSES, MAXRL)
GROUPS, PAIRS, K = [8, 16], 2, 8
RATES = np.linspace(0.05, 0.95, 91)
LEARNING = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
"""Effective, of one prompt."""
AHEAD, BEHIND, FURTHER, NOISIER = 0.01, 0.01, 0.02, 0.9


def identities() -> xr.DataArray:
    """Largest gap of the library's update to all groups of 4 in NumPy, and of MaxRL's to ∇J_N."""
    space = gj.Sequences(vocab=3, horizon=2, eos=2)
    rewards = np.array([[1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0, 0], [1.0] * 7])
    logits = np.random.default_rng(3).normal(size=(len(rewards), space.offsets[-1], space.vocab))
    found = np.zeros((2, 2, len(RULES)))
    for j, (name, (advantage, rule)) in enumerate(RULES.items()):
        for i, size in enumerate((4, 8)):
            config = gj.Config(
                policy=gj.TreePolicy(space=space, logits=logits), loop=gj.Loop(group_size=size),
                task=SequenceTable(space=space, table=rewards), expectation=gj.Exact(),
                method=difficulties.config(advantage, group_size=size).method,
            )  # fmt: skip
            moved = len(rewards) * np.asarray(expected_gradient(config, jnp.asarray(logits)))
            for row, right, update in zip(logits, rewards, moved, strict=True):
                if size == 4:
                    by_hand = difficulty.enumerated(space, row, right, rule, size)
                    found[0, i, j] = max(found[0, i, j], abs(update - by_hand).max())
                if name in OWN:
                    p, slope = difficulty.slope(space, row, right)
                    terms = size - (name == MAXRL)
                    told = sum((1 - p) ** (k - 1) for k in range(1, terms + 1)) * slope
                    found[1, i, j] = max(found[1, i, j], abs(update - told).max())
    return xr.DataArray(found, {"against": ["all groups", "∇J"], "group_size": [4, 8], "rule": list(RULES)})


def weights() -> xr.DataArray:
    """w by rule, group size and success rate."""
    sizes_ = [*GROUPS, 64, 1024]
    found = [[difficulty.weight_of(rule, RATES, g) for g in sizes_] for _, rule in RULES.values()]
    return xr.DataArray(found, {"rule": list(RULES), "group_size": sizes_, "rate": RATES})


def signal() -> xr.DataArray:
    """‖mean‖²/trace of the covariance of one update of one prompt, groups of 8, by rule and success rate."""
    found = []
    for advantage, _ in RULES.values():
        config = difficulties.config(advantage, group_size=8)
        row = []
        for logits in config.policy.logits:  # type: ignore[attr-defined]
            policy = gj.TreePolicy(space=difficulties.SPACE, logits=logits[None])
            task = SequenceTable(space=difficulties.SPACE, table=difficulties.RIGHT[None])
            alone = gj.Config(policy=policy, task=task, method=config.method, loop=config.loop)
            row.append(float(gradient_law(alone, jnp.asarray(logits[None])).signal_to_noise))
        found.append(row)
    return xr.DataArray(found, {"rule": list(RULES), "prompt": difficulties.PROMPTS.round(12)})


def trained(seed: int, size: Any, group_size: int, *, rules: Any = tuple(RULES)) -> xr.DataArray:
    """Success rates by rule, at equal effective learning rates: means of w over prompts at the start."""
    found = []
    for name in rules:
        advantage, rule = RULES[name]
        start = float(difficulty.weight_of(rule, difficulties.PROMPTS, group_size).mean())
        found.append(difficulties.trained(
            difficulties.config(advantage, group_size=group_size), {"reduction.length": [start]}, LEARNING,
            iterations=size.iterations, seeds=size.seeds, root=seed,
        ).isel({"reduction.length": 0}, drop=True))  # fmt: skip
    return xr.concat(found, xr.Variable("rule", list(rules)))


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Identities, weights, noise, and training."""
    found = [trained(seed, size, g) for g in GROUPS]
    return {
        "identities": xr.Dataset({"gap": identities()}),
        "weights": xr.Dataset({"weight": weights(), "signal": signal()}),
        "sampled": xr.concat(found, xr.Variable("group_size", GROUPS)).to_dataset(name="rate"),
        "pairs": trained(seed, size, PAIRS, rules=(GRPO, MAXRL)).to_dataset(name="rate"),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The estimator and its limit; against GRPO in training."""
    gap, weight = data["identities"].gap, data["weights"].weight
    claim.requires("library's update - all groups", worst(gap.sel(against="all groups"), tolerance=1e-10))
    own = gap.sel(against="∇J", drop=True)
    claim.refutes("expected update of r/r̄ - ∇J_G", worst(own.sel(rule=SUCCESSES), tolerance=1e-10))
    limit = weight.sel(rule=SUCCESSES, group_size=1024) * weight.rate
    claim.refutes("groups of 1024: weight / (1/p)", worst(limit, expected=1.0, tolerance=0.02))
    least = (weight.sel(rule=SUCCESSES) * weight.rate).isel(rate=0)
    claim.finds(
        "Likelihood's weight at a success rate of .05 is reached to "
        + ", ".join(f"{float(least.sel(group_size=g)):.0%} at G = {g}" for g in (8, 16, 64))
        + "."
    )
    dominance(data["sampled"].rate, claim.also(
        '(MaxRL, abstract.) "MaxRL Pareto-dominates existing methods in all models and tasks we tested", '
        "here on our own prompts."
    ))  # fmt: skip
    row = claim.ours("Centring, (r − r̄)/r̄, leaves out the last term: the update is ∇J_{G−1}.")
    row.refutes("expected update of (r − r̄)/r̄ - ∇J_{G−1}", worst(own.sel(rule=MAXRL), tolerance=1e-10))
    hard(data, claim.ours(
        "At equal effective learning rates MaxRL brings hard prompts further than GRPO, from noisier updates."
    ))  # fmt: skip


def passes(rate: xr.DataArray) -> xr.DataArray:
    """pass@1 and pass@8, means over prompts and training."""
    both = xr.concat([rate, 1 - (1 - rate) ** K], xr.Variable("measure", ["pass@1", f"pass@{K}"]))
    return both.mean(["prompt", "iteration"])


def best(course: xr.DataArray) -> xr.DataArray:
    """At the learning rate with the greatest mean over seeds, setting by setting."""
    place = course.mean("seed").argmax("learning_rate")
    return course.isel(learning_rate=place).drop_vars("learning_rate")


def dominance(rate: xr.DataArray, row: Claim) -> None:
    """Each form of MaxRL against each other method, at equal effective rates and at best rates."""
    course = passes(rate)
    ahead: dict[str, Number] = {}
    for mine in OWN:
        for other in OTHERS:
            told = f"{mine} less {other}"
            one, two = (course.sel(rule=name, drop=True) for name in (mine, other))
            numbers = {"equal rates": one - two, "best rates": best(one) - best(two)}
            for how, gap in numbers.items():
                found = each(gap, expected=-BEHIND, relation="at least")
                row.refutes(f"{told}, {how}: least", hardest(found))
                ahead |= {f"{told}, {how}, {name}": number for name, number in found.items()}
    top = max(ahead, key=lambda name: ahead[name].low or 0.0)
    lead = ahead[top]
    row.refutes("ahead somewhere", Number(lead.value, AHEAD, None, lead.low, lead.high, "at least", top))
    behind = [name for name, number in ahead.items() if number.holds is False]
    row.finds(f"It is surely behind in {len(behind)} of {len(ahead)} comparisons.")


def hard(data: dict[str, xr.Dataset], row: Claim) -> None:
    """Prompts of at most a quarter: how far they come, and from how noisy updates."""
    pairs = data["pairs"].rate
    row.requires(
        "control, pairs: MaxRL centred - GRPO",
        worst(pairs.sel(rule=MAXRL) - pairs.sel(rule=GRPO), tolerance=1e-9),
    )
    course = data["sampled"].rate.sel(prompt=difficulties.HARD).mean(["prompt", "iteration"])
    easy = data["sampled"].rate.sel(prompt=slice(0.74, None)).mean(["prompt", "iteration"])
    grpo = course.sel(rule=GRPO, drop=True)
    for mine in OWN:
        for g in GROUPS:
            gain = (course.sel(rule=mine, drop=True) - grpo).sel(group_size=g)
            told = f"{mine}, groups of {g}"
            found = each(gain, expected=FURTHER, relation="at least")
            row.refutes(f"{told}: hard prompts less GRPO's, equal rates", hardest(found))
            top = best(course.sel(rule=mine, group_size=g)) - best(grpo.sel(group_size=g))
            row.reports(f"{told}: hard prompts less GRPO's, each's best rate", mean(top))
            cost = (easy.sel(rule=mine) - easy.sel(rule=GRPO)).sel(group_size=g)
            row.reports(f"{told}: easy prompts less GRPO's", each(cost))
    noise = data["weights"].signal.sel(prompt=difficulties.HARD)
    for mine in OWN:
        share = (noise.sel(rule=mine) / noise.sel(rule=GRPO)).max()
        number = Number(float(share), NOISIER, relation="at most")
        row.refutes(f"{mine}: signal to noise of hard prompts / GRPO's, greatest", number)
    for name in RULES:
        here = data["weights"].signal.sel(rule=name)
        row.reports(f"{name}: signal to noise at .05, groups of 8", Number(float(here.isel(prompt=0))))
        row.reports(f"{name}: signal to noise at .95, groups of 8", Number(float(here.isel(prompt=-1))))


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
    course = data["sampled"].rate.sel(learning_rate=1.0, group_size=8)
    course = course.sel(prompt=difficulties.HARD).mean("prompt")
    course.attrs = {"long_name": "mean success rate, hard prompts"}
    plotting.curves(right, course, over="seed", by="rule", colors=list(plotting.COLORS[: len(RULES)]))
    right.set_title("… and who learns them")
