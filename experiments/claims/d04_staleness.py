"""(2602.17616, abstract.) Trained on stale answers, "collapse is reliably predicted by effective sample
size (ESS)".

Huang et al., arXiv:2602.17616v1, read as an abstract ("... (ESS) and unstable gradient norms": the second
half is a row of its own); its experiments are language models on mathematics. Here: random tasks with one
right output in ten, sequences of three tokens out of four, one row of logits a position, so that outputs
share parameters; GRPO without penalty, AdamW, groups of 8 and 32, one step a batch, answers up to 16
iterations old. Three objectives: one ratio, clipped, against the sampler; decoupled (clipped against the
trainer's own policy, weights truncated at 2); old log-probabilities recomputed and no weight. A run
collapses if its return, meaned over the last 20 iterations, is below half of its best. In the first 40
iterations a quantity warns if it tells the moments at which the return is to fall below half of its best
within 10 iterations from those at which it is not: the area under the curve (AUC) over all settings, .5 for
no warning; by task and objective, intervals over tasks. The first iteration is left out: all runs are alike
there, whatever their setting; the AUC with it is reported (this was seen after a draft, in which it was left
out by an error of one place).

Refuted if the AUC of a low ESS (in its row: of a spike of the gradient's norm, log of it over its running
median; its change from one step to the next is reported) is not above .8 for the ratio or the decoupled
objective. Qualified if lag times learning rate, known before the run, warns as well within .05: then it is
the setting that predicts; the same quantities are tried within settings. Controls: without lag at most .5 %
collapse and the ESS is 1; and the same tasks without shared parameters.

Rows beside it: the decoupled loss "improves coupled-loss style of algorithms' learning stability"
(2512.06547, abstract): judged with four steps a batch, as with one the decoupled loss never clips; refuted
if it does not collapse less often by .01, at lag 4 or 16 with a clip of .2. "Relaxed clipping ... preserves
useful stale-rollout gradients" (2605.17570, abstract): refuted if at the largest lag, each at its best rate,
the return, meaned over the run, is not higher by more than .01 without a tight clip. (The end of the run
would not do: it is at its ceiling.) Rules written after a first look at how often runs collapse, before any
AUC was seen.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy.stats import rankdata

import grpo_jax as gj
from experiments.harness.numbers import Number, interval, mean
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import staleness
from experiments.problems.staleness import CLIPS, LAGS, OBJECTIVES
from grpo_jax import plotting
from grpo_jax.measures import StepView

SIZES = sizes(tasks=(4, 120, 640), seeds=(1, 1, 1), iterations=(60, 200, 200))

RATES = [0.15, 0.3, 0.6, 1.2, 2.4]
GROUPS = [8, 32]
EARLY, AHEAD, LAST, BEFORE = 40, 10, 20, 8
"""Iterations in which is warned, how far ahead, over which the end is meaned, and a running median."""
RATIO, DECOUPLED, RECOMPUTED = OBJECTIVES
WEIGHTED = (RATIO, DECOUPLED)
RELIABLE, BETTER, GAIN = 0.8, 0.05, 0.01
FEW, FEWER = 0.005, 0.01
"""Share of fresh runs that may collapse (one of thousands does, at the largest rate); share of stale ones by
which the decoupled loss must be better."""
STEPS, STALE, CLIPPED = 4, [4, 16], ("0.2", "none")
"""Of the decoupled loss: steps a batch, without which its clip has nothing to do, lags and clips."""
SIGNS = {"ess": -1, "kl": 1, "ratio": 1, "entropy": 1, "jump": 1, "spike": 1, "step": 1}
"""Of what warns, and whether high or low."""
NAMES = {
    "ess": "low effective sample size", "kl": "KL(q‖π)", "ratio": "greatest ratio", "entropy": "high entropy",
    "jump": "change of the gradient's norm", "spike": "spike of the gradient's norm",
    "step": "lag × learning rate",
}  # fmt: skip
WITHIN = ("ess", "kl")
"""Tried within settings, too."""
SETTING = ("group_size", "clip", "lag", "learning_rate")


def _log_weight(view: StepView) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Multiplicities, and log π/q of whole outputs, π the policy that is trained."""
    rollout = view.batch.rollout
    gap = jnp.where(rollout.mask > 0, view.logp - rollout.sampling_logp, 0)
    return rollout.multiplicity, jnp.sum(gap, 2)


@gj.measure(about="effective share of the samples under weights π/q", per="step", mean=True)
def ess(view: StepView) -> jnp.ndarray:
    count, gap = _log_weight(view)
    gap = jnp.where(count > 0, gap - jnp.max(jnp.where(count > 0, gap, -jnp.inf), 1, keepdims=True), 0)
    first, second = (jnp.sum(count * jnp.exp(power * gap), (0, 1)) for power in (1, 2))
    return first**2 / (jnp.sum(count, (0, 1)) * second)


@gj.measure(about="KL(q||π) on the samples, nats", per="step", mean=True)
def kl(view: StepView) -> jnp.ndarray:
    count, gap = _log_weight(view)
    return -jnp.sum(jnp.where(count > 0, count * gap, 0), (0, 1)) / jnp.sum(count, (0, 1))


@gj.measure(about="log of the greatest π/q of a sampled output", per="step", mean=True)
def ratio(view: StepView) -> jnp.ndarray:
    count, gap = _log_weight(view)
    return jnp.max(jnp.where(count > 0, gap, -jnp.inf), (0, 1))


def trained(seed: int, size: Any) -> xr.Dataset:
    """Every setting and task, recorded at every iteration."""
    return staleness.trained(
        staleness.config(),
        seed=seed, tasks=size.tasks, seeds=size.seeds, rates=RATES, iterations=size.iterations,
        record=["expected_reward", "entropy", "grad_norm"], measure={"ess": ess, "kl": kl, "ratio": ratio},
        variants={"group_size": GROUPS},
    )  # fmt: skip


def warned(data: xr.Dataset, *, first: int = 1) -> xr.Dataset:
    """Warnings at every early moment, and whether the return is about to fall; NaN once it has fallen.

    ``first`` leaves out as many iterations at the start: at the first one all runs are alike.
    """
    reward = data.expected_reward
    best = reward.cumulative("iteration").max()
    fallen = (reward < best / 2).cumulative("iteration").max() > 0
    moments = {"iteration": slice(first, EARLY)}
    soon = fallen.shift(iteration=-AHEAD, fill_value=False).isel(moments)
    norm = np.log(data.grad_norm.where(data.grad_norm > 0)).isel(iteration=slice(EARLY))
    jump = abs(norm.diff("iteration")).reindex(iteration=norm.iteration).fillna(0)
    before = norm.rolling(iteration=BEFORE, min_periods=1).median().shift(iteration=1)
    found = data[["ess", "kl", "ratio", "entropy"]].isel(iteration=slice(EARLY))
    found = found.assign(jump=jump, spike=(norm - before).fillna(0)).isel(moments)
    found["step"] = (data.lag * data.learning_rate).broadcast_like(soon)
    live = ~fallen.isel(moments)
    return found.where(live).assign(soon=soon.where(live))


def area(warnings: xr.DataArray, soon: xr.DataArray, over: tuple[str, ...]) -> xr.DataArray:
    """AUC of a warning over these dimensions, ties counted half; NaN where nothing falls."""

    def one(scores: np.ndarray, labels: np.ndarray) -> float:
        there = np.isfinite(scores) & np.isfinite(labels)
        scores, labels = scores[there], labels[there] > 0
        hits = int(labels.sum())
        if hits in (0, labels.size):
            return float("nan")
        ranks = rankdata(scores)[labels].sum() - hits * (hits + 1) / 2
        return float(ranks / (hits * (labels.size - hits)))

    flat = [array.stack(moment=over) for array in (warnings, soon.broadcast_like(warnings))]
    return xr.apply_ufunc(one, *flat, input_core_dims=[["moment"], ["moment"]], vectorize=True)


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Collapses, returns and AUCs by task; and collapses without shared parameters."""
    data = trained(seed, size)
    end = data.expected_reward.isel(iteration=slice(-LAST, None)).mean("iteration")
    collapsed = end < data.expected_reward.max("iteration") / 2
    moments = warned(data)
    every = ("seed", "iteration", *SETTING)
    inside = [moments[name].copy(data=SIGNS[name] * moments[name].values) for name in SIGNS]
    among = {n: area(w, moments.soon, every) for n, w in zip(SIGNS, inside, strict=True)}
    within = {
        n: area(w, moments.soon, ("seed", "iteration")).mean(SETTING)
        for n, w in zip(SIGNS, inside, strict=True) if n in WITHIN
    }  # fmt: skip
    whole = warned(data, first=0)
    several = staleness.trained(
        staleness.config(inner_steps=STEPS), seed=seed, tasks=size.tasks, seeds=size.seeds,
        rates=[rate / STEPS for rate in RATES], iterations=size.iterations, record=["expected_reward"],
        objectives=WEIGHTED, lags=STALE, clips=CLIPPED,
    ).expected_reward  # fmt: skip
    late = several.isel(iteration=slice(-LAST, None)).mean("iteration") < several.max("iteration") / 2
    apart = staleness.trained(
        staleness.config(shared=False), seed=seed, tasks=size.tasks // 4, seeds=size.seeds, rates=RATES,
        iterations=size.iterations, record=["expected_reward"],
    ).expected_reward  # fmt: skip
    own = apart.isel(iteration=slice(-LAST, None)).mean("iteration") < apart.max("iteration") / 2
    names = {
        "whole": data.expected_reward.mean(("seed", "iteration")),
        "collapsed": collapsed.mean("seed"),
        "unshared": own.mean("seed"),
    }
    fresh = data.ess.sel(lag=0)
    return {
        "runs": xr.Dataset(names).assign(fresh_ess=fresh.min()),
        "several": xr.Dataset({"collapsed": late.mean("seed")}),
        "warnings": xr.Dataset({
            "area": xr.concat(list(among.values()), xr.Variable("quantity", list(among))),
            "within": xr.concat(list(within.values()), xr.Variable("inside", list(within))),
            "from_the_first": area(-whole.ess, whole.soon, every),
        }),
    }  # fmt: skip


def over_tasks(values: xr.DataArray, **judged: Any) -> Number:
    """Mean over the tasks that have a value; NaN where fewer than three have."""
    found = values.values[np.isfinite(values.values)]
    return mean(found, **judged) if found.size > 2 else Number(float("nan"), judged.get("expected"))


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """What warns; the decoupled loss; the relaxed clip."""
    runs, areas = data["runs"], data["warnings"].area
    claim.requires("lag 0: effective sample size", Number(float(runs.fresh_ess), 1.0, 1e-4))
    fresh = runs.collapsed.sel(lag=0)
    control = Number(float(fresh.mean()), FEW, relation="at most")
    claim.requires("lag 0: share of runs that collapse", control)
    predicted(areas, claim, "ess")
    for objective in OBJECTIVES:
        for name in SIGNS:
            claim.reports(
                f"{objective}: AUC, {NAMES[name]}", over_tasks(areas.sel(objective=objective, quantity=name))
            )
            if name in WITHIN:
                inside = data["warnings"].within.sel(objective=objective, inside=name)
                claim.reports(f"{objective}, within a setting: AUC, {NAMES[name]}", over_tasks(inside))
        early = over_tasks(data["warnings"].from_the_first.sel(objective=objective))
        claim.reports(f"{objective}: AUC, {NAMES['ess']}, with the first iteration", early)
    claim.reports("share of runs that collapse", Number(float(runs.collapsed.mean())))
    unshared = float(runs.unshared.mean())
    claim.reports("share without shared parameters", Number(unshared))
    order = areas.mean("task").sel(objective=RATIO)
    told = ", ".join(
        f"{NAMES[n]} {float(order.sel(quantity=n)):.2f}" for n in ("kl", "ess", "step", "entropy")
    )
    within = float(data["warnings"].within.sel(objective=RATIO, inside="ess").mean())
    claim.finds(
        f"AUC of a warning {AHEAD} iterations ahead, one ratio: {told}. Between moments of one setting ESS "
        f"has {within:.2f}."
    )
    claim.finds(
        f"Where every prefix has parameters of its own {unshared:.2%} of the same runs collapse; with shared "
        f"ones {float(runs.collapsed.mean()):.1%}."
    )
    norms = claim.also('(2602.17616, abstract.) Collapse is reliably predicted by "unstable gradient norms".')
    predicted(areas, norms, "spike")
    decoupled(data["several"], claim)
    relaxed(runs, claim)


def predicted(areas: xr.DataArray, row: Claim, name: str) -> None:
    """Whether a quantity warns under either weighted objective, and more than the setting does."""
    for objective in WEIGHTED:
        here = areas.sel(objective=objective)
        reliable = over_tasks(here.sel(quantity=name), expected=RELIABLE, relation="at least")
        row.refutes(f"{objective}: AUC of {NAMES[name]}", reliable)
        gain = here.sel(quantity=name) - here.sel(quantity="step")
        row.qualifies(
            f"{objective}: AUC of {NAMES[name]} - AUC of lag × learning rate",
            over_tasks(gain, expected=BETTER, relation="at least"),
            only="where the setting does not say it already",
        )


def decoupled(runs: xr.Dataset, claim: Claim) -> None:
    """Collapses of the decoupled loss against those of one ratio, the same tasks, seeds and settings."""
    row = claim.also(
        "(2512.06547, abstract.) The decoupled loss \"improves coupled-loss style of algorithms' learning "
        'stability" under staleness.'
    )
    by_task = runs.collapsed.mean("learning_rate")
    gap = by_task.sel(objective=DECOUPLED) - by_task.sel(objective=RATIO)
    for clip in CLIPPED:
        for lag in STALE:
            here = gap.sel(clip=clip, lag=lag)
            where = f"lag {lag}, clip {clip}: share that collapses, decoupled - one ratio"
            if clip == CLIPPED[0]:
                row.refutes(where, mean(here, expected=-FEWER, relation="at most"))
            else:
                row.reports(where, mean(here))
            for objective in WEIGHTED:
                told = mean(by_task.sel(clip=clip, lag=lag, objective=objective))
                row.reports(f"lag {lag}, clip {clip}, {objective}: share that collapses", told)


def relaxed(runs: xr.Dataset, claim: Claim) -> None:
    """Return meaned over the run at the largest lag by clip, each at the rate that is best on average."""
    row = claim.also(
        "(2605.17570, abstract.) On stale answers, relaxed clipping "
        '"preserves useful stale-rollout gradients".'
    )
    ends = runs.whole.sel(lag=LAGS[-1], objective=RATIO)
    rate = ends.mean("task").idxmax("learning_rate")
    best = ends.sel(learning_rate=rate)
    for group in GROUPS:
        here = best.sel(group_size=group)
        for clip in list(CLIPS)[1:]:
            gain = here.sel(clip=clip) - here.sel(clip="0.2")
            row.refutes(
                f"G = {group}: return with clip {clip} - with 0.2",
                mean(gain, expected=GAIN, relation="at least"),
            )
        fresh = runs.whole.sel(lag=0, objective=RATIO, group_size=group, clip="0.2").mean("task").max()
        row.reports(f"G = {group}: return of fresh answers", Number(float(fresh)))
        for clip in CLIPS:
            row.reports(f"G = {group}: return at lag {LAGS[-1]}, clip {clip}", mean(here.sel(clip=clip)))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Where training collapses, and what warns of it."""
    figure.set_size_inches(7, 2.9)
    left, right = plotting.panels(figure, 1, 2, width_ratios=(1, 1.1))
    shares = data["runs"].collapsed.sel(objective=RATIO, clip="0.2").mean(("group_size", "task"))
    shares.attrs = {"long_name": "share of runs that collapse"}
    plotting.heatmap(left, shares, x="learning_rate", y="lag", annotate=True)
    left.set_title("One ratio against the sampler,\nclip 0.2: where training collapses")
    areas = data["warnings"].area.sel(objective=RATIO).dropna("task")
    told = interval(areas, over="task").sel(quantity=list(SIGNS))
    rows = {NAMES[name]: _row(told.sel(quantity=name)) for name in SIGNS}
    plotting.intervals(right, rows, expected=0.5)
    right.axvline(RELIABLE, color="0.5", ls=":")
    for place, words in {0.5: "none", RELIABLE: "reliable"}.items():
        right.annotate(
            words,
            (place, 1),
            (2, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            size=7,
        )
    right.set(xlim=(0.4, 1), xlabel=f"AUC of a warning, {AHEAD} iterations ahead")
    right.set_title("What warns of it")


def _row(told: xr.Dataset) -> Number:
    return Number(float(told.value), low=float(told.low), high=float(told.high))
