"""Finite actions: a softmax over K actions for each of C contexts; an output is a sequence of length one."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from grpo_jax.decoding import Decoding
from grpo_jax.kernels import (
    at,
    count,
    cumulative,
    known_log_softmax,
    log_softmax,
    materialize,
    softmax,
)
from grpo_jax.part import number, part
from grpo_jax.prepared import Prepared
from grpo_jax.sequences import at_prompts, inverse_cdf, lookup
from grpo_jax.types import Array, Params, Scores, Support


@part
class ActionPolicy:
    """π_θ(k|c) = softmax(θ_c)_k; the parameters are the logits θ, [C, K].

    Args:
      logits: [C, K] where training starts, and the reference unless another is given. −inf is probability
        0, and no optimizer moves it (``optimizers.update``).
      decoding: what turns logits into π_θ; None is the softmax. Here it belongs to the policy that is trained
        and scored (a trainer that divides logits by a temperature); ``Config.behavior`` is the sampler's.
    """

    logits: Any = number(nonfinite=True, rank=2)
    decoding: Decoding | None = None
    trailing: ClassVar[bool] = True
    rank: ClassVar[int] = 2

    def check(self) -> None:
        """Logits must be a table with some finite entry in every context."""
        logits = np.asarray(self.logits)
        if logits.ndim not in (2, 3) or logits.shape[1] < 1:
            raise ValueError(f"logits have shape {logits.shape}; they must be [contexts, actions]")
        if np.isposinf(logits).any() or not np.isfinite(logits).any(axis=1).all():
            raise ValueError(
                "logits may be -inf for single actions, not for all of a context, and never +inf"
            )

    @classmethod
    def from_probabilities(cls, probabilities: Any) -> ActionPolicy:
        """The policy with the given [C, K] probabilities (rows are normalised; zeros stay zero)."""
        table = np.atleast_2d(np.asarray(probabilities, float))
        if (table < 0).any() or np.isnan(table).any() or (table.sum(1) <= 0).any():
            raise ValueError("probabilities must be non-negative and each row must have a positive sum")
        with np.errstate(divide="ignore"):
            return cls(logits=np.log(table / table.sum(1, keepdims=True)))

    @classmethod
    def uniform(cls, *, contexts: int, actions: int) -> ActionPolicy:
        """All actions equally likely."""
        return cls(logits=np.zeros((contexts, actions)))

    @property
    def horizon(self) -> int:
        """1."""
        return 1

    @property
    def contexts(self) -> int:
        """C."""
        return jnp.shape(self.logits)[0]

    @property
    def actions(self) -> int:
        """K."""
        return jnp.shape(self.logits)[1]

    def init(self, key: Array) -> Array:
        """The starting logits; the key is not used. [C, K]."""
        return jnp.asarray(self.logits, float)

    def log_probabilities(self, params: Params, prompts: Array) -> Array:
        """[P, K] log π_θ(k|c)."""
        if isinstance(params, Prepared):
            return at_prompts(known_log_softmax(params.params, params.known, 1), prompts)
        logits = at_prompts(params, prompts)
        return log_softmax(logits, 1) if self.decoding is None else self.decoding(logits, 1)

    def prepared(self, params: Params) -> Params | Prepared:
        """With the softmax of every context, unless decoding or a subclass makes another. [C, K]."""
        if self.decoding is not None or type(self) is not ActionPolicy:
            return params
        return Prepared(params, softmax(params, 1))

    def _probabilities(self, params: Params | Prepared, prompts: Array) -> Array:
        if isinstance(params, Prepared):
            return at_prompts(params.known.p, prompts)
        if self.decoding is None:
            return softmax(at_prompts(params, prompts), 1).p
        return jnp.exp(self.log_probabilities(params, prompts))

    def sample(self, params: Params, prompts: Array, uniforms: Array) -> tuple[Array, Array]:
        """Actions [P, G, 1] by inverse CDF; see ``types.Policy``."""
        probabilities = self._probabilities(params, prompts)
        tokens = inverse_cdf(probabilities[:, None], uniforms[:, :, 0])[:, :, None]
        return tokens, jnp.ones(tokens.shape)

    def counts(self, params: Params, prompts: Array, uniforms: Array) -> Array:
        """[P, K] histogram of what ``sample`` would draw from the same uniforms [P, G, 1].

        Counted in whole numbers; a count beyond 2^24 is then rounded to the nearest float32.
        """
        upto = materialize(cumulative(materialize(self._probabilities(params, prompts)), 1))
        level = materialize(uniforms[:, :, 0] * upto[:, -1:])
        below = count(level.shape[1], lambda g: at(level, g, 1) < upto[:, :-1])
        ends = jnp.zeros(level[:, :1].shape, below.dtype)
        counts = jnp.diff(jnp.concatenate([ends, below, ends + level.shape[1]], 1), axis=1)
        return counts.astype(upto.dtype)

    def score(self, params: Params, prompts: Array, tokens: Array, mask: Array) -> Scores:
        """[P, N, 1] log-probability of each action and entropy of its distribution."""
        logp = self.log_probabilities(params, prompts)
        return self._scores(lookup(logp, tokens[:, :, 0])[:, :, None], logp)

    def support(self, prompts: Array) -> Support:
        """All K actions for every prompt. [P, K, 1]."""
        tokens = np.broadcast_to(np.arange(self.actions)[None, :, None], (prompts.shape[0], self.actions, 1))
        return Support(tokens=tokens, mask=np.ones(tokens.shape))

    def score_support(self, params: Params, prompts: Array) -> Scores:
        """[P, K, 1]."""
        logp = self.log_probabilities(params, prompts)
        return self._scores(logp[:, :, None], logp)

    def _scores(self, chosen: Array, logp: Array) -> Scores:
        finite = jnp.where(logp > -jnp.inf, logp, 0)
        entropy = -jnp.sum(jnp.exp(logp) * finite, 1, keepdims=True)[:, :, None]
        return Scores(logp=chosen, entropy=jnp.broadcast_to(entropy, chosen.shape))
