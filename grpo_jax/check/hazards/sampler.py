"""Who sampled, and what is masked: decoding, corrections, stale weights, answers that were cut off."""

from __future__ import annotations

import math
from typing import Any

from grpo_jax.check.hazards.finding import (
    CUT,
    DISTANCE,
    HALF,
    KEPT,
    VOCABULARY,
    Finding,
    Level,
    named,
    percent,
)
from grpo_jax.check.setting import Setting
from grpo_jax.part import subparts
from grpo_jax.parts.centring import NoEosIsZero
from grpo_jax.parts.ratios import FromSampler, SequenceMean, Trajectory
from grpo_jax.parts.sampler import MismatchRatio, SamplerMask, SamplerMismatch, TrustRegion
from grpo_jax.parts.truncation import MaskTruncated, OfFinished
from grpo_jax.presets.traits import corrects_sampler, find, scalar
from grpo_jax.theory import at_temperature, bounded_weight, kept_at_least, stop_pressure


def reads_sampler(setting: Setting) -> bool:
    """Whether ratios or corrections see who sampled."""
    return corrects_sampler(setting.method) or find(setting.method.ratio, FromSampler) is not None


def scored_behind(setting: Setting) -> bool:
    """Whether the trainer scores through the filters, too, so that sampler and trainer are one policy."""
    return setting.sampling.trainer is not None and setting.sampling.trainer.filters


def top_p(setting: Setting) -> Finding | None:
    """A filter by mass."""
    level = scalar(setting.decoding.top_p) if setting.decoding.top_p is not None else None
    if level is None or level >= 1:
        return None
    tokens = setting.at.tokens
    whole = "" if tokens is None else f", {kept_at_least(level, tokens=tokens):.2g} for an answer of {tokens}"
    if reads_sampler(setting) and not scored_behind(setting):
        says = f"with importance sampling the mean ratio is the kept mass: down to {level:g} a token{whole}"
    else:
        says = f"answers are those of a policy that keeps down to {level:g} of a token's mass{whole}"
    return Finding(
        "top_p",
        Level.HAZARD,
        "D1",
        f"top_p {level:g}",
        f"{says}; what the filter drops is never drawn, and training does not unlearn it",
        level,
        "least probability mass kept at a token",
    )


def other_filters(setting: Setting) -> Finding | None:
    """Filters by rank or by the likeliest token."""
    k, share = setting.decoding.top_k, setting.decoding.min_p
    if k is not None and scalar(k):
        kept = min(float(k) / VOCABULARY, 1.0)
        what, says = f"top_k {float(k):g}", f"of {VOCABULARY:,} equal tokens {kept:.2g} is kept"
    elif share is not None and scalar(share):
        kept, least = HALF, float(share) * HALF
        what = f"min_p {float(share):g}"
        says = f"beside a token of {HALF:g} none below {least:g} is drawn, and {HALF:g} is kept where all are"
    else:
        return None
    means = "" if scored_behind(setting) else "ratios have the kept mass as their mean, not 1, and "
    return Finding(
        "other_filters",
        Level.HAZARD,
        "D1",
        what,
        f"{says}: {means}what is dropped is never unlearnt",
        kept,
        "probability mass kept in that example",
    )


def temperature(setting: Setting) -> Finding | None:
    """Training at another temperature than 1."""
    tau, trainer = scalar(setting.decoding.temperature), setting.sampling.trainer
    scored = 1.0 if trainer is None else scalar(trainer.temperature)
    if tau is None or scored is None or tau != scored or tau == 1:
        return None
    deployed = float(at_temperature(KEPT, tau))
    return Finding(
        "temperature",
        Level.NOTE,
        "D2",
        f"temperature {tau:g}",
        f"the policy that is trained is the one at {tau:g}: an answer with {KEPT:g} of two there has "
        f"{deployed:.3g} if it is deployed at 1",
        deployed,
        "probability at temperature 1 of an answer that has .9",
    )


def temperatures_apart(setting: Setting) -> Finding | None:
    """The engine draws at one temperature, the trainer scores at another."""
    tau, trainer = scalar(setting.decoding.temperature), setting.sampling.trainer
    scored = 1.0 if trainer is None else scalar(trainer.temperature)
    if tau is None or scored is None or tau == scored or reads_sampler(setting):
        return None
    return Finding(
        "temperatures_apart",
        Level.HAZARD,
        "D2",
        f"temperature {tau:g} in the engine, {scored:g} in the trainer",
        f"answers are drawn at {tau:g} and scored at {scored:g}: for one token the update ascends the "
        f"engine's policy, {tau / scored:.3g} times as fast; for more it is biased",
        tau / scored,
        "temperature of the engine over the trainer's",
    )


def raw_logprobs(setting: Setting) -> Finding | None:
    """The engine reports what it did not draw from."""
    (trainer, behavior), tau = setting.sampling, scalar(setting.decoding.temperature)
    if behavior is None or behavior.records != "raw" or tau is None or tau == 1:
        return None
    if not reads_sampler(setting) or trainer is None or scalar(trainer.temperature) != tau:
        return None
    ratio = KEPT / float(at_temperature(KEPT, tau))
    return Finding(
        "raw_logprobs",
        Level.HAZARD,
        "D2",
        f"raw log-probabilities at temperature {tau:g}",
        f"the engine reports log-probabilities before its temperature: a token drawn with {KEPT:g} gets the "
        f"ratio {ratio:.3g}, not 1, so that the correction is one for nothing that happened",
        ratio,
        "ratio of a token of .9 where trainer and engine agree",
    )


def cut_off_votes(setting: Setting) -> Finding | None:
    """Answers that are masked and count in the mean."""
    masked = find(setting.method.reduction, MaskTruncated) or find(setting.method.advantage, NoEosIsZero)
    if masked is None or find(setting.method.advantage, OfFinished):
        return None
    pressure = float(stop_pressure(CUT, masked=True, votes=True))
    return Finding(
        "cut_off_votes",
        Level.HAZARD,
        "E6",
        named(setting, "mask"),
        f"answers that were cut off leave the loss and vote in their group's mean: where {percent(CUT)} are "
        f"cut off and earn 0, answers are pushed to end with {percent(pressure)} of the force that they "
        "have without a mask; not with none, as meant",
        pressure,
        "pressure to stop over that without a mask, 10 % cut off",
    )


def masked_products(setting: Setting) -> Finding | None:
    """A bound on the product of an answer's ratios."""
    found = _bounded(setting, Trajectory)
    tokens = setting.at.tokens
    if found is None or tokens is None or math.isinf(found):
        return None
    kept = bounded_weight(DISTANCE, tokens=tokens, cap=found)
    return Finding(
        "masked_products",
        Level.KNOW,
        "D3.4, C4",
        f"sequence weights up to {found:g}",
        f"the product of {tokens} ratios: where a token's χ² is {DISTANCE:g} (and log-ratios are normal) "
        f"{percent(float(kept.answers))} of the answers of that length stay below it, with "
        f"{percent(float(kept.weight))} of the weight; short answers keep theirs",
        float(kept.weight),
        "share of the weight that answers at the limit keep",
    )


def masked_means(setting: Setting) -> Finding | None:
    """A band for the geometric mean of an answer's ratios."""
    found, tokens = _bounded(setting, SequenceMean), setting.at.tokens
    if found is None or tokens is None or found <= 1 or math.isinf(found):
        return None
    wide = math.log(found) / math.sqrt(math.log1p(DISTANCE) / tokens)
    return Finding(
        "masked_means",
        Level.NOTE,
        "D3.5",
        f"geometric means up to {found:g}",
        f"noise averages out over an answer: with a token's χ² of {DISTANCE:g} the bound is {wide:.3g} "
        f"standard deviations away at {tokens} tokens, {wide / math.sqrt(tokens):.3g} at one: long ones pass",
        wide,
        "standard deviations from 1 to the bound, for an answer at the limit",
    )


def _bounded(setting: Setting, unit: type) -> float | None:
    """The upper bound on a sampler's weight in this unit; None where no part has one."""
    for part in subparts((*setting.method.corrections, setting.method.gain)):
        if isinstance(part, SamplerMask | TrustRegion) and isinstance(part.statistic, MismatchRatio):
            ratio: Any = part.statistic.ratio
        elif isinstance(part, SamplerMismatch):
            ratio = part.ratio
        else:
            continue
        if isinstance(ratio, unit):
            return scalar(part.high)
    return None


def stale(setting: Setting) -> Finding | None:
    """Answers of older weights."""
    lag, at = setting.at.lag, setting.at
    if lag is None:
        return None
    old = lag * at.steps
    seen = reads_sampler(setting)
    how = (
        "ratios or weights see it"
        if seen
        else "and the old policy is computed anew, so that ratios start at 1 and nothing sees it"
    )
    return Finding(
        "stale",
        Level.KNOW if seen else Level.HAZARD,
        "D4",
        f"weights up to {lag} batch{'es' if lag > 1 else ''} old",
        f"answers may be {old} optimizer step{'s' if old > 1 else ''} old; {how}",
        float(old),
        "optimizer steps between an answer and its update",
    )


HAZARDS = (
    top_p,
    other_filters,
    temperatures_apart,
    raw_logprobs,
    cut_off_votes,
    stale,
    masked_products,
    temperature,
    masked_means,
)
