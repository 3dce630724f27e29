"""ddof 1 and an added constant are another penalty, and every library has its own.

Claim A11 (ours, on arXiv:2502.18548): libraries divide by the sample spread (ddof 1) plus 1e-4, 1e-6, 1e-8 or
1e-9. Without the constant a library's beta acts as the paper's beta sqrt(G/(G-1)); with it the effective beta
depends on the reward gap and, for G > 2, on the policy. Refuted if enumeration of all groups through the
libraries' presets disagrees with these formulas by 1e-9 of the value, or exact ascent with their advantages
ends 1e-6 from the stationary policy that they predict.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib import colormaps
from scipy import stats

from experiments import alignment
from experiments.verdict import Number, judge, worst
from grpo_jax import presets
from grpo_jax.part import leaf_paths
from grpo_jax.parts.advantages import GroupSpread, Normalized
from grpo_jax.surrogate import Method, advantages
from grpo_jax.theory import LIBRARIES, Convention, effective_beta, stationary_binary_convention
from grpo_jax.types import Rollout

CLAIM = "A11"
PAPER = "A"
PRECISION = "float64"

PRESETS = {"trl": presets.trl(), "verl": presets.verl(), "openrlhf": presets.openrlhf(), "paper": Method()}
"""Library -> its method; the fourth convention, of the Dr. GRPO authors, has no preset."""
SIZES = {"smoke": (600, 3), "quick": (1500, 5), "full": (4000, 9)}
"""Iterations of exact ascent, and reward gaps it is done for."""
GROUPS = np.array([2, 3, 4, 8, 16, 64])
GAPS = np.array([1e-6, 1e-4, 1e-3, 1e-2, 1.0])
POLICIES = np.array([0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])
TRAINED, REFERENCE, BETA = (2, 8), 0.2, 0.5
"""Groups, pi_ref of the better answer and penalty of exact ascent."""
GROUP, GAP = 8, 1e-3
"""Where the dependences on gap and on policy are judged."""


_advantages = alignment.light(advantages)


def conditional_gap(method: Method, group: int, gap: float, policies: np.ndarray) -> np.ndarray:
    """[policy] expected advantage of the better answer minus that of the worse, over all groups of this size.

    The preset's own advantage function is asked for each number k of better answers; the other G - 1 members
    of an answer's group are binomial.
    """
    k = np.arange(GROUPS.max() + 1)  # rows beyond the group's size stay empty: one shape for all sizes
    counts = jnp.asarray(np.stack([k, group - k], 1) * (k <= group)[:, None], float)
    zero = np.zeros((k.size, 2, 1))
    rollout = Rollout(
        prompts=jnp.asarray(k),
        tokens=jnp.asarray(zero.astype(int)),
        mask=jnp.asarray(zero + 1),
        rewards=jnp.asarray(zero + np.array([gap, 0.0])[None, :, None]),
        multiplicity=counts,
        sampling_logp=jnp.asarray(zero),
        old_logp=jnp.asarray(zero),
        ref_logp=jnp.asarray(zero),
    )
    better, worse = np.moveaxis(np.asarray(_advantages(method, rollout))[: group + 1, :, 0], 1, 0)
    others = stats.binom.pmf(np.arange(group)[:, None], group - 1, policies)
    return (others * (better[1:] - worse[:-1])[:, None]).sum(0)


def enumerated(methods: Iterable[Method]) -> np.ndarray:
    """[method, group, gap, policy] effective beta over beta, by enumeration through the methods."""
    return np.array(
        [
            [
                [
                    conditional_gap(PRESETS["paper"], int(group), 1.0, POLICIES)
                    / conditional_gap(method, int(group), float(gap), POLICIES)
                    for gap in GAPS
                ]
                for group in GROUPS
            ]
            for method in methods
        ]
    )


def predicted(conventions: list[Convention]) -> np.ndarray:
    """[library, group, gap, policy] effective beta over beta, by formula."""
    return np.array(
        [
            [
                [
                    np.asarray(
                        effective_beta(1.0, POLICIES, gap, group_size=int(group), convention=convention)
                    )
                    for gap in GAPS
                ]
                for group in GROUPS
            ]
            for convention in conventions
        ]
    )


def trained(gaps: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """[group, library, gap] where exact ascent with each library's advantages ends, and what is predicted."""
    leaves = [leaf_paths(method.advantage) for method in PRESETS.values()]
    numbers = [
        [next((v for path, v in found.items() if path.endswith(end)), 0.0) for found in leaves]
        for end in ("scale.ddof", "eps")
    ]
    library, gap = (x.ravel() for x in np.meshgrid(np.arange(len(leaves)), gaps, indexing="ij"))
    ddof, eps = (jnp.asarray(np.asarray(n, float)[library]) for n in numbers)
    made = dataclasses.replace(
        alignment.method(BETA), advantage=Normalized(scale=GroupSpread(ddof=ddof), eps=eps)
    )
    ends, told = [], []
    for group in TRAINED:
        reference = alignment.binary(np.full(gap.shape, REFERENCE))
        config = alignment.problem(
            reference,
            np.stack([gap, 0 * gap]),
            BETA,
            group_size=group,
            method=made,
            optimizer=alignment.steady_rate(BETA),
        )
        ends.append(alignment.ascend(config, gap.size, iterations=iterations)[0])
        told.append(
            [
                stationary_binary_convention(REFERENCE, BETA, g, group_size=group, convention=LIBRARIES[name])
                for name in PRESETS
                for g in gaps
            ]
        )
    shape = (len(TRAINED), len(PRESETS), len(gaps))
    return np.reshape(ends, shape), np.reshape(np.asarray(told), shape)


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Effective penalties by enumeration and by formula, and trained fixed points. Nothing is random."""
    iterations, count = SIZES[size]
    gaps = np.geomspace(1e-5, 1, count)
    ends, told = trained(gaps, iterations)
    axes = ("library", "group", "gap", "policy")
    bare = enumerated([Method(advantage=Normalized(scale=GroupSpread(ddof=1.0)))])[0]
    return xr.Dataset(
        {
            "enumerated": (("preset", *axes[1:]), enumerated(PRESETS.values())),
            "predicted": (axes, predicted(list(LIBRARIES.values()))),
            "without_constant": (axes[1:], bare),
            "trained": (("trained_group", "preset", "trained_gap"), ends),
            "told": (("trained_group", "preset", "trained_gap"), told),
        },
        coords={
            "preset": list(PRESETS),
            "library": list(LIBRARIES),
            "group": GROUPS,
            "gap": GAPS,
            "policy": POLICIES,
            "trained_group": list(TRAINED),
            "trained_gap": gaps,
        },
    )


def _relative_range(x: xr.DataArray) -> float:
    return float((x.max() - x.min()) / x.min())


def check(data: xr.Dataset):
    """Enumeration, ascent and the three statements about the effective beta."""
    formula = data.predicted.sel(library=list(PRESETS)).rename(library="preset")
    at_gap, at_group = data.predicted.sel(library="trl", gap=GAP), {"group": GROUP}
    root = np.sqrt(GROUPS / (GROUPS - 1))[:, None, None]
    numbers = {
        "enumeration over formula": worst(data.enumerated / formula, expected=1, tolerance=1e-9),
        "trained less predicted": worst(data.trained, expected=data.told, tolerance=1e-6),
        "without a constant, over sqrt(G/(G-1))": worst(
            data.without_constant / root, expected=1, tolerance=1e-9
        ),
        "TRL, G = 8, policy ½: spread over gaps": Number(
            _relative_range(data.predicted.sel(library="trl", policy=0.5, **at_group)),
            expected=0,
            tolerance=0.01,
            relation="differs",
        ),
        "TRL, G = 8, gap 1e-3: spread over policies": Number(
            _relative_range(at_gap.sel(**at_group)), expected=0, tolerance=0.01, relation="differs"
        ),
        "TRL, G = 2, gap 1e-3: spread over policies": Number(
            _relative_range(at_gap.sel(group=2)), expected=0, tolerance=1e-9
        ),
    }
    refutes = list(numbers)
    for name in LIBRARIES:
        for gap in (1.0, 1e-3):
            value = data.predicted.sel(library=name, policy=0.5, gap=gap, **at_group)
            numbers[f"beta's factor, {name}, G = 8, gap {gap:g}"] = Number(float(value))
    return judge(numbers, refutes=refutes)


def draw(figure, data: xr.Dataset) -> None:
    """The factor on beta over group size, gap and policy, and where training then settles."""
    figure.set_size_inches(10.5, 7.6)
    (over_group, over_gap), (over_policy, settled) = figure.subplots(2, 2)
    colors = dict(zip(LIBRARIES, ("0.35", "#d95f02", "#1b9e77", "#7570b3", "#e7298a"), strict=True))
    _draw_groups(over_group, data)
    _draw_gaps(over_gap, data, colors)
    _draw_policies(over_policy, data)
    _draw_settled(settled, data, colors)
    for axes in (over_group, over_gap, over_policy, settled):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(9.5)


def _draw_groups(axes, data: xr.Dataset) -> None:
    line = np.geomspace(2, 64, 200)
    axes.plot(line, np.sqrt(line / (line - 1)), color="0.2", lw=1.5, label="√(G/(G−1))")
    shades = colormaps["viridis"](np.linspace(0, 0.85, 4))
    for gap, color in zip((1.0, 1e-2, 1e-3, 3e-4), shades, strict=True):
        factor = [
            float(effective_beta(1.0, 0.5, gap, group_size=int(g), convention=LIBRARIES["trl"]))
            for g in GROUPS
        ]
        axes.plot(GROUPS, factor, "o-", ms=4, lw=0.9, color=color, label=f"TRL, gap {gap:g}")
    axes.set(xscale="log", xticks=GROUPS, xlabel="group size G", ylabel="effective β / β")
    axes.set_xticklabels(map(str, GROUPS))
    axes.minorticks_off()
    axes.set_title("ddof 1 fades with G; the constant does not (policy ½)")
    axes.legend(frameon=False, fontsize=8)


def _draw_gaps(axes, data: xr.Dataset, colors: dict) -> None:
    gaps = np.geomspace(1e-9, 1, 200)
    for name, convention in LIBRARIES.items():
        factor = [float(effective_beta(1.0, 0.5, g, group_size=8, convention=convention)) for g in gaps]
        axes.plot(gaps, factor, color=colors[name], lw=1.6, label=name.replace("_", " "))
        if name in PRESETS:
            points = data.enumerated.sel(preset=name, group=8, policy=0.5)
            axes.plot(GAPS, points, "o", ms=4.5, mfc="white", color=colors[name])
    axes.set(xscale="log", yscale="log", ylim=(0.8, 1e3), xlabel="reward gap", ylabel="effective β / β")
    axes.set_title("Lines: formula. ○ groups of 8 enumerated through the presets")
    axes.legend(frameon=False, fontsize=8)


def _draw_policies(axes, data: xr.Dataset) -> None:
    p = np.linspace(0.001, 0.999, 300)
    shades = colormaps["plasma"](np.linspace(0, 0.85, 4))
    for group, color in zip((2, 4, 8, 64), shades, strict=True):
        factor = effective_beta(1.0, p, GAP, group_size=group, convention=LIBRARIES["trl"])
        axes.plot(p, factor, color=color, lw=1.6, label=f"G = {group}")
        if group in GROUPS:
            points = data.enumerated.sel(preset="trl", group=group, gap=GAP)
            axes.plot(POLICIES, points, "o", ms=4, mfc="white", color=color, clip_on=False)
    axes.set(xlabel="policy's mass on the better answer", ylabel="effective β / β", xlim=(0, 1))
    axes.set_title("TRL at a gap of 0.001: for G > 2 the factor depends on the policy")
    axes.legend(frameon=False, fontsize=8)


def _draw_settled(axes, data: xr.Dataset, colors: dict) -> None:
    gaps = np.geomspace(1e-5, 1, 60)
    group = TRAINED[-1]
    for name in PRESETS:
        line = [
            float(
                stationary_binary_convention(REFERENCE, BETA, g, group_size=group, convention=LIBRARIES[name])
            )
            for g in gaps
        ]
        axes.plot(gaps, line, color=colors[name], lw=1.6, label=name)
        points = data.trained.sel(trained_group=group, preset=name)
        axes.plot(data.trained_gap, points, "o", ms=4.5, mfc="white", color=colors[name])
    axes.axhline(REFERENCE, color="0.6", lw=0.8, ls=":")
    axes.text(1, REFERENCE + 0.01, "reference", fontsize=8, color="0.4", ha="right")
    axes.set(xscale="log", ylim=(0.1, 0.9), xlabel="reward gap", ylabel="trained policy, better answer")
    axes.set_title(f"β = {BETA}, G = {group}: lines predicted, ○ exact ascent")
    axes.legend(frameon=False, fontsize=8, loc="center right")
