"""In large groups an advantage tends to (r - E r) / sigma, at the rate 1/G.

Claim A2 of arXiv:2502.18548: P_G(o | pi) -> (r(o) - E_pi r) / sigma(pi). Fitted exactly: the error falls as
1/G to G = 4096 for two and three levels and for coin flips, whose sigma holds the noise within an answer too.
Ours: the limit is not uniform. If the better of two levels has a small probability p, P_G is the limit times
f(pG), f(x) = sqrt(x) E[(1 + Poisson(x))^(-1/2)]: below pG = 1 the advantage stays under sqrt(G - 1) and does
not see the limit's 1/sqrt(p). Refuted if engine and independent sums differ by 1e-10, an exponent is not -1
+- 0.05, the error at G = 4096 exceeds 0.01, coin flips need the spread of their means, or f is off by 0.01.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib import colormaps
from scipy import stats

from experiments.alignment import problem
from experiments.verdict import Number, judge, worst
from grpo_jax.exact import expected_preference
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import Rewards, large_group_preference

CLAIM = "A2"
PAPER = "A"
PRECISION = "float64"

GROUPS = {"smoke": (64, 1024, 4096), "quick": (4, 64, 256, 1024, 4096), "full": (4, 16, 64, 256, 1024, 4096)}
FITTED = 256
"""Exponents are fitted from here on."""
ENGINE_GROUPS = 64
"""The largest group of three levels that the engine enumerates here."""
POLICIES = {
    "two levels": ([1.0, 0.0], [0.3, 0.7]),
    "two levels, skewed": ([1.0, 0.0], [0.05, 0.95]),
    "three levels": ([1.0, 0.7, 0.0], [0.2, 0.3, 0.5]),
    "three levels, skewed": ([1.0, 0.1, 0.0], [0.1, 0.15, 0.75]),
    "coin flips": ([0.9, 0.5, 0.2], [0.2, 0.3, 0.5]),
    "coin flips, rare": ([0.2, 0.05, 0.01], [0.2, 0.3, 0.5]),
}
"""Rewards, or success probabilities of coin flips, and the policy."""
RARE_GROUPS = (4, 64, 1024)
RARE = np.logspace(-5, np.log10(0.5), 27)


def law(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """pi [K], levels [L], and their probabilities given each answer [K, L]."""
    values, policy = (np.array(entry) for entry in POLICIES[name])
    if name.startswith("coin"):
        return policy, np.array([1.0, 0.0]), np.stack([values, 1 - values], 1)
    return policy, values, np.eye(len(values))


def engine(kind: str, group_size: int) -> np.ndarray:
    """[K, setting of a kind] the package's exact expectation, through the surrogate that training uses.

    After the settings of two levels come those of rare ones, so that one program serves both.
    """
    values, policies = (np.array(x).T for x in zip(*(POLICIES[name] for name in alike(kind)), strict=True))
    if kind == "two":
        policies = np.concatenate([policies, [RARE, 1 - RARE]], 1)
        values = np.repeat(values[:, :1], policies.shape[1], 1)
    noise = Bernoulli() if kind == "coin" else None
    config = problem(policies, values, 0.0, group_size=group_size, noise=noise)
    return np.asarray(expected_preference(config, np.log(policies)[None]))[0]


def alike(kind: str) -> list[str]:
    return [name for name in POLICIES if name.startswith(kind)]


def direct(name: str, group_size: int) -> np.ndarray:
    """[K] the same by summing over the other members' levels, twelve standard deviations wide."""
    policy, levels, probs = law(name)
    q, others = policy @ probs, group_size - 1
    first = window(others, q[0])
    if len(levels) == 2:
        counts = np.stack([first, others - first], 1)
        weight = stats.binom.pmf(first, others, q[0])
    else:
        a, b = (x.ravel() for x in np.meshgrid(first, window(others, q[1]), indexing="ij"))
        a, b = a[a + b <= others], b[a + b <= others]
        counts = np.stack([a, b, others - a - b], 1)
        weight = stats.multinomial.pmf(counts, others, q)
    found = []
    for level in range(len(levels)):
        n = counts + np.eye(len(levels), dtype=int)[level]
        mean = n @ levels / group_size
        spread = np.sqrt(np.maximum((n * (levels - mean[:, None]) ** 2).sum(1) / group_size, 0))
        tied = n.max(1) == group_size
        found.append(weight @ np.where(tied, 0, (levels[level] - mean) / np.where(tied, 1, spread)))
    return probs @ np.array(found)


def window(n: int, p: float) -> np.ndarray:
    """The counts that a binomial takes but for a chance of 1e-30."""
    reach = 12 * np.sqrt(n * p * (1 - p)) + 12
    return np.arange(max(0, int(n * p - reach)), min(n, int(n * p + reach) + 1) + 1)


def limit(name: str, *, noise: bool = True) -> np.ndarray:
    """[K] the large-group limit; without noise, the spread is that of the answers' means."""
    policy, levels, probs = law(name)
    if not noise:
        levels, probs = probs @ levels, np.eye(len(policy))
    return np.asarray(large_group_preference(policy, Rewards(jnp.asarray(levels), jnp.asarray(probs))))


def rare_law(x: np.ndarray) -> np.ndarray:
    """f(x) = sqrt(x) E[(1 + Poisson(x))^(-1/2)]: sqrt(x) for small x, 1 for large."""
    n = np.arange(4000)[:, None]
    x = np.asarray(x)
    safe = np.minimum(x, 2000.0)
    chance = stats.poisson.pmf(n, safe.ravel())
    found = np.sqrt(safe) * (chance / np.sqrt(1.0 + n)).sum(0).reshape(x.shape)
    return np.where(x > 2000.0, 1.0, found)


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Preferences by the engine and by independent sums over group sizes; rare levels."""
    del key  # nothing here is random
    groups, names = GROUPS[size], list(POLICIES)
    by_engine, by_sum = np.full((2, len(names), len(groups), 3), np.nan)
    rare = {}
    for column, group in enumerate(groups):
        for row, name in enumerate(names):
            by_sum[row, column, : len(POLICIES[name][0])] = direct(name, group)
        for kind in ("two", "coin", "three")[: 3 if group <= ENGINE_GROUPS else 2]:
            rows, found = [names.index(name) for name in alike(kind)], engine(kind, group)
            by_engine[rows, column, : len(found)] = found[:, : len(rows)].T
            if kind == "two" and group in RARE_GROUPS:
                rare[group] = found[0, len(rows) :] / np.sqrt((1 - RARE) / RARE)
    shape = ("setting", "group", "action")
    return xr.Dataset(
        {
            "engine": (shape, by_engine),
            "sum": (shape, by_sum),
            "rare": (("rare_group", "p"), np.stack(list(rare.values()))),
        },
        coords={"setting": names, "group": list(groups), "rare_group": list(rare), "p": RARE},
    )


def errors(data: xr.Dataset, *, noise: bool = True) -> xr.DataArray:
    """[setting, group] the greatest difference from the limit over answers."""
    aims = np.full((len(POLICIES), 3), np.nan)
    for row, name in enumerate(POLICIES):
        aims[row, : len(POLICIES[name][0])] = limit(name, noise=noise)
    return abs(data["sum"] - xr.DataArray(aims, dims=("setting", "action"))).max("action")


def check(data: xr.Dataset):
    """The two sums agree; exponents and errors; the spread that counts; rare levels."""
    both = data.engine.notnull()
    numbers = {
        "engine - independent sum": worst(
            data.engine.values[both.values], expected=data["sum"].values[both.values], tolerance=1e-10
        )
    }
    error, without = errors(data), errors(data, noise=False)
    last = data.group.values[-1]
    for name in POLICIES:
        fitted = error.sel(setting=name).where(data.group >= FITTED, drop=True)
        slope = float("nan")
        if fitted.sizes["group"] > 1:
            slope = np.polyfit(np.log(fitted.group), np.log(fitted), 1)[0]
        numbers[f"{name}: exponent of G"] = Number(float(slope), expected=-1.0, tolerance=0.05)
        at_last = float(error.sel(setting=name, group=last))
        numbers[f"{name}: error at the largest G"] = Number(at_last, 0.01, relation="at most")
        if name.startswith("coin"):
            number = Number(float(without.sel(setting=name, group=last)), 0.1, relation="at least")
            numbers[f"{name}: error of the limit with the spread of means"] = number
    numbers |= _rare_numbers(data)
    return judge(numbers, refutes=list(numbers))


def _rare_numbers(data: xr.Dataset) -> dict[str, Number]:
    group = int(data.rare_group.values[-1])
    ratio, x = data.rare.sel(rare_group=group).values, RARE * group
    near, bound = RARE < 0.01, ratio * np.sqrt((1 - RARE) / RARE) / np.sqrt(group - 1)
    at = float(np.exp(np.interp(np.log(0.1), np.log(x), np.log(ratio))))
    name = f"G = {group}, p < 0.01: P_G over its limit - f(pG)"
    return {
        name: worst(ratio[near], expected=rare_law(x[near]), tolerance=0.01),
        f"G = {group}, pG = 0.1: P_G over its limit": Number(at, expected=0.9, relation="at most"),
        "greatest P_G over sqrt(G - 1)": Number(float(bound.max()), expected=1.0, relation="at most"),
    }


def draw(figure, data: xr.Dataset) -> None:
    """Errors against G, and the share of the limit that is reached against pG."""
    figure.set_size_inches(10.0, 4.2)
    left, right = figure.subplots(1, 2)
    shades = ("#1d4ed8", "#60a5fa", "#c2410c", "#fb923c", "#0f766e", "#5eead4")
    error = errors(data)
    for name, color in zip(POLICIES, shades, strict=True):
        left.plot(data.group, error.sel(setting=name), "o-", ms=4.5, lw=1.3, color=color, label=name)
    guide = np.array([64, 4096])
    left.plot(guide, 25 / guide, "--", color="0.5", lw=1)
    left.annotate("1/G", (512, 25 / 512), (4, 4), textcoords="offset points", color="0.4", fontsize=9)
    left.set(
        xscale="log", yscale="log", xlabel="group size G", ylabel="|P_G(o|π) − (r − E r)/σ|, worst answer"
    )
    left.set_title("The error falls as 1/G", fontsize=10)
    left.legend(frameon=False, fontsize=8, loc="lower left")
    x = np.logspace(-5, 3, 200)
    colors = colormaps["viridis"](np.linspace(0, 0.88, data.sizes["rare_group"]))
    for group, color in zip(data.rare_group.values, colors, strict=True):
        right.plot(
            RARE * group, data.rare.sel(rare_group=group), "o", ms=4, color=color, label=f"G = {group}"
        )
    right.plot(x, rare_law(x), color="0.1", lw=1.2, label="f(pG)", zorder=0)
    right.plot(x[x < 1], np.sqrt(x[x < 1]), ":", color="0.5", lw=1.2, label="√(pG)")
    right.set(
        xscale="log",
        yscale="log",
        xlim=(3e-5, 3e3),
        ylim=(5e-3, 1.6),
        xlabel="pG, better answers expected in a group",
    )
    right.set_ylabel("P_G over its limit")
    right.set_title("…unless the better answer is rare", fontsize=10)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
