"""[D] for sequences: top-p, temperature, an engine's mismatch, stale answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from experiments.harness.numbers import Number, mean, worst
from experiments.harness.verdict import Claim
from experiments.transfer.enumeration import (
    GROUP,
    ascent,
    chances,
    group_law,
    on_table,
    returns,
    spread_out,
    through,
    update,
)
from experiments.transfer.policies import ALLOWED, World, listed_from, table_of
from experiments.transfer.tasks import BINARY
from experiments.transfer.training import ADAMW, OPTIMIZERS, SGD, pace, train

F = 1 - 1 / GROUP
Engine = Callable[[np.ndarray], np.ndarray]
"""log π -> log q of the sampler, both [R, C, S, T]."""


def drawn(q: np.ndarray, now: np.ndarray, *, weighed: bool) -> np.ndarray:
    """Weights of the update with r − r̄ on answers of q, scored by π; as they are, or times their π/q."""
    advantage = np.add(*group_law(q, BINARY, normalized=False))
    law = np.where(chances(q) > 0, chances(now), 0) if weighed else chances(q)
    return spread_out(law * advantage)


def nucleus(p: float) -> Engine:
    """Top-p: at every prefix the likeliest tokens, up to the one that reaches p."""

    def engine(logp: np.ndarray) -> np.ndarray:
        table = table_of(logp)
        order = np.argsort(-table, -1, kind="stable")
        held = np.take_along_axis(table, order, -1)
        inside = np.cumsum(held, -1) - held < p
        kept = np.take_along_axis(inside, np.argsort(order, -1), -1) * table
        return listed_from(kept / kept.sum(-1, keepdims=True))

    return engine


def tempered(tau: float) -> Engine:
    """Every token's law to the power 1/τ, normalised."""

    def engine(logp: np.ndarray) -> np.ndarray:
        sharp = table_of(logp) ** (1 / tau)
        return listed_from(sharp / sharp.sum(-1, keepdims=True))

    return engine


def mismatched(scale: float, root: int) -> Engine:
    """Fixed noise on every logit of the table, the same for all policies and runs."""
    noise = np.exp(scale * np.random.default_rng([root, 3]).normal(size=(3, *ALLOWED.shape)))

    def engine(logp: np.ndarray) -> np.ndarray:
        moved = table_of(logp) * noise
        return listed_from(moved / moved.sum(-1, keepdims=True))

    return engine


def d1(world: World, claim: Claim) -> None:
    """Training under top-p does not unlearn what the sampler cannot draw, however its answers are weighed.

    Top-p .8 in the sampler alone; r − r̄, exact updates without weights and with π/q of an answer, SGD
    and AdamW, 120 steps that would begin by raising J by .01 without top-p. The mass outside is the
    chance that the policy's own answer has a token that its sampler would not draw; J is the policy's,
    without top-p.

    Refuted if the mass outside ends below what it was, or J above that after training without top-p (99.9 %),
    each handling and optimizer by itself (the claim's own rule). E_q[π/q] must be the mass inside (1e-10).
    """
    engine, plain = nucleus(0.8), world.listed(world.start)

    def outside(logp: np.ndarray) -> np.ndarray:
        return 1 - np.sum(np.where(chances(engine(logp)) > 0, chances(logp), 0), -1).mean(-1)

    weights = np.where(chances(engine(plain)) > 0, chances(plain), 0).sum(-1).mean(-1)
    claim.requires(
        "E[π/q] less the mass inside", worst(weights + outside(plain), expected=1.0, tolerance=1e-10)
    )
    told = []
    for name, optimizer in OPTIMIZERS.items():
        rate = pace(world, lambda old, now: update(old, now, BINARY), optimizer, BINARY)
        steps = world.steps(120)
        free = train(world, lambda old, now: update(old, now, BINARY), optimizer, rate, steps).logp[-1]
        for handling, weighed in (("none", False), ("π/q", True)):

            def rule(old: np.ndarray, now: np.ndarray, weighed: bool = weighed) -> np.ndarray:
                return drawn(engine(old), now, weighed=weighed)

            end = train(world, rule, optimizer, rate, steps).logp[-1]
            rise = outside(end) - outside(plain)
            claim.refutes(
                f"{name}, {handling}: mass outside, rise", mean(rise, expected=0, relation="at least")
            )
            lost = returns(end, BINARY) - returns(free, BINARY)
            claim.refutes(
                f"{name}, {handling}: J against no top-p", mean(lost, expected=0, relation="at most")
            )
            told.append(f"{outside(end).mean():.2f} ({name}, {handling})")
    claim.finds(f"The mass outside goes from {outside(plain).mean():.2f} to {', '.join(told)}.")


def sines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[R] |sine| of the angle between parameters' directions [R, D]."""
    cosine = np.sum(one * other, 1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return np.sqrt(np.maximum(1 - cosine**2, 0))


def own_gradient(logp: np.ndarray, q: np.ndarray, tau: float) -> np.ndarray:
    """Weights of ∇J_τ, the return of the tempered policy q itself."""
    law = table_of(q)
    sums = through(q, np.broadcast_to(BINARY, chances(q).shape))
    return on_table((sums - law * sums.sum(-1, keepdims=True)) / tau) / logp.shape[1]


def d2(world: World, claim: Claim) -> None:
    """Sampled at a temperature and scored without it, updates are off-policy, and raw log-probabilities,
    whose ratios are 1, do not correct them.

    Temperatures of .6 and 1.5, r − r̄, constant weights, expected updates; distance is |sine| of the angle
    between updates in the parameters, so that learning rates do not count.

    Refuted if at some temperature the update lies within .05 of ∇J (99.9 %). Qualified if it lies within
    .05 of ∇J_τ, the sampler's own (the claim's own margins). A row of ours on training: refuted if after
    120 steps of SGD the colder of the two policies at 1 and at τ has the lower J, by .005.
    """
    row = claim.ours("After training, the colder of the policies at 1 and at τ does not have the lower J.")
    plain = world.listed(world.start)
    up = world.pull(world.start, ascent(plain, BINARY))
    rate = pace(world, lambda old, now: update(old, now, BINARY), SGD, BINARY)
    for tau in (0.6, 1.5):
        engine = tempered(tau)
        q = engine(plain)
        found = world.pull(world.start, drawn(q, plain, weighed=False))
        away = sines(found, up)
        claim.refutes(f"τ = {tau}: distance to ∇J", mean(away, expected=0.05, relation="at least"))
        own = sines(found, world.pull(world.start, own_gradient(plain, q, tau)))
        number = mean(own, expected=0.05, relation="at least")
        claim.qualifies(f"τ = {tau}: distance to ∇J_τ", number, only="against ∇J, not against ∇J_τ")
        claim.finds(f"At τ = {tau} it is {away.mean():.2f} from ∇J and {own.mean():.2f} from ∇J_τ.")

        def rule(old: np.ndarray, now: np.ndarray, engine: Engine = engine) -> np.ndarray:
            return drawn(engine(old), now, weighed=False)

        end = train(world, rule, SGD, rate, world.steps(120)).logp[-1]
        lead = (returns(engine(end), BINARY) - returns(end, BINARY)) * (1 if tau < 1 else -1)
        cold = mean(lead, expected=0.0, tolerance=0.005, relation="at least")
        row.refutes(f"τ = {tau}: J of the colder, less the hotter's", cold)


def d3(world: World, claim: Claim) -> None:
    """Under an engine's mismatch sequence weights give f·∇J(π), and an update without them does not.

    Fixed noise of .4 on every logit of the sampler, f = 1 − 1/G, r − r̄, constant weights. And a row of ours
    on training: SGD and AdamW, 120 steps that begin by raising J by .01 without mismatch.

    Refuted if with weights the expected update misses f ∇J by 1e-10 of its length, or if without them it
    lies within .05 (|sine|, 99.9 %). The row is refuted if uncorrected training ends with a J that is
    lower by more than .05 than without mismatch.
    """
    plain, engine = world.listed(world.start), mismatched(0.4, world.root)
    q = engine(plain)
    up = F * world.pull(world.start, ascent(plain, BINARY))
    with_, without = (world.pull(world.start, drawn(q, plain, weighed=weighed)) for weighed in (True, False))
    error = np.linalg.norm(with_ - up, axis=1) / np.linalg.norm(up, axis=1)
    claim.refutes("with weights: error over length", worst(error, tolerance=1e-10))
    away = sines(without, up)
    claim.refutes("without: distance to ∇J", mean(away, expected=0.05, relation="at least"))
    claim.finds(f"Uncorrected, the update is {away.mean():.2f} from ∇J.")
    row = claim.ours("Left uncorrected, the mismatch costs training less than .05 of return.")
    for name, optimizer in OPTIMIZERS.items():
        rate = pace(world, lambda old, now: update(old, now, BINARY), optimizer, BINARY)
        steps = world.steps(120)
        free = train(world, lambda old, now: update(old, now, BINARY), optimizer, rate, steps)
        off = train(world, lambda old, now: drawn(engine(old), now, weighed=False), optimizer, rate, steps)
        cost = returns(free.logp[-1], BINARY) - returns(off.logp[-1], BINARY)
        row.refutes(f"{name}: J lost", mean(cost, expected=0.05, relation="at most"))
        row.finds(f"Under {name} it costs {cost.mean():+.3f}.")


STALE = 8
RATES = (1.0, 2.0, 4.0, 8.0)


def d4(world: World, claim: Claim) -> None:
    """On stale answers a relaxed clip preserves useful gradients: return is higher than under a tight one.

    Answers eight batches old, one step a batch, 60 batches, token ratios against the sampler, r − r̄,
    AdamW; clipped at 1 ± .2 or not at all, each at the best of four rates from the one that raises J by
    .01 at first.

    Refuted if mean J over the run is not higher by more than .01 without a tight clip (99.9 %; the
    claim's own margin). Not decided where a best rate is the grid's first or last: beyond it the lead falls
    on a table. Told: how many runs collapse, whose J ends below half of its best, at any rate.
    """
    rate = pace(world, lambda old, now: update(old, now, BINARY), ADAMW, BINARY)
    best, collapsed, runs = {}, 0, 0
    for told, clip in (("tight", "two-sided"), ("relaxed", "none")):

        def rule(old: np.ndarray, now: np.ndarray, clip: str = clip) -> np.ndarray:
            return update(old, now, BINARY, clip=clip)

        paths = [
            train(world, rule, ADAMW, times * rate, world.steps(60), lag=STALE).returns(BINARY)
            for times in RATES
        ]
        collapsed += sum(int(np.sum(path[-1] < path.max(0) / 2)) for path in paths)
        runs += sum(path.shape[1] for path in paths)
        means = np.stack([path[1:].mean(0) for path in paths])
        place = int(means.mean(1).argmax())
        claim.requires(f"{told}: best rate inside the grid", Number(float(0 < place < len(RATES) - 1), 1.0))
        best[told] = means[place]
    lead = best["relaxed"] - best["tight"]
    claim.refutes("lead of the relaxed clip in mean J", mean(lead, expected=0.01, relation="at least"))
    claim.finds(f"The relaxed clip leads by {lead.mean():+.3f}; {collapsed} of {runs} runs collapse.")
