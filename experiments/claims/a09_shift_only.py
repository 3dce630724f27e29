"""Without scale normalisation the expected preference is (1 − 1/G)(E_π r − E_π_old r), so with the direct
penalty the stationary policy is that of RLHF, π ∝ π_ref e^(r/β), with β enlarged to βG/(G − 1).

[A] (arXiv:2502.18548v3), on shift-only normalisation, with (4): advantages A = r − mean, and the KL
divergence itself, not its approximation, as the penalty. Rewards are certain or coin flips; the sentence does
not tell them apart. Answers left out of their own baseline are ours, a row of its own, judged alike. All
training starts apart from π_ref and from where it should end: a penalty that pulls to the start or to the
sampling policy, or a run too short to move, ends elsewhere.

Refuted if the preference is off by 1e-12, if exact ascent ends 1e-6 from that policy or within 0.05 of RLHF's
at β itself, or if a sampled run's time average under SGD, extrapolated linearly to learning rate zero as in
the other claims, is not within 0.01 of it (99.9 % intervals). Qualified if AdamW, judged alike, is not. Equal
rewards, which lead to π_ref, are a check of the instrument; a quadratic extrapolation is reported beside the
linear one.
"""

import dataclasses
from typing import Any

import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import extrapolated, furthest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import averaged, logits, method, question, settled
from grpo_jax import plotting
from grpo_jax.exact import expected_objective
from grpo_jax.parts.advantages import GroupMean, LeaveOneOut, Normalized
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import rlhf

PRECISION = "float64"
SIZES = sizes(seeds=(48, 48, 256), iterations=(4000, 4000, 20000))

REWARDS = [0.95, 0.6, 0.2, 0.05]
"""Rewards, or success chances of coin flips."""
REFERENCES = {
    "rising": [0.1, 0.2, 0.3, 0.4],
    "even": [0.25, 0.25, 0.25, 0.25],
    "best first": [0.5, 0.1, 0.1, 0.3],
}
BETAS = [0.3, 0.5, 0.8, 1.3, 2.0]
STARTS = {"near the best": [0.85, 0.05, 0.05, 0.05], "near the worst": [0.05, 0.05, 0.05, 0.85]}
TABLES = {"rewards": [REWARDS], "equal": [[0.5] * 4]}
VARIANTS = {
    "mean, G = 2": (False, 2, False),
    "mean, G = 4, coin flips": (False, 4, True),
    "mean, G = 64, coin flips": (False, 64, True),
    "left out, G = 2": (True, 2, False),
    "left out, G = 8, coin flips": (True, 8, True),
}
"""Whether answers are left out of their baseline, the group's size, and whether rewards are coin flips."""
TRAINED = [name for name in VARIANTS if name != "left out, G = 2"]
"""By exact ascent: in a pair, leaving out is only a doubling."""
SAMPLED = {
    "SGD": ["mean, G = 2", "mean, G = 4, coin flips", "left out, G = 8, coin flips"],
    "AdamW": ["mean, G = 2", "left out, G = 8, coin flips"],
}
SAMPLED_BETAS = [0.5, 1.3]
OPTIMIZERS = {"SGD": (gj.SGD, [0.05, 0.1, 0.2]), "AdamW": (gj.AdamW, [0.01, 0.02, 0.04])}
MARGIN = 0.01


def setting(variant: str, **changes: Any) -> gj.Config:
    """The variant with the direct penalty, from a start apart from the reference."""
    left_out, group, flips = VARIANTS[variant]
    advantage = Normalized(center=LeaveOneOut() if left_out else GroupMean(), scale=None)
    base: dict[str, Any] = {
        "reference": REFERENCES["rising"],
        "start": STARTS["near the best"],
        "method": dataclasses.replace(method(direct=True), advantage=advantage),
        "noise": Bernoulli() if flips else None,
    }
    return question(REWARDS, group_size=group, **(base | changes))


def factor(variant: str) -> float:
    """What multiplies the reward: 1 - 1/G, or 1 if answers are left out of their baseline."""
    left_out, group, _ = VARIANTS[variant]
    return 1.0 if left_out else 1 - 1 / group


def theory(variant: str, references: Any, betas: list[float], power: float = 1.0) -> xr.DataArray:
    """RLHF's policies [reference, beta, output] at beta over the factor (to this power)."""
    felt = np.array(betas) / factor(variant) ** power
    found = [[rlhf(np.array(REFERENCES[r]), np.array(REWARDS), b) for b in felt] for r in references]
    coords = {"reference": list(references), "beta": betas, "output": range(len(REWARDS))}
    return xr.DataArray(np.asarray(found), coords)


def preference_error(variant: str, seed: int) -> float:
    """Greatest error of the expected preference of random policies over other random ones."""
    draw = np.random.default_rng(seed).dirichlet
    pi, old = draw(np.ones(4), 50), draw(np.ones(4), 50)
    config = setting(variant, expectation=gj.Exact(cells=2 if VARIANTS[variant][2] else 0))
    penalty: Any = config.method.penalty
    none = dataclasses.replace(penalty, coef=0.0)
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, penalty=none))
    params, sampler = np.log(pi.T)[None], np.log(old.T)[None]
    found = expected_objective(config, params, old=sampler, reference=sampler)
    return float(abs(np.asarray(found) - factor(variant) * (pi - old) @ REWARDS).max())


def trained(variant: str) -> xr.DataArray:
    """Where exact ascent ends: with rewards, and with equal ones."""
    axes = {
        "reference": {name: logits(policy) for name, policy in REFERENCES.items()},
        ("kl_coef", "learning_rate"): {b: (b, 3 / (1 + b)) for b in BETAS},
        "policy.logits": {name: logits(policy) for name, policy in STARTS.items()},
        "task.table": TABLES,
    }
    found = settled(setting(variant), axes, iterations=2500).drop_vars(["kl_coef", "learning_rate"])
    return found.rename({"kl_coef+learning_rate": "beta", "policy.logits": "start", "task.table": "table"})


def sampled(variant: str, optimizer: str, seed: int, size: Any) -> xr.DataArray:
    """Time averages of whole policies."""
    kind, rates = OPTIMIZERS[optimizer]
    config = setting(variant, optimizer=kind(learning_rate=0.1))
    axes = {"learning_rate": rates, "kl_coef": SAMPLED_BETAS}
    return averaged(config, axes, size, seed).rename(kl_coef="beta")


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Expected preferences, exact ascent, and sampled time averages."""
    averages = {
        name: xr.concat(
            [sampled(v, name, seed, size) for v in SAMPLED[name]], xr.Variable("variant", SAMPLED[name])
        )
        for name in OPTIMIZERS
    }
    return {
        "exact": xr.Dataset({
            "trained": xr.concat([trained(v) for v in TRAINED], xr.Variable("variant", TRAINED)),
            "preference_error": ("preference", [preference_error(v, seed) for v in VARIANTS]),
            "preference": list(VARIANTS),
        }),
        **{name: xr.Dataset({"average": found}) for name, found in averages.items()},
    }  # fmt: skip


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Preferences, trained policies, sampled ones, and what ignoring the factor would give."""
    exact = data["exact"]
    equal = exact.trained.sel(table="equal", drop=True)
    anchor = xr.DataArray(list(REFERENCES.values()), {"reference": list(REFERENCES), "output": equal.output})
    claim.requires("equal rewards: exact ascent - π_ref", worst(equal, expected=anchor, tolerance=1e-6))
    row = claim.ours("Leaving each answer out of its own baseline removes the factor.")
    ended = exact.trained.sel(table="rewards", drop=True)
    for told, judged, left_out in (("(1 - 1/G)(E r - E_old r)", claim, False), ("E r - E_old r", row, True)):
        names = [v for v in VARIANTS if VARIANTS[v][0] is left_out]
        error = worst(exact.preference_error.sel(preference=names), tolerance=1e-12)
        judged.refutes(f"preference - {told}", error)
        found = {
            v: worst(ended.sel(variant=v), expected=theory(v, REFERENCES, BETAS), tolerance=1e-6)
            for v in names
            if v in TRAINED
        }
        judged.refutes("exact ascent - theory", found)
        judge_sampled(data, names, judged)
        if left_out:
            row.finds(
                "Without its own reward in its baseline an answer trains at β.", when=[error, *found.values()]
            )
            continue
        pair = ended.sel(variant="mean, G = 2").isel(start=0, drop=True)
        ignored = abs(pair - theory("mean, G = 2", REFERENCES, BETAS, power=0)).max(["beta", "output"])
        phantom = worst(ignored, expected=0.05, relation="at least")
        claim.refutes("mean, G = 2: distance from RLHF at β itself, less 0.05", phantom)
        claim.finds(
            "The group's own mean weakens the reward by 1 − 1/G: "
            "a group of two trains to RLHF's policy at 2β.",
            when=[error, *found.values(), phantom],
        )


def judge_sampled(data: dict[str, xr.Dataset], variants: list[str], claim: Claim) -> None:
    """For each variant and optimizer: the linear extrapolation; the quadratic one and the slope are told."""
    for variant in variants:
        aim = theory(variant, ["rising"], SAMPLED_BETAS).isel(reference=0, drop=True)
        for optimizer, known in SAMPLED.items():
            if variant not in known:
                continue
            average = data[optimizer].average.sel(variant=variant, drop=True)
            linear, slope = extrapolated(average)
            quadratic, _ = extrapolated(average, degree=2)
            name, gap = f"{variant}, {optimizer}", furthest(linear, aim, tolerance=MARGIN)
            told = f"{name}: sampled, extrapolated - theory"
            claim.refutes(told, gap) if optimizer == "SGD" else claim.qualifies(told, gap, only="under SGD")
            claim.reports(
                f"{name}: quadratic extrapolation - theory", furthest(quadratic, aim, tolerance=MARGIN)
            )
            claim.reports(f"{name}: quadratic less linear", furthest(quadratic - linear, tolerance=MARGIN))
            claim.reports(f"{name}: steepest slope in the learning rate", worst(slope.mean("seed")))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Left: trained policies on RLHF's curve at β over the factor. Right, in its colours: sampled."""
    figure.set_size_inches(7.0, 3.2)
    left, right = plotting.panels(figure, 1, 2, width_ratios=[1.15, 1])
    line, anchor = np.geomspace(0.25, 2.4, 80), np.array(REFERENCES["rising"])
    ended = data["exact"].trained.sel(table="rewards", reference="rising", output=0).isel(start=0)
    marks = dict(zip(TRAINED, zip(plotting.COLORS, "osDv", (9, 8, 7, 4), strict=False), strict=True))
    for variant, (color, marker, size) in marks.items():
        curve = np.asarray(rlhf(anchor, np.array(REWARDS), line / factor(variant)))
        left.plot(line, curve[:, 0], color=color, lw=0.9)
        here = ended.sel(variant=variant)
        left.plot(here.beta, here, marker, color=color, ms=size, mfc="none", mew=1.2, label=variant)
    left.legend()
    left.set(xscale="log", xlabel="β", ylabel="trained π of the best answer")
    left.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
    left.set_xticks([], minor=True)
    left.set_title("Exact ascent ends on RLHF's curve at β/(1 − 1/G)")
    rows, colors = {}, {}
    for optimizer, variants in SAMPLED.items():
        for variant in variants:
            aim = theory(variant, ["rising"], SAMPLED_BETAS).isel(reference=0, drop=True)
            gaps = extrapolated(data[optimizer].average.sel(variant=variant, drop=True))[0] - aim
            for beta in SAMPLED_BETAS:
                name = f"G {VARIANTS[variant][1]}, β {beta:g}, {optimizer}"
                rows[name] = mean(gaps.sel(output=0, beta=beta))
                colors[name] = marks[variant][0]
    plotting.intervals(right, rows, expected=0.0, margin=MARGIN, colors=colors)
    right.set(xlabel="time average of π(best) − theory")
    right.set_title("Sampled, rate → 0 (grey: margin)")
