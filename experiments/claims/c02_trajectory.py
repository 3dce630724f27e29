"""TIC-GRPO's trajectory-level ratio yields an unbiased estimate of the current policy's gradient.

[C], arXiv:2508.02833, abstract of v2 (2025); v5 (23 March 2026) says "an estimate" and no longer "unbiased",
which is the first row below. We could read the abstracts and the paper's beginning only, and so do not know
the clip's form. Random tables, each one question, over sequences of T = 1..8 of two tokens, binary and graded
rewards; θ apart from θ_old by up to one nat, at random or along the gradient. Groups of 4 are gone through
one by one by the library, groups of 8 are a closed form.

Refuted if without a clip the library's update of one question is not in proportion to ∇J(θ) to 1e-10 after
0.1 nat at every T: (1 - 1/G) of it shift-only, and c(G, p) = phi_G(p)/(p (1 - p)) of it with σ-normalised
advantages and binary rewards, p the old policy's success rate. Qualified by every part of the published
method under which it is not ∇J(θ): an upper clip with the minimum of PPO (the median table more than a
hundredth away after 0.1 nat at some T), σ-normalised graded rewards (an angle of more than 0.1 degrees for
the median table at some T), questions whose c(G, p) differ by more than a hundredth, and the factor 1 - 1/G.
The row on v5: refuted if after 0.1 nat less than half of the tables (99.9 %) have the σ-normalised update
without a clip nearer to ∇J(θ) than to ∇J(θ_old), qualified if less than half have the published one.
Checks of the instrument: the closed form is the same at every drift, and under every upper clip what the
library gives at T = 3, both to 1e-10; and, as a control, the token-level ratio does deviate from
(1 - 1/G) ∇J(θ).
"""

import dataclasses
from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas import expected_updates as closed
from experiments.formulas.expected_updates import CLIP_NAMES, CLIPS, DIRECTIONS, EPS
from experiments.harness.numbers import Number, share, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import estimands, trees
from experiments.problems.weights import LengthPower
from grpo_jax import Sequences, plotting
from grpo_jax.parts.gains import Clip, Truncated, TruncatedScore
from grpo_jax.theory import phi

PRECISION = "float64"
SIZES = sizes(tables=(16, 200, 1000))

HORIZONS = np.arange(1, 9)
LONGEST = Sequences(vocab=2, horizon=8)
DRIFTS = np.array([0.001, 0.01, 0.1, 1.0])
"""KL(π_old‖π_θ) over whole sequences, nats."""
KINDS = ("binary", "graded")
SHIFT, NORMAL = "shift-only", "σ-normalised"
GROUP, FOUR = 8, 4
"""Of the closed form, and of the groups that the identities go through one by one."""
FEW = 4
"""Tables of those identities."""
OWN = "upper, minimum"
"""The clip that is judged, with the minimum of PPO; others are reported."""
UPPER = {
    OWN: Clip(low=np.inf, high=EPS),
    "upper, truncated": Truncated(high=EPS),
    "upper, truncated score": TruncatedScore(high=EPS),
}
NEAR = 0.01
"""Of ‖∇J(θ)‖."""


def factor(rate: np.ndarray, normalized: bool, group_size: int) -> np.ndarray:
    """[R] what the update is of ∇J(θ): 1 - 1/G, or c(G, p) for rewards 0 and 1."""
    if not normalized:
        return np.full(rate.shape, 1 - 1 / group_size)
    return np.asarray(phi(rate, group_size=group_size)) / (rate * (1 - rate))


def through_every_group(root: int, horizon: int, kind: str) -> list[float]:
    """Largest deviation of the library's update from its formula after 0.1 nat: shift-only, σ-normalised.

    And that of the token-level ratio from the formula of the trajectory-level one.
    """
    given = trees.problem(root, Sequences(vocab=2, horizon=horizon), tables=FEW, kind=kind)
    long = estimands.embedded(given, LONGEST)
    problem, rate = estimands.made(LONGEST, long.logits, long.table), closed.success_rate(given)
    found = []
    for whole, normalized, direction in ((1, False, "ascent"), (1, True, "random"), (0, False, "ascent")):
        wide = estimands.widened(
            closed.drifted(given, closed.direction(given, direction, root), 0.1), LONGEST
        )
        method = estimands.method(
            trajectory=np.full(FEW, float(whole)), normalized=np.full(FEW, float(normalized)),
            low=np.inf, high=np.inf,
        )  # fmt: skip
        aim = estimands.candidates(*problem, wide[None], long.logits[None])["gradient at current"]
        moved = estimands.update(problem, method, wide, group_size=FOUR)
        found.append(float(np.abs(moved - factor(rate, normalized, FOUR) * np.asarray(aim)).max()))
    return found


def under_a_clip(root: int) -> list[float]:
    """Largest deviation of the library's update after 1 nat from the closed form, by upper clip, at T = 3."""
    given = trees.problem(root, Sequences(vocab=2, horizon=3), tables=FEW, kind="graded")
    away = closed.drifted(given, closed.direction(given, "ascent", root), 1.0)
    problem, old = (
        estimands.made(given.space, given.logits, given.table),
        closed.batch(given, group_size=FOUR),
    )
    at, found = closed.point(given.space, given.logits, away), []
    for clip, gain in UPPER.items():
        wanted = closed.updates(old, at, "TIC-GRPO", clip)
        for normalized, want in zip((0.0, 1.0), wanted, strict=True):
            method = estimands.method(trajectory=1.0, normalized=normalized, gain=gain)
            if clip == "upper, truncated score":  # the score stands at each token by itself: no 1/|o|
                method = dataclasses.replace(method, reduction=LengthPower(power=0.0))
            moved = estimands.update(problem, method, away, group_size=FOUR)[0]
            found.append(np.abs(moved - want).max())
    return [max(pair) for pair in zip(found[::2], found[1::2], strict=True)]


WHAT = ("scale", "error", "angle", "gap", "nearer", "old angle")
"""Scale along ∇J(θ); distance from it over its norm, and angle; largest entry of the difference; whether it
is nearer to it than to ∇J(θ_old), and the angle to that one. Distances are those of the update over its
unclipped scale."""


def bias(old: closed.Batch, params: np.ndarray, kind: str) -> np.ndarray:
    """[what, clip, advantage, table] of TIC-GRPO's update at θ = ``params``."""
    given, rate = old.given, closed.success_rate(old.given)
    at = closed.point(given.space, given.logits, params)
    before, aim = closed.candidates(given, at)[:2]
    moved = np.stack([closed.updates(old, at, "TIC-GRPO", clip) for clip in CLIPS])
    cross, mine = np.einsum("canvr,nvr->car", moved, aim), np.einsum("canvr,canvr->car", moved, moved)
    size = np.sum(aim**2, (0, 1))
    scale, both = cross / size, np.sqrt(mine * size)
    normal = scale[0, 1] if kind == "graded" else factor(rate, True, GROUP)
    unit = np.stack([factor(rate, False, GROUP), normal])
    here, there = (
        np.sqrt(np.sum((moved / unit[:, None, None] - to) ** 2, (2, 3)) / size) for to in (aim, before)
    )
    back = np.einsum("canvr,nvr->car", moved, before), np.sqrt(mine * np.sum(before**2, (0, 1)))
    angle, old_angle = (
        np.degrees(np.arccos(np.clip(np.where(norms > 0, inner / np.where(norms > 0, norms, 1), 0), -1, 1)))
        for inner, norms in ((cross, both), back)
    )
    gap = np.abs(moved - unit[:, None, None] * aim).max((2, 3))
    return np.stack([scale, here, angle, gap, here < there, old_angle])


def biases(root: int, horizon: int, kind: str, tables: int) -> list[list[np.ndarray]]:
    """[direction][drift] ``bias`` on random tables."""
    given = trees.problem(root, Sequences(vocab=2, horizon=horizon), tables=tables, kind=kind)
    old = closed.batch(given, group_size=GROUP)
    ways = [closed.direction(given, name, root) for name in DIRECTIONS]
    return [[bias(old, closed.drifted(given, way, float(kl)), kind) for kl in DRIFTS] for way in ways]


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Every horizon, clip, advantage, drift and table, for both kinds of reward."""
    axes = {"kind": list(KINDS), "horizon": HORIZONS}
    residual = [[through_every_group(seed, int(t), kind) for t in HORIZONS] for kind in KINDS]
    each = axes | {"identity": [SHIFT, NORMAL, "token ratio"]}
    table = [[biases(seed, int(t), kind, size.tables) for t in HORIZONS] for kind in KINDS]
    axes |= {"direction": list(DIRECTIONS), "drift": DRIFTS, "what": list(WHAT), "clip": list(CLIPS)}
    axes |= {"advantage": [SHIFT, NORMAL]}
    return {
        "identities": xr.Dataset(
            {
                "residual": xr.DataArray(residual, each, tuple(each)),
                "clipped": xr.DataArray(under_a_clip(seed), {"form": list(UPPER)}, ("form",)),
            }
        ),
        "tables": xr.DataArray(table, axes, (*axes, "table")).to_dataset("what"),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Without a clip the sentence holds up to a factor; each departure of the published method qualifies."""
    residual, plain = data["identities"].residual, data["tables"].sel(clip="none")
    control = residual.sel(identity="token ratio").max(("horizon", "kind"))
    claim.requires("token ratio deviates (control)", Number(float(control), 1e-3, relation="at least"))
    shift, binary = {"advantage": SHIFT}, {"advantage": NORMAL, "kind": "binary"}
    claim.requires("closed form, shift-only, every table", worst(plain.gap.sel(shift), tolerance=1e-10))
    claim.requires(
        "closed form, normalised, binary, every table", worst(plain.gap.sel(binary), tolerance=1e-10)
    )
    for form in UPPER:
        gap = Number(float(data["identities"].clipped.sel(form=form)), 0.0, 1e-10)
        claim.requires(f"closed form under {CLIP_NAMES[form]}, every group, T = 3", gap)
    proportional = {
        "shift-only, (1 - 1/G) ∇J(θ), every group": residual.sel(identity=SHIFT),
        "normalised, binary, c(G, p) ∇J(θ), every group": residual.sel(identity=NORMAL, kind="binary"),
    }
    for name, gaps in proportional.items():
        claim.refutes(name, worst(gaps, tolerance=1e-10))
    holds = all(claim.numbers[name].holds is True for name in proportional)
    far = data["tables"].error.sel(drift=0.1).median("table").max("direction")
    own = Number(float(far.sel(clip=OWN).max()), NEAR, relation="at most")
    claim.qualifies(f"distance under {CLIP_NAMES[OWN]}", own, only="without a clip")
    turned = plain.angle.sel(advantage=NORMAL, kind="graded").median("table")
    angle = Number(float(turned.max()), 0.1, relation="at most")
    claim.qualifies(
        "angle to ∇J(θ), normalised, graded, degrees", angle,
        only="in direction with two reward levels, or without σ",
    )  # fmt: skip
    scales = plain.scale.sel(binary)
    spread = Number(float(scales.max() / scales.min()), 1.01, relation="at most")
    claim.qualifies(
        "c(G, p) of σ-normalised questions, greatest over least", spread, only="for one question at a time"
    )
    factor_ = Number(float(plain.scale.sel(shift).mean()), 1.0, 1e-10)
    claim.qualifies(
        "factor, shift-only",
        factor_,
        only=f"up to the factor 1 - 1/G (G = {GROUP}; leave-one-out removes it)",
    )
    forms = far.sel(clip=list(UPPER)[1:]).max([name for name in far.dims if name != "clip"])
    claim.finds(
        f"Its upper clip ends it: after 0.1 nat the median task's expected update is off by up to "
        f"{own.value:.0%} of the gradient's norm with PPO's minimum, {float(forms.min()):.0%} to "
        f"{float(forms.max()):.0%} in forms that ignore the sign of A.",
        when=own.holds is False and bool((forms > NEAR).all()),
    )
    claim.finds(
        "Without a clip the expected update of one question points along the current policy's gradient, "
        f"however far the policy has moved, and without σ it is {factor_.value:.3g} times that gradient.",
        when=holds,
    )
    claim.finds(
        "Dividing by σ leaves that direction only with two levels of reward, and only for one question: "
        f"over several it weights them by their success rates, here up to {spread.value:.1f} to 1.",
        when=angle.holds is False and spread.holds is False,
    )
    report(far, turned, claim)
    judge_v5(data["tables"], claim)


def report(far: xr.DataArray, turned: xr.DataArray, claim: Claim) -> None:
    """Distances under every clip, and angles, by horizon."""
    for clip in CLIPS[1:]:
        for advantage in (SHIFT, NORMAL):
            for kind in KINDS:
                for t in (1, 2, 4, 8):
                    here = far.sel(clip=clip, advantage=advantage, kind=kind, horizon=t)
                    name = f"distance after 0.1 nat under {CLIP_NAMES[clip]}, {advantage}, {kind}, T = {t}"
                    claim.reports(name, Number(float(here)))
    angles = turned.sel(drift=0.1).max("direction")
    for t in HORIZONS.tolist():
        claim.reports(f"angle after 0.1 nat, T = {t}, degrees", Number(float(angles.sel(horizon=t))))


def judge_v5(tables: xr.Dataset, claim: Claim) -> None:
    """Without "unbiased": whether most tables have the update nearer to ∇J(θ) than to ∇J(θ_old).

    After 0.1 nat: after much less the two hardly differ, and which one is nearer is decided by what σ turns.
    As in C1 the update without a clip judges, and the clip qualifies.
    """
    row = claim.also(
        "TIC-GRPO's update is an estimate of the current policy's gradient (v5, without \"unbiased\")."
    )
    few, count = tables.nearer.sel(drift=0.1).sum("table"), tables.sizes["table"]
    idle = clip_idle(tables)
    for kind in KINDS:
        for advantage, judge in ((SHIFT, row.requires), (NORMAL, row.refutes)):
            plain = few.sel(clip="none", advantage=advantage, kind=kind)
            judge(
                f"least share of tables nearer to the current gradient, no clip, {advantage}, {kind}",
                share(int(plain.min()), count, expected=0.5, relation="at least"),
            )
        for way in DIRECTIONS:
            own = few.sel(clip=OWN, advantage=NORMAL, kind=kind, direction=way)
            least = share(int(own.min()), count, expected=0.5, relation="at least")
            row.qualifies(f"least share of tables, as published, {kind}, {way}", least, only=_idle(idle))
            row.finds(
                f"After 0.1 nat {'at random' if way == 'random' else 'along the gradient'} the published "
                f"update is nearer to the current gradient on only {least.value:.0%} of the tasks ({kind} "
                "rewards, worst T).",
                when=least.holds is False,
            )
    angles = tables[["angle", "old angle"]].sel(clip=OWN, advantage=NORMAL, horizon=8, drift=0.1)
    angles = angles.median("table")
    for kind in KINDS:
        for way in DIRECTIONS:
            for name, words in (("angle", "current"), ("old angle", "old")):
                angle = Number(float(angles[name].sel(kind=kind, direction=way)))
                row.reports(
                    f"median angle to the {words} gradient, T = 8, 0.1 nat, {kind}, {way}, degrees", angle
                )
    row.finds(
        f"At 8 tokens its median angle to the current gradient is then {_degrees(angles['angle'])}, to the "
        f"old one {_degrees(angles['old angle'])}.",
        when=any(row.numbers[name].holds is False for name, role in row.roles.items() if role == "qualifies"),
    )


def clip_idle(tables: xr.Dataset) -> float:
    """The drift up to which the clip moves no median table's update by a hundredth of the gradient's norm."""
    error = tables.error.sel(clip=OWN, advantage=SHIFT).median("table")
    same = (error <= NEAR).all([name for name in error.dims if name != "drift"])
    return float(tables.drift.where(same.cumprod("drift") > 0).max().fillna(0.0))


def _idle(drift: float) -> str:
    return f"while the clip is idle (here up to {drift:g} nat)" if drift else "without a clip"


def _degrees(angles: xr.DataArray) -> str:
    return f"{float(angles.min()):.0f} to {float(angles.max()):.0f} degrees"


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """The distance of the expected update from ∇J(θ) for each clip, against drift and against horizon."""
    figure.set_size_inches(7, 3.2)
    left, right = plotting.panels(figure, 1, 2, sharey=True)
    error = data["tables"].error.sel(kind="graded", direction="ascent", advantage=SHIFT).median("table")
    colors = dict(zip(CLIPS, ("black", *plotting.COLORS[:4]), strict=True))
    for clip in ("none", "two-sided", "upper, truncated", "upper, truncated score", OWN):
        line, dash = error.sel(clip=clip), "--o" if clip == OWN else "-o"
        for axes, at in ((left, line.sel(horizon=4)), (right, line.sel(drift=0.1))):
            along = at.drift if axes is left else at.horizon
            axes.plot(along, at, dash, color=colors[clip], ms=3.5, label=CLIP_NAMES[clip])
    left.set(xscale="log", xlabel="drift KL(π_old‖π_θ), nats (T = 4)")
    left.set_ylabel("distance of the expected update\nfrom ∇J(θ), over ‖∇J(θ)‖")
    right.set(xlabel="T (tokens), after 0.1 nat", xticks=HORIZONS)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.suptitle(
        "The trajectory ratio under each clip: graded rewards, shift-only, θ along the gradient (ε = 0.2)"
    )
