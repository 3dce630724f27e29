"""Penalties in the reward and in the loss as numbers, trained on trees.

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
from experiments.problems.trees import Groups
from experiments.problems.weights import LengthPower
from grpo_jax import diagnostics
from grpo_jax.measures import View
from grpo_jax.methods import SHIFT
from grpo_jax.parts.gains import Clip
from grpo_jax.parts.penalties import K3
from grpo_jax.parts.shaping import KLInReward
from grpo_jax.types import Array

REWARD, LOSS = "{} in the reward", "{} in the loss"
K1_REWARD, K3_REWARD = REWARD.format("k1"), REWARD.format("k3")
K1_LOSS, K2_LOSS, K3_LOSS, RATIO_LOSS = (LOSS.format(name) for name in ESTIMATORS)
PLACES = (K1_REWARD, K3_REWARD, K1_LOSS, K2_LOSS, K3_LOSS)
"""What is trained; on-policy the ratio times k3 has k2's gradient in every sample."""
ENDS = {K1_REWARD: by_hand.optimum, K2_LOSS: by_hand.forward_end, K3_LOSS: by_hand.backward_end}
"""Where exact ascent should end, on-policy and without a spread; k1's is the optimum of J − β KL(π‖π_ref)."""
NUMBERS = ("shaping.coef", "shaping.inner.coef", "penalty.coef", "penalty.weights")
HORIZON = 4
RARE, HALF, GRADED = "5 % right", "half right", "graded"
SHARES = {RARE: 0.05, HALF: 0.5}
"""Chance of a right answer under the reference."""
EXACT_RATE = 2.0
"""Of exact ascent."""
LEVELS = 4
"""Of graded rewards, from 0 to 1."""
OPTIMIZERS = {
    "SGD": (gj.SGD(learning_rate=1.0), [0.5, 1.0, 2.0]),
    "AdamW": (gj.AdamW(learning_rate=0.05), [0.025, 0.05, 0.1]),
}
"""What questions are trained with, and at which learning rates."""
UPDATES = 4
"""Optimizer steps on a batch, where they are several."""


def space(horizon: int = HORIZON) -> gj.Sequences:
    """Answers of one to ``horizon`` tokens out of three, the last of which ends them."""
    return gj.Sequences(vocab=3, horizon=horizon, eos=2)


def questions(seed: int, tables: int, *, horizon: int = HORIZON) -> tuple[np.ndarray, np.ndarray]:
    """Reference logits [questions, nodes, V] and rewards [questions, S]: ``tables`` of each kind, in order.

    Right answers are drawn at random until the reference gives them their share or more; in the opposite
    order where that would be all of them: a return that is constant has no gradient to compare with.
    """
    rng = np.random.default_rng([seed, horizon])
    tree = by_hand.tree(3, horizon, eos=True)
    logits = rng.normal(size=(3 * tables, tree.nodes, 3))
    rewards = rng.integers(0, LEVELS, size=(3 * tables, len(tree.node))) / (LEVELS - 1)
    for i, share in enumerate(np.repeat(list(SHARES.values()), tables)):
        order = rng.permutation(len(tree.node))
        chance = np.exp(by_hand.token_logp(tree, logits[i]).sum(1))
        for drawn in (order, order[::-1]):
            rewards[i, drawn] = np.cumsum(chance[drawn]) - chance[drawn] < share
            if not rewards[i].all():
                break
    return logits, rewards


def named(data: xr.DataArray | xr.Dataset, *, over: str = "context") -> Any:
    """Questions [over] as kind and table."""
    count = data.sizes[over] // 3
    kinds = np.repeat([RARE, HALF, GRADED], count)
    places = {"kind": (over, kinds), "table": (over, np.tile(np.arange(count), 3))}
    return unstacked(data.drop_vars(over, errors="ignore"), over, places)


def unstacked(data: Any, over: str, places: Mapping[str, Any]) -> Any:
    """A dimension as several, by their coordinates along it."""
    return data.assign_coords(places).set_index({over: list(places)}).unstack(over)


def numbers(place: str, beta: float) -> tuple[Any, ...]:
    """Values of ``NUMBERS`` for a penalty of this weight at this place."""
    weights = np.array([float(place == LOSS.format(name)) for name in ESTIMATORS])
    return beta * (place == K1_REWARD), beta * (place == K3_REWARD), beta, weights


def config(
    seed: int,
    tables: int,
    *,
    optimizer: Any = None,
    updates: int = 1,
    exact: bool = False,
    group_size: int = 8,
) -> gj.Config:
    """GRPO with PPO's clip of .2 and tokens summed; exact: in groups so large that they have no noise."""
    logits, rewards = questions(seed, tables)
    return gj.Config(
        policy=gj.TreePolicy(space=space(), logits=logits),
        task=gj.SequenceTable(space=space(), table=rewards),
        method=gj.Method(
            shaping=KLInReward(inner=KLInReward(divergence=K3())),
            advantage=SHIFT,
            gain=Clip(low=0.2, high=0.2),
            penalty=Chosen(weights=np.zeros(len(ESTIMATORS))),
            reduction=LengthPower(apart=True),
        ),
        optimizer=gj.SGD(learning_rate=EXACT_RATE) if optimizer is None else optimizer,
        loop=gj.Loop(group_size=group_size, inner_steps=updates),
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
    """J and KL(π‖π_ref) of every question when training ends; ``path`` is the KL's mean over ten records."""
    settings = {(place, beta): numbers(place, beta) for place in places for beta in betas}
    labels = [f"{place}, {beta}" for place, beta in settings]
    data = gj.sweep(
        given, {NUMBERS: dict(zip(labels, settings.values(), strict=True)), **axes}, record=["prompt_reward"],
        measure={"divergence": divergence}, record_every=told["iterations"] // 10, progress=False, **told,
    )  # fmt: skip
    name = "+".join(NUMBERS)
    last = data[["prompt_reward", "divergence"]].isel(iteration=-1, drop=True)
    kept = last.assign(path=data.divergence.mean("iteration")).isel(seed=0, drop=True)
    kept = kept.drop_vars([*NUMBERS, name], errors="ignore")
    where = {"place": (name, [p for p, _ in settings]), "beta": (name, [b for _, b in settings])}
    found = unstacked(kept, name, where)
    return named(found.rename(prompt_reward="reward")).drop_attrs()


def sampled(name: str, seed: int, size: Any, betas: Iterable[float]) -> xr.Dataset:
    """``trained`` from samples at every place, one optimizer step a batch, by learning rate; β of 0, too."""
    optimizer, rates = OPTIMIZERS[name]
    given, axes = config(seed, size.tables, optimizer=optimizer), {"learning_rate": rates}
    return trained(given, axes, PLACES, [0.0, *betas], iterations=size.iterations, root=seed)


def often(name: str, seed: int, size: Any, beta: float) -> xr.Dataset:
    """``trained`` with k1 in the loss, several optimizer steps a batch, in groups without noise."""
    optimizer, rates = OPTIMIZERS[name]
    given = config(seed, size.batches, optimizer=optimizer, updates=UPDATES, exact=True)
    axes = {"learning_rate": rates}
    return trained(given, axes, [K1_LOSS], [0.0, beta], iterations=size.iterations, root=seed)


def ends(seed: int, tables: int, betas: Iterable[float], *, horizon: int = HORIZON) -> xr.Dataset:
    """J and KL where J − β KL is greatest, and where divergences token by token lead (``ENDS``)."""
    tree = by_hand.tree(3, horizon, eos=True)
    logits, rewards = questions(seed, tables, horizon=horizon)
    betas = list(betas)
    found = np.zeros((2, len(ENDS), len(betas), len(logits)))
    for k, (reference, table) in enumerate(zip(logits, rewards, strict=True)):
        anchor = by_hand.token_logp(tree, reference).sum(1)
        for i, rule in enumerate(ENDS.values()):
            for j, beta in enumerate(betas):
                logp = by_hand.token_logp(tree, rule(tree, reference, table, beta)).sum(1)
                found[:, i, j, k] = np.exp(logp) @ table, np.exp(logp) @ (logp - anchor)
    dims = ("place", "beta", "context")
    place = {"place": list(ENDS), "beta": betas}
    return named(xr.Dataset({"reward": (dims, found[0]), "divergence": (dims, found[1])}, place))
