"""GRPO's update rule estimates the policy gradient at the old policy rather than at the current one.

[C], arXiv:2508.02833, the abstracts of v2 (2025) and v5 (23 March 2026), which add that the difference stays
small since the old policy is refreshed every few steps (v5: "negligible in practice"). We could read the
abstracts and the paper's beginning only. Random tables over sequences of T = 1..8 of two tokens, binary and
graded rewards, expected updates of groups of 8 at θ, up to one nat from θ_old at random or along the
gradient; constant token weights.

Refuted if at T = 8, the nearest here to long outputs, less than half of the tables (99.9 % intervals) have
the update without a clip nearer to ∇J(θ_old) than to ∇J(θ) after some drift of up to 0.1 nat: shift-only or
σ-normalised, each kind of reward by itself. Qualified if less than half have at T = 1..7, at T = 8 after more
than 0.1 nat, or under the two-sided clip of the published form; or if after one nat the median table has it
further from ∇J(θ_old) than a tenth of that gradient's norm. What it is exactly, and other estimators, are
rows of ours. Checks of the instrument, to 1e-10: at θ_old the library's update is
(1 - 1/G) ∇J(θ_old), elsewhere the local surrogate's gradient, and the atlas of ratios, clips and advantages
is what all groups give. A control: TIC-GRPO's update, which is ∇J(θ) without a clip, is nearer to ∇J(θ_old)
on at most half of the tables.
"""

from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas import expected_updates as closed
from experiments.formulas import sentence_atlas
from experiments.formulas.expected_updates import CLIP_NAMES, CLIPS, EPS
from experiments.formulas.sentence_atlas import ADVANTAGES, KINDS, NEAR, sentence
from experiments.harness.numbers import Number, share, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import estimands, trees
from experiments.problems.estimands import TARGETS
from grpo_jax import Sequences, plotting

PRECISION = "float64"
SIZES = sizes(tables=(80, 200, 1000))

HORIZONS = np.arange(1, 9)
DRIFTS = np.array([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
"""KL(π_old‖π_θ) over whole sequences, nats."""
SOME = 0.1
"""A drift of a few steps, nats."""
GROUP = 8
FOUR = 4
"""Size of the groups that the identities go through one by one."""
LONGEST = Sequences(vocab=2, horizon=8)
CHECKED = [
    *((estimator, clip) for estimator in ("GRPO", "TIC-GRPO") for clip in CLIPS[:3]),
    ("score", "none"),
]
"""Ratios and clips that differ in numbers alone: one program holds them all, at every horizon."""
PLAIN = {
    f"no clip, {advantage}": {"estimator": "GRPO", "clip": "none", "advantage": advantage}
    for advantage in ADVANTAGES
}
CLIPPED = {"as published": {"estimator": "GRPO", "clip": "two-sided", "advantage": "σ-normalised"}}
RULES = PLAIN | CLIPPED
AWRY = 45.0
"""Degrees from a gradient beyond which an update is not near to it."""


def every_group(given: trees.Problem, normalized: float, params: np.ndarray) -> np.ndarray:
    """[rows, V, R] the library's expected update at ``params`` [rows, V, R], of ``CHECKED[r]`` in run r."""
    estimator, clip = (np.array(each) for each in zip(*CHECKED, strict=True))
    method = estimands.method(
        trajectory=(estimator == "TIC-GRPO").astype(float),
        score=(estimator == "score").astype(float),
        normalized=np.full(len(CHECKED), normalized),
        low=np.where(clip == "two-sided", EPS, np.inf),
        high=np.where(clip == "none", np.inf, EPS),
    )
    long = estimands.embedded(given, LONGEST)
    problem = estimands.made(LONGEST, long.logits, long.table)
    moved = estimands.update(problem, method, estimands.widened(params, LONGEST), group_size=FOUR)
    return moved[0, : len(params)]


def identities(root: int, horizon: int, kind: str) -> list[float]:
    """Largest deviation of the library's update from the formula at θ_old and away, and from the atlas."""
    given = trees.problem(root, Sequences(vocab=2, horizon=horizon), tables=len(CHECKED), kind=kind)
    away = closed.drifted(given, closed.direction(given, "ascent", root), 0.1)
    old, long = closed.batch(given, group_size=FOUR), estimands.embedded(given, LONGEST)
    problem = estimands.made(LONGEST, long.logits, long.table)
    found, atlas = [], []
    for params in (given.logits, away):
        at = closed.point(given.space, given.logits, params)
        wide = estimands.widened(params, LONGEST)[None]
        named = estimands.candidates(*problem, wide, long.logits[None])
        aims = np.stack([np.asarray(named[name])[0, : len(params)] for name in TARGETS])
        atlas.append(np.abs(aims - closed.candidates(given, at)).max())
        moved = [every_group(given, normalized, params) for normalized in (0.0, 1.0)]
        found.append(np.abs(moved[0] - (1 - 1 / FOUR) * aims[2])[..., 0].max())
        for run, (estimator, clip) in enumerate(CHECKED):
            want = closed.updates(old, at, estimator, clip)[..., run]
            atlas.append(np.abs(np.stack(moved)[..., run] - want).max())
    return [*found, max(atlas)]


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Identities through every group of four, and the atlas, at every horizon with both kinds of reward."""
    axes = {"kind": list(KINDS), "horizon": HORIZONS, "identity": ["at the old policy", "away", "the atlas"]}
    exact = [[identities(seed, int(t), kind) for t in HORIZONS] for kind in KINDS]
    atlas = sentence_atlas.measured(seed, HORIZONS, DRIFTS, tables=size.tables, group_size=GROUP)
    return {"identities": xr.Dataset({"residual": xr.DataArray(exact, axes, tuple(axes))}), "atlas": atlas}


def least(nearer: xr.DataArray, tables: int) -> Number:
    """The least share of tables of all these settings; at least half should be nearer to ∇J(θ_old)."""
    found = share(int(nearer.min()), tables, expected=0.5, relation="at least")
    low = nearer.isel(nearer.argmin(...))
    words = {"kind": "{} rewards", "horizon": "T = {}", "drift": "{:g} nat"}
    at = ", ".join(word.format(low[name].item()) for name, word in words.items() if name in nearer.dims)
    return Number(found.value, 0.5, None, found.low, found.high, "at least", at)


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The sentence at T = 8; shorter outputs and larger drifts; what the update is; other estimators."""
    atlas, residual = data["atlas"], data["identities"].residual
    tables, where = int(atlas.attrs["tables"]), sentence(data["atlas"])
    for name, words in {
        "at the old policy": "update at the old policy - (1 - 1/G) ∇J(θ_old)",
        "away": "update away from it - local surrogate's gradient",
        "the atlas": "the atlas from every group",
    }.items():
        claim.requires(words, worst(residual.sel(identity=name), tolerance=1e-10))
    tic = atlas.nearer.sel(estimator="TIC-GRPO", clip="none", advantage="shift-only")
    control = Number(float(tic.max()) / tables, 0.5, relation="at most")
    claim.requires("TIC-GRPO, no clip: greatest share nearer to the old gradient (control)", control)
    for words, rule in RULES.items():
        judge_update(atlas, words, rule, claim)
    told(atlas, where, claim)
    row = claim.ours(
        "Shift-only and unclipped, GRPO's expected update is (1 - 1/G) times the gradient at θ of the local "
        "(CPI/TRPO) surrogate: old visits, old values, the current policy's actions."
    )
    gap = worst(residual.sel(identity="away"), tolerance=1e-10)
    row.refutes("update - formula", gap)
    row.finds(
        "What GRPO's token ratios follow is the surrogate of TRPO, neither of the two gradients.", when=gap
    )
    judge_others(atlas, where, claim)


def judge_update(atlas: xr.Dataset, words: str, rule: dict[str, str], claim: Claim) -> None:
    """The sentence for one form of the update, each kind of reward by itself."""
    tables, near = int(atlas.attrs["tables"]), atlas.nearer.sel(rule)
    long, short = near.sel(horizon=8), near.sel(horizon=slice(1, 7), drift=slice(0, SOME))
    name, where = f"share of tables nearer to the old gradient, {words}", sentence(atlas).sel(rule)
    for kind in KINDS:
        told = f"{name}, {kind}, T = 8, up to {SOME} nat"
        number = least(long.sel(kind=kind, drift=slice(0, SOME)), tables)
        if words in CLIPPED:
            claim.qualifies(told, number, only=_idle(clip_idle(atlas)))
        else:
            claim.refutes(told, number)
    onward, reach = float(where.start.max("kind", skipna=False)), float(where.reach.min())
    claim.qualifies(f"{name}, T = 1..7, up to {SOME} nat", least(short, tables), only=_onward(onward))
    claim.qualifies(
        f"{name}, T = 8, beyond {SOME} nat", least(long.sel(drift=slice(0.3, None)), tables),
        only=_idle(clip_idle(atlas)) if words in CLIPPED else f"after drifts of up to {SOME} nat",
    )  # fmt: skip
    far = atlas.distance.sel(target=TARGETS[0], quantile=0.5)
    distance = Number(float(far.sel(rule | {"drift": 1.0}).max()), NEAR, relation="at most")
    claim.qualifies(f"median distance to the old gradient at 1 nat, {words}", distance, only=_up_to(reach))
    here = atlas.angle.sel(rule | {"horizon": 8, "drift": SOME, "quantile": 0.5})
    for target in TARGETS[:2]:
        for way in here.direction.values:
            for kind in KINDS:
                angle = float(here.sel(target=target, direction=way, kind=kind))
                name = f"{words}: median angle to the {target}, T = 8, {SOME} nat, {way}, {kind}, degrees"
                claim.reports(name, Number(angle))
    for t in (1, 2, 3, 4, 8):
        for most in (SOME, 1.0):
            few = atlas.nearer.sel(rule | {"horizon": t, "drift": slice(0, most)})
            claim.reports(
                f"{words}: least share at T = {t}, up to {most:g} nat", Number(float(few.min()) / tables)
            )


def clip_idle(atlas: xr.Dataset) -> float:
    """The drift up to which, at T = 8, the published update has the unclipped one's median angle to 1 degree.

    To both gradients, at every smaller drift, for either kind of reward, at random and along the gradient.
    """
    (clipped,) = CLIPPED.values()
    angle = atlas.angle.sel(horizon=8, quantile=0.5, target=list(TARGETS[:2]))
    gap = abs(angle.sel(clipped) - angle.sel(clipped | {"clip": "none"}))
    same = (gap <= 1).all([name for name in gap.dims if name != "drift"])
    return float(atlas.drift.where(same.cumprod("drift") > 0).max().fillna(0.0))


def _idle(drift: float) -> str:
    return f"while the clip is idle (here up to {drift:g} nat)" if drift else "without a clip"


def _onward(start: float) -> str:
    after = "for most tables at 99.9 %, every drift and kind of reward"
    return f"at no T ≤ 8 ({after})" if np.isnan(start) else f"from T = {start:g} on ({after})"


def _up_to(reach: float) -> str:
    if not reach:
        return "at the old policy itself"
    return f"up to a drift of {reach:g} nat if within a tenth is near"


def told(atlas: xr.Dataset, where: xr.Dataset, claim: Claim) -> None:
    """What we found, in words."""
    plain, clipped = PLAIN["no clip, shift-only"], CLIPPED["as published"]
    start, reach = where.start.sel(plain).max("kind", skipna=False), where.reach.sel(plain).min()
    single = atlas.nearer.sel(plain | {"horizon": 1}).max()
    claim.finds(
        "Unclipped, the update is nearer to the old policy's gradient on most random tasks for outputs of "
        f"{float(start):g} tokens or more, after drifts of up to {float(atlas.drift.max()):g} nat; for one "
        "token it is the current policy's.",
        when=bool(np.isfinite(start)) and int(single) == 0,
    )
    claim.finds(
        f"It stays within a tenth of the old policy's gradient up to a drift of about {float(reach):g} nat.",
        when=float(reach) > 0,
    )
    rule = clipped | {"horizon": 8, "drift": SOME}
    shares = atlas.nearer.sel(rule).min("direction") / int(atlas.attrs["tables"])
    judged = [
        claim.numbers[
            f"share of tables nearer to the old gradient, as published, {kind}, T = 8, up to {SOME} nat"
        ]
        for kind in KINDS
    ]
    claim.finds(
        f"With the published clip only {float(shares.min()):.0%} to {float(shares.max()):.0%} of the tasks "
        f"have it nearer to the old one's after {SOME} nat, at 8 tokens.",
        when=all(number.holds is False for number in judged),
    )
    angles = atlas.angle.sel(rule | {"quantile": 0.5})
    old, current = (angles.sel(target=target) for target in TARGETS[:2])
    claim.finds(
        f"With the clip it is then near to neither: {_degrees(old)} to the old one, {_degrees(current)} to "
        "the current one (medians, at random and along the gradient).",
        when=bool(min(old.min(), current.min()) > AWRY),
    )


def _degrees(angles: xr.DataArray) -> str:
    return f"{float(angles.min()):.0f} to {float(angles.max()):.0f} degrees"


def judge_others(atlas: xr.Dataset, where: xr.Dataset, claim: Claim) -> None:
    """Which estimators the sentence fits better: every one, with every clip that can act on it.

    Frozen at θ_old it is ∇J(θ_old) itself up to a factor, unless σ turns it: a check of the instrument.
    """
    row = claim.ours(
        "The sentence fits an update without any importance ratio (the score at θ, or frozen at θ_old): "
        "nearer to the old policy's gradient on most tables at every T and after every drift."
    )
    tables = int(atlas.attrs["tables"])
    for estimator in ("score", "frozen"):
        for kind in KINDS:
            for advantage in ADVANTAGES:
                here = atlas.nearer.sel(estimator=estimator, clip="none", kind=kind, advantage=advantage)
                itself = estimator == "frozen" and (kind, advantage) != ("graded", ADVANTAGES[1])
                judge = row.requires if itself else row.refutes
                judge(f"least share, {estimator}, {advantage}, {kind}", least(here, tables))
    row.finds(
        "Whoever wants the old policy's gradient has to leave the importance ratio out.",
        when=list(row.numbers.values()),
    )
    for estimator, clip in sentence_atlas.rows():
        for advantage in ADVANTAGES:
            for kind in KINDS:
                at = where.sel(estimator=estimator, clip=clip, advantage=advantage, kind=kind)
                name = f"{estimator}, {CLIP_NAMES[clip]}, {advantage}, {kind}"
                row.reports(f"{name}: nearer to the old gradient from T", Number(float(at.start)))
                row.reports(f"{name}: within a tenth of it up to, nats", Number(float(at.reach)))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Share of tables whose update is nearer to ∇J(θ_old) than to ∇J(θ), over drift and T."""
    figure.set_size_inches(7, 3.6)
    panels = plotting.panels(figure, 1, 2, sharey=True)
    atlas, shown = data["atlas"], (PLAIN["no clip, shift-only"], CLIPPED["as published"])
    titles = ("no clip, shift-only", "as published (σ-normalised, two-sided clip)")
    near = atlas.nearer.sel(kind="graded", direction="ascent") / int(atlas.attrs["tables"])
    near.attrs["long_name"] = "share of tables"
    near.drift.attrs["long_name"] = "drift KL(π_old‖π_θ), nats"
    near.horizon.attrs["long_name"] = "T (tokens)"
    for axes, title, rule in zip(panels, titles, shown, strict=True):
        plotting.heatmap(
            axes, near.sel(rule), x="drift", y="horizon", center=0.5, annotate=True, colorbar=False
        )
        axes.set_title(title)
    panels[1].set_ylabel("")
    figure.suptitle(
        "Share of tasks with GRPO's update nearer to the old policy's gradient than to the current one's:\n"
        "graded rewards, θ moved from θ_old along the gradient"
    )
