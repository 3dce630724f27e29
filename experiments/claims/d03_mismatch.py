"""Under PPO's ratio clip updates to low-probability tokens are aggressively over-penalized.

DPPO, arXiv:2602.04879, abstract (read as an abstract only); its other half, and what users of libraries say
of corrections, are rows below. States of 16 tokens with random logits, scored by an engine whose logits
carry noise, or that has another expert at a tenth of the states, or that holds an older policy (one step
against the gradient); a draw is of a *rare* token below a probability of 0.05, of a *common* one from 0.5
on. The clip is 1 ± ε with ε = 0.2. It keeps the variation distance of a state below δ = ε/2 where no token
leaves it: within δ it has nothing to penalize. All shares are sums over tokens, none is drawn.

Refuted if under an engine's noise or on an older policy, at a size at which a hundredth of all draws is
stopped and most draws lie in states within δ, less than half of the stopped draws of rare tokens do: then
the clip is right about them. Qualified if so where most draws lie beyond δ, or with another expert. (That
rare tokens within δ are stopped more often than common ones cannot fail: a common token that is stopped has
moved by δ.) The abstract's other half is refuted, and qualified, likewise if less than half of the draws of
common tokens in states beyond δ pass the clip.

Rows on corrections judge one update, exactly: trees of three tokens, T = 1 to 6, binary rewards, groups of
8, batches of 64 groups, error² = bias² + variance/64 against f·∇J(π), f = 1 - 1/G; as a share of tables,
99.9 %, at least half, in every setting in which errors differ by over 1 % on a third of the tables. Lengths:
refuted if at some noise a geometric mean within [1/2, 2] keeps another share of answers at T = 6 than at T =
1, by 0.05, or the product more. The KL: refuted if IPO's mask of 0.1 drops a hundredth of the tokens and
less than half of (log π/q)² with them. KPop's band: refuted if it is not the wider one beside IPO's, as a
ratio, at a probability of 0.001, or not the tighter one at 0.99. Our row: refuted if under some kind another
correction has, at every noise from 0.2 and T from 2, no more bias nor variance, and less of one, by 1 % of
that without a correction. A trust region is meant to leave the gradient; what that is good for is not judged
here but in training (the map and D4). Checks of the instrument, to 1e-10: mean and variance of every row
from all groups of 3 by the library; sequence weights are unbiased up to f; E_q[w²] = (1 + χ²)^T; token
weights follow the local surrogate (C1); without noise no row errs.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.harness.numbers import Number, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import estimands, mismatches, trees
from experiments.problems.mismatch_atlas import (
    ENGINES,
    GROUP,
    HORIZONS,
    KINDS,
    NOISE,
    SPREAD,
    ahead,
    atlas,
    dominated,
    draws_of_states,
    pooled,
    sampled,
)  # fmt: skip
from experiments.problems.mismatches import REGION, ROWS
from grpo_jax import Sequences, plotting
from grpo_jax.exact import gradient_law
from grpo_jax.part import put
from grpo_jax.parts.sampler import BothBinaryKL, Statistic, TotalVariation
from grpo_jax.types import Rollout

PRECISION = "float64"
SIZES = sizes(tables=(16, 120, 240), draws=(2, 6, 12), states=(2000, 8000, 40000))

LENGTH = 0.05
"""Change of a kept share that counts as one."""


def every_group(root: int) -> dict[str, float]:
    """Largest deviations of the closed forms: from all groups of three, and from what they should be."""
    space = Sequences(vocab=3, horizon=2)
    one = trees.problem(root, space, tables=1, kind="binary", spread=SPREAD)
    noise = mismatches.engine("fixed", 0.8)
    far = np.asarray(noise(one.logits[..., 0][None], *np.zeros(3, np.uint32)))[0][..., None]
    exact = mismatches.one_update(one, far, group_size=3)
    config = mismatches.config_of(one, noise, group_size=3)
    gaps = {"mean": 0.0, "variance": 0.0}
    for row in range(len(ROWS)):
        law = gradient_law(
            put(config, "method.corrections.0.row", jnp.asarray(float(row))),
            np.asarray(one.logits).transpose(2, 0, 1),
        )
        away = np.abs(np.asarray(law.mean) - exact.mean[row].ravel()).max()
        gaps["mean"] = max(gaps["mean"], float(away))
        away = abs(float(jnp.trace(law.covariance)) - float(exact.variance[row, 0]))
        gaps["variance"] = max(gaps["variance"], away)
    return gaps | identities(root) | {"E_q[w²]": second_moment(root)}


def identities(root: int) -> dict[str, float]:
    """Sequence weights against f∇J(π), token weights against the local surrogate, all rows without noise."""
    given = trees.problem(root, Sequences(vocab=3, horizon=4), tables=4, kind="binary", spread=SPREAD)
    far = sampled(given, "fixed", 0.8, root=root, draw=0)
    update = mismatches.one_update(given, far, group_size=GROUP)
    target = mismatches.aim(given, group_size=GROUP)
    made = estimands.made(given.space, far, given.table)
    local = estimands.candidates(*made, given.logits[None], far[None])["local surrogate"][0]
    still = mismatches.one_update(given, given.logits, group_size=GROUP)
    gaps = {
        "sequence weights": update.mean[ROWS.index("sequence weights")] - target,
        "token weights": update.mean[ROWS.index("token weights")] - (1 - 1 / GROUP) * np.asarray(local),
        "no noise": still.mean - target,
    }
    return {name: float(np.abs(gap).max()) for name, gap in gaps.items()}


def second_moment(root: int) -> float:
    """Largest relative deviation of E_q[w²] from (1 + χ²)^T, one law at every prefix, T = 1 to 6."""
    rng = np.random.default_rng(root)
    new, q = rng.dirichlet(np.ones(3), 2)
    found = []
    for T in HORIZONS:
        tokens = np.array(list(itertools.product(range(3), repeat=int(T))))
        w, chance = np.prod((new / q)[tokens], 1), np.prod(q[tokens], 1)
        found.append(np.sum(chance * w**2) / (np.sum(new**2 / q)) ** T - 1)
    return float(np.abs(found).max())


def widest(statistic: Statistic, rate: float) -> float:
    """The greatest π/q of a token that a mask keeps, where its probability at the sampler is ``rate``."""
    new = np.linspace(rate, 1, 400_001)[1:-1]
    q = np.full_like(new, rate)
    logs = [jnp.log(each)[None, None] for each in (q, new)]
    blank = jnp.ones_like(logs[0])
    rollout = Rollout(jnp.zeros(1), blank, blank, blank[:, :, :1], blank[:, :, 0], logs[0], logs[1], logs[1])
    return float(new[np.asarray(statistic(rollout))[0, 0] <= REGION].max(initial=rate) / rate)


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """The atlas of one update, draws of single states, identities, and the bands of two masks."""
    gaps = every_group(seed)
    bands = [[widest(s, p) for p in (0.001, 0.99)] for s in (BothBinaryKL(), TotalVariation())]
    return {
        "atlas": atlas(seed, size),
        "states": xr.Dataset({"mass": draws_of_states(seed, size.states)}),
        "identities": xr.Dataset({"gap": ("of", list(gaps.values()))}, {"of": list(gaps)}),
        "bands": xr.Dataset(
            {"ratio": (("mask", "rate"), bands)}, {"mask": ["KPop", "IPO"], "rate": [0.001, 0.99]}
        ),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """DPPO's two halves, users' sentences, and who is dominated."""
    for name in data["identities"].of.values:
        gap = data["identities"].gap.sel(of=name)
        claim.requires(f"{name}: deviation", worst(gap, tolerance=1e-10))
    judge_clip(data["states"].mass, claim)
    judge_users(data["atlas"], claim)
    judge_bands(data["bands"].ratio, claim)
    judge_frontier(data["atlas"], claim)


def judge_clip(mass: xr.DataArray, claim: Claim) -> None:
    """Which tokens the ratio clip stops, by the divergence of their states."""
    row = claim.also("Potentially catastrophic shifts in high-probability tokens are under-constrained.")
    right, passed, missed = {}, [], []
    for kind, noise in itertools.product(mass.kind.values, mass.noise.values):
        here, name = mass.sel(kind=kind, noise=noise), f"{kind}, noise {noise:g}"
        part = here.mean("batch")
        stopped = here.sel(what="rare within, stopped") + here.sel(what="rare beyond, stopped")
        false = Number(float(part.sel(what="rare within, stopped") / stopped.mean()))
        claim.reports(f"{name}: share of stopped rare tokens that lie within δ", false)
        shares = {
            f"share of {told}": Number(float(part.sel(what=what) / part.sel(what=of)))
            for told, what, of in (
                ("rare tokens within δ that are stopped", "rare within, stopped", "rare within"),
                ("rare tokens beyond δ that are stopped", "rare beyond, stopped", "rare beyond"),
                ("common tokens beyond δ that are stopped", "common beyond, stopped", "common beyond"),
                ("rare tokens beyond δ that DPPO stops", "rare beyond, stopped by DPPO", "rare beyond"),
            )
        }
        (claim if kind == "fixed" else row).reports(name, shares)
        most = bool(part.sel(what="within") >= 0.5)
        if float(part.sel(what="stopped")) >= 0.01:
            wrong = mean(
                here.sel(what="rare within, stopped") - 0.5 * stopped, expected=0.0, relation="at least"
            )
            _judge(claim, kind, most, f"{name}: mass of rare draws stopped within δ, less half of all", wrong)
            right[kind, noise] = 1 - false.value
        if float(part.sel(what="common beyond")) >= 0.01:
            passing = 0.5 * here.sel(what="common beyond") - here.sel(what="common beyond, stopped")
            number = mean(passing, expected=0.0, relation="at least")
            _judge(row, kind, True, f"{name}: mass of common draws beyond δ that pass, less half", number)
            values = list(shares.values())
            passed.append((1 - values[2].value, 1 - values[1].value))
            missed.append(1 - values[3].value)
    near = [1 - far for (kind, noise), far in right.items() if kind != "expert" and noise <= 0.2]
    far = [far for (kind, noise), far in right.items() if kind != "expert" and noise >= 0.4]
    claim.finds(
        f"Up to a mismatch of 0.2 in logits {_range(near)} of the rare tokens that the clip stops lie in "
        "states that have moved less than it allows.",
        when=bool(near) and min(near) > 0.5,
    )
    claim.finds(
        f"From 0.4 on, where most states have moved further, {_range(far)} lie in such states: there it is "
        "right about them.",
        when=bool(far) and min(far) > 0.5,
    )
    row.finds(
        f"In states beyond δ the clip passes {_range(first for first, _ in passed)} of the common tokens and "
        f"{_range(second for _, second in passed)} of the rare ones. No shift by more than ε passes it, as "
        f"|π - q| = q·|π/q - 1|. DPPO's mask passes {_range(missed)} of the rare ones.",
    )


def _range(shares: Iterable[float]) -> str:
    found = sorted({f"{share:.0%}" for share in shares}, key=lambda text: float(text[:-1]))
    return " to ".join([found[0], *found[1:][-1:]]) if found else "none"


def _judge(row: Claim, kind: str, most: bool, name: str, number: Number) -> None:
    if kind == "expert":
        row.qualifies(name, number, only="where mismatch is spread over all states")
    elif most:
        row.refutes(name, number)
    else:
        row.qualifies(name, number, only="while most states lie within δ")


def judge_users(cells: xr.Dataset, claim: Claim) -> None:
    """What users of libraries say of masks, each in its own setting."""
    comparisons = {
        "(prime-rl 1930) Unlike DPPO, we mask independently of the advantage sign, as it is more suitable "
        "for async RL.": ("IPO", "DPPO (TV)", ("older",), ENGINES),
        "(prime-rl 2187, a month later) DPPO+KL outperforms IPO.": (
            "DPPO (TV)", "IPO", ("older",), ENGINES,
        ),
        "(prime-rl 1030, which replaces clipping with masking) An excessively high ratio signals a trainer "
        "inference mismatch which should be treated similar to an error.": (
            "token mask", "token TIS", ENGINES, ("older",),
        ),
    }  # fmt: skip
    for says, (better, worse, asked, beside) in comparisons.items():
        row = claim.also(says)
        name = f"share of tables on which {better} errs less than {worse}"
        row.refutes(name, ahead(cells, better, worse, asked))
        for kind, number in ahead(cells, better, worse, beside).items():
            row.qualifies(f"{name}: {kind}", number, only=f"without the kind {kind!r}")
        lost = [number for number in row.numbers.values() if number.holds is False]
        row.finds(
            f"In the settings that fail first ({'; '.join(number.at for number in lost)}) {worse} errs "
            f"less on {_range(1 - number.value for number in lost)} of the tables.",
            when=bool(lost),
        )
    kept = cells.kept.mean("table").sel(kind="fixed")
    row = claim.also(
        "(TRL 4891) Product ratios favor shorter sequences in masking decisions; the geometric mean measures "
        "the average per-token divergence, independent of length."
    )
    for noise in cells.noise.values:
        short, long = (kept.sel(noise=noise, horizon=T) for T in (HORIZONS[0], HORIZONS[-1]))
        change = long - short
        product = Number(float(change.sel(row="sequence mask")), 0.0, relation="at most")
        row.refutes(f"noise {noise:g}: kept at T = 6 less at T = 1, product", product)
        mean_ = Number(float(change.sel(row="geometric mask")), 0.0, LENGTH)
        row.refutes(f"noise {noise:g}: kept at T = 6 less at T = 1, geometric mean", mean_)
        row.finds(
            f"The geometric mean favors long answers instead: at noise {noise:g} its mask keeps "
            f"{float(short.sel(row='geometric mask')):.0%} of the answers of one token and "
            f"{float(long.sel(row='geometric mask')):.0%} of those of six, as noise averages out.",
            when=mean_.value > LENGTH,
        )
    row = claim.also(
        "(prime-rl 2458) Tokens outside the band dominate the squared log-ratio and contribute the bulk of "
        "the KL."
    )
    lost = cells.lost.sel(row="IPO").mean("table")
    dropped = 1 - cells.kept.sel(row="IPO").mean("table")
    for kind, noise in itertools.product((*ENGINES, "older"), cells.noise.values):
        here = lost.sel(kind=kind, noise=noise, horizon=HORIZONS[-1])
        if float(dropped.sel(kind=kind, noise=noise, horizon=HORIZONS[-1])) >= 0.01:
            number = Number(float(here), 0.5, relation="at least")
            row.refutes(f"{kind}, noise {noise:g}, T = 6: share of (log π/q)² on tokens IPO drops", number)
    at = lost.sel(kind="fixed", horizon=HORIZONS[-1])
    row.finds(
        f"The share grows with the mismatch: {float(at.sel(noise=0.2)):.0%} at a noise of 0.2 in logits, "
        f"{float(at.sel(noise=0.8)):.0%} at 0.8.",
        when=bool(at.sel(noise=0.2) < 0.5 < at.sel(noise=0.8)),
    )


def judge_bands(ratio: xr.DataArray, claim: Claim) -> None:
    """KPop's band beside IPO's, in ratios."""
    row = claim.also(
        "(prime-rl 3283) Compared to IPO's absolute probability-difference band, the binary-KL band adapts "
        "to token probability: wide in ratio terms for rare tokens, tight for confident ones."
    )
    rare, sure = (ratio.sel(rate=rate) for rate in (0.001, 0.99))
    wide = Number(float(rare.sel(mask="KPop") / rare.sel(mask="IPO")), 1.0, relation="at least")
    row.refutes("greatest ratio kept at a probability of .001, KPop's over IPO's", wide)
    tight = Number(float(sure.sel(mask="KPop") / sure.sel(mask="IPO")), 1.0, relation="at most")
    row.refutes("greatest ratio kept at a probability of .99, KPop's over IPO's", tight)
    row.finds(
        f"For rare tokens IPO's band is the wider one, in ratio: up to {float(rare.sel(mask='IPO')):.0f} "
        f"times at a probability of .001, KPop's up to {float(rare.sel(mask='KPop')):.0f} times.",
        when=wide.holds is False,
    )


def judge_frontier(cells: xr.Dataset, claim: Claim) -> None:
    """Who is dominated everywhere, in words."""
    row = claim.ours("None of these corrections is dominated everywhere, by one other, in bias and variance.")
    for kind in KINDS[:-1]:
        at = pooled(cells.sel(kind=kind, noise=NOISE[1:], horizon=HORIZONS[1:]))
        losers = dominated(at)
        row.refutes(f"{kind}: rows dominated at every noise from 0.2 and T from 2", Number(len(losers), 0.0))
        words = "; ".join(f"{loser} by {winner}" for loser, winner in losers.items())
        row.finds(f"{kind.capitalize()}: dominated everywhere are {words}.", when=bool(losers))
    small = pooled(cells.sel(kind="bfloat16", noise=NOISE[0]))
    apart = abs(small / small.sel(row="none") - 1).sel(what="variance").max()
    row.reports("bfloat16: greatest relative difference of variance from no correction", Number(float(apart)))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Where the rare draws lie that the clip stops; bias and variance of every row under fixed noise."""
    figure.set_size_inches(7, 3.9)
    left, right = plotting.panels(figure, 1, 2, width_ratios=(1, 1.25))
    mass = data["states"].mass.sum("batch")
    within = mass.sel(what="rare within, stopped")
    share = within / (within + mass.sel(what="rare beyond, stopped"))
    names = {"fixed": "noise", "expert": "another expert", "older": "an older policy"}
    for place, (kind, label) in enumerate(names.items()):
        left.plot(share.noise, share.sel(kind=kind), "o-", ms=4, color=plotting.COLORS[place], label=label)
    left.axhline(0.5, color="black", lw=0.8)
    left.set(
        xscale="log", xlabel="size of the mismatch (logits)", title="rare tokens that a clip of 0.2 stops"
    )
    left.set(ylabel="share in states that moved less than it allows", ylim=(-0.03, 1.03))
    left.minorticks_off()
    left.set_xticks(NOISE, [f"{size:g}" for size in NOISE])
    left.legend()
    cells = data["atlas"].sel(noise=0.4, horizon=6, kind="fixed")
    bias = np.sqrt(cells.bias.mean("table") / cells.square).values
    variance = (cells.variance.mean("table") / cells.own).values
    right.scatter(variance, bias, c=[_color(row) for row in ROWS], s=16, zorder=3)
    order = np.lexsort((-variance, bias))
    for height, place in zip(np.linspace(0.0, 1.0, len(order)), order, strict=True):
        right.annotate(
            ROWS[place], (variance[place], bias[place]), (1.06, height), textcoords="axes fraction",
            fontsize=7.5, va="center", annotation_clip=False, color=_color(ROWS[place]),
            arrowprops={"arrowstyle": "-", "color": "0.8", "lw": 0.6, "relpos": (0, 0.5)},
        )  # fmt: skip
    right.set(xlabel="variance / on-policy", ylabel="bias / |gradient|")
    right.set_title("one update, noise of 0.4, T = 6")


def _color(row: str) -> str:
    families = ("none", "weights", "TIS", "mask", "trust region")
    return plotting.COLORS[families.index(_family(row))]


def _family(row: str) -> str:
    for family in ("none", "weights", "TIS", "mask"):
        if family in row:
            return family
    return "mask" if row in ("IcePop", "IPO", "KPop") else "trust region"
