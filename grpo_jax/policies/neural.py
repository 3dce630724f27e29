"""A small autoregressive network: the protocol's test that nothing outside assumes a table."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from grpo_jax.decoding import Decoding
from grpo_jax.part import part, static
from grpo_jax.policies.autoregressive import Autoregressive
from grpo_jax.sequences import Sequences
from grpo_jax.types import Array


class _MLP(nn.Module):
    width: int
    vocab: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        dtype = features.dtype
        hidden = nn.tanh(nn.Dense(self.width, param_dtype=dtype)(features))
        return nn.Dense(self.vocab, param_dtype=dtype)(hidden)


@part
class MLPPolicy(Autoregressive):
    """π_θ(y_t|y_<t, c): one hidden tanh layer on one-hot (context, step, tokens so far). Runs are vmapped."""

    space: Sequences = static()
    contexts: int = static(1, low=1)
    width: int = static(16, low=1)
    decoding: Decoding | None = None

    def init(self, key: Array) -> Any:
        """Random weights. A tree of arrays, in its network's shapes."""
        features = self._features(jnp.zeros(1, int), jnp.zeros((1, 1, self.horizon), int))
        return _MLP(self.width, self.space.vocab).init(key, features)

    def _features(self, prompts: Array, tokens: Array) -> Array:
        """[P, N, T, F], causal: step t sees tokens before t."""
        earlier = np.tril(np.ones((self.horizon, self.horizon)), -1)
        seen = jax.nn.one_hot(tokens, self.space.vocab, dtype=float)[:, :, None] * earlier[:, :, None]
        shape = tokens.shape
        context = jnp.broadcast_to(
            jax.nn.one_hot(prompts, self.contexts)[:, None, None], (*shape, self.contexts)
        )
        step = jnp.broadcast_to(jnp.eye(self.horizon), (*shape, self.horizon))
        return jnp.concatenate([context, step, seen.reshape(*shape, -1)], -1)

    def token_logits(self, params: Any, prompts: Array, tokens: Array) -> Array:
        """[P, N, T, V]; see ``Autoregressive``."""
        features = self._features(jnp.asarray(prompts, int), tokens)
        found: Any = _MLP(self.width, self.space.vocab).apply(params, features)
        return found
