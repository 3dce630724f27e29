"""Methods: each a single expression, to be held against Table 1 of [B] (arXiv:2601.05002) and [C] (arXiv:2508.02833).

A method is a value. Derive yours with ``dataclasses.replace`` or build a ``Method`` from parts, your own
included: nothing needs to be registered to be trained or swept. Every number shown is a leaf that a sweep can
vary.
"""

from __future__ import annotations

from dataclasses import replace

from grpo_jax.part import nearest
from grpo_jax.parts.advantages import GroupMean, LeaveOneOut, NoBaseline, Normalized
from grpo_jax.parts.gains import Clip, Linear, LogLikelihood, UpperClip
from grpo_jax.parts.penalties import K3, Penalty
from grpo_jax.parts.ratios import Frozen, Score, SequenceMean, Token, Trajectory
from grpo_jax.parts.reductions import Constant, PerSequence, PerToken
from grpo_jax.parts.soft_gains import GeometricMean
from grpo_jax.surrogate import Method

SHIFT = Normalized(center=GroupMean(), scale=None)

grpo = Method(
    advantage=Normalized(),
    ratio=Token(),
    gain=Clip(low=0.2, high=0.2),
    penalty=Penalty(divergence=K3(), coef=0.04),
    reduction=PerSequence(),
)
"""GRPO (R1), arXiv:2402.03300 and [B] Table 1: α = 1/(G |o_i| σ_r), token ratios, k3 in the loss."""

dr_grpo = replace(grpo, advantage=SHIFT, reduction=Constant(length=1.0), penalty=Penalty(divergence=K3(), coef=0.0))
"""Dr. GRPO, arXiv:2503.20783: α = 1/G, neither σ_r nor 1/|o_i|."""

dapo = replace(grpo, gain=Clip(low=0.2, high=0.28), penalty=None, reduction=PerToken())
"""DAPO, arXiv:2503.14476: α = 1/(σ_r Σ|o_i|), asymmetric clip, no penalty. Dynamic sampling is a part of its own."""

gspo = replace(grpo, ratio=SequenceMean(), gain=Clip(low=3e-4, high=4e-4), penalty=None)
"""GSPO, arXiv:2507.18071: the length-normalised sequence ratio."""

rloo = Method(
    advantage=Normalized(center=LeaveOneOut(), scale=None), ratio=Trajectory(), gain=Clip(low=0.2, high=0.2)
)
"""RLOO, arXiv:2402.14740: leave-one-out baseline; the trajectory ratio and clip are TRL's."""

reinforce = Method(
    advantage=Normalized(center=NoBaseline(), scale=None),
    ratio=Score(),
    gain=LogLikelihood(),
    reduction=Constant(length=1.0),
)
"""REINFORCE without baseline: r_i ∇log π_θ(y_i)."""

reinforce_baseline = replace(reinforce, advantage=SHIFT)
"""REINFORCE with the group's mean reward as its baseline."""

gmpo = replace(grpo, gain=GeometricMean(low=0.4, high=0.4), penalty=None)
"""GMPO, arXiv:2507.20673: geometric mean of sign-aware clipped token ratios."""

tic_grpo = Method(
    advantage=Normalized(), ratio=Trajectory(), gain=UpperClip(high=0.2), reduction=Constant(length=1.0)
)
"""TIC-GRPO, [C]: the trajectory ratio with an upper-only clip. Length correction is ``shaping.PerToken``."""

grpo_frozen = Method(advantage=Normalized(), ratio=Frozen(), gain=Linear(), reduction=Constant(length=1.0))
"""GRPO without importance sampling, first reading of [C]: the gradient stays at θ_old."""

grpo_score = replace(grpo_frozen, ratio=Score())
"""GRPO without importance sampling, second reading of [C]: the score at the current θ, no ratio."""

METHODS: dict[str, Method] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "rloo": rloo,
    "reinforce": reinforce,
    "reinforce_baseline": reinforce_baseline,
    "gmpo": gmpo,
    "tic_grpo": tic_grpo,
    "grpo_frozen": grpo_frozen,
    "grpo_score": grpo_score,
}
"""Name -> method, for the command line and for files."""


def get(name: str) -> Method:
    """The method of that name; ValueError with the nearest right name otherwise."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]
