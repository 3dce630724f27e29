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
‖update with token weights‖ over ‖update without‖ is not within .02 of the mean ratio, and qualified if that
of sequence weights, TRL's default, is not. Collapse: final J below half of the best on the way, or below the
start. Comparable: final J within .02 of that with replay. Checks of our instrument: the identity without
noise, the library's update against enumeration in NumPy (1e-10), sampled mean ratios, and a placebo: at
top-p 1 every handling is the same.
"""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas import sampler_bias as by_hand
from experiments.harness.numbers import Number, each, furthest, hardest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import samplers
from experiments.problems.trees import problem
from grpo_jax import plotting
from grpo_jax.decoding import Decoding
from grpo_jax.sequences import Sequences

PRECISION = "float64"
SIZES = sizes(tables=(16, 48, 128), iterations=(20, 100, 200), seeds=(32, 64, 256))

VOCAB, SPREAD, NOISE = 5, 2.0, 0.05
LEVELS = [0.8, 0.9, 0.95]
HORIZONS = range(1, 7)
PATHS = ("behavior.decoding.top_p", "policy.decoding.top_p", *samplers.PATHS)
TRAINED = 3
"""Tokens of the trees that are trained."""
RATES = [2.0, 8.0, 32.0]
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
DIMS = ("horizon", "top_p", "table")


def space(horizon: int) -> Sequences:
    """Every sequence of so many tokens."""
    return Sequences(vocab=VOCAB, horizon=horizon)


def by_enumeration(seed: int, size: Any) -> xr.Dataset:
    """Ratios with an engine of its own and without, and updates, for every T and top-p, tree by tree."""
    found: dict[str, list[Any]] = {}
    for horizon in HORIZONS:
        given = problem(seed, space(horizon), tables=size.tables, kind="graded", spread=SPREAD)
        policy = by_hand.softmax(given.logits)
        noise = np.random.default_rng([seed, horizon]).normal(size=given.logits.shape)
        engine = by_hand.softmax(given.logits + NOISE * noise)
        rows = [tree_numbers(policy, engine, given.table, level, horizon) for level in LEVELS]
        for name in rows[0]:
            found.setdefault(name, []).append([row[name] for row in rows])
    axes = {"horizon": list(HORIZONS), "top_p": LEVELS}
    return xr.Dataset({name: (DIMS, np.array(value)) for name, value in found.items()}, axes)


def tree_numbers(policy, engine, table, level: float, horizon: int) -> dict[str, np.ndarray]:
    """What one top-p does on trees of one T: ratios, masses and norms of updates, each [tables]."""
    drawn, sampler = by_hand.truncated(engine, level), by_hand.truncated(policy, level)
    kept = by_hand.mass(policy, sampler)
    often = by_hand.visits(sampler) / horizon
    seen = by_hand.visits(drawn)[:, None] * drawn / horizon
    weights = by_hand.centred(sampler, table)
    plain, own = by_hand.ascent(weights, policy), by_hand.ascent(weights, sampler)
    ratio = np.where(drawn > 0, policy / np.where(drawn > 0, drawn, 1), 1)
    whole = by_hand.size(plain)
    return {
        "ratio": (seen * ratio).sum((0, 1)),
        "kept": (by_hand.visits(drawn) / horizon * by_hand.mass(engine, drawn)).sum(0),
        "far": (seen * (abs(ratio - 1) > 0.1)).sum((0, 1)),
        "mean mass": (often * kept).sum(0),
        "sequence": (by_hand.products(sampler) * by_hand.products(np.repeat(kept[:, None], VOCAB, 1))).sum(0),
        "outputs kept": np.where(by_hand.products(sampler) > 0, by_hand.products(policy), 0).sum(0),
        "token weights": by_hand.size(by_hand.ascent(weights, policy, kept)) / whole,
        "sequence weights": by_hand.size(by_hand.ascent(by_hand.corrected(sampler, policy, table), policy))
        / whole,
        "second term": by_hand.size(plain - own) / whole,
    }


def lengths(seed: int, size: Any) -> xr.DataArray:
    """Mean sequence weight of drawn outputs by length, on trees whose last token ends an output."""
    free = Sequences(vocab=VOCAB, horizon=HORIZONS[-1], eos=VOCAB - 1)
    logits = SPREAD * np.random.default_rng([seed, 9]).normal(size=(free.offsets[-1], VOCAB, size.tables))
    policy = by_hand.softmax(logits)
    found = []
    for level in LEVELS:
        sampler = by_hand.truncated(policy, level)
        weight, chance = by_hand.by_length(sampler, by_hand.mass(policy, sampler))
        found.append(weight.mean(1) / chance.mean(1))
    return xr.DataArray(found, {"top_p": LEVELS, "length": list(HORIZONS)})


def handled(level: float) -> dict[str, tuple[float, ...]]:
    """Every handling as values of PATHS."""
    found = {name: (level, 1.0, *numbers) for name, numbers in HANDLINGS.items()}
    return found | {REPLAY: (level, level, *samplers.NONE)}


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Trees by enumeration; the library's updates and recorded ratios; training."""
    given = problem(seed, space(TRAINED), tables=size.tables, kind="graded", spread=SPREAD)
    config = samplers.training(given, decoding=Decoding(top_p=1.0))
    settings = {level: handled(level) for level in [*LEVELS, 1.0]}
    run = partial(samplers.swept, config, PATHS, name="top_p", root=seed)
    few = {level: settings[level] for level in LEVELS}
    ratios = ["mismatch", "mismatch_sequence"]
    first = run(few, axes={}, iterations=1, record=ratios, measure={"update": samplers.ascended})
    drawn = run(few, axes={"expectation.exact": [0.0]}, iterations=1, record=ratios, seeds=size.seeds)
    samplings = {"exact": 1.0, "sampled": 0.0}
    runs = run(
        settings, axes={"expectation.exact": samplings, "learning_rate": RATES}, iterations=size.iterations,
        record=[], record_start=True, record_every=5,
        measure={"plain": samplers.plain, "decoded": samplers.decoded, "outside": samplers.outside},
    )  # fmt: skip
    told = {"handling": "no correction", "iteration": 1, "drop": True}
    return {
        "trees": by_enumeration(seed, size),
        "lengths": xr.Dataset({"weight": lengths(seed, size)}),
        "library": xr.Dataset({"residual": residuals(given, first.update.isel(seed=0))}),
        "recorded": first[ratios].isel(seed=0).sel(**told),
        "drawn": drawn[ratios].squeeze("expectation.exact", drop=True).sel(**told),
        "training": runs.isel(seed=0, drop=True).rename(
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
    judge_lengths(data["lengths"].weight, found, claim)
    judge_outside(training, claim)


def instrument(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Identities, the library against NumPy, samples, and the placebo."""
    found, here = data["trees"], data["trees"].sel(horizon=TRAINED, drop=True)
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
    gap = furthest(found["token weights"] - found["mean mass"], tolerance=GRADIENT, over="table")
    row.refutes("token weights: norm of the update over that without - mean ratio", gap)
    whole = furthest(found["sequence weights"] - found["mean mass"], tolerance=GRADIENT, over="table")
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
    runs = training.decoded.sel(top_p=LEVELS, handling=list(BIASED))
    end, best, start = runs.isel(iteration=-1), runs.max("iteration"), runs.isel(iteration=0)
    fallen = ((end < best / 2) | (end < start)).astype(float)
    lost = each(fallen, over="table", expected=0.5, relation="at least")
    row.refutes("share of runs that collapse", hardest(lost))
    row.reports(
        "share of runs that collapse, all settings",
        mean(fallen.mean(["top_p", "handling", "sampling", "learning_rate"])),
    )
    row.finds(
        f"On trees of {TRAINED} tokens {float(fallen.mean()):.1%} of runs with biased ratios collapse.",
        when=hardest(lost).holds is False,
    )
    other = claim.also('(twinkle 254.) "Reward is comparable with and without replay."')
    replay = training.decoded.sel(top_p=LEVELS, handling=REPLAY, drop=True).isel(iteration=-1)
    for name in HANDLINGS:
        gap = training.decoded.sel(top_p=LEVELS, handling=name, drop=True).isel(iteration=-1) - replay
        told = furthest(gap, tolerance=REWARD, over="table")
        if name in BIASED:
            other.refutes(f"{name}: final J of the sampled policy - with replay", told)
        else:
            other.reports(f"{name}: final J of the sampled policy - with replay", told)


def judge_lengths(weight: xr.DataArray, found: xr.Dataset, claim: Claim) -> None:
    """Ours: a sequence weight of Π S is a length bias."""
    row = claim.ours(
        "Sequence weights count an answer of six tokens at most nine tenths as much as one of one token."
    )
    share = weight / weight.sel(length=1)
    for level in LEVELS:
        last = float(share.sel(top_p=level, length=HORIZONS[-1]))
        told = Number(last, 0.9, relation="at most")
        row.refutes(f"top-p {level}: weight at six tokens over that at one", told)
        row.finds(f"At top-p {level}: {last:.2f} of it.", when=told)


def judge_outside(training: xr.Dataset, claim: Claim) -> None:
    """Ours: what becomes of the mass that the sampler cannot draw."""
    row = claim.ours(
        "Training halves the mass that the sampler cannot draw, however its samples are weighed."
    )
    runs = training.outside.sel(top_p=0.9, sampling="exact", learning_rate=RATES[1], drop=True)
    for name in (*HANDLINGS, REPLAY):
        here = runs.sel(handling=name)
        start, end = here.isel(iteration=0), here.isel(iteration=-1)
        row.refutes(
            f"{name}: at the end - half of it", mean(end - start / 2, expected=0.0, relation="at most")
        )
        row.finds(f"{name}: from {float(start.mean()):.3f} to {float(end.mean()):.3f}.")


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """What is left of the gradient over T with either weight, and the mass outside during training."""
    figure.set_size_inches(7, 3.1)
    left, right = plotting.panels(figure, 1, 2)
    found = data["trees"].sel(top_p=0.9)
    lines = {
        "kept mass": "mean mass",
        "token weights": "token weights",
        "sequence weights": "sequence weights",
    }
    for (label, name), color in zip(lines.items(), plotting.COLORS, strict=False):
        left.plot(found.horizon, found[name].mean("table"), "o-", ms=3, color=color, label=label)
    left.legend()
    left.set(
        xlabel="T (tokens)",
        ylabel="share of the gradient kept",
        ylim=(0, 1.02),
        title="Top-p 0.9: Π S, not S, …",
    )
    runs = data["training"].outside.sel(top_p=0.9, sampling="exact", learning_rate=RATES[1], drop=True)
    plotting.curves(right, runs, over="table", x="iteration", by="handling")
    right.set(ylabel="mass that top-p does not keep", title="… and what becomes of the rest")
