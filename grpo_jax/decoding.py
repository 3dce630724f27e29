"""From logits to the distribution that tokens are drawn from: temperature, top-k, top-p, min-p.

q(v|s) ∝ π(v|s)^(1/τ) on a kept set, 0 elsewhere. Engines apply the filters in different orders, and what is
kept differs with the order: a filter looks at the distribution that the ones before it left, renormalised,
unless filters are ``joint``, when each looks at the tempered distribution itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from grpo_jax.kernels import at, log_softmax, trailing
from grpo_jax.part import number, part, static
from grpo_jax.types import Array, Number

NEVER = -1e30
"""The logit of a token that cannot be drawn."""
TIES = 32
"""Units of rounding by which a probability may miss a filter's threshold and still be equal to it."""
COMPARED = 32
"""The most tokens whose order is found by comparing them in pairs."""
FILTERS = ("top_k", "top_p", "min_p")
VLLM = ("min_p", "top_k", "top_p")
"""vLLM's V1 sampler (``SamplingParams``): temperature, min-p, top-k, top-p, each on what the last left."""
TRANSFORMERS = ("top_k", "top_p", "min_p")
"""transformers' ``generate`` (``GenerationConfig``): temperature, top-k, top-p, min-p, each on what the last
left. SGLang has this order where FlashInfer draws with min-p; otherwise its filters all look at the tempered
distribution (``filter_apply_order="joint"``): ``joint``."""


@part
class Decoding:
    """An engine's sampling parameters; with the defaults q is the softmax itself.

    Args:
      temperature: τ > 0; logits are divided by it. Greedy decoding is the limit τ → 0: a value such as 1e-3.
      top_k: keep the k most likely tokens; None keeps all.
      top_p: keep the fewest tokens whose probability reaches p, the one that crosses it included; None keeps
        all. Of equal tokens the first ones stay.
      min_p: keep tokens with at least p times the probability of the likeliest; None keeps all. For it and
        for top_p, what is equal up to rounding is equal.
      order: the filters' order (``VLLM``, ``TRANSFORMERS``).
      joint: every filter looks at the tempered distribution, not at what the others left.
    """

    temperature: Number = number(1.0, low=0.0, open_low=True)
    top_k: Number | None = number(None, low=1.0, integer=True)
    top_p: Number | None = number(None, low=0.0, open_low=True, high=1.0)
    min_p: Number | None = number(None, low=0.0, high=1.0)
    order: tuple[str, ...] = static(VLLM)
    joint: bool = static(False)

    def check(self) -> None:
        """The order names every filter once."""
        if sorted(self.order) != sorted(FILTERS):
            raise ValueError(f"order is {self.order}; it must name each of {', '.join(FILTERS)} once")

    @property
    def filters(self) -> bool:
        """Whether some tokens are kept and others not."""
        return any(getattr(self, name) is not None for name in FILTERS)

    @property
    def unfiltered(self) -> Decoding:
        """Its temperature alone."""
        return dataclasses.replace(self, top_k=None, top_p=None, min_p=None)

    def __call__(self, logits: Array, axis: int) -> Array:
        """log q along ``axis``; about ``NEVER`` where a token is not kept."""
        return log_softmax(jnp.where(self.kept(logits, axis), logits / self.temperature, NEVER), axis)

    def kept(self, logits: Array, axis: int) -> Array:
        """Which tokens can be drawn. bool, of the logits' shape."""
        top = jnp.max(logits, axis, keepdims=True)  # a shift, so that large logits round no more than small
        tempered = log_softmax((logits - top) / self.temperature, axis)
        kept = logits > NEVER / 2
        for name in self.order:
            threshold = getattr(self, name)
            if threshold is not None:
                seen = tempered if self.joint else log_softmax(jnp.where(kept, tempered, NEVER), axis)
                kept = kept & _KEEPS[name](seen, threshold, axis)
        return kept


def impossible(logp: Array) -> Array:
    """Where a log-probability stands for probability 0: −∞, or a share of ``NEVER``.

    bool, of the same shape.
    """
    return logp < 1e-6 * NEVER


def _before(logp: Array, values: Array, axis: int) -> Array:
    """Σ of values over the tokens that come before each: the likelier ones, and of equal ones the earlier.

    Few tokens are compared in pairs, which fuses into one kernel where a sort would not.
    """
    size = logp.shape[axis]
    if size <= COMPARED:
        index = trailing(jnp.arange(size), logp.ndim - axis)
        total = jnp.zeros_like(values)
        for j in range(size):
            here = at(logp, j, axis)
            first = (here > logp) | ((here == logp) & (j < index))
            total = total + jnp.where(first, at(values, j, axis), 0)
        return total
    order = jnp.argsort(-logp, axis=axis, stable=True)
    sorted_ = jnp.take_along_axis(values, order, axis)
    return jnp.take_along_axis(jnp.cumsum(sorted_, axis) - sorted_, jnp.argsort(order, axis=axis), axis)


def _top_k(logp: Array, k: Any, axis: int) -> Array:
    return _before(logp, jnp.ones_like(logp), axis) < k


def _top_p(logp: Array, p: Any, axis: int) -> Array:
    # A p of 1 keeps all: the sum before a rare token may be 1 by rounding.
    return (_before(logp, jnp.exp(logp), axis) < _less(p, logp)) | (jnp.asarray(p) >= 1)


def _min_p(logp: Array, p: Any, axis: int) -> Array:
    return jnp.exp(logp - jnp.max(logp, axis, keepdims=True)) >= _less(p, logp)


def _less(p: Any, logp: Array) -> Array:
    """p less what rounding may take from a probability, a sum or a quotient that is equal to it.

    Without it a tie, such as top_p = 1/2 among equal tokens, is decided by rounding.
    """
    return jnp.asarray(p) * (1 - TIES * jnp.finfo(logp.dtype).eps)


_KEEPS = {"top_k": _top_k, "top_p": _top_p, "min_p": _min_p}
