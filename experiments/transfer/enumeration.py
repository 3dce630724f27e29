"""Expected updates of groups by enumeration, as weights on ∇log π of listed tokens; NumPy, double precision.

With weights W an update is Σ W ∇log π over prompts, answers and tokens: [R, C, S, T]. Means are over prompts.
"""

from __future__ import annotations

import numpy as np

from experiments.formulas.expected_updates import advantage_law
from experiments.transfer.policies import ALLOWED, LENGTH, MASK, NODE, SHOWN, TOKENS
from grpo_jax.theory.variance import FORMS

EPS = 0.2
GROUP = 8
MEAN_LENGTH = 3.0
"""1/|o| is multiplied by it, so that a rate means about the same with it and without."""


def chances(logp: np.ndarray) -> np.ndarray:
    """[R, C, S] π(answer)."""
    return np.exp(logp.sum(-1))


def expected(logp: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[R, C] E[value], values [C, S] or [R, C, S]."""
    return np.sum(chances(logp) * values, -1)


def returns(logp: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[R] J, the mean over prompts."""
    return expected(logp, values).mean(-1)


def spread_out(each: np.ndarray) -> np.ndarray:
    """Weights [R, C, S, T] that give each token its answer's own [R, C, S]; mean over prompts."""
    return each[..., None] * MASK / each.shape[1]


def ascent(logp: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weights of ∇J(θ), J the mean over prompts of E[value]."""
    return spread_out(chances(logp) * values)


def through(logp: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[R, C, nodes, V] Σ π(answer)·value over the answers that go on with a token at a prefix, [R, C, S]."""
    each = chances(logp) * values
    sums = np.zeros((*each.shape[:2], *ALLOWED.shape))
    for s, t in np.argwhere(MASK > 0):
        sums[:, :, NODE[s, t], TOKENS[s, t]] += each[:, :, s]
    return sums


def on_table(entries: np.ndarray) -> np.ndarray:
    """Weights [R, C, S, T] that put entries [R, C, nodes, V] on ∇log π(token|prefix)."""
    weights = np.zeros((*entries.shape[:2], MASK.size))
    weights[:, :, SHOWN[ALLOWED]] = entries[:, :, ALLOWED]
    return weights.reshape(*entries.shape[:2], *MASK.shape)


def divergence(logp: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[R] KL(π‖other) of answers in nats, mean over prompts."""
    return expected(logp, np.sum((logp - other) * MASK, -1)).mean(-1)


def group_law(
    logp: np.ndarray, rewards: np.ndarray, *, normalized: bool, group: int = GROUP
) -> tuple[np.ndarray, np.ndarray]:
    """E[max(A, 0)|answer] and E[min(A, 0)|answer], each [R, C, S], over the rest of a group drawn from π."""
    chance = chances(logp)
    rewards = np.broadcast_to(rewards, chance.shape)
    columns = [x.reshape(-1, x.shape[-1]).T for x in (rewards, chance)]
    laws = advantage_law(*columns, group_size=group, normalized=normalized)
    return tuple(law.T.reshape(chance.shape) for law in laws)  # type: ignore[return-value]


def ratios(old: np.ndarray, now: np.ndarray, kind: str) -> np.ndarray:
    """[R, C, S, T or 1] the factor of ∇log π: ratio of the token, of the answer, 1 (a score)."""
    gap = (now - old) * MASK
    if kind == "token":
        return np.exp(gap)
    whole = gap.sum(-1, keepdims=True)
    if kind == "trajectory":
        return np.exp(whole)
    return np.ones_like(whole)


def update(
    old: np.ndarray,
    now: np.ndarray,
    rewards: np.ndarray,
    *,
    ratio: str = "token",
    clip: str = "none",
    normalized: bool = False,
    divided: bool = False,
    group: int = GROUP,
    eps: float = EPS,
) -> np.ndarray:
    """Weights of GRPO's expected update at θ for groups drawn at θ_old.

    Args:
      old: log π_old, [R, C, S, T].
      now: log π, likewise.
      rewards: [C, S].
      ratio: "token", "trajectory", "score" (none).
      clip: one of `grpo_jax.theory.variance.FORMS`.
      normalized: whether advantages are divided by the group's σ.
      divided: whether tokens have weight 1/|o|, else 1.
      group: G.
      eps: of the clip.
    """
    up, down = group_law(old, rewards, normalized=normalized, group=group)
    at = ratios(old, now, ratio)
    kept = up[..., None] * FORMS[clip](at, 1, eps, eps) + down[..., None] * FORMS[clip](at, -1, eps, eps)
    alpha = MEAN_LENGTH / LENGTH if divided else np.ones(len(LENGTH))
    return chances(old)[..., None] * kept * alpha[:, None] * MASK / old.shape[1]
