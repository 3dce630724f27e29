"""What penalties in the reward and in the loss miss of the gradient of KL(π‖π_ref), by enumeration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import penalty_gradients as by_hand
from experiments.problems.divergences import Chosen
from experiments.problems.kl_places import (
    ENDS,
    HORIZON,
    K1_REWARD,
    LEVELS,
    PLACES,
    RARE,
    RATIO_LOSS,
    SHARES,
    numbers,
    questions,
    space,
)
from grpo_jax.exact import expected_gradient
from grpo_jax.parts.advantages import Normalized
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.penalties import K3
from grpo_jax.parts.reductions import Constant
from grpo_jax.parts.shaping import KLInReward

EPS = 1e-6
"""Added to spreads, as verl does."""
NOTHING = "nothing added"
ADDED = {NOTHING: 1e-12, "verl's 1e-6": EPS, "TRL's 1e-4": 1e-4}
"""To spreads of groups whose rewards tie."""
NOISE = (0.1, 0.3, 1.0)
"""Standard deviation of logits about π_ref's: .003, .03 and .3 nats a token."""
FAR = NOISE[-1]
TILTED = "half right, of 5 %"
STEPS, FIRST = (0, 1, 3, 7, 15, 31), 0.02
"""Optimizer steps since answers were drawn: 1, 2, 4, ... updates a batch, or as many iterations of lag."""
DIVIDED, DRAWN = (0.001, 0.04, 0.1), 4
"""β, and the size of groups, where a spread divides k1."""
UNEQUAL = ["right or wrong", "graded"]


def identities(seed: int) -> xr.DataArray:
    """Greatest gap of the library's penalties to enumerations in NumPy, two unlike questions at once.

    Groups of two, unclipped; answers of one to three tokens, ties among rewards; with and without a spread.
    """
    rng = np.random.default_rng([seed, 1])
    tree = by_hand.tree(3, 3, eos=True)
    now, anchor, moved = rng.normal(size=(3, 2, tree.nodes, 3))
    rewards = rng.integers(0, 3, size=(2, len(tree.node))) / 2
    places, beta, gaps = (*PLACES, RATIO_LOSS), 0.3, []
    samplers = {"on-policy": now, "off-policy": now + 0.3 * moved}
    for old in samplers.values():
        for power in (0.0, 1.0):
            gradients = [_gradient(now, old, anchor, rewards, numbers(p, beta), power) for p in places]
            plain = _gradient(now, old, anchor, rewards, numbers(K1_REWARD, 0.0), power)
            for place, gradient in zip(places, gradients, strict=True):
                pairs = [
                    _expected(place, tree, now[c], anchor[c], old[c], rewards[c], beta, power) for c in (0, 1)
                ]
                gaps.append(abs((plain - gradient) / beta - np.stack(pairs)).max())
    shape = (len(samplers), 2, len(places))
    labels = {"sampler": list(samplers), "spread": ["without", "with"], "place": list(places)}
    return xr.DataArray(np.array(gaps).reshape(shape), labels)


def _gradient(now: Any, old: Any, anchor: Any, rewards: Any, values: tuple, power: float) -> np.ndarray:
    first, second, coef, weights = values
    method = gj.Method(
        shaping=KLInReward(inner=KLInReward(divergence=K3(), coef=second), coef=first),
        advantage=Normalized(power=power, eps=EPS),
        gain=Linear(),
        penalty=Chosen(weights=weights, coef=coef),
        reduction=Constant(length=1.0),
    )
    given = gj.Config(
        policy=gj.TreePolicy(space=space(3), logits=now),
        task=gj.SequenceTable(space=space(3), table=rewards),
        method=method,
        loop=gj.Loop(group_size=2),
        expectation=gj.Exact(cells=0),
    )
    return len(now) * np.asarray(expected_gradient(given, now, old=old, reference=anchor))


def _expected(
    place: str, tree: Any, now: Any, anchor: Any, old: Any, rewards: Any, beta: float, power: float
) -> np.ndarray:
    name = place.partition(" in the ")[0]
    if place.endswith("loss"):
        return by_hand.in_loss(name, tree, now, anchor, old)
    with_it, without = (
        by_hand.of_groups(
            tree, now, anchor, old, rewards, coef=c, size=2, eps=EPS if power else None, divergence=name
        )
        for c in (beta, 0.0)
    )
    return (without - with_it) / beta


def missed(places: Iterable[str], horizons: Iterable[int], trees: int, seed: int) -> xr.Dataset:
    """Shares of both gradients that places miss on-policy (``gaps``), over T and how π left π_ref.

    π is π_ref with noise on its logits (``NOISE``), or tilted towards a random twentieth of the answers until
    every second answer is one of them, e^{s·r} as training with KL(π‖π_ref) does.
    """
    places, horizons = list(places), list(horizons)
    labels = [f"noise {spread:g}" for spread in NOISE] + [TILTED]
    where: dict[str, Any] = {"place": places, "horizon": horizons, "policy": labels, "tree": range(trees)}
    found = np.zeros((2, *(len(values) for values in where.values())))
    for j, horizon in enumerate(horizons):
        tree = by_hand.tree(3, horizon, eos=True)
        rng = np.random.default_rng([seed, horizon, 2])
        for k in range(trees):
            anchor, moved = rng.normal(size=(2, tree.nodes, 3))
            policies = [anchor + spread * moved for spread in NOISE]
            for n, now in enumerate([*policies, tilted(tree, anchor, rng)]):
                found[:, :, j, n, k] = gaps(places, tree, now, anchor, now)
    return xr.Dataset({"missed": (list(where), found[0]), "backward": (list(where), found[1])}, where)


def gaps(places: Iterable[str], tree: Any, now: Any, anchor: Any, old: Any) -> np.ndarray:
    """Shares missed [2, places] of ∇KL(π‖π_ref) and ∇KL(π_ref‖π) of whole answers."""
    aims = (by_hand.forward(tree, now, anchor), by_hand.backward(tree, now, anchor))
    found = [estimated(place, tree, now, anchor, old) for place in places]
    return np.array([[share(gradient, aim) for gradient in found] for aim in aims])


def share(gradient: np.ndarray, aim: np.ndarray) -> float:
    """‖g − aim‖/max(‖g‖, ‖aim‖), at most 2, so that no tree where the aim all but vanishes rules a mean."""
    return float(np.linalg.norm(gradient - aim) / max(np.linalg.norm(gradient), np.linalg.norm(aim)))


def missed_whole(horizons: Iterable[int], trees: int, seed: int) -> xr.DataArray:
    """By how much k2 of whole answers in the loss misses k1 in the reward, over the norm of the latter."""
    where = {"horizon": list(horizons), "tree": range(trees)}
    found = np.zeros((len(where["horizon"]), trees))
    for j, horizon in enumerate(where["horizon"]):
        tree = by_hand.tree(3, horizon, eos=True)
        rng = np.random.default_rng([seed, horizon, 5])
        for k in range(trees):
            anchor, now = rng.normal(size=(2, tree.nodes, 3))
            reward = by_hand.in_reward("k1", tree, now, anchor, now)
            found[j, k] = share(by_hand.in_loss("k2", tree, now, anchor, now, whole=True), reward)
    return xr.DataArray(found, where)


def tilted(tree: Any, anchor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Logits of π ∝ π_ref e^{s·r}, r 1 for a random twentieth of the answers and s so that E r = ½."""
    chance = np.exp(by_hand.token_logp(tree, anchor).sum(1))
    order = rng.permutation(len(chance))
    right = np.zeros(len(chance))
    right[order] = np.cumsum(chance[order]) - chance[order] < SHARES[RARE]
    share = right @ chance
    return by_hand.optimum(tree, anchor, right, 1 / np.log((1 - share) / share))


def estimated(place: str, tree: Any, now: Any, anchor: Any, old: Any) -> np.ndarray:
    """The expected gradient of a penalty at a place, without a spread and per 1 − 1/G."""
    name = place.partition(" in the ")[0]
    of = by_hand.in_loss if place.endswith("loss") else by_hand.in_reward
    return of(name, tree, now, anchor, old)


def drifted(places: Iterable[str], trees: int, seed: int, *, horizon: int = HORIZON) -> xr.Dataset:
    """The same ``missed``, after ascent of ∇J for some steps since answers were drawn."""
    tree = by_hand.tree(3, horizon, eos=True)
    rng = np.random.default_rng([seed, horizon, 3])
    places = list(places)
    found = np.zeros((2, len(places), len(STEPS), trees))
    for k in range(trees):
        anchor, moved = rng.normal(size=(2, tree.nodes, 3))
        old = anchor + FAR * moved
        rewards = rng.normal(size=len(tree.node))
        for j, now in enumerate(ascended(tree, old, rewards)):
            found[:, :, j, k] = gaps(places, tree, now, anchor, old)
    where = {"place": places, "steps": list(STEPS), "tree": range(trees)}
    return xr.Dataset({"missed": (list(where), found[0]), "backward": (list(where), found[1])}, where)


def ascended(tree: Any, old: np.ndarray, rewards: np.ndarray) -> list[np.ndarray]:
    """Logits after each number of ``STEPS``, the first of which moves log π of tokens by ``FIRST`` (rms)."""
    now, rate, found = old, 0.0, []
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            found.append(now)
        logp = by_hand.token_logp(tree, now)
        slope = return_slope(tree, now, rewards)
        if not rate:
            chance = np.exp(logp.sum(1))
            tried = by_hand.token_logp(tree, now + 1e-4 * slope) - logp
            rate = FIRST * 1e-4 / np.sqrt(chance @ (tried**2).sum(1) / (chance @ tree.live.sum(1)))
        now = now + rate * slope
    return found


def divided(seed: int, trees: int) -> xr.Dataset:
    """k1 in a reward that is divided by the group's spread: its angle to ∇KL(π‖π_ref), and its force.

    Sine of the angle, and the norm over that of β(1 − 1/G)∇KL(π‖π_ref), by β and kind of reward; groups of
    four, every one of them summed over. `tied` is the force where all answers are right, by what is added.
    """
    tree = by_hand.tree(3, 2, eos=True)
    kinds = dict(zip(UNEQUAL, (2, LEVELS), strict=True))
    found = np.zeros((2, len(kinds), len(DIVIDED), trees))
    tied = np.zeros((len(ADDED), len(DIVIDED), trees))
    for k in range(trees):
        rng = np.random.default_rng([seed, k, 4])
        anchor, moved = rng.normal(size=(2, tree.nodes, 3))
        now = anchor + FAR * moved
        whole = by_hand.forward(tree, now, anchor)
        for i, levels in enumerate(kinds.values()):
            rewards = rng.integers(0, levels, len(tree.node)) / (levels - 1)
            plain, *pulls = (
                by_hand.of_groups(tree, now, anchor, now, rewards, coef=c, size=DRAWN, eps=EPS)
                for c in (0.0, *DIVIDED)
            )
            for j, pull in enumerate(pulls):
                gap = (plain - pull) / DIVIDED[j]
                norms = np.linalg.norm(gap), np.linalg.norm(whole)
                cosine = (gap * whole).sum() / norms[0] / norms[1]
                force = norms[0] / norms[1] / (1 - 1 / DRAWN)
                found[:, i, j, k] = np.sqrt(max(1 - cosine**2, 0)), force
        for i, eps in enumerate(ADDED.values()):
            for j, beta in enumerate(DIVIDED):
                right = np.ones(len(tree.node))
                pull = by_hand.of_groups(tree, now, anchor, now, right, coef=beta, size=DRAWN, eps=eps)
                norms = np.linalg.norm(pull) / beta, np.linalg.norm(whole)
                tied[i, j, k] = norms[0] / norms[1] / (1 - 1 / DRAWN)
    dims = ("rewards", "beta", "tree")
    where = {"rewards": list(kinds), "beta": list(DIVIDED), "added": list(ADDED)}
    named = {"sine": (dims, found[0]), "force": (dims, found[1]), "tied": (("added", *dims[1:]), tied)}
    return xr.Dataset(named, where)


def forces(seed: int, tables: int, betas: Iterable[float]) -> xr.DataArray:
    """‖∇J − β g‖/‖∇J‖ where ``ends`` says that training with a penalty of gradient g ends, worst question."""
    tree = by_hand.tree(3, HORIZON, eos=True)
    betas = list(betas)
    found = np.zeros((len(ENDS), len(betas)))
    for reference, table in zip(*questions(seed, tables), strict=True):
        for i, (place, rule) in enumerate(ENDS.items()):
            for j, beta in enumerate(betas):
                at = rule(tree, reference, table, beta)
                slope = return_slope(tree, at, table)
                force = slope - beta * estimated(place, tree, at, reference, at)
                found[i, j] = max(found[i, j], np.linalg.norm(force) / np.linalg.norm(slope))
    return xr.DataArray(found, {"place": list(ENDS), "beta": betas})


def return_slope(tree: Any, logits: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """∇J."""
    logp = by_hand.token_logp(tree, logits)
    chance = np.exp(logp.sum(1))
    weight = chance * (rewards - chance @ rewards)
    return by_hand.pulled(tree, logits, np.repeat(weight[:, None], logp.shape[1], 1))
