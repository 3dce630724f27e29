"""(tinker-feedback 148.) Where raw log-probabilities are returned, "RL with a temperature/top-k different
than 1 would accidentally become off policy", and "importance sampling corrections won't work".

github.com/thinking-machines-lab/tinker-feedback/issues/148. Rows of their own: trl 3029, a comment in
tinker-cookbook's configuration (issue 689). OpenRLHF 1319: trainer and sampler use softmax(logits/τ), so
should the entropy bonus; here "both" does so, "sampler only" does not. Sampled at τ = .6 .. 1.5, scored at 1,
shift-only, on random trees of T = 1..6 tokens out of five (graded rewards, softmax tables). Distance is
|sine| of the angle between updates of large groups: how far one is from every multiple of the other.

Refuted if at some τ and T the update with sequence weights from raw log-probabilities lies within .05 of ∇J,
so that the correction would have worked, means over trees (99.9 %). Qualified if at some T the uncorrected
update lies within .05 of the sampler's own policy gradient ∇J_τ: there it is on-policy for the policy that
samples. 3029 says "potentially": its largest distance counts, to ∇J_τ or to ∇J, with T of 2 or more (at T = 1
that to ∇J_τ is 0 by an identity). It is refuted if that lies below ½ (30°), unless it still grows from T = 5
to 6: then longer answers decide, and it is not testable here. The comment in the cookbook falls if some τ
ends more than .02 above τ = 1, each at its best learning rate of two, in exact or in sampled training (groups
of 8); it speaks of post-trained models, and random trees are none. Checks of our instrument: the
library's updates against enumeration in NumPy (1e-10), among them a control, sequence weights from processed
log-probabilities, which give ∇J itself; and a placebo: at τ = 1 all handlings are the same.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas import sampler_bias as by_hand
from experiments.harness.numbers import each, hardest, interval, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import samplers
from experiments.problems.trees import problem
from grpo_jax import plotting
from grpo_jax.decoding import Decoding
from grpo_jax.sequences import Sequences

PRECISION = "float64"
SIZES = sizes(trees=(64, 256, 512), tables=(16, 160, 512), iterations=(20, 50, 200))

VOCAB, SPREAD = 5, 2.0
TEMPERATURES = [0.6, 0.8, 1.25, 1.5]
HORIZONS = range(1, 7)
TRAINED = 3
RATES = [4.0, 16.0]
PATHS = ("behavior.decoding.temperature", "policy.decoding.temperature", "penalty.coef", *samplers.PATHS)
BONUS = {0.6: 0.0, 0.8: 0.0, 1.0: 0.0, 1.25: 0.02, 1.5: 0.05}
"""Coefficient of the entropy bonus that stands for a temperature; none is negative."""
CONTROL = "sampler only, sequence weights"
TOKEN_RATIO = (1.0, 1.0, samplers.INF, 0.0, 1.0, 1.0)
"""The sampler's log-probabilities are the ratio's denominator, without a clip."""
NEAR, FAR, REWARD, TIE = 0.05, 0.5, 0.02, 0.005


def handled(tau: float) -> dict[str, tuple[float, ...]]:
    """Every handling of a temperature as values of PATHS."""
    return {
        "sampler only": (tau, 1.0, 0.0, *samplers.NONE),
        "sampler only, token ratio": (tau, 1.0, 0.0, *TOKEN_RATIO),
        CONTROL: (tau, 1.0, 0.0, *samplers.SEQUENCE),
        "trainer only": (1.0, tau, 0.0, *samplers.NONE),
        "both": (tau, tau, 0.0, *samplers.NONE),
        "entropy bonus only": (1.0, 1.0, BONUS[tau], *samplers.NONE),
    }


def by_enumeration(seed: int, size: Any) -> xr.Dataset:
    """Distances of the uncorrected update to ∇J and to ∇J_τ, tree by tree."""
    found: dict[str, list[Any]] = {"to J": [], "to J_τ": [], "entropy gap": []}
    for horizon in HORIZONS:
        space = Sequences(vocab=VOCAB, horizon=horizon)
        given = problem(seed, space, tables=size.trees, kind="graded", spread=SPREAD)
        policy = by_hand.softmax(given.logits)
        gradient = by_hand.ascent(by_hand.centred(policy, given.table), policy)
        rows: dict[str, list[Any]] = {name: [] for name in found}
        for tau in TEMPERATURES:
            hot = by_hand.softmax(given.logits / tau)
            weights = by_hand.centred(hot, given.table)
            update = by_hand.ascent(weights, policy)
            rows["to J"].append(by_hand.sine(update, gradient))
            rows["to J_τ"].append(by_hand.sine(update, by_hand.ascent(weights, hot)))
            rows["entropy gap"].append(abs(entropy(hot) - entropy(policy)).max(0))
        for name, values in rows.items():
            found[name].append(values)
    axes = {"horizon": list(HORIZONS), "temperature": TEMPERATURES}
    return xr.Dataset({name: ((*axes, "table"), np.array(value)) for name, value in found.items()}, axes)


def entropy(rows: np.ndarray) -> np.ndarray:
    """[nodes, R] entropy of every row, nats."""
    return -(rows * np.log(rows)).sum(1)


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Distances by enumeration; the library's updates, raw and processed; training."""
    space = Sequences(vocab=VOCAB, horizon=TRAINED)
    given = problem(seed, space, tables=size.tables, kind="graded", spread=SPREAD)
    settings = {tau: handled(tau) for tau in [*TEMPERATURES, 1.0]}
    few = {tau: settings[tau] for tau in TEMPERATURES}
    told: dict[str, Any] = {"name": "temperature", "root": seed}
    updates = {}
    for records in ("processed", "raw"):
        config = samplers.training(given, decoding=Decoding(temperature=1.0), records=records)
        once = samplers.swept(
            config,
            PATHS,
            few,
            axes={},
            iterations=1,
            record=[],
            measure={"ascended": samplers.ascended},
            **told,
        )
        updates[records] = once.ascended.isel(seed=0)
    settings = {tau: {n: v for n, v in every.items() if n != CONTROL} for tau, every in settings.items()}
    config = samplers.training(given, decoding=Decoding(temperature=1.0))
    axes = {"expectation.exact": {"exact": 1.0, "sampled": 0.0}, "learning_rate": RATES}
    runs = samplers.swept(
        config, PATHS, settings, axes=axes,
        iterations=size.iterations, record=[], record_start=True, record_every=5,
        measure={"plain": samplers.plain, "decoded": samplers.decoded}, **told,
    )  # fmt: skip
    names = {"context": "table", "expectation.exact": "sampling"}
    return {
        "trees": by_enumeration(seed, size),
        "library": xr.Dataset({"residual": residuals(given, updates)}),
        "training": runs.isel(seed=0, drop=True).rename(names),
    }


def residuals(given: Any, updates: dict[str, xr.DataArray]) -> xr.DataArray:
    """Greatest |library − enumeration| of an update, by temperature and handling."""
    policy = by_hand.softmax(given.logits)
    gradient = by_hand.ascent(by_hand.centred(policy, given.table), policy)
    found = []
    for tau in TEMPERATURES:
        hot = by_hand.softmax(given.logits / tau)
        weights, own = by_hand.centred(hot, given.table), by_hand.centred(policy, given.table)
        uncorrected = by_hand.ascent(weights, policy)
        expected = {
            ("processed", "sampler only"): uncorrected,
            ("processed", CONTROL): gradient,
            ("raw", CONTROL): uncorrected,
            ("processed", "trainer only"): by_hand.ascent(own, hot) / tau,
            ("processed", "both"): by_hand.ascent(weights, hot) / tau,
        }
        own_found = {key: updates[key[0]].sel(temperature=tau, handling=key[1]) for key in expected}
        found.append([
            abs(own_found[key].values.squeeze() - rows.transpose(2, 0, 1)).max()
            for key, rows in expected.items()
        ])  # fmt: skip
    names = [", ".join(key) for key in expected]
    return xr.DataArray(found, {"temperature": TEMPERATURES, "handling": names})


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """148; 3029's bias; the cookbook's temperature; and which policy to deploy."""
    found, training = data["trees"], data["training"]
    claim.requires("library's update - enumeration", worst(data["library"].residual, tolerance=1e-10))
    same = training[["plain", "decoded"]].sel(temperature=1.0, sampling="exact").to_dataarray("policy")
    spread = same.max("handling") - same.min("handling")
    claim.requires("placebo, τ = 1: spread of J over handlings", worst(spread, tolerance=1e-10))
    apart = each(found["to J"], over="table", expected=NEAR, relation="at least")
    claim.refutes("raw sequence weights: distance to ∇J", hardest(apart))
    own = each(found["to J_τ"], over="table", expected=NEAR, relation="at least")
    claim.qualifies(
        "uncorrected: distance to ∇J_τ", hardest(own),
        only="beyond one token: at T = 1 the update is the sampler's own policy gradient, times τ",
    )  # fmt: skip
    long = found["to J_τ"].sel(horizon=slice(2, None))
    claim.finds(
        f"At T = 1 the uncorrected update is τ∇J_τ; at T = 2 to {HORIZONS[-1]} its distance to ∇J_τ, a mean "
        f"over trees, is {float(long.mean('table').min()):.2f} to {float(long.mean('table').max()):.2f}.",
        when=worst(found["to J_τ"].sel(horizon=1), tolerance=1e-6),
    )
    biased = judge_bias(found, claim)
    for tau, told in ((0.6, "0.5"), (1.5, "1.5")):
        gap = found["entropy gap"].sel(temperature=tau).max("table")
        biased.reports(f"greatest entropy gap at τ = {tau} (OpenRLHF 1319, {told})", mean(gap))
    judge_temperature(training, claim)
    judge_deployment(training, claim)


def judge_bias(found: xr.Dataset, claim: Claim) -> Claim:
    """3029: how far it can be, on trees of two tokens and more."""
    row = claim.also(
        "(trl 3029.) Leaving the sampler's temperature out of the log-probabilities is \"potentially causing "
        'highly biased policy gradients".'
    )
    apart = found[["to J_τ", "to J"]].rename({"to J_τ": "to ∇J_τ", "to J": "to ∇J"}).to_dataarray("distance")
    numbers = each(apart.sel(horizon=slice(2, None)), over="table", expected=FAR, relation="at least")
    name = max(numbers, key=lambda key: numbers[key].value)
    row.refutes("largest distance", replace(numbers[name], at=name))
    if numbers[name].holds is False:
        last = apart.sel(horizon=HORIZONS[-1]) - apart.sel(horizon=HORIZONS[-2])
        grows = each(last, over="table", expected=0.0, relation="at most")
        row.requires(f"distance at T = {HORIZONS[-1]} - that at T = {HORIZONS[-2]}", hardest(grows))
    row.reports("distance", each(apart, over="table"))
    top = apart.mean("table").max("temperature").sel(horizon=[2, HORIZONS[-1]])
    told = [
        f"{name} {float(here[0]):.2f} at two tokens, {float(here[1]):.2f} at {HORIZONS[-1]}"
        for name, here in zip(top.distance.values, top, strict=True)
    ]
    row.finds(f'The largest distance is {"; ".join(told)}; "highly" is ½ here, an angle of 30°.')
    return row


def at_best_rate(training: xr.Dataset) -> xr.Dataset:
    """Where every setting ends, at the learning rate with its best mean J over trees, deployed at 1."""
    end = training[["plain", "decoded"]].isel(iteration=-1, drop=True)
    best = end.plain.mean("table", skipna=False).argmax("learning_rate", skipna=False)
    return end.isel(learning_rate=best).drop_vars("learning_rate")


def judge_temperature(training: xr.Dataset, claim: Claim) -> None:
    """The cookbook: T = 1 is near-optimal."""
    row = claim.also(
        '(tinker-cookbook, quoted in its issue 689.) "Changing sampling temperature is not generally '
        'recommended; T=1 is near-optimal for most post-trained models, ...". Judged on random trees, which '
        "are none."
    )
    end = at_best_rate(training).plain
    gain = (end - end.sel(temperature=1.0)).sel(temperature=TEMPERATURES)
    handlings = ["sampler only", "sampler only, token ratio", "both"]
    numbers = each(gain.sel(handling=handlings), over="table", expected=REWARD, relation="at most")
    top = hardest(numbers)
    row.refutes("final J, deployed at 1 - that with τ = 1", top)
    row.reports("final J - that with τ = 1, all handlings", each(gain, over="table"))
    least = min(numbers, key=lambda name: numbers[name].value)
    row.finds(
        f"The greatest gain is {top.value:+.3f} ({top.at}), the greatest loss "
        f"{numbers[least].value:+.3f} ({least})."
    )


def judge_deployment(training: xr.Dataset, claim: Claim) -> None:
    """Ours: which of two policies one deploys."""
    row = claim.ours("After training, the colder of the two policies at 1 and at τ never has the lower J.")
    end = at_best_rate(training).sel(temperature=TEMPERATURES)
    hot = end.temperature > 1
    gain = xr.where(hot, end.plain - end.decoded, end.decoded - end.plain)
    gain = gain.sel(handling=["sampler only", "sampler only, token ratio", "both"])
    numbers = each(gain, over="table", expected=-TIE, relation="at least")
    row.refutes("J of the colder - J of the hotter", hardest(numbers))
    row.reports("J of the colder - J of the hotter", each(gain, over="table"))
    best = end.sel(temperature=1.5, sampling="exact").mean("table")
    row.finds(
        "Trained at τ = 1.5 in sampler and trainer, J is "
        f"{float(best.decoded.sel(handling='both')):.3f} at 1.5 and "
        f"{float(best.plain.sel(handling='both')):.3f} at 1; with the sampler alone at 1.5 "
        f"{float(best.decoded.sel(handling='sampler only')):.3f} and "
        f"{float(best.plain.sel(handling='sampler only')):.3f}."
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """How far the uncorrected update is from the sampler's own gradient, and what training ends with."""
    figure.set_size_inches(7, 3.1)
    left, right = plotting.panels(figure, 1, 2)
    apart = data["trees"]["to J_τ"]
    for tau, color in zip(TEMPERATURES, plotting.COLORS, strict=False):
        here = interval(apart.sel(temperature=tau), over="table")
        plotting.points(
            left, here.horizon, here.value, here.low, here.high, color=color, label=f"τ = {tau:g}"
        )
    left.legend()
    left.set(xlabel="T (tokens)", ylabel="|sine| to ∇J_τ", title="The sampler's own gradient at T = 1 only")
    end = at_best_rate(data["training"]).plain.sel(sampling="sampled", drop=True)
    end = (end - end.sel(temperature=1.0)).sortby("temperature")
    names = end.handling.values
    for place, (name, color) in enumerate(zip(names, plotting.COLORS, strict=False)):
        here = interval(end.sel(handling=name), over="table")
        beside = here.temperature + 0.015 * (place - (len(names) - 1) / 2)
        right.plot(beside, here.value, lw=0.8, color=color)
        plotting.points(right, beside, here.value, here.low, here.high, color=color, label=name)
    right.legend(loc="lower right")
    right.axhspan(-REWARD, REWARD, color="0.92", zorder=0)
    right.set(
        xlabel="τ",
        ylabel="final J at 1, less that of τ = 1",
        title="What a temperature is worth",
    )
