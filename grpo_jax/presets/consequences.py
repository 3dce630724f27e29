"""What a switch means: a sentence with its number at given settings, and the claim that shows it.

The claims are those of `experiments/README.md` in the repository; their numbers are computed here from closed
forms, for groups of G and for answers of which the longest has `longest` times the tokens of the shortest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.parts.gains import Clip, DualClip, TwoSided, UpperClip
from grpo_jax.parts.others import Others
from grpo_jax.parts.penalties import K1, K2, K3
from grpo_jax.parts.returns import MixedOnly
from grpo_jax.parts.shaping import NormalizedSum
from grpo_jax.presets.traits import (
    centre,
    convention,
    corrects_sampler,
    denominator,
    divisor,
    find,
    kl,
    level,
    scalar,
)
from grpo_jax.surrogate import Method
from grpo_jax.theory import Convention, convention_gap, effective_beta, effective_penalty_binary
from grpo_jax.theory.counts import bernstein

SMALL, HALF, KEPT, DISTANCE = 0.05, 0.5, 0.9, 0.01
"""A low success rate, a middling one, the mass that top-p keeps, χ² of one token."""


class Settings(NamedTuple):
    """Where the numbers are taken."""

    group_size: int = 8
    longest: float = 10.0
    """Tokens of the longest answer, the shortest having one."""


USUAL = Settings()


class Consequence(NamedTuple):
    """A switch in which two methods differ: what it means for each, and the claim."""

    switch: str
    sides: tuple[str, str]
    claim: str


class Switch(NamedTuple):
    """`reads` gives what a method does there, None where nothing can be said; `says` what that means."""

    name: str
    claim: str
    reads: Callable[[Method], Hashable]
    says: Callable[[Any, Settings], str]


def _weighs(divisor: str, at: Settings) -> str:
    rivals = at.group_size - 1
    return {
        "group": f"divides by the group's σ: weighs prompts by w_{at.group_size}(p), at most "
        f"{fold(at.group_size):.3g}-fold",
        "others": f"divides by the σ of the {rivals} others, where they differ: weighs prompts by E[1/σ], at "
        f"most {fold_of_others(at.group_size):.3g}-fold",
        "level": f"divides by the group's mean: weighs prompts by (1 - (1 - p)^{rivals})/p, at most "
        f"{rivals}-fold (E3)",
        "batch": "one divisor for the whole batch: within it all prompts weigh alike",
        "nothing": "no division: all prompts weigh alike",
    }[divisor]


def fold(group_size: int) -> float:
    """Greatest over least weight w_G(p) = E√(K(G − K))/(G p(1 − p)) of a success rate (E2)."""
    found = np.asarray(convention_gap(np.linspace(0, 1, 201), group_size=group_size, convention=_plain()))
    return float(found.max() / found.min())


def fold_of_others(group_size: int) -> float:
    """Greatest over least weight E[1/σ_J] of a success rate: J of G − 1 others are right, σ has ddof 1.

    σ is taken for 1 where the others tie. A right answer's advantage less a wrong one's, both beside the same
    others, is 1/σ (E2).
    """
    rivals = group_size - 1
    j = np.arange(rivals + 1)
    square = j * (rivals - j) / (rivals * max(rivals - 1, 1))
    inverse = 1 / np.sqrt(np.where(square > 0, square, 1))
    p = np.linspace(0, 1, 201)
    weights = np.asarray(bernstein(inverse, p, 1 - p))
    return float(weights.max() / weights.min())


def _plain(ddof: float = 0.0, added: float = 0.0) -> Convention:
    return Convention(ddof=ddof, added=added)


def _acts(convention: tuple[float, float], at: Settings) -> str:
    ddof, added = convention
    beta = effective_beta(1.0, HALF, group_size=at.group_size, convention=_plain(ddof, added))
    return f"ddof and constant let β act as {float(beta):.4g} times itself (rewards 1 and 0, p = .5)"


def _centred(centre: str, at: Settings) -> str:
    share = 1 - 1 / at.group_size
    return {
        "group": f"less the group's own mean: {share:.4g} of ∇J where nothing is divided",
        "others": f"less the mean of the others: {1 / share:.4g} times what the group's own mean gives",
        "batch": "less the batch's mean: a prompt's difficulty stays in its advantages",
    }[centre]


def _phantom(method: Method) -> Hashable:
    """Whether a small extra term in the reward moves groups with one outcome at full size."""
    if find(method.advantage, MixedOnly):
        return "gated"
    return {"group": "full", "others": "full", "nothing": "linear"}.get(divisor(method) or "")


def _phantoms(kind: str, at: Settings) -> str:
    dead = SMALL**at.group_size + (1 - SMALL) ** at.group_size
    return {
        "full": f"a small length term in the reward counts at full size in groups with one outcome, "
        f"whatever its weight: {dead:.2g} of the groups at p = {SMALL:g}",
        "linear": "a length term in the reward counts in proportion to its weight",
        "gated": "groups with one outcome are silent, whatever a length term makes of them",
    }[kind]


def _apart(method: Method) -> str:
    if find(method.shaping, Others):
        return "apart, others"
    return "apart" if find(method.shaping, NormalizedSum) else "summed"


def _rewards(way: str, at: Settings) -> str:
    return {
        "apart": f"each reward is normalised by itself: its size does not count, its success rate weighs by "
        f"w_{at.group_size}, at most {fold(at.group_size):.3g}-fold",
        "apart, others": f"each reward is normalised by itself, by the σ of the {at.group_size - 1} others: "
        f"its size does not count, its success rate weighs at most {fold_of_others(at.group_size):.3g}-fold",
        "summed": "rewards are summed as they are: pairs with one sum get one advantage",
    }[way]


def _shares(name: str, at: Settings) -> str:
    return {
        "PerSequence": f"1/|o|: a token of an answer {at.longest:g} times as long weighs "
        f"{1 / at.longest:.3g} as much; right answers get shorter and wrong ones longer",
        "PerToken": f"one denominator for the batch's tokens: an answer {at.longest:g} times as long weighs "
        f"{at.longest:g} times as much, and the rate moves with the batch's length",
        "Constant": "a constant: tokens weigh alike in every batch, lengths do not drift by weights",
        "TokenSum": "a sum: tokens weigh alike, and the rate grows with the batch",
    }[name]


AIMS: Mapping[tuple[str, type], str] = {
    ("reward", K1): "k1 in the reward descends KL(π‖π_ref)",
    ("returns", K1): "k1 in the returns descends KL(π‖π_ref)",
    ("advantage", K1): "k1 in the advantage of its own token descends KL(π‖π_ref), prefix by prefix",
    ("loss", K1): "k1 in the loss has no gradient on-policy",
    ("loss", K2): "k2 in the loss descends KL(π‖π_ref), prefix by prefix",
    ("loss", K3): "k3 in the loss descends KL(π_ref‖π), prefix by prefix",
    ("ratio", K1): "k1 times the ratio descends KL(π‖π_ref), prefix by prefix",
    ("ratio", K3): "k3 times the ratio descends KL(π‖π_ref), prefix by prefix",
}
"""On-policy (A3, E1)."""


def _aim(kl: tuple[str, type | None, float, tuple[float, float] | None], at: Settings) -> str:
    place, kind, beta, convention = kl
    if kind is None:
        return "no KL penalty: nothing holds the policy near π_ref"
    told = f"{AIMS.get((place, kind), f'{kind.__name__} in the {place}')}, β = {beta:g}"
    if convention is not None:
        paper = effective_beta(beta, HALF, group_size=at.group_size, convention=_plain(*convention))
        acts = float(effective_penalty_binary(paper, HALF, group_size=at.group_size))
        told += f"; beside advantages over σ it acts as {acts:.3g} on rewards at p = .5 (A10)"
    return told


def _clip(method: Method) -> Hashable:
    gain = method.gain
    if not isinstance(gain, (Clip, DualClip, TwoSided, UpperClip)):
        return None
    return (None if isinstance(gain, UpperClip) else scalar(gain.low), scalar(gain.high))


def _held(bounds: tuple[float | None, float], at: Settings) -> str:
    low, high = bounds
    below = "" if low is None else f"[{1 - low:.4g}, "
    return (
        f"ratios are held at {below}{1 + high:.4g}{']' if below else ''}, from the second step on a batch on"
    )


def _ratio(level: str, at: Settings) -> str:
    spread = (1 + DISTANCE) ** at.longest
    return {
        "token": "token ratios: the local surrogate, with the old policy's visits and values",
        "mean": f"the geometric mean of an answer's ratios: {at.longest:g} tokens at 1.1 make 1.1",
        "whole": f"the product of an answer's ratios: {at.longest:g} tokens at 1.1 make "
        f"{1.1**at.longest:.3g}; unclipped unbiased, E[w²] = {spread:.3g} where a token's χ² is {DISTANCE:g}",
    }[level]


def _corrected(corrects: bool, at: Settings) -> str:
    if corrects:
        return "weighs or masks by who sampled"
    mean = KEPT**at.longest
    return (
        f"takes the sampler for π_old: under top-p that keeps {KEPT:g} of each token, the mean over answers "
        f"of {at.longest:g} tokens is off by {mean:.2g}"
    )


SWITCHES = (
    Switch("spread", "E2", divisor, _weighs),
    Switch("convention", "A11", convention, _acts),
    Switch("baseline", "A9", centre, _centred),
    Switch("small extra terms", "E5", _phantom, _phantoms),
    Switch("several rewards", "E8", _apart, _rewards),
    Switch("denominator", "B2, E7", denominator, _shares),
    Switch("KL", "A3, E1", kl, _aim),
    Switch("clip", "B6", _clip, _held),
    Switch("ratio", "C1, C2", level, _ratio),
    Switch("who sampled", "D1, D3", corrects_sampler, _corrected),
)


def consequences(a: Method, b: Method, at: Settings = USUAL) -> list[Consequence]:
    """Every switch that claims speak of and in which two methods differ.

    >>> from grpo_jax import methods
    >>> [found.claim for found in consequences(methods.dapo, methods.bnpo)]
    ['A3, E1', 'B6']
    """
    if at.group_size < 2 or at.longest < 1:
        raise ValueError(f"groups have two answers or more, lengths differ 1-fold or more; got {at}")
    found = []
    for switch in SWITCHES:
        left, right = switch.reads(a), switch.reads(b)
        if left is not None and right is not None and left != right:
            sides = (switch.says(left, at), switch.says(right, at))
            if sides[0] != sides[1]:
                found.append(Consequence(switch.name, sides, switch.claim))
    return found
