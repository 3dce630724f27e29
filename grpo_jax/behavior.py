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

from grpo_jax.ages import Age, picked
from grpo_jax.decoding import Decoding
from grpo_jax.part import number, part, static
from grpo_jax.random import Stream, uniforms
from grpo_jax.types import Array, Decodable, Number, Params

RECORDS = ("processed", "tempered", "raw")


class Mismatch(Protocol):
    """Parameters as another engine would hold them; for a table they are the logits."""

    def __call__(self, params: Params, root: Array, seed: Array, step: Array, /) -> Params: ...


@part
class Noise:
    """Gaussian noise on every parameter (of a table: every logit), as other kernels make it.

    Args:
      scale: standard deviation.
      chance: share of states (rows of a table) where the noise is present: an expert that is routed otherwise
        is noise at some states. Of a network: share of the rows of its matrices (what one input is multiplied
        by), and of the numbers of its vectors.
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
class Proximal:
    """Whose log-probability is the ratio's denominator: log π_prox = (1 − w) log π_{n−lag} + w log q.

    Args:
      weight: w. 0 recomputes it with the trainer's weights, so that the first ratio is 1 (at lag 0) and a
        correction has to make up for q; 1 takes what the sampler reports, one ratio for both.
      lag: how many iterations old the trainer's weights are; None are those at collection. Needs a queue that
        is as deep (``age=Age(depth=...)``).
    """

    weight: Number = number(0.0, low=0.0, high=1.0)
    lag: Number | None = number(None, low=0.0, integer=True)

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
      records: which log-probabilities the engine reports: after temperature and filters, renormalised
        (``"processed"``; vLLM's ``logprobs_mode="processed_logprobs"``), after the temperature only
        (``"tempered"``; SGLang), or those of its logits before both (``"raw"``; vLLM's default
        ``"raw_logprobs"``, SGLang's ``SGLANG_RETURN_ORIGINAL_LOGPROB``).
    """

    decoding: Decoding | None = None
    mismatch: Mismatch | None = None
    age: Age | None = None
    proximal: Proximal | None = None
    records: str = static("processed")

    def check(self) -> None:
        """``records`` is one of three; the queue holds the proximal policy."""
        if self.records not in RECORDS:
            raise ValueError(f"records is {self.records!r}; it must be {' or '.join(map(repr, RECORDS))}")
        if self.proximal is not None and self.proximal.lag is not None:
            deepest = float(np.max(np.asarray(self.proximal.lag)))
            kept = 0 if self.age is None else self.age.depth
            if deepest > kept:
                raise ValueError(
                    f"the proximal policy is {deepest:g} iterations old, older than the {kept} policies "
                    f"kept; give age=Age(depth={deepest:g}), with lag=0 if the sampler's weights are new"
                )

    def apart(self, policy: Any) -> bool:
        """Whether what it reports may be other log-probabilities than the old policy's.

        So it is without any slot filled, too, where it reports those before the policy's own decoding.
        """
        own = policy.decoding if isinstance(policy, Decodable) else None
        undecoded = own is not None and (
            self.records == "raw" or (self.records == "tempered" and own.filters)
        )
        return undecoded or any(slot is not None for slot in (self.decoding, self.mismatch, self.age))

    def sampler(self, policy: Any) -> Any:
        """The policy as the engine decodes it."""
        return policy if self.decoding is None else dataclasses.replace(policy, decoding=self.decoding)

    def reported(self, policy: Any) -> Any:
        """The policy whose log-probabilities the engine reports."""
        if self.records == "raw":
            return dataclasses.replace(policy, decoding=None)
        engine = self.sampler(policy)
        own = engine.decoding if isinstance(engine, Decodable) else None
        if self.records == "processed" or own is None:
            return engine
        return dataclasses.replace(engine, decoding=own.unfiltered)

    @property
    def decodes(self) -> bool:
        """Whether it replaces the policy's sampling parameters."""
        return self.decoding is not None or self.records == "raw"

    @property
    def filters(self) -> bool:
        """Whether some tokens are kept and others not."""
        return self.decoding is not None and self.decoding.filters

    def unfiltered(self, policy: Any) -> Any:
        """The policy as the engine decodes it without its filters."""
        assert self.decoding is not None
        return dataclasses.replace(policy, decoding=self.decoding.unfiltered)

    @property
    def mixed(self) -> bool:
        """Whether answers of one batch may differ in age, or be lost."""
        return self.age is not None and self.age.mixed

    def queued(self, params: Params) -> Params:
        """A queue that holds these parameters only; None where none is needed. Leaves [age, ...]."""
        return None if self.age is None else self.age.queued(params)

    def require_queue(self, queue: Params) -> None:
        """ValueError for a state that does not hold the policies that ages ask for. Leaves [age, ...]."""
        if self.age is None:
            return
        held = 0 if queue is None else jax.tree.leaves(queue)[0].shape[0]
        if held != self.age.depth + 1:
            raise ValueError(
                f"the state holds {held} old policies, and behavior.age needs {self.age.depth + 1}: it was "
                "made for another configuration; begin with train.init(config, ...)"
            )

    def params(self, state: Any) -> Params:
        """The engine's parameters, where all answers of a batch are of one age. Shaped like the policy's."""
        return self.distorted(
            state, state.old_params if self.age is None else picked(state.queue, self.age.lag)
        )

    def params_by_age(self, state: Any) -> list[Params]:
        """The engine's parameters of 0, 1, ..., depth iterations ago. Each shaped like the policy's."""
        assert self.age is not None
        held = [jax.tree.map(lambda leaf, a=a: leaf[a], state.queue) for a in range(self.age.depth + 1)]
        return [self.distorted(state, params) for params in held]

    def distorted(self, state: Any, params: Params) -> Params:
        """Parameters as the engine holds them; its noise is one for all ages of an iteration. Shapes stay."""
        if self.mismatch is None:
            return params
        return self.mismatch(params, state.root, state.seed, state.step)
