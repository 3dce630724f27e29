"""The value of the surrogate is no meter of progress: under length-normalised weights it equals -β E[R] at
the old policy, whatever the rewards, and under any weights Σ A Ω = G Cov(A, Ω).

[B] Proposition 4. Scenario A, every ratio 1, graded rewards: J = -β E[R] under length-normalised weights
without masks, J = C Σ A_i len_i - β E[R] under constant weights, in general Σ A_i Ω_i = G Cov(A, Ω), Ω_i an
output's total weight; GPG and CISPO, whose value is a log-likelihood, are exempt. Scenario B, over training,
is our row: each run's correlation of value and true expected reward, for every method of Table 1, SGD and
AdamW, from three success rates. Runs and programs are B7's.

Refuted if a method's value differs from these formulas by 1e-12 at the old policy. That advantages and
penalty are not 0 there, and that GTPO as printed, whose entropy filter drops every output, has the value 0
(it is judged with its filter open), are checks of the instrument. Our row is refuted if a value goes with the
true reward or against it: a correlation not within 0.5 of 0 for some method, optimizer and success rate; only
where the batch's reward, the control, is seen to follow it (0.5 or more) in the same runs.
"""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, hardest, interval, mean, worst
from experiments.harness.verdict import Claim
from experiments.problems.lengths import (
    FREED,
    RATES,
    SPACE,
    STEPS,
    TABLE_SIZES,
    logits,
    problem,
    table_runs,
)
from grpo_jax import methods, plotting, train
from grpo_jax.collectors import Sampled
from grpo_jax.part import aligned
from grpo_jax.surrogate import advantages, objective
from grpo_jax.tasks import trees
from grpo_jax.types import Array, Rollout

SIZES = TABLE_SIZES
NORMALISED = ("grpo", "gspo", "gspo_token")
PENALISED = {"grpo": 0.04, "grpo_v32": 0.04, "dr_grpo": 0.0}
COVARIANCE = ("grpo", "grpo_v32", "dr_grpo", "dapo")
FIRST = (*NORMALISED, "dr_grpo", "dapo", "grpo_v32", "cppo", "gpg", "cispo")
FOLLOWS = 0.5
"""Correlation from which on a value follows another."""
EXEMPT = ("gpg", "cispo")
ROUNDING = 1e-5
"""A sum of advantages that is 0 in single precision."""


def by_hand(name: str, rollout: Rollout, advantage: Array) -> dict[str, np.ndarray]:
    """The formulas [R], in numpy: -β E[R]; constant weights; G Cov(A, Ω) - β E[R]."""
    mask, group = np.asarray(rollout.mask)[0], rollout.tokens.shape[1]
    lengths, signed = mask.sum(1), np.asarray(advantage)[0, :, 0]
    x = np.asarray(rollout.ref_logp - rollout.old_logp)[0]
    divergence = ((np.exp(x) - x - 1) * mask).sum(1) / (1 if name == "dr_grpo" else lengths)
    penalty = PENALISED.get(name, 0.0) * divergence.mean(0)
    weights = {"dr_grpo": lengths / group, "dapo": lengths / lengths.sum(0)}
    weight = weights.get(name, np.ones_like(lengths) / group)
    return {
        "penalty": -penalty,
        "constant": (signed * lengths).sum(0) / group - penalty,
        "covariance": group * ((signed - signed.mean(0)) * (weight - weight.mean(0))).mean(0) - penalty,
    }


def at_old(seed: int, runs: int) -> xr.Dataset:
    """Scenario A: each method's value at θ = θ_old on graded rewards, and by hand, in float64."""
    with jax.enable_x64(True):
        start = logits(0.5)
        reference = start + np.random.default_rng(seed).normal(size=start.shape)
        config = problem(methods.grpo, task=trees.graded(SPACE, seed=seed), reference=reference)
        config, state = aligned(config), train.init(config, np.arange(runs), root=seed)

        @jax.jit
        def values(state: train.TrainState) -> tuple[Rollout, dict[str, tuple[Array, Array]]]:
            rollout, found = Sampled().collect(config, state).rollout, {}
            for name in FIRST:
                advantage = advantages(methods.get(name), rollout)
                value = objective(methods.get(name), rollout, advantage, rollout.old_logp)
                found[name] = value, advantage
            return rollout, found

        rollout, found = jax.device_get(values(state))
        rows = []
        for name, (value, advantage) in found.items():
            columns = {"value": value, **by_hand(name, rollout, advantage)}
            rows.append(xr.Dataset({key: ("seed", column) for key, column in columns.items()}))
    labelled = dict(zip(found, rows, strict=True))
    return xr.concat([labelled[name] for name in FIRST], xr.Variable("algorithm", list(FIRST)))


def once(seed: int) -> xr.Dataset:
    """GRPO without penalty and one pass a batch: its value is that at the old policy all along."""
    method = dataclasses.replace(methods.grpo, penalty=None)
    data = gj.sweep(problem(method), seeds=16, iterations=STEPS, root=seed, record=["surrogate"])
    return xr.Dataset({"greatest": abs(data.surrogate).max()})


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Values at θ_old with their formulas, and how values and rewards go together over training."""
    runs = table_runs(seed, size)
    truth = runs.expected_reward
    meters = {name: xr.corr(runs[name], truth, "iteration") for name in ("surrogate", "reward")}
    moves = (runs.surrogate != runs.surrogate.isel(iteration=0)).any("iteration")
    return {
        "first": at_old(seed, size.seeds),
        "once": once(seed),
        "runs": xr.Dataset({
            "correlation": xr.concat(meters.values(), xr.Variable("meter", list(meters))).where(moves),
            "greatest": abs(runs.surrogate).max(("iteration", "seed", "rate", "optimizer")),
        }),
    }  # fmt: skip


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The identities of scenario A and the correlations of scenario B."""
    first = data["first"]
    same = first.sel(algorithm=list(NORMALISED))
    claim.refutes("length-normalised: J + β E[R]", worst(same.value, expected=same.penalty, tolerance=1e-12))
    flat = first.sel(algorithm="dr_grpo")
    claim.refutes("constant weights: J - formula", worst(flat.value, expected=flat.constant, tolerance=1e-12))
    for name in COVARIANCE:
        here = first.sel(algorithm=name)
        gap = worst(here.value, expected=here.covariance, tolerance=1e-12)
        claim.refutes(f"{name}: J - G Cov(A, Ω) + β E[R]", gap)
    for name, words in {"grpo": "β E[R]", "dr_grpo": "advantages"}.items():
        size = Number(float(abs(first.value.sel(algorithm=name)).mean()), 1e-3, relation="at least")
        claim.requires(f"{name}, {words}: mean |J| at the old policy", size)
    for name, words in {"cppo": "with its mask", **dict.fromkeys(EXEMPT, "exempt")}.items():
        size = Number(float(abs(first.value.sel(algorithm=name)).mean()))
        claim.reports(f"{name}, {words}: mean |J| at the old policy", size)
    silent = Number(float(data["runs"].greatest.sel(algorithm="gtpo")), 0.0)
    claim.requires("gtpo as printed: greatest |value| over training", silent)
    claim.finds(
        "At the old policy GRPO's value is its KL penalty and GSPO's is 0, whatever the rewards; Dr. GRPO's "
        "is the covariance of reward and length.",
        when=[number for name, number in claim.numbers.items() if claim.roles[name] == "refutes"],
    )
    judge_meters(data["runs"].correlation, claim)
    judge_penalty(data["runs"].correlation.sel(meter="surrogate", drop=True), data["once"].greatest, claim)


def below(number: Number) -> bool:
    """Whether a value is a reversed meter."""
    return number.high is not None and number.high < -FOLLOWS


def judge_meters(correlation: xr.DataArray, claim: Claim) -> None:
    """Every method and optimizer by the success rate that goes furthest, wherever the control is seen."""
    row = claim.ours("Over training the value of the surrogate does not follow the true reward.")
    values: dict[str, Number] = {}
    falling: list[str] = []
    names = [name for name in correlation.algorithm.values if name not in ("gtpo", FREED)]
    for name, optimizer in itertools.product(names, correlation.optimizer.values):
        judged: dict[str, Number] = {}
        every: dict[str, Number] = {}
        controls: dict[str, Number] = {}
        for rate in RATES:
            here = correlation.sel(algorithm=name, optimizer=optimizer, rate=rate)
            told, at = f"{name}, {optimizer}, from {rate:g}", f"success rate {rate:g}"
            control = mean(here.sel(meter="reward").dropna("seed"), expected=FOLLOWS, relation="at least")
            row.reports(f"{told}: batch reward and true reward, the control", control)
            value = mean(here.sel(meter="surrogate").dropna("seed"), expected=0, tolerance=FOLLOWS)
            row.reports(f"{told}: value and true reward", value)
            values[f"{name}, {optimizer}, {at}"] = every[at] = value
            if control.holds:
                judged[at], controls[at] = value, control
        told = f"{name}, {optimizer}"
        seen = Number(float(len(judged)), 1.0, relation="at least")
        row.requires(f"{told}: success rates at which the control is seen", seen)
        row.refutes(f"{told}: value and true reward, furthest", hardest(judged or every))
        if judged:
            row.requires(f"{told}: the control, least", hardest(controls))
            falling += [name] if any(map(below, judged.values())) and name not in falling else []
    top = max(values, key=lambda told: values[told].high or -np.inf)
    row.finds(
        f"No correlation of value and reward reaches {FOLLOWS} (greatest: {values[top].value:.2f}, {top}).",
        when=(values[top].high or np.inf) < FOLLOWS,
    )
    least = min(number.value for told, number in values.items() if told.startswith("grpo,"))
    row.finds(
        f"Values fall while the policy gets better in {', '.join(falling)} (GRPO: down to {least:.2f}, as "
        "-β E[R] must when a policy leaves its reference).",
        when="grpo" in falling,
    )


def judge_penalty(correlation: xr.DataArray, once: xr.DataArray, claim: Claim) -> None:
    """Is the reversed meter the KL penalty? GRPO with and without it, on the same seeds."""
    row = claim.ours(
        "GRPO's value is a reversed meter through its KL penalty only; without it, it says nothing."
    )
    steep = mean(
        correlation.sel(algorithm="grpo", optimizer="AdamW", rate=RATES[0]), expected=-FOLLOWS,
        relation="at most",
    )  # fmt: skip
    row.requires(f"grpo, AdamW, from {RATES[0]:g}", steep)
    free = {}
    for optimizer, rate in itertools.product(correlation.optimizer.values, RATES):
        here = correlation.sel(optimizer=optimizer, rate=rate)
        told = f"{optimizer}, from {rate:g}"
        freed = here.sel(algorithm=FREED)
        free[told] = mean(freed.dropna("seed"), expected=0, tolerance=FOLLOWS)
        row.refutes(f"without penalty, {told}", free[told])
        both = (here.sel(algorithm="grpo") - freed).dropna("seed")
        row.reports(f"with less without penalty, {told}", mean(both))
    alone = Number(float(once), 0.0, ROUNDING)
    row.requires("without penalty, one pass a batch: greatest |value| over training", alone)
    first = free[f"AdamW, from {RATES[0]:g}"]
    others = [told for told, number in free.items() if below(number)]
    row.finds(
        f"From {RATES[0]:g} with AdamW the correlation is {steep.value:.2f} with the penalty and "
        f"{first.value:.2f} without; without, it is below -{FOLLOWS} in {'; '.join(others)}. That is the "
        "second pass alone: values are means over a batch's two passes, and with one pass it stays at 0.",
        when=bool(others) and steep.holds is True and alone.holds is True,
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Correlations of value and true reward from three success rates; the control below."""
    figure.set_size_inches(7, 5.6)
    panels = plotting.panels(figure, 1, 2, sharex=True, sharey=True)
    every = data["runs"].correlation
    hues = dict(zip(RATES, plotting.COLORS, strict=False))
    names = [name for name in every.algorithm.values if name != "gtpo"]
    for axes, optimizer in zip(panels, every.optimizer.values, strict=True):
        rows: dict[Any, Any] = {}
        colors, texts = {}, {}
        for name, rate in itertools.product([*names, "batch reward"], RATES):
            control = name == "batch reward"
            here = every.sel(
                algorithm="grpo" if control else name, meter="reward" if control else "surrogate", rate=rate,
                optimizer=optimizer,
            )  # fmt: skip
            rows[name, rate] = interval(here.dropna("seed"))
            colors[name, rate] = hues[rate]
            texts[name, rate] = (f"{name} (control)" if control else name) if rate == RATES[1] else ""
        plotting.intervals(axes, rows, expected=0, margin=FOLLOWS, labels=texts, colors=colors)
        axes.set(
            xlim=(-1, 1),
            xlabel="correlation with the true reward",
            title=optimizer,
            xticks=[-1, -0.5, 0, 0.5, 1],
        )
    for rate, hue in hues.items():
        panels[0].plot([], [], "o-", color=hue, label=f"from success rate {rate:g}")
    panels[0].fill_between([], [], [], color="0.88", label="does not follow")
    figure.legend(loc="outside lower center", ncols=4)
    figure.suptitle("Over training no value follows the reward; several go against it")
