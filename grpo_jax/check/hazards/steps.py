"""Optimizer steps on one batch: clips, ratios, momentum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from grpo_jax.check.hazards.finding import DISTANCE, Finding, Level, named
from grpo_jax.check.setting import Setting
from grpo_jax.optimizers import Adam, AdamW
from grpo_jax.parts.gains import Clip, DualClip, LogLikelihood, TwoSided, UpperClip
from grpo_jax.parts.ratios import FromSampler, Score
from grpo_jax.parts.soft_gains import GeometricMean
from grpo_jax.presets.traits import find, level, scalar
from grpo_jax.theory.optimizer import coasting_rate
from grpo_jax.theory.variance import trajectory_second_moment

CLIPPED = (Clip, DualClip, TwoSided, UpperClip, GeometricMean)
BOUNDS = frozenset(
    ("epsilon", "epsilon_high", "delta", "clip_ratio_low", "clip_ratio_high", "eps_clip", "eps_clip_low_high")
    + ("eps_clip_higher", "clip_ratio", "ratio_clip_min", "ratio_clip_max", "ratio_clip_c")
    + ("clip_lower", "clip_higher")
)
"""Options that set a clip, by the last part of their names."""
WIDE = 0.01
"""A clip for ratios of whole answers is below this (GSPO's is 3e-4); above, it is one for tokens."""


def _clip(setting: Setting) -> Any:
    """The clip, where ratios are against a policy that the batch itself was drawn with."""
    sampled = isinstance(setting.method.ratio, FromSampler)
    return setting.method.gain if isinstance(setting.method.gain, CLIPPED) and not sampled else None


def idle_clip(setting: Setting) -> Finding | None:
    """One step on a batch."""
    sampled = any(name.endswith("bypass_mode") for name in setting.not_modelled)  # the ratio is the sampler's
    if setting.at.steps != 1 or _clip(setting) is None or sampled:
        return None
    asked = sorted(name for name in setting.written if name.rpartition(".")[2] in BOUNDS)
    rest = f": {', '.join(asked)} change{'s' if len(asked) == 1 else ''} nothing" if asked else ""
    return Finding(
        "idle_clip",
        Level.KNOW if asked else Level.NOTE,
        "B6",
        named(setting, "epochs", 1) if setting.library == "trl" else f"{named(setting, 'epochs')} (one step)",
        f"one optimizer step on a batch: every ratio is 1, and the clip never acts{rest}",
        0.0,
        "share of the tokens that the clip holds",
    )


def coasting(setting: Setting) -> Finding | None:
    """Momentum past the clip."""
    adam, steps = find(setting.at.optimizer, Adam, AdamW), setting.at.steps
    if adam is None or steps < 2 or _clip(setting) is None:
        return None
    rate = float(coasting_rate(adam.b1, adam.b2))
    if rate >= 1:
        return None  # ``coasting_grows`` says so
    way = rate * (1 - rate ** (steps - 1)) / (1 - rate)
    return Finding(
        "coasting",
        Level.KNOW,
        "B4",
        f"{named(setting, 'epochs')} ({steps} steps), Adam's betas {scalar(adam.b1):g}, {scalar(adam.b2):g}",
        f"a token that the clip stops after the first of {steps} steps goes on by momentum, up to {way:.3g} "
        "times its last step, where its parameters are its own",
        way,
        "way past the clip, in units of the last live step",
    )


def coasting_grows(setting: Setting) -> Finding | None:
    """b1 above the root of b2."""
    adam = find(setting.at.optimizer, Adam, AdamW)
    if adam is None:
        return None
    rate = float(coasting_rate(adam.b1, adam.b2))
    if rate <= 1:
        return None
    return Finding(
        "coasting_grows",
        Level.HAZARD,
        "B4.2",
        f"Adam's betas {scalar(adam.b1):g}, {scalar(adam.b2):g}",
        f"β1 > √β2: on zero gradient steps grow, {rate:.4g}-fold each, instead of dying away",
        rate,
        "factor from one step on zero gradient to the next",
    )


def token_clip_for_answers(setting: Setting) -> Finding | None:
    """A clip of .2 on a geometric mean."""
    gain, tokens, steps = _clip(setting), setting.at.tokens, setting.at.steps
    if gain is None or tokens is None or steps < 2 or level(setting.method) != "mean":
        return None
    high = scalar(gain.high)
    if high is None or high < WIDE:
        return None
    nats = tokens * math.log1p(high)
    return Finding(
        "token_clip_for_answers",
        Level.HAZARD,
        "C4",
        f"{named(setting, 'ratio')}, {named(setting, 'clip', high)}",
        f"the ratio is an answer's geometric mean: a clip at {1 + high:g} lets an answer of {tokens} tokens "
        f"become e^{nats:.3g} times as likely in one batch; GSPO's own bounds are of the order of 3e-4",
        nats,
        "log of how much likelier an answer may become",
    )


def answer_ratio(setting: Setting) -> Finding | None:
    """The product of an answer's ratios."""
    tokens, steps = setting.at.tokens, setting.at.steps
    if level(setting.method) != "whole" or tokens is None or steps < 2:
        return None
    with np.errstate(over="ignore"):
        moment = float(trajectory_second_moment(DISTANCE, horizon=float(tokens)))
    shown = f"{moment:.3g}" if math.isfinite(moment) else f"e^{tokens * math.log1p(DISTANCE):.4g}"
    return Finding(
        "answer_ratio",
        Level.KNOW,
        "C4",
        named(setting, "ratio"),
        f"the product of {tokens} ratios: E[w²] = {shown} where a token's χ² is {DISTANCE:g}, unless "
        "the clip stops it",
        moment,
        "second moment of an answer's ratio",
    )


def no_ratio(setting: Setting) -> Finding | None:
    """A likelihood that is climbed again and again."""
    steps = setting.at.steps
    free = isinstance(setting.method.gain, LogLikelihood) or find(setting.method.ratio, Score)
    if not free or steps < 2:
        return None
    return Finding(
        "no_ratio",
        Level.HAZARD,
        "C3",
        f"{named(setting, 'epochs')} ({steps} steps)",
        f"no ratio and no clip: {steps} steps climb one weighted log-likelihood, which has no bound where an "
        "advantage is negative",
        float(steps),
        "steps on one batch",
    )


def old_values(setting: Setting) -> Finding | None:
    """What token ratios estimate."""
    steps = setting.at.steps
    if level(setting.method) != "token" or steps < 2 or _clip(setting) is None:
        return None
    return Finding(
        "old_values",
        Level.NOTE,
        "C1",
        f"{named(setting, 'epochs')} ({steps} steps)",
        f"token ratios: {steps - 1} of {steps} steps ascend the local surrogate, with the visits and values "
        "of the policy that sampled, not the gradient at either policy",
        (steps - 1) / steps,
        "share of the steps off the policy that sampled",
    )


def decay(setting: Setting) -> Finding | None:
    """Weight decay acts where nothing is learnt."""
    adam = find(setting.at.optimizer, AdamW)
    if adam is None or not scalar(adam.weight_decay):
        return None
    rate = scalar(adam.learning_rate)
    if rate is None:
        return None
    size = rate * float(adam.weight_decay) * setting.at.steps
    return Finding(
        "decay",
        Level.NOTE,
        "B4.4",
        f"weight decay {float(adam.weight_decay):g}",
        f"on a batch where every group ties each parameter still shrinks by {size:.2g} of itself",
        size,
        "share of each parameter that a batch takes",
    )


HAZARDS = (
    no_ratio,
    coasting_grows,
    token_clip_for_answers,
    coasting,
    answer_ratio,
    idle_clip,
    old_values,
    decay,
)
