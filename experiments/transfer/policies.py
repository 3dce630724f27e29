"""A table, an MLP and a transformer over the same answers, seen through their listed log-probabilities.

Arrays end in [R, C, S, T]: runs, prompts, answers, tokens. Parameters are flat, [R, D].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import grpo_jax as gj
from grpo_jax.policies.tree import support_nodes

EOS = 2
SPACE = gj.Sequences(vocab=3, horizon=4, eos=EOS, forbidden=((0, EOS),))
"""30 answers of two to four tokens: `a` or `b`, then as many, the last of three places free to end."""
PROMPTS = 3
MLP = gj.MLPPolicy(space=SPACE, contexts=PROMPTS, width=16)
TRANSFORMER = gj.TransformerPolicy(space=SPACE, contexts=PROMPTS, layers=1, width=16, heads=2)
NARROW = gj.MLPPolicy(space=SPACE, contexts=PROMPTS, width=2)
POLICIES = {
    "tree": "a table: logits of its own at every prompt and prefix",
    "mlp": "one hidden layer of 16",
    "transformer": "one layer of width 16, two heads",
    "narrow": "an MLP with a hidden layer of 2: fewer parameters than the table has",
}
NETWORKS: dict[str, Any] = {"mlp": MLP, "transformer": TRANSFORMER, "narrow": NARROW}
TWINS = ("mlp", "transformer")
"""Networks whose starts the table begins at: half of its runs each."""

TOKENS, MASK = SPACE.support
LENGTH = MASK.sum(1)
NODE = support_nodes(SPACE)
ALLOWED = SPACE.allowed[SPACE.depths]
"""bool [nodes, V]."""


def _representatives() -> np.ndarray:
    """int [nodes, V] of one (answer, token) pair, flat in [S, T], that says π(token|node); 0 if forbidden."""
    found = np.zeros(ALLOWED.shape, int)
    for flat in np.flatnonzero(MASK):
        s, t = divmod(int(flat), SPACE.horizon)
        found[NODE[s, t], TOKENS[s, t]] = flat
    return found


SHOWN = _representatives()
NEVER = -1e4
"""log 0, so that a difference of two of them is a number; its exponential is 0."""


def table_of(logp: np.ndarray) -> np.ndarray:
    """[R, C, nodes, V] π(token|prefix), 0 where forbidden, from listed log-probabilities [R, C, S, T]."""
    flat = logp.reshape(*logp.shape[:2], -1)[:, :, SHOWN]
    return np.where(ALLOWED, np.exp(flat), 0.0)


def listed_from(table: np.ndarray) -> np.ndarray:
    """[R, C, S, T] log-probabilities of a table [R, C, nodes, V]; 0 where masked, `NEVER` where it has 0."""
    chance = table[:, :, NODE, TOKENS]
    return np.where(MASK > 0, np.where(chance > 0, np.log(np.where(chance > 0, chance, 1)), NEVER), 0.0)


@dataclass(frozen=True)
class Derivatives:
    """What is compiled of a policy; parameters [R, D]."""

    policy: Any
    restore: Callable[[Any], Any]
    listed: Callable[[Any], Any]
    """-> [R, C, S, T] log π."""
    pull: Callable[[Any, Any], Any]
    """weights [R, C, S, T] -> [R, D] Σ weight ∇log π."""
    push: Callable[[Any, Any], Any]
    """a direction [R, D] -> [R, C, S, T] how log π moves along it."""
    jacobian: Callable[[Any], Any]
    """of one run, [D] -> [C, S, T, D]."""


@functools.cache
def derivatives(name: str) -> Derivatives:
    """A policy's, compiled once a process."""
    policy: Any = NETWORKS.get(name) or gj.TreePolicy.uniform(SPACE, contexts=PROMPTS)
    restore = ravel_pytree(policy.init(jax.random.key(0)))[1]

    def listed(flat: Any) -> Any:
        return policy.score_support(restore(flat), np.arange(PROMPTS)).logp

    def pull(flat: Any, weights: Any) -> Any:
        return jax.grad(lambda x: jnp.sum(listed(x) * weights))(flat)

    def push(flat: Any, direction: Any) -> Any:
        return jax.jvp(listed, (flat,), (direction,))[1]

    def answer(flat: Any, prompt: Any, tokens: Any, mask: Any) -> Any:
        return policy.score(restore(flat), prompt[None], tokens[None, None], mask[None, None]).logp[0, 0]

    def jacobian(flat: Any) -> Any:
        each = jax.vmap(jax.jacrev(answer), (None, None, 0, 0))
        return jax.vmap(each, (None, 0, None, None))(flat, jnp.arange(PROMPTS), TOKENS, MASK)

    def many(function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(jax.vmap(function))

    return Derivatives(policy, restore, many(listed), many(pull), many(push), jax.jit(jacobian))


def starts(name: str, seeds: int, root: int) -> np.ndarray:
    """[R, D] where training starts: a network's random weights; a table at the law of each twin, in turn."""
    if name in NETWORKS:
        keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(root), s))(jnp.arange(seeds))
        return np.asarray(jax.vmap(lambda key: ravel_pytree(NETWORKS[name].init(key))[0])(keys))
    tables = [table_of(np.asarray(derivatives(t).listed(starts(t, seeds, root)))) for t in TWINS]
    logits = np.log(np.where(ALLOWED, np.concatenate(tables), 1.0))
    return logits.reshape(len(logits), -1)


@dataclass(frozen=True)
class World:
    """A policy with its starts, and how long to train.

    Args:
      name: of the policy, one of `POLICIES`.
      seeds: starts of a network; a table has twice as many.
      root: of the seeds.
      patience: training lasts this share of what a claim asks for.
    """

    name: str
    seeds: int = 16
    root: int = 0
    patience: float = 1.0

    @functools.cached_property
    def start(self) -> np.ndarray:
        """[R, D]."""
        return starts(self.name, self.seeds, self.root)

    def steps(self, count: int) -> int:
        """Iterations of training."""
        return max(2, round(count * self.patience))

    def listed(self, params: np.ndarray) -> np.ndarray:
        """[R, C, S, T] log π."""
        return self._blocks(derivatives(self.name).listed, params)

    def pull(self, params: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """[R, D] Σ weights ∇log π, weights [R, C, S, T]."""
        return self._blocks(derivatives(self.name).pull, params, weights)

    def push(self, params: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """[R, C, S, T] the change of log π along a direction [R, D]."""
        return self._blocks(derivatives(self.name).push, params, direction)

    def jacobian(self, params: np.ndarray) -> np.ndarray:
        """[C, S, T, D] of one run's parameters [D]."""
        return np.asarray(derivatives(self.name).jacobian(params))

    def few(self, count: int = 4) -> np.ndarray:
        """int [count] runs spread over all of them, for what is costly."""
        return np.unique(np.linspace(0, len(self.start) - 1, count).astype(int))

    def _blocks(self, function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
        """Runs in blocks of as many as there are seeds, so that one program serves all."""
        size = self.seeds
        blocks = [[array[i : i + size] for array in arrays] for i in range(0, len(arrays[0]), size)]
        return np.concatenate([np.asarray(function(*block)) for block in blocks])
