"""AdamW ignores the reward's scale until its epsilon notices.

Claim B3 of arXiv:2601.05002 (Propositions 2, 5, 6): with shift-only advantages and no penalty, rewards times
phi leave AdamW's steps unchanged at eps = 0; with eps > 0 each coordinate's step shrinks by 1/(1 + eps/(phi
sqrt(v))). Refuted if a power-of-two phi changes a single bit at eps = 0 (on finite actions, and on a tree
with shared parameters, in both precisions), if (phi, phi eps) differs from (1, eps), if a corner measured by
training lies more than 5 % from the one predicted out of the recorded second moments, or if the control,
SGD, moves less than 0.1. Qualified if norm clipping that is active at some steps only breaks the invariance.
Reported, as the claim excludes them: a penalty, L2 in the gradient, rounding at eps = 0.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.problems import tree_survival
from experiments.grid import grid
from experiments.verdict import Number, judge, mean, worst
from grpo_jax import train
from grpo_jax.config import Config, Loop
from grpo_jax.methods import SHIFT, grpo
from grpo_jax.optimizers import L2, SGD, AdamW, ClippedNorm, Cosine
from grpo_jax.part import put
from grpo_jax.parts.penalties import K3, Penalty
from grpo_jax.parts.reductions import Constant
from grpo_jax.policies import ActionPolicy
from grpo_jax.surrogate import Method
from grpo_jax.tasks import Questions
from grpo_jax.theory.optimizer import scale_corner

CLAIM = "B3"
PAPER = "B"
PRECISION = "float64"

EPS = np.array([0.0, 1e-15, 1e-8, 1e-5])
RATE, STEPS = 1e-3, 60
DOUBLINGS = np.array([-6, -3, 0, 3, 6])
SIZES = {"smoke": (16, 8), "quick": (128, 2), "full": (512, 1)}
"""Seeds, and doublings between the reward scales from 2^-80 to 2^27."""
INVARIANT = (
    "AdamW",
    "AdamW, weight decay",
    "AdamW, cosine rate",
    "AdamW, always clipped",
    "σ-normalised SGD",
)
BREAKING = ("AdamW, penalty", "AdamW, L2 in gradient", "AdamW, clipped at times", "SGD")
MARGIN = 0.005
"""Total variation below which a policy counts as unchanged."""
CONDITIONS = {"drift: AdamW, clipped at times": "where norm clipping is active always or never"}


def method(*, normalized: bool = False, coef: float = 0.0) -> Method:
    """Shift-only or σ-normalised, constant token weights."""
    advantage = grpo.advantage if normalized else SHIFT
    penalty = Penalty(divergence=K3(), coef=coef)
    return dataclasses.replace(grpo, advantage=advantage, penalty=penalty, reduction=Constant(length=1.0))


def problem(root: int, **changes) -> Config:
    """Four questions of six answers with graded rewards, groups of eight."""
    table = np.random.default_rng(root).uniform(size=(4, 6))
    base = Config(
        policy=ActionPolicy.uniform(contexts=4, actions=6),
        task=Questions(table=table),
        method=method(),
        loop=Loop(group_size=8),
    )
    return dataclasses.replace(base, **changes)


def scaled(config: Config, scale: np.ndarray) -> Config:
    """Rewards times scale [R]."""
    return put(config, "task.scale", jnp.asarray(scale))


@functools.partial(jax.jit, static_argnames=("steps", "moments"))
def trained(config: Config, state: train.TrainState, *, steps: int = STEPS, moments: bool = False):
    """Final parameters, and every step's bias-corrected moments if asked for."""

    def body(state, _):
        state, _ = train.step(config, state, record=())
        seen = (state.opt_state[0].mu, state.opt_state[0].nu) if moments else None
        return state, seen

    after, seen = jax.lax.scan(body, state, length=steps)
    if not moments:
        return after.params, None
    count = jnp.arange(1, steps + 1).reshape(-1, 1, 1, 1)
    return after.params, (seen[0] / (1 - 0.9**count), jnp.sqrt(seen[1] / (1 - 0.999**count)))


def final(config: Config, seeds: np.ndarray, root: int, **options) -> np.ndarray:
    """[C, K, R] parameters after training."""
    return np.asarray(trained(config, train.init(config, seeds, root=root), **options)[0])


def norm(array: np.ndarray) -> np.ndarray:
    return np.sqrt((np.asarray(array) ** 2).sum((0, 1)))


def displacement(root: int, scales: np.ndarray, eps: np.ndarray, seeds: np.ndarray, **changes) -> np.ndarray:
    """[eps, scale, seed] distance that training moves the logits, over that at eps = 0 and scale 1."""
    e, scale, seed = grid(eps, scales, seeds)
    config = scaled(problem(root, optimizer=AdamW(learning_rate=RATE, eps=jnp.asarray(e)), **changes), scale)
    moved = norm(final(config, seed, root)).reshape(len(eps), len(scales), len(seeds))
    return moved / moved[0, np.argmin(abs(np.log(scales)))]


def rounding(root: int, seeds: np.ndarray) -> np.ndarray:
    """[eps, seed] total variation between the policies trained at scales 3 and 1: rounding alone.

    eps is scaled along, so that exact arithmetic would give 0.
    """
    e, scale, seed = grid(EPS, np.array([1.0, 3.0]), seeds)
    config = scaled(problem(root, optimizer=AdamW(learning_rate=0.02, eps=jnp.asarray(e * scale))), scale)
    policy = np.asarray(jax.nn.softmax(final(config, seed, root), axis=1)).reshape(
        4, 6, len(EPS), 2, len(seeds)
    )
    return 0.5 * abs(policy[:, :, :, 1] - policy[:, :, :, 0]).sum(1).mean(0)


def predicted(root: int, scales: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[eps, scale, seed] distance from the moments of the run at eps = 0; and the seeds' median sqrt(v)."""
    config = problem(root, optimizer=AdamW(learning_rate=RATE, eps=0.0))
    _, (m, root_v) = trained(config, train.init(config, seeds, root=root), moments=True)

    @jax.jit
    def distance(shift):
        step = jnp.where(m == 0, 0, m / jnp.where(m == 0, 1, root_v + shift))
        return jnp.sqrt(jnp.sum(jnp.sum(step, 0) ** 2, (0, 1)))

    moved = np.array([[distance(e / scale) for scale in scales] for e in EPS])
    return moved / moved[0, 0], np.median(np.asarray(root_v), (0, 1, 2))


def bit_exact(root: int, seeds: np.ndarray) -> dict[str, float]:
    """Greatest difference that a power-of-two scale makes, at eps = 0 and with eps scaled along."""
    power, seed = grid(np.arange(-40, 21, 5), seeds)
    scale = 2.0**power
    found = {}
    for name, eps, plain in (("eps 0", 0.0 * scale, 0.0), ("eps scaled along", 1e-8 * scale, 1e-8)):
        rate = Cosine(init=0.05, steps=STEPS)
        here = AdamW(learning_rate=rate, eps=jnp.asarray(eps), weight_decay=0.1)
        there = dataclasses.replace(here, eps=jnp.asarray(plain + 0 * scale))
        a = final(scaled(problem(root, optimizer=here), scale), seed, root)
        b = final(scaled(problem(root, optimizer=there), 0 * scale + 1), seed, root)
        found[name] = float(abs(a - b).max())
    return found


def company(root: int, seeds: np.ndarray) -> dict[str, np.ndarray]:
    """Variant -> [doubling, seed] total-variation distance of the trained policy from that at scale 1."""
    power, seed = grid(DOUBLINGS, seeds)

    def distance(optimizer, made: Method) -> np.ndarray:
        config = scaled(problem(root, optimizer=optimizer, method=made), 2.0**power)
        policy = np.asarray(jax.nn.softmax(final(config, seed, root), axis=1))
        policy = policy.reshape(4, 6, len(DOUBLINGS), len(seeds))
        return 0.5 * abs(policy - policy[:, :, [2]]).sum(1).mean(0)

    def adam(*, decay=0.0, end=1.0, clip=1e30, coef=0.0):
        rate = Cosine(init=0.02, steps=STEPS, end=end)
        inner = AdamW(learning_rate=rate, eps=0.0, weight_decay=decay)
        return ClippedNorm(inner=L2(inner=inner, coef=coef), max_norm=clip)

    sgd = SGD(learning_rate=0.1)
    return {
        "AdamW": distance(adam(), method()),
        "AdamW, weight decay": distance(adam(decay=0.5), method()),
        "AdamW, cosine rate": distance(adam(end=0.0), method()),
        "AdamW, always clipped": distance(adam(clip=1e-4), method()),
        "σ-normalised SGD": distance(sgd, method(normalized=True)),
        "AdamW, penalty": distance(adam(), method(coef=0.04)),
        "AdamW, L2 in gradient": distance(adam(coef=0.01), method()),
        "AdamW, clipped at times": distance(adam(clip=0.1), method()),
        "SGD": distance(sgd, method()),
    }


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """The displacement over reward scales, its prediction, bit-exact pairs, what breaks the invariance."""
    root = int(jax.random.key_data(key)[-1])
    count, every = SIZES[size]
    seeds, scales = np.arange(count), 2.0 ** np.arange(-80, 28, every)
    with jax.enable_x64(False):
        single, rounding32 = displacement(root, scales, EPS, seeds), rounding(root, seeds)
        tree = [tree_survival.scale_bits(root, seeds[:16])]
    tree.append(tree_survival.scale_bits(root, seeds[:16]))
    forecast, root_v = predicted(root, scales, seeds)
    variants = company(root, seeds)
    exact = bit_exact(root, seeds[:16])
    constant = problem(root, optimizer=AdamW(eps=1e-8), task=Questions(table=np.ones((4, 6))))
    placebo = final(scaled(constant, np.full(count, 1e8)), seeds, root)
    return xr.Dataset(
        {
            "measured": (("eps", "scale", "seed"), displacement(root, scales, EPS, seeds)),
            "predicted": (("eps", "scale", "seed"), forecast),
            "single": (("eps", "scale", "seed"), single),
            "rounding": (("precision", "eps", "seed"), np.stack([rounding32, rounding(root, seeds)])),
            "root_v": ("seed", root_v),
            "drift": (("variant", "doubling", "seed"), np.stack(list(variants.values()))),
            "bits": ("pair", list(exact.values())),
            "tree": (("precision", "optimizer"), np.stack(tree)),
            "placebo": ("seed", abs(placebo).max((0, 1))),
        },
        coords={
            "eps": EPS, "scale": scales, "seed": seeds, "variant": list(variants), "doubling": DOUBLINGS,
            "pair": list(exact), "precision": ["float32", "float64"],
            "optimizer": list(tree_survival.VARIANTS),
        },
    )  # fmt: skip


def corner(scale: np.ndarray, response: np.ndarray) -> float:
    """The scale at which an increasing response passes one half; NaN if it does not."""
    response = np.asarray(response)
    if not response.min() < 0.5 < response.max():
        return float("nan")
    return float(np.exp(np.interp(0.5, response, np.log(scale))))


def check(data: xr.Dataset):
    """Bits, corners, and the company that AdamW keeps."""
    curves = {name: data[name].mean("seed") for name in ("measured", "predicted", "single")}
    numbers = {
        "change by a power of two, eps 0": Number(float(data.bits.sel(pair="eps 0")), expected=0.0),
        "change of (phi, phi eps)": Number(float(data.bits.sel(pair="eps scaled along")), expected=0.0),
        "response at eps 0": worst(data.measured.sel(eps=0.0), expected=1.0),
        "placebo moves": Number(float(data.placebo.max()), expected=0.0),
    }
    for precision in data.precision.values:
        numbers[f"tree, {precision}: change by 2^-6 and 2^6"] = worst(
            data.tree.sel(precision=precision), expected=0.0
        )
    numbers |= _corners(data, curves)
    for variant in INVARIANT:
        numbers[f"drift: {variant}"] = worst(data.drift.sel(variant=variant), expected=0.0, tolerance=1e-9)
    for variant in BREAKING:
        drift = data.drift.sel(variant=variant).isel(doubling=[0, 4]).mean("doubling")
        numbers[f"drift: {variant}"] = {
            "SGD": mean(drift, expected=0.1, relation="at least"),
            "AdamW, clipped at times": mean(drift, expected=MARGIN, relation="at most"),
        }.get(variant, mean(drift))
    double, single = (data.rounding.sel(precision=name) for name in ("float64", "float32"))
    for eps in (0.0, 1e-8):
        numbers[f"float32, phi = 3, eps {eps:g}: drift"] = mean(single.sel(eps=eps))
    numbers["float64, phi = 3, eps 0: drift"] = mean(double.sel(eps=0.0))
    numbers["float64, phi = 3, eps 1e-08: drift"] = mean(double.sel(eps=1e-8), expected=0.0, tolerance=1e-6)
    intact = (abs(curves["single"].sel(eps=0.0) - 1) < 0.01).values
    numbers["float32, eps 0: least scale with unchanged steps"] = Number(
        float(data.scale.values[intact].min())
    )
    refutes = [
        name for name, number in numbers.items() if number.expected is not None and name not in CONDITIONS
    ]
    return judge(numbers, refutes=refutes, qualifies=CONDITIONS)


def _corners(data: xr.Dataset, curves: dict[str, xr.DataArray]) -> dict[str, Number]:
    numbers = {}
    for eps in EPS[1:]:
        at = {name: corner(data.scale.values, curve.sel(eps=eps).values) for name, curve in curves.items()}
        numbers[f"corner / predicted, eps {eps:g}"] = Number(at["measured"] / at["predicted"], 1.0, 0.05)
        simple = float(scale_corner(root_v=float(data.root_v.median()), eps=eps))
        numbers[f"corner, eps {eps:g}"] = Number(at["measured"])
        numbers[f"corner from the median sqrt(v), eps {eps:g}"] = Number(simple)
    return numbers


def draw(figure, data: xr.Dataset) -> None:
    """The response over scales with its prediction, and what does and does not feel the scale."""
    figure.set_size_inches(10.5, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _draw_response(left, data)
    _draw_company(right, data)


def _draw_response(axes, data: xr.Dataset) -> None:
    colors = dict(zip(EPS, ("#333333", "#1b9e77", "#d95f02", "#7570b3"), strict=True))
    for eps, color in colors.items():
        label = "ε = 0" if eps == 0 else f"ε = 1e{round(np.log10(eps))}"
        axes.plot(data.scale, data.predicted.sel(eps=eps).mean("seed"), color=color, lw=1.4)
        measured = data.measured.sel(eps=eps).mean("seed")
        axes.plot(data.scale, measured, "o", ms=4, mfc="white", color=color, label=label)
        if eps > 0:
            at = float(scale_corner(root_v=float(data.root_v.median()), eps=eps))
            axes.axvline(at, color=color, lw=0.8, ls=":")
    single = data.single.sel(eps=0.0).mean("seed")
    axes.plot(data.scale, single, "x", ms=4, color="#c51b7d", label="float32, ε = 0 (NaN below)")
    line = np.logspace(-4, 0.2, 100)
    axes.plot(line, line, color="0.6", ls="--", lw=1, label="SGD (∝ φ)")
    axes.set(xscale="log", xlim=(1e-24, 3e8), ylim=(-0.04, 1.3), xlabel="reward scale φ")
    axes.set_ylabel("distance trained, relative to φ = 1, ε = 0")
    axes.set_title("Points: trained. Lines: predicted from recorded √v. Dotted: φ = ε/√v", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(0.0, 0.55))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_company(axes, data: xr.Dataset) -> None:
    names = [*INVARIANT, *BREAKING][::-1]
    for row, name in enumerate(names):
        drift = data.drift.sel(variant=name).isel(doubling=[0, 4]).mean("doubling")
        number = mean(drift)
        color = "#1b9e77" if name in INVARIANT else "#d95f02"
        axes.plot([number.low, number.high], [row, row], color=color, lw=3, solid_capstyle="butt")
        axes.plot(number.value, row, "o", color=color, ms=6)
        text = "bit-identical" if float(drift.max()) == 0 else f"{number.value:.2g}"
        axes.annotate(text, (number.value, row), (7, 0), textcoords="offset points", fontsize=8, va="center")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlim=(-0.01, 0.62), ylim=(-0.6, len(names) - 0.4))
    axes.set(xlabel="total variation from the policy at φ = 1")
    axes.set_title("Trained policy under φ = 2⁻⁶ and 2⁶, 99.9 % intervals", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
