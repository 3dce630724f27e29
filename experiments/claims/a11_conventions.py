"""Ours: dividing by the sample spread (ddof 1) plus a constant, as libraries do, is another
penalty. Without the constant β acts as β√(G/(G − 1)); with it the factor depends on the gap of the rewards
and, for groups of more than two, on the policy.

On [A] (arXiv:2502.18548v3), (11), with two answers and certain rewards. TRL adds 1e-4, verl 1e-6, the authors
of Dr. GRPO 1e-8 and OpenRLHF 1e-9; the paper adds nothing and takes ddof 0. The factor is the ratio of the
drives towards the better answer, enumerated over all groups through the advantages of the libraries' presets
(the third has no preset), which the test suite holds against the libraries' own numbers.

Refuted if the enumeration leaves the formulas by 1e-9 of the value, if the factor without a constant is not
√(G/(G − 1)), if TRL's factor at G = 8 does not differ by 0.01 over gaps and over policies or does over
policies at G = 2, or if exact ascent with the presets' ddof and constant ends 1e-6 from the policy predicted.
Nothing is random.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy import stats

import grpo_jax as gj
from experiments.harness.numbers import Number, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import method, question
from grpo_jax import plotting, presets
from grpo_jax.part import leaf_paths
from grpo_jax.parts.advantages import GroupSpread, Normalized
from grpo_jax.surrogate import Method, advantages
from grpo_jax.theory import LIBRARIES, effective_beta, stationary_binary_convention
from grpo_jax.types import Rollout

PRECISION = "float64"
SIZES = sizes(
    iterations=(600, 1500, 4000),
    gaps=([1e-5, 1e-3, 1.0], [1e-5, 1e-4, 1e-3, 1e-2, 1.0], list(np.geomspace(1e-5, 1, 11))),
)
"""Iterations of exact ascent, and reward gaps it is done for."""

PRESETS = {"paper": Method(), "trl": presets.trl(), "verl": presets.verl(), "openrlhf": presets.openrlhf()}
"""Library -> its method."""
BARE = "ddof 1, nothing added"
METHODS = PRESETS | {BARE: Method(advantage=Normalized(scale=GroupSpread(ddof=1.0)))}
GROUPS = [2, 3, 4, 8, 16, 64]
GAPS = [1e-6, 1e-4, 1e-3, 1e-2, 1.0]
POLICIES = [0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999]
TRAINED, REFERENCE, BETA = [2, 8], 0.2, 0.5
"""Groups, π_ref of the better answer and penalty of exact ascent."""
GROUP, GAP = 8, 1e-3
"""Where the dependences on gap and on policy are judged."""


def drive(made: Method, group: int) -> xr.DataArray:
    """Expected advantage [gap, policy] of the better answer less that of the worse, over all groups.

    The method's own advantages are asked for each number of better answers, of which the other G - 1 members
    of an answer's group hold a binomial number.
    """
    counts = np.arange(GROUPS[-1] + 1)  # one shape for all sizes
    gap, better = (x.ravel() for x in np.meshgrid(GAPS, counts, indexing="ij"))
    zero = np.zeros((gap.size, 2, 1))
    rollout = Rollout(
        prompts=jnp.arange(gap.size),
        tokens=jnp.asarray(zero.astype(int)),
        mask=jnp.asarray(zero + 1),
        rewards=jnp.asarray(zero + np.stack([gap, 0 * gap], 1)[:, :, None]),
        multiplicity=jnp.asarray(np.stack([better, group - better], 1) * (better <= group)[:, None], float),
        sampling_logp=jnp.asarray(zero),
        old_logp=jnp.asarray(zero),
        ref_logp=jnp.asarray(zero),
    )
    found = xr.DataArray(np.asarray(advantages(made, rollout)).squeeze(-1), dims=("row", "answer"))
    found = found.assign_coords(gap=("row", gap), better=("row", better))
    found = found.set_index(row=["gap", "better"]).unstack("row")
    ours = found.isel(answer=0, better=slice(1, group + 1)).assign_coords(better=range(group))
    theirs = found.isel(answer=1, better=slice(0, group))
    others = stats.binom.pmf(np.arange(group)[:, None], group - 1, POLICIES)
    return (ours - theirs).dot(xr.DataArray(others, {"better": range(group), "policy": POLICIES}))


def enumerated() -> xr.DataArray:
    """Factor on β [group, preset, gap, policy], by enumeration through the methods."""

    def factors(group: int) -> xr.DataArray:
        paper = drive(PRESETS["paper"], group).sel(gap=1.0, drop=True)
        found = [paper / drive(made, group) for made in METHODS.values()]
        return xr.concat(found, xr.Variable("preset", list(METHODS)))

    return xr.concat([factors(group) for group in GROUPS], xr.Variable("group", GROUPS))


def predicted() -> xr.DataArray:
    """Factor on β [library, group, gap, policy], by formula."""
    found = [
        [
            [np.asarray(effective_beta(1.0, np.array(POLICIES), a, group_size=g, convention=c)) for a in GAPS]
            for g in GROUPS
        ]
        for c in LIBRARIES.values()
    ]
    coords = {"library": list(LIBRARIES), "group": GROUPS, "gap": GAPS, "policy": POLICIES}
    return xr.DataArray(np.asarray(found), coords)


def constants(name: str) -> tuple[float, float]:
    """A preset's ddof and what it adds."""
    leaves = leaf_paths(PRESETS[name].advantage)
    ddof, added = (
        next((float(value) for path, value in leaves.items() if path.endswith(end)), 0.0)
        for end in ("scale.ddof", "eps")
    )
    return ddof, added


def trained(gaps: np.ndarray, iterations: int) -> xr.DataArray:
    """Policy [group, preset, gap] where exact ascent with each preset's ddof and constant ends."""
    advantage = Normalized(scale=GroupSpread(ddof=0.0), eps=0.0)
    config = question(
        [1.0, 0.0], group_size=2, reference=[REFERENCE, 1 - REFERENCE], optimizer=gj.SGD(learning_rate=2.0),
        method=dataclasses.replace(method(), advantage=advantage),
    )  # fmt: skip
    axes = {
        ("advantage.scale.ddof", "advantage.eps"): {name: constants(name) for name in PRESETS},
        "task.table": {float(gap): [[gap, 0.0]] for gap in gaps},
        "kl_coef": [BETA],
    }
    data = gj.sweep(
        config, axes, variants={"group_size": TRAINED}, iterations=iterations, record_every=iterations,
        record=["probabilities"],
    )  # fmt: skip
    found = data.probabilities.isel(context=0, output=0, seed=0, iteration=0, kl_coef=0, drop=True)
    found = found.drop_vars(["advantage.scale.ddof", "advantage.eps"])
    return found.rename(
        {"advantage.scale.ddof+advantage.eps": "preset", "task.table": "gap", "group_size": "group"}
    )


def told(gaps: np.ndarray) -> xr.DataArray:
    """The stationary policy [group, preset, gap] that the formulas predict."""

    def policy(group: int, name: str) -> list[float]:
        options: Any = {"group_size": group, "convention": LIBRARIES[name]}
        return [float(stationary_binary_convention(REFERENCE, BETA, gap, **options)) for gap in gaps]

    found = [[policy(group, name) for name in PRESETS] for group in TRAINED]
    return xr.DataArray(np.asarray(found), {"group": TRAINED, "preset": list(PRESETS), "gap": gaps})


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Effective penalties by enumeration and by formula, and trained fixed points. Nothing is random."""
    gaps = np.array(size.gaps)
    return {
        "factors": xr.Dataset({"enumerated": enumerated(), "predicted": predicted()}),
        "trained": xr.Dataset({"ended": trained(gaps, size.iterations), "told": told(gaps)}),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Enumeration, ascent and the three statements about the effective β."""
    factors, trained = data["factors"], data["trained"]
    names = list(PRESETS)
    formula = factors.predicted.sel(library=names).rename(library="preset")
    ratio = factors.enumerated.sel(preset=names) / formula
    claim.refutes("enumeration over formula, less 1", worst(ratio, expected=1.0, tolerance=1e-9))
    ended = worst(trained.ended, expected=trained.told, tolerance=1e-6)
    claim.refutes("exact ascent - predicted", ended)
    bare = factors.enumerated.sel(preset=BARE, drop=True)
    root = np.sqrt(bare.group / (bare.group - 1))
    claim.refutes("no constant: over √(G/(G - 1)), less 1", worst(bare / root, expected=1.0, tolerance=1e-9))
    trl = factors.predicted.sel(library="trl", drop=True)
    over_gaps = _spread(trl.sel(policy=0.5, group=GROUP), tolerance=0.01, relation="differs")
    over_policies = _spread(trl.sel(gap=GAP, group=GROUP), tolerance=0.01, relation="differs")
    claim.refutes("TRL, G = 8, policy ½: spread over gaps", over_gaps)
    claim.refutes("TRL, G = 8, gap 1e-3: spread over policies", over_policies)
    claim.refutes(
        "TRL, G = 2, gap 1e-3: spread over policies", _spread(trl.sel(gap=GAP, group=2), tolerance=1e-9)
    )
    at = factors.predicted.sel(group=GROUP, policy=0.5)
    for name in LIBRARIES:
        for gap in (1.0, GAP):
            value = Number(float(at.sel(library=name, gap=gap)))
            claim.reports(f"factor on β, {name}, G = 8, gap {gap:g}", value)
    large, small = (100 * (float(at.sel(library="trl", gap=gap)) - 1) for gap in (1.0, GAP))
    most = 100 * (float(trl.sel(group=GROUP, gap=GAP).max()) - 1)
    claim.finds(
        f"With groups of {GROUP} and an even policy, TRL's defaults make β {large:.0f} % larger where "
        f"rewards differ by 1, and {small:.0f} % where they differ by {GAP:g} (up to {most:.0f} % at other "
        "policies); training ends accordingly.",
        when=[ended, over_gaps, over_policies],
    )


def _spread(values: xr.DataArray, **options: Any) -> Number:
    return Number(float((values.max() - values.min()) / values.min()), 0.0, **options)


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Left: the factor on β over the gap of the rewards. Right: where training then settles."""
    figure.set_size_inches(7.0, 3.2)
    left, right = plotting.panels(figure, 1, 2)
    colors = dict(zip(LIBRARIES, ("#222222", *plotting.COLORS), strict=False))
    fine = np.geomspace(1e-9, 1, 150)
    for name, convention in LIBRARIES.items():
        options: Any = {"group_size": GROUP, "convention": convention}
        line = [float(effective_beta(1.0, 0.5, gap, **options)) for gap in fine]
        told = name.replace("_", " ") + ("" if name in PRESETS else " (no preset)")
        left.plot(fine, line, color=colors[name], label=told)
        if name in PRESETS:
            here = data["factors"].enumerated.sel(preset=name, group=GROUP, policy=0.5)
            left.plot(here.gap, here, "o", mfc="white", color=colors[name])
    left.set(
        xscale="log", yscale="log", ylim=(0.8, 1e3), xlabel="gap of the rewards", ylabel="effective β / β"
    )
    left.legend()
    left.set_title("Lines: formula; rings: presets, enumerated")
    fine = np.geomspace(1e-5, 1, 60)
    for name, convention in LIBRARIES.items():
        options = {"group_size": GROUP, "convention": convention}
        line = [float(stationary_binary_convention(REFERENCE, BETA, gap, **options)) for gap in fine]
        right.plot(fine, line, color=colors[name])
        if name in PRESETS:
            here = data["trained"].ended.sel(group=GROUP, preset=name)
            right.plot(here.gap, here, "o", mfc="white", color=colors[name])
    right.axhline(REFERENCE, color="0.6", lw=0.8, ls=":")
    right.text(1, REFERENCE + 0.01, "π_ref", ha="right", va="bottom")
    right.set(xscale="log", ylim=(0.1, 0.9), xlabel="gap of the rewards", ylabel="π of the better answer")
    right.set_title(f"Lines: predicted; rings: exact ascent, β = {BETA:g}")
    figure.suptitle(f"A library's constant is a larger penalty where rewards differ little (G = {GROUP})")
