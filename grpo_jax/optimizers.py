"""Optimizers: Optax transformations whose numbers are traced leaves, one value per run where they are [R].

Learning rates may be schedules. A transformation that reduces over parameters (norm clipping, trust ratios)
is given one run at a time, so that runs never mix.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import optax

from grpo_jax.part import number, part, static, subparts
from grpo_jax.types import Array, Number, Params, ReducesParams


class Optimizer(Protocol):
    """A part that builds an Optax transformation from its (possibly traced) numbers."""

    def transform(self) -> optax.GradientTransformation:
        """The transformation; its update is added to the parameters."""


@part
class Cosine:
    """init·(end + (1 − end)·½(1 + cos(π·min(count/steps, 1)))): cosine decay to the fraction ``end``."""

    init: Number = number(1e-3, low=0.0)
    steps: Number = number(100.0, low=0.0, open_low=True)
    end: Number = number(0.0, low=0.0)

    def __call__(self, count: Array) -> Array:
        share = jnp.minimum(count / self.steps, 1.0)
        return self.init * (self.end + (1 - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * share)))


@part
class Warmup:
    """peak·min((count + 1)/steps, 1): linear warm-up, then constant."""

    peak: Number = number(1e-3, low=0.0)
    steps: Number = number(10.0, low=0.0, open_low=True)

    def __call__(self, count: Array) -> Array:
        return self.peak * jnp.minimum((count + 1) / self.steps, 1.0)


Rate = Number | Cosine | Warmup


@part
class SGD:
    """θ ← θ − lr·g, g the gradient of the loss −J."""

    learning_rate: Rate = number(1e-2, low=0.0)

    def transform(self) -> optax.GradientTransformation:
        """``optax.sgd``."""
        return optax.sgd(self.learning_rate)


@part
class HeavyBall:
    """m ← momentum·m + g, θ ← θ − lr·m."""

    learning_rate: Rate = number(1e-2, low=0.0)
    momentum: Number = number(0.9, low=0.0, high=1.0)

    def transform(self) -> optax.GradientTransformation:
        """``optax.trace`` without Nesterov's look-ahead."""
        return optax.chain(optax.trace(decay=self.momentum), optax.scale_by_learning_rate(self.learning_rate))


@part
class RMSProp:
    """v ← decay·v + (1 − decay)g², θ ← θ − lr·g/√(v + eps); at eps = 0 a coordinate with v = 0 stays."""

    learning_rate: Rate = number(1e-3, low=0.0)
    decay: Number = number(0.9, low=0.0, high=1.0, open_high=True)
    eps: Number = number(1e-8, low=0.0)

    def transform(self) -> optax.GradientTransformation:
        """``optax.rmsprop`` with 0/0 := 0."""
        return optax.chain(
            scale_by_rms(self.decay, self.eps), optax.scale_by_learning_rate(self.learning_rate)
        )


@part
class Adam:
    """θ ← θ − lr·m̂/(√v̂ + eps), bias-corrected (arXiv:1412.6980); at eps = 0 a coordinate with m = 0 stays."""

    learning_rate: Rate = number(1e-3, low=0.0)
    b1: Number = number(0.9, low=0.0, high=1.0, open_high=True)
    b2: Number = number(0.999, low=0.0, high=1.0, open_high=True)
    eps: Number = number(1e-8, low=0.0)

    def transform(self) -> optax.GradientTransformation:
        """``optax.adam``."""
        return optax.chain(
            scale_by_adam(self.b1, self.b2, self.eps), optax.scale_by_learning_rate(self.learning_rate)
        )


@part
class AdamW:
    """Adam with decoupled weight decay: θ ← θ − lr·(m̂/(√v̂ + eps) + weight_decay·θ) (arXiv:1711.05101)."""

    learning_rate: Rate = number(1e-3, low=0.0)
    b1: Number = number(0.9, low=0.0, high=1.0, open_high=True)
    b2: Number = number(0.999, low=0.0, high=1.0, open_high=True)
    eps: Number = number(1e-8, low=0.0)
    weight_decay: Number = number(0.0, low=0.0)

    def transform(self) -> optax.GradientTransformation:
        """``optax.adamw``."""
        return optax.chain(
            scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(self.learning_rate),
        )


@part
class Lion:
    """θ ← θ − lr·(sign(b1·m + (1−b1)·g) + weight_decay·θ), then m ← b2·m + (1−b2)·g (arXiv:2302.06675).

    A gradient that is 0 but for the rounding of a softmax's own terms is exactly 0
    (``kernels.log_softmax``), so that its sign is. A sum that cancels before it gets there (outputs of a tree
    that share a token, noisy rewards of one action, the layers of a network) may keep the sign of rounding.
    """

    learning_rate: Rate = number(1e-4, low=0.0)
    b1: Number = number(0.9, low=0.0, high=1.0, open_high=True)
    b2: Number = number(0.99, low=0.0, high=1.0, open_high=True)
    weight_decay: Number = number(0.0, low=0.0)

    def transform(self) -> optax.GradientTransformation:
        """``optax.lion``."""
        return optax.lion(self.learning_rate, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay)


@part
class ClippedNorm:
    """Gradients scaled down to a global norm of at most ``max_norm`` before the inner optimizer."""

    inner: Optimizer
    max_norm: Number = number(1.0, low=0.0, open_low=True)
    reduces: ClassVar[bool] = True

    def transform(self) -> optax.GradientTransformation:
        """``optax.clip_by_global_norm`` and the inner transformation."""
        return optax.chain(optax.clip_by_global_norm(self.max_norm), self.inner.transform())


@part
class L2:
    """Coupled weight decay: coef·θ is added to the gradient of the loss before the inner optimizer."""

    inner: Optimizer
    coef: Number = number(0.0, low=0.0)

    def transform(self) -> optax.GradientTransformation:
        """``optax.add_decayed_weights`` ahead of the inner transformation."""
        return optax.chain(optax.add_decayed_weights(self.coef), self.inner.transform())


@part
class Custom:
    """Any ``optax.GradientTransformation``, its numbers fixed; it sees one run at a time."""

    transformation: optax.GradientTransformation = static()
    reduces: ClassVar[bool] = True

    def transform(self) -> optax.GradientTransformation:
        """The given one."""
        return self.transformation


def scale_by_adam(b1: Number, b2: Number, eps: Number) -> optax.GradientTransformation:
    """``optax.scale_by_adam`` with 0/0 := 0: a coordinate whose first moment is exactly 0 does not move."""
    inner = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(grads: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        updates, state = inner.update(grads, state, params)
        return jax.tree.map(lambda u, m: jnp.where(m == 0, 0, u), updates, state.mu), state

    return optax.GradientTransformation(inner.init, update)


def scale_by_rms(decay: Number, eps: Number) -> optax.GradientTransformation:
    """``optax.scale_by_rms`` with 0/0 := 0: a coordinate that never had a gradient does not move."""
    inner = optax.scale_by_rms(decay=decay, eps=eps)

    def update(grads: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        updates, state = inner.update(grads, state, params)
        return jax.tree.map(lambda u, g: jnp.where(g == 0, 0, u), updates, grads), state

    return optax.GradientTransformation(inner.init, update)


OPTIMIZERS: dict[str, Any] = {
    "sgd": SGD,
    "heavy_ball": HeavyBall,
    "rmsprop": RMSProp,
    "adam": Adam,
    "adamw": AdamW,
    "lion": Lion,
}
"""Name -> class, for the command line and for files."""


def _one_run_at_a_time(optimizer: Optimizer) -> bool:
    return any(isinstance(p, ReducesParams) and p.reduces for p in subparts(optimizer))


def _where_absent(params: Params, there: Params) -> Params:
    """``there``, and 0 where the parameter is −inf. What has another shape is left to the check of shapes."""

    def one(own: Any, x: Any) -> Any:
        return jnp.where(own == -jnp.inf, 0, x) if jnp.shape(own) == jnp.shape(x) else x

    return jax.tree.map(one, params, there)


def init(optimizer: Optimizer, params: Params, *, runs: bool) -> Any:
    """The optimizer's state; ``runs``: the parameters carry runs as their last axis.

    Its moments are shaped like them.
    """
    params = _where_absent(params, params)
    if runs and _one_run_at_a_time(optimizer):
        axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, optimizer)
        size = jax.tree.leaves(params)[0].shape[-1]
        step = jax.vmap(lambda o, p: o.transform().init(p), in_axes=(axes, -1), out_axes=-1, axis_size=size)
        return step(optimizer, params)
    return optimizer.transform().init(params)


def update(
    optimizer: Optimizer, grads: Params, state: Any, params: Params, *, runs: bool
) -> tuple[Params, Any]:
    """(updates to add, new state) for the gradients of the *loss*; see ``init``.

    Trees shaped like the parameters.

    A parameter of −inf (a logit of probability 0) is none: the transformation sees 0 in its place, so that
    neither decay nor a norm reads it, and its update is 0. It stays −inf whatever the weight decay.
    """
    absent = params
    params = _where_absent(absent, params)

    def one(optimizer: Optimizer, grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        return optimizer.transform().update(grads, state, params)

    if runs and _one_run_at_a_time(optimizer):
        axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, optimizer)
        one = jax.vmap(one, in_axes=(axes, -1, -1, -1), out_axes=-1)
    updates, after = one(optimizer, grads, state, params)
    return _where_absent(absent, updates), jax.tree.map(_stored_like, state, after)


def _stored_like(old: Any, new: Any) -> Array:
    """A traced number of the optimizer's may be wider than what parameters are stored in: rounded to that."""
    return jnp.asarray(new, jnp.result_type(old))


def step(
    optimizer: Optimizer, grads: Params, state: Any, params: Params, *, runs: bool
) -> tuple[Params, Any, Params]:
    """(new parameters, new state, updates) after one step on the gradients of the *loss*; see ``init``.

    Trees shaped like the parameters.
    """
    updates, state = update(optimizer, grads, state, params, runs=runs)
    return jax.tree.map(lambda p, u: _stored_like(p, p + u), params, updates), state, updates
