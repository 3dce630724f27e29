"""The finite space of token sequences up to a horizon, with an optional end-of-sequence token.

A sequence ends right after its EOS, or at the horizon without one. Its prefixes are the nodes of a tree; a
node at depth t is numbered by its t non-EOS tokens, depth by depth.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.bounds import whole
from grpo_jax.kernels import at, count, cumulative, materialize, per_prompt, trailing
from grpo_jax.types import Array, Support

MAX_SUPPORT = 2_000_000
"""Sequences that are listed at most."""
MAX_TOKENS = 2**28
"""Vocabulary times horizon, at most."""


def lookup(table: Array, index: Array) -> Array:
    """table[p, index[p, n(, r)](, r)]: rows of [P, K] or [P, K, R] picked by [P, N] or [P, N, R] indices.

    Short tables go through a one-hot product, whose gradient is a product too; long ones through a gather.
    """
    size = table.shape[1]
    if size <= 32:
        hit = index[:, :, None] == trailing(jnp.arange(size), index.ndim - 1)
        return jnp.sum(jnp.where(hit, table[:, None], 0), 2)
    runs = jnp.broadcast_shapes(table.shape[2:], index.shape[2:])
    table = jnp.broadcast_to(table, table.shape[:2] + runs)
    return jnp.take_along_axis(table, jnp.broadcast_to(index, index.shape[:2] + runs), axis=1)


def inverse_cdf(probabilities: Array, uniforms: Array) -> Array:
    """Index of the first cumulative probability above each uniform: the least k with u < Σ_{j≤k} p_j.

    Args:
      probabilities: [P, N, K(, R)]; N may be 1.
      uniforms: [P, N(, R)] in [0, 1).
    """
    upto = materialize(cumulative(probabilities, 2))
    level = materialize(uniforms[:, :, None] * upto[:, :, -1:])
    return count(probabilities.shape[2] - 1, lambda k: level >= at(upto, k, 2))[:, :, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequences:
    """All sequences of at most ``horizon`` tokens out of ``vocab``.

    Args:
      vocab: V, the number of tokens, EOS included.
      horizon: T, the greatest length.
      eos: the token that ends a sequence, or None where every sequence has length T.
      forbidden: (step, token) pairs that may not occur; steps count from 0.
    """

    vocab: int
    horizon: int
    eos: int | None = None
    forbidden: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        least = 2 if self.eos is not None else 1
        whole("vocab", self.vocab, low=0)
        whole("horizon", self.horizon)
        if self.eos is not None:
            whole("eos", self.eos, low=0)
        for step, token in self.forbidden:
            whole("a forbidden step", step, low=0)
            whole("a forbidden token", token, low=0)
        if self.vocab < least:
            raise ValueError(f"a vocabulary of {self.vocab} has no room for EOS; it must be at least {least}")
        if self.vocab * self.horizon > MAX_TOKENS:
            raise ValueError(
                f"{self.vocab:,} tokens at each of {self.horizon:,} places are more than {MAX_TOKENS:,}"
            )
        if self.eos is not None and not 0 <= self.eos < self.vocab:
            raise ValueError(f"EOS is {self.eos}; tokens are 0..{self.vocab - 1}")
        for step, token in self.forbidden:
            if not (0 <= step < self.horizon and 0 <= token < self.vocab):
                raise ValueError(
                    f"forbidden (step {step}, token {token}) lies outside {self.horizon} x {self.vocab}"
                )
        if self.allowed.sum(1).min() == 0:
            raise ValueError(f"every token is forbidden at step {int(self.allowed.sum(1).argmin())}")

    @property
    def branching(self) -> int:
        """The number of tokens that do not end a sequence."""
        return self.vocab - (self.eos is not None)

    @property
    def allowed(self) -> np.ndarray:
        """bool [T, V]."""
        allowed = np.ones((self.horizon, self.vocab), bool)
        for step, token in self.forbidden:
            allowed[step, token] = False
        return allowed

    @property
    def offsets(self) -> tuple[int, ...]:
        """Number of the first node of each depth 0..T−1, then the number of nodes."""
        return tuple(sum(self.branching**s for s in range(t)) for t in range(self.horizon + 1))

    @property
    def depths(self) -> np.ndarray:
        """int [nodes] depth of every node."""
        return np.repeat(np.arange(self.horizon), np.diff(self.offsets))

    def mask(self, tokens: Array) -> Array:
        """[..., T on axis 2, ...] 1 up to and including the first EOS."""
        if self.eos is None:
            return jnp.ones(tokens.shape)
        ended = jnp.cumsum(tokens == self.eos, 2) - (tokens == self.eos)
        return jnp.where(ended > 0, 0.0, 1.0)

    def ended(self, tokens: Array) -> tuple[Array, Array]:
        """Tokens, EOS repeated after the first one as in ``support``, and their mask. [P, N, T]."""
        mask = self.mask(tokens)
        return (tokens if self.eos is None else jnp.where(mask > 0, tokens, self.eos)), mask

    def truncated(self, tokens: Array, mask: Array) -> Array:
        """[P, N] 1 where a sequence fills the horizon without EOS; nowhere, if no token ends one."""
        if self.eos is None:
            return jnp.zeros(mask[:, :, -1].shape)
        return jnp.where((mask[:, :, -1] > 0) & (tokens[:, :, -1] != self.eos), 1.0, 0.0)

    def child(self, local: Array, token: Array) -> Array:
        """Place within its depth of the node reached from place ``local`` by ``token`` (any, after EOS).

        Elementwise.
        """
        digit = token - (token > self.eos) if self.eos is not None else token
        return local * self.branching + jnp.clip(digit, 0, self.branching - 1)

    def nodes(self, tokens: Array) -> Array:
        """[P, N, T] number of the node that each token was drawn at (any node where masked)."""
        local = jnp.zeros_like(tokens[:, :, 0])
        found = []
        for t in range(self.horizon):
            found.append(self.offsets[t] + local)
            local = self.child(local, tokens[:, :, t])
        return jnp.stack(found, 2)

    @functools.cached_property
    def size(self) -> int:
        """The number of allowed sequences, counted without listing them."""
        going, ended = 1, 0
        for allowed in self.allowed:
            stops = 0 if self.eos is None else int(allowed[self.eos])
            ended += going * stops
            going *= int(allowed.sum()) - stops
        return ended + going

    @property
    def listable(self) -> bool:
        """Whether there are few enough sequences (``MAX_SUPPORT``) to list them."""
        return self.size <= MAX_SUPPORT

    def support_for(self, prompts: Array) -> Support | None:
        """[P, S, T]: every sequence, the same for each prompt; None where there are too many to list."""
        if not self.listable:
            return None
        shape = (prompts.shape[0], *self.support[0].shape)
        tokens, mask = (np.broadcast_to(part, shape) for part in self.support)
        return Support(tokens=tokens, mask=mask)

    @functools.cached_property
    def support(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask, int and float [S, T]: every allowed sequence, EOS-padded, lexicographic."""
        if not self.listable:
            raise ValueError(
                f"{self.size} sequences, more than {MAX_SUPPORT}; use a smaller vocabulary or horizon, "
                "or sampling"
            )
        rows: list[tuple[int, ...]] = []
        self._extend((), rows)
        tokens = np.array([row + (self.eos or 0,) * (self.horizon - len(row)) for row in rows], np.int32)
        lengths = np.array([len(row) for row in rows])
        return tokens, (np.arange(self.horizon) < lengths[:, None]).astype(float)

    def _extend(self, prefix: tuple[int, ...], rows: list[tuple[int, ...]]) -> None:
        if len(prefix) == self.horizon or (prefix and prefix[-1] == self.eos):
            rows.append(prefix)
            return
        for token in np.flatnonzero(self.allowed[len(prefix)]):
            self._extend((*prefix, int(token)), rows)

    @functools.cached_property
    def _places(self) -> np.ndarray:
        tokens, mask = self.support
        code = self._code(tokens, mask, np)
        places = np.full((self.vocab + 1) ** self.horizon, -1, np.int32)
        places[code] = np.arange(len(code))
        return places

    def _code(self, tokens: Any, mask: Any, xp: Any) -> Any:
        digits = xp.where(mask > 0, tokens + 1, 0)
        code = digits[..., 0] if xp is np else digits[:, :, 0]
        for t in range(1, self.horizon):
            code = code * (self.vocab + 1) + (digits[..., t] if xp is np else digits[:, :, t])
        return code.astype(int) if xp is np else code

    def place(self, tokens: Array, mask: Array) -> Array:
        """[P, N] row of each sequence in ``support``; −1 for a sequence that is not in it."""
        if (self.vocab + 1) ** self.horizon > 2**31 - 1:
            raise ValueError("the space is too large to number its sequences")
        return jnp.asarray(self._places)[self._code(tokens, mask, jnp)]


def at_prompts(table: Array, prompts: Array) -> Array:
    """Rows of a per-context table [C, ...(, R)] for prompt ids [P], [P, 1] or [P, R].

    Ids that are known while tracing and name every context in order cost nothing.
    """
    if isinstance(prompts, np.ndarray) and prompts.size == prompts.shape[0]:
        ids = prompts.reshape(-1)
        return table if np.array_equal(ids, np.arange(table.shape[0])) else table[ids]
    if prompts.ndim == 1 or prompts.shape[1] == 1:
        return table[prompts.reshape(-1)]
    runs = prompts.shape[1]
    table = jnp.broadcast_to(table, (*table.shape[:-1], runs))
    index = per_prompt(prompts, table.ndim)
    return jnp.take_along_axis(table, jax.lax.stop_gradient(index), axis=0)
