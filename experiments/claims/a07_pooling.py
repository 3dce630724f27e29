"""GRPO's aggregation of preferences differs fundamentally from logarithmic pooling, which RLHF implements:
π = π_ref/(1 − P_G(o | π)/β) in the place of π ∝ π_ref e^(r/β).

[A] (arXiv:2502.18548v3), abstract, (4) and (11). The mean of P_G is left out: it is 0 when answers are drawn
from π itself. One question with three answers; one loop trains all four objectives: Dr. GRPO is GRPO
without the spread, NLHF is pairs with the direct penalty 2β, RLHF the same without the spread and with β/2.
NLHF pools logarithmically, too, but preferences that move with π: π ∝ π_ref e^(E P(o ≻ o')/β).

Refuted if GRPO's exact ascent ends 1e-6 from the solution of (11), if its sampled runs, extrapolated to
learning rate zero, are not within 0.01 of it (they start in another corner), or if some pooling could be
GRPO's: its shape is 1/(1 − x) (to 1e-6); for every β there is a π_ref at which it is 0.01 or more from RLHF's
policy at whatever penalty is nearest, and as far from log pooling of its own P_G; and the log odds that the
best answer gains on the worst feel π_ref (by 0.1 or more), which no pooling of fixed scores does. That the
other three end where their own theory says, that log(π/π_ref) − E P/β is one constant over NLHF's answers (to
1e-6), and that RLHF's log odds do not feel π_ref, are checks of the instrument. Which objectives feel the
size of the rewards is ours, a row of its own.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, extrapolated, furthest, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import averaged, logits, method, question, settled
from grpo_jax import plotting, theory
from grpo_jax.parts.advantages import Normalized
from grpo_jax.plotting.triangle import CORNERS

PRECISION = "float64"
SIZES = sizes(seeds=(48, 48, 128), iterations=(4000, 4000, 10000))

OBJECTIVES = {"GRPO": (False, 1.0), "NLHF": (True, 1.0), "Dr. GRPO": (False, 0.0), "RLHF": (True, 0.0)}
"""Whether pairs with the direct penalty train it, and the power of the spread that divides advantages."""
GROUP = 8
REWARDS = np.array([1.0, 0.5, 0.0])
DRAWN, BETA = "worst likely", 1.0
"""The reference and the penalty that are sampled."""
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
"""Of sampled runs; RLHF's forces are half as large, and its rates twice."""
FAR = 0.01
"""Less from a pooling is no difference."""
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
    """Time averages at one setting, by the place of the learning rate, of runs that start near the worst."""
    twice = 2 if objective == "RLHF" else 1
    axes = {
        "learning_rate": [twice * rate for rate in RATES],
        "kl_coef": [felt(objective, BETA)],
        "task.table": tables(SHOWN),
    }
    found = averaged(setting(objective, start=STARTS["near the worst"]), axes, size, seed)
    found = found.rename({"task.table": "table"}).isel(kl_coef=0, drop=True)
    return found.assign_coords(learning_rate=RATES)


def simulate(seed: int, size: Any) -> xr.Dataset:
    """Exact ascent and sampled time averages of the four objectives."""
    objectives = xr.Variable("objective", list(OBJECTIVES))
    return xr.Dataset({
        "trained": xr.concat([trained(name) for name in OBJECTIVES], objectives),
        "average": xr.concat([sampled(name, seed, size) for name in OBJECTIVES], objectives).rename(
            table="shown"
        ),
    })  # fmt: skip


def check(data: xr.Dataset, claim: Claim) -> None:
    """Predictions; the shape 1/(1 - x); the nearest pooling; the reward's size."""
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
    grpo, fixed = Number(spreads["GRPO"], 0.1, relation="at least"), Number(spreads["RLHF"], 0.0, 1e-6)
    claim.refutes(f"no pooling of fixed scores: GRPO, {told}", grpo)
    claim.requires(f"RLHF: {told}", fixed)
    for name in ("NLHF", "Dr. GRPO"):
        claim.reports(f"{name}: {told}", Number(spreads[name]))
    claim.requires(
        "NLHF: log(π/π_ref) - E P/β, spread over answers",
        pooled_preferences(ended.sel(objective="NLHF", table="x 1", drop=True)),
    )
    judge_shape(ended.sel(objective="GRPO", table="x 1", drop=True), claim)
    for beta, number in nearest(ended.sel(objective="NLHF", table="x 1", drop=True)).items():
        claim.reports(f"NLHF, β = {beta:g}: distance from the nearest RLHF", number)
    claim.finds(
        "How far GRPO moves the odds of two answers depends on where the reference puts them (by up to "
        f"{grpo.value:.2f} in log odds here), which RLHF's odds never do.",
        when=[grpo, fixed],
    )
    judge_size(ended, claim)


def _odds_spread(policy: xr.DataArray) -> float:
    """Log odds of the best against the worst, less the reference's: greatest range over references."""
    anchor = xr.DataArray(list(REFERENCES.values()), {"reference": list(REFERENCES), "output": range(3)})
    odds: Any = np.log(policy / anchor)
    gained = odds.sel(output=0) - odds.sel(output=2)
    return float((gained.max("reference") - gained.min("reference")).max())


def anchors() -> xr.DataArray:
    """Reference policies [reference, output]."""
    return xr.DataArray(list(REFERENCES.values()), {"reference": list(REFERENCES), "output": range(3)})


def pooled_preferences(policies: xr.DataArray) -> Number:
    """Whether policies [reference, beta, output] pool P(o ≻ o'), a tie counting half, logarithmically."""
    wins = np.sign(REWARDS[:, None] - REWARDS[None, :]) / 2 + 0.5
    chance = xr.DataArray(wins, dims=("output", "other")).dot(policies.rename(output="other"))
    rest: Any = np.log(policies / anchors()) - chance / policies.beta
    return worst(rest.max("output") - rest.min("output"), tolerance=1e-6)


def nearest(policies: xr.DataArray) -> dict[float, Number]:
    """For each β the distance of policies [reference, beta, output] from RLHF's at whatever penalty is
    nearest, at the reference where it is greatest."""
    penalties = np.logspace(-2, 2, 4001)
    pools = xr.DataArray(
        np.stack([np.asarray(theory.rlhf(np.array(r), REWARDS, penalties)) for r in REFERENCES.values()]),
        {"reference": list(REFERENCES), "penalty": penalties, "output": range(3)},
    )
    return greatest(abs(policies - pools).max("output").min("penalty"))


def greatest(distances: xr.DataArray) -> dict[float, Number]:
    """For each β the greatest of distances [reference, beta], and at which reference."""
    found = {}
    for beta in distances.beta.values:
        here = distances.sel(beta=beta)
        at = f"π_ref {here.idxmax('reference').item()}"
        found[float(beta)] = Number(float(here.max()), FAR, relation="at least", at=at)
    return found


def judge_shape(policies: xr.DataArray, claim: Claim) -> None:
    """Each answer's share of its reference against its own preference, and the nearest poolings."""
    table, anchor = theory.reward_table(REWARDS), anchors()
    x = xr.zeros_like(policies)
    for name in REFERENCES:
        for beta in BETAS:
            here = {"reference": name, "beta": beta}
            found = theory.group_preference(policies.sel(here).values, table, group_size=GROUP)
            x.loc[here] = np.asarray(found) / beta
    claim.refutes(
        "GRPO: π/π_ref - 1/(1 - P/β)", worst(policies / anchor, expected=1 / (1 - x), tolerance=1e-6)
    )
    tilted = anchor * np.exp(x)
    own = greatest(abs(policies - tilted / tilted.sum("output")).max("output"))
    far = nearest(policies)
    for beta in BETAS:
        claim.refutes(f"GRPO, β = {beta:g}: distance from the nearest RLHF", far[beta])
        claim.refutes(f"GRPO, β = {beta:g}: distance from π_ref e^(P/β)/Z", own[beta])
    first, last = far[BETAS[0]], far[BETAS[-1]]
    claim.finds(
        f"At β = {BETAS[0]:g} GRPO's policy is up to {first.value:.2f} from every RLHF policy; at "
        f"β = {BETAS[-1]:g} at most {last.value:.3f}.",
        when=far.values(),
    )


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
    """For each reference the fixed points of GRPO over β, and RLHF's curve, which they leave."""
    figure.set_size_inches(7.0, 2.6)
    panels = plotting.panels(figure, 1, len(REFERENCES))
    blue, red = plotting.COLORS[:2]
    betas = np.logspace(2, -1.5, 40)
    for axes, (name, reference) in zip(panels, REFERENCES.items(), strict=True):
        plotting.simplex(axes, corners=[f"r = {reward:g}" for reward in REWARDS[ORDER]])
        pools = np.asarray(theory.rlhf(np.array(reference), REWARDS, np.logspace(2, -2, 200)))
        path = np.array([predicted("GRPO", reference, REWARDS, beta) for beta in betas])
        ended = data.trained.sel(objective="GRPO", reference=name, table="x 1").isel(start=0)
        trained_at = f"GRPO trained, β = {', '.join(f'{beta:g}' for beta in BETAS[::-1])} (upwards)"
        axes.plot(*_drawn(path), color=blue, lw=1.4, label="GRPO, β from ∞ to 0")
        axes.plot(*_drawn(ended.values), "o", ms=5, mfc="white", color=blue, label=trained_at)
        axes.plot(*_drawn(pools), "--", color=red, lw=1.4, zorder=1.5, label="RLHF, β from ∞ to 0")
        axes.plot(*_drawn(np.array([reference])), "s", ms=4, color="#222222", label="π_ref")
        axes.set_title("(" + ", ".join(f"{p:.2g}" for p in reference) + ")", pad=12)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle("From each π_ref GRPO takes another way than RLHF")


def _drawn(policies: np.ndarray) -> np.ndarray:
    """[2, n] where policies [n, 3] lie in the triangle."""
    return (policies[:, ORDER] @ CORNERS).T
