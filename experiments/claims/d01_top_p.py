"""(trl 7269.) Under truncated sampling the ratio carries "a factor equal to the kept probability mass of each
position"; "the full-vocabulary mean equals the kept mass".

github.com/huggingface/trl/pull/7269: an engine that renormalises what top-p keeps, a trainer that scores with
the whole vocabulary; at kept mass .895 a mean ratio of .896, at .965 of .965, in the control (top-p 1) .995
at .994. Beside it, in rows of their own, trl 6789, prime-rl 2979 and twinkle 254. Random trees of T = 1..6
tokens out of five. The engine differs from the trainer by fixed noise on the logits of .05, which puts as
many ratios outside [.9, 1.1] in the control as the thread reports (6.9 %): with noise the sentence is no
identity, as the engine's kept mass is not the trainer's.

Refuted if at some T, for top-p of .8, .9 or .95, the mean ratio of tokens that the engine draws is not within
.002 (the thread's rounding, doubled) of the mass that the engine keeps, means over trees. 6789 is refuted if
the norm of the update with token weights is not within .02 of the mean ratio times that without, and
qualified if that with sequence weights, TRL's default, is not. 2979 is refuted unless half of the runs end
below half of their best J, or below their start; 254 if a handling ends more than .02 from replay. Lengths
(ours): a margin of a tenth. The mass outside (ours): our first guess, that training halves it, failed in a
draft; the row says what came instead, with a margin of .02 in J. Checks of our instrument: the identity
without noise, the library's update against enumeration in NumPy (1e-10), sampled mean ratios, and a placebo:
at top-p 1 every handling is the same.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas import sampler_bias as by_hand
from experiments.harness.numbers import each, furthest, hardest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import samplers
from experiments.problems.trees import Problem, problem
from grpo_jax import plotting
from grpo_jax.decoding import Decoding
from grpo_jax.sequences import Sequences

PRECISION = "float64"
SIZES = sizes(trees=(64, 256, 512), tables=(16, 160, 512), iterations=(20, 60, 200), seeds=(32, 32, 128))

VOCAB, SPREAD, NOISE = 5, 2.0, 0.05
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
CLOSE, GRADIENT, REWARD = 0.002, 0.02, 0.02


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
    often = by_hand.visits(sampler) / horizon
    seen = by_hand.visits(drawn)[:, None] * drawn / horizon
    weights = by_hand.centred(sampler, table)
    plain, own = by_hand.ascent(weights, policy), by_hand.ascent(weights, sampler)
    ratio = np.where(drawn > 0, policy / np.where(drawn > 0, drawn, 1), 1)
    whole = by_hand.size(plain).mean()
    ideal = by_hand.ascent(by_hand.corrected(sampler, policy, table), policy)
    return {
        "ratio": (seen * ratio).sum((0, 1)),
        "kept": (by_hand.visits(drawn) / horizon * by_hand.mass(engine, drawn)).sum(0),
        "far": (seen * (abs(ratio - 1) > 0.1)).sum((0, 1)),
        "mean mass": (often * kept).sum(0),
        "sequence": (by_hand.products(sampler) * by_hand.products(np.repeat(kept[:, None], VOCAB, 1))).sum(0),
        "outputs kept": np.where(by_hand.products(sampler) > 0, by_hand.products(policy), 0).sum(0),
        "no correction": by_hand.size(plain) / whole,
        "token weights": by_hand.size(by_hand.ascent(weights, policy, kept)) / whole,
        "sequence weights": by_hand.size(ideal) / whole,
        "second term": by_hand.size(plain - own) / whole,
    }


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
    far = mean(found.far.sel(top_p=0.8).mean("horizon"))
    claim.reports("share of ratios outside [0.9, 1.1], top-p 0.8", far)
    claim.reports("mean sequence ratio", each(found.sequence, over="table"))
    low, high = (float(end) for end in (0.895 + (found.ratio - found.kept).mean("table")).quantile([0, 1]))
    claim.finds(
        f"At a kept mass of .895 trees and noise of {NOISE} predict a mean ratio of {low:.4f} to {high:.4f}; "
        "the user measured .896.",
        when=gap,
    )
    judge_gradient(found, claim)
    judge_training(training, claim)
    judge_lengths(data["lengths"], claim)
    judge_outside(training, claim)


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


def judge_gradient(found: xr.Dataset, claim: Claim) -> None:
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
    row.reports(
        "gradient kept at top-p 0.9, token weights", each(found["token weights"].sel(top_p=0.9), over="table")
    )
    row.reports(
        "gradient kept at top-p 0.9, sequence weights",
        each(found["sequence weights"].sel(top_p=0.9), over="table"),
    )
    row.finds(
        f"At top-p 0.9 the mean kept mass is {float(kept['mean mass'].mean()):.3f}, not 0.900: the token "
        "that crosses the level stays. Sequence weights keep "
        f"{float(kept['sequence weights'][0]):.2f} of the gradient at one token, "
        f"{float(kept['sequence weights'][-1]):.2f} at {HORIZONS[-1]}.",
        when=whole.holds is False,
    )
    second = mean(found["second term"].sel(horizon=HORIZONS[-1], top_p=0.9))
    row.reports(
        f"second term of the uncorrected update over all of it, T = {HORIZONS[-1]}, top-p 0.9", second
    )


def judge_training(training: xr.Dataset, claim: Claim) -> None:
    """prime-rl 2979 and twinkle 254 say opposite things of one and the same comparison."""
    row = claim.also(
        '(prime-rl 2979.) Scored with the whole vocabulary "every importance ratio is biased, and runs with '
        'truncated sampling collapse".'
    )
    runs = training.decoded.sel(top_p=CUTS, handling=list(BIASED))
    end, best, start = runs.isel(iteration=-1), runs.max("iteration"), runs.isel(iteration=0)
    fallen = ((end < best / 2) | (end < start)).astype(float)
    lost = each(fallen, over="table", expected=0.5, relation="at least")
    row.refutes("share of runs that collapse", hardest(lost))
    row.reports(
        "share of runs that collapse, all settings",
        mean(fallen.mean(["top_p", "handling", "sampling"])),
    )
    row.finds(
        f"On trees of {TRAINED} tokens {int(fallen.sum())} of {fallen.size} runs with biased ratios do.",
        when=hardest(lost).holds is False,
    )
    other = claim.also('(twinkle 254.) "Reward is comparable with and without replay."')
    replay = training.decoded.sel(top_p=CUTS, handling=REPLAY, drop=True).isel(iteration=-1)
    for name in HANDLINGS:
        gap = training.decoded.sel(top_p=CUTS, handling=name, drop=True).isel(iteration=-1) - replay
        told = furthest(gap, tolerance=REWARD, over="table")
        if name in BIASED:
            other.refutes(f"{name}: final J of the sampled policy - with replay", told)
        else:
            other.reports(f"{name}: final J of the sampled policy - with replay", told)


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
    """What is left of the gradient over T with either weight, and J with and without top-p in training."""
    figure.set_size_inches(7, 3.1)
    left, right = plotting.panels(figure, 1, 2)
    found = data["trees"].sel(top_p=0.9)
    lines = {
        "kept mass S": "mean mass",
        "token weights": "token weights",
        "sequence weights": "sequence weights",
    }
    for (label, name), color in zip(lines.items(), plotting.COLORS, strict=False):
        style = "--" if name == "mean mass" else "o-"
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
