"""The value of the surrogate is no meter of progress: under length-normalised weights it equals -β E[R] at
the old policy, whatever the rewards, and over training it does not follow the true reward.

[B] Proposition 4. Scenario A, every ratio 1: J = -β E[R] under length-normalised weights without masks,
J = C Σ A_i len_i - β E[R] under constant weights, in general Σ A_i Ω_i = G Cov(A, Ω), Ω_i an output's total
weight; identities. Scenario B, over training: each run's correlation of value and true expected reward, for
every method of Table 1, SGD and AdamW, from three success rates. GPG and CISPO, whose value is a
log-likelihood, are exempt and reported. Runs and programs are B7's.

Refuted if in one of the methods that it speaks of the value rises with the true reward: a mean correlation of
0.5 or more, for some optimizer and success rate. Qualified, by name, where it falls as the reward rises: -0.5
or less, a meter, but a reversed one. The identities (1e-12), the mean reward of the batch, a meter that must
be seen (0.5 or more with AdamW from 0.1), and the value of GTPO as printed, whose entropy filter drops every
output, so that it is 0, are checks of the instrument; GTPO is judged with its filter open.
"""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import xarray as xr

from experiments.harness.numbers import Number, interval, mean, worst
from experiments.harness.verdict import Claim
from experiments.problems.lengths import FREED, RATES, SPACE, TABLE_SIZES, logits, problem, table_runs
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


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Values at θ_old with their formulas, and how values and rewards go together over training."""
    runs = table_runs(seed, size)
    truth = runs.expected_reward
    meters = {name: xr.corr(runs[name], truth, "iteration") for name in ("surrogate", "reward")}
    moves = (runs.surrogate != runs.surrogate.isel(iteration=0)).any("iteration")
    return {
        "first": at_old(seed, size.seeds),
        "runs": xr.Dataset({
            "correlation": xr.concat(meters.values(), xr.Variable("meter", list(meters))).where(moves),
            "greatest": abs(runs.surrogate).max(("iteration", "seed", "rate", "optimizer")),
        }),
    }  # fmt: skip


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The identities of scenario A and the correlations of scenario B."""
    first = data["first"]
    same = first.sel(algorithm=list(NORMALISED))
    claim.requires("length-normalised: J + β E[R]", worst(same.value, expected=same.penalty, tolerance=1e-12))
    flat = first.sel(algorithm="dr_grpo")
    claim.requires(
        "constant weights: J - formula", worst(flat.value, expected=flat.constant, tolerance=1e-12)
    )
    for name in COVARIANCE:
        here = first.sel(algorithm=name)
        gap = worst(here.value, expected=here.covariance, tolerance=1e-12)
        claim.requires(f"{name}: J - G Cov(A, Ω) + β E[R]", gap)
    for name, words in {"cppo": "with its mask", **dict.fromkeys(EXEMPT, "exempt")}.items():
        size = Number(float(abs(first.value.sel(algorithm=name)).mean()))
        claim.reports(f"{name}, {words}: mean |J| at the old policy", size)
    silent = Number(float(data["runs"].greatest.sel(algorithm="gtpo")), 0.0)
    claim.requires("gtpo as printed: greatest |value| over training", silent)
    found = judge_meters(data["runs"].correlation, claim)
    falling = [name for name, numbers in found.items() if any(map(below, numbers.values()))]
    steepest = min(number.value for number in found["grpo"].values())
    claim.finds(
        f"No method's value rises with the reward (correlations below {FOLLOWS}).",
        when=all((n.high or 0.0) < FOLLOWS for numbers in found.values() for n in numbers.values()),
    )
    claim.finds(
        f"The value falls as the policy gets better, somewhere, in {', '.join(falling)} (GRPO: down to "
        f"{steepest:.2f}).",
        when="grpo" in falling,
    )
    judge_penalty(data["runs"].correlation.sel(meter="surrogate", drop=True), claim)


def below(number: Number) -> bool:
    """Whether a value is a reversed meter."""
    return number.high is not None and number.high < -FOLLOWS


def judge_meters(correlation: xr.DataArray, claim: Claim) -> dict[str, dict[str, Number]]:
    """Every method on both sides, in the setting that goes furthest; method -> setting -> correlation."""
    found: dict[str, dict[str, Number]] = {}
    names = [name for name in correlation.algorithm.values if name not in ("gtpo", FREED)]
    for name in names:
        values = {}
        for optimizer, rate in itertools.product(correlation.optimizer.values, RATES):
            here = correlation.sel(algorithm=name, optimizer=optimizer, rate=rate)
            told = f"{optimizer}, from {rate:g}"
            values[told] = dataclasses.replace(mean(here.sel(meter="surrogate").dropna("seed")), at=told)
            claim.reports(f"{name}, {told}: value and true reward", values[told])
            control = mean(here.sel(meter="reward").dropna("seed"))
            if optimizer == "AdamW" and rate == RATES[0]:
                seen = dataclasses.replace(control, expected=FOLLOWS, relation="at least")
                claim.requires(f"{name}, {told}: batch reward and true reward, the control", seen)
            else:
                claim.reports(f"{name}, {told}: batch reward and true reward, the control", control)
        if name not in EXEMPT:
            found[name] = values
            top = max(values.values(), key=lambda number: number.high or np.inf)
            bottom = min(values.values(), key=lambda number: number.low or -np.inf)
            rises = dataclasses.replace(top, expected=FOLLOWS, relation="at most")
            falls = dataclasses.replace(bottom, expected=-FOLLOWS, relation="at least")
            claim.refutes(f"{name}: value and true reward, greatest correlation", rises)
            only = f"for meters that rise with progress, as {name}'s value falls where the reward rises"
            claim.qualifies(f"{name}: value and true reward, least correlation", falls, only=only)
    return found


def judge_penalty(correlation: xr.DataArray, claim: Claim) -> None:
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
    first = free[f"AdamW, from {RATES[0]:g}"]
    row.finds(
        f"From {RATES[0]:g} with AdamW the correlation is {steep.value:.2f} with the penalty and "
        f"{first.value:.2f} without.",
        when=steep,
    )
    others = [told for told, number in free.items() if below(number)]
    row.finds(f"Without the penalty the value still falls ({'; '.join(others)}).", when=bool(others))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Correlations of value and true reward with AdamW, from three success rates; the control below."""
    figure.set_size_inches(7, 4.6)
    axes = plotting.panels(figure)
    correlation = data["runs"].correlation.sel(optimizer="AdamW")
    hues = plotting.shades(RATES)
    rows: dict[Any, Any] = {}
    colors, texts = {}, {}
    names = [name for name in correlation.algorithm.values if name != "gtpo"]
    for name, rate in itertools.product([*names, "batch reward"], RATES):
        control = name == "batch reward"
        here = correlation.sel(
            algorithm="grpo" if control else name, meter="reward" if control else "surrogate", rate=rate
        )
        rows[name, rate] = interval(here.dropna("seed"))
        colors[name, rate] = hues[rate]
        words = f"{name} (exempt)" if name in EXEMPT else "batch reward (control)" if control else name
        texts[name, rate] = words if rate == RATES[1] else ""
    plotting.intervals(axes, rows, expected=0, margin=FOLLOWS, labels=texts, colors=colors)
    for rate, hue in hues.items():
        axes.plot([], [], "o-", color=hue, label=f"from {rate:g}")
    axes.legend(title="success rate")
    axes.set(xlim=(-1, 1), xlabel="correlation with the true expected reward over training (AdamW)")
