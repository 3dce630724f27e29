"""Non-uniform group weighting induces systematic gradient biases on shared prefix tokens.

[B] abstract (i) and Proposition 1, carried into training, where a tail behind a shared first token is pushed
although no reward looks at it: the reward reads the first token only. Under 1/len the expected gradient in
the tail behind first token a is (1 - 1/G) π(a) (r(a) - E r) ∇E[L0/len | a] with shift-only advantages;
σ-normalised, φ_G(p)/(p(1 - p)) stands for 1 - 1/G. Contrasts on the same seeds: 1/len less constant weights;
that, less the same for a placebo (rewards by the toss of a coin; 1/len moves lengths a little there, too);
that, less the same for a tail that cannot see the first token. What the methods of Table 1 do to lengths is
B7. That right answers get shorter and wrong ones longer, and what the mean length does, are rows of ours.

Refuted if one of the three contrasts moves neither way by 0.1 tokens, for right or wrong answers, some
optimizer, advantage and success rate. Our first row is refuted if it is not downwards for right answers or
not upwards for wrong ones, or if lengths move by 0.1 tokens under constant weights. Gradients equal their
formula, and a tail that cannot see the first token stays (0.1 tokens, shift-only): checks of the instrument.
"""

import itertools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas.compiled import light
from experiments.harness.numbers import Number, Relation, each, interval, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.lengths import (
    GROUP,
    LEARNING,
    LENGTHS,
    MEAN_LENGTH,
    RATES,
    RIGHT,
    SPACE,
    STEPS,
    WEIGHTED,
    lengths,
    logits,
    problem,
)
from experiments.problems.optimizers import OPTIMIZER, named
from grpo_jax import plotting
from grpo_jax.diagnostics import log_support
from grpo_jax.measures import StepView
from grpo_jax.tasks import Bernoulli, SequenceTable, trees
from grpo_jax.theory import preference_gap

PRECISION = "float64"
SIZES = sizes(seeds=(96, 256, 1024))

ADVANTAGES = {"shift": 0.0, "sigma": 1.0}
POWERS = {"constant": 0.0, "1/len": 1.0}
WEIGHTS = {"method.reduction.power": POWERS, "method.advantage.power": ADVANTAGES}
NAMES = {"method.reduction.power": "weight", "method.advantage.power": "advantage"}
SOUGHT: dict[str, Relation] = {"right": "at most", "wrong": "at least"}
MARGIN = 0.1
"""Tokens."""
RISES = (("exact", "AdamW", 0.1), ("sampled", "AdamW", 0.1), ("sampled", "SGD", 0.1))


@gj.measure("node", "token", per="step", about="gradient of J in the tail's logits")
def gradient(view: StepView) -> jax.Array:
    """[nodes, V(, R)] behind the first token."""
    return -view.grads[0, 1:]


def sampled(seed: int, seeds: int, *, placebo: bool = False, blind: bool = False) -> xr.DataArray:
    """Expected lengths of right and wrong answers every ten steps."""
    right = RIGHT.astype(float)[None]
    config = problem(WEIGHTED, blind=blind, task=SequenceTable(space=SPACE, table=right, noise=Bernoulli()))
    start = ("policy.logits", "task.table")
    rates = {p: (logits(p, blind=blind), np.full_like(right, p) if placebo else right) for p in RATES}
    data = gj.sweep(
        config, {start: rates, OPTIMIZER: LEARNING, **WEIGHTS}, seeds=seeds, iterations=STEPS,
        record_every=10, record=[], measure={"lengths": lengths}, root=seed,
    )  # fmt: skip
    return named(data, {start: "rate", OPTIMIZER: "optimizer", **NAMES}).lengths


def exact(task: SequenceTable) -> xr.Dataset:
    """Lengths on the path of the expected gradient, and that gradient."""
    data = gj.sweep(
        problem(WEIGHTED, task=task, expectation=gj.Exact(cells=2)),
        {"policy.logits": {p: logits(p) for p in RATES}, OPTIMIZER: LEARNING, **WEIGHTS},
        iterations=STEPS, record=[], measure={"lengths": lengths, "gradient": gradient},
    )  # fmt: skip
    data = named(data, {"policy.logits": "rate", OPTIMIZER: "optimizer", **NAMES})
    return data.isel(seed=0, inner_step=0, drop=True)


def formula() -> xr.DataArray:
    """The expected gradient in the tail at the start."""
    policy, prompts = problem(WEIGHTED).policy, jnp.arange(1)

    def inverse(params: jax.Array, inside: np.ndarray) -> jax.Array:
        chance = jnp.exp(log_support(policy, params, prompts))[0] * inside
        return jnp.sum(chance * MEAN_LENGTH / LENGTHS) / jnp.sum(chance)

    slope = light(jax.grad(inverse))
    sides = [np.asarray(slope(logits(0.5), inside))[0, 1:] for inside in (RIGHT, ~RIGHT)]
    push = xr.DataArray(np.stack(sides), dims=("side", "node", "token"))
    rate = xr.DataArray(list(RATES), {"rate": list(RATES)})
    chance = xr.concat([rate, 1 - rate], "side")
    reward = xr.DataArray([1.0, 0.0], dims="side")
    sigma = rate.copy(data=np.asarray(preference_gap(rate.values, group_size=GROUP)))
    factor = xr.concat([xr.full_like(rate, 1 - 1 / GROUP), sigma], xr.Variable("advantage", list(ADVANTAGES)))
    power = xr.DataArray(list(POWERS.values()), {"weight": list(POWERS)})
    return power * factor * (chance * (reward - rate) * push).sum("side")


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Lengths in training, sampled and exact, controls on half of the seeds; the gradient at the start."""
    path = exact(trees.first_token(SPACE))
    final = exact(trees.final_answer(SPACE)).lengths
    worlds = {
        "task": sampled(seed, size.seeds),
        "placebo": sampled(seed, size.seeds // 2, placebo=True),
        "tied tail": sampled(seed, size.seeds // 2, blind=True),
    }
    return {
        "sampled": xr.Dataset({"lengths": xr.concat(worlds.values(), xr.Variable("world", list(worlds)))}),
        "exact": xr.Dataset({
            "lengths": path.lengths.sel(advantage="shift"),
            "gradient": path.gradient.sel(iteration=1, optimizer="SGD"),
            "formula": formula(),
            "final": final.sel(weight="constant", advantage="shift", kind="all", rate=0.5, optimizer="SGD"),
        }),
    }  # fmt: skip


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The gradient, contrasts, controls, and the mean length's way."""
    found = data["exact"]
    claim.requires("tail gradient - formula", worst(found.gradient, expected=found.formula, tolerance=1e-12))
    drift = data["sampled"].lengths.isel(iteration=-1) - MEAN_LENGTH
    weight = drift.sel(weight="1/len") - drift.sel(weight="constant")
    bare = weight.sel(world="task", drop=True)
    contrasts = {
        "1/len - constant": bare,
        "the same, task - placebo": bare - weight.sel(world="placebo", drop=True),
        "the same, task - tied tail": bare - weight.sel(world="tied tail", drop=True),
    }
    row = claim.ours(
        "So under weights of 1/len right answers get shorter and wrong ones longer, and under constant "
        "weights neither moves."
    )
    for (name, samples), (kind, relation) in itertools.product(contrasts.items(), SOUGHT.items()):
        here = samples.sel(kind=kind, drop=True).dropna("seed")
        moved = each(here, expected=0.0, tolerance=MARGIN, relation="differs")
        claim.refutes(f"{kind}, {name}", moved)
        aim = -MARGIN if relation == "at most" else MARGIN
        row.refutes(f"{kind}, {name}", each(here, expected=aim, relation=relation))
    flat = drift.sel(weight="constant", world="task", drop=True)
    tied = weight.sel(world="tied tail", kind="right", drop=True).dropna(
        "seed"
    )  # the tail's length, whatever came first
    control = each(tied.sel(advantage="shift", drop=True), expected=0, tolerance=MARGIN)
    claim.requires("tied tail, shift: 1/len - constant", control)
    claim.reports("tied tail, sigma: 1/len - constant", each(tied.sel(advantage="sigma", drop=True)))
    for kind in SOUGHT:
        still = each(flat.sel(kind=kind, drop=True), expected=0, tolerance=MARGIN)
        row.refutes(f"{kind}, constant weights", still)
        placebo = weight.sel(world="placebo", kind=kind, drop=True).dropna("seed")
        claim.reports(f"{kind}, placebo: 1/len - constant", each(placebo))
    here = drift.sel(world="task", weight="1/len", advantage="shift", rate=0.5, optimizer="AdamW")
    right, wrong = (float(here.sel(kind=kind).mean()) for kind in SOUGHT)
    row.finds(
        f"Weights of 1/len alone move lengths that no reward looks at: in {STEPS} steps of AdamW from a "
        f"success rate of 0.5 right answers end {-right:.2f} tokens shorter and wrong ones {wrong:.2f} "
        f"longer; constant weights leave both within {MARGIN}.",
        when=row.numbers.values(),
    )
    judge_mean(data, claim)


def risen(path: xr.DataArray) -> Number:
    """The mean length where it is greatest: chosen on the even seeds, measured on the odd ones."""
    even = path.seed % 2 == 0
    top = int(path.where(even, drop=True).mean("seed").argmax("iteration"))
    return mean(path.where(~even, drop=True).isel(iteration=top))


def judge_mean(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The mean length of all answers: its direction depends on the success rate and on time."""
    row = claim.ours(
        "With AdamW under 1/len answers first get longer on average from a success rate of 0.1, as most of "
        "them are wrong, and shorter later; from 0.5 and 0.9 they never get longer."
    )
    exact = data["exact"].lengths.sel(weight="1/len", drop=True) - MEAN_LENGTH
    both = exact.sel(kind="all", drop=True)
    drift = data["sampled"].lengths.sel(world="task", weight="1/len", advantage="shift") - MEAN_LENGTH
    tops: dict[tuple[str, str, float], Number] = {}
    for optimizer, rate in itertools.product(both.optimizer.values, RATES):
        path = both.sel(optimizer=optimizer, rate=rate)
        runs = drift.sel(kind="all", optimizer=optimizer, rate=rate)
        relation: Relation = "at least" if rate < 0.5 else "at most"
        for kind, top, last in (
            ("exact", Number(float(path.max())), Number(float(path.isel(iteration=-1)))),
            ("sampled", risen(runs), mean(runs.isel(iteration=-1))),
        ):
            told = f"{optimizer}, from {rate:g}, {kind}"
            tops[kind, optimizer, rate] = top = replace(top, expected=MARGIN, relation=relation)
            judge = row.refutes if optimizer == "AdamW" else row.reports
            judge(f"{told}: greatest rise of the mean length", top)
            judge(
                f"{told}: mean length after {STEPS} steps",
                replace(last, expected=-MARGIN, relation="at most"),
            )
    apart = drift.isel(iteration=-1) - exact.isel(iteration=-1)
    for kind in SOUGHT:
        claim.reports(f"{kind}: sampled - exact", each(apart.sel(kind=kind, optimizer="SGD", drop=True)))
    final = float(data["exact"].final.isel(iteration=-1) - data["exact"].final.isel(iteration=0))
    claim.reports("final-answer task, constant weights, exact: mean length", Number(final))
    up, top, slow = (tops[at] for at in RISES)
    row.finds(
        f"From a success rate of 0.1 AdamW first lengthens answers on average, by {top.value:.2f} tokens "
        f"({up.value:.2f} on exact gradients), as most answers are wrong ones; later they get shorter.",
        when=(up, top),
    )
    row.finds(
        f"SGD does not: at most {slow.value:.2f} tokens.", when=slow.high is not None and slow.high < MARGIN
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """What the weight does to right and wrong answers, beside its controls."""
    figure.set_size_inches(7, 3.6)
    drift = data["sampled"].lengths.isel(iteration=-1).sel(advantage="shift", drop=True)
    weight = drift.sel(weight="1/len") - drift.sel(weight="constant")
    panels = plotting.panels(figure, 1, 2, sharex=True, sharey=True)
    for axes, optimizer in zip(panels, LEARNING, strict=True):
        rows: dict[Any, Any] = {}
        colors, texts = {}, {}
        for world, rate, kind in itertools.product(weight.world.values, RATES, SOUGHT):
            runs = weight.sel(world=world, rate=rate, kind=kind, optimizer=optimizer)
            here = interval(runs.dropna("seed"))
            rows[world, rate, kind] = here
            colors[world, rate, kind] = plotting.COLORS[kind == "wrong"]
            texts[world, rate, kind] = f"{world}, from {rate:g}" if kind == "right" else ""
        plotting.intervals(axes, rows, expected=0, margin=MARGIN, labels=texts, colors=colors)
        axes.set(xlabel="tokens, 1/len less constant weights", title=optimizer, xticks=[-1, -0.5, 0, 0.5, 1])
    for kind, color in zip(SOUGHT, plotting.COLORS, strict=False):
        panels[0].plot([], [], "o-", color=color, label=f"{kind} answers")
    panels[0].legend(loc="lower right")
    figure.suptitle("Under 1/len right answers get shorter and wrong ones longer")
