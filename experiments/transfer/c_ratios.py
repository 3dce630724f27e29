"""[C] for sequences: what token and trajectory ratios estimate, and how fast they train."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

import grpo_jax as gj
from experiments.harness.numbers import Number, mean, share, worst
from experiments.harness.verdict import Claim
from experiments.transfer import surrogate
from experiments.transfer.enumeration import (
    EPS,
    GROUP,
    ascent,
    chances,
    divergence,
    ratios,
    returns,
    update,
)
from experiments.transfer.policies import LENGTH, MASK, World
from experiments.transfer.tasks import BINARY, GRADED, LONG, SHORT
from experiments.transfer.training import ADAMW, OPTIMIZERS, Trained, pace, train
from grpo_jax.parts.gains import Linear
from grpo_jax.theory.variance import FORMS

F = 1 - 1 / GROUP
DRIFT = 0.1
"""Nats by which θ is apart from θ_old."""
TOKEN = replace(gj.methods.dr_grpo, gain=Linear(), penalty=None)
TRAJECTORY = replace(gj.methods.tic_grpo_unclipped, advantage=gj.methods.SHIFT)


def drifted(world: World, direction: np.ndarray, nats: float) -> np.ndarray:
    """[R, D] the starts moved along [R, D] until KL(π_old‖π) is `nats`, by bisection in log distance."""
    old = world.listed(world.start)
    unit = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    low, high = np.full(len(unit), -8.0), np.full(len(unit), 6.0)
    for _ in range(30):
        middle = (low + high) / 2
        beyond = divergence(old, world.listed(world.start + np.exp(middle)[:, None] * unit)) > nats
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return world.start + np.exp(low)[:, None] * unit


def directions(world: World, rewards: np.ndarray) -> dict[str, np.ndarray]:
    """[R, D] at random, along ∇J(θ_old), and against it."""
    up = world.pull(world.start, ascent(world.listed(world.start), rewards))
    random = np.random.default_rng([world.root, 1]).normal(size=world.start.shape)
    return {"random": random, "ascent": up, "descent": -up}


def against_library(world: World, method: Any, now: np.ndarray, ratio: str) -> Number:
    """The library's weights on ∇log π less the enumerated ones, the first run's."""
    old = world.listed(world.start)[:1]
    hand = update(old, now[:1], BINARY, ratio=ratio)[0]
    return worst(surrogate.weights(method, BINARY, old[0], now[0]), expected=hand, tolerance=1e-10)


def c1(world: World, claim: Claim) -> None:
    """GRPO's update rule estimates the policy gradient at the old policy rather than at the current one.

    Right and wrong answers, r − r̄, token ratios, constant weights, no clip; θ is .1 nats from θ_old, at
    random or along the gradient. Distances of the expected update, over 1 − 1/G, in the policy's
    parameters. Nothing is trained, so that eight times as many starts are drawn. (In the main ledger tables
    do so from seven tokens on; here three prompts and the laws of networks are pooled.)

    Refuted if for less than half of the starts (99.9 %) it is nearer to ∇J(θ_old) than to ∇J(θ), each
    direction by itself. The library's surrogate must put the enumerated weights on ∇log π (1e-10).
    """
    shares, times = [], 8 if world.patience == 1 else 1  # a smoke run has its own starts alone
    drawn = [replace(world, root=times * world.root + i) for i in range(times)]
    for name in ("random", "ascent"):
        nearer = np.concatenate([nearer_to_old(own, name) for own in drawn])
        claim.refutes(
            f"{name}: share nearer to ∇J(θ_old)",
            share(int(nearer.sum()), nearer.size, expected=0.5, relation="at least"),
        )
        shares.append(f"{nearer.mean():.0%} ({name})")
    now = world.listed(drifted(world, directions(world, BINARY)["ascent"], DRIFT))
    claim.requires("the library's weights - by enumeration", against_library(world, TOKEN, now, "token"))
    claim.finds(f"It is nearer to the old policy's gradient from {' and '.join(shares)} of the starts.")


def nearer_to_old(world: World, direction: str) -> np.ndarray:
    """[R] whether GRPO's expected update at the drifted θ is nearer to ∇J(θ_old) than to ∇J(θ)."""
    old = world.listed(world.start)
    there = drifted(world, directions(world, BINARY)[direction], DRIFT)
    now = world.listed(there)
    found = world.pull(there, update(old, now, BINARY)) / F
    before, here = world.pull(world.start, ascent(old, BINARY)), world.pull(there, ascent(now, BINARY))
    return np.linalg.norm(found - before, axis=1) < np.linalg.norm(found - here, axis=1)


def c2(world: World, claim: Claim) -> None:
    """TIC-GRPO's trajectory-level ratio yields an unbiased estimate of the current policy's gradient.

    Right and wrong answers, r − r̄, constant weights; θ is .1 nats from θ_old, at random or along the
    gradient.

    Refuted if without a clip the expected update is not (1 − 1/G) ∇J(θ), by 1e-10 of its length. Qualified if
    with the published upper clip, PPO's minimum at 1.2, the median start is a hundredth away. The library's
    surrogate must put the enumerated weights on ∇log π (1e-10).
    """
    old = world.listed(world.start)
    exact: list[np.ndarray] = []
    clipped: list[np.ndarray] = []
    for name, direction in directions(world, BINARY).items():
        if name == "descent":
            continue
        there = drifted(world, direction, DRIFT)
        now = world.listed(there)
        wanted = F * world.pull(there, ascent(now, BINARY))
        for clip, errors in (("none", exact), ("upper, minimum", clipped)):
            found = world.pull(there, update(old, now, BINARY, ratio="trajectory", clip=clip))
            errors.append(np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1))
    number = against_library(world, TRAJECTORY, now, "trajectory")
    claim.requires("the library's weights - by enumeration", number)
    claim.refutes("no clip: error over length", worst(np.stack(exact), tolerance=1e-10))
    off = max(float(np.median(each)) for each in clipped)
    claim.qualifies(
        "upper clip: median error", Number(off, 0.01, relation="at most"), only="without its clip"
    )
    claim.finds(f"Under its clip the median update is off by {off:.0%} of the gradient.")


METHODS: dict[str, dict[str, Any]] = {
    "GRPO": {"clip": "two-sided", "divided": True},
    "frozen": {"divided": True},
    "TIC-GRPO": {"ratio": "trajectory", "clip": "upper, minimum", "divided": True},
}
RATES = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Times the rate that raises J by .01 in the first step."""
PASSES, BATCHES = 4, 15


@functools.cache
def means(world: World, optimizer: str, method: str) -> np.ndarray:
    """[rates, R] mean J over training, at several steps a batch."""
    options = METHODS[method]

    def rule(old: np.ndarray, now: np.ndarray) -> np.ndarray:
        return update(old, now, BINARY, **options)

    rate = pace(world, lambda old, now: update(old, now, BINARY, divided=True), OPTIMIZERS[optimizer], BINARY)

    def run(times: float) -> Trained:
        return train(
            world, rule, OPTIMIZERS[optimizer], times * rate, world.steps(BATCHES), inner=PASSES,
            frozen=method == "frozen",
        )  # fmt: skip

    return np.stack([run(times).returns(BINARY)[1:].mean(0) for times in RATES])


def inside(best: list[int]) -> Number:
    """1 where no best rate is the first or the last of the grid."""
    return Number(float(min(best) > 0 and max(best) < len(RATES) - 1), 1.0)


def c3(world: World, claim: Claim) -> None:
    """Without importance sampling, all steps on a batch with its first gradient, performance is comparable.

    Against GRPO with token ratios clipped at 1 ± .2, both with 1/|o| and r − r̄, exact updates, four steps a
    batch, 15 batches; SGD and AdamW, five rates. Performance is mean J over training.

    Refuted if at each one's best rate it differs by more than .02 (99.9 %). Qualified if it is behind by more
    than .02 at one and the same rate, any up to GRPO's best, or ahead (the claim's own margins). Not decided
    where a best rate is the grid's first or last: what lies beyond it may turn the sign, and does on a table.
    """
    leads = []
    for name in OPTIMIZERS:
        plain, frozen = (means(world, name, method) for method in ("GRPO", "frozen"))
        best = [int(each.mean(1).argmax()) for each in (plain, frozen)]
        claim.requires(f"{name}: best rates inside the grid", inside(best))
        lead = frozen[best[1]] - plain[best[0]]
        claim.refutes(f"{name}: at best rates", mean(lead, expected=0.0, tolerance=0.02))
        same = (frozen - plain)[: best[0] + 1]
        worst_rate = int(np.abs(same.mean(1)).argmax())
        number = mean(same[worst_rate], expected=0.0, tolerance=0.02)
        claim.qualifies(f"{name}: at rate {RATES[worst_rate]:g}", number, only="at the best rate of each")
        leads.append(f"{lead.mean():+.3f} ({name})")
    claim.finds(f"Each at the best of five rates, mean J differs by {' and '.join(leads)}.")


def c4(world: World, claim: Claim) -> None:
    """Clipped from above only, whatever the sign of A, the ratio leaves a gradient of bounded variance.

    One answer's estimate (r − J)·c(w)·∇log π(answer), w the trajectory ratio, c differentiated min(w, 1.2) or
    sg[min(w, 1.2)]; θ is .3 nats from θ_old at random, along ∇J and against it; four starts. In exact sums.

    Refuted if its variance exceeds 1.2² times that without drift (the claim's own rule), each form, direction
    and start by itself. The norm of ∇log π is the policy's own, and need not stay.
    """
    old = world.listed(world.start)
    ratio: dict[str, list[float]] = {"upper, truncated": [], "upper, truncated score": []}
    growth = []
    for direction in directions(world, BINARY).values():
        there = drifted(world, direction, 0.3)
        now = world.listed(there)
        weight = ratios(old, now, "trajectory")[..., 0]
        for run in world.few(4):
            still = variance(world, world.start[run], old[run], np.ones_like(weight[run]))
            plain = variance(world, there[run], old[run], np.ones_like(weight[run]))
            growth.append(plain / still)
            for form, found in ratio.items():
                factor = FORMS[form](weight[run], 1, EPS, EPS)
                found.append(variance(world, there[run], old[run], factor) / still)
    for form, found in ratio.items():
        number = Number(max(found), (1 + EPS) ** 2, relation="at most")
        claim.refutes(f"{form}: greatest variance over that without drift", number)
    claim.finds(
        f"Not the ratio but ∇log π itself grows: with a weight of 1 the variance is up to {max(growth):.2f} "
        "times that without drift.",
        when=any(number.holds is False for number in claim.numbers.values()),
    )


def variance(world: World, params: np.ndarray, old: np.ndarray, factor: np.ndarray) -> float:
    """Trace of the covariance of (r − J)·factor·∇log π of one answer drawn at θ_old, mean over prompts."""
    scores = (world.jacobian(params) * MASK[:, :, None]).sum(2)
    chance = chances(old[None])[0]
    centred = BINARY - np.sum(chance * BINARY, 1, keepdims=True)
    each = (centred * factor)[:, :, None] * scores
    average = np.einsum("cs,csd->cd", chance, each)
    return float((np.sum(chance * np.sum(each**2, 2), 1) - np.sum(average**2, 1)).mean())


def c5(world: World, claim: Claim) -> None:
    """TIC-GRPO converges faster than GRPO.

    Trajectory ratio clipped above at 1.2 (PPO's minimum) against token ratios clipped at 1 ± .2, both
    with 1/|o| and r − r̄; exact updates, four steps a batch, 15 batches, SGD and AdamW, each method at
    the best of five rates.

    Refuted if TIC-GRPO is behind in mean J by more than .005 (99.9 %), an optimizer by itself. Qualified
    if it is not ahead by .005 in one (the claim's own margins). Not decided where a best rate is the grid's
    first or last.
    """
    leads = []
    for name in OPTIMIZERS:
        plain, other = (means(world, name, method) for method in ("GRPO", "TIC-GRPO"))
        best = [int(each.mean(1).argmax()) for each in (plain, other)]
        claim.requires(f"{name}: best rates inside the grid", inside(best))
        lead = other[best[1]] - plain[best[0]]
        number = mean(lead, expected=0.0, tolerance=0.005, relation="at least")
        claim.refutes(f"{name}: lead in mean J", number)
        ahead = mean(lead, expected=0.005, relation="at least")
        claim.qualifies(f"{name}: lead of .005", ahead, only="as a tie: it is not ahead")
        leads.append(f"{lead.mean():+.4f} ({name})")
    claim.finds(f"The lead in mean J is {' and '.join(leads)}.")


def c6(world: World, claim: Claim) -> None:
    """TIC-GRPO's length-corrected reward r/|o| maximises reward per token, not reward.

    An answer of two tokens pays 1, one of four tokens pays 1.6; no clip, r − r̄, exact updates, AdamW,
    300 steps that begin by raising J by .01. And random graded rewards, for the update itself.

    Refuted if training on r/|o| ends with less than .9 on the short answer from some start, or if the
    median start's update has a cosine to ∇J above .99 (the claim's own margins). The update must be (1 −
    1/G) ∇E[r/|o|] (1e-10); trained on r, the short answer must end below a half, mean over starts: a
    stricter control (.1, every start) failed in a draft, as networks may end at the short answer under
    either reward.
    """
    pays = SHORT + 1.6 * LONG
    ends = {}
    for name, rewards in (("r/|o|", pays / LENGTH), ("r", pays)):

        def rule(old: np.ndarray, now: np.ndarray, rewards: np.ndarray = rewards) -> np.ndarray:
            return update(old, now, rewards, ratio="trajectory")

        path = train(world, rule, ADAMW, pace(world, rule, ADAMW, rewards), world.steps(300))
        ends[name] = returns(path.logp[-1], SHORT)
    lost = Number(float(ends["r/|o|"].min()), 0.9, relation="at least")
    claim.refutes("trained on r/|o|: least probability of the short answer", lost)
    control = Number(float(ends["r"].mean()), 0.5, relation="at most")
    claim.requires("trained on r: its mean probability", control)
    logp = world.listed(world.start)
    found = world.pull(world.start, update(logp, logp, GRADED / LENGTH, ratio="trajectory"))
    wanted = F * world.pull(world.start, ascent(logp, GRADED / LENGTH))
    error = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    claim.requires("update - (1 - 1/G) ∇E[r/|o|]", worst(error, tolerance=1e-10))
    up = world.pull(world.start, ascent(logp, GRADED))
    cosine = np.sum(found * up, 1) / np.linalg.norm(found, axis=1) / np.linalg.norm(up, axis=1)
    number = Number(float(np.median(cosine)), 0.99, relation="at most")
    claim.refutes("median cosine to ∇J", number)
