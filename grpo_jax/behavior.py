"""Who samples: the behaviour policy q, where it is not the policy that is trained.

    q_θ = decode(distort(θ_{n − age}))

An engine samples with its own parameters (``decoding``), from weights that other kernels or a lower precision
distort (``mismatch``) and that may be some iterations old (``age``). What it reports of its draws is
``rollout.sampling_logp``; ``rollout.old_logp``, the ratio's denominator, is the *proximal* policy's
(``proximal``). Kept sets, noise and ages are constants: no gradient passes through the sampler.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from grpo_jax.decoding import Decoding
from grpo_jax.part import number, part, static
from grpo_jax.random import Stream, uniforms
from grpo_jax.types import Array, Number, Params

RECORDS = ("processed", "raw")


class Mismatch(Protocol):
    """Parameters as another engine would hold them; for a table they are the logits."""

    def __call__(self, params: Params, root: Array, seed: Array, step: Array, /) -> Params: ...


@part
class Noise:
    """Gaussian noise on every parameter (of a table: every logit), as other kernels make it.

    Args:
      scale: standard deviation.
      chance: share of states (rows of a table) where the noise is present: an expert that is routed otherwise
        is noise at some states. Of a network: share of parameters.
      fresh: drawn anew at every iteration; otherwise one draw for the whole run.
    """

    scale: Number = number(0.1, low=0.0)
    chance: Number = number(1.0, low=0.0, high=1.0)
    fresh: bool = static(False)

    def __call__(self, params: Params, root: Array, seed: Array, step: Array, /) -> Params:
        """Parameters with noise."""
        when = step if self.fresh else jnp.zeros_like(step)
        leaves, structure = jax.tree.flatten(params)
        sizes = [leaf[..., 0].size if seed.ndim else leaf.size for leaf in leaves]
        total = sum(sizes)
        draws = uniforms(root, seed, when, Stream.KERNEL, (2 * total,))
        found, first = [], 0
        for leaf, size in zip(leaves, sizes, strict=True):
            shape = (leaf.shape[:-1] if seed.ndim else leaf.shape) + seed.shape
            normal = ndtri(jnp.maximum(draws[first : first + size].reshape(shape), 2.0**-25))
            present = draws[total + first : total + first + size].reshape(shape)
            if leaf.ndim - seed.ndim > 1:  # one decision for a row: what the state's tokens share
                rows = len(leaf.shape) - seed.ndim - 1
                present = jax.lax.slice_in_dim(present, 0, 1, axis=rows)
            found.append(leaf + jnp.where(present < self.chance, self.scale * normal, 0))
            first += size
        return jax.tree.unflatten(structure, found)


@part
class Rounded:
    """Parameters rounded to bfloat16 (8 bits of mantissa), as an engine of that precision holds them."""

    def __call__(self, params: Params, root: Array, seed: Array, step: Array, /) -> Params:
        """Rounded parameters, in the precision in use."""
        return jax.tree.map(lambda leaf: jax.lax.reduce_precision(leaf, 8, 7), params)


@part
class Age:
    """The sampler's weights are ``lag`` iterations old (of the first ones: as old as the run).

    Args:
      lag: whole number of iterations, at most ``depth``; a number, so that it can be swept.
      depth: how many past policies the state keeps, one copy of the parameters each.
    """

    lag: Number = number(1.0, low=0.0)
    depth: int = static(1, low=1)

    def check(self) -> None:
        """A lag is a whole number, and none is deeper than the queue."""
        lags = np.asarray(self.lag)
        if (lags != np.round(lags)).any():
            raise ValueError(f"lag is {self.lag}; it counts iterations, in whole numbers")
        deepest = float(lags.max())
        if deepest > self.depth:
            raise ValueError(
                f"lag is {deepest:g}, older than the {self.depth} policies kept; give depth={deepest:g}"
            )

    def queued(self, params: Params) -> Params:
        """A queue [depth + 1, ...] that holds these parameters only."""
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.depth + 1, *leaf.shape)), params)

    def pushed(self, queue: Params, params: Params) -> Params:
        """The queue with these parameters as the newest."""
        return jax.tree.map(lambda old, new: jnp.concatenate([new[None], old[:-1]]), queue, params)

    def picked(self, queue: Params) -> Params:
        """The parameters ``lag`` iterations ago."""

        def pick(leaf: Array) -> Array:
            place = jnp.asarray(self.lag).astype(int)
            if place.ndim == 0:
                return leaf[place]
            index = jnp.broadcast_to(place, leaf.shape[1:])[None]
            return jnp.take_along_axis(leaf, index, axis=0)[0]

        return jax.tree.map(pick, queue)


@part
class Proximal:
    """Which log-probability is the ratio's denominator: log π_prox = (1 − w) log π_old + w log q.

    w = 0 recomputes it with the trainer's own weights at collection, so that the first ratio is 1 and a
    correction has to make up for q; w = 1 takes what the sampler reports, one ratio for both.
    """

    weight: Number = number(0.0, low=0.0, high=1.0)

    def __call__(self, old_logp: Array, sampling_logp: Array, mask: Array) -> Array:
        """[P, N, T]."""
        both = (1 - self.weight) * old_logp + self.weight * sampling_logp
        return jnp.where(mask > 0, both, 0)


@part
class Behavior:
    """Who samples; with every slot None it is the old policy.

    Args:
      decoding: the engine's sampling parameters; None are the policy's own (``policy.decoding``).
      mismatch: how the engine's weights differ from the trainer's.
      age: how old they are.
      proximal: the denominator of the ratio.
      records: whether the engine reports log-probabilities after temperature and filters, renormalised
        (``"processed"``; vLLM's ``logprobs_mode="processed_logprobs"``), or those of its logits before them
        (``"raw"``; vLLM's default ``"raw_logprobs"``, SGLang's ``SGLANG_RETURN_ORIGINAL_LOGPROB``).
    """

    decoding: Decoding | None = None
    mismatch: Mismatch | None = None
    age: Age | None = None
    proximal: Proximal | None = None
    records: str = static("processed")

    def check(self) -> None:
        """``records`` is one of two."""
        if self.records not in RECORDS:
            raise ValueError(f"records is {self.records!r}; it must be {' or '.join(map(repr, RECORDS))}")

    @property
    def apart(self) -> bool:
        """Whether q may be another than the old policy."""
        return any(slot is not None for slot in (self.decoding, self.mismatch, self.age))

    def sampler(self, policy: Any) -> Any:
        """The policy as the engine decodes it."""
        return policy if self.decoding is None else dataclasses.replace(policy, decoding=self.decoding)

    def reported(self, policy: Any) -> Any:
        """The policy whose log-probabilities the engine reports."""
        if self.records == "processed":
            return self.sampler(policy)
        return dataclasses.replace(policy, decoding=None)

    @property
    def decodes(self) -> bool:
        """Whether it replaces the policy's sampling parameters."""
        return self.decoding is not None or self.records == "raw"

    def params(self, state: Any) -> Params:
        """The engine's parameters."""
        held = state.old_params if self.age is None else self.age.picked(state.queue)
        if self.mismatch is None:
            return held
        return self.mismatch(held, state.root, state.seed, state.step)
