"""Groups, spreads, extra rewards and denominators."""

from __future__ import annotations

import numpy as np

from grpo_jax.check.hazards.finding import HALF, HARD, Finding, Level, named, percent
from grpo_jax.check.setting import Setting
from grpo_jax.optimizers import Adam, AdamW, Lion, RMSProp
from grpo_jax.part import subparts
from grpo_jax.parts.gains import Clip, DualClip, TwoSided
from grpo_jax.parts.others import Others
from grpo_jax.parts.reductions import Informative, MicroBatches
from grpo_jax.parts.returns import MixedOnly, PerInformative, PerNonzero, Standardized, Whitened
from grpo_jax.parts.shaping import LengthPenalty, NormalizedSum, Overlong, Rescaled, WeightedSum
from grpo_jax.presets.consequences import fold, fold_of_others
from grpo_jax.presets.traits import (
    centre,
    convention,
    corrects_sampler,
    denominator,
    divisor,
    find,
    kl,
    level,
    nested,
    scalar,
)
from grpo_jax.theory import refill_price, tied_share

TWICE = 2.0
"""How much longer right answers are than wrong ones, where a sentence needs lengths that differ."""


def _group(setting: Setting) -> str:
    return named(setting, "group", setting.at.group_size)


def group_of_one(setting: Setting) -> Finding | None:
    """Nothing to compare an answer with."""
    if setting.at.group_size != 1 or centre(setting.method) not in ("group", "others"):
        return None
    return Finding(
        "group_of_one",
        Level.HAZARD,
        "E4",
        _group(setting),
        "a group of one ties with itself: every advantage is 0 (in verl the reward itself), and nothing is "
        "compared",
        1.0,
        "share of the groups that tie",
    )


def pairs(setting: Setting) -> Finding | None:
    """Groups of two see an order only."""
    if setting.at.group_size != 2 or divisor(setting.method) != "group":
        return None
    return Finding(
        "pairs",
        Level.KNOW,
        "A1",
        _group(setting),
        "a group of two, divided by its σ, compares pairs: which answer is better counts, not by how much",
        0.0,
        "how much the size of a difference of rewards counts",
    )


def difficulty(setting: Setting) -> Finding | None:
    """The spread reweighs prompts."""
    group = setting.at.group_size
    over = divisor(setting.method)
    if over not in ("group", "others") or group < 2:
        return None
    most, whose = (
        (fold(group), "the group's σ") if over == "group" else (fold_of_others(group), "the others' σ")
    )
    return Finding(
        "difficulty",
        Level.NOTE if most < 2 else Level.KNOW,
        "E2",
        f"{named(setting, 'spread')}, {_group(setting)}",
        f"dividing by {whose} weighs prompts by their success rate, at most {most:.3g}-fold at "
        f"G = {group} (rewards 1 and 0)",
        most,
        "greatest weight of a prompt over the least",
    )


def hard_first(setting: Setting) -> Finding | None:
    """The group's mean as divisor."""
    group = setting.at.group_size
    if divisor(setting.method) != "level" or group < 2:
        return None
    return Finding(
        "hard_first",
        Level.KNOW,
        "E3",
        f"{named(setting, 'spread')}, {_group(setting)}",
        f"dividing by the group's mean weighs a prompt of success rate p by (1 - (1 - p)^{group - 1})/p: "
        f"up to {group - 1}-fold for hard ones",
        float(group - 1),
        "greatest weight of a prompt over the least",
    )


def own_mean(setting: Setting) -> Finding | None:
    """An answer's own reward in its baseline."""
    group = setting.at.group_size
    if centre(setting.method) != "group" or divisor(setting.method) != "nothing" or group < 2:
        return None
    share = 1 - 1 / group
    return Finding(
        "own_mean",
        Level.NOTE,
        "A9",
        _group(setting),
        f"less the group's own mean the update is {share:.4g} of ∇J, and a KL's weight counts "
        f"{1 / share:.4g} times",
        share,
        "share of the gradient",
    )


def tied_groups(setting: Setting) -> Finding | None:
    """Groups that teach nothing."""
    group = setting.at.group_size
    if group < 2 or setting.at.refill is not None or centre(setting.method) not in ("group", "others"):
        return None
    if find(setting.method.advantage, Whitened, Standardized) or len(nested(setting.method)) > 1:
        return None  # the batch's mean is taken off once more
    if find(setting.method.reduction, Informative):
        return None  # they are in no denominator: ``left_out`` says so
    hard, middling = (float(tied_share(p, group_size=group)) for p in (HARD, HALF))
    return Finding(
        "tied_groups",
        Level.NOTE,
        "E4",
        _group(setting),
        f"{percent(hard)} of the groups of a prompt with success rate {HARD:g} tie and have no advantage "
        f"({percent(middling)} at {HALF:g}); kept in the denominator, they bias nothing",
        hard,
        "share of the groups that tie at a success rate of .05",
    )


def refilled(setting: Setting) -> Finding | None:
    """Dynamic sampling."""
    refill, group = setting.at.refill, setting.at.group_size
    if refill is None or group < 2:
        return None
    price = float(refill_price(HARD, group_size=group, tries=refill.tries))
    return Finding(
        "refilled",
        Level.KNOW,
        "E4.1",
        f"dynamic sampling, {_group(setting)}",
        f"where all prompts have a success rate of {HARD:g}, {price:.3g} groups are drawn for one that is "
        "kept, and the update is as many times as large: a larger learning rate",
        price,
        "groups drawn for one kept at a success rate of .05",
    )


def left_out(setting: Setting) -> Finding | None:
    """Tied groups outside the denominator."""
    group = setting.at.group_size
    if group < 2 or setting.at.refill is not None:
        return None
    if find(setting.method.advantage, PerNonzero):
        factor, what = 1 / HARD, "the answers whose reward is not 0"
    elif find(setting.method.advantage, PerInformative) or find(setting.method.reduction, Informative):
        factor, what = float(refill_price(HARD, group_size=group)), "the groups that do not tie"
    else:
        return None
    return Finding(
        "left_out",
        Level.KNOW,
        "E4",
        _group(setting),
        f"the denominator counts {what} alone: the learning rate is multiplied by one over their share, "
        f"{factor:.3g}-fold where success rates are {HARD:g}, and changes with it",
        factor,
        "factor on the learning rate at a success rate of .05",
    )


def phantoms(setting: Setting) -> Finding | None:
    """A small extra reward beside the spread."""
    group = setting.at.group_size
    gated = setting.at.refill is not None or find(setting.method, MixedOnly, Informative)
    if divisor(setting.method) not in ("group", "others") or group < 2 or gated:
        return None
    extra = _extra(setting)
    if extra is None:
        return None
    left = "what the other rewards differ by" if "rewards" in extra else "this term"
    share = float(tied_share(HARD, group_size=group))
    return Finding(
        "phantoms",
        Level.HAZARD,
        "E5",
        extra,
        f"in groups whose answers are all wrong or all right σ measures {left} alone, so that it "
        f"counts at full size, however small it is, where it varies: {percent(share)} of the groups at a "
        f"success rate of {HARD:g}",
        share,
        "share of the groups in which the extra term's size does not count",
    )


def _extra(setting: Setting) -> str | None:
    """The extra term of a reward, in words."""
    for part in subparts(setting.method.shaping):
        if isinstance(part, Overlong) and scalar(part.factor):
            most = (
                f"up to {scalar(part.factor):g}" if part.capped else f"{scalar(part.factor):g} at the limit"
            )
            return f"overlong penalty of {most}"
        if isinstance(part, LengthPenalty) and scalar(part.weight):
            return f"length penalty of {scalar(part.weight):g}"
        if isinstance(part, WeightedSum) and len(part.weights) > 1:
            return f"rewards weighted {', '.join(f'{float(w):g}' for w in part.weights)}"
    return None


def apart(setting: Setting) -> Finding | None:
    """Rewards normalised one by one."""
    group = setting.at.group_size
    if find(setting.method.shaping, NormalizedSum, Others) is None or group < 2:
        return None
    most = fold_of_others(group) if find(setting.method.shaping, Others) else fold(group)
    return Finding(
        "apart",
        Level.KNOW,
        "E8.3",
        "rewards normalised apart",
        "a reward's size does not count, only its weight: one of a tenth the size pushes as hard; each "
        f"weighs prompts by its own success rate, at most {most:.3g}-fold",
        most,
        "greatest weight of a prompt over the least",
    )


def scale_lost(setting: Setting) -> Finding | None:
    """A reward's scale that something divides out again."""
    part = find(setting.method.shaping, Rescaled)
    scale = None if part is None else scalar(part.scale)
    if scale is None or scale in (0.0, 1.0):
        return None
    penalty = kl(setting.method)
    adaptive = find(setting.at.optimizer, Adam, AdamW, Lion, RMSProp)
    if divisor(setting.method) == "group":
        by = "the group's σ divides it out"
    elif adaptive and penalty is not None and not penalty[2]:
        by = (
            f"{type(adaptive).__name__} divides it out, as there is no penalty (but for a norm clip at times)"
        )
    else:
        return None
    return Finding(
        "scale_lost",
        Level.KNOW,
        "B3",
        f"reward scale {scale:g}",
        f"it changes nothing: {by}",
        0.0,
        "effect of the reward's scale",
    )


def by_sequence(setting: Setting) -> Finding | None:
    """1/|o|."""
    tokens = setting.at.tokens
    if denominator(setting.method) != "PerSequence" or tokens is None or tokens < 2:
        return None
    if level(setting.method) not in ("token", "mean"):
        return None
    return Finding(
        "by_sequence",
        Level.HAZARD,
        "B2, E7",
        named(setting, "mean"),
        f"1/|o|: a token of an answer of {tokens} tokens weighs {1 / tokens:.2g} of that of an answer of "
        "one: right answers get shorter, wrong ones longer, and long prompts are learnt last",
        1 / tokens,
        "weight of a token of the longest answer over the shortest",
    )


def by_batch(setting: Setting) -> Finding | None:
    """One denominator for all tokens."""
    tokens = setting.at.tokens
    if denominator(setting.method) != "PerToken" or tokens is None or tokens < 2:
        return None
    if find(setting.method.reduction, MicroBatches):
        return None
    return Finding(
        "by_batch",
        Level.NOTE,
        "E7",
        named(setting, "mean"),
        "one mean over the batch's tokens: no drift of lengths by weights, and a learning rate that falls "
        f"as answers grow, {tokens}-fold from answers of one token to the limit",
        float(tokens),
        "greatest change of the learning rate with the length of answers",
    )


def micro_batches(setting: Setting) -> Finding | None:
    """A mean over each part of the batch."""
    part = find(setting.method.reduction, MicroBatches)
    if part is None or part.count < 2:
        return None
    return Finding(
        "micro_batches",
        Level.KNOW,
        "E7",
        f"{named(setting, 'mean')}, {part.count} micro-batches",
        f"each of {part.count} parts is divided by its own tokens: which prompts share a part decides "
        "how much they weigh",
        float(part.count),
        "micro-batches with denominators of their own",
    )


def loss_zero(setting: Setting) -> Finding | None:
    """The loss that users see first."""
    whole = isinstance(setting.method.gain, (Clip, DualClip, TwoSided))
    centred = centre(setting.method) in ("group", "others") and not setting.at.group_size < 2
    if denominator(setting.method) != "PerSequence" or not (whole and centred) or _off_policy(setting):
        return None
    penalty = kl(setting.method)
    beta = penalty[2] if penalty is not None else 0.0
    grows = f"; later it is {beta:g} times the penalty" if beta else " at the first step on any batch"
    return Finding(
        "loss_zero",
        Level.NOTE,
        "B5",
        "the loss",
        f"a loss of 0 at step 1 is expected: advantages sum to 0 in every group and ratios are 1{grows}; it "
        "is no meter of progress",
        0.0,
        "loss at the first step",
    )


def loss_meter(setting: Setting) -> Finding | None:
    """What the loss measures where lengths count."""
    name, how = denominator(setting.method), convention(setting.method)
    if name not in ("PerToken", "Constant", "TokenSum") or centre(setting.method) != "group":
        return None
    group = setting.at.group_size
    if group < 2 or not isinstance(setting.method.gain, (Clip, DualClip, TwoSided)) or _off_policy(setting):
        return None
    half = group // 2
    rewards = np.repeat([1.0, 0.0], [half, group - half])
    lengths = np.where(rewards > 0, TWICE, 1.0)
    advantage = rewards - rewards.mean()
    if how is not None:
        advantage /= rewards.std(ddof=int(how[0])) + how[1]
    value = -float(advantage @ lengths / lengths.sum())
    shown = f"{value:.3g}" if name == "PerToken" else "below 0"
    return Finding(
        "loss_meter",
        Level.NOTE,
        "B5",
        "the loss",
        f"at the first step on a batch it is minus the covariance of advantage and length: {shown} where "
        f"half the answers are right and {TWICE:g} times as long as the others, 0 where lengths are equal; "
        "it is no meter of progress",
        value,
        "loss at the first step, right answers twice as long",
    )


def _off_policy(setting: Setting) -> bool:
    """Whether ratios are not 1 at the first step."""
    return corrects_sampler(setting.method) or setting.at.lag is not None


HAZARDS = (
    group_of_one,
    phantoms,
    by_sequence,
    micro_batches,
    pairs,
    hard_first,
    apart,
    scale_lost,
    refilled,
    left_out,
    difficulty,
    tied_groups,
    own_mean,
    by_batch,
    loss_zero,
    loss_meter,
)
