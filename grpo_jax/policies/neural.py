"""A small autoregressive network: the protocol's test that nothing outside assumes a table."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from grpo_jax.decoding import NEVER, Decoding
from grpo_jax.part import part, static
from grpo_jax.sequences import Sequences, inverse_cdf
from grpo_jax.types import Array, Scores, Support, require_support


class _MLP(nn.Module):
    width: int
    vocab: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        dtype = features.dtype
        hidden = nn.tanh(nn.Dense(self.width, param_dtype=dtype)(features))
        return nn.Dense(self.vocab, param_dtype=dtype)(hidden)


@part
class MLPPolicy:
    """π_θ(y_t|y_<t, c): one hidden tanh layer on one-hot (context, step, tokens so far). Runs are vmapped."""

    space: Sequences = static()
    contexts: int = static(1, low=1)
    width: int = static(16, low=1)
    decoding: Decoding | None = None
    trailing: ClassVar[bool] = False
    rank: ClassVar[int] = 0

    @property
    def horizon(self) -> int:
        """T."""
        return self.space.horizon

    def init(self, key: Array) -> Any:
        """Random weights."""
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

    def _log_probabilities(self, params: Any, prompts: Array, tokens: Array) -> Array:
        logits: Any = _MLP(self.width, self.space.vocab).apply(
            params, self._features(jnp.asarray(prompts, int), tokens)
        )
        allowed = self.space.allowed
        logits = jnp.where(allowed, logits, NEVER)
        logp = jax.nn.log_softmax(logits) if self.decoding is None else self.decoding(logits, 3)
        return jnp.where(allowed, logp, NEVER)

    def sample(self, params: Any, prompts: Array, uniforms: Array) -> tuple[Array, Array]:
        """See ``types.Policy``."""
        tokens = jnp.zeros(uniforms.shape, int)
        for t in range(self.horizon):
            probabilities = jnp.exp(self._log_probabilities(params, prompts, tokens)[:, :, t])
            tokens = tokens.at[:, :, t].set(inverse_cdf(probabilities, uniforms[:, :, t]))
        return self.space.ended(tokens)

    def score(self, params: Any, prompts: Array, tokens: Array, mask: Array) -> Scores:
        """See ``types.Policy``."""
        table = self._log_probabilities(params, prompts, tokens)
        logp = jnp.take_along_axis(table, tokens[:, :, :, None], axis=3)[..., 0]
        entropy = -jnp.sum(jnp.exp(table) * table, 3)
        return Scores(logp=jnp.where(mask > 0, logp, 0), entropy=jnp.where(mask > 0, entropy, 0))

    def support(self, prompts: Array) -> Support | None:
        """Every sequence of the space; None where there are too many to list."""
        if not self.space.listable:
            return None
        tokens, mask = self.space.support
        shape = (prompts.shape[0], *tokens.shape)
        return Support(tokens=np.broadcast_to(tokens, shape), mask=np.broadcast_to(mask, shape))

    def score_support(self, params: Any, prompts: Array) -> Scores:
        """See ``types.Policy``."""
        support = require_support(self, prompts, instead="score sampled tokens")
        return self.score(params, prompts, jnp.asarray(support.tokens), jnp.asarray(support.mask))
