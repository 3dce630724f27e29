"""[E] for sequences: which KL, what a spread weighs, successes, dead groups, phantom advantages,
truncation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import furthest, mean, worst
from experiments.harness.verdict import Claim
from experiments.transfer import surrogate
from experiments.transfer.c_ratios import directions, drifted
from experiments.transfer.enumeration import (
    GROUP,
    ascent,
    chances,
    divergence,
    expected,
    group_law,
    returns,
    spread_out,
    update,
)
from experiments.transfer.policies import LENGTH, MASK, NEVER, SPACE, World
from experiments.transfer.tasks import BINARY, ENDED, RARE
from experiments.transfer.training import ADAMW, OPTIMIZERS, SGD, pace, train
from grpo_jax.parts.penalties import K3, Penalty, RatioWeight

Weight = Callable[[np.ndarray], np.ndarray]
"""log π [R, C, S, T] -> the weight of each prompt, [R, C]."""

WEIGHTED = replace(gj.methods.dr_grpo, penalty=Penalty(divergence=K3(), weight=RatioWeight(), coef=1.0))
"""k3 times the ratio, token by token; no pull of rewards that tie."""


def reverse(logp: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Weights of ∇KL(π‖π_ref) of whole answers."""
    return ascent(logp, np.sum((logp - reference) * MASK, -1))


def token_by_token(logp: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Weights of the gradient of k3 times the ratio in the loss, on-policy: log π/π_ref on each own token."""
    return chances(logp)[..., None] * (logp - reference) * MASK / logp.shape[1]


def e1(world: World, claim: Claim) -> None:
    """k3 times the importance ratio, token by token in the loss, has the gradient of KL(π‖π_ref) of answers.

    On-policy; π is .1 and .3 nats from π_ref, at random and along ∇J. Expected gradients.

    Refuted if it misses more than 5 % of the longer one of the two gradients, mean over starts (99.9 %;
    the claim's own margin), somewhere. A row of ours, that k1 in the reward has that gradient: refuted if
    the change of the KL along it, by central differences, is not the square of its length, to 1e-4. The
    library's surrogate must put the enumerated weights on ∇log π (1e-10).
    """
    row = claim.ours("k1 in the reward has the gradient of KL(π‖π_ref) of whole answers.")
    reference = world.listed(world.start)
    told = []
    for name, direction in directions(world, BINARY).items():
        for nats in (0.1, 0.3) if name != "descent" else ():
            there = drifted(world, direction, nats)
            logp = world.listed(there)
            whole = world.pull(there, reverse(logp, reference))
            single = world.pull(there, token_by_token(logp, reference))
            longer = np.maximum(np.linalg.norm(whole, axis=1), np.linalg.norm(single, axis=1))
            missed = np.linalg.norm(whole - single, axis=1) / longer
            number = mean(missed, expected=0.05, relation="at most")
            claim.refutes(f"{name}, {nats} nats: share missed", number)
            told.append(f"{missed.mean():.0%}")
            square = np.sum(whole**2, 1)
            step = 1e-4 * whole / np.sqrt(square)[:, None]
            rise = [divergence(world.listed(there + sign * step), reference) for sign in (1, -1)]
            slope = (rise[0] - rise[1]) / (2e-4 * np.sqrt(square))
            row.refutes(f"{name}, {nats} nats: slope", worst(slope, expected=1.0, tolerance=1e-4))
    claim.finds(f"It misses {', '.join(told)} of it, at random and along ∇J, at .1 and .3 nats.")
    own = surrogate.weights(WEIGHTED, np.zeros_like(BINARY), logp[0], logp[0], reference[0])
    hand = -token_by_token(logp[:1], reference[:1])[0]
    claim.requires("the library's weights - by enumeration", worst(own, expected=hand, tolerance=1e-10))


def sigma_weight(p: np.ndarray) -> np.ndarray:
    """w_G(p) = E√(K(G − K))/(G p(1 − p)), K ~ Bin(G, p): what dividing by σ weighs a question by."""
    k = np.arange(1, GROUP)
    ways = np.array([math.comb(GROUP, int(n)) for n in k])
    law = ways * p[..., None] ** (k - 1) * (1 - p[..., None]) ** (GROUP - k - 1)
    return np.sum(law * np.sqrt(k * (GROUP - k)), -1) / GROUP


def weighed(logp: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weights [R, C, S, T] of Σ_c w_c ∇p_c over the mean w, [R, C]: an effective rate of 1."""
    return ascent(logp, BINARY) * (weight / weight.mean(1, keepdims=True))[:, :, None, None]


def e2(world: World, claim: Claim) -> None:
    """Dividing by the group's σ moves the success rate by at most .02 all along, at equal effective rates.

    Right and wrong answers of three prompts, .15 to .7 right at random; groups of 8, exact updates, SGD, 100
    steps that begin by raising J by .01; each update is divided by the mean weight of its prompts.

    Refuted if mean success rates differ by more than .02 at some step (99.9 %; the claim's own margin). That
    dividing by σ ascends Σ w_G(p) ∇p is a check (1e-10).
    """
    plain = world.listed(world.start)
    by_formula = ascent(plain, BINARY) * sigma_weight(expected(plain, BINARY))[:, :, None, None]
    by_groups = world.pull(world.start, update(plain, plain, BINARY, normalized=True))
    hand = world.pull(world.start, by_formula)
    claim.requires("update over σ - Σ w ∇p", worst(by_groups, expected=hand, tolerance=1e-10))

    def divided(old: np.ndarray, now: np.ndarray) -> np.ndarray:
        return weighed(now, sigma_weight(expected(now, BINARY)))

    rate = pace(world, lambda old, now: ascent(now, BINARY), SGD, BINARY)
    paths = [
        train(world, rule, SGD, rate, world.steps(100)).returns(BINARY)
        for rule in (divided, lambda old, now: ascent(now, BINARY))
    ]
    gap = xr.DataArray(paths[0] - paths[1], {"iteration": np.arange(len(paths[0]))}, ("iteration", "seed"))
    claim.refutes("J divided by σ, less not", furthest(gap, tolerance=0.02))
    claim.finds(f"The means over starts differ by {np.abs(gap.mean('seed')).max().item():.3f} at most.")


def e3(world: World, claim: Claim) -> None:
    """Averaging over successes only (MaxRL) brings the hardest prompt further, at equal effective rates.

    (r − r̄)/r̄ against r − r̄ and (r − r̄)/σ; groups of 8, exact updates, SGD, 60 steps that begin by
    raising J by .01; each update is divided by the mean weight of its prompts. The prompt of .15 right
    answers, its success rate averaged over training.

    Refuted if MaxRL does not have it further than either by .02 (99.9 %; the margin that the claim's
    guess had). The library's surrogate must put ∇J_{G−1}, weight (1 − (1 − p)^{G−1})/p, on ∇log π
    (1e-10).
    """
    plain = world.listed(world.start)

    def successes(logp: np.ndarray) -> np.ndarray:
        p = expected(logp, BINARY)
        return (1 - (1 - p) ** (GROUP - 1)) / p

    hand = (ascent(plain, BINARY) * successes(plain)[:, :, None, None])[0]
    own = surrogate.weights(gj.methods.max_rl, BINARY, plain[0], plain[0])
    # On ∇log π weights are unique up to a constant times π on each prompt: Σ π ∇log π = 0.
    level = (own - hand)[:, 0, 0] / np.exp(plain[0, :, 0].sum(-1))
    rest = own - hand - level[:, None, None] * np.exp(plain[0].sum(-1))[..., None] * MASK
    claim.requires("the library's weights - by enumeration", worst(rest, tolerance=1e-10))
    rate = pace(world, lambda old, now: ascent(now, BINARY), SGD, BINARY)
    weights: dict[str, Weight] = {
        "MaxRL": successes,
        "r − r̄": lambda logp: np.ones(logp.shape[:2]),
        "σ": lambda logp: sigma_weight(expected(logp, BINARY)),
    }
    hard = {}
    for name, weight in weights.items():

        def rule(old: np.ndarray, now: np.ndarray, weight: Weight = weight) -> np.ndarray:
            return weighed(now, weight(now))

        path = train(world, rule, SGD, rate, world.steps(60))

        hard[name] = np.mean([expected(logp, BINARY)[:, 0] for logp in path.logp[1:]], 0)
    for name in ("r − r̄", "σ"):
        lead = hard["MaxRL"] - hard[name]
        claim.refutes(f"lead over {name}", mean(lead, expected=0.02, relation="at least"))
    told = ", ".join(f"{name} {each.mean():.2f}" for name, each in hard.items())
    claim.finds(f"The hardest prompt's success rate, over training: {told}.")


def mixed(logp: np.ndarray) -> np.ndarray:
    """[R, C] the chance that a group is neither all right nor all wrong."""
    p = expected(logp, BINARY)
    return 1 - p**GROUP - (1 - p) ** GROUP


def left_out(logp: np.ndarray) -> np.ndarray:
    """Weights of the update that averages over the mixed groups only, one group a prompt."""
    chance = mixed(logp)
    count = chance.shape[1]
    factor = np.zeros_like(chance)
    for c in range(count):
        others = np.ones((len(chance), 1))
        for other in set(range(count)) - {c}:
            p = chance[:, other, None]
            grown = np.zeros((len(chance), others.shape[1] + 1))
            grown[:, :-1] += others * (1 - p)
            grown[:, 1:] += others * p
            others = grown
        factor[:, c] = np.sum(others / (1 + np.arange(count)), 1)
    return update(logp, logp, BINARY) * count * factor[:, :, None, None]


def e4(world: World, claim: Claim) -> None:
    """Excluding groups whose rewards all tie from the denominator increases accuracy.

    Three prompts, a group of 8 each, r − r̄, exact updates, SGD, 80 steps that begin by raising J by .01 with
    all groups in the denominator. At the same rate, and at equal steps: the rate of kept groups times P(some
    group is mixed)/E[share of mixed groups] at every step. Accuracy is mean J over training.

    Refuted if groups left out are not more than .01 ahead at the same rate and at equal steps (99.9 %; the
    claim's own margin).
    """

    def kept(old: np.ndarray, now: np.ndarray) -> np.ndarray:
        return update(now, now, BINARY)

    def matched(old: np.ndarray, now: np.ndarray) -> np.ndarray:
        chance = mixed(now)
        larger = (1 - np.prod(1 - chance, 1)) / chance.mean(1)
        return update(now, now, BINARY) * larger[:, None, None, None]

    rate = pace(world, kept, SGD, BINARY)
    rules = {"out": lambda old, now: left_out(now), "kept": kept, "matched": matched}
    means = {
        name: train(world, rule, SGD, rate, world.steps(80)).returns(BINARY)[1:].mean(0)
        for name, rule in rules.items()
    }
    for told, name in (("the same rate", "kept"), ("equal steps", "matched")):
        lead = means["out"] - means[name]
        claim.refutes(f"lead at {told}", mean(lead, expected=0.01, relation="at least"))
        claim.finds(f"At {told} it leads by {lead.mean():+.3f}.")


DOSES = (0.001, 0.01, 0.1)
ABILITY = 0.1
"""The chance that a right answer is marked as such: most groups fail whole."""


def phantom(logp: np.ndarray, dose: float, *, normalized: bool) -> np.ndarray:
    """Weights of the update on marks of 0 and 1 less λ·|o|/4; an answer is drawn together with its mark."""
    marks = np.concatenate([np.ones_like(RARE), np.zeros_like(RARE)], 1)
    rewards = marks - dose * np.tile(LENGTH, 2) / SPACE.horizon
    odds = np.concatenate([ABILITY * RARE, 1 - ABILITY * RARE], 1)
    both = np.concatenate([logp, logp], 2)
    with np.errstate(divide="ignore"):
        both[..., 0] = np.maximum(both[..., 0] + np.log(odds), NEVER)
    advantage = odds * np.add(*group_law(both, rewards, normalized=normalized))
    return spread_out(chances(logp) * (advantage[:, :, : SPACE.size] + advantage[:, :, SPACE.size :]))


def e5(world: World, claim: Claim) -> None:
    """Divided by σ no dose of a length term is safe: groups that all fail push lengths at full size.

    Right answers are long (four tokens, six of the 30) and marked as right one time in ten: most groups fail
    whole, as on the claim's prompts a fifth as able (a draft that marked all of them reached a return of 1 at
    every dose). Marks less λ·|o|/4, λ of .001, .01 and .1; groups of 8, exact updates, 100 steps that would
    begin by raising J by .01 at λ = 0 without σ, SGD and AdamW. J is the chance of a right answer.

    Refuted if at one λ J does not end below half of where it started, mean over starts (99.9 %), an optimizer
    by itself. A row of ours, that without σ λ = .01 costs less than a tenth of J at λ
    = 0: refuted beyond. At λ = 0 J must not fall.
    """
    row = claim.ours("Without σ, a length term of .01 costs less than a tenth of the return.")
    begin = returns(world.listed(world.start), RARE)
    for name, optimizer in OPTIMIZERS.items():
        rate = pace(world, lambda old, now: phantom(now, 0.0, normalized=False), optimizer, RARE)

        def left(dose: float, normalized: bool, optimizer: Any = optimizer, rate: Any = rate) -> np.ndarray:
            def rule(old: np.ndarray, now: np.ndarray) -> np.ndarray:
                return phantom(now, dose, normalized=normalized)

            return returns(train(world, rule, optimizer, rate, world.steps(100)).logp[-1], RARE)

        free = left(0.0, False)
        claim.requires(f"{name}, λ = 0: rise", mean(free - begin, expected=0.0, relation="at least"))
        shares = {dose: left(dose, True) / begin for dose in DOSES}
        for dose, share in shares.items():
            number = mean(share, expected=0.5, relation="at most")
            claim.refutes(f"{name}: what is left, over the start, at λ = {dose}", number)
        most = max(float(share.mean()) for share in shares.values())
        claim.finds(f"{name}: at any λ at most {most:.2g} of the start is left.")
        cost = 1 - left(0.01, False) / free
        row.refutes(f"{name}: share lost", mean(cost, expected=0.1, relation="at most"))


def e6(world: World, claim: Claim) -> None:
    """Where truncated answers are masked but vote in the group's mean, they are not penalised.

    Any answer that ends is right, so that only being cut off tells answers apart; r − r̄, groups of 8.
    Unmasked training takes the share cut off to .05; there the update with a mask and a vote over that
    without a mask. And 120 steps of SGD and AdamW from the start, that begin by raising J by .01 without
    a mask.

    Refuted if where 5 % are cut off more than a tenth of the update is left. Qualified if in training the
    share cut off falls by more than .05 (the claim's own margins). A mask without a vote, whose update is
    0 here, leaves the share where it is by construction. Unmasked it must fall by .1.
    """

    def voting(old: np.ndarray, now: np.ndarray) -> np.ndarray:
        advantage = np.add(*group_law(now, ENDED, normalized=False))
        return spread_out(chances(now) * advantage * ENDED)

    def unmasked(old: np.ndarray, now: np.ndarray) -> np.ndarray:
        return update(now, now, ENDED)

    cut = 1 - returns(world.listed(world.start), ENDED)
    for name, optimizer in OPTIMIZERS.items():
        rate = pace(world, unmasked, optimizer, ENDED)
        free = train(world, unmasked, optimizer, rate, world.steps(120))
        fall = cut - (1 - returns(free.logp[-1], ENDED))
        claim.requires(f"{name}, no mask: fall", mean(fall, expected=0.1, relation="at least"))
        masked = train(world, voting, optimizer, rate, world.steps(120)).logp[-1]
        fall = cut - (1 - returns(masked, ENDED))
        number = mean(fall, expected=0.05, relation="at most")
        claim.qualifies(f"{name}: fall of the share cut off", number, only="where few are cut off")
        claim.finds(f"{name}: the share cut off goes from {cut.mean():.2f} to {(cut - fall).mean():.2f}.")
    params = world.start
    for _ in range(400):
        logp = world.listed(params)
        late = 1 - returns(logp, ENDED) > 0.05
        if not late.any():
            break
        rate = late * pace(world, unmasked, ADAMW, ENDED, gain=0.005)
        params = train(world, unmasked, ADAMW, rate, 1, start=params).params
    logp = world.listed(params)
    sizes = [np.linalg.norm(world.pull(params, rule(logp, logp)), axis=1) for rule in (voting, unmasked)]
    left = mean(sizes[0] / sizes[1], expected=0.1, relation="at most")
    claim.refutes("update left where 5 % are cut off", left)
