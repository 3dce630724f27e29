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

from dataclasses import replace
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
from experiments.problems.dead_groups import Tabulated
from grpo_jax import plotting
from grpo_jax.exact import expected_gradient, gradient_law
from grpo_jax.methods import SHIFT, max_rl, max_rl_successes
from grpo_jax.parts.advantages import Normalized
from grpo_jax.tasks import SequenceTable

PRECISION = "float64"
SIZES = sizes(seeds=(24, 96, 512), iterations=(60, 120, 400))

PLAIN, GRPO, SUCCESSES, MAXRL = "r − r̄", "GRPO: (r − r̄)/σ", "MaxRL: r/r̄", "MaxRL centred: (r − r̄)/r̄"
SWITCHES = ("advantage.centre", "advantage.spread", "advantage.level", "reduction.length")
NUMBERS = {
    PLAIN: (1.0, 0.0, 0.0), GRPO: (1.0, 1.0, 0.0), SUCCESSES: (0.0, 0.0, 1.0), MAXRL: (1.0, 0.0, 1.0),
}  # fmt: skip
RULES: dict[str, tuple[Any, difficulty.Rule]] = {
    PLAIN: (SHIFT, difficulty.centred),
    GRPO: (Normalized(), difficulty.divided),
    SUCCESSES: (max_rl_successes.advantage, difficulty.over_mean),
    MAXRL: (max_rl.advantage, partial(difficulty.over_mean, centre=True)),
}
OTHERS, OWN = (PLAIN, GRPO), (SUCCESSES, MAXRL)
GROUPS, PAIRS, K = [8, 16], 2, 8
SEEN = [0.05, 0.15, 0.25, 0.5, 0.95]
"""Success rates at which the noise of an update is taken."""
RATES = np.linspace(0.05, 0.95, 91)
LEARNING = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
"""Effective, of one prompt."""
AHEAD, BEHIND, KEPT, LOST = 0.01, 0.01, 0.15, 0.02
PASSES, OFF = 3, 0.05
"""Runs until effective rates are equal at every step, and how equal they have to be."""
START, WANT = np.array([0.3, 0.1, 0.6]), [0, 0, 0, 1]
"""Where the blind policy starts, and which answer each prompt wants."""


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
    for numbers in NUMBERS.values():
        centre, spread, level = numbers
        advantage = difficulties.Weighing(centre=centre, spread=spread, level=level)
        config = difficulties.config(advantage, group_size=8)
        task = SequenceTable(space=difficulties.SPACE, table=difficulties.RIGHT[None])
        row = []
        for logits in difficulties.logits(np.array(SEEN)):
            policy = gj.TreePolicy(space=difficulties.SPACE, logits=logits[None])
            alone = gj.Config(policy=policy, task=task, method=config.method, loop=config.loop)
            row.append(float(gradient_law(alone, jnp.asarray(logits[None])).signal_to_noise))
        found.append(row)
    return xr.DataArray(found, {"rule": list(RULES), "prompt": SEEN})


def switches(rates: np.ndarray, group_size: int) -> dict[str, tuple[float, ...]]:
    """Every rule as numbers, the last the mean of its w over prompts at the start."""
    means = {n: float(difficulty.weight_of(rule, rates, group_size).mean()) for n, (_, rule) in RULES.items()}
    return {name: (*numbers, means[name]) for name, numbers in NUMBERS.items()}


def trained(seed: int, size: Any, group_size: int) -> xr.DataArray:
    """Success rates by rule, at constant learning rates that are equal in effect at the start."""
    axes = {SWITCHES: switches(difficulties.PROMPTS, group_size)}
    given = difficulties.config(difficulties.Weighing(), group_size=group_size)
    found = difficulties.trained(
        given, axes, LEARNING, iterations=size.iterations, seeds=size.seeds, root=seed
    )
    return found.rename({"+".join(SWITCHES): "rule"}).drop_vars(SWITCHES, errors="ignore")


def matched(seed: int, size: Any, group_size: int) -> xr.Dataset:
    """Success rates by rule, and by how much effective learning rates, equal at every step, are off."""
    base = difficulties.config(difficulties.Weighing(), group_size=group_size)
    schedule: Any = Tabulated(rates=np.ones(size.iterations))
    given = replace(base, optimizer=gj.SGD(learning_rate=schedule))
    paths = (*SWITCHES[:3], "optimizer.learning_rate.rates")
    grid = np.linspace(0, 1, 2001)[1:-1]
    known = {name: difficulty.weight_of(rule, grid, group_size) for name, (_, rule) in RULES.items()}
    settings = {f"{name}, {rate:g}": (name, rate) for name in RULES for rate in LEARNING}
    start = {name: float(difficulty.weight_of(rule, difficulties.PROMPTS, group_size).mean())
             for name, (_, rule) in RULES.items()}  # fmt: skip
    factors = {key: np.full(size.iterations, 1 / start[name]) for key, (name, _) in settings.items()}
    for _ in range(PASSES):
        rates = {key: len(difficulties.PROMPTS) * rate * factors[key] for key, (_, rate) in settings.items()}
        axis = {key: (*NUMBERS[name], rates[key]) for key, (name, _) in settings.items()}
        data = gj.sweep(
            given, {paths: axis}, seeds=size.seeds, root=seed, iterations=size.iterations, record_every=1,
            record=["prompt_reward"], record_start=True, progress=False,
        ).prompt_reward  # fmt: skip
        rows = data.rename({"+".join(paths): "setting", "context": "prompt"})
        rows = rows.drop_vars([name for name in rows.coords if name not in rows.dims])
        off = []
        for key, (name, _) in settings.items():
            seen = rows.sel(setting=key).isel(iteration=slice(-1))
            weight = xr.apply_ufunc(np.interp, seen, grid, known[name], input_core_dims=[[], ["n"], ["n"]])
            mean_weight = weight.mean(["seed", "prompt"])
            off.append(mean_weight * factors[key] - 1)
            factors[key] = 1 / mean_weight.values
    seldom = rows.isel(iteration=slice(None, None, max(size.iterations // 20, 1)))
    off = xr.concat(off, xr.Variable("setting", list(settings)))
    found = xr.Dataset({"rate": seldom, "off": abs(off).max("iteration")})
    found = found.assign_coords(prompt=difficulties.PROMPTS.round(12))
    return xr.concat(
        [
            xr.concat(
                [found.sel(setting=f"{name}, {rate:g}", drop=True) for rate in LEARNING],
                xr.Variable("learning_rate", LEARNING),
            )
            for name in RULES
        ],
        xr.Variable("rule", list(RULES)),
    )


def competing(seed: int, size: Any, *, exact: bool) -> xr.DataArray:
    """Success rates of four prompts that share one distribution over three answers, groups of 8."""
    base = difficulties.config(difficulties.Weighing(), group_size=8, exact=exact)
    inner = gj.ActionPolicy.from_probabilities(START)
    given = gj.Config(
        policy=difficulties.Blind(inner=inner, contexts=len(WANT)), method=base.method, loop=base.loop,
        task=gj.Questions(table=np.eye(3)[WANT]), optimizer=gj.SGD(learning_rate=1.0),
        expectation=base.expectation,
    )  # fmt: skip
    iterations = 4 * size.iterations
    data = gj.sweep(
        given, {SWITCHES: switches(START[WANT], 8)}, seeds=1 if exact else size.seeds, root=seed,
        iterations=iterations, record_every=iterations // 20, record=["prompt_reward"], record_start=True,
        progress=False,
    ).prompt_reward  # fmt: skip
    return data.rename({"+".join(SWITCHES): "rule", "context": "prompt"}).drop_vars(SWITCHES, errors="ignore")


def share(rule: difficulty.Rule) -> float:
    """p < 1/2 at which 3w(1 − p) = w(p) in groups of 8; 0 where there is none."""
    grid = np.linspace(1e-6, 0.5 - 1e-6, 20_001)
    gap = difficulty.weight_of(rule, grid, 8) - 3 * difficulty.weight_of(rule, 1 - grid, 8)
    return float(grid[np.argmax(gap < 0)]) if gap[0] > 0 else 0.0


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Identities, weights, noise, and training."""
    found = [trained(seed, size, g) for g in (PAIRS, *GROUPS)]
    sampled = xr.concat(found, xr.Variable("group_size", [PAIRS, *GROUPS]))
    equal = xr.concat([matched(seed, size, g) for g in GROUPS], xr.Variable("group_size", GROUPS))
    predicted = xr.DataArray([share(rule) for _, rule in RULES.values()], {"rule": list(RULES)})
    exact = competing(seed, size, exact=True).isel(seed=0, drop=True)
    return {
        "identities": xr.Dataset({"gap": identities()}),
        "weights": xr.Dataset({"weight": weights(), "signal": signal()}),
        "sampled": sampled.to_dataset(name="rate"),
        "matched": equal,
        "competing": xr.Dataset({"exact": exact, "sampled": competing(seed, size, exact=False)}),
        "predicted": xr.Dataset({"share": predicted}),
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
    noise = data["weights"].signal
    claim.finds(
        "Signal to noise of one update, groups of 8, at .05 and at .95: "
        + "; ".join(
            f"{name} {float(noise.sel(rule=name).isel(prompt=0)):.2f} and "
            f"{float(noise.sel(rule=name).isel(prompt=-1)):.2f}"
            for name in RULES
        )
        + "."
    )
    dominance(data["sampled"].rate, data["matched"], claim.ours(
        "What the abstract reports of all models and tasks tested there, that MaxRL Pareto-dominates "
        "existing methods, holds on our prompts, too."
    ))  # fmt: skip
    row = claim.ours("Centring, (r − r̄)/r̄, leaves out the last term: the update is ∇J_{G−1}.")
    row.refutes("expected update of (r − r̄)/r̄ - ∇J_{G−1}", worst(own.sel(rule=MAXRL), tolerance=1e-10))
    keeping(data, claim.ours(
        "Where prompts compete for one policy, MaxRL keeps the hard one; GRPO and r − r̄ give it up."
    ))  # fmt: skip


def passes(rate: xr.DataArray) -> xr.DataArray:
    """pass@1 and pass@8, means over prompts and training."""
    both = xr.concat([rate, 1 - (1 - rate) ** K], xr.Variable("measure", ["pass@1", f"pass@{K}"]))
    return both.mean(["prompt", "iteration"])


def best(course: xr.DataArray) -> xr.DataArray:
    """At the learning rate with the greatest mean over seeds, setting by setting."""
    place = course.mean("seed").argmax("learning_rate")
    return course.isel(learning_rate=place).drop_vars("learning_rate")


def dominance(rate: xr.DataArray, equal: xr.Dataset, row: Claim) -> None:
    """Each form of MaxRL against each other method, at equal effective rates and at best constant ones."""
    pairs = rate.sel(group_size=PAIRS)
    same = worst(pairs.sel(rule=MAXRL, drop=True) - pairs.sel(rule=GRPO, drop=True), tolerance=1e-9)
    row.requires("control, pairs: MaxRL centred - GRPO", same)
    row.requires("effective rate at every step, off by", worst(equal.off, tolerance=OFF))
    course, level = passes(rate.sel(group_size=GROUPS)), passes(equal.rate)
    ahead: dict[str, Number] = {}
    for mine in OWN:
        for other in OTHERS:
            told = f"{mine} less {other}"
            one, two = (course.sel(rule=name, drop=True) for name in (mine, other))
            even = level.sel(rule=mine, drop=True) - level.sel(rule=other, drop=True)
            numbers = {"equal rates": even, "best rates": best(one) - best(two)}
            for how, gap in numbers.items():
                found = each(gap, expected=-BEHIND, relation="at least")
                row.refutes(f"{told}, {how}: least", hardest(found))
                ahead |= {f"{told}, {how}, {name}": number for name, number in found.items()}
    top = max(ahead, key=lambda name: ahead[name].low or 0.0)
    lead = ahead[top]
    row.refutes("ahead somewhere", Number(lead.value, AHEAD, None, lead.low, lead.high, "at least", top))
    behind = [name for name, number in ahead.items() if number.holds is False]
    hard = equal.rate.sel(prompt=difficulties.HARD, group_size=8).mean(["prompt", "seed"])
    hard = hard.sel(learning_rate=0.5)
    first, course_mean = hard.isel(iteration=2), hard.mean("iteration")
    worst_best = -min(number.value for name, number in ahead.items() if "best rates" in name)
    early, late = (
        " (GRPO ".join(f"{float(here.sel(rule=name)):.2f}" for name in (MAXRL, GRPO)) + ")"
        for here in (first, course_mean)
    )
    row.finds(
        f"It is surely behind by over {BEHIND} in {len(behind)} of {len(ahead)} comparisons, at best rates "
        f"by {worst_best:.3f} at most: 1/p favours hard prompts while they are hard. At equal effective "
        "rates (.5, groups of 8) prompts of at most a quarter stand at "
        f"{early} after a tenth of training, and at {late} on average over it."
    )


def keeping(data: dict[str, xr.Dataset], row: Claim) -> None:
    """The success rate of the prompt that wants another answer than the other three."""
    ends = data["competing"].isel(iteration=-1)
    last = ends.isel(prompt=-1)
    predicted = data["predicted"].share
    row.requires("exact ascent - 3w(1 − p) = w(p)", worst(last.exact, expected=predicted, tolerance=0.01))
    for name in RULES:
        kept = name in OWN
        goal: dict[str, Any] = {
            "relation": "at least" if kept else "at most",
            "expected": KEPT if kept else LOST,
        }
        row.refutes(f"{name}, exact", Number(float(last.exact.sel(rule=name)), **goal))
        row.refutes(f"{name}, sampled", mean(last.sampled.sel(rule=name), **goal))
        row.reports(f"{name}, sampled: pass@1, all four", mean(ends.sampled.sel(rule=name).mean("prompt")))
        many = (1 - (1 - ends.sampled.sel(rule=name)) ** K).mean("prompt")
        row.reports(f"{name}, sampled: pass@{K}, all four", mean(many))
    both = xr.concat([ends.sampled, 1 - (1 - ends.sampled) ** K], xr.Variable("measure", [1, K]))
    gain = (both.sel(rule=MAXRL) - both.sel(rule=GRPO)).mean(["seed", "prompt"])
    row.finds(
        f"At the end the fourth prompt stands at {float(last.exact.sel(rule=MAXRL)):.2f} under MaxRL; "
        f"against GRPO the four together have {float(gain.sel(measure=1)):+.2f} of pass@1 and "
        f"{float(gain.sel(measure=K)):+.2f} of pass@{K}."
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
