"""TIC-GRPO's trajectory-level ratio yields an unbiased estimate of the current policy's gradient.

[C], arXiv:2508.02833, abstract of v2 (2025); v5 (23 March 2026) says "an estimate" and no longer "unbiased",
which is the first row below. The full text was not available. Random tables over sequences of T = 1..8 of two
tokens, binary and graded rewards, every group by enumeration; θ apart from θ_old by up to one nat, at random
or along the gradient.

Refuted if without a clip the update is not in proportion to ∇J(θ) to 1e-10 at every θ and T: (1 - 1/G) of it
shift-only, and c(G, p) = phi_G(p)/(p (1 - p)) of it with σ-normalised advantages and binary rewards, p the
old policy's success rate. Qualified by every part of the published method under which it is not ∇J(θ): the
factor 1 - 1/G, σ-normalised graded rewards (an angle of more than 0.1 degrees for the median table at some
T), and a clip (the median table more than a hundredth away after 0.1 nat at some T). A control, which checks
the instrument: the token-level ratio does deviate from (1 - 1/G) ∇J(θ).
"""

from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas import expected_updates as closed
from experiments.formulas.expected_updates import CLIP_NAMES, CLIPS, DIRECTIONS
from experiments.harness.numbers import Number, share, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import estimands, trees
from grpo_jax import Sequences, plotting
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
"""TIC-GRPO's clip."""


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
        wide = estimands.widened(closed.drifted(given, closed.direction(given, direction), 0.1), LONGEST)
        method = estimands.method(
            trajectory=np.full(FEW, float(whole)), normalized=np.full(FEW, float(normalized)),
            low=np.inf, high=np.inf,
        )  # fmt: skip
        aim = estimands.candidates(*problem, wide[None], long.logits[None])["gradient at current"]
        moved = estimands.update(problem, method, wide, group_size=FOUR)
        found.append(float(np.abs(moved - factor(rate, normalized, FOUR) * np.asarray(aim)).max()))
    return found


WHAT = ("scale", "error", "angle", "gap", "nearer")
"""Scale along ∇J(θ); distance from it over its norm, and angle; largest entry of the difference; and whether
it is nearer to it than to ∇J(θ_old). Distances are those of the update over its unclipped scale."""


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
    angle = np.degrees(np.arccos(np.clip(np.where(both > 0, cross / np.where(both > 0, both, 1), 0), -1, 1)))
    gap = np.abs(moved - unit[:, None, None] * aim).max((2, 3))
    return np.stack([scale, here, angle, gap, here < there])


def biases(root: int, horizon: int, kind: str, tables: int) -> list[list[np.ndarray]]:
    """[direction][drift] ``bias`` on random tables."""
    given = trees.problem(root, Sequences(vocab=2, horizon=horizon), tables=tables, kind=kind)
    old = closed.batch(given, group_size=GROUP)
    ways = [closed.direction(given, name) for name in DIRECTIONS]
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
        "identities": xr.Dataset({"residual": xr.DataArray(residual, each, tuple(each))}),
        "tables": xr.DataArray(table, axes, (*axes, "table")).to_dataset("what"),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Without a clip the sentence holds up to a factor; each departure of the published method qualifies."""
    residual, plain = data["identities"].residual, data["tables"].sel(clip="none")
    control = residual.sel(identity="token ratio").max(("horizon", "kind"))
    claim.requires("token ratio deviates (control)", Number(float(control), 1e-3, relation="at least"))
    shift, binary = {"advantage": SHIFT}, {"advantage": NORMAL, "kind": "binary"}
    for name, gaps in {
        "shift-only, (1 - 1/G) ∇J(θ), every group": residual.sel(identity=SHIFT),
        "normalised, binary, c(G, p) ∇J(θ), every group": residual.sel(identity=NORMAL, kind="binary"),
        "shift-only, every table": plain.gap.sel(shift),
        "normalised, binary, every table": plain.gap.sel(binary),
    }.items():
        claim.refutes(name, worst(gaps, tolerance=1e-10))
    factor_ = Number(float(plain.scale.sel(shift).mean()), 1.0, 1e-10)
    claim.qualifies(
        "factor, shift-only",
        factor_,
        only=f"up to the factor 1 - 1/G (G = {GROUP}; leave-one-out removes it)",
    )
    turned = plain.angle.sel(advantage=NORMAL, kind="graded").median("table")
    angle = Number(float(turned.max()), 0.1, relation="at most")
    claim.qualifies(
        "angle to ∇J(θ), normalised, graded, degrees", angle,
        only="in direction with two reward levels, or without σ",
    )  # fmt: skip
    far, told = data["tables"].error.sel(drift=0.1).median("table").max("direction"), {}
    for clip in CLIPS[1:]:
        top = Number(float(far.sel(clip=clip).max()), 0.01, relation="at most")
        told[clip] = top
        claim.qualifies(f"distance under {CLIP_NAMES[clip]}", top, only="without a clip")
    claim.finds(
        f"Without a clip and without σ the update is exactly {factor_.value:.3g} times the current policy's "
        "gradient, however far the policy has moved; dividing by σ leaves the direction only if there are "
        "two levels of reward.",
        when=bool(all(claim.numbers[name].holds for name in claim.numbers if claim.roles[name] == "refutes")),
    )
    claim.finds(
        f"TIC-GRPO's own clip ends that: after 0.1 nat the median task's expected update is off by up to "
        f"{told[OWN].value:.0%} of that gradient's norm.",
        when=told[OWN].holds is False,
    )
    report(far, turned, claim)
    judge_v5(data["tables"].nearer, claim)


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


def judge_v5(nearer: xr.DataArray, claim: Claim) -> None:
    """Without "unbiased": whether most tables have the published update nearer to ∇J(θ) than to ∇J(θ_old).

    After 0.1 nat: after much less the two hardly differ, and which one is nearer is decided by what σ turns.
    """
    row = claim.ours(
        "In v5's weaker words, an estimate of the current policy's gradient: as published (σ-normalised, its "
        "own clip) the update is nearer to it than to the old policy's, after a drift of 0.1 nat."
    )
    few, tables = nearer.sel(drift=0.1).sum("table"), nearer.sizes["table"]
    for kind in KINDS:
        plain = few.sel(clip="none", advantage=SHIFT, kind=kind)
        row.requires(
            f"least share of tables nearer to the current gradient, no clip, shift-only, {kind}",
            share(int(plain.min()), tables, expected=0.5, relation="at least"),
        )
        for way in DIRECTIONS:
            own = few.sel(clip=OWN, advantage=NORMAL, kind=kind, direction=way)
            least = share(int(own.min()), tables, expected=0.5, relation="at least")
            row.refutes(f"least share of tables, as published, {kind}, {way}", least)
            row.finds(
                f"After 0.1 nat {'at random' if way == 'random' else 'along the gradient'} it is so on only "
                f"{least.value:.0%} of the tasks ({kind} rewards, worst T).",
                when=least.holds is False,
            )


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
    figure.suptitle("With the trajectory ratio every clip biases the update as soon as it acts (ε = 0.2)")
