"""Methods: each one expression, to be held against Table 1 of [B] (2601.05002) and [C] (2508.02833).

A method is a value. Derive yours with ``dataclasses.replace`` or build a ``Method`` from parts, your own
included: nothing needs to be registered to be trained or swept. Every number shown is a leaf that a sweep can
vary.

In the notes G is the group's size, |o_i| a length, Σ|o| the batch's tokens, σ_r the group's spread (ddof 0),
I the token ratio, s the geometric mean of a sequence's ratios, w their product, sg a stopped gradient.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo_jax.part import nearest
from grpo_jax.parts.advantages import (
    GroupLevel,
    GroupMean,
    LeaveOneOut,
    LengthWeightedMean,
    NoBaseline,
    Normalized,
)
from grpo_jax.parts.corrections import Conflict, EntropyFilter, OffPolicyMask, Prune
from grpo_jax.parts.gains import Clip, DualClip, Linear, LogLikelihood, Truncated, TruncatedScore, UpperClip
from grpo_jax.parts.penalties import K2, K3, EntropyPenalty, Penalty, RatioWeight
from grpo_jax.parts.ratios import Frozen, Score, SequenceMean, SequenceMeanToken, Token, Trajectory
from grpo_jax.parts.reductions import Constant, Informative, PerSequence, PerToken
from grpo_jax.parts.returns import PerInformative, ReturnToGo, Whitened
from grpo_jax.parts.shaping import DivideByLength, KLInReward
from grpo_jax.parts.soft_gains import GeometricMean, Sapo, Vespo
from grpo_jax.surrogate import Method

SHIFT = Normalized(center=GroupMean(), scale=None)
"""A_i = r_i − r̄: no division by the spread."""


class Row(NamedTuple):
    """A method with where it comes from."""

    method: Method
    paper: str
    """arXiv number, or the library whose name it is."""
    note: str
    """α_{i,t}, s_{i,t} and R of equation (1) of [B], and what is peculiar."""


# Table 1 of [B]

grpo = Method(
    advantage=Normalized(),
    ratio=Token(),
    gain=Clip(low=0.2, high=0.2),
    penalty=Penalty(divergence=K3(), coef=0.04),
    reduction=PerSequence(),
)
grpo_v32 = replace(
    grpo,
    advantage=SHIFT,
    corrections=(OffPolicyMask(threshold=0.1),),
    penalty=Penalty(divergence=K3(), weight=RatioWeight(), coef=0.04),
)
gspo = replace(grpo, ratio=SequenceMean(), gain=Clip(low=3e-4, high=4e-4), penalty=None)
gspo_token = replace(gspo, ratio=SequenceMeanToken())
gtpo = replace(
    grpo,
    advantage=SHIFT,
    corrections=(EntropyFilter(), Conflict(amplify=2.0)),
    penalty=EntropyPenalty(factors=(EntropyFilter(), Conflict(amplify=2.0)), coef=0.1),
)
dapo = replace(grpo, gain=Clip(low=0.2, high=0.28), penalty=None, reduction=PerToken())
cppo = replace(grpo, corrections=(Prune(threshold=0.5),))
dr_grpo = replace(
    grpo, advantage=SHIFT, penalty=Penalty(divergence=K3(), coef=0.0), reduction=Constant(length=1.0)
)
gpg = Method(
    advantage=PerInformative(inner=SHIFT, norm=1.0), ratio=Score(), gain=LogLikelihood(), reduction=PerToken()
)
cispo = Method(ratio=Token(), gain=TruncatedScore(low=1.0, high=4.0), reduction=PerToken())
gcpo = Method(ratio=Trajectory(), gain=Clip(low=0.2, high=0.2), reduction=Constant(length=1.0))

# TIC-GRPO [C], one refinement a row

tic_grpo_unclipped = Method(ratio=Trajectory(), gain=Linear(), reduction=PerSequence())
tic_grpo = replace(tic_grpo_unclipped, gain=UpperClip(high=0.2))
tic_grpo_truncated = replace(tic_grpo_unclipped, gain=Truncated(high=0.2))
tic_grpo_score = replace(
    tic_grpo_unclipped, gain=TruncatedScore(low=1.0, high=0.2), reduction=Constant(length=1.0)
)
tic_grpo_length = replace(tic_grpo, shaping=DivideByLength())
grpo_frozen = Method(ratio=Frozen(), gain=Linear(), reduction=Constant(length=1.0))
grpo_score = replace(grpo_frozen, ratio=Score())

# What the field runs beside them

grpo_direct_kl = replace(grpo, penalty=Penalty(divergence=K3(), weight=RatioWeight(), coef=0.04))
grpo_kl_in_reward = replace(grpo, shaping=KLInReward(coef=0.04), penalty=None)
dual_clip = replace(grpo, gain=DualClip(low=0.2, high=0.2, cap=3.0), penalty=None)
dapo_dynamic = replace(dapo, reduction=Informative(inner=PerToken()))
bnpo = replace(grpo, reduction=PerToken())
luspo = replace(gspo, reduction=Constant(length=1.0))
sapo = Method(ratio=Token(), gain=Sapo(tau_pos=1.0, tau_neg=1.05), reduction=PerSequence())
vespo = Method(ratio=Trajectory(clamp=20.0), gain=Vespo(), reduction=PerToken())
gmpo = Method(ratio=Token(), gain=GeometricMean(low=0.4, high=0.4), reduction=PerSequence())
rloo = Method(
    advantage=Normalized(center=LeaveOneOut(), scale=None),
    ratio=Trajectory(),
    gain=Clip(low=0.2, high=0.2),
    reduction=PerSequence(),
)
reinforce = Method(
    advantage=Normalized(center=NoBaseline(), scale=None),
    ratio=Score(),
    gain=LogLikelihood(),
    reduction=Constant(length=1.0),
)
reinforce_baseline = replace(reinforce, advantage=SHIFT)
max_rl_successes = replace(reinforce, advantage=Normalized(center=NoBaseline(), scale=GroupLevel()))
max_rl = replace(reinforce, advantage=Normalized(center=GroupMean(), scale=GroupLevel()))
opo = replace(reinforce, advantage=Normalized(center=LengthWeightedMean(), scale=None))
reinforce_plus_plus = Method(
    advantage=Whitened(inner=ReturnToGo(discount=1.0, kl_coef=0.01)),
    ratio=Token(),
    gain=Clip(low=0.2, high=0.2),
    reduction=PerToken(),
)
reinforce_plus_plus_baseline = replace(
    reinforce_plus_plus, advantage=Whitened(inner=SHIFT), penalty=Penalty(divergence=K2(), coef=0.01)
)

TABLE: dict[str, Row] = {
    "grpo": Row(grpo, "2402.03300", "α = 1/(G |o_i| σ_r), s = I, R = k3. GRPO (R1)"),
    "grpo_v32": Row(
        grpo_v32, "2512.02556", "α = M_{i,t}/(G |o_i|), s = I, R = I·k3; M drops drifted losers. GRPO (V3.2)"
    ),
    "gspo": Row(gspo, "2507.18071", "α = 1/(G |o_i| σ_r), s differentiated whole"),
    "gspo_token": Row(
        gspo_token, "2507.18071", "as gspo, s = sg[s/π_θ(y_t)]·π_θ(y_t), the row that [B] prints"
    ),
    "gtpo": Row(
        gtpo,
        "2508.03772",
        "α = δ_i λ_{i,t}/(G |o_i|), s = I, R = δ_i ⟨H⟩_i λ_{i,t} I/|o_i|. The trajectory-based GTPO, not "
        "that of 2508.04349; conflicts are aligned from the left",
    ),
    "dapo": Row(dapo, "2503.14476", "α = 1/(σ_r Σ|o|), s = I; without dynamic sampling (dapo_dynamic)"),
    "cppo": Row(
        cppo,
        "2503.22342",
        "α = 1{|A_i| > γ}/(G |o_i| σ_r), s = I, R = k3; A normalised, as in CPPO's own paper",
    ),
    "dr_grpo": Row(dr_grpo, "2503.20783", "α = 1/G, s = I, R = k3 with coefficient 0"),
    "gpg": Row(
        gpg, "2504.02546", "α = α̂/Σ|o|, J = A log π_θ without minimum; α̂ = groups / groups with spread"
    ),
    "cispo": Row(
        cispo,
        "2506.13585",
        "α = 1/(σ_r Σ|o|), J = sg[min(I, 5)] A log π_θ; the cap 5 is ScaleRL's (2510.13786)",
    ),
    "gcpo": Row(
        gcpo,
        "2510.07790",
        "α = 1/(G σ_r), s = w, summed over t, so each output counts |o_i| times. Group contrastive; "
        "golden answers are the sampler's business",
    ),
    "tic_grpo_unclipped": Row(tic_grpo_unclipped, "2508.02833", "J_i = w A_i once per output"),
    "tic_grpo": Row(tic_grpo, "2508.02833", "J_i = min(w A_i, min(w, 1.2) A_i): upper-only, first form"),
    "tic_grpo_truncated": Row(
        tic_grpo_truncated, "2508.02833", "J_i = min(w, 1.2) A_i: upper-only, second form"
    ),
    "tic_grpo_score": Row(tic_grpo_score, "2508.02833", "J_i = sg[min(w, 1.2)] A_i log π_θ(y_i): third form"),
    "tic_grpo_length": Row(tic_grpo_length, "2508.02833", "tic_grpo with rewards r_i/|o_i|"),
    "grpo_frozen": Row(
        grpo_frozen, "2508.02833", "no importance sampling, first reading: gradient kept at θ_old"
    ),
    "grpo_score": Row(grpo_score, "2508.02833", "no importance sampling, second reading: A ∇log π_θ at θ"),
    "grpo_direct_kl": Row(grpo_direct_kl, "2502.18548", "grpo with R = I·k3, the direct KL penalty of [A]"),
    "grpo_kl_in_reward": Row(
        grpo_kl_in_reward, "2203.02155", "grpo with r_i − 0.04 Σ_t k1 instead of a penalty"
    ),
    "dual_clip": Row(
        dual_clip, "1912.09729", "grpo with max(min(I A, clip(I) A), 3 A) for A < 0, no penalty"
    ),
    "dapo_dynamic": Row(dapo_dynamic, "2503.14476", "dapo; tied groups do not count in Σ|o|"),
    "bnpo": Row(bnpo, "TRL", "grpo with α = 1/(σ_r Σ|o|); not the Beta normalisation of 2506.02864"),
    "luspo": Row(luspo, "2602.05261", "gspo with α = 1/(G σ_r): every output counts |o_i| times"),
    "sapo": Row(sapo, "2511.20347", "α = 1/(G |o_i| σ_r), J = A (4/τ) sigmoid(τ(I − 1))"),
    "vespo": Row(vespo, "2602.10693", "α = 1/(σ_r Σ|o|), J = sg[φ(w)] A log π_θ"),
    "gmpo": Row(gmpo, "2507.20673", "J_i = A_i × geometric mean of clipped I, once per output"),
    "rloo": Row(
        rloo, "2402.14740", "leave-one-out baseline, J_i = clipped w A_i once per output (ratio: TRL's)"
    ),
    "reinforce": Row(reinforce, "Williams 1992", "r_i log π_θ(y_i)"),
    "reinforce_baseline": Row(reinforce_baseline, "Williams 1992", "(r_i − r̄) log π_θ(y_i)"),
    "max_rl_successes": Row(
        max_rl_successes,
        "2602.02710",
        "(1/K) Σ_{right} log π_θ(y_i), K right answers of G, 0 where K = 0: ascends −Σ_{k≤G} (1 − p)^k/k",
    ),
    "max_rl": Row(
        max_rl, "2602.02710", "((r_i − r̄)/r̄) log π_θ(y_i), as prime-rl has it: the same sum up to k = G − 1"
    ),
    "opo": Row(opo, "2505.23585", "(r_i − Σ|o|r/Σ|o|) log π_θ(y_i), the length-weighted baseline"),
    "reinforce_plus_plus": Row(
        reinforce_plus_plus, "2501.03262", "returns with k1 in the reward, whitened over the batch's tokens"
    ),
    "reinforce_plus_plus_baseline": Row(
        reinforce_plus_plus_baseline, "2501.03262", "r_i − r̄ whitened over the batch's tokens, R = k2"
    ),
}
"""Name -> row."""

METHODS: dict[str, Method] = {name: row.method for name, row in TABLE.items()}
"""Name -> method, for the command line and for files."""


def get(name: str) -> Method:
    """The method of that name; ValueError with the nearest right name otherwise."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]


def describe(part: Any, *, defaults: bool = False) -> str:
    """A part as the expression that makes it; without ``defaults`` those are left out.

    >>> describe(dapo.gain)
    'Clip(high=0.28)'
    >>> describe(dapo.gain, defaults=True)
    'Clip(low=0.2, high=0.28)'
    """
    if isinstance(part, tuple):
        return ", ".join(describe(p, defaults=defaults) for p in part)
    if not dataclasses.is_dataclass(part):
        return repr(part)
    said = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        own = field.default is dataclasses.MISSING or describe(value) != describe(field.default)
        if own or (defaults and value is not None and value != ()):
            inner = describe(value, defaults=defaults)
            text = f"({inner})" if isinstance(value, tuple) else inner
            said.append(f"{field.name}={text}")
    return f"{type(part).__name__}({', '.join(said)})" if said else type(part).__name__


def effective(method: Method, slot: str, *, defaults: bool = False) -> str:
    """What a slot does, as an expression: "none" where it is empty, and for a penalty whose coefficient is 0.

    >>> effective(dr_grpo, "penalty")
    'none'
    """
    held = getattr(method, slot)
    coef = getattr(held, "coef", None) if slot == "penalty" else None
    idle = held is None or held == () or (isinstance(coef, (int, float)) and coef == 0)
    return "none" if idle else describe(held, defaults=defaults)


def table() -> str:
    """All methods as a Markdown table: name, paper, note, and the parts that differ from GRPO's."""
    lines = ["| method | paper | equation (1) of [B] | parts that differ from `grpo` |", "|---|---|---|---|"]
    for name, row in TABLE.items():
        slots = []
        for field in dataclasses.fields(Method):
            mine, base = getattr(row.method, field.name), getattr(grpo, field.name)
            if name == "grpo" or describe(mine) != describe(base):
                slots.append(f"{field.name}: {describe(mine) or '–'}")
        paper = f"arXiv:{row.paper}" if row.paper[0].isdigit() else row.paper
        note = row.note.replace("|", "\\|")
        lines.append(f"| `{name}` | {paper} | {note} | `{'; '.join(slots)}` |")
    return "\n".join(lines)


def __dir__() -> list[str]:
    """The methods, and what finds and describes them; not the parts that they are made of."""
    return [*METHODS, "METHODS", "SHIFT", "TABLE", "Row", "describe", "effective", "get", "table"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """AttributeError with the nearest right name."""
        hint = "" if name.startswith("_") else f"; {nearest(name, METHODS)}"
        raise AttributeError(f"module {__name__!r} has no method {name!r}{hint}")
