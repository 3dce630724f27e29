"""(trl 7269.) Under truncated sampling the ratio carries "a factor equal to the kept probability mass of each
position"; "the full-vocabulary mean equals the kept mass".

github.com/huggingface/trl/pull/7269: an engine that renormalises what top-p keeps, a trainer that scores with
the whole vocabulary; at kept mass .895 a mean ratio of .896, at .965 of .965, in the control (top-p 1) .995
at .994. Beside it, in rows of their own, trl 6789, prime-rl 2979 and twinkle 254. Random trees of T = 1..6
tokens out of five. The engine differs from the trainer by fixed noise on the logits of .075, which puts about
as many ratios outside [.9, 1.1] in the control as the thread reports (6.9 %; ours is reported): with noise
the sentence is no identity, as the engine's kept mass is not the trainer's.

Refuted if at some T, for top-p of .8, .9 or .95, the mean ratio of tokens that the engine draws is not within
.002 (the thread's rounding, doubled) of the mass that the engine keeps, means over trees. 6789 is refuted if
the norm of the update with token weights is not within .02 of the mean ratio times that without, and
qualified if that with sequence weights, TRL's default, is not. 2979 makes two statements: "biased" is refuted
if at some T and top-p the mean ratio is not below .99; "collapse" unless half of the runs end below half of
their best J, or below their start, and it is not testable here unless some run, whatever its handling,
collapses at all: a setting in which nothing can does not contradict it. 254 compares rewards averaged over
training, and so do we: refuted if a handling is more than .02 from replay. Lengths (ours): a margin of a
tenth. The mass outside (ours): our first guess, that training halves it, failed in a draft; the row says what
came instead, with a margin of .02 in J. Checks of our instrument: the identity without noise, the library's
update against enumeration in NumPy (1e-10), sampled mean ratios, and a placebo: at top-p 1 every handling is
the same.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas import sampler_bias as by_hand
from experiments.harness.numbers import Number, each, furthest, hardest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import samplers
from experiments.problems.trees import Problem, problem
from grpo_jax import plotting
from grpo_jax.decoding import Decoding
from grpo_jax.sequences import Sequences

PRECISION = "float64"
SIZES = sizes(trees=(64, 256, 512), tables=(16, 160, 512), iterations=(20, 60, 200), seeds=(32, 32, 128))

VOCAB, SPREAD, NOISE = 5, 2.0, 0.075
WIDE = 32_000
"""Tokens of a row as wide as 6789's."""
LEVELS = [0.8, 0.9, 0.95]
HORIZONS = range(1, 7)
PATHS = ("behavior.decoding.top_p", "policy.decoding.top_p", *samplers.PATHS)
TRAINED, CUTS, RATE = 3, [0.8, 0.95], 4.0
"""Tokens of the trees that are trained, top-p and learning rate there."""
HANDLINGS = {
    "no correction": samplers.NONE,
    "token weights": samplers.TOKEN,
    "sequence weights": samplers.SEQUENCE,
    "sampler's ratio, clipped": samplers.SAMPLER_RATIO,
}
REPLAY = "replay of kept sets"
"""The trainer scores the truncated policy, too."""
BIASED = ("token weights", "sequence weights", "sampler's ratio, clipped")
"""Handlings whose ratios carry S."""
THREAD = (0.895, 0.965, 0.994), (0.896, 0.965, 0.995)
"""Kept masses and mean ratios that 7269 reports, the last without top-p."""
CLOSE, GRADIENT, REWARD, BIAS = 0.002, 0.02, 0.02, 0.01


def made(seed: int, horizon: int, tables: int) -> Problem:
    """Random trees with graded rewards; what top-p 0.8 keeps of them is .89 on average."""
    space = Sequences(vocab=VOCAB, horizon=horizon)
    return problem(seed, space, tables=tables, kind="graded", spread=SPREAD)


def by_enumeration(seed: int, tables: int, horizons: Iterable[int]) -> xr.Dataset:
    """Ratios with an engine of its own and without, and updates, for every T and top-p, tree by tree."""
    found: dict[str, list[Any]] = {}
    for horizon in horizons:
        given = made(seed, horizon, tables)
        policy = by_hand.softmax(given.logits)
        noise = np.random.default_rng([seed, horizon]).normal(size=given.logits.shape)
        engine = by_hand.softmax(given.logits + NOISE * noise)
        rows = [tree_numbers(policy, engine, given.table, level, horizon) for level in LEVELS]
        for name in rows[0]:
            found.setdefault(name, []).append([row[name] for row in rows])
    axes = {"horizon": list(horizons), "top_p": LEVELS}
    return xr.Dataset({name: ((*axes, "table"), np.array(value)) for name, value in found.items()}, axes)


def tree_numbers(policy, engine, table, level: float, horizon: int) -> dict[str, np.ndarray]:
    """Ratios and masses, and norms of updates over the mean norm of the uncorrected one, each [tables]."""
    drawn, sampler = by_hand.truncated(engine, level), by_hand.truncated(policy, level)
    kept = by_hand.mass(policy, sampler)
    (average, far), (_, control) = (by_hand.ratios(policy, rows, horizon) for rows in (drawn, engine))
    often = by_hand.visits(sampler) / horizon
    weights = by_hand.centred(sampler, table)
    plain, own = by_hand.ascent(weights, policy), by_hand.ascent(weights, sampler)
    whole = by_hand.size(plain).mean()
    ideal = by_hand.ascent(by_hand.corrected(sampler, policy, table), policy)
    return {
        "ratio": average,
        "kept": (by_hand.visits(drawn) / horizon * by_hand.mass(engine, drawn)).sum(0),
        "far": far,
        "far, top-p 1": control,
        "mean mass": (often * kept).sum(0),
        "sequence": (by_hand.products(sampler) * by_hand.products(np.repeat(kept[:, None], VOCAB, 1))).sum(0),
        "outputs kept": np.where(by_hand.products(sampler) > 0, by_hand.products(policy), 0).sum(0),
        "no correction": by_hand.size(plain) / whole,
        "token weights": by_hand.size(by_hand.ascent(weights, policy, kept)) / whole,
        "sequence weights": by_hand.size(ideal) / whole,
        "second term": by_hand.size(plain - own) / whole,
    }


def wide(seed: int) -> xr.Dataset:
    """What top-p keeps of single rows as wide as a language model's."""
    rng = np.random.default_rng([seed, WIDE])
    rows = by_hand.softmax(SPREAD * rng.normal(size=(1, WIDE, 16)))
    kept = [by_hand.mass(rows, by_hand.truncated(rows, level))[0] for level in LEVELS]
    return xr.Dataset({"kept": (("top_p", "table"), np.array(kept))}, {"top_p": LEVELS})


def lengths(seed: int, size: Any) -> xr.Dataset:
    """E_q[Π S; length] and P_q(length) on trees whose last token ends an output."""
    free = Sequences(vocab=VOCAB, horizon=HORIZONS[-1], eos=VOCAB - 1)
    rng = np.random.default_rng([seed, 9])
    policy = by_hand.softmax(SPREAD * rng.normal(size=(free.offsets[-1], VOCAB, size.trees)))
    drawn = [by_hand.truncated(policy, level) for level in LEVELS]
    found = np.array([by_hand.by_length(q, by_hand.mass(policy, q)) for q in drawn])
    axes = {"top_p": LEVELS, "length": list(HORIZONS)}
    parts = {"weight": found[:, 0], "chance": found[:, 1]}
    return xr.Dataset({name: ((*axes, "table"), part) for name, part in parts.items()}, axes)


def handled(level: float) -> Mapping[str, tuple[float, ...]]:
    """Every handling as values of PATHS."""
    found = {name: (level, 1.0, *numbers) for name, numbers in HANDLINGS.items()}
    return found | {REPLAY: (level, level, *samplers.NONE)}


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Trees by enumeration; the library's updates and recorded ratios; training."""
    given = made(seed, TRAINED, size.tables)
    config = samplers.training(given, decoding=Decoding(top_p=1.0))
    settings = {level: handled(level) for level in [*CUTS, 1.0]}
    run = partial(samplers.swept, config, PATHS, name="top_p", root=seed)
    few = {level: handled(level) for level in LEVELS}
    ratios = ["mismatch", "mismatch_sequence"]
    first = run(few, axes={}, iterations=1, record=ratios, measure={"ascended": samplers.ascended})
    drawn = run(few, axes={"expectation.exact": [0.0]}, iterations=1, record=ratios, seeds=size.seeds)
    samplings = {"exact": 1.0, "sampled": 0.0}
    runs = run(
        settings, axes={"expectation.exact": samplings, "learning_rate": [RATE]}, iterations=size.iterations,
        record=[], record_start=True, record_every=5,
        measure={"plain": samplers.plain, "decoded": samplers.decoded, "outside": samplers.outside},
    )  # fmt: skip
    told: dict[str, Any] = {"handling": "no correction", "iteration": 1, "drop": True}
    return {
        "trees": by_enumeration(seed, size.trees, HORIZONS),
        "here": by_enumeration(seed, size.tables, [TRAINED]).isel(horizon=0, drop=True),
        "lengths": lengths(seed, size),
        "wide": wide(seed),
        "library": xr.Dataset({"residual": residuals(given, first.ascended.isel(seed=0))}),
        "recorded": first[ratios].isel(seed=0).sel(**told),
        "drawn": drawn[ratios].squeeze("expectation.exact", drop=True).sel(**told),
        "training": runs.isel(seed=0, learning_rate=0, drop=True).rename(
            {"context": "table", "expectation.exact": "sampling"}
        ),
    }


def residuals(given: Any, update: xr.DataArray) -> xr.DataArray:
    """Greatest |library − enumeration| of an update, by top-p and handling."""
    policy = by_hand.softmax(given.logits)
    found = []
    for level in LEVELS:
        sampler = by_hand.truncated(policy, level)
        weights = by_hand.centred(sampler, given.table)
        expected = {
            "no correction": by_hand.ascent(weights, policy),
            "token weights": by_hand.ascent(weights, policy, by_hand.mass(policy, sampler)),
            "sequence weights": by_hand.ascent(by_hand.corrected(sampler, policy, given.table), policy),
            REPLAY: by_hand.ascent(weights, sampler),
        }
        own = {name: update.sel(top_p=level, handling=name).values.squeeze() for name in expected}
        found.append([abs(own[name] - expected[name].transpose(2, 0, 1)).max() for name in expected])
    return xr.DataArray(found, {"top_p": LEVELS, "handling": list(expected)})


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """7269's mean ratio; 6789's share of the gradient; what training does; and how short answers gain."""
    found, training = data["trees"], data["training"]
    instrument(data, claim)
    gap = furthest(found.ratio - found.kept, tolerance=CLOSE, over="table")
    claim.refutes("mean ratio of tokens - kept mass", gap)
    far = found.mean("horizon")
    claim.reports("share of ratios outside [0.9, 1.1], top-p 0.8", mean(far.far.sel(top_p=0.8)))
    # without top-p the level plays no part: it is one number under all three
    control = mean(far["far, top-p 1"].sel(top_p=0.8))
    claim.reports("share of ratios outside [0.9, 1.1], control", control)
    claim.reports("mean sequence ratio", each(found.sequence, over="table"))
    apart = abs((found.ratio - found.kept).mean("table")).max()
    claim.finds(
        f"Mean ratio and kept mass are equal up to {float(apart):.4f}, with noise that puts "
        f"{control.value:.1%} of the control's ratios outside [.9, 1.1]; the thread's .896 beside .895 is "
        "within rounding.",
        when=gap,
    )
    judge_gradient(found, data["wide"].kept, claim)
    judge_bias(found, claim)
    judge_replay(training, claim)
    judge_lengths(data["lengths"], claim)
    judge_outside(training, claim)
    judge_collapse(training, claim)


def instrument(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Identities, the library against NumPy, samples, and the placebo."""
    found, here = data["trees"], data["here"]
    claim.requires(
        "E_q Π S - mass of outputs that can be drawn",
        worst(found.sequence, expected=found["outputs kept"], tolerance=1e-10),
    )
    claim.requires(
        "second term of the update at T = 1", worst(found["second term"].sel(horizon=1), tolerance=1e-10)
    )
    claim.requires("library's update - enumeration", worst(data["library"].residual, tolerance=1e-10))
    for name, own in (("mismatch", "mean mass"), ("mismatch_sequence", "sequence")):
        expected = here[own].mean("table")
        recorded = worst(data["recorded"][name], expected=expected, tolerance=1e-10)
        claim.requires(f"recorded {name} - enumeration", recorded)
        drawn = furthest(data["drawn"][name], expected, tolerance=0.01)
        claim.requires(f"sampled {name} - enumeration", drawn)
    same = data["training"].sel(top_p=1.0, drop=True)[["plain", "decoded"]].to_dataarray("policy")
    same = same.sel(handling=[*HANDLINGS, REPLAY], sampling="exact", drop=True)
    spread = same.max("handling") - same.min("handling")
    claim.requires("placebo, top-p 1: spread of J over handlings", worst(spread, tolerance=1e-10))


def judge_gradient(found: xr.Dataset, wide: xr.DataArray, claim: Claim) -> None:
    """6789: the gradient is scaled by S."""
    row = claim.also(
        '(trl 6789.) "exp(log_ratio) = S, so every per-token loss is scaled by the surviving mass"; at top-p '
        '0.9 "gradient kept: 90.0 %".'
    )
    scaled = found["mean mass"] * found["no correction"]
    gap = furthest(found["token weights"] - scaled, tolerance=GRADIENT, over="table")
    row.refutes("token weights: norm of the update over that without - mean ratio", gap)
    whole = furthest(found["sequence weights"] - scaled, tolerance=GRADIENT, over="table")
    row.qualifies(
        "sequence weights: the same",
        whole,
        only="with one weight for each token; TRL's default is one for a sequence",
    )
    kept = found.sel(top_p=0.9).mean("table")
    for name in ("token weights", "sequence weights"):
        row.reports(f"gradient kept at top-p 0.9, {name}", each(found[name].sel(top_p=0.9), over="table"))
    row.finds(
        f"At top-p 0.9 rows of {VOCAB} tokens keep {float(kept['mean mass'].mean()):.3f}, as the token that "
        f"crosses the level stays; rows of {WIDE:,} keep {float(wide.sel(top_p=0.9).mean()):.5f}, the "
        "thread's 90.0 %. Sequence weights keep "
        f"{float(kept['sequence weights'][0]):.2f} of the gradient at one token, "
        f"{float(kept['sequence weights'][-1]):.2f} at {HORIZONS[-1]}.",
        when=whole.holds is False,
    )
    row.reports(f"kept mass of rows of {WIDE:,} tokens", each(wide, over="table"))
    second = mean(found["second term"].sel(horizon=HORIZONS[-1], top_p=0.9))
    row.reports(
        f"second term of the uncorrected update over all of it, T = {HORIZONS[-1]}, top-p 0.9", second
    )


def judge_bias(found: xr.Dataset, claim: Claim) -> None:
    """The half of prime-rl 2979 that a tree can test."""
    row = claim.also('(prime-rl 2979.) Scored with the whole vocabulary "every importance ratio is biased".')
    below = each(found.ratio, over="table", expected=1 - BIAS, relation="at most")
    row.refutes("mean ratio of tokens", hardest(below))
    row.reports("mean ratio of tokens", below)


def judge_replay(training: xr.Dataset, claim: Claim) -> None:
    """twinkle 254: means over training, 1.4297 and 1.4547, with replay and without."""
    row = claim.also(
        '(twinkle 254.) Averaged over training "reward is comparable with and without replay", "with a small '
        'improvement when replay is enabled".'
    )
    means = training.decoded.sel(top_p=CUTS).mean("iteration")
    gaps = means.sel(handling=list(HANDLINGS)) - means.sel(handling=REPLAY, drop=True)
    for name in HANDLINGS:
        told = furthest(gaps.sel(handling=name, drop=True), tolerance=REWARD, over="table")
        judge = row.refutes if name in BIASED else row.reports
        judge(f"{name}: mean J of the sampled policy - with replay", told)
    numbers = each(gaps.sel(handling=list(BIASED)), over="table")
    row.reports("mean J of the sampled policy - with replay", numbers)
    ahead = sum(number.high is not None and number.high < 0 for number in numbers.values())
    behind = sum(number.low is not None and number.low > 0 for number in numbers.values())
    row.finds(f"Replay is surely ahead in {ahead} of {len(numbers)} settings, surely behind in {behind}.")


def judge_collapse(training: xr.Dataset, claim: Claim) -> None:
    """The other half of prime-rl 2979, which needs a setting in which something collapses."""
    row = claim.also('(prime-rl 2979, the rest.) "... and runs with truncated sampling collapse".')
    runs = training.decoded
    end, best, start = runs.isel(iteration=-1), runs.max("iteration"), runs.isel(iteration=0)
    fallen = ((end < best / 2) | (end < start)).astype(float)
    row.requires(
        "positive control: share of all runs that collapse",
        Number(float(fallen.mean()), expected=0.0, relation="differs"),
    )
    biased = fallen.sel(top_p=CUTS, handling=list(BIASED))
    lost = each(biased, over="table", expected=0.5, relation="at least")
    row.refutes("share of runs that collapse", hardest(lost))
    row.reports("share of runs that collapse", lost)
    row.finds(
        f"On trees of {TRAINED} tokens {int(biased.sum())} of {biased.size} runs with biased ratios do, and "
        f"{int(fallen.sum())} of {fallen.size} altogether."
    )


def judge_lengths(found: xr.Dataset, claim: Claim) -> None:
    """Ours: a sequence weight of Π S is a length bias."""
    row = claim.ours(
        "Sequence weights count an answer of six tokens at most nine tenths as much as one of one token."
    )
    whole = found.mean("table")
    share = whole.weight / whole.chance
    share = share / share.sel(length=1)
    last = found.sel(length=HORIZONS[-1]) / whole.chance.sel(length=HORIZONS[-1])
    for level in LEVELS:
        first = float((whole.weight / whole.chance).sel(top_p=level, length=1))
        here = last.sel(top_p=level)
        told = mean(here.weight / first - 0.9 * here.chance, expected=0.0, relation="at most")
        row.refutes(f"top-p {level}: weight at six tokens over that at one - 0.9", told)
        row.finds(
            f"At top-p {level} the weights at 2, 4 and 6 tokens are "
            + ", ".join(f"{float(share.sel(top_p=level, length=L)):.2f}" for L in (2, 4, 6))
            + "."
        )


def judge_outside(training: xr.Dataset, claim: Claim) -> None:
    """Ours: what becomes of the mass that the sampler cannot draw."""
    row = claim.ours(
        "Training under top-p does not unlearn what the sampler cannot draw, however its samples are "
        "weighed: that ends more likely than it was, and J of the softmax itself lower than after training "
        "without top-p."
    )
    for name in (*HANDLINGS, REPLAY):
        runs = training.sel(handling=name)
        for sampling in ("exact", "sampled"):
            here = runs.sel(sampling=sampling)
            end, start = here.sel(top_p=CUTS).isel(iteration=-1), here.sel(top_p=CUTS).isel(iteration=0)
            more = each(end.outside - start.outside, over="table", expected=0.0, relation="at least")
            row.refutes(f"{name}, {sampling}: mass outside, end - start", hardest(more))
            loss = end.plain - here.plain.sel(top_p=1.0).isel(iteration=-1)
            less = each(loss, over="table", expected=-REWARD, relation="at most")
            row.refutes(f"{name}, {sampling}: J of the softmax - J without top-p", hardest(less))
    means = training.sel(top_p=CUTS[0], handling="no correction", sampling="exact").mean("table")
    first, last = means.isel(iteration=0), means.isel(iteration=-1)
    row.finds(
        "Once one token holds top-p the sampler draws nothing else, and training stops. At top-p "
        f"{CUTS[0]} and T = {TRAINED} the mass outside goes from {float(first.outside):.2f} to "
        f"{float(last.outside):.2f}; J ends at {float(last.decoded):.3f} as sampled, at "
        f"{float(last.plain):.3f} if deployed without top-p."
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Mean ratio against kept mass; what is left of the gradient over T; J with and without top-p."""
    figure.set_size_inches(10, 3.1)
    headline, left, right = plotting.panels(figure, 1, 3)
    means = data["trees"].mean("table")
    headline.axline((1, 1), slope=1, color="0.6", lw=0.8, zorder=0)
    for level, color in zip(LEVELS, plotting.COLORS, strict=False):
        here = means.sel(top_p=level)
        headline.plot(here.kept, here.ratio, "o", ms=3, color=color, label=f"top-p {level:g}, T = 1..6")
    headline.plot(*THREAD, "k+", ms=7, label="the thread (trl 7269)")
    headline.legend(loc="upper left")
    headline.set(xlabel="mass that the engine keeps", ylabel="mean ratio of tokens")
    headline.set_title("The mean ratio is the kept mass")
    found = data["trees"].sel(top_p=0.9)
    styles = {"mean mass": "--", "token weights": "o-", "sequence weights": "o-"}
    for (name, style), color in zip(styles.items(), plotting.COLORS, strict=False):
        label = {"mean mass": "kept mass S"}.get(name, name)
        left.plot(found.horizon, found[name].mean("table"), style, ms=3, color=color, label=label, zorder=3)
    left.legend(loc="lower left")
    left.set(xlabel="T (tokens)", ylabel="share of the gradient kept", ylim=(0.5, 1.02))
    left.set_title("Sequence weights shrink it with T (top-p 0.9)")
    runs = data["training"].sel(handling="no correction", sampling="exact", drop=True)
    curves = {
        "as sampled": runs.decoded.sel(top_p=CUTS[0]),
        "softmax itself": runs.plain.sel(top_p=CUTS[0]),
        "trained without top-p": runs.plain.sel(top_p=1.0),
    }
    told = xr.concat(
        [line.drop_vars("top_p") for line in curves.values()], xr.Variable("policy", list(curves))
    )
    plotting.curves(right, told, over="table", x="iteration", by="policy")
    right.set(ylabel="J", title=f"The rest is not unlearnt (top-p {CUTS[0]})")
