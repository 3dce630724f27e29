"""In the limit of large groups the preference is the standardised reward: P_G(o | π) → (r(o) - E_π r) /
σ(π).

[A] (arXiv:2502.18548v3), large groups. A fixed policy over one question's answers; σ the standard
deviation of the reward of o ~ π, noise within an answer included. Everything is exact: groups are
enumerated. Judged are six policies over three answers: rewards (1, 0, 0), met with probabilities .3 and .05
of the better level; coin flips of success .9, .5, .2 and of .2, .05, .01, met with probabilities .43 and .06
of a success; three levels, (.2, .3, .5) of 1, .7, 0 and (.1, .15, .75) of 1, .1, 0. So every level has a
probability of .05 or more; where one is rarer 4096 are not many, which a row of ours is about.

Refuted if an answer's preference in one of these is 0.01 from the limit in groups of 4096. For two levels and
coin flips that preference is the engine's; for three levels, which it enumerates up to groups of 64 only,
that of sums over the other members' levels. Qualified if coin flips are 0.01 from the limit whose σ is the
spread of the answers' expected rewards, as σ(π) may be read. That the sums, which share no code with the
engine, agree with it is a check of the instrument.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.formulas.group_sums import preference_by_sum, rare_law
from experiments.harness.numbers import Number, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import logits, question
from grpo_jax import plotting
from grpo_jax.exact import expected_preference
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import Rewards, large_group_preference

PRECISION = "float64"
SIZES = sizes(groups=((64, 1024, 4096), (4, 64, 256, 1024, 4096), (4, 16, 64, 256, 1024, 4096)))

FITTED = 256
"""Exponents are fitted from here on."""
ENGINE_GROUPS = 64
"""The largest group of three levels that the engine enumerates here."""
POLICIES = {
    "two levels": ([1.0, 0.0, 0.0], [0.3, 0.4, 0.3]),
    "two levels, skewed": ([1.0, 0.0, 0.0], [0.05, 0.5, 0.45]),
    "coin flips": ([0.9, 0.5, 0.2], [0.2, 0.3, 0.5]),
    "coin flips, rare": ([0.2, 0.05, 0.01], [0.2, 0.3, 0.5]),
    "three levels": ([1.0, 0.7, 0.0], [0.2, 0.3, 0.5]),
    "three levels, skewed": ([1.0, 0.1, 0.0], [0.1, 0.15, 0.75]),
}
"""Rewards (success probabilities but for three levels), and the policy."""
ERROR = 0.01
"""From the limit, in the largest group."""
RARE = np.logspace(-5, np.log10(0.5), 27)
"""Probabilities of the better of two levels."""
RARE_GROUPS = [4, 64, 1024]


def law(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """π [K], levels [L], and their probabilities given each answer [K, L]."""
    values, policy = (np.array(entry) for entry in POLICIES[name])
    if name.startswith("three"):
        return policy, values, np.eye(len(values))
    return policy, np.array([1.0, 0.0]), np.stack([values, 1 - values], 1)


def engine(settings: list[tuple[Any, Any]], group_size: int, *, noise: Any) -> np.ndarray:
    """[setting, K] the package's exact expectation, through the surrogate that training uses."""
    values, policies = (np.array(column).T for column in zip(*settings, strict=True))
    config = question(values, group_size=group_size, reference=policies, noise=noise)
    return np.asarray(expected_preference(config, logits(policies)))[0].T


def limit(name: str, *, noise: bool = True) -> np.ndarray:
    """[K] the limit; without noise, σ is the spread of the answers' means."""
    policy, levels, probs = law(name)
    if not noise:
        levels, probs = probs @ levels, np.eye(len(policy))
    return np.asarray(large_group_preference(policy, Rewards(jnp.asarray(levels), jnp.asarray(probs))))


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Preferences by the engine and by independent sums over group sizes, their limit, and rare levels."""
    del seed  # nothing here is random
    flips = [name for name in POLICIES if not name.startswith("three")]
    three = [name for name in POLICIES if name.startswith("three")]
    rare_policies = [([1.0, 0.0, 0.0], [p, (1 - p) / 2, (1 - p) / 2]) for p in RARE]
    coords = {"setting": list(POLICIES), "group_size": list(size.groups), "answer": [0, 1, 2]}
    found = xr.DataArray(np.nan, coords, list(coords))
    rare = xr.DataArray(np.nan, {"group_size": coords["group_size"], "p": RARE}, ("group_size", "p"))
    for group in size.groups:
        given = [POLICIES[name] for name in flips] + rare_policies
        here = engine(given, group, noise=Bernoulli())
        found.loc[{"setting": flips, "group_size": group}] = here[: len(flips)]
        rare.loc[{"group_size": group}] = here[len(flips) :, 0]
        if group <= ENGINE_GROUPS:
            given = [POLICIES[name] for name in three]
            found.loc[{"setting": three, "group_size": group}] = engine(given, group, noise=None)
    summed = [[preference_by_sum(*law(name), group) for group in size.groups] for name in POLICIES]
    return {
        "preference": xr.Dataset({
            "engine": found,
            "sum": (list(coords), np.array(summed)),
            "limit": (("setting", "answer"), [limit(name) for name in POLICIES]),
            "limit_of_means": (("setting", "answer"), [limit(name, noise=False) for name in POLICIES]),
        }),
        "rare": xr.Dataset({"preference": rare.sel(group_size=[g for g in RARE_GROUPS if g in size.groups])}),
    }  # fmt: skip


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The limit at the largest group; how fast it is reached; where a level is rare."""
    found = data["preference"]
    asked = (found.group_size <= ENGINE_GROUPS) | ~found.setting.str.startswith("three")
    gap = (found.engine - found["sum"]).where(asked, 0.0)
    claim.requires("engine - independent sum", worst(gap, tolerance=1e-10))
    judged = xr.where(asked, found.engine, found["sum"])
    error = abs(judged - found.limit).max("answer")
    wrong = abs(judged - found.limit_of_means).max("answer")
    last = error.group_size.values[-1]
    rate = claim.ours("The limit is reached at the rate 1/G.")
    for name in POLICIES:
        here = error.sel(setting=name)
        at_last = Number(float(here.sel(group_size=last)), ERROR, relation="at most")
        claim.refutes(f"{name}: error at G = {last}", at_last)
        late = here.sel(group_size=slice(FITTED, None))
        slope = np.polyfit(np.log(late.group_size), np.log(late), 1)[0]
        rate.refutes(f"{name}: exponent of G", Number(float(slope), -1.0, tolerance=0.05))
        if name.startswith("coin"):
            apart = Number(float(wrong.sel(setting=name, group_size=last)), ERROR, relation="at most")
            claim.qualifies(
                f"{name}: error if σ is the spread of expected rewards", apart,
                only="if σ(π) counts the noise within an answer",
            )  # fmt: skip
    greatest = {group: float(error.sel(group_size=group).max()) for group in (64, last)}
    rate.finds(
        f"The largest error here is {greatest[64]:.2f} in groups of 64 and {greatest[last]:.4f} in groups "
        f"of {last}.",
        when=[number for name, number in rate.numbers.items() if "exponent" in name],
    )
    claim.finds(
        "An answer's expected advantage in large groups is its standardised reward, if no reward is rare; σ "
        "is the whole spread, noise within an answer included.",
        when=all(n.holds is (claim.roles[name] != "qualifies") for name, n in claim.numbers.items()),
    )
    judge_rare(data["rare"].preference, claim)


def reached(preference: xr.DataArray) -> xr.DataArray:
    """The better answer's preference over its limit, with two levels."""
    return preference / np.sqrt((1 - preference.p) / preference.p)


def judge_rare(preference: xr.DataArray, claim: Claim) -> None:
    """Where the better of two levels is rare, the limit is not seen."""
    row = claim.ours(
        "The limit is not uniform: where the better of two levels has a small probability p, P_G is the "
        "limit times √x E[(1 + Poisson(x))^(-1/2)], x = pG."
    )
    ratio = reached(preference)
    group = int(preference.group_size[-1])
    here = ratio.sel(group_size=group, p=slice(None, 0.01))
    row.refutes(
        f"G = {group}, p < 0.01: ratio - f(pG)",
        worst(here, expected=rare_law(group * here.p.values), tolerance=0.01),
    )
    bound = (preference / np.sqrt(preference.group_size - 1)).max("p")
    most = Number(float(bound.max()), 1.0, relation="at most")
    row.refutes("greatest P_G over √(G - 1)", most)
    seen = float(np.exp(np.interp(np.log(0.1 / group), np.log(here.p), np.log(here))))
    share = Number(seen, 0.9, relation="at most")
    row.refutes(f"G = {group}, pG = 0.1: P_G over its limit", share)
    row.finds(
        f"An answer that is found once in ten groups gets {seen:.0%} of the standardised reward; with "
        "two levels no expected advantage exceeds √(G - 1).",
        when=[share, most],
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Errors against G, and the share of the limit that is reached where the better of two levels is rare."""
    left, right = plotting.panels(figure, 1, 2)
    found = data["preference"]
    error = abs(found["sum"] - found.limit).max("answer")
    for name, color in zip(POLICIES, plotting.COLORS, strict=False):
        left.plot(error.group_size, error.sel(setting=name), "o-", color=color, label=name)
    left.axhline(ERROR, color="0.6", ls=":")
    left.text(error.group_size[-1], 1.15 * ERROR, "margin .01", color="0.4", ha="right", va="bottom")
    left.set(
        xscale="log", yscale="log", xlabel="group size G", ylabel="|P_G(o | π) - (r - E r)/σ|, worst answer"
    )
    left.set_title("The error falls as 1/G", loc="left")
    left.set_ylim(1e-6, 5)
    left.set_yticks(10.0 ** np.arange(-6, 1), [f"$10^{{{n}}}$" for n in range(-6, 1)])
    left.legend(loc="lower left")
    ratio = reached(data["rare"].preference)
    x = np.logspace(-5, 3, 200)
    right.plot(x, rare_law(x), color="black", label="√x E[(1 + Poisson(x))$^{-1/2}$]")
    for group, color in zip(ratio.group_size.values, plotting.COLORS, strict=False):
        here = ratio.sel(group_size=group)
        right.plot(group * here.p, here, "o", mfc="none", color=color, label=f"G = {group}")
    right.set(xscale="log", yscale="log", xlim=(3e-5, 1e3), ylim=(5e-3, 1.6))
    right.set(xlabel="x = pG, better answers expected in a group", ylabel="P_G over (r - E r)/σ")
    right.set_title("…but not where the better answer is rare", loc="left")
    right.legend(loc="lower right")
