"""For groups of size two, the reward preference model corresponds to pairwise comparison preferences: the
advantage is sign(r_1 - r_2), and the preference 2E[P(o ≻ o')] - 1.

[A] (arXiv:2502.18548v3), abstract: G = 2, o from π, o' from π_old, and 0/0 = 0. One question,
on-policy, no clip. A comparison knows no sizes, so no increasing transform of the rewards may change
training.

Refuted if an advantage is not the sign to 1e-12 (rewards of 1e-30 to 1e30, ties among them), if the
preference is not E[P(o ≻ o') - P(o' ≻ o)] or, with a tie as half a win for either, not 2E[P] - 1 to 1e-12,
or if a transform changes sampled training by 1e-12. Qualified if 2E[P] - 1 fails with P a strict win: where
outputs are finitely many, o = o' is a tie. The solver of (11) and an affine transform in groups of eight are
checks of the instrument.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas.step_noise import ask, rest
from experiments.harness.numbers import Number, furthest, interval, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import logits, method, question, steady_rate
from grpo_jax import plotting
from grpo_jax.exact import expected_preference
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory.counts import number_of_histograms

PRECISION = "float64"
SIZES = sizes(seeds=(16, 64, 512), iterations=(300, 300, 1000))

GROUPS = [2, 3, 8]
MIDDLES = [0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.98]
"""Where the middle of three rewards lies is all that increasing maps can change, up to affine ones."""
REFERENCE, BETA = np.array([0.15, 0.35, 0.5]), 0.7
TRANSFORMS = {
    "r": lambda r: r,
    "r³": lambda r: r**3,
    "exp 5r": lambda r: np.exp(5 * r),
    "-1/(r + 0.01)": lambda r: -1 / (r + 0.01),
    "10⁶ r + 3": lambda r: 1e6 * r + 3,
}
AFFINE = "10⁶ r + 3"
OPTIMIZERS = {"SGD": gj.SGD(learning_rate=0.1), "AdamW": gj.AdamW(learning_rate=0.02)}
EXACT = 1e-12
EFFECT = 0.02
"""Less is no effect of a reward's size."""


def comparisons(seed: int) -> xr.Dataset:
    """Advantages of pairs and the signs of their differences, at magnitudes from 1e-30 to 1e30."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-30, 31, (400, 1))
    rewards = rng.integers(-3, 4, (400, 2)) * scale
    empty, none = np.zeros((400, 2, 1)), np.zeros((400, 2, 1), int)
    fields = {
        "prompts": np.zeros(400, int),
        "tokens": none,
        "mask": empty + 1,
        "rewards": rewards[:, :, None],
    }
    fields |= {
        "multiplicity": np.ones((400, 2)),
        "sampling_logp": empty,
        "old_logp": empty,
        "ref_logp": empty,
    }
    rollout = gj.Rollout(**{name: jnp.asarray(field) for name, field in fields.items()})
    found = method().advantage(rollout, jnp.asarray(rewards))
    signs = np.sign(rewards - rewards[:, ::-1])
    return xr.Dataset({
        "advantage": (("pair", "member", "token"), np.asarray(found)),
        "sign": (("pair", "member"), signs),
    })  # fmt: skip


def preferences(seed: int) -> xr.Dataset:
    """Of π over π_old on random tables: the engine's preference, and chances to win, to tie and to lose.

    Even tables are deterministic with ties, odd ones coin flips.
    """
    rng, found = np.random.default_rng(seed + 1), []
    for table in range(20):
        pi, old = rng.dirichlet(np.ones(4), 2)
        values = rng.uniform(size=4) if table % 2 else rng.integers(0, 3, 4) / 2.0
        noise = Bernoulli() if table % 2 else None
        config = question(values, group_size=2, noise=noise, expectation=gj.Exact(cells=0))
        engine = pi @ np.asarray(expected_preference(config, logits(old)))[0]
        a, b = values[:, None], values[None, :]
        win = pi @ (a > b if noise is None else a * (1 - b)) @ old
        lose = pi @ (b > a if noise is None else b * (1 - a)) @ old
        tie = pi @ (a == b if noise is None else a * b + (1 - a) * (1 - b)) @ old
        found.append({"engine": engine, "win": win, "tie": tie, "lose": lose})
    return xr.Dataset({name: ("table", [row[name] for row in found]) for name in found[0]})


def tables(rewards: list[float]) -> dict[str, np.ndarray]:
    """Transformed rewards as an axis of a sweep."""
    return {name: transform(np.array(rewards))[None] for name, transform in TRANSFORMS.items()}


def trained() -> xr.Dataset:
    """Where exact ascent ends: over the middle of three rewards, and with a reward shared by two answers."""
    middles = {f"middle {m:g}": np.array([[1.0, m, 0.0]]) for m in MIDDLES}
    config = question(
        [1.0, 0.5, 0.0], group_size=2, reference=REFERENCE,
        optimizer=gj.SGD(learning_rate=float(steady_rate(BETA))),
    )  # fmt: skip
    data = gj.sweep(
        config, {"kl_coef": [BETA], "task.table": middles | tables([0.8, 0.8, 0.3])},
        variants={"group_size": GROUPS}, iterations=400, record_every=400, record=["probabilities"],
    )  # fmt: skip
    ended = data.probabilities.squeeze(drop=True).rename({"task.table": "table"})
    three = ended.sel(table=list(middles)).rename(table="middle").assign_coords(middle=MIDDLES)
    two = ended.sel(table=list(TRANSFORMS)).rename(table="transform")
    return xr.Dataset({"three_levels": three, "two_levels": two})


def sampled(name: str, group_size: int, seed: int, size: Any) -> xr.DataArray:
    """Policies over sampled training of transformed rewards 1, 1/2 and 0, from π_ref, with common draws."""
    config = question(
        [1.0, 0.5, 0.0], group_size=group_size, reference=REFERENCE, optimizer=OPTIMIZERS[name],
        expectation=None,
    )  # fmt: skip
    data = gj.sweep(
        config, {"kl_coef": [BETA], "task.table": tables([1.0, 0.5, 0.0])}, seeds=size.seeds,
        iterations=size.iterations, root=seed, record=["probabilities"], record_every=size.iterations // 20,
        record_start=True,
    )  # fmt: skip
    return data.probabilities.squeeze(["kl_coef", "context"], drop=True).rename({"task.table": "transform"})


def solved() -> xr.DataArray:
    """Policies of the solver of (11)."""
    rows = number_of_histograms(max(GROUPS), len(REFERENCE))
    asked = [
        [rest(ask(np.array([1.0, m, 0.0]), REFERENCE, BETA, group, rows=rows)) for m in MIDDLES]
        for group in GROUPS
    ]
    return xr.DataArray(asked, {"group_size": GROUPS, "middle": MIDDLES}, ("group_size", "middle", "output"))


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Signs, preferences by hand, exact ascent over middle rewards, and sampled training of transforms."""
    pairs = [sampled(name, 2, seed, size) for name in OPTIMIZERS]
    return {
        "signs": comparisons(seed),
        "preferences": preferences(seed),
        "exact": trained().assign(solved=solved()),
        "pairs": xr.Dataset({"policy": xr.concat(pairs, xr.Variable("optimizer", list(OPTIMIZERS)))}),
        "eight": xr.Dataset({"policy": sampled("SGD", 8, seed, size)}),
    }


def change(policy: xr.DataArray) -> xr.DataArray:
    """By what a transform changes a policy."""
    return policy.drop_sel(transform="r") - policy.sel(transform="r", drop=True)


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Signs, preferences, and transforms of pairs; transforms of larger groups."""
    signs, table = data["signs"], data["preferences"]
    claim.refutes(
        "advantage - sign", worst(signs.advantage.squeeze("token"), expected=signs.sign, tolerance=EXACT)
    )
    claim.refutes(
        "preference - (P(≻) - P(≺))", worst(table.engine, expected=table.win - table.lose, tolerance=EXACT)
    )
    half = 2 * (table.win + table.tie / 2) - 1
    claim.refutes(
        "preference - (2E[P] - 1), a tie half a win", worst(table.engine, expected=half, tolerance=EXACT)
    )
    strict = worst(table.engine, expected=2 * table.win - 1, tolerance=EXACT)
    claim.qualifies(
        "preference - (2E[P] - 1), a tie no win", strict, only="if P counts a tie as half a win for either"
    )
    of_ties = worst(table.engine - (2 * table.win - 1), expected=table.tie, tolerance=EXACT)
    for name in OPTIMIZERS:
        moved = worst(change(data["pairs"].policy.sel(optimizer=name)), tolerance=EXACT)
        claim.refutes(f"{name}, sampled: a transform changes π by", moved)
    judge_sizes(data, claim)
    told = [number for name, number in claim.numbers.items() if claim.roles[name] == "refutes"]
    claim.finds(
        "A pair gives its better answer +1 and its worse one -1, whatever the rewards' sizes. The "
        "preference is 2E[P] - 1 only if a tie counts one half; with strict wins it is off by the chance of "
        f"a tie, up to {abs(strict.value):.2f} here.",
        when=strict.holds is False and all(n.holds is True for n in told) and of_ties.holds is True,
    )


def judge_sizes(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Where the sizes of rewards begin to count."""
    row = claim.ours(
        "From groups of three on the sizes of rewards count as soon as there are three reward levels; "
        "pairs do not see them, and with two levels no group does."
    )
    exact = data["exact"]
    spread = exact.three_levels.max("middle") - exact.three_levels.min("middle")
    for group in GROUPS:
        here = exact.sel(group_size=group)
        row.requires(
            f"G = {group}: exact ascent - solver",
            worst(here.three_levels, expected=here.solved, tolerance=1e-6),
        )
        moved = float(spread.sel(group_size=group).max())
        told = f"G = {group}: the middle reward moves π by"
        seen = Number(moved, 0.0, EXACT) if group == 2 else Number(moved, EFFECT, relation="at least")
        row.refutes(told, seen)
    row.refutes(
        "two levels, any G: a transform changes π by", worst(change(exact.two_levels), tolerance=1e-9)
    )
    last = change(data["eight"].policy.isel(iteration=-1))
    row.requires(
        "G = 8, sampled: an affine transform changes π by",
        furthest(last.sel(transform=AFFINE), tolerance=1e-6),
    )
    best = last.sel(transform="-1/(r + 0.01)", output=0)
    number = mean(best, expected=0.0, tolerance=EFFECT, relation="differs")
    row.refutes("G = 8, sampled: -1/(r + 0.01) changes π(best) by", number)
    row.finds(
        "With three reward levels and groups of eight, sliding the middle reward of 1, m, 0 from "
        f"m = {MIDDLES[0]:g} to {MIDDLES[-1]:g} moves a probability by up to {moved:.2f}.",
        when=seen,
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Trained policies over the middle reward (rings: exact ascent); sampled training (bars: 99.9 %)."""
    left, right = plotting.panels(figure, 1, 2, width_ratios=(1, 1.25))
    exact = data["exact"].sel(output=0)
    for group, color in zip(GROUPS, plotting.COLORS, strict=False):
        here = exact.sel(group_size=group)
        left.plot(here.middle, here.solved, color=color, label=f"G = {group}")
        left.plot(here.middle, here.three_levels, "o", mfc="white", color=color)
    left.legend(loc="upper right", ncols=3)
    left.set(xlim=(0, 1), ylim=(0.48, 0.78), xlabel="middle reward m of 1, m, 0", ylabel="trained π(best)")
    left.set_title("The middle reward's size")
    pairs, eight = (data[name].policy.sel(output=0).mean("seed") for name in ("pairs", "eight"))
    wide = dict(zip(TRANSFORMS, (6.0, 4.5, 3.0, 1.8, 0.8), strict=True))
    for (name, width), color in zip(wide.items(), plotting.shades(TRANSFORMS).values(), strict=True):
        style = "--" if name == "exp 5r" else "-"  # what lies below stays to be seen
        right.plot(eight.iteration, eight.sel(transform=name), style, color=color, lw=width, label=name)
        path = pairs.sel(transform=name, optimizer="SGD")
        right.plot(path.iteration, path, color=color, lw=width)
    last = interval(data["eight"].policy.sel(output=0).isel(iteration=-1))
    beside = float(eight.iteration[-1]) * np.linspace(1.02, 1.08, len(TRANSFORMS))
    plotting.points(right, beside, last.value, last.low, last.high, color="0.3", marker="_")
    right.text(pairs.iteration[-1], path[-1] - 0.03, "G = 2, all transforms", ha="right", va="top")
    right.legend(title="G = 8", loc="lower right")
    right.set(xlabel="iteration", ylabel="mean π(best), sampled, SGD", xlim=(0, None))
    right.set_title("Increasing transforms of the rewards 1, ½, 0")
    figure.suptitle("With three reward levels only pairs ignore how large rewards are")
