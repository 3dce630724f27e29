"""How far past the clip does AdamW carry a network? Shared parameters, two contexts, a history, float32.

Used by the claim on momentum.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.grid import grid
from grpo_jax import methods, train
from grpo_jax.biases import inner_path
from grpo_jax.config import Config, Loop
from grpo_jax.optimizers import AdamW
from grpo_jax.policies import MLPPolicy
from grpo_jax.tasks import trees
from grpo_jax.types import Array

SPACE = trees.free_length(vocab=3, horizon=4)
TASK = trees.tabulated(SPACE, lambda y: y[0] == 0, lambda y: y[0] == 1)
PASSES = (1, 2, 4, 8, 16)
RATES = np.logspace(-6, -2, 5)
USERS = [(0.9, 0.999), (0.9, 0.95)]
"""(b1, b2) at every learning rate, with Adam's eps at 1e-8."""
OTHERS = [
    *((*pair, 1e-8) for pair in ((0.8, 0.99), (0.95, 0.999), (0.0, 0.95), (0.99, 0.9))),
    *((*pair, eps) for pair in USERS for eps in (0.0, 1e-5)),
]
"""(b1, b2, eps) at the greatest learning rate."""
HISTORY = 4
"""Iterations of two passes before the batch that is watched: their momentum comes along."""
MEASURES = ("winner", "loser", "held", "step")
"""Greatest ratio where A > 0, least where A < 0, share of tokens held by the clip, log-ratio of one step."""


def ratios(rate: Array, b1: Array, b2: Array, eps: Array, seed: Array, *, root: int) -> Array:
    """[measure, passes] of one run, on one fresh batch after a history.

    Ratios are over all tokens of the batch, as is the share of tokens whose gradient the clip holds; the step
    is the mean change of a token's log-probability in the first pass.
    """
    config = Config(
        policy=MLPPolicy(space=SPACE, contexts=2, width=32),
        task=TASK,
        method=dataclasses.replace(methods.dr_grpo, penalty=None),
        optimizer=AdamW(learning_rate=rate, b1=b1, b2=b2, eps=eps),
        loop=Loop(group_size=8, inner_steps=2),
    )
    state = train.init(config, seed, root=root)
    state, _ = jax.lax.scan(
        lambda state, _: (train.step(config, state, record=())[0], None), state, length=HISTORY
    )
    batch, path = inner_path(config, state, steps=PASSES[-1] + 1)
    live, advantage = batch.rollout.mask > 0, batch.advantages
    log_ratio, held = path.log_ratio[np.array(PASSES)], path.clipped[np.array(PASSES)]
    high = jnp.max(jnp.where(live & (advantage > 0), log_ratio, 0), (1, 2, 3))
    low = jnp.min(jnp.where(live & (advantage < 0), log_ratio, 0), (1, 2, 3))
    share = jnp.sum(held * live, (1, 2, 3)) / jnp.sum(live)
    step = jnp.sum(abs(path.log_ratio[1]) * live) / jnp.sum(live)
    return jnp.stack([jnp.exp(high), jnp.exp(low), share, jnp.broadcast_to(step, share.shape)])


def ratio_map(root: int, settings: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """[measure, passes, setting, seed] for settings [S, 4] of (learning rate, b1, b2, eps)."""
    index, seed = grid(np.arange(len(settings)), seeds)
    run = jax.jit(jax.vmap(functools.partial(ratios, root=root), out_axes=-1))
    found = np.asarray(run(*map(jnp.asarray, settings[index].T), jnp.asarray(seed.astype(np.uint32))))
    return found.reshape(*found.shape[:2], len(settings), len(seeds))


def networks(root: int, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[measure, passes, user, rate, seed] and [measure, passes, other setting, seed], in one program."""
    told = [(rate, *pair, 1e-8) for pair in USERS for rate in RATES]
    found = ratio_map(root, np.array(told + [(RATES[-1], *other) for other in OTHERS]), seeds)
    users, others = found[:, :, : len(told)], found[:, :, len(told) :]
    return users.reshape(*found.shape[:2], len(USERS), len(RATES), len(seeds)), others


def in_words(b1: float, b2: float, eps: float) -> str:
    """A setting.

    >>> in_words(0.9, 0.95, 1e-5)
    "(0.9, 0.95), Adam's eps 1e-05"
    """
    return f"({b1:g}, {b2:g})" if eps == 1e-8 else f"({b1:g}, {b2:g}), Adam's eps {eps:g}"
