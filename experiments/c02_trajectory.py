"""TIC-GRPO's update is an unbiased estimate of the gradient at the current policy.

Claim C2 of arXiv:2508.02833, whose full text was not available. With the trajectory ratio, shift-only and
unclipped, the expected update is (1 - 1/G) ∇J(θ) at every θ; with sigma-normalised advantages and binary
rewards it is c(G, p) ∇J(θ), c = phi_G(p)/(p (1 - p)), p the old policy's success rate. Refuted if either
identity fails by 1e-10. Qualified by every part of the published method under which the update is not ∇J(θ):
the factor 1 - 1/G, sigma-normalised graded rewards (an angle of more than 0.1 degrees for the median table),
and a clip (more than a hundredth away after a drift of 0.1 nat).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments import estimands, trees
from experiments.estimands import DIRECTIONS, TARGETS
from experiments.grid import grid
from experiments.verdict import Number, judge, worst
from grpo_jax.diagnostics import expected_reward
from grpo_jax.parts.gains import Truncated, TruncatedScore
from grpo_jax.sequences import Sequences
from grpo_jax.theory import phi

CLAIM = "C2"
PAPER = "C"
PRECISION = "float64"

SPACE = Sequences(vocab=2, horizon=4)
DRIFTS = np.array([0.001, 0.01, 0.1, 1.0])
"""KL(π_old‖π_θ) over whole sequences, nats."""
KINDS = ("binary", "graded")
GROUP = 8
SHRINK = 1 - 1 / GROUP
HIGH = 0.2
CLIPS = ("none", "two-sided", "upper, minimum", "upper, truncated", "upper, truncated score")
NAMES = {
    "none": "no clip",
    "two-sided": "two-sided",
    "upper, minimum": "min(wA, min(w, c)A)",
    "upper, truncated": "min(w, c)A",
    "upper, truncated score": "sg[min(w, c)]A log π",
}
COLORS = dict(zip(CLIPS, ("#222222", "#d95f02", "#e7298a", "#1b9e77", "#7570b3"), strict=True))
SIZES = {"smoke": 16, "quick": 100, "full": 400}


def method(clip: str, normalized: np.ndarray):
    """The trajectory ratio under one clip; the last two gains are kinds of their own."""
    runs = np.ones(len(normalized))
    if clip == "upper, truncated":
        return estimands.method(trajectory=runs, normalized=normalized, gain=Truncated(high=HIGH))
    if clip == "upper, truncated score":  # the score stands at each token by itself: no 1/|o|
        scored = estimands.method(trajectory=runs, normalized=normalized, gain=TruncatedScore(high=HIGH))
        return dataclasses.replace(scored, reduction=trees.LengthPower(power=0.0))
    low = HIGH if clip == "two-sided" else np.inf
    high = np.inf if clip == "none" else HIGH
    return estimands.method(trajectory=runs, normalized=normalized, low=low * runs, high=high * runs)


def measured(root: int, kind: str, tables: int) -> dict[str, np.ndarray]:
    """Updates under every clip and both advantages, [clip, normalized, direction, drift, table]."""
    given = trees.problem(root, SPACE, tables=tables, kind=kind)
    normalized, ascent, kl, which = grid(np.arange(2.0), np.arange(2), DRIFTS, np.arange(tables))
    params = estimands.drifts(given, which, ascent == 1, kl)
    problem = estimands.made(SPACE, given.logits[..., which], given.table[..., which])
    policy, task = problem
    aim = np.asarray(estimands.candidates(*problem, params[None], policy.logits)[TARGETS[1]])
    found = []
    for clip in CLIPS:
        moved = estimands.update(problem, method(clip, normalized), params, group_size=GROUP)
        scale = np.sum(moved * aim, (0, 1, 2)) / np.sum(aim**2, (0, 1, 2))
        cosine = np.clip(estimands.cosine(moved, aim), -1, 1)
        found.append([scale, estimands.error(moved / SHRINK, aim), np.degrees(np.arccos(cosine))])
    table = np.array(found).reshape(len(CLIPS), 3, 2, 2, len(DRIFTS), tables)
    shape = table.shape[2:]
    rate = np.asarray(expected_reward(policy, task, policy.logits, jnp.arange(1)))
    moved = estimands.update(problem, method("none", normalized), params, group_size=GROUP)
    factor = np.where(normalized == 1, phi(rate, group_size=GROUP) / (rate * (1 - rate)), SHRINK)
    residual = np.abs(moved - factor * aim).max((0, 1, 2)).reshape(shape)
    names = dict(zip(("scale", "error", "angle"), np.moveaxis(table, 1, 0), strict=True))
    return names | {"residual": residual, "rate": rate.reshape(shape)[0, 0, 0]}


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Every clip, advantage, drift and table, for both kinds of reward."""
    root = int(jax.random.key_data(key)[-1])
    found = [measured(root, kind, SIZES[size]) for kind in KINDS]
    runs = ("normalized", "direction", "drift", "table")
    axes: dict[str, tuple[str, ...]] = dict.fromkeys(("scale", "error", "angle"), ("kind", "clip", *runs))
    axes |= {"residual": ("kind", *runs), "rate": ("kind", "table")}
    return xr.Dataset(
        {name: (dims, np.stack([one[name] for one in found])) for name, dims in axes.items()},
        {
            "kind": list(KINDS),
            "clip": list(CLIPS),
            "normalized": [0, 1],
            "direction": list(DIRECTIONS),
            "drift": DRIFTS,
        },
    )


def check(data: xr.Dataset):
    """The identities refute; each departure of the published method from them qualifies."""
    plain = data.sel(clip="none")
    graded = plain.sel(kind="graded", normalized=1)
    clipped = data.error.sel(normalized=0, drift=0.1, kind="graded").median("table").max("direction")
    numbers = {
        "shift-only, (1 - 1/G) ∇J(θ)": worst(data.residual.sel(normalized=0), expected=0, tolerance=1e-10),
        "normalised, binary, c(G, p) ∇J(θ)": worst(
            data.residual.sel(normalized=1, kind="binary"), expected=0, tolerance=1e-10
        ),
        "factor, shift-only": Number(
            float(plain.scale.sel(normalized=0).mean()), expected=1, tolerance=1e-10
        ),
        "angle to ∇J(θ), normalised, graded, degrees": Number(
            float(graded.angle.median("table").max()), expected=0.1, relation="at most"
        ),
    }
    for clip in CLIPS[1:]:
        numbers[f"distance under {clip}"] = Number(
            float(clipped.sel(clip=clip)), expected=0.01, relation="at most"
        )
    conditions = {
        "factor, shift-only": f"up to the factor 1 - 1/G (G = {GROUP}; leave-one-out removes it)",
        "angle to ∇J(θ), normalised, graded, degrees": "in direction with two reward levels, or without σ",
    }
    conditions |= {f"distance under {clip}": "without a clip" for clip in CLIPS[1:]}
    return judge(numbers, refutes=list(numbers)[:2], qualifies=conditions)


def draw(figure, data: xr.Dataset) -> None:
    """The bias of each clip, the scale that σ leaves, and the angle that graded rewards leave."""
    figure.set_size_inches(11, 3.9)
    left, middle, right = figure.subplots(1, 3)
    _draw_clips(left, data.error.sel(kind="graded", normalized=0))
    _draw_scale(middle, data)
    _draw_angles(right, data.angle.sel(clip="none", kind="graded"))


def _draw_clips(axis, error: xr.DataArray) -> None:
    for clip in CLIPS[1:]:
        for direction, style in zip(DIRECTIONS, ("--", "-"), strict=True):
            values = error.sel(clip=clip, direction=direction).median("table")
            label = NAMES[clip] if direction == "ascent" else None
            axis.plot(DRIFTS, values, style, color=COLORS[clip], marker="o", ms=3, label=label)
    axis.axhline(1, color="0.7", lw=0.8)
    axis.set(xscale="log", xlabel="drift KL(π$_{old}$‖π$_θ$), nats", ylim=(0, None))
    axis.set_ylabel("‖E[update]/(1 − 1/G) − ∇J(θ)‖ / ‖∇J(θ)‖")
    axis.set_title("a clip: biased as soon as it acts\n(ascent; dashed: random drift)", fontsize=9)
    axis.legend(frameon=False, fontsize=8)


def _draw_scale(axis, data: xr.Dataset) -> None:
    rates = np.linspace(0.005, 0.995, 300)
    curve = np.asarray(phi(rates, group_size=GROUP)) / (rates * (1 - rates))
    axis.plot(rates, curve, color="#222222", lw=1.5, label="φ$_G$(p)/(p(1 − p))")
    for kind, color in zip(KINDS, ("#2166ac", "#f4a582"), strict=True):
        here = data.sel(kind=kind, normalized=1, clip="none", direction="ascent", drift=0.1)
        axis.plot(here.rate, here.scale, "o", ms=4, color=color, mew=0, alpha=0.8, label=f"{kind} tables")
    axis.set(xlabel="E$_{old}$[r]", ylim=(0, 5))
    axis.set_ylabel("⟨E[update], ∇J(θ)⟩ / ‖∇J(θ)‖²")
    axis.set_title(f"division by σ: a scale that depends\non the old policy (G = {GROUP})", fontsize=9)
    axis.legend(frameon=False, fontsize=8)


def _draw_angles(axis, angle: xr.DataArray) -> None:
    for normalized, color in ((0, "#222222"), (1, "#b2182b")):
        for direction, style in zip(DIRECTIONS, ("--", "-"), strict=True):
            values = angle.sel(normalized=normalized, direction=direction)
            label = ("A = r − r̄", "A = (r − r̄)/σ")[normalized] if direction == "ascent" else None
            axis.plot(DRIFTS, values.median("table"), style, color=color, marker="o", ms=3, label=label)
            if direction == "ascent":
                low, high = values.quantile([0.1, 0.9], "table")
                axis.fill_between(DRIFTS, low, high, color=color, alpha=0.15, lw=0)
    axis.set(xscale="log", xlabel="drift KL(π$_{old}$‖π$_θ$), nats", ylim=(-0.2, 8.5))
    axis.set_ylabel("angle to ∇J(θ), degrees")
    axis.set_title("graded rewards, no clip: division by σ\nturns the update", fontsize=9)
    axis.legend(frameon=False, fontsize=8)
