"""TIC-GRPO's update is an unbiased estimate of the gradient at the current policy.

Claim C2 of arXiv:2508.02833, whose full text was not available. With the trajectory ratio, shift-only and
unclipped, the expected update is (1 - 1/G) ∇J(θ) at every θ; with sigma-normalised advantages and binary
rewards it is c(G, p) ∇J(θ), c = phi_G(p)/(p (1 - p)), p the old policy's success rate. Refuted if either
identity fails by 1e-10 at any horizon from 1 to 8. Qualified by every part of the published method under
which the update is not ∇J(θ): the factor 1 - 1/G, sigma-normalised graded rewards (an angle of more than 0.1
degrees for the median table at some horizon), and a clip (for the median table more than a hundredth away
after a drift of 0.1 nat, at some horizon, shift-only or sigma-normalised).
"""

import jax
import numpy as np
import xarray as xr

from experiments.problems import estimands, trees
from experiments.formulas import expected_updates as closed
from experiments.formulas.expected_updates import CLIP_NAMES, CLIPS, DIRECTIONS
from experiments.verdict import Number, judge, worst
from grpo_jax.sequences import Sequences
from grpo_jax.theory import phi

CLAIM = "C2"
PAPER = "C"
PRECISION = "float64"

HORIZONS = np.arange(1, 9)
LONGEST = Sequences(vocab=2, horizon=8)
DRIFTS = np.array([0.001, 0.01, 0.1, 1.0])
"""KL(π_old‖π_θ) over whole sequences, nats."""
KINDS = ("binary", "graded")
ADVANTAGES = ("shift-only", "σ-normalised")
GROUP, FOUR = 8, 4
"""Of the closed form, and of the groups that the identities go through one by one."""
FEW = 4
"""Tables of those identities."""
COLORS = dict(zip(CLIPS, ("#222222", "#d95f02", "#e7298a", "#1b9e77", "#7570b3"), strict=True))
SIZES = {"smoke": 16, "quick": 200, "full": 1000}


def factor(rate: np.ndarray, normalized: bool, group_size: int) -> np.ndarray:
    """[R] what the update is of ∇J(θ): 1 - 1/G, or c(G, p) for rewards 0 and 1."""
    if not normalized:
        return np.full(rate.shape, 1 - 1 / group_size)
    return np.asarray(phi(rate, group_size=group_size)) / (rate * (1 - rate))


def through_every_group(root: int, horizon: int, kind: str) -> list[float]:
    """[advantage] largest deviation of the library's update from its formula, after drifts of 0.1 nat."""
    given = trees.problem(root, Sequences(vocab=2, horizon=horizon), tables=FEW, kind=kind)
    long = estimands.embedded(given, LONGEST)
    problem = estimands.made(LONGEST, long.logits, long.table)
    rate = closed.success_rate(given)
    residual = []
    for normalized, direction in ((False, "ascent"), (True, "random")):
        params = closed.drifted(given, closed.direction(given, direction), 0.1)
        wide = estimands.widened(params, LONGEST)
        method = estimands.method(
            trajectory=np.ones(FEW), normalized=np.full(FEW, float(normalized)), low=np.inf, high=np.inf
        )
        aim = estimands.candidates(*problem, wide[None], long.logits[None])["gradient at current"]
        moved = estimands.update(problem, method, wide, group_size=FOUR)
        residual.append(float(np.abs(moved - factor(rate, normalized, FOUR) * np.asarray(aim)).max()))
    return residual


def biases(root: int, horizon: int, kind: str, tables: int) -> dict[str, np.ndarray]:
    """[advantage, direction, drift, clip, table] scale along ∇J(θ), distance from it, angle to it, and gap.

    The distance is that of the update over its unclipped factor of ∇J(θ), in units of ‖∇J(θ)‖; the gap
    [advantage, direction, drift, table] the largest difference from that factor of ∇J(θ), without a clip.
    """
    given = trees.problem(root, Sequences(vocab=2, horizon=horizon), tables=tables, kind=kind)
    old, rate, cells = closed.batch(given, group_size=GROUP), closed.success_rate(given), []
    for direction in DIRECTIONS:
        towards = closed.direction(given, direction)
        for kl in DRIFTS:
            at = closed.point(given.space, given.logits, closed.drifted(given, towards, float(kl)))
            aim = closed.candidates(given, at)[1].reshape(-1, tables)
            moved = np.stack([closed.updates(old, at, "TIC-GRPO", clip) for clip in CLIPS])
            moved = moved.reshape(len(CLIPS), 2, -1, tables)
            size, mine = np.sum(aim**2, 0), np.sum(moved**2, 2)
            scale, cross = np.sum(moved * aim, 2) / size, np.sum(moved * aim, 2)
            normal = scale[0, 1] if kind == "graded" else factor(rate, True, GROUP)
            unit = np.stack([factor(rate, False, GROUP), normal])
            error = np.sqrt(np.sum((moved / unit[:, None] - aim) ** 2, 2) / size)
            gap = np.broadcast_to(np.abs(moved[0] - unit[:, None] * aim).max(1), error.shape)
            both = np.sqrt(mine * size)
            cosine = np.where(both > 0, cross / np.where(both > 0, both, 1), 0)
            cells.append([scale, error, np.degrees(np.arccos(np.clip(cosine, -1, 1))), gap])
    parts = np.moveaxis(np.array(cells), 0, 3)  # [what, clip, advantage, place, table]
    parts = np.moveaxis(parts, (2, 1), (1, 3)).reshape(4, 2, len(DIRECTIONS), len(DRIFTS), len(CLIPS), tables)
    found = dict(zip(("scale", "error", "angle", "gap"), parts, strict=True))
    return found | {"gap": found["gap"][..., 0, :], "rate": rate}


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Every horizon, clip, advantage, drift and table, for both kinds of reward."""
    root, tables = int(jax.random.key_data(key)[-1]), SIZES[size]
    residual = [[through_every_group(root, int(t), kind) for t in HORIZONS] for kind in KINDS]
    found = [[biases(root, int(t), kind, tables) for t in HORIZONS] for kind in KINDS]
    axes: dict[str, tuple[str, ...]] = dict.fromkeys(
        ("scale", "error", "angle"),
        ("kind", "horizon", "advantage", "direction", "drift", "clip", "table"),
    )
    axes |= {"gap": ("kind", "horizon", "advantage", "direction", "drift", "table")}
    axes |= {"rate": ("kind", "horizon", "table")}
    return xr.Dataset(
        {name: (dims, np.array([[one[name] for one in row] for row in found])) for name, dims in axes.items()}
        | {"residual": (("kind", "horizon", "advantage"), np.array(residual))},
        {
            "kind": list(KINDS), "horizon": HORIZONS, "advantage": list(ADVANTAGES), "drift": DRIFTS,
            "direction": list(DIRECTIONS), "clip": list(CLIPS),
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """The identities refute; each departure of the published method from them qualifies."""
    plain = data.sel(clip="none")
    binary, shift = {"advantage": ADVANTAGES[1], "kind": "binary"}, {"advantage": ADVANTAGES[0]}
    turned = plain.angle.sel(advantage=ADVANTAGES[1], kind="graded").median("table")
    far = data.error.sel(drift=0.1).median("table").max("direction")
    numbers = {
        "shift-only, (1 - 1/G) ∇J(θ), every group": worst(
            data.residual.sel(shift), expected=0, tolerance=1e-10
        ),
        "normalised, binary, c(G, p) ∇J(θ), every group": worst(
            data.residual.sel(binary), expected=0, tolerance=1e-10
        ),
        "shift-only, every table": worst(data.gap.sel(shift), expected=0, tolerance=1e-10),
        "normalised, binary, every table": worst(data.gap.sel(binary), expected=0, tolerance=1e-10),
        "factor, shift-only": Number(float(plain.scale.sel(shift).mean()), expected=1, tolerance=1e-10),
        "angle to ∇J(θ), normalised, graded, degrees": Number(
            float(turned.max()), expected=0.1, relation="at most"
        ),
        **{
            f"distance under {CLIP_NAMES[clip]}": Number(
                float(far.sel(clip=clip).max()), expected=0.01, relation="at most"
            )
            for clip in CLIPS[1:]
        },
    }
    conditions = [
        f"up to the factor 1 - 1/G (G = {GROUP}; leave-one-out removes it)",
        "in direction with two reward levels, or without σ",
        *["without a clip"] * (len(CLIPS) - 1),
    ]
    qualifies = dict(zip(list(numbers)[4:], conditions, strict=True))
    return judge(numbers | _reported(far, turned), refutes=list(numbers)[:4], qualifies=qualifies)


def _reported(far: xr.DataArray, turned: xr.DataArray) -> dict[str, Number]:
    """Distances under every clip, and angles, by horizon."""
    found = {
        f"distance after 0.1 nat under {CLIP_NAMES[clip]}, {advantage}, {kind}, T = {horizon}": Number(
            float(far.sel(clip=clip, advantage=advantage, kind=kind, horizon=horizon))
        )
        for clip in CLIPS[1:]
        for advantage in ADVANTAGES
        for kind in KINDS
        for horizon in (1, 2, 4, 8)
    }
    angles = turned.sel(drift=0.1).max("direction")
    return found | {
        f"angle after 0.1 nat, T = {t}, degrees": Number(float(angles.sel(horizon=t))) for t in HORIZONS
    }


def draw(figure, data: xr.Dataset) -> None:
    """The bias of each clip over drifts and horizons; the scale that σ leaves, and how far it turns."""
    figure.set_size_inches(11, 7)
    axes = figure.subplots(2, 3)
    for axis, horizon in zip(axes[0], (2, 4, 8), strict=True):
        _draw_clips(axis, data.error.sel(kind="graded", advantage=ADVANTAGES[0], horizon=horizon))
        axis.set_title(f"each clip: biased as soon as it acts, T = {horizon}\n(ascent; dashed: random drift)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[0, 0].set_ylabel("‖E[update]/(1 − 1/G) − ∇J(θ)‖ / ‖∇J(θ)‖", fontsize=9)
    _draw_horizons(axes[1, 0], data.error.sel(kind="graded", drift=0.1, direction="ascent"))
    _draw_scale(axes[1, 1], data.sel(horizon=4))
    _draw_angles(axes[1, 2], data.angle.sel(clip="none", kind="graded", drift=0.1))
    for axis in axes.ravel():
        axis.title.set_fontsize(9)
        axis.spines[["top", "right"]].set_visible(False)


def _draw_clips(axis, error: xr.DataArray) -> None:
    for clip in CLIPS[1:]:
        for direction, style in zip(DIRECTIONS, ("--", "-"), strict=True):
            values = error.sel(clip=clip, direction=direction).median("table")
            label = CLIP_NAMES[clip] if direction == "ascent" else None
            axis.plot(DRIFTS, values, style, color=COLORS[clip], marker="o", ms=3, label=label)
    axis.axhline(1, color="0.7", lw=0.8)
    axis.set(xscale="log", xlabel="drift KL(π$_{old}$‖π$_θ$), nats", ylim=(-0.03, 1.8))


def _draw_horizons(axis, error: xr.DataArray) -> None:
    for clip in CLIPS[1:]:
        for advantage, style in zip(ADVANTAGES, ("-", ":"), strict=True):
            values = error.sel(clip=clip, advantage=advantage).median("table")
            axis.plot(HORIZONS, values, style, color=COLORS[clip], marker="o", ms=3)
    axis.axhline(1, color="0.7", lw=0.8)
    axis.set(xlabel="horizon T", ylim=(-0.03, 1.8))
    axis.set_ylabel("‖E[update]/scale − ∇J(θ)‖ / ‖∇J(θ)‖", fontsize=9)
    axis.set_title("the same over horizons, after an ascent of 0.1 nat\n(dotted: σ-normalised)")


def _draw_scale(axis, data: xr.Dataset) -> None:
    rates = np.linspace(0.005, 0.995, 300)
    curve = np.asarray(phi(rates, group_size=GROUP)) / (rates * (1 - rates))
    axis.plot(rates, curve, color="#222222", lw=1.5, label="φ$_G$(p)/(p(1 − p))")
    for kind, color in zip(KINDS, ("#2166ac", "#f4a582"), strict=True):
        here = data.sel(kind=kind, advantage=ADVANTAGES[1], clip="none", direction="ascent", drift=0.1)
        axis.plot(here.rate, here.scale, "o", ms=4, color=color, mew=0, alpha=0.8, label=f"{kind} tables")
    axis.set(xlabel="E$_{old}$[r]", ylim=(0, 5))
    axis.set_ylabel("⟨E[update], ∇J(θ)⟩ / ‖∇J(θ)‖²")
    axis.set_title(f"division by σ: a scale that depends\non the old policy (G = {GROUP}, T = 4)")
    axis.legend(frameon=False, fontsize=8)


def _draw_angles(axis, angle: xr.DataArray) -> None:
    for advantage, color in zip(ADVANTAGES, ("#222222", "#b2182b"), strict=True):
        for direction, style in zip(DIRECTIONS, ("--", "-"), strict=True):
            values = angle.sel(advantage=advantage, direction=direction)
            label = {"shift-only": "A = r − r̄"}.get(advantage, "A = (r − r̄)/σ") if style == "-" else None
            axis.plot(HORIZONS, values.median("table"), style, color=color, marker="o", ms=3, label=label)
            if direction == "ascent":
                low, high = values.quantile([0.1, 0.9], "table")
                axis.fill_between(HORIZONS, low, high, color=color, alpha=0.15, lw=0)
    axis.set(xlabel="horizon T", ylim=(-0.3, 12))
    axis.set_ylabel("angle to ∇J(θ), degrees")
    axis.set_title("graded rewards, no clip, 0.1 nat: division by σ\nturns the update")
    axis.legend(frameon=False, fontsize=8)
