"""Do the optimizer's biases survive on a sequence tree? Shared parameters, two contexts, fresh samples.

Used by the claims on the reward's scale and on momentum.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import methods, train
from grpo_jax.biases import inner_path
from grpo_jax.config import Config, Loop
from grpo_jax.optimizers import AdamW, ClippedNorm, Cosine
from grpo_jax.part import put, subparts
from grpo_jax.policies import TreePolicy
from grpo_jax.policies.tree import share_rows
from grpo_jax.tasks import trees
from grpo_jax.theory.optimizer import coasting

SPACE = trees.free_length(vocab=3, horizon=4)
STEPS, LIVE, COAST = 30, 31, 20
"""Iterations of training; live steps before a share_rows batch, and steps on it."""
VARIANTS = {
    "plain": {},
    "weight decay": {"decay": 0.5},
    "cosine rate": {"end": 0.0},
    "clipped at every step": {"clip": 1e-5},
}


def problem(runs: int, *, decay: np.ndarray, end: np.ndarray, clip: np.ndarray) -> Config:
    """Two contexts with different right first tokens; the tail is shared between first tokens."""
    tie = share_rows(SPACE, lambda prefix: (len(prefix), prefix[1:]))
    rate = Cosine(init=jnp.full(runs, 0.02), steps=2.0 * STEPS, end=jnp.asarray(end))
    inner = AdamW(learning_rate=rate, eps=0.0, weight_decay=jnp.asarray(decay))
    logits = np.random.default_rng(0).normal(size=(2, max(tie) + 1, SPACE.vocab))
    return Config(
        policy=TreePolicy(space=SPACE, logits=logits, tie=tie),
        task=trees.tabulated(SPACE, lambda y: y[0] == 0, lambda y: 0.5 * (y[0] == 1) + 0.1 * len(y)),
        method=dataclasses.replace(methods.dr_grpo, penalty=None),
        optimizer=ClippedNorm(inner=inner, max_norm=jnp.asarray(clip)),
        loop=Loop(group_size=8, inner_steps=2),
    )


def _variants(seeds: np.ndarray, copies: int = 1) -> dict[str, np.ndarray]:
    def column(name: str, default: float) -> np.ndarray:
        return np.repeat([options.get(name, default) for options in VARIANTS.values()], copies * len(seeds))

    return {"decay": column("decay", 0.0), "end": column("end", 1.0), "clip": column("clip", 1e30)}


def scale_bits(root: int, seeds: np.ndarray) -> np.ndarray:
    """[variant] greatest difference between parameters trained at scales 2^-6, 2^6 and 1, eps = 0."""
    scale = np.tile(np.repeat([1.0, 2.0**-6, 2.0**6], len(seeds)), len(VARIANTS))
    config = problem(len(scale), **_variants(seeds, 3))
    config = put(config, "task.scale", jnp.asarray(scale))
    state = train.init(config, np.tile(seeds, 3 * len(VARIANTS)), root=root)
    after, _ = train.run(config, state, iterations=STEPS, record=())
    params = np.asarray(after.params).reshape(-1, len(VARIANTS), 3, len(seeds))
    return abs(params - params[:, :, :1]).max((0, 2, 3))


def coasting_errors(root: int, seeds: np.ndarray) -> np.ndarray:
    """[variant] greatest |update / last live update - C_{T,k}| on batches where every group ties.

    The last live update is divided by its learning rate, and so is every later one.
    """
    config = problem(len(VARIANTS) * len(seeds), **_variants(seeds))
    config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, inner_steps=1))
    state = train.init(config, np.tile(seeds, len(VARIANTS)), root=root)
    for _ in range(LIVE):  # one program
        before, state = state, train.run(config, state, iterations=1, record=())[0]
    idle = dataclasses.replace(config, task=trees.tabulated(SPACE, lambda y: 1.0, lambda y: 1.0))
    _, path = inner_path(idle, state, steps=COAST)
    rate = np.asarray(jax.vmap(rate_of(config))(LIVE - 1 + jnp.arange(COAST + 1)))
    last = np.asarray(state.params - before.params) / rate[0]
    ratio = np.asarray(path.updates) / rate[1:, None, None, None] / np.where(abs(last) > 1e-3, last, np.inf)
    expected = np.asarray(coasting(0.9, 0.999, live=LIVE, k=np.arange(COAST)))
    errors = np.where(abs(last) > 1e-3, abs(ratio - expected[:, None, None, None, None]), 0)
    return errors.reshape(-1, len(VARIANTS), len(seeds)).max((0, 2))


def rate_of(config: Config) -> Cosine:
    """The learning rate's schedule."""
    found = [p for p in subparts(config.optimizer) if isinstance(p, Cosine)]
    return found[0]
