"""What a KL penalty holds, and which divergence it is. Rewards are 1 and 0, answers two."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from grpo_jax.check.hazards.finding import HALF, HARD, WORSE, Finding, Level, named, percent, rule
from grpo_jax.check.setting import Setting
from grpo_jax.parts.penalties import K1, K2, K3
from grpo_jax.parts.shaping import Rescaled
from grpo_jax.presets.traits import centre, divisor, find, kl, scalar
from grpo_jax.theory import (
    direct_roots,
    effective_beta,
    effective_penalty_binary,
    stationary_binary_convention,
    stationary_pair,
    tied_share,
)
from grpo_jax.theory.preferences import Convention

IN_REWARD = ("reward", "returns", "advantage")
REVERSE = (("ratio", K1), ("ratio", K3), ("loss", K2), ("reward", K1), ("returns", K1), ("advantage", K1))
FORWARD = (("loss", K3),)
"""Penalties that descend KL(pi||pi_ref) at each prefix, and KL(pi_ref||pi) (A3, E1)."""
HOLDS = 1e-3
"""Less than this of the worse answer, and the penalty holds nothing worth the name."""


def odds_reverse(
    beta: float, group_size: int, how: Convention | None, *, own_mean: bool, gap: float = 1.0
) -> float:
    """Log-odds of the better answer under beta KL(pi||pi_ref): A8 beside the spread, A9 without one.

    Of several attractors it is the one where most of the worse answer is left.

    ``own_mean``: the baseline is the group's mean, so that the reward acts (1 - 1/G) times (A9).
    """
    better = 1 - WORSE
    if how is not None:
        acts = effective_beta(beta, HALF, group_size=group_size, convention=how)
        return float(jnp.nanmin(direct_roots(better, acts, group_size=group_size).log_odds))
    share = 1 - 1 / group_size if own_mean else 1.0
    return math.log(better / WORSE) + share * gap / beta


def odds_forward(
    beta: float, group_size: int, how: Convention | None, *, own_mean: bool, gap: float = 1.0
) -> float:
    """The same under beta KL(pi_ref||pi): the fixed point of A4 in the convention (A11), or that of pairs.

    Shift-only advantages drive with (1 - 1/G) p (1 - p), as pairs do with p (1 - p).
    """
    better = 1 - WORSE
    if how is not None:
        found = stationary_binary_convention(better, beta, group_size=group_size, convention=how)
    else:
        share = 1 - 1 / group_size if own_mean else 1.0
        found = stationary_pair(better, beta / (share * gap))
    return float(jax.scipy.special.logit(found))


def left(log_odds: float) -> tuple[float, str]:
    """What the worse answer has left, as a number and in print; e^-x where no float is as small."""
    share = 1 / (1 + math.exp(min(log_odds, 700)))
    return share, f"{share:.1e}" if share > 1e-300 else f"e^-{log_odds:.4g}"


def _read(setting: Setting) -> tuple[str, type, float] | None:
    """(place, divergence, weight) of a penalty that is on."""
    found = kl(setting.method)
    if found is None or not found[2]:
        return None
    place, kind, beta, _ = found
    return None if kind is None else (place, kind, beta)


def _gap(setting: Setting) -> float:
    """Reward 1 as the method scales it."""
    part = find(setting.method.shaping, Rescaled)
    scale = None if part is None else scalar(part.scale)
    return 1.0 if not scale else abs(scale)


def _what(setting: Setting, place: str, beta: float) -> str:
    return named(setting, "beta_reward" if place in IN_REWARD else "beta", beta)


def reference_kept(setting: Setting) -> Finding | None:
    """How much of the reference survives at the stationary policy."""
    found, group = _read(setting), setting.at.group_size
    spread = divisor(setting.method)
    if found is None or group < 2 or spread not in ("group", "nothing"):
        return None
    place, kind, beta = found
    how = rule(setting)
    if (spread == "group" and how is None) or (place == "reward" and spread == "group"):
        return None
    own, gap = centre(setting.method) == "group", _gap(setting)
    if (place, kind) in REVERSE:
        odds, claim = odds_reverse(beta, group, how, own_mean=own, gap=gap), "A8" if how else "A9"
    elif (place, kind) in FORWARD:
        odds, claim = odds_forward(beta, group, how, own_mean=own, gap=gap), "A4"
    else:
        return None
    share, printed = left(odds)
    holds = "" if share >= HOLDS else ": it holds next to nothing"
    return Finding(
        "reference_kept",
        Level.KNOW if share >= HOLDS else Level.HAZARD,
        claim,
        _what(setting, place, beta),
        f"of {WORSE:g} on the worse of two answers {printed} is left{holds} (rewards {gap:g} and 0, "
        f"G = {group})",
        share,
        "probability left on the worse answer",
    )


def no_penalty(setting: Setting) -> Finding | None:
    """Nothing holds the policy."""
    found = kl(setting.method)
    if found is None or found[2]:
        return None
    return Finding(
        "no_penalty",
        Level.NOTE,
        "A4",
        "no KL penalty",
        f"of {WORSE:g} on the worse of two answers nothing is left in the end, however little their "
        "rewards differ",
        0.0,
        "probability left on the worse answer",
    )


def k1_in_loss(setting: Setting) -> Finding | None:
    """A penalty without a gradient."""
    found = _read(setting)
    if found is None or found[:2] != ("loss", K1):
        return None
    return Finding(
        "k1_in_loss",
        Level.HAZARD,
        "E1",
        _what(setting, "loss", found[2]),
        "k1 in the loss: its expected gradient is 0 at the policy that sampled, it penalises nothing; "
        "k2 in the loss, or k1 in the reward, has that of KL(π‖π_ref)",
        0.0,
        "share of the gradient of KL(π‖π_ref)",
    )


def other_divergence(setting: Setting) -> Finding | None:
    """k3 in the loss without the ratio is the other KL."""
    found, how, group = _read(setting), rule(setting), setting.at.group_size
    if found is None or found[:2] not in FORWARD or group < 2:
        return None
    if divisor(setting.method) not in ("group", "nothing"):
        return None
    own, beta, gap = centre(setting.method) == "group", found[2], _gap(setting)
    forward, printed = left(odds_forward(beta, group, how, own_mean=own, gap=gap))
    _, other = left(odds_reverse(beta, group, how, own_mean=own, gap=gap))
    return Finding(
        "other_divergence",
        Level.NOTE,
        "E1, A3",
        _what(setting, "loss", beta),
        "k3 in the loss, not multiplied by the ratio, descends KL(π_ref‖π) at each prefix, not KL(π‖π_ref): "
        f"{printed} of {WORSE:g} is left on the worse answer, not {other}",
        forward,
        "probability left on the worse answer",
    )


def divided_in_reward(setting: Setting) -> Finding | None:
    """A KL in the reward that the group's spread divides."""
    found, group = _read(setting), setting.at.group_size
    if found is None or found[0] != "reward" or divisor(setting.method) != "group" or group < 2:
        return None
    share = float(tied_share(HARD, group_size=group))
    return Finding(
        "divided_in_reward",
        Level.HAZARD,
        "E1, E5",
        _what(setting, "reward", found[2]),
        "the KL in the reward is divided by the group's σ: where the task's rewards tie, it is all that σ "
        f"measures, and pulls at full size whatever its weight: {percent(share)} of the groups at a success "
        f"rate of {HARD:g}",
        share,
        "share of the groups in which the KL's weight does not count",
    )


def k3_in_reward(setting: Setting) -> Finding | None:
    """The difference of both divergences' gradients."""
    found = _read(setting)
    if found is None or found[0] not in IN_REWARD or found[1] is not K3:
        return None
    return Finding(
        "k3_in_reward",
        Level.HAZARD,
        "E1",
        _what(setting, "reward", found[2]),
        "k3 in the reward has the gradient of KL(π‖π_ref) less that of KL(π_ref‖π), 0 to first order near "
        "the reference: it does not hold the policy",
        0.0,
        "share of the gradient of KL(π‖π_ref), near the reference",
    )


def stale_in_batch(setting: Setting) -> Finding | None:
    """A KL in the reward is computed once a batch."""
    found, steps = _read(setting), setting.at.steps
    if found is None or found[0] not in IN_REWARD or steps < 2:
        return None
    return Finding(
        "stale_in_batch",
        Level.NOTE,
        "E1.3",
        _what(setting, "reward", found[2]),
        f"a KL in the reward is that of the policy that sampled: {steps - 1} of {steps} steps on a batch do "
        "not see how far the policy has gone since",
        float(steps - 1),
        "steps on a batch with a stale penalty",
    )


def convention_factor(setting: Setting) -> Finding | None:
    """ddof and the added constant are another weight of the penalty."""
    found, how, group = _read(setting), rule(setting), setting.at.group_size
    if found is None or how is None or group < 2 or found[0] == "reward":
        return None
    near, far = (
        float(effective_beta(1.0, HALF, gap, group_size=group, convention=how)) for gap in (1.0, 1e-3)
    )
    ddof, added = (float(jnp.asarray(number)) for number in (how.ddof, how.added))
    if abs(near - 1) < 1e-3 and abs(far - 1) < 1e-3:
        return None
    return Finding(
        "convention_factor",
        Level.NOTE,
        "A11",
        _what(setting, found[0], found[2]),
        f"σ with ddof {ddof:g} and {added:g} added: it acts as {near:.3g} times itself "
        f"where rewards differ by 1, as {far:.3g} times where they differ by 0.001",
        near,
        "factor on the penalty's weight at a gap of 1",
    )


def beside_spread(setting: Setting) -> Finding | None:
    """The spread multiplies the penalty's weight."""
    found, how, group = _read(setting), rule(setting), setting.at.group_size
    if found is None or how is None or group < 2 or found[0] == "reward":
        return None
    paper = effective_beta(found[2], HALF, group_size=group, convention=how)
    middling = float(effective_penalty_binary(paper, HALF, group_size=group))
    rare = effective_beta(found[2], 1e-6, group_size=group, convention=how)
    ends = float(effective_penalty_binary(rare, 1e-6, group_size=group))
    return Finding(
        "beside_spread",
        Level.NOTE,
        "A10",
        _what(setting, found[0], found[2]),
        f"beside advantages over σ it weighs {middling:.3g} on the rewards themselves at a success rate of "
        f"½, and {ends:.3g} where one answer has all but all of the probability",
        middling,
        "weight on rewards that are not divided, at a success rate of 1/2",
    )


def several_ends(setting: Setting) -> Finding | None:
    """More than one policy to end at."""
    found, how, group = _read(setting), rule(setting), setting.at.group_size
    if found is None or how is None or group < 4 or found[:2] not in REVERSE or found[0] == "reward":
        return None
    acts = effective_beta(found[2], HALF, group_size=group, convention=how)
    roots = direct_roots(1 - WORSE, acts, group_size=group)
    if int(roots.number) < 3:
        return None
    low, high = float(roots.low), float(roots.high)
    return Finding(
        "several_ends",
        Level.KNOW,
        "A8.2",
        _what(setting, found[0], found[2]),
        f"two policies attract: the better answer at {low:.3g} and at {high:.3g}; where training starts "
        f"decides, {float(roots.middle):.3g} divides them",
        float(roots.number),
        "stationary policies",
    )


HAZARDS = (
    reference_kept,
    k1_in_loss,
    k3_in_reward,
    divided_in_reward,
    several_ends,
    other_divergence,
    stale_in_batch,
    convention_factor,
    beside_spread,
    no_penalty,
)
