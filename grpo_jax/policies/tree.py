"""Sequence trees: a softmax at every prefix, so that all sequences can be listed and summed over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from grpo_jax.decoding import NEVER, Decoding
from grpo_jax.kernels import log_softmax, trailing
from grpo_jax.part import number, part, static
from grpo_jax.sequences import Sequences, at_prompts, inverse_cdf
from grpo_jax.types import Array, Scores, Support


@part
class TreePolicy:
    """π_θ(y_t | y_<t, c) = softmax(θ_{c, row(y_<t)}); EOS ends it, forbidden tokens have probability 0.

    Args:
      space: the sequences.
      logits: [C, rows, V] where training starts; rows are nodes unless ``tie`` says otherwise.
      tie: the row of every node, so that prefixes can share parameters (a tail that does not see the first
        token: ``share_rows(space, lambda prefix: prefix[1:])``).
      decoding: as in ``ActionPolicy``.
    """

    space: Sequences = static()
    logits: Any = number(rank=3)
    tie: tuple[int, ...] | None = static(None)
    decoding: Decoding | None = None
    trailing: ClassVar[bool] = True
    rank: ClassVar[int] = 3

    def check(self) -> None:
        """Logits must be [C, rows, V]."""
        rows = self.space.offsets[-1] if self.tie is None else max(self.tie) + 1
        shape = np.shape(self.logits)
        if len(shape) not in (3, 4) or shape[1:3] != (rows, self.space.vocab):
            raise ValueError(
                f"logits have shape {shape}; they must be [contexts, {rows}, {self.space.vocab}]"
            )
        if self.tie is not None and len(self.tie) != self.space.offsets[-1]:
            raise ValueError(f"tie names {len(self.tie)} rows; there are {self.space.offsets[-1]} nodes")

    @classmethod
    def uniform(
        cls, space: Sequences, *, contexts: int = 1, tie: tuple[int, ...] | None = None
    ) -> TreePolicy:
        """Every allowed token equally likely at every prefix."""
        rows = space.offsets[-1] if tie is None else max(tie) + 1
        return cls(space=space, logits=np.zeros((contexts, rows, space.vocab)), tie=tie)

    @property
    def horizon(self) -> int:
        """T."""
        return self.space.horizon

    @property
    def contexts(self) -> int:
        """C."""
        return jnp.shape(self.logits)[0]

    def init(self, key: Array) -> Array:
        """The starting logits; the key is not used. [C, rows, V]."""
        return jnp.asarray(self.logits, float)

    def log_probabilities(self, params: Array, prompts: Array) -> Array:
        """[P, nodes, V] log-probability of every token at every node; −1e30 where forbidden."""
        table = at_prompts(params, prompts)
        if self.tie is not None:
            table = table[:, np.array(self.tie)]
        allowed = trailing(self.space.allowed[self.space.depths][None], table.ndim)
        table = jnp.where(allowed, table, NEVER)
        logp = log_softmax(table, 2) if self.decoding is None else self.decoding(table, 2)
        return jnp.where(allowed, logp, NEVER)

    def sample(self, params: Array, prompts: Array, uniforms: Array) -> tuple[Array, Array]:
        """Sequences [P, G, T] by inverse CDF, token by token; see ``types.Policy``."""
        table = jnp.exp(self.log_probabilities(params, prompts))
        local = jnp.zeros(uniforms[:, :, 0].shape, jnp.int32)
        drawn = []
        for t in range(self.horizon):
            node = self.space.offsets[t] + local
            probabilities = jnp.take_along_axis(table, node[:, :, None], axis=1)
            drawn.append(inverse_cdf(probabilities, uniforms[:, :, t]))
            local = self.space.child(local, drawn[-1])
        return self.space.ended(jnp.stack(drawn, 2))

    def score(self, params: Array, prompts: Array, tokens: Array, mask: Array) -> Scores:
        """[P, N, T] log-probability of each token and entropy of the node it was drawn at."""
        table = self.log_probabilities(params, prompts)
        node = self.space.nodes(tokens)
        place = node * self.space.vocab + tokens
        flat = table.reshape((table.shape[0], -1) + table.shape[3:])
        logp = _take(flat, place)
        return Scores(
            logp=jnp.where(mask > 0, logp, 0), entropy=jnp.where(mask > 0, _take(_entropy(table), node), 0)
        )

    def support(self, prompts: Array) -> Support | None:
        """Every sequence of the space, for every prompt; None where there are too many to list. [P, S, T]."""
        return self.space.support_for(prompts)

    def score_support(self, params: Array, prompts: Array) -> Scores:
        """[P, S, T]."""
        table = self.log_probabilities(params, prompts)
        tokens, mask = self.space.support
        node = support_nodes(self.space)
        live = trailing((mask > 0)[None], table.ndim)
        logp = jnp.where(live, table[:, node, tokens], 0)
        return Scores(logp=logp, entropy=jnp.where(live, _entropy(table)[:, node], 0))

    def counts(self, params: Array, prompts: Array, uniforms: Array) -> Array:
        """[P, S] histogram over the support of what ``sample`` draws from the same uniforms.

        Counted in whole numbers; a count beyond 2^24 is then rounded to the nearest float32.
        """
        place = self.space.place(*self.sample(params, prompts, uniforms))
        rows = trailing(np.arange(len(self.space.support[0])), place.ndim - 1)
        return jnp.sum(place[:, :, None] == rows, 1, dtype=int).astype(uniforms.dtype)


def share_rows(space: Sequences, key: Callable[[tuple[int, ...]], Hashable]) -> tuple[int, ...]:
    """The row of every node, nodes at one depth whose prefixes have equal keys sharing theirs.

    >>> share_rows(Sequences(vocab=2, horizon=3), lambda prefix: prefix[1:])
    (0, 1, 1, 2, 3, 2, 3)
    """
    steps = [token for token in range(space.vocab) if token != space.eos]
    prefixes = [prefix for depth in range(space.horizon) for prefix in itertools.product(steps, repeat=depth)]
    rows: dict[Hashable, int] = {}
    return tuple(rows.setdefault((len(prefix), key(prefix)), len(rows)) for prefix in prefixes)


def support_nodes(space: Sequences) -> np.ndarray:
    """int [S, T] node that each token of the support is drawn at (node 0 where masked)."""
    tokens, mask = space.support
    local = np.zeros(len(tokens), int)
    nodes = np.zeros(tokens.shape, int)
    for t in range(space.horizon):
        nodes[:, t] = np.where(mask[:, t] > 0, space.offsets[t] + local, 0)
        digit = tokens[:, t] - (tokens[:, t] > space.eos) if space.eos is not None else tokens[:, t]
        local = local * space.branching + np.clip(digit, 0, space.branching - 1)
        local = np.where(mask[:, t] > 0, local, 0)
    return nodes


def _entropy(table: Array) -> Array:
    return -jnp.sum(jnp.exp(table) * table, 2)


def _take(flat: Array, index: Array) -> Array:
    """flat[p, index[p, n, t(, r)](, r)]."""
    runs = jnp.broadcast_shapes(flat.shape[2:], index.shape[3:])
    flat = jnp.broadcast_to(flat, flat.shape[:2] + runs)
    rows = jnp.broadcast_to(index, index.shape[:3] + runs).reshape((index.shape[0], -1) + runs)
    return jnp.take_along_axis(flat, rows, axis=1).reshape(index.shape[:3] + runs)
