"""GRPO's update estimates the gradient at the old policy.

Claim C1 of arXiv:2508.02833, whose full text was not available: the sentence is from its abstract.
Shift-only, unclipped and without 1/len the expected update at θ is (1 - 1/G) times
sum_s d_old(s) sum_a ∇π_θ(a|s) Q_old(s, a), the gradient at θ of the local (CPI/TRPO) surrogate. Refuted if
the update at θ_old is not (1 - 1/G) ∇J(θ_old), or the update elsewhere not that formula, to 1e-10, or if the
atlas of ratios, clips and advantages is not what all groups give. Qualified if, away from θ_old, most tables
have it nearer to ∇J(θ) than to ∇J(θ_old) at some horizon, or the median table has it further from ∇J(θ_old)
than a tenth of that gradient's norm, shift-only or as published (two-sided clip, σ-normalised).
"""

import jax
import numpy as np
import xarray as xr

from experiments.claims import sentence_atlas
from experiments.problems import estimands, trees
from experiments.formulas import expected_updates as closed
from experiments.formulas.expected_updates import CLIPS, EPS
from experiments.claims.sentence_atlas import KINDS, NEAR, TARGETS, sentence
from experiments.verdict import Number, judge, worst
from grpo_jax.sequences import Sequences

CLAIM = "C1"
PAPER = "C"
PRECISION = "float64"

HORIZONS = np.arange(1, 9)
DRIFTS = np.array([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
"""KL(π_old‖π_θ) over whole sequences, nats."""
GROUP = 8
FOUR = 4
"""Size of the groups that the identities go through one by one."""
LONGEST = Sequences(vocab=2, horizon=8)
CHECKED = [
    *((estimator, clip) for estimator in ("GRPO", "TIC-GRPO") for clip in CLIPS[:3]),
    ("score", "none"),
]
"""Ratios and clips that differ in numbers alone: one program holds them all, at every horizon."""
SIZES = {"smoke": 24, "quick": 200, "full": 1000}
PLAIN = {"estimator": "GRPO", "clip": "none", "advantage": "shift-only"}
PUBLISHED = {"estimator": "GRPO", "clip": "two-sided", "advantage": "σ-normalised"}


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
    space = Sequences(vocab=2, horizon=horizon)
    given = trees.problem(root, space, tables=len(CHECKED), kind=kind)
    away = closed.drifted(given, closed.direction(given, "ascent"), 0.1)
    old, long = closed.batch(given, group_size=FOUR), estimands.embedded(given, LONGEST)
    problem = estimands.made(LONGEST, long.logits, long.table)
    found, atlas = [], []
    for params in (given.logits, away):
        at = closed.point(space, given.logits, params)
        wide = estimands.widened(params, LONGEST)[None]
        aims = estimands.candidates(*problem, wide, long.logits[None])
        aims = np.stack([np.asarray(aims[name])[0, : len(params)] for name in TARGETS])
        atlas.append(np.abs(aims - closed.candidates(given, at)).max())
        moved = [every_group(given, normalized, params) for normalized in (0.0, 1.0)]
        found.append(np.abs(moved[0] - (1 - 1 / FOUR) * aims[2])[..., 0].max())
        for run, (estimator, clip) in enumerate(CHECKED):
            want = closed.updates(old, at, estimator, clip)[..., run]
            atlas.append(np.abs(np.stack(moved)[..., run] - want).max())
    return [*found, max(atlas)]


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Identities through every group of four, and the atlas, at every horizon with both kinds of reward."""
    root = int(jax.random.key_data(key)[-1])
    exact = [[identities(root, int(t), kind) for t in HORIZONS] for kind in KINDS]
    data = sentence_atlas.measured(root, HORIZONS, DRIFTS, tables=SIZES[size], group_size=GROUP)
    data["residual"] = (("kind", "horizon", "identity"), np.array(exact))
    return data.assign_coords(identity=["at the old policy", "away from it", "the atlas"])


def check(data: xr.Dataset):
    """The identities refute; where the old policy's gradient is not the nearest, or not near, qualifies."""
    share = data.nearer.sel(PLAIN) / data.attrs["tables"]
    far = data.distance.sel(target=TARGETS[0], quantile=0.5)
    where = sentence(data)
    numbers = {
        "update at the old policy": worst(data.residual.isel(identity=0), expected=0, tolerance=1e-10),
        "update away from it": worst(data.residual.isel(identity=1), expected=0, tolerance=1e-10),
        "the atlas from every group": worst(data.residual.isel(identity=2), expected=0, tolerance=1e-10),
        "share of tables nearer to the old gradient, T = 1": Number(
            float(share.sel(horizon=1).max()), expected=0.5, relation="at least"
        ),
        **{
            f"median distance to the old gradient at 1 nat, {words}": Number(
                float(far.sel(rule | {"drift": 1.0}).max()), expected=NEAR, relation="at most"
            )
            for words, rule in (("shift-only, no clip", PLAIN), ("as published", PUBLISHED))
        },
        **{
            f"least share at T = {t}, drifts up to {most:g} nats": Number(
                float(share.sel(horizon=t, drift=slice(0, most)).min())
            )
            for t in (2, 3, 4, 8)
            for most in (0.1, 1.0)
        },
    }
    start = float(where.start.sel(PLAIN).max("kind", skipna=False))
    onward = "at no horizon for all drifts" if np.isnan(start) else f"from T = {start:g} on"
    words = [f"{onward} (for most tables at 99.9 %, every drift and kind of reward)"]
    words += [_up_to(float(where.reach.sel(rule).min())) for rule in (PLAIN, PUBLISHED)]
    return judge(
        numbers | sentence_atlas.numbers(data),
        refutes=list(numbers)[:3],
        qualifies=dict(zip(list(numbers)[3:6], words, strict=True)),
    )


def _up_to(reach: float) -> str:
    if not reach:
        return "at the old policy itself"
    return f"up to a drift of {reach:g} nats if within a tenth is near"


def draw(figure, data: xr.Dataset) -> None:
    """Distances against drift and who is nearer against horizon; the atlas; and what it says in words."""
    figure.set_size_inches(11.5, 16.5)
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(0.8, 1.6, 0.95))
    left, centre, right = top.subplots(1, 3)
    for axis, horizon in ((left, 2), (centre, 8)):
        _draw_distances(axis, data.distance.sel(PLAIN | {"kind": "graded", "horizon": horizon}))
        axis.set_title(f"GRPO, shift-only, no clip: T = {horizon}, graded rewards", fontsize=9)
    left.set_ylabel("distance of the expected update\nto a gradient / ‖∇J(θ$_{old}$)‖")
    left.legend(frameon=False, fontsize=8)
    _draw_shares(right, data.nearer.sel(PLAIN | {"kind": "graded"}) / data.attrs["tables"])
    sentence_atlas.draw_atlas(middle, data)
    sentence_atlas.draw_sentence(bottom, data)


def _draw_distances(axis, distance: xr.DataArray) -> None:
    for target, color in list(sentence_atlas.COLORS.items())[:2]:
        for direction, style in (("random", "--"), ("ascent", "-")):
            low, middle, high = distance.sel(target=target, direction=direction).transpose(
                "quantile", "drift"
            )
            label = f"to {sentence_atlas.LABELS[target]}, {direction} drift"
            axis.plot(DRIFTS, middle, style, color=color, marker="o", ms=3, label=label)
            if direction == "ascent":
                axis.fill_between(DRIFTS, low, high, color=color, alpha=0.15, lw=0)
    axis.axhline(NEAR, color="0.6", lw=0.8)
    axis.set(xscale="log", yscale="log", xlabel="drift KL(π$_{old}$‖π$_θ$), nats", ylim=(4e-3, 2))


def _draw_shares(axis, share: xr.DataArray) -> None:
    shades = [sentence_atlas.shade("#6a51a3", level) for level in (0.25, 0.5, 0.75, 1.0)]
    for drift, color in zip(DRIFTS[::2], shades, strict=True):
        for direction, style in (("random", "--"), ("ascent", "-")):
            label = f"{drift:g} nats" if direction == "ascent" else None
            axis.plot(HORIZONS, share.sel(drift=drift, direction=direction), style, color=color, label=label)
    axis.axhline(0.5, color="0.6", lw=0.8)
    axis.set(xlabel="horizon T", ylabel="share of tables", ylim=(-0.03, 1.03))
    axis.set_title("update nearer to ∇J(θ$_{old}$) than to ∇J(θ)", fontsize=9)
    axis.legend(frameon=False, fontsize=8, title="ascent (dashed: random)", title_fontsize=8)
