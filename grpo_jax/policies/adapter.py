"""Any network as a policy: a function (parameters, tokens) -> logits is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.decoding import Decoding
from grpo_jax.part import part, static
from grpo_jax.policies.autoregressive import Autoregressive, asked_tokens
from grpo_jax.sequences import Sequences
from grpo_jax.types import Array

CAUSAL = 1e-4
"""How far a later token may move earlier logits, relative to their size: rounding, no more."""


@part
class NetworkPolicy(Autoregressive):
    """π_θ(y_t|x, y_<t) from a causal network of the user's; every sampled token takes a whole pass.

    >>> from flax import linen as nn
    >>> class Bigrams(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, tokens):
    ...         return nn.Embed(5, 4)(tokens)
    >>> network, space = Bigrams(), Sequences(vocab=4, horizon=3, eos=3)
    >>> policy = NetworkPolicy(
    ...     space=space, contexts=1, apply=network.apply,
    ...     initialise=lambda key: network.init(key, jnp.zeros((1, 1), int)))
    >>> policy.sample(policy.init(jax.random.key(0)), np.arange(1), jnp.zeros((1, 2, 3)))[0].shape
    (1, 2, 3)

    Args:
      space: the answers.
      apply: (parameters, int [B, L] tokens) -> [B, L, V] logits, those at place i of the token at i + 1. It
        reads the prompt and then the answer; where prompts are ids, an id c is the token V + c; where a
        prompt is padded, tokens are −1, and the network has to leave them out.
      initialise: key -> parameters.
      contexts: as in ``TransformerPolicy``.
      prompt_length: as in ``TransformerPolicy``.
      start: parameters to start from; None is ``initialise``.
      decoding: as in ``ActionPolicy``.
    """

    space: Sequences = static()
    apply: Callable[[Any, Array], Array] = static()
    initialise: Callable[[Array], Any] = static()
    contexts: int | None = static(None, low=1)
    prompt_length: int = static(1, low=1)
    start: Any = None
    decoding: Decoding | None = None

    def check(self) -> None:
        """Logits have their shape, and no token moves logits before it."""
        length = self.prompt_length + self.horizon - 1
        tokens = np.arange(2 * length).reshape(2, length) % self.space.vocab
        params = self.init(jax.random.key(0))
        wanted, found = (2, length, self.space.vocab), jax.eval_shape(self.apply, params, jnp.asarray(tokens))
        if jnp.shape(found) != wanted:
            raise ValueError(
                f"apply gives shape {jnp.shape(found)} for tokens {tokens.shape}; it must give {wanted}"
            )
        if length > 1 and self.space.vocab > 1:
            other = tokens.copy()
            other[:, -1] = (other[:, -1] + 1) % self.space.vocab
            one, two = (
                np.asarray(self.apply(params, jnp.asarray(x)), float)[:, :-1] for x in (tokens, other)
            )
            if np.abs(one - two).max() > CAUSAL * max(np.abs(one).max(), 1):
                raise ValueError("apply is not causal: the last token moves logits of tokens before it")

    def init(self, key: Array) -> Any:
        """Where training starts. A tree of arrays, in its network's shapes."""
        return self.initialise(key) if self.start is None else jax.tree.map(jnp.asarray, self.start)

    def token_logits(self, params: Any, prompts: Array, tokens: Array) -> Array:
        """[P, N, T, V]; see ``Autoregressive``."""
        asked = asked_tokens(self, prompts)
        count, group, horizon = tokens.shape
        asked = jnp.broadcast_to(asked[:, None], (count, group, self.prompt_length))
        read = jnp.concatenate([asked, tokens[:, :, :-1]], 2).reshape(count * group, -1)
        logits = self.apply(params, read)[:, self.prompt_length - 1 :]
        return logits.reshape(count, group, horizon, -1)
