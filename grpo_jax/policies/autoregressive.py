"""What networks over token sequences share: a softmax over allowed tokens, scores, the list of outputs."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.decoding import NEVER, Decoding
from grpo_jax.sequences import Sequences, inverse_cdf
from grpo_jax.types import Array, Scores, Support, require_support


class Autoregressive:
    """π_θ(y | x) = Π_t softmax(z_θ(x, y_<t))_{y_t} over the tokens allowed at step t; runs are vmapped.

    A subclass gives the logits z; this gives the rest of the protocol (``types.Policy``, ``types.Listable``).
    """

    space: Sequences
    contexts: int | None
    decoding: Decoding | None
    trailing: ClassVar[bool] = False
    rank: ClassVar[int] = 0

    def token_logits(self, params: Any, prompts: Array, tokens: Array) -> Array:
        """[P, N, T, V] logits z of every step given the tokens before it; tokens are int [P, N, T]."""
        raise NotImplementedError(f"{type(self).__name__} does not define its logits")

    @property
    def horizon(self) -> int:
        """T."""
        return self.space.horizon

    def normalised(self, logits: Array, allowed: Array | np.ndarray) -> Array:
        """log π [..., V] along axis 3 of logits [P, N, T, V], −1e30 where ``allowed`` [T, V] says no."""
        logits = jnp.where(allowed, logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), NEVER)
        logp = jax.nn.log_softmax(logits) if self.decoding is None else self.decoding(logits, 3)
        return jnp.where(allowed, logp, NEVER)

    def sample(self, params: Any, prompts: Array, uniforms: Array) -> tuple[Array, Array]:
        """See ``types.Policy``; every step computes all logits anew."""
        tokens = jnp.zeros(uniforms.shape, int)
        for t in range(self.horizon):
            logp = self.normalised(self.token_logits(params, prompts, tokens), self.space.allowed)[:, :, t]
            tokens = tokens.at[:, :, t].set(inverse_cdf(jnp.exp(logp), uniforms[:, :, t]))
        return self.space.ended(tokens)

    def score(self, params: Any, prompts: Array, tokens: Array, mask: Array) -> Scores:
        """See ``types.Policy``."""
        table = self.normalised(self.token_logits(params, prompts, tokens), self.space.allowed)
        # A product with one-hot rows, because the gradient of a gather is a slow scatter.
        hit = tokens[:, :, :, None] == jnp.arange(self.space.vocab)
        logp = jnp.sum(jnp.where(hit, table, 0), 3)
        entropy = -jnp.sum(jnp.exp(table) * table, 3)
        return Scores(logp=jnp.where(mask > 0, logp, 0), entropy=jnp.where(mask > 0, entropy, 0))

    def support(self, prompts: Array) -> Support | None:
        """Every sequence of the space; None where there are too many to list."""
        return self.space.support_for(prompts)

    def score_support(self, params: Any, prompts: Array) -> Scores:
        """See ``types.Listable``."""
        support = require_support(self, prompts, instead="score sampled tokens")
        return self.score(params, prompts, jnp.asarray(support.tokens), jnp.asarray(support.mask))


def asked_tokens(policy: Any, prompts: Any) -> Array:
    """int [P, Q] tokens of prompts: themselves, or the token V + c for an id c."""
    prompts = jnp.asarray(prompts)
    asked = prompts if policy.contexts is None else policy.space.vocab + prompts.reshape(-1, 1)
    if asked.ndim != 2 or asked.shape[1] != policy.prompt_length:
        raise ValueError(
            f"prompts have shape {asked.shape}; this policy reads [P, {policy.prompt_length}] tokens"
        )
    return asked
