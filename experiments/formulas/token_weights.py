"""Equation (15) of [B] by hand: the weight ω_{i,t} that each method gives a token's score.

Away from penalties the gradient is ∂J/∂log π_θ(y_{i,t}) = ω_{i,t} A_i live_{i,t}, ω = α ∂s/∂log π_θ(y_{i,t}),
with live = 0 where a clip holds the gradient. Every form is written from the method's paper and the row of
Table 1, in numbers of its own, and shares no code with the surrogate: one can be held against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from grpo_jax.types import Rollout


class TokenWeights(NamedTuple):
    """The three factors of a method's policy gradient with respect to each token's log-probability."""

    weight: Array
    """[P, N, T] ω_{i,t}; 0 where masked or absent."""
    advantage: Array
    """[P, N, 1 or T] A_{i,t}, by Table 1 not divided by σ_r (that is part of α)."""
    live: Array
    """[P, N, T] False where a clip holds the gradient at zero."""

    @property
    def gradient(self) -> Array:
        """[P, N, T] ω A live."""
        return jnp.where(self.live, self.weight * self.advantage, 0)


class _Batch(NamedTuple):
    """What the forms are written in. n is the multiplicity, B = Σ n."""

    n: Array
    mask: Array
    length: Array
    token: Array
    """I."""
    mean: Array
    """s, the geometric mean of I over a sequence."""
    product: Array
    """w, the product of I over a sequence."""
    shift: Array
    """r − r̄ of the group."""
    sigma: Array
    """σ_r, 1 for a group without spread (whose advantages are 0)."""
    per_sequence: Array
    """n/(B |o_i|)."""
    per_batch: Array
    """n/Σ|o|."""
    flat: Array
    """n/B."""
    rollout: Rollout


def _ratio(x: Array, y: Array) -> Array:
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


def _measure(rollout: Rollout, logp: Array, *, per_token: bool = False) -> _Batch:
    here = rollout.multiplicity > 0
    n = jnp.where(here, rollout.multiplicity, 0)[:, :, None]
    mask = jnp.where(here[:, :, None], rollout.mask, 0)
    d = jnp.where(mask > 0, logp - rollout.old_logp, 0)
    length = jnp.sum(mask, 2, keepdims=True)
    total = jnp.sum(d, 2, keepdims=True)
    reward = jnp.where(here, jnp.sum(rollout.rewards, 2), 0)[:, :, None]
    reward = _ratio(reward, length) if per_token else reward
    size = jnp.sum(n, 1, keepdims=True)
    shift = reward - _ratio(jnp.sum(n * reward, 1, keepdims=True), size)
    sigma = jnp.sqrt(_ratio(jnp.sum(n * shift**2, 1, keepdims=True), size))
    count = jnp.sum(n)
    return _Batch(
        n=n * mask,
        mask=mask,
        length=length,
        token=jnp.exp(d),
        mean=jnp.exp(_ratio(total, length)),
        product=jnp.exp(total),
        shift=shift,
        sigma=jnp.where(sigma == 0, 1, sigma),
        per_sequence=n * mask * _ratio(jnp.ones(()), length) / count,
        per_batch=_ratio(n * mask, jnp.sum(n * mask)),
        flat=n * mask / count,
        rollout=rollout,
    )


def _inside(ratio: Array, advantage: Array, low: float, high: float) -> Array:
    """Where min(s A, clip(s, 1 − low, 1 + high) A) moves with s."""
    return ~((ratio > 1 + high) & (advantage > 0) | (ratio < 1 - low) & (advantage < 0))


def _below(ratio: Array, advantage: Array, cap: float) -> Array:
    """Where min(s A, min(s, cap) A) moves with s."""
    return ~((ratio > cap) & (advantage > 0))


def _everywhere(b: _Batch) -> Array:
    return jnp.ones(b.token.shape, bool)


def _clipped(
    alpha: Array, ratio: Array, b: _Batch, low: float, high: float, advantage: Array
) -> TokenWeights:
    return TokenWeights(alpha * ratio, advantage, _inside(ratio, advantage, low, high))


def _gspo(b: _Batch, alpha: Array) -> TokenWeights:
    return _clipped(alpha / b.sigma, b.mean, b, 3e-4, 4e-4, b.shift)


def _gtpo(b: _Batch) -> TokenWeights:
    """δ_i = 1{⟨H⟩_i ≤ ln 2}; λ = 0 or 2 at tokens shared with an output of the other sign."""
    if b.rollout.entropy is None:
        raise ValueError("GTPO's weights need rollout.entropy")
    entropy = jnp.where(b.mask > 0, b.rollout.entropy, 0)
    calm = _ratio(jnp.sum(entropy, 2, keepdims=True), b.length) <= jnp.log(2.0)
    tokens, alive = b.rollout.tokens, b.mask > 0
    rows = []
    for i in range(tokens.shape[1]):
        other = (tokens == tokens[:, i : i + 1]) & alive & (b.shift * b.shift[:, i : i + 1] < 0)
        rows.append(jnp.any(other, 1))
    shared = jnp.stack(rows, 1) & alive
    lam = jnp.where(shared, jnp.where(b.shift > 0, 2.0, 0.0), 1.0)
    return _clipped(b.per_sequence * calm * lam, b.token, b, 0.2, 0.2, b.shift)


def _v32(b: _Batch) -> TokenWeights:
    drift = _ratio(-jnp.sum(jnp.where(b.mask > 0, jnp.log(b.token), 0), 2, keepdims=True), b.length)
    kept = (b.shift >= 0) | (drift <= 0.1)
    return _clipped(b.per_sequence * kept, b.token, b, 0.2, 0.2, b.shift)


def _gpg(b: _Batch) -> TokenWeights:
    spread = jnp.any(b.shift != 0, (1, 2))
    groups = jnp.any(b.rollout.multiplicity > 0, 1)
    alpha = _ratio(jnp.sum(groups), jnp.sum(groups & spread))
    return TokenWeights(b.per_batch * alpha, b.shift, _everywhere(b))


def _dynamic(b: _Batch) -> TokenWeights:
    kept = b.n * jnp.any(b.shift != 0, (1, 2), keepdims=True)
    return _clipped(_ratio(kept, jnp.sum(kept)) / b.sigma, b.token, b, 0.2, 0.28, b.shift)


def _dual(b: _Batch) -> TokenWeights:
    live = _inside(b.token, b.shift, 0.2, 0.2) & ~((b.token > 3) & (b.shift < 0))
    return TokenWeights(b.per_sequence * b.token / b.sigma, b.shift, live)


def _sapo(b: _Batch) -> TokenWeights:
    """d/d log s of (4/τ) sigmoid(τ(s − 1)) = 4 p (1 − p) s, p the sigmoid."""
    p = 1 / (1 + jnp.exp(-jnp.where(b.shift > 0, 1.0, 1.05) * (b.token - 1)))
    return TokenWeights(b.per_sequence * 4 * p * (1 - p) * b.token / b.sigma, b.shift, _everywhere(b))


def _vespo(b: _Batch) -> TokenWeights:
    """φ(w) = e^λ w^k e^{−λ w}."""
    w = jnp.clip(b.product, 1e-8, jnp.exp(20.0))
    k, lam = jnp.where(b.shift >= 0, 2.0, 3.0), jnp.where(b.shift >= 0, 3.0, 2.0)
    return TokenWeights(b.per_batch * w**k * jnp.exp(lam * (1 - w)) / b.sigma, b.shift, _everywhere(b))


def _gmpo(b: _Batch) -> TokenWeights:
    """The geometric mean of clipped ratios, once per output; a held token has no gradient."""
    d = jnp.log(b.token)
    held = (d > 0.4) & (b.shift > 0) | (d < -0.4) & (b.shift < 0)
    kept = jnp.where(b.shift > 0, jnp.minimum(d, 0.4), jnp.maximum(d, -0.4))
    value = jnp.exp(_ratio(jnp.sum(jnp.where(b.mask > 0, kept, 0), 2, keepdims=True), b.length))
    return TokenWeights(b.per_sequence * value / b.sigma, b.shift, ~held)


def _once(b: _Batch, live: Array, advantage: Array | None = None) -> TokenWeights:
    """J_i = w A_i once per output: ω = w/B."""
    weight = b.flat * b.product
    if advantage is None:
        return TokenWeights(weight / b.sigma, b.shift, live)
    return TokenWeights(weight, advantage, live)


def _rloo(b: _Batch) -> TokenWeights:
    size = jnp.sum(jnp.where(b.rollout.multiplicity > 0, b.rollout.multiplicity, 0), 1)[:, None, None]
    advantage = b.shift * _ratio(size, size - 1)
    return _once(b, _inside(b.product, advantage, 0.2, 0.2), advantage)


def _rewards(b: _Batch) -> Array:
    return jnp.where(b.rollout.multiplicity > 0, jnp.sum(b.rollout.rewards, 2), 0)[:, :, None]


def _over_mean(b: _Batch, values: Array) -> Array:
    """values/r̄, 0 where r̄ is not positive; r̄ is what the baseline takes off the rewards."""
    return _ratio(values, jnp.maximum(_rewards(b) - b.shift, 0))


def _opo(b: _Batch) -> TokenWeights:
    reward, tokens = _rewards(b), jnp.sum(b.n, 2, keepdims=True)
    base = _ratio(jnp.sum(tokens * reward, 1, keepdims=True), jnp.sum(tokens, 1, keepdims=True))
    return TokenWeights(b.flat, reward - base, _everywhere(b))


def _whitened(b: _Batch, values: Array) -> TokenWeights:
    """(x − x̄)/√(var + 1e-8) over the batch's tokens, variance with ddof 1."""
    count = jnp.sum(b.n)
    values = jnp.where(b.n > 0, values, 0)
    centre = values - jnp.sum(b.n * values) / count
    advantage = centre / jnp.sqrt(jnp.sum(b.n * centre**2) / (count - 1) + 1e-8)
    return _clipped(b.per_batch, b.token, b, 0.2, 0.2, advantage)


def _reinforce_plus_plus(b: _Batch) -> TokenWeights:
    """Returns: the reward at the end, less 0.01 (log π_old − log π_ref) from this token on."""
    kl = jnp.where(b.mask > 0, b.rollout.old_logp - b.rollout.ref_logp, 0)
    to_go = jnp.sum(kl, 2, keepdims=True) - jnp.cumsum(kl, 2) + kl
    return _whitened(b, _rewards(b) - 0.01 * to_go)


def _kl_in_reward(b: _Batch) -> TokenWeights:
    kl = jnp.sum(jnp.where(b.mask > 0, b.rollout.old_logp - b.rollout.ref_logp, 0), 2)
    shaped = b.rollout._replace(rewards=(jnp.sum(b.rollout.rewards, 2) - 0.04 * kl)[:, :, None])
    return _grpo(_measure(shaped, b.rollout.old_logp)._replace(token=b.token))


def _grpo(b: _Batch) -> TokenWeights:
    return _clipped(b.per_sequence / b.sigma, b.token, b, 0.2, 0.2, b.shift)


Form = Callable[[_Batch], TokenWeights]

FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "grpo": _grpo,
        "grpo_v32": _v32,
        "gspo": lambda b: _gspo(b, b.per_sequence),
        "gspo_token": lambda b: _gspo(b, b.per_sequence),
        "gtpo": _gtpo,
        "dapo": lambda b: _clipped(b.per_batch / b.sigma, b.token, b, 0.2, 0.28, b.shift),
        "cppo": lambda b: _clipped(
            b.per_sequence * (jnp.abs(b.shift) > 0.5 * b.sigma) / b.sigma, b.token, b, 0.2, 0.2, b.shift
        ),
        "dr_grpo": lambda b: _clipped(b.flat, b.token, b, 0.2, 0.2, b.shift),
        "gpg": _gpg,
        "cispo": lambda b: TokenWeights(
            b.per_batch * jnp.minimum(b.token, 5) / b.sigma, b.shift, _everywhere(b)
        ),
        "gcpo": lambda b: _clipped(b.length * b.flat / b.sigma, b.product, b, 0.2, 0.2, b.shift),
        "tic_grpo_unclipped": lambda b: _once(b, _everywhere(b)),
        "tic_grpo": lambda b: _once(b, _below(b.product, b.shift, 1.2)),
        "tic_grpo_truncated": lambda b: _once(b, b.product <= 1.2),
        "tic_grpo_score": lambda b: TokenWeights(
            b.flat * jnp.minimum(b.product, 1.2) / b.sigma, b.shift, _everywhere(b)
        ),
        "tic_grpo_length": lambda b: _once(b, _below(b.product, b.shift, 1.2)),
        "grpo_frozen": lambda b: TokenWeights(b.flat / b.sigma, b.shift, _everywhere(b)),
        "grpo_score": lambda b: TokenWeights(b.flat / b.sigma, b.shift, _everywhere(b)),
        "grpo_direct_kl": _grpo,
        "grpo_kl_in_reward": _kl_in_reward,
        "dual_clip": _dual,
        "dapo_dynamic": _dynamic,
        "bnpo": lambda b: _clipped(b.per_batch / b.sigma, b.token, b, 0.2, 0.2, b.shift),
        "luspo": lambda b: _gspo(b, b.flat),
        "sapo": _sapo,
        "vespo": _vespo,
        "gmpo": _gmpo,
        "rloo": _rloo,
        "reinforce": lambda b: TokenWeights(b.flat, _rewards(b), _everywhere(b)),
        "reinforce_baseline": lambda b: TokenWeights(b.flat, b.shift, _everywhere(b)),
        "max_rl_successes": lambda b: TokenWeights(b.flat, _over_mean(b, _rewards(b)), _everywhere(b)),
        "max_rl": lambda b: TokenWeights(b.flat, _over_mean(b, b.shift), _everywhere(b)),
        "opo": _opo,
        "reinforce_plus_plus": _reinforce_plus_plus,
        "reinforce_plus_plus_baseline": lambda b: _whitened(b, b.shift + 0 * b.token),
    }
)
"""Method -> its closed form, with the numbers of the method table."""


def token_weights(name: str, rollout: Rollout, logp: Array) -> TokenWeights:
    """ω, A and live of a method of the table, in closed form.

    Args:
      name: a name of ``grpo_jax.methods.TABLE``, taken with the numbers that stand there.
      rollout: a batch of one run; what stands at masked places is not read.
      logp: [P, N, T] log π_θ of its tokens.

    Returns:
      The factors of ∂J/∂log π_θ(y_{i,t}), the penalty's apart.
    """
    if name not in FORMS:
        raise ValueError(f"no closed form for {name!r}; known: {', '.join(FORMS)}")
    return FORMS[name](_measure(rollout, logp, per_token=name == "tic_grpo_length"))
