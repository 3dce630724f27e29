"""(arXiv:2506.20520, abstract.) With the advantage A = r − V on data of another policy, "when the baseline V
lower-bounds the expected reward, the algorithm enjoys a policy improvement guarantee".

Arnal et al., Asymmetric REINFORCE for off-Policy Reinforcement Learning, arXiv:2506.20520; we read the
abstract only. A sampler q that never changes; π starts at q and ascends E_q[(r − V) log π]. V counts in
standard deviations of the reward from E_q r, J is the improvement on q. Single answers out of eight, and
trees of three tokens out of two, binary and graded rewards.

Refuted if at some V ≤ 0 exact SGD takes any problem's J below 0 by more than .001, on the way or in the end.
Qualified if AdamW or groups of 8 take mean J over problems there (99.9 %; single answers and trees, kinds of
reward by themselves). The abstract's second sentence compares V of −.1, −.5 and −1 with V of the same size
above 0, twice: J in the end on data that never change, and J averaged over training on data that are renewed
every 50 iterations. It is refuted if −V is surely more than .05 behind somewhere, or nowhere surely more than
.05 ahead. The limit policies we derived and did not read the paper's; that V ≥ E_q r collapses is a theorem
of the paper as summaries tell it: the likeliest output ends with over .99 on average; qualified if on trees
it does not. Checks of our instrument: a placebo, rewards that are all alike, which keeps π at q; a control,
fresh data, where V changes nothing; GRPO's group mean is V = E_q r.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import xarray as xr

import grpo_jax as gj
from experiments.formulas import sampler_bias as by_hand
from experiments.harness.numbers import Number, each, hardest, interval, prefixed, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import stale
from experiments.problems.trees import KINDS
from grpo_jax import plotting
from grpo_jax.sequences import Sequences

PRECISION = "float64"
SIZES = sizes(tables=(16, 48, 256), iterations=(1000, 3000, 32000))

SPACES = {"answers": Sequences(vocab=8, horizon=1), "trees": Sequences(vocab=2, horizon=3)}
LEVELS = [-4.0, -2.0, -1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0]
BASELINES = {value: stale.constant(value) for value in LEVELS}
OTHERS = {"group mean": stale.GROUP, "ratio": stale.RATIO, "ratio, clipped": stale.CLIPPED}
UPDATES = {"SGD": (0.0, 0.5, 1.0), "AdamW": (1.0, 0.02, 1.0), "groups of 8": (0.0, 0.1, 0.0)}
"""adaptive, learning rate, exact."""
SLACK, GAIN, SURE, LIMIT = 1e-3, 0.05, 0.99, 0.01
SIGNS = (0.1, 0.5, 1.0)
POINTS = 40
"""Records of a run."""
DELAY, RENEWALS = 50, 16
"""Iterations between renewals of the data where they are renewed, and how often that happens."""


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
    found: dict[str, list[xr.Dataset]] = {name: [] for name in SPACES}
    late: dict[str, list[xr.Dataset]] = {name: [] for name in SPACES}
    limits = []
    signed = {value: BASELINES[value] for value in LEVELS if abs(value) in SIGNS}
    renewed = SimpleNamespace(iterations=DELAY * RENEWALS)
    settings = {str(value): numbers for value, numbers in BASELINES.items()} | OTHERS
    for name, space in SPACES.items():
        for kind in KINDS:
            given = stale.standardised(seed, space, tables=size.tables, kind=kind)
            found[name].append(trained(given, settings, UPDATES, size, seed))
            late[name].append(trained(given, signed, UPDATES, renewed, seed, refresh=DELAY))
            if name == "answers":
                limits.append(limits_of(given))
    exact = {"SGD": UPDATES["SGD"]}
    given = stale.standardised(seed, SPACES["answers"], tables=size.tables)
    fresh = trained(given, {value: BASELINES[value] for value in (-1.0, 1.0)}, exact, size, seed, refresh=1)
    flat = given._replace(table=0 * given.table)
    kinds = xr.Variable("kind", list(KINDS))
    made = {name: xr.concat(runs, kinds) for name, runs in found.items()}
    others = {f"{name}, others": runs.sel(baseline=list(OTHERS)) for name, runs in made.items()}
    by_level = {name: runs.sel(baseline=[str(v) for v in LEVELS]) for name, runs in made.items()}
    return {
        **{name: runs.assign_coords(baseline=LEVELS) for name, runs in by_level.items()},
        **others,
        **{f"{name}, renewed": xr.concat(runs, kinds) for name, runs in late.items()},
        "limits": xr.concat(limits, kinds).to_dataset(name="policy"),
        "fresh": fresh,
        "flat": trained(flat, {-1.0: BASELINES[-1.0], -2.0: BASELINES[-2.0]}, exact, size, seed),
    }


def limits_of(given: Any) -> xr.DataArray:
    """Our limit policies of single answers, by V below the expected reward."""
    start = by_hand.products(by_hand.softmax(given.logits))
    below = [value for value in LEVELS if value < 0]
    found = [stale.limit(start, given.table, value).T for value in below]
    return xr.DataArray(found, {"baseline": below}, ("baseline", "table", "output"))


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The guarantee; positives against negatives; the limit policies; GRPO's own baseline."""
    fresh = data["fresh"].gain
    spread = fresh.max("baseline") - fresh.min("baseline")
    claim.requires("control, fresh data: spread of J over V", worst(spread, tolerance=1e-8))
    flat = data["flat"]
    moved = abs(flat.most.isel(iteration=-1) - flat.most.isel(iteration=0))
    claim.requires("placebo, equal rewards: change of the likeliest answer", worst(moved, tolerance=1e-8))
    for update in UPDATES:
        numbers: dict[str, Number] = {}
        for name in SPACES:
            gain = data[name].gain.sel(update=update, baseline=slice(None, 0.0), drop=True)
            numbers |= prefixed(name, exact_numbers(gain) if update == "SGD" else mean_numbers(gain))
        told = f"{update}: J at V ≤ 0"
        if update == "SGD":
            claim.refutes(told, hardest(numbers))
        else:
            claim.qualifies(told, hardest(numbers), only="in exact ascent under SGD")
    ends = data["answers"].gain.isel(iteration=-1).sel(update="SGD").mean("table")
    claim.finds(
        "Exact ascent over eight answers ends above q by "
        + ", ".join(f"{float(ends.sel(baseline=v).mean()):.2f} σ at V = {v:g}" for v in LEVELS)
        + ".",
    )
    judge_signs(data, claim)
    judge_limits(data, claim)
    judge_collapse(data, claim)


def exact_numbers(gain: xr.DataArray) -> dict[str, Number]:
    """Of every kind of reward the lowest J that any problem has after the start, and at the end."""
    found = {}
    for kind in KINDS:
        here = gain.sel(kind=kind)
        for when, value in (
            ("on the way", here.isel(iteration=slice(1, None))),
            ("end", here.isel(iteration=-1)),
        ):
            found[f"{kind}, {when}"] = worst(value, tolerance=SLACK, relation="at least")
    return found


def mean_numbers(gain: xr.DataArray) -> dict[str, Number]:
    """Mean J over problems at the end, and at the iteration at which it is lowest after the start."""
    later = gain.isel(iteration=slice(1, None))
    lowest = later.isel(iteration=later.mean("table").argmin("iteration")).drop_vars("iteration")
    told: dict[str, Any] = {"expected": 0.0, "tolerance": SLACK, "relation": "at least", "over": "table"}
    end = gain.isel(iteration=-1, drop=True)
    return prefixed("on the way", each(lowest, **told)) | prefixed("end", each(end, **told))


def judge_signs(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The abstract's second sentence, where data never change and where they are renewed."""
    told = (
        '(arXiv:2506.20520, abstract.) "Off-policy updates benefit from focusing more on positive rewards '
        'than on negative ones", '
    )
    never = {name: data[name].gain.isel(iteration=-1, drop=True) for name in SPACES}
    judge_sign(claim.also(f"{told}here on data that never change."), never, "final J")
    late = {name: data[f"{name}, renewed"].gain.mean("iteration") for name in SPACES}
    judge_sign(claim.also(f"{told}here on data renewed every {DELAY} iterations."), late, "mean J")


def judge_sign(row: Claim, gains: dict[str, xr.DataArray], what: str) -> None:
    """V below the expected reward against V of the same size above it."""
    numbers: dict[str, Number] = {}
    for name, gain in gains.items():
        for size in SIGNS:
            gap = gain.sel(baseline=-size, drop=True) - gain.sel(baseline=size, drop=True)
            told = f"{name}, |V| = {size:g} σ"
            numbers |= prefixed(told, each(gap, over="table", expected=GAIN, relation="at least"))
    lead = {name: replace(number, expected=-GAIN) for name, number in numbers.items()}
    row.refutes(f"{what} at −V less that at +V, everywhere", hardest(lead))
    best = max(numbers, key=lambda name: numbers[name].low or 0.0)
    row.refutes(f"{what} at −V less that at +V, somewhere", replace(numbers[best], at=best))
    row.reports(f"{what} at −V less that at +V", numbers)
    won = {name: number for name, number in numbers.items() if (number.low or 0.0) > 0}
    lost = {name: number for name, number in numbers.items() if (number.high or 0.0) < 0}
    row.finds(
        f"−V is surely better in {len(won)} of {len(numbers)} settings{shown(won)}, surely worse in "
        f"{len(lost)}{shown(lost)}, open in the others."
    )


def shown(numbers: dict[str, Number]) -> str:
    """The furthest of some numbers, in brackets."""
    if not numbers:
        return ""
    name = max(numbers, key=lambda key: abs(numbers[key].value))
    return f" (by up to {numbers[name].value:+.2f} σ: {name})"


def judge_limits(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Ours: where exact ascent ends below the threshold, and what it keeps."""
    row = claim.ours(
        "Below E_q r exact ascent ends at (q(r − V) − c)₊/(E_q r − V): it keeps the support of q only if V "
        "lies below the lowest reward. We derived it; we did not read the paper's limit points."
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
    """The paper's threshold, and GRPO's own baseline on it."""
    row = claim.also(
        "(arXiv:2506.20520, a theorem as summaries tell it; we did not read it.) At V ≥ E_q r exact ascent "
        "collapses to one output."
    )
    told: dict[str, Any] = {"expected": SURE, "relation": "at least", "over": "table"}
    for name in SPACES:
        end = (
            data[name]
            .most.isel(iteration=-1, drop=True)
            .sel(update="SGD", baseline=slice(0.0, None), drop=True)
        )
        others = data[f"{name}, others"].most.isel(iteration=-1, drop=True)
        own = others.sel(baseline="group mean", drop=True)
        same = own.sel(update="SGD", drop=True) - end.sel(baseline=0.0, drop=True)
        row.requires(f"{name}: exact group mean - V = E_q r", worst(same, tolerance=1e-8))
        least = hardest(each(end, **told))
        if name == "answers":
            row.refutes("answers: probability of the likeliest", least)
        else:
            only = (
                "of single answers; on trees every prefix has a threshold of its own, E_q r of what follows"
            )
            row.qualifies("trees: probability of the likeliest output", least, only=only)
        row.reports(f"{name}: the likeliest", each(end, over="table"))
        row.reports(f"{name}: the likeliest", each(others, over="table"))
    end = data["answers, others"].isel(iteration=-1).mean(["table", "kind"])
    words = []
    for update in ("groups of 8", "AdamW"):
        here = end.sel(update=update)
        parts = [
            f"{n} {float(here.most.sel(baseline=n)):.2f} ({float(here.gain.sel(baseline=n)):+.2f} σ)"
            for n in OTHERS
        ]
        words.append(f"{update}: {', '.join(parts)}")
    row.finds("GRPO without a ratio has V = E_q r: its group mean.")
    row.finds(
        "Probability of the likeliest answer (and J) on data that never change, by " + "; ".join(words) + "."
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """What is gained over q, and how likely the likeliest answer ends, over V."""
    figure.set_size_inches(7, 3.1)
    left, right = plotting.panels(figure, 1, 2)
    found = data["answers"].isel(iteration=-1).sel(kind="graded", drop=True)
    for place, (update, color) in enumerate(zip(UPDATES, plotting.COLORS, strict=False)):
        for axes, name in ((left, "gain"), (right, "most")):
            here = interval(found[name].sel(update=update), over="table")
            beside = here.baseline + 0.035 * (place - 1)
            axes.plot(beside, here.value, lw=0.8, color=color)
            plotting.points(axes, beside, here.value, here.low, here.high, color=color, label=update)
    for axes in (left, right):
        axes.axvline(0, color="0.5", lw=0.8)
        axes.set(xlabel="V − E_q r, in σ")
    left.legend()
    left.set(ylabel="J above that of q, in σ", title="What a baseline gains on q …")
    right.set(ylabel="likeliest answer", ylim=(0, 1.02), title="… and what it leaves of the others")
