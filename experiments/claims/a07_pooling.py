"""GRPO's aggregation of preferences differs fundamentally from logarithmic pooling, which RLHF implements:
π = π_ref/(1 − P_G(o | π)/β) up to the mean of P_G, in the place of π ∝ π_ref e^(r/β).

[A] abstract, (4) and (11). NLHF's π ∝ π_ref e^(E P(o ≻ o')/β) pools logarithmically, too. One question with
three answers; one loop trains all four objectives: Dr. GRPO is GRPO without the spread, NLHF is pairs with
the direct penalty 2β, RLHF the same without the spread and with β/2.

Refuted if GRPO's exact ascent ends 1e-6 from the solution of (11), if its sampled runs, extrapolated to
learning rate zero, are not within 0.01 of it, or if some pooling could be GRPO's: its shape is 1/(1 − x) (to
1e-6, and 0.05 apart from e^x), and the log odds that the best answer gains on the worst feel π_ref (by 0.1 or
more), which no pooling's do. That the other three end where their own theory says, and that RLHF's log odds
do not feel π_ref, are checks of the instrument. Which objectives feel the size of the rewards is ours, a row
of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, extrapolated, furthest, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import logits, method, question
from experiments.problems.policies import averaged, force, settled
from grpo_jax import plotting, theory
from grpo_jax.parts.advantages import Normalized

PRECISION = "float64"
SIZES = sizes(seeds=(48, 48, 128), iterations=(4000, 4000, 10000))

OBJECTIVES = {"GRPO": (False, 1.0), "NLHF": (True, 1.0), "Dr. GRPO": (False, 0.0), "RLHF": (True, 0.0)}
"""Whether pairs with the direct penalty train it, and the power of the spread that divides advantages."""
GROUP = 8
REWARDS = np.array([1.0, 0.5, 0.0])
DRAWN, BETA = "drawn", 1.0
"""The reference and the penalty that are drawn and sampled."""
REFERENCES = {
    DRAWN: [0.15, 0.35, 0.5], "best first": [0.6, 0.3, 0.1], "worst first": [0.1, 0.1, 0.8],
    "even": [1 / 3, 1 / 3, 1 / 3],
}  # fmt: skip
BETAS = [1.0, 2.0, 4.0]
SCALED = {"x 1/4": REWARDS / 4, "x 1": REWARDS, "x 4": REWARDS * 4}
MIDDLES = {"middle 0.1": np.array([1.0, 0.1, 0.0]), "middle 0.9": np.array([1.0, 0.9, 0.0])}
TABLES = SCALED | MIDDLES
SHOWN = ["x 1", "x 4"]
STARTS = {"near the best": [0.8, 0.1, 0.1], "near the worst": [0.1, 0.1, 0.8]}
RATES = [0.02, 0.04, 0.08]
SIDE = 10
"""Arrows along a side of the triangle."""
ORDER = [1, 2, 0]
"""The triangle's corners: the middle answer lower left, the worst lower right, the best on top."""
MARGIN = 0.01


def setting(objective: str, **changes: Any) -> gj.Config:
    """One training configuration for the two objectives of a kind, told apart by the power of the spread."""
    direct, power = OBJECTIVES[objective]
    made = dataclasses.replace(method(direct=direct), advantage=Normalized(power=jnp.asarray(power)))
    base: dict[str, Any] = {
        "reference": REFERENCES[DRAWN],
        "method": made,
        "group_size": 2 if direct else GROUP,
    }
    return question(REWARDS, **(base | changes))


def felt(objective: str, beta: float) -> float:
    """The penalty's coefficient that gives the objective its β."""
    direct, power = OBJECTIVES[objective]
    return beta * (2.0 if power else 0.5) if direct else beta


@jax.jit
def _nlhf(reference: jax.Array, table: theory.Rewards, beta: jax.Array) -> jax.Array:
    return theory.nlhf(reference, theory.pairwise_payoffs(table), beta).policy


@jax.jit
def _group(reference: jax.Array, table: theory.Rewards, beta: jax.Array, power: jax.Array) -> jax.Array:
    convention = theory.Convention(power=power)
    return theory.stationary(reference, table, beta, group_size=GROUP, convention=convention).policy


def predicted(objective: str, reference: Any, rewards: Any, beta: float) -> np.ndarray:
    """[K] the policy that the objective's theory names."""
    table, anchor = theory.reward_table(rewards), np.asarray(reference, float)
    if objective == "RLHF":
        return np.asarray(theory.rlhf(anchor, rewards, beta))
    if objective == "NLHF":
        return np.asarray(_nlhf(anchor, table, beta))
    return np.asarray(_group(anchor, table, beta, OBJECTIVES[objective][1]))


def aims(objective: str, references: Any, betas: list[float], tables: Any) -> xr.DataArray:
    """The theory's policies [reference, beta, table, output]."""
    found = [
        [[predicted(objective, REFERENCES[r], TABLES[t], b) for t in tables] for b in betas]
        for r in references
    ]
    coords = {"reference": list(references), "beta": betas, "table": list(tables), "output": range(3)}
    return xr.DataArray(np.asarray(found), coords)


def tables(names: Any) -> dict[str, np.ndarray]:
    """Reward tables as an axis of a sweep."""
    return {name: TABLES[name][None] for name in names}


def trained(objective: str) -> xr.DataArray:
    """Policies where exact ascent ends."""
    direct, power = OBJECTIVES[objective]
    drive = 1.0 if power else 4.0
    rates = {b: 3 / (drive + (2.0 if direct and power else 1.0) * b) for b in BETAS}
    rates = {b: rate * (2.0 if direct and not power else 1.0) for b, rate in rates.items()}
    axes = {
        "reference": {name: logits(policy) for name, policy in REFERENCES.items()},
        ("kl_coef", "learning_rate"): {b: (felt(objective, b), rates[b]) for b in BETAS},
        "task.table": tables(TABLES),
        "policy.logits": {name: logits(policy) for name, policy in STARTS.items()},
    }
    found = settled(setting(objective), axes, iterations=4000 if direct else 1500)
    found = found.drop_vars(["kl_coef", "learning_rate"])
    return found.rename({"kl_coef+learning_rate": "beta", "task.table": "table", "policy.logits": "start"})


def sampled(objective: str, seed: int, size: Any) -> xr.DataArray:
    """Time averages at the drawn setting, from where the theory says that training ends."""
    starts = {name: predicted(objective, REFERENCES[DRAWN], TABLES[name], BETA) for name in SHOWN}
    axes = {
        "learning_rate": RATES,
        "kl_coef": [felt(objective, BETA)],
        ("task.table", "policy.logits"): {
            name: (table, logits(starts[name])) for name, table in tables(SHOWN).items()
        },
    }
    found = averaged(setting(objective), axes, size, seed).drop_vars(["task.table", "policy.logits"])
    return found.rename({"task.table+policy.logits": "table"}).isel(kl_coef=0, drop=True)


def lattice() -> np.ndarray:
    """[n, 3] policies inside the triangle, where its arrows are drawn."""
    counts = [(i, j, SIDE - 1 - i - j) for i in range(SIDE) for j in range(SIDE - i)]
    return (np.array(counts) + 1 / 3) / SIDE


def flow(objective: str, policies: np.ndarray) -> xr.DataArray:
    """Change of the probabilities [policy, table, output] under ascent on the expected gradient in logits."""
    places = {place: logits(policy) for place, policy in enumerate(policies)}
    axes = {"policy.logits": places, "task.table": tables(SHOWN), "kl_coef": [felt(objective, BETA)]}
    found = force(setting(objective), axes).isel(kl_coef=0, drop=True)
    found = found.rename({"policy.logits": "policy", "task.table": "table"})
    here = xr.DataArray(policies, dims=("policy", "output"))
    return here * (found - (here * found).sum("output"))


def simulate(seed: int, size: Any) -> xr.Dataset:
    """Exact ascent, flows and sampled time averages of the four objectives."""
    objectives, points = xr.Variable("objective", list(OBJECTIVES)), lattice()
    return xr.Dataset({
        "trained": xr.concat([trained(name) for name in OBJECTIVES], objectives),
        "average": xr.concat([sampled(name, seed, size) for name in OBJECTIVES], objectives).rename(
            table="shown"
        ),
        "flow": xr.concat([flow(name, points) for name in OBJECTIVES], objectives).rename(table="shown"),
        "policies": (("policy", "output"), points),
    })  # fmt: skip


def check(data: xr.Dataset, claim: Claim) -> None:
    """Predictions; the shape 1/(1 - x); whether any pooling could be it; the reward's size."""
    for objective in OBJECTIVES:
        judge = claim.refutes if objective == "GRPO" else claim.requires
        ended = data.trained.sel(objective=objective, drop=True)
        aim = aims(objective, REFERENCES, BETAS, TABLES)
        judge(f"{objective}: exact ascent - theory", worst(ended, expected=aim, tolerance=1e-6))
        values, slope = extrapolated(data.average.sel(objective=objective, drop=True))
        drawn = aim.sel(reference=DRAWN, beta=BETA, table=SHOWN, drop=True).rename(table="shown")
        gap = furthest(values, drawn, tolerance=MARGIN)
        judge(f"{objective}: sampled, extrapolated - theory", gap)
        claim.reports(f"{objective}: steepest slope in the learning rate", worst(slope.mean("seed")))
    ended = data.trained.isel(start=0)
    spreads = {name: _odds_spread(ended.sel(objective=name, table="x 1", drop=True)) for name in OBJECTIVES}
    told = "log odds that the best gains on the worst, spread over π_ref"
    grpo, pooled = Number(spreads["GRPO"], 0.1, relation="at least"), Number(spreads["RLHF"], 0.0, 1e-6)
    claim.refutes(f"GRPO: {told}", grpo)
    claim.requires(f"RLHF: {told}", pooled)
    for name in ("NLHF", "Dr. GRPO"):
        claim.reports(f"{name}: {told}", Number(spreads[name]))
    judge_shape(ended.sel(objective="GRPO", table="x 1", drop=True), claim)
    claim.finds(
        "GRPO is no logarithmic pooling: how far training moves the odds of two answers depends on where the "
        f"reference puts them (by up to {grpo.value:.2f} in log odds here), which RLHF's odds never do.",
        when=[grpo, pooled],
    )
    judge_size(ended, claim)


def _odds_spread(policy: xr.DataArray) -> float:
    """Log odds of the best against the worst, less the reference's: greatest range over references."""
    anchor = xr.DataArray(list(REFERENCES.values()), {"reference": list(REFERENCES), "output": range(3)})
    odds: Any = np.log(policy / anchor)
    gained = odds.sel(output=0) - odds.sel(output=2)
    return float((gained.max("reference") - gained.min("reference")).max())


def judge_shape(policies: xr.DataArray, claim: Claim) -> None:
    """Each answer's share of its reference against its own preference, and the nearest RLHF."""
    table, gaps, tilts, nearest = theory.reward_table(REWARDS), [], [], []
    for name, reference in REFERENCES.items():
        anchor = np.array(reference)
        pools = np.asarray(theory.rlhf(anchor, REWARDS, np.logspace(-2, 2, 4001)))
        for beta in BETAS:
            policy = policies.sel(reference=name, beta=beta).values
            x = np.asarray(theory.group_preference(policy, table, group_size=GROUP)) / beta
            tilted = anchor * np.exp(x)
            gaps.append(policy / anchor - 1 / (1 - x))
            tilts.append(abs(policy - tilted / tilted.sum()).max())
            nearest.append(abs(pools - policy).max(-1).min())
    claim.refutes("GRPO: π/π_ref - 1/(1 - P/β)", worst(gaps, tolerance=1e-6))
    far = Number(max(tilts), expected=0.05, relation="at least")
    claim.refutes("GRPO: greatest distance from π_ref e^(P/β)/Z", far)
    claim.reports("GRPO: greatest distance from RLHF at whatever β is nearest", Number(max(nearest)))


def judge_size(ended: xr.DataArray, claim: Claim) -> None:
    """How far policies move with the scale of the rewards, and with where a middle reward lies."""
    row = claim.ours(
        "GRPO and NLHF do not feel the scale of the rewards, Dr. GRPO and RLHF do; where a middle reward "
        "lies counts for GRPO, too, but not for pairs with signs, which is NLHF."
    )
    kinds = (("scale", "rewards x 1/4 to x 4", SCALED, ("GRPO", "NLHF")),
             ("middle", "middle reward 0.1 to 0.9", MIDDLES, ("NLHF",)))  # fmt: skip
    moved = {}
    for kind, words, names, still in kinds:
        for objective in OBJECTIVES:
            here = ended.sel(objective=objective, table=list(names), drop=True)
            found = float((here.max("table") - here.min("table")).max())
            quiet = Number(found, 0.0, 1e-6)
            number = quiet if objective in still else Number(found, 0.1, relation="at least")
            moved[kind, objective] = number
            row.refutes(f"{objective}: {words}, π moves by", number)
    row.finds(
        "Rewards four times as large leave GRPO's policy where it is and move RLHF's by up to "
        f"{moved['scale', 'RLHF'].value:.2f}; moving a middle reward from 0.1 to 0.9 moves GRPO's by up to "
        f"{moved['middle', 'GRPO'].value:.2f}.",
        when=moved.values(),
    )


def draw(figure: Any, data: xr.Dataset) -> None:
    """Four objectives by two sizes of the same rewards: flows, fixed points, and their paths over β."""
    figure.set_size_inches(7.0, 4.0)
    panels = iter(plotting.panels(figure, len(SHOWN), len(OBJECTIVES)))
    reference = REFERENCES[DRAWN]
    for shown in SHOWN:
        for objective in OBJECTIVES:
            axes = next(panels)
            path = [predicted(objective, reference, TABLES[shown], b) for b in np.logspace(2, -2, 50)]
            ended = data.trained.sel(objective=objective, reference=DRAWN, beta=BETA, table=shown)
            marks = {"π_ref": np.array(reference)[ORDER], "trained": ended.isel(start=0, output=ORDER).values}
            plotting.simplex(
                axes,
                _arrows(data.policies, data.flow.sel(objective=objective, shown=shown)),
                paths=[np.array(path)[:, ORDER]],
                points=marks if objective == "GRPO" else marks.values(),
                corners=[f"r = {reward:g}" for reward in TABLES[shown][ORDER]],
                density=SIDE,
            )
            if shown == SHOWN[0]:
                axes.set_title(objective, pad=10)
    figure.suptitle("Rewards four times as large (below) move Dr. GRPO and RLHF, not GRPO and NLHF")
    figure.supxlabel(
        f"arrows and dots: training at β = {BETA:g}; line: fixed points, β from ∞ to 0", fontsize=7.5
    )


def _arrows(policies: xr.DataArray, flow: xr.DataArray) -> Callable[[np.ndarray], np.ndarray]:
    """The flow at the policy nearest to each that is asked for, with the corners in the drawing's order."""
    known, change = (
        array.isel(output=ORDER).transpose("policy", "output").values for array in (policies, flow)
    )

    def nearest(at: np.ndarray) -> np.ndarray:
        return change[((at[:, None] - known) ** 2).sum(-1).argmin(1)]

    return nearest
