"""([2506.20520], abstract.) With the advantage A = r − V on data of another policy, "when the baseline V
lower-bounds the expected reward, the algorithm enjoys a policy improvement guarantee".

Arnal et al., Asymmetric REINFORCE for off-Policy Reinforcement Learning, arXiv:2506.20520; we read the
abstract only. A sampler q that never changes; π starts at q and ascends E_q[(r − V) log π]. V counts in
standard deviations of the reward from E_q r, J is the improvement on q. Single answers out of eight, and
trees of three tokens out of two, binary and graded rewards.

Refuted if at some V ≤ 0 exact SGD ever takes mean J over problems below 0 by more than .001, or ends there
(99.9 % over problems; single answers and trees, kinds of reward by themselves). Qualified if AdamW does, or
groups of 8. The abstract's second sentence is refuted if V of −.1, −.5 or −1 does not end with at least .05
more J than V of the same size above 0, or if on-policy it does. Collapse: the likeliest output ends with over
.99. Checks of our instrument: a placebo, rewards that are all alike, which keeps π at q; a control, fresh
data, where V changes nothing; exact ascent ends on our limit policies.
"""

from typing import Any

import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import sampler_bias as by_hand
from experiments.harness.numbers import each, hardest, interval, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import stale
from experiments.problems.trees import KINDS
from grpo_jax import plotting
from grpo_jax.sequences import Sequences

PRECISION = "float64"
SIZES = sizes(tables=(16, 64, 256), iterations=(2000, 8000, 32000))

SPACES = {"answers": Sequences(vocab=8, horizon=1), "trees": Sequences(vocab=2, horizon=3)}
LEVELS = [-4.0, -2.0, -1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0]
BASELINES = {value: stale.constant(value) for value in LEVELS}
OTHERS = {"group mean": stale.GROUP, "ratio": stale.RATIO, "ratio, clipped": stale.CLIPPED}
UPDATES = {"SGD": (0.0, 0.5, 1.0), "AdamW": (1.0, 0.02, 1.0), "groups of 8": (0.0, 0.1, 0.0)}
"""adaptive, learning rate, exact."""
SLACK, GAIN, SURE, LIMIT = 1e-3, 0.05, 0.99, 0.01
POINTS = 40
"""Records of a run."""


def trained(given: Any, settings: dict[Any, Any], updates: dict[str, Any], size: Any, root: int, **told: Any):
    """J and the policy over training, by baseline and kind of update."""
    paths = ("adaptive", "learning_rate", "expectation.exact")
    data = gj.sweep(
        stale.training(given, **told), {stale.PATHS: settings, paths: updates}, iterations=size.iterations,
        record_every=size.iterations // POINTS, record=["prompt_reward"], measure={"policy": stale.policy},
        root=root, record_start=True, progress=False,
    )  # fmt: skip
    names = {"+".join(stale.PATHS): "baseline", "+".join(paths): "update", "context": "table"}
    data = data.isel(seed=0, drop=True).rename(names).drop_vars([*stale.PATHS, *paths], errors="ignore")
    most = data.policy.max("output")
    return xr.Dataset({"gain": data.prompt_reward, "most": most, "end": data.policy.isel(iteration=-1)})


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Training on stale data over V and with group means, on fresh data, and without anything to learn."""
    found: dict[str, xr.Dataset] = {}
    exact = {"SGD": UPDATES["SGD"]}
    for name, space in SPACES.items():
        runs, others, limits = [], [], []
        for kind in KINDS:
            given = stale.standardised(seed, space, tables=size.tables, kind=kind)
            runs.append(trained(given, BASELINES, UPDATES, size, seed))
            others.append(trained(given, OTHERS, UPDATES, size, seed))
            limits.append(limits_of(given))
        kinds = xr.Variable("kind", list(KINDS))
        found |= {name: xr.concat(runs, kinds), f"{name}, others": xr.concat(others, kinds)}
        if name == "answers":
            found["limits"] = xr.concat(limits, kinds).to_dataset(name="policy")
            fresh = {value: BASELINES[value] for value in (-1.0, 1.0)}
            found["fresh"] = trained(given, fresh, exact, size, seed, refresh=1)
            flat = given._replace(table=0 * given.table)
            found["flat"] = trained(flat, {-1.0: BASELINES[-1.0]}, exact, size, seed)
    return found


def limits_of(given: Any) -> xr.DataArray:
    """Our limit policies of single answers, by V below the expected reward; and q itself."""
    start = by_hand.products(by_hand.softmax(given.logits))
    below = [value for value in LEVELS if value < 0]
    found = [stale.limit(start, given.table, value).T for value in below] if given.space.horizon == 1 else []
    return xr.DataArray(
        np.array(found), dims=("baseline", "table", "output"), coords={"baseline": below[: len(found)]}
    )


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The guarantee; positives against negatives; the limit policies; GRPO's own baseline."""
    fresh = data["fresh"].gain
    spread = fresh.max("baseline") - fresh.min("baseline")
    claim.requires("control, fresh data: spread of J over V", worst(spread, tolerance=1e-8))
    flat = data["flat"]
    moved = abs(flat.most.isel(iteration=-1) - flat.most.isel(iteration=0))
    claim.requires("placebo, equal rewards: change of the likeliest answer", worst(moved, tolerance=1e-8))
    for update in UPDATES:
        numbers = {}
        for name in SPACES:
            gain = data[name].gain.sel(update=update, baseline=slice(None, 0.0), drop=True)
            for when, value in (
                ("lowest on the way", gain.min("iteration")),
                ("end", gain.isel(iteration=-1)),
            ):
                if when == "lowest on the way":
                    value = gain.isel(iteration=gain.mean("table").argmin("iteration"))
                found = each(
                    value.drop_vars("iteration", errors="ignore"),
                    over="table",
                    expected=-SLACK,
                    relation="at least",
                )
                numbers |= {f"{name}, {when}, {key}": number for key, number in found.items()}
        told = f"{update}: mean J over problems at V ≤ 0"
        if update == "SGD":
            claim.refutes(told, hardest(numbers))
        else:
            claim.qualifies(told, hardest(numbers), only="in exact ascent under SGD")
    ends = data["answers"].gain.isel(iteration=-1).sel(update="SGD").mean("table")
    claim.finds(
        f"Exact ascent over eight answers ends {float(ends.sel(baseline=-4.0).mean()):+.2f} σ above q at V = −4 σ, "
        f"{float(ends.sel(baseline=-1.0).mean()):+.2f} at −1, {float(ends.sel(baseline=-0.1).mean()):+.2f} at −.1, "
        f"{float(ends.sel(baseline=0.1).mean()):+.2f} at +.1.",
    )
    judge_signs(data, claim)
    judge_limits(data, claim)
    judge_collapse(data, claim)


def judge_signs(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The abstract's second sentence."""
    row = claim.also(
        '([2506.20520], abstract.) "Off-policy updates benefit from focusing more on positive rewards than on '
        'negative ones."'
    )
    numbers = {}
    for name in SPACES:
        end = data[name].gain.isel(iteration=-1, drop=True)
        for value in (0.1, 0.5, 1.0):
            gap = end.sel(baseline=-value, drop=True) - end.sel(baseline=value, drop=True)
            found = each(gap, over="table", expected=GAIN, relation="at least")
            numbers |= {f"{name}, |V| = {value:g} σ, {key}": number for key, number in found.items()}
    row.refutes("J at −V less J at +V", hardest(numbers))
    row.reports("J at −V less J at +V", numbers)
    won, lost = (sum(number.holds is here for number in numbers.values()) for here in (True, False))
    row.finds(
        f"Of {len(numbers)} settings {won} end with more than {GAIN} σ more at −V than at +V, {lost} do not."
    )


def judge_limits(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Ours: where exact ascent ends below the threshold, and what it keeps."""
    row = claim.ours(
        "Below E_q r exact ascent ends at (q(r − V) − c)₊/(E_q r − V): it keeps the support of q only if V lies "
        "below the lowest reward."
    )
    limits = data["limits"].policy
    end = data["answers"].end.sel(update="SGD", baseline=limits.baseline)
    row.refutes(
        "exact ascent - limit, single answers",
        worst(end, expected=limits.transpose(*end.dims), tolerance=LIMIT),
    )
    for value in limits.baseline.values:
        dead = (limits.sel(baseline=value) == 0).mean(["table", "output"])
        row.reports(
            f"share of answers that vanish at V = {value:g} σ", each(dead.expand_dims(run=2), over="run")
        )
    lost = (limits.sel(baseline=-0.1) == 0).mean()
    row.finds(
        f"At V = −.1 σ {float(lost):.0%} of the answers vanish, though V lies below E_q r.",
        when=bool(lost > 0),
    )


def judge_collapse(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Ours: the threshold, and GRPO's own baseline on it."""
    row = claim.ours("At V ≥ E_q r exact ascent collapses to one output, and GRPO's group mean is V = E_q r.")
    numbers = {}
    for name in SPACES:
        most = (
            data[name]
            .most.isel(iteration=-1, drop=True)
            .sel(update="SGD", baseline=slice(0.0, None), drop=True)
        )
        own = data[f"{name}, others"].most.isel(iteration=-1, drop=True).sel(baseline="group mean", drop=True)
        numbers |= {
            f"{name}, {k}": n for k, n in each(most, over="table", expected=SURE, relation="at least").items()
        }
        same = own.sel(update="SGD", drop=True) - most.sel(baseline=0.0, drop=True)
        row.requires(f"{name}: exact group mean - V = E_q r", worst(same, tolerance=1e-8))
        row.reports(f"{name}: likeliest output, group mean", each(own, over="table"))
        clipped = data[f"{name}, others"].most.isel(iteration=-1).sel(baseline="ratio, clipped", drop=True)
        row.reports(
            f"{name}: likeliest output, importance ratio with PPO's clip", each(clipped, over="table")
        )
    row.refutes("mean probability of the likeliest output", hardest(numbers))
    own = data["answers, others"].isel(iteration=-1).sel(update="groups of 8").mean(["table", "kind"])
    row.finds(
        f"Groups of 8 on data that never change end with {float(own.most.sel(baseline='group mean')):.2f} on one answer "
        f"and J {float(own.gain.sel(baseline='group mean')):+.2f} σ; with an importance ratio and PPO's clip with "
        f"{float(own.most.sel(baseline='ratio, clipped')):.2f} and {float(own.gain.sel(baseline='ratio, clipped')):+.2f}."
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """What is gained over q, and how likely the likeliest answer ends, over V."""
    figure.set_size_inches(7, 3.1)
    left, right = plotting.panels(figure, 1, 2)
    found = data["answers"].isel(iteration=-1).sel(kind="graded", drop=True)
    for update, color in zip(UPDATES, plotting.COLORS, strict=False):
        for axes, name in ((left, "gain"), (right, "most")):
            here = interval(found[name].sel(update=update), over="table")
            plotting.points(axes, here.baseline, here.value, here.low, here.high, color=color, label=update)
    for axes in (left, right):
        axes.axvline(0, color="0.5", lw=0.8)
        axes.set(xlabel="V − E_q r, in σ")
    left.legend()
    left.set(ylabel="J above that of q, in σ", title="Every V improves on q …")
    right.set(ylabel="likeliest answer", ylim=(0, 1.02), title="… from E_q r on it collapses")
