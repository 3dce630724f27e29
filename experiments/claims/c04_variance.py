"""The trajectory ratio's square grows as (1 + χ²)^T, and only a clip that ignores A's sign bounds it.

Claim C4 of arXiv:2508.02833: a trajectory ratio under an upper-only clip has bounded variance. With the same
χ² = Σ π_θ²/π_old − 1 at every prefix, E_old[w²] = (1 + χ²)^T. Refuted if that fails by 1e-10 for T = 1..12,
in closed form or on enumerated trees that drift in random directions, if the variance of sampled gradients is
not within 5 % of the exact one for some ratio and clip at T = 2, 4 or 6, or if an upper-only form that
ignores A's sign does not keep the gradient's variance below (1 + ε)² times the on-policy one at every T.
Qualified if a form that heeds it does not.

The 5 % are twice the half width, 2.5 % at most, that intervals have at this many seeds (99.9 % together): the
interval of a right variance lies within them, and that of a variance wrong by 10 % beyond them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from experiments.problems.trees import Blend, LengthPower
from experiments.verdict import CONFIDENCE, Number, judge, mean, worst
from grpo_jax import train
from grpo_jax.collectors import Sampled
from grpo_jax.config import Config, Loop, TrainState
from grpo_jax.methods import SHIFT
from grpo_jax.part import aligned
from grpo_jax.parts.gains import Clip, Gain, Truncated, TruncatedScore
from grpo_jax.parts.ratios import SequenceMean
from grpo_jax.policies import TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import Method
from grpo_jax.tasks import SequenceTable
from grpo_jax.theory import variance

CLAIM = "C4"
PAPER = "C"
PRECISION = "float64"

OLD = np.array([0.3, 0.4, 0.3])
DRIFTS = {
    "towards winners": (1.0, 0.0, -1.0),
    "towards neither": (0.5, -1.0, 0.5),
    "towards losers": (-1.0, 0.0, 1.0),
}
CHI2 = np.array([0.02, 0.1, 0.3])
HORIZONS = np.arange(1, 13)
HIGH, GROUP = 0.2, 8
CAP = (1 + HIGH) ** 2
SIGNED = ("two-sided", "upper, minimum")
UNSIGNED = ("upper, truncated", "upper, truncated score")
SIZES = {"smoke": (8, 28, (2,)), "quick": (64, 28, (2, 4, 6)), "full": (256, 112, (2, 4, 6))}
"""Trees of each kind, chunks of sampled groups, and their horizons."""
CHUNK = 1024
"""Groups drawn at once: their gradients fill some ten megabytes at T = 6."""
MARGIN = 0.05
LABELS = {
    "none": "no clip",
    "two-sided": "two-sided",
    "upper, minimum": "min(wA, min(w, c)A)",
    "upper, truncated": "min(w, c)A",
    "upper, truncated score": "sg[min(w, c)]A log π",
}
COLORS = {
    "none": "#222222",
    "two-sided": "#d95f02",
    "upper, minimum": "#e7298a",
    "upper, truncated": "#1b9e77",
    "upper, truncated score": "#7570b3",
}


def drifted(direction, chi2: float) -> np.ndarray:
    """OLD moved along a direction until it is this far in χ²."""
    direction = np.asarray(direction)
    return OLD + direction * np.sqrt(chi2 / np.sum(direction**2 / OLD))


def winning(horizon: int) -> np.ndarray:
    """[H] reward 1 where token 0 outnumbers token 2, and half the time where they are equal."""
    counts = variance.token_counts(horizon, 3)
    return 0.5 + 0.5 * np.sign(counts[:, 0] - counts[:, 2])


def moments(horizon: int, new: np.ndarray, ratio: str, clip: str) -> tuple[float, float, float, float]:
    """Bias and variance in units of ‖∇J(θ)‖, variance in units of that without drift, and E[c²]."""
    success = winning(horizon)
    target = variance.gradient(new, success, horizon=horizon)
    found = variance.group_estimate(
        OLD, new, success, horizon=horizon, group_size=GROUP, ratio=ratio, clip=clip, low=HIGH, high=HIGH
    )
    gap, size = found.mean - target, variance.inner(target, target, horizon=horizon)
    still = undrifted(horizon).variance
    bias = np.sqrt(variance.inner(gap, gap, horizon=horizon) / size)
    return bias, found.variance / size, found.variance / still, found.second_moment


@functools.cache
def undrifted(horizon: int) -> variance.Estimate:
    """The on-policy estimate, the same for every ratio."""
    return variance.group_estimate(OLD, OLD, winning(horizon), horizon=horizon, group_size=GROUP)


def random_laws(
    rng: np.random.Generator, shape: tuple[int, ...], chi2: float
) -> tuple[np.ndarray, np.ndarray]:
    """Old and new laws [..., 3] at this χ², the direction between them random; by rejection."""
    old, new = np.empty((*shape, 3)), np.full((*shape, 3), -1.0)
    while (missing := (new < 0).any(-1)).any():
        old[missing] = rng.dirichlet(np.full(3, 8.0), missing.sum())
        step = rng.normal(size=(missing.sum(), 3))
        step -= step.mean(-1, keepdims=True)
        new[missing] = old[missing] + step * np.sqrt(chi2 / np.sum(step**2 / old[missing], -1, keepdims=True))
    return old, new


def random_trees(rng: np.random.Generator, trees: int, horizon: int, chi2: float) -> np.ndarray:
    """[trees] E_old[w²] by listing 3^T sequences, with old and new laws of its own at every prefix."""
    value = np.ones((trees, 1))
    for depth in range(horizon):
        old, new = random_laws(rng, (trees, 3**depth), chi2)
        value = (value[:, :, None] * new**2 / old).reshape(trees, -1)
    return value.sum(1)


def sampled_settings(horizons: tuple[int, ...]) -> list[tuple[int, str, str]]:
    """Horizon, ratio and clip: every ratio with three clips at each T, the two other clips at one of them."""
    forms, ratios = tuple(variance.FORMS), variance.RATIOS
    found = [(t, ratio, clip) for t in horizons for ratio in ratios for clip in forms[:3]]
    middle = horizons[len(horizons) // 2]
    return found + [(middle, ratio, clip) for ratio in ratios[:2] for clip in forms[3:]]


def sampled_method(ratio: str, clip: str) -> Method:
    """Shift-only; token and trajectory ratios, and the first three clips, differ in numbers alone."""
    gains: dict[str, Gain] = {
        "upper, truncated": Truncated(high=HIGH),
        "upper, truncated score": TruncatedScore(high=HIGH),
    }
    low, high = HIGH if clip == "two-sided" else np.inf, np.inf if clip == "none" else HIGH
    whole = float(ratio == "trajectory")
    return Method(
        advantage=SHIFT,
        ratio=SequenceMean() if ratio == "length-normalised" else Blend(trajectory=whole),
        gain=gains.get(clip, Clip(low=low, high=high)),
        reduction=LengthPower(power=whole * (clip != "upper, truncated score")),
    )


@jax.jit
def sampled_gradients(config: Config, state: TrainState, theta: jax.Array) -> jax.Array:
    """[1, rows, V, R] the surrogate's gradient at ``theta`` for a group drawn in every run."""
    config = aligned(config)
    batch = Sampled().collect(config, state)
    return jax.grad(lambda p: jnp.sum(Sampled().objective(config, batch, p)[0]))(theta)


def sampled_variance(
    root: int, chunks: int, horizon: int, new: np.ndarray, ratio: str, clip: str
) -> np.ndarray:
    """[seed] squared distance of a sampled gradient, times G/(G − 1), from the exact mean; over its mean."""
    space = Sequences(vocab=3, horizon=horizon)
    tokens, rows = space.support[0], space.offsets[-1]
    table = (tokens == 0).sum(1) > (tokens == 2).sum(1)
    config = Config(
        policy=TreePolicy(space=space, logits=np.broadcast_to(np.log(OLD), (1, rows, 3))),
        task=SequenceTable(space=space, table=table[None].astype(float)),
        method=sampled_method(ratio, clip),
        loop=Loop(group_size=GROUP),
        expectation=Sampled(),
    )
    theta = jnp.broadcast_to(jnp.log(jnp.asarray(new))[:, None], (1, rows, 3, CHUNK))
    state = train.init(config, np.arange(CHUNK), root=root)
    counts = variance.token_counts(horizon, 3)
    success = (counts[:, 0] > counts[:, 2]).astype(float)
    exact = variance.group_estimate(
        OLD, new, success, horizon=horizon, group_size=GROUP, ratio=ratio, clip=clip, low=HIGH, high=HIGH
    )
    kinds = {tuple(kind): row for row, kind in enumerate(variance.prefixes(horizon, 3))}
    nodes = [np.unravel_index(n, (3,) * depth) for depth in range(horizon) for n in range(3**depth)]
    mean_ = exact.mean[
        [kinds[tuple(np.bincount(node, minlength=3)) if len(node) else (0, 0, 0)] for node in nodes]
    ]
    found = []
    for chunk in range(chunks):
        drawn = state._replace(seed=state.seed + jnp.uint32(chunk * CHUNK))
        gradients = np.asarray(sampled_gradients(config, drawn, theta))[0] * GROUP / (GROUP - 1)
        found.append(np.sum((gradients - mean_[..., None]) ** 2, (0, 1)))
    return np.concatenate(found) / exact.variance


def simulate(key, size: str) -> xr.Dataset:
    """Exact moments for every horizon, drift, ratio and clip; enumerated trees; and sampled groups."""
    trees, chunks, horizons = SIZES[size]
    root = int(jax.random.randint(key, (), 0, 2**31 - 1))
    shape = (len(DRIFTS), len(CHI2), len(variance.RATIOS), len(variance.FORMS), len(HORIZONS), 4)
    table = np.array(
        [
            moments(int(T), drifted(direction, chi2), ratio, clip)
            for direction in DRIFTS.values()
            for chi2 in CHI2
            for ratio in variance.RATIOS
            for clip in variance.FORMS
            for T in HORIZONS
        ]
    ).reshape(shape)
    dims = ("drift", "chi2", "ratio", "clip", "horizon")
    rng = np.random.default_rng(root)
    enumerated = np.array([[random_trees(rng, trees, int(T), chi2) for T in HORIZONS[:6]] for chi2 in CHI2])
    away = drifted(DRIFTS["towards losers"], 0.1)
    settings = sampled_settings(horizons)
    sampled = np.array([sampled_variance(root, chunks, t, away, *rest) for t, *rest in settings])
    return xr.Dataset(
        {
            "bias": (dims, table[..., 0]),
            "variance": (dims, table[..., 1]),
            "relative": (dims, table[..., 2]),
            "moment": (dims, table[..., 3]),
            "enumerated": (("chi2", "depth", "tree"), enumerated),
            "sampled": (("setting", "seed"), sampled),
        },
        coords={
            "drift": list(DRIFTS), "chi2": CHI2, "ratio": list(variance.RATIOS), "clip": list(variance.FORMS),
            "horizon": HORIZONS, "depth": HORIZONS[:6], "seed": np.arange(sampled.shape[1]),
            "setting": [f"{ratio} ratio, {clip}, T = {t}" for t, ratio, clip in settings],
        },
    )  # fmt: skip


def growth(data: xr.Dataset, clip: str, drift: str, chi2: float) -> float:
    """Rate of log E[c²] over the last four horizons, in units of log(1 + χ²)."""
    moment = data.moment.sel(ratio="trajectory", clip=clip, drift=drift, chi2=chi2)
    return float(np.log(moment.sel(horizon=12) / moment.sel(horizon=8)) / 4 / np.log1p(chi2))


def sampled_numbers(sampled: xr.DataArray) -> dict[str, Number]:
    """Of every setting [setting, seed] the mean, which should be 1; all intervals hold together."""
    together = 1 - (1 - CONFIDENCE) / sampled.sizes["setting"]
    return {
        f"sampled variance / exact, {setting}": mean(
            sampled.sel(setting=setting), expected=1, tolerance=MARGIN, confidence=together
        )
        for setting in sampled.setting.values
    }


def check(data: xr.Dataset):
    """Identities, the sampled check, and under which clip forms the variance stays bounded."""
    expected = variance.trajectory_second_moment(data.chi2.values[:, None], horizon=data.horizon.values)
    closed = data.moment.sel(ratio="trajectory", clip="none") / expected - 1
    listed = data.enumerated / variance.trajectory_second_moment(
        data.chi2.values[:, None, None], horizon=data.depth.values[:, None]
    )
    numbers = {
        "E[w²]/(1 + χ²)^T − 1, closed form": worst(closed, expected=0, tolerance=1e-10),
        "E[w²]/(1 + χ²)^T − 1, enumerated trees": worst(listed, expected=1, tolerance=1e-10),
        "bias of the unclipped trajectory ratio": worst(
            data.bias.sel(ratio="trajectory", clip="none"), expected=0, tolerance=1e-10
        ),
    }
    numbers |= sampled_numbers(data.sampled)
    identities = list(numbers)
    for clip in (*UNSIGNED, *SIGNED):
        moment = data.moment.sel(ratio="trajectory", clip=clip)
        numbers[f"{clip}: largest E[c²]"] = Number(float(moment.max()))
        spread = data["relative"].sel(ratio="trajectory", clip=clip)
        name = f"{clip}: largest variance over on-policy"
        numbers[name] = Number(float(spread.max()), CAP, relation="at most")
    for clip in ("none", *SIGNED):
        for drift in DRIFTS:
            numbers[f"{clip}: growth of log E[c²] per log(1 + χ²), {drift}"] = Number(
                growth(data, clip, drift, 0.1)
            )
    far = data.sel(ratio="trajectory", chi2=0.1, horizon=12)
    for clip in variance.FORMS:
        for drift in ("towards winners", "towards losers"):
            at = far.sel(clip=clip, drift=drift)
            numbers[f"{clip}: bias at T = 12, χ² = 0.1, {drift}"] = Number(float(at.bias))
            name = f"{clip}: variance over on-policy at T = 12, χ² = 0.1, {drift}"
            numbers[name] = Number(float(at.relative))
    words = "where the clip acts on losers too (min(wA, min(w, c)A) never does)"
    refutes = [*identities, *(f"{clip}: largest variance over on-policy" for clip in UNSIGNED)]
    qualifies = {f"{clip}: largest variance over on-policy": words for clip in SIGNED}
    return judge(numbers, refutes=refutes, qualifies=qualifies)


def draw(figure, data: xr.Dataset) -> None:
    """Above: the factor's second moment against T. Below: bias and variance, a line from T = 1 to 12."""
    figure.set_size_inches(10.5, 7.4)
    axes = figure.subplots(2, 3, sharey="row")
    for axis, drift in zip(axes[0], DRIFTS, strict=True):
        _draw_growth(axis, data, drift)
    for axis, ratio in zip(axes[1], variance.RATIOS, strict=True):
        _draw_plane(axis, data.sel(drift="towards losers", chi2=0.1, ratio=ratio))
        axis.set_title(f"{ratio} ratio, towards losers, χ² = 0.1", fontsize=9)
    axes[0, 0].set_ylabel("E$_{old}$[c²], c the factor of A∇log π")
    axes[1, 0].set_ylabel("variance / variance on-policy")
    handles = [Line2D([], [], color=color, lw=2, label=LABELS[clip]) for clip, color in COLORS.items()]
    figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower center", ncols=5)


def _draw_growth(axis, data: xr.Dataset, drift: str) -> None:
    for clip, color in COLORS.items():
        for chi2, style in zip(CHI2[1:], ("-", "--"), strict=True):
            moment = data.moment.sel(ratio="trajectory", clip=clip, drift=drift, chi2=chi2)
            axis.plot(data.horizon, moment, style, color=color, lw=3.5 if clip == "none" else 1.5)
    for chi2 in CHI2[1:]:
        axis.plot(data.horizon, (1 + chi2) ** data.horizon, "o", ms=3, mfc="w", mec="0.3", mew=0.8)
        text = f"(1 + {chi2})$^T$"
        axis.annotate(text, (11, (1 + chi2) ** 11), (-44, 5), textcoords="offset points", fontsize=8.5)
    axis.axhline(CAP, color="0.6", lw=0.8, ls=":")
    axis.annotate("(1 + ε)²", (12.2, CAP), (0, -3), textcoords="offset points", fontsize=8, color="0.4")
    axis.set(yscale="log", ylim=(0.03, 60), xlim=(0.6, 14.4), xlabel="T", xticks=range(2, 13, 2))
    axis.set_title(f"trajectory ratio, drift {drift}", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_plane(axis, data: xr.Dataset) -> None:
    for clip, color in COLORS.items():
        line = data.sel(clip=clip)
        axis.plot(line.bias, line.relative, "-", color=color, lw=3.5 if clip == "none" else 1.3)
        axis.scatter(line.bias, line.relative, s=3 + 2 * data.horizon, color=color, lw=0, zorder=3)
    start, end = (data.sel(clip="none", horizon=T) for T in (1, 12))
    axis.annotate("T = 1", (start.bias, start.relative), (2, -14), textcoords="offset points", fontsize=8)
    axis.annotate("T = 12", (end.bias, end.relative), (7, 5), textcoords="offset points", fontsize=8)
    axis.axhline(1, color="0.6", lw=0.8, ls=":")
    axis.set_xscale("symlog", linthresh=0.1, linscale=0.6)
    axis.set(yscale="log", xlim=(-0.02, 9), xticks=[0, 0.1, 1], xticklabels=["0", "0.1", "1"])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.set_xlabel("bias ‖E ĝ − ∇J(θ)‖ / ‖∇J(θ)‖")
    axis.spines[["top", "right"]].set_visible(False)
