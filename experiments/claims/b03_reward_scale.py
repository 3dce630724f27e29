"""The AdamW optimizer makes training largely insensitive to the scale of the reward.

[B] (arXiv:2601.05002), abstract, Propositions 2, 5 and 6, Appendix C.3: rewards times φ multiply advantages,
gradients and Adam's first moment by φ and its second by φ², so that a step does not change at ε = 0 and each
coordinate's shrinks by 1/(1 + ε/(φ√v)) otherwise. Four questions of six answers with graded rewards,
shift-only advantages, constant token weights, no penalty; and a sequence tree with shared parameters.

Refuted if at the default ε = 1e-8 a factor of 64 either way moves a trained policy by more than 0.005 in
total variation (AdamW alone, with weight decay, with a schedule, with clipping at every step: each by
itself); if a power of two changes one bit at ε = 0 (answers, and tree in both precisions); or if the scale at
which half of the way is lost lies more than 5 % from the one predicted out of the recorded second moments.
Qualified by norm clipping that acts at some steps only, where the margin of 0.005 is left. SGD must move by
0.1, rewards that are all equal by nothing, and (φ, φε) must give what (1, ε) gives, which makes all corners
one number: checks of the instrument. Ours: that a KL penalty (the paper has β = 0), L2 in the gradient (which
is not AdamW) and a scale at which ε is felt (the paper's own formula) bring the scale back.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, furthest, interval, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from grpo_jax import plotting
from grpo_jax.measures import View
from grpo_jax.methods import SHIFT, dr_grpo, grpo
from grpo_jax.optimizers import L2, Cosine
from grpo_jax.parts.penalties import K3, Penalty
from grpo_jax.parts.reductions import Constant
from grpo_jax.policies.tree import share_rows
from grpo_jax.tasks import trees
from grpo_jax.theory.optimizer import scale_corner

PRECISION = "float64"
SIZES = sizes(seeds=(16, 128, 512), doublings=(8, 2, 1))

STEPS = 60
EPS = [0.0, 1e-15, 1e-8, 1e-5]
DEFAULT = 1e-8
SMALL = 2.0**-40
"""A scale at which ε = 1e-8 is felt: φ√v is about 1e-14."""
POWERS = [-40, -20, -6, -3, 0, 3, 6, 20]
FACTOR = [-6, 6]
"""Doublings of the rewards by which a policy must not move."""
NEVER = 1e30
KINDS = {
    "AdamW": (DEFAULT, 1.0, 0.0, 0.0, NEVER, 0.0),
    "AdamW, ε = 0": (0.0, 1.0, 0.0, 0.0, NEVER, 0.0),
    "weight decay": (DEFAULT, 1.0, 0.5, 0.0, NEVER, 0.0),
    "weight decay, ε = 0": (0.0, 1.0, 0.5, 0.0, NEVER, 0.0),
    "cosine rate": (DEFAULT, 0.0, 0.0, 0.0, NEVER, 0.0),
    "cosine rate, ε = 0": (0.0, 0.0, 0.0, 0.0, NEVER, 0.0),
    "clipped at every step": (DEFAULT, 1.0, 0.0, 0.0, 1e-4, 0.0),
    "clipped at times": (DEFAULT, 1.0, 0.0, 0.0, 0.1, 0.0),
    "KL penalty": (DEFAULT, 1.0, 0.0, 0.0, NEVER, 0.04),
    "L2 in the gradient": (DEFAULT, 1.0, 0.0, 0.01, NEVER, 0.0),
}
"""ε, end of the cosine schedule, weight decay, coefficient of L2, norm clipped to, KL coefficient."""
CHAIN = ("inner.inner.eps", "end", "weight_decay", "optimizer.inner.coef", "max_norm", "kl_coef")
AT_TIMES = "clipped at times"
BACK = ("KL penalty", "L2 in the gradient")
"""What brings the scale back, and is no part of the paper's sentence."""
INSIDE = "RMSProp, ε = 1e-8 in the root"
OTHERS = {
    "RMSProp": gj.RMSProp(learning_rate=0.02, eps=DEFAULT**2),
    INSIDE: gj.RMSProp(learning_rate=0.02),
    "Lion": gj.Lion(learning_rate=0.02),
    "SGD": gj.SGD(learning_rate=0.1),
}
MARGIN = 0.005
"""Total variation below which a policy counts as unchanged.

RMSProp's ε stands inside the root, √(v + ε): 1e-16 there is what 1e-8 is to AdamW.
"""


@gj.measure("context", "answer", about="logits")
def logits(view: View) -> jax.Array:
    """The policy."""
    return view.params


@gj.measure("context", "answer", about="bias-corrected first moment")
def first(view: View) -> jax.Array:
    """m of AdamW."""
    return view.state.opt_state[0].mu / (1 - 0.9**view.state.step)


@gj.measure("context", "answer", about="root of the bias-corrected second moment")
def root_second(view: View) -> jax.Array:
    """√v of AdamW."""
    return (view.state.opt_state[0].nu / (1 - 0.999**view.state.step)) ** 0.5


def problem(root: int, optimizer: Any, *, normalized: bool = False) -> gj.Config:
    """Four questions of six answers with graded rewards, groups of eight."""
    made = dataclasses.replace(
        grpo,
        advantage=grpo.advantage if normalized else SHIFT,
        penalty=Penalty(divergence=K3(), coef=0.0),
        reduction=Constant(length=1.0),
    )
    return gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=4, actions=6),
        task=gj.Questions(table=np.random.default_rng(root).uniform(size=(4, 6))),
        method=made,
        optimizer=optimizer,
        loop=gj.Loop(group_size=8),
    )


def swept(root: int, size: Any, config: gj.Config, axes: Any, **options: Any) -> xr.Dataset:
    """The policies that training ends with, and their logits."""
    found = gj.sweep(
        config, axes, seeds=size.seeds, iterations=STEPS, root=root, record_every=STEPS,
        record=["probabilities"], measure={"logits": logits}, progress=False, **options,
    )  # fmt: skip
    return labelled(found.isel(iteration=0, drop=True))


def labelled(found: xr.Dataset) -> xr.Dataset:
    """Short names for the dimensions; of settings that are zipped the names alone."""
    zipped = {
        dim: [c for c in found.coords if c in str(dim).split("+")] for dim in found.dims if "+" in str(dim)
    }
    found = found.drop_vars([name for names in zipped.values() for name in names])
    names = {"+".join(CHAIN): "kind", "reward_scale+optimizer.eps": "scale", "reward_scale": "scale"}
    return found.rename({old: new for old, new in names.items() if old in found.dims})


def distance(root: int, size: Any, eps: list[float]) -> xr.DataArray:
    """How far training moves the logits, over that at ε = 0 and φ = 1."""
    scales = 2.0 ** np.arange(-80, 28, size.doublings)
    config = problem(root, gj.AdamW(learning_rate=1e-3, eps=0.0))
    ended = swept(root, size, config, {"optimizer.eps": eps, "reward_scale": scales}).logits
    moved = np.sqrt((ended**2).sum(["context", "answer"]))
    moved = moved.rename({"optimizer.eps": "eps"})
    return moved / moved.sel(eps=0.0, scale=1.0)


def predicted(root: int, size: Any, scales: xr.DataArray) -> xr.Dataset:
    """The same from the moments of the run at ε = 0 and φ = 1; and the runs' median √v."""
    config = problem(root, gj.AdamW(learning_rate=1e-3, eps=0.0))
    seen = gj.sweep(
        config, seeds=size.seeds, iterations=STEPS, root=root, record=[],
        measure={"first": first, "root": root_second}, progress=False,
    )  # fmt: skip
    moves = seen.first != 0

    def moved(shift: float) -> xr.DataArray:
        step = (seen.first / (seen.root + shift).where(moves, 1.0)).where(moves, 0.0)
        return np.sqrt((step.sum("iteration") ** 2).sum(["context", "answer"]))

    rows = [xr.concat([moved(e / s) for s in scales.values], scales) for e in EPS]
    ways = xr.concat(rows, xr.Variable("eps", EPS))
    middle = seen.root.median(["iteration", "context", "answer"])
    return xr.Dataset({"distance": ways / ways.sel(eps=0.0, scale=1.0), "root_v": middle})


def drift(policies: xr.DataArray) -> xr.DataArray:
    """Total variation from the policy trained at φ = 1, mean over questions."""
    return 0.5 * abs(policies - policies.sel(scale=1.0)).sum("output").mean("context")


def company(root: int, size: Any) -> dict[str, xr.Dataset]:
    """AdamW with what comes with it, other optimizers, and σ-normalised advantages, over scales."""
    rate = Cosine(init=0.02, steps=STEPS, end=1.0)
    chain = gj.ClippedNorm(inner=L2(inner=gj.AdamW(learning_rate=rate)))
    scales = {"reward_scale": 2.0 ** np.array(POWERS)}
    found = swept(root, size, problem(root, chain), {CHAIN: KINDS, **scales})
    bits = abs(found.logits - found.logits.sel(scale=1.0)).max(["context", "answer", "scale"])
    plain = problem(root, OTHERS["SGD"])
    others = swept(root, size, plain, scales, variants={"optimizer": OTHERS})
    normal = swept(root, size, problem(root, OTHERS["SGD"], normalized=True), scales)
    return {
        "kinds": xr.Dataset({"drift": drift(found.probabilities), "bits": bits}),
        "others": xr.Dataset({"drift": drift(others.probabilities)}),
        "normalized": xr.Dataset({"drift": drift(normal.probabilities)}),
    }


def along(root: int, size: Any, eps: float, *, equal: bool = False) -> xr.Dataset:
    """What a scale φ together with φε changes against (1, ε); ``equal``: where all rewards are equal."""
    config = problem(root, gj.AdamW(learning_rate=0.02))
    if equal:
        config = dataclasses.replace(config, task=gj.Questions(table=np.ones((4, 6))))
    axis = {phi: (phi, phi * eps) for phi in (2.0**-30, 1.0, 3.0, 2.0**20)}
    found = swept(root, size, config, {("reward_scale", "optimizer.eps"): axis})
    return xr.Dataset({
        "drift": drift(found.probabilities),
        "moved": abs(found.logits).max(["context", "answer"]),
        "bits": abs(found.logits - found.logits.sel(scale=1.0)).max(["context", "answer"]),
    })  # fmt: skip


def on_a_tree(root: int, size: Any) -> xr.DataArray:
    """Greatest change of a logit by 2^-6 and 2^6 at ε = 0, on a tree whose two contexts share parameters."""
    space = trees.free_length(vocab=3, horizon=4)
    tie = share_rows(space, lambda prefix: (len(prefix), prefix[1:]))
    table = np.random.default_rng(0).normal(size=(2, max(tie) + 1, space.vocab))
    adam = gj.AdamW(learning_rate=Cosine(init=0.02, steps=60.0), eps=0.0)
    config = gj.Config(
        policy=gj.TreePolicy(space=space, logits=table, tie=tie),
        task=trees.tabulated(space, lambda y: y[0] == 0, lambda y: 0.5 * (y[0] == 1) + 0.1 * len(y)),
        method=dataclasses.replace(dr_grpo, penalty=None),
        optimizer=gj.ClippedNorm(inner=adam),
        loop=gj.Loop(group_size=8, inner_steps=2),
    )
    kinds = {
        "plain": (0.0, 1.0, NEVER),
        "weight decay": (0.5, 1.0, NEVER),
        "cosine rate": (0.0, 0.0, NEVER),
        "clipped at every step": (0.0, 1.0, 1e-5),
    }

    @gj.measure("context", "node", "token", about="logits")
    def parameters(view: View) -> jax.Array:
        return view.params

    found = gj.sweep(
        config, {("weight_decay", "end", "max_norm"): kinds, "reward_scale": [2.0**-6, 1.0, 2.0**6]},
        seeds=min(size.seeds, 16), iterations=30, root=root, record_every=30, record=[],
        measure={"parameters": parameters}, progress=False,
    ).parameters.rename({"weight_decay+end+max_norm": "kind"})  # fmt: skip
    apart = abs(found - found.sel(reward_scale=1.0)).drop_vars(["weight_decay", "end", "max_norm"])
    return apart.max(["iteration", "context", "node", "token", "reward_scale"])


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """The way trained over reward scales with its prediction, what keeps and what breaks the invariance."""
    double = distance(seed, size, EPS)
    forecast = predicted(seed, size, double.scale)
    scaled = xr.concat([along(seed, size, e) for e in (0.0, DEFAULT)], xr.Variable("eps", [0.0, DEFAULT]))
    tree = [on_a_tree(seed, size)]
    equal = along(seed, size, DEFAULT, equal=True)
    with jax.enable_x64(False):
        single = distance(seed, size, [0.0])
        rounded = along(seed, size, DEFAULT)
        tree.append(on_a_tree(seed, size))
    return company(seed, size) | {
        "response": xr.Dataset(
            {"measured": double, "predicted": forecast.distance, "root_v": forecast.root_v}
        ),
        "single": xr.Dataset({"measured": single.sel(eps=0.0, drop=True), "drift": rounded.drift}),
        "along": scaled,
        "equal": equal,
        "tree": xr.Dataset({"bits": xr.concat(tree, xr.Variable("precision", ["float64", "float32"]))}),
    }


def corner(curve: xr.DataArray) -> float:
    """The scale at which an increasing response passes one half; NaN if it does not."""
    if not curve.min() < 0.5 < curve.max():
        return float("nan")
    return float(np.exp(np.interp(0.5, curve, np.log(curve.scale))))


def felt(found: xr.DataArray) -> Number:
    """Of a factor of 64 either way, the one that moves the policy more."""
    return furthest(found.sel(scale=[2.0**power for power in FACTOR]), tolerance=MARGIN)


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Trained policies and bits, corners, conditions; controls."""
    kinds, response, single = data["kinds"], data["response"], data["single"]
    claim.requires("equal rewards times 2^20 move a logit by", worst(data["equal"].moved))
    claim.requires("(φ, φε) - (1, ε), powers of two", worst(data["along"].bits.drop_sel(scale=3.0)))
    claim.requires(
        "(φ, φε) against (1, ε), φ = 3: drift", worst(data["along"].drift.sel(scale=3.0), tolerance=1e-6)
    )
    sgd = data["others"].drift.sel(optimizer="SGD", scale=2.0 ** np.array(FACTOR)).mean("scale")
    claim.requires("control, SGD: drift", mean(sgd, expected=0.1, relation="at least"))
    claim.requires("σ-normalised advantages, SGD: drift", worst(data["normalized"].drift, tolerance=1e-9))
    exact = [name for name in KINDS if "ε = 0" in name]
    kept = [name for name in KINDS if name not in (AT_TIMES, *BACK, *exact)]
    moves = {name: felt(kinds.drift.sel(kind=name)) for name in KINDS}
    for name in kept:
        claim.refutes(f"{name}: drift under φ = 2^±6", moves[name])
    for name in exact:
        claim.refutes(f"{name}: change of a logit by a power of two", worst(kinds.bits.sel(kind=name)))
    claim.refutes("response at ε = 0, φ = 2^-80 to 2^26", worst(response.measured.sel(eps=0.0), expected=1.0))
    for precision in data["tree"].precision.values:
        bits = data["tree"].bits.sel(precision=precision)
        claim.refutes(f"tree, {precision}, ε = 0: change of a logit by 2^±6", worst(bits))
    corners = {e: judge_corner(response, e, claim) for e in EPS[1:]}
    words = "where norm clipping is active always or never"
    claim.qualifies(f"{AT_TIMES}: drift under φ = 2^±6", moves[AT_TIMES], only=words)
    for name, found in (("float32", single), ("float64", data["along"].sel(eps=DEFAULT))):
        claim.reports(f"{name}: drift by rounding under φ = 3", mean(found.drift.sel(scale=3.0)))
    intact = abs(single.measured.mean("seed") - 1) < 0.01
    claim.reports(
        "float32, ε = 0: least scale with unchanged steps", Number(float(intact.scale.where(intact).min()))
    )
    claim.finds(
        "AdamW trains the same policy whether rewards are multiplied by 1/64, 1 or 64; at ε = 1e-8, the "
        f"default, half of the way is lost only where they are multiplied by {corners[DEFAULT][0]:.0e}, "
        f"as √v is about {float(response.root_v.median()):.2g} here.",
        when=[corners[DEFAULT][1], *(moves[name] for name in kept)],
    )
    claim.finds(
        f"Norm clipping that acts at some steps only moves the policy by {moves[AT_TIMES].value:.3f}.",
        when=moves[AT_TIMES].holds is False,
    )
    back = claim.ours(
        "A KL penalty, L2 in the gradient and a scale at which ε is felt bring the reward's scale back."
    )
    for name in BACK:
        number = dataclasses.replace(moves[name], relation="differs")
        back.refutes(f"{name}: drift under φ = 2^±6", number)
        back.finds(f"{name}: a factor of 64 moves the policy by {number.value:.2f}.", when=number)
    slow = mean(response.measured.sel(eps=DEFAULT, scale=SMALL), expected=0.5, relation="at most")
    back.refutes("ε = 1e-8: way trained at φ = 2^-40 against φ = 1", slow)
    row = claim.ours("RMSProp and Lion are as insensitive to the reward's scale as AdamW.")
    for name in OTHERS:
        number = felt(data["others"].drift.sel(optimizer=name))
        (row.reports if name in ("SGD", INSIDE) else row.refutes)(f"{name}: drift under φ = 2^±6", number)
        if number.holds is False:
            row.finds(f"{name} feels a factor of 64 in the reward: its policy moves by {number.value:.2f}.")


def judge_corner(response: xr.Dataset, eps: float, claim: Claim) -> tuple[float, Number]:
    """Where half of the way is lost: measured, predicted from every step's √v, and from their median.

    By (φ, φε) and (1, ε) all ε are one number, so that the default's judges and the others check.
    """
    at, told = (corner(response[name].sel(eps=eps).mean("seed")) for name in ("measured", "predicted"))
    number = Number(at / told, 1.0, 0.05)
    role = claim.refutes if eps == DEFAULT else claim.requires
    role(f"ε = {eps:g}: scale of half the way, measured / predicted", number)
    claim.reports(f"ε = {eps:g}: scale of half the way", Number(at))
    simple = float(scale_corner(root_v=float(response.root_v.median()), eps=eps))
    claim.reports(f"ε = {eps:g}: ε over the median √v", Number(simple))
    return at, number


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """The way trained over the reward's scale, measured and predicted; and what brings the scale back."""
    figure.set_size_inches(7, 3.4)
    (axes, right), response = plotting.panels(figure, 1, 2), data["response"]
    for eps, color in zip(EPS, ("#222222", *plotting.COLORS), strict=False):
        runs = interval(response.measured.sel(eps=eps))
        label = "ε = 0" if eps == 0 else f"ε = 1e{np.log10(eps):.0f}"
        plotting.points(axes, runs.scale, runs.value, runs.low, runs.high, color=color, label=label)
        plotting.theory(
            axes, runs.scale, response.predicted.sel(eps=eps).mean("seed"), label=None, color=color
        )
    slope = np.geomspace(1e-4, 1.3, 60)
    plotting.theory(axes, slope, slope, label="SGD: ∝ φ", color="0.5", linestyle="--")
    axes.legend(loc="upper left", ncols=3, columnspacing=0.8)
    axes.set(
        xscale="log",
        xticks=[1e-20, 1e-14, 1e-8, 1e-2, 1e4],
        ylim=(-0.03, 1.45),
        xlabel="reward scale φ",
        ylabel="way trained, relative to φ = 1, ε = 0",
    )
    axes.set_title("AdamW does not see the scale until ε does\n(points: trained; lines: from recorded √v)")
    drifts = data["kinds"].drift.sel(scale=[2.0**power for power in FACTOR]).max("scale")
    shown = [name for name in KINDS if "ε = 0" not in name]
    rows = {name: interval(drifts.sel(kind=name)) for name in shown}
    rows["SGD"] = interval(
        data["others"].drift.sel(optimizer="SGD", scale=[2.0**power for power in FACTOR]).max("scale")
    )
    plotting.intervals(right, rows)
    right.set(xlabel="total variation by a factor of 64 either way")
    right.set_title("What brings the scale back")
