"""Penalties in the reward and in the loss as numbers, trained on trees; their gradients over T and drift.

Every question is a table of rewards over all answers of at most T tokens, one of which ends an answer, with
a reference policy of its own, from which training starts; each is trained as if alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import penalty_gradients as by_hand
from experiments.problems.divergences import ESTIMATORS, Chosen
from experiments.problems.trees import Groups, Stepper
from experiments.problems.weights import LengthPower
from grpo_jax import diagnostics
from grpo_jax.exact import expected_gradient
from grpo_jax.measures import View
from grpo_jax.parts.advantages import Normalized
from grpo_jax.parts.gains import Clip, Linear
from grpo_jax.parts.penalties import K3
from grpo_jax.parts.reductions import Constant
from grpo_jax.parts.shaping import KLInReward
from grpo_jax.types import Array

REWARD, LOSS = "{} in the reward", "{} in the loss"
K1_REWARD, K3_REWARD = REWARD.format("k1"), REWARD.format("k3")
K1_LOSS, K2_LOSS, K3_LOSS, RATIO_LOSS = (LOSS.format(name) for name in ESTIMATORS)
PLACES = (K1_REWARD, K3_REWARD, K1_LOSS, K2_LOSS, K3_LOSS)
"""What is trained; on-policy the ratio times k3 has k2's gradient in every sample."""
NUMBERS = ("shaping.coef", "shaping.inner.coef", "penalty.coef", "penalty.weights")
HORIZON = 4
RARE, HALF, GRADED = "5 % right", "half right", "graded"
SHARES = {RARE: 0.05, HALF: 0.5}
"""Chance of a right answer under the reference."""
EXACT_RATE = 4.0
"""Of exact ascent."""
LEVELS = 4
"""Of graded rewards, from 0 to 1."""
EPS = 1e-6
"""Added to spreads, as verl does."""
NOISE = (0.1, 0.3, 1.0)
"""Standard deviation of logits about π_ref's: .003, .03 and .3 nats a token."""
FAR = NOISE[-1]
TILTED = "half right, of 5 %"
STEPS, FIRST = (0, 1, 3, 7, 15, 31), 0.02
"""Optimizer steps since answers were drawn: 1, 2, 4, ... updates a batch, or as many iterations of lag."""
DIVIDED, DRAWN = (0.001, 0.04, 0.1), 4
"""β, and the size of groups, where a spread divides k1."""
UNEQUAL, TIED = ["right or wrong", "graded"], "all right"


def space(horizon: int = HORIZON) -> gj.Sequences:
    """Answers of one to ``horizon`` tokens out of three, the last of which ends them."""
    return gj.Sequences(vocab=3, horizon=horizon, eos=2)


def questions(seed: int, tables: int, *, horizon: int = HORIZON) -> tuple[np.ndarray, np.ndarray]:
    """Reference logits [questions, nodes, V] and rewards [questions, S]: ``tables`` of each kind, in order.

    Right answers are drawn at random until the reference gives them their share or more.
    """
    rng = np.random.default_rng([seed, horizon])
    tree = by_hand.tree(3, horizon, eos=True)
    logits = rng.normal(size=(3 * tables, tree.nodes, 3))
    rewards = rng.integers(0, LEVELS, size=(3 * tables, len(tree.node))) / (LEVELS - 1)
    for i, share in enumerate(np.repeat(list(SHARES.values()), tables)):
        order = rng.permutation(len(tree.node))
        chance = np.exp(by_hand.token_logp(tree, logits[i]).sum(1))[order]
        rewards[i, order] = np.cumsum(chance) - chance < share
    return logits, rewards


def named(data: xr.DataArray | xr.Dataset, *, over: str = "context") -> Any:
    """Questions [over] as kind and table."""
    count = data.sizes[over] // 3
    kinds = np.repeat([RARE, HALF, GRADED], count)
    places = {"kind": (over, kinds), "table": (over, np.tile(np.arange(count), 3))}
    dropped = data.drop_vars(over, errors="ignore")
    return dropped.assign_coords(places).set_index({over: ["kind", "table"]}).unstack(over)


def numbers(place: str, beta: float) -> tuple[Any, ...]:
    """Values of ``NUMBERS`` for a penalty of this weight at this place."""
    weights = np.array([float(place == LOSS.format(name)) for name in ESTIMATORS])
    return beta * (place == K1_REWARD), beta * (place == K3_REWARD), beta, weights


def config(
    seed: int, tables: int, *, group_size: int = 8, exact: bool = False, adaptive: bool = False
) -> Any:
    """GRPO with PPO's clip of .2 and tokens summed; four optimizer steps a batch, of which some are taken."""
    logits, rewards = questions(seed, tables)
    return gj.Config(
        policy=gj.TreePolicy(space=space(), logits=logits),
        task=gj.SequenceTable(space=space(), table=rewards),
        method=gj.Method(
            shaping=KLInReward(inner=KLInReward(divergence=K3())),
            advantage=Normalized(power=0.0, eps=1e-6),
            gain=Clip(low=0.2, high=0.2),
            penalty=Chosen(weights=np.zeros(len(ESTIMATORS))),
            reduction=LengthPower(apart=True),
        ),
        optimizer=Stepper(
            learning_rate=EXACT_RATE, adaptive=float(adaptive), steps=1.0, period=1.0 if exact else 4.0
        ),
        loop=gj.Loop(group_size=group_size, inner_steps=1 if exact else 4),
        expectation=Groups(exact=float(exact)),
        reference=logits,
    )


@gj.measure("context", about="KL(π‖π_ref) of answers, nats")
def divergence(view: View) -> Array:
    """[context]."""
    policy, prompts = view.config.policy, view.prompts
    now, anchor = (diagnostics.log_support(policy, x, prompts) for x in (view.params, view.state.ref_params))
    return jnp.sum(jnp.exp(now) * (now - anchor), 1)


def trained(
    given: Any, axes: Mapping[Any, Any], places: Iterable[str], betas: Iterable[float], **told: Any
) -> xr.Dataset:
    """J and KL(π‖π_ref) of every question when training ends, by place of the penalty and β."""
    settings = {(place, beta): numbers(place, beta) for place in places for beta in betas}
    labels = [f"{place}, {beta}" for place, beta in settings]
    data = gj.sweep(
        given, {NUMBERS: dict(zip(labels, settings.values(), strict=True)), **axes}, record=["prompt_reward"],
        measure={"divergence": divergence}, record_every=told["iterations"], progress=False, **told,
    )  # fmt: skip
    name = "+".join(NUMBERS)
    kept = data[["prompt_reward", "divergence"]].isel(iteration=-1, seed=0, drop=True)
    kept = kept.drop_vars([*NUMBERS, name], errors="ignore")
    where = {"place": (name, [p for p, _ in settings]), "beta": (name, [b for _, b in settings])}
    found = kept.assign_coords(where).set_index({name: ["place", "beta"]}).unstack(name)
    return named(found.rename(prompt_reward="reward")).drop_attrs()


def ends(seed: int, tables: int, betas: Iterable[float], *, horizon: int = HORIZON) -> xr.Dataset:
    """J and KL where J − β KL is greatest, and where token-by-token KL in the loss leads, in closed form."""
    tree = by_hand.tree(3, horizon, eos=True)
    logits, rewards = questions(seed, tables, horizon=horizon)
    rules = {"optimum": by_hand.optimum, "token by token": by_hand.greedy}
    betas = list(betas)
    found = np.zeros((2, len(rules), len(betas), len(logits)))
    for k, (reference, table) in enumerate(zip(logits, rewards, strict=True)):
        anchor = by_hand.token_logp(tree, reference).sum(1)
        for i, rule in enumerate(rules.values()):
            for j, beta in enumerate(betas):
                logp = by_hand.token_logp(tree, rule(tree, reference, table, beta)).sum(1)
                found[:, i, j, k] = np.exp(logp) @ table, np.exp(logp) @ (logp - anchor)
    dims = ("end", "beta", "context")
    place = {"end": list(rules), "beta": betas}
    return named(xr.Dataset({"reward": (dims, found[0]), "divergence": (dims, found[1])}, place))


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
    where = {"place": places, "horizon": horizons, "policy": labels, "tree": range(trees)}
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
    """The same ``missed``, after ascent of ∇J for some steps since answers were drawn, and what it moved."""
    tree = by_hand.tree(3, horizon, eos=True)
    rng = np.random.default_rng([seed, horizon, 3])
    places = list(places)
    found = np.zeros((2, len(places), len(STEPS), trees))
    moves = np.zeros((2, len(STEPS), trees))
    for k in range(trees):
        anchor, moved = rng.normal(size=(2, tree.nodes, 3))
        old = anchor + FAR * moved
        rewards = rng.normal(size=len(tree.node))
        for j, now in enumerate(ascended(tree, old, rewards)):
            sampler, logp = by_hand.token_logp(tree, old), by_hand.token_logp(tree, now)
            chance = np.exp(sampler.sum(1))
            tokens = chance @ tree.live.sum(1)
            moves[0, j, k] = np.sqrt(chance @ ((logp - sampler) ** 2).sum(1) / tokens)
            moves[1, j, k] = chance @ (sampler - logp).sum(1) / tokens
            found[:, :, j, k] = gaps(places, tree, now, anchor, old)
    where = {"steps": list(STEPS), "tree": range(trees)}
    return xr.Dataset({
        "missed": xr.DataArray(found[0], {"place": places, **where}),
        "backward": xr.DataArray(found[1], {"place": places, **where}),
        "log_ratio": xr.DataArray(moves[0], where),
        "kl_old": xr.DataArray(moves[1], where),
    })  # fmt: skip


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
    four, every one of them summed over. A question whose answers are all right has ties alone.
    """
    tree = by_hand.tree(3, 2, eos=True)
    kinds = dict(zip((*UNEQUAL, TIED), (2, LEVELS, 1), strict=True))
    found = np.zeros((2, len(kinds), len(DIVIDED), trees))
    for k in range(trees):
        rng = np.random.default_rng([seed, k, 4])
        anchor, moved = rng.normal(size=(2, tree.nodes, 3))
        now = anchor + FAR * moved
        whole = by_hand.forward(tree, now, anchor)
        for i, levels in enumerate(kinds.values()):
            rewards = (
                np.ones(len(tree.node))
                if levels == 1
                else rng.integers(0, levels, len(tree.node)) / (levels - 1)
            )
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
    dims = ("rewards", "beta", "tree")
    where = {"rewards": list(kinds), "beta": list(DIVIDED)}
    return xr.Dataset({"sine": (dims, found[0]), "force": (dims, found[1])}, where)


def forces(seed: int, tables: int, betas: Iterable[float]) -> xr.DataArray:
    """‖∇J − β g‖/‖∇J‖ where ``ends`` says that training with a penalty of gradient g ends, worst question."""
    tree = by_hand.tree(3, HORIZON, eos=True)
    betas, rules = list(betas), {K2_LOSS: by_hand.greedy, K1_REWARD: by_hand.optimum}
    found = np.zeros((len(rules), len(betas)))
    for reference, table in zip(*questions(seed, tables), strict=True):
        for i, (place, rule) in enumerate(rules.items()):
            for j, beta in enumerate(betas):
                at = rule(tree, reference, table, beta)
                slope = return_slope(tree, at, table)
                force = slope - beta * estimated(place, tree, at, reference, at)
                found[i, j] = max(found[i, j], np.linalg.norm(force) / np.linalg.norm(slope))
    return xr.DataArray(found, {"place": list(rules), "beta": betas})


def return_slope(tree: Any, logits: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """∇J."""
    logp = by_hand.token_logp(tree, logits)
    chance = np.exp(logp.sum(1))
    weight = chance * (rewards - chance @ rewards)
    return by_hand.pulled(tree, logits, np.repeat(weight[:, None], logp.shape[1], 1))
