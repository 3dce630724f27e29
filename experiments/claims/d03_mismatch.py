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

Rows on corrections judge one update, exactly: trees of three tokens, T = 1 to 6, binary rewards, groups of 8,
batches of 64 groups, error² = bias² + variance/64 against f·∇J(π), f = 1 - 1/G; as a share of tables, 99.9 %,
at least half, in every setting in which errors differ by over 1 % on a third of the tables; open where no
setting is such. Excessively high is a ratio above 8, as in its source; noise is Gaussian, without errors of
another sort. Lengths, at noises at which a mask drops a hundredth of the answers of one length, by intervals
over tables: refuted if the product keeps more answers of six tokens than of one, or a geometric mean within
[1/2, 2] another share, by 0.05. The KL: refuted if under some kind of the largest mismatch IPO's mask of 0.2
drops a hundredth of the tokens and less than half of (log π/q)² with them; qualified if so at a smaller one.
KPop's band: refuted if it is not the wider one beside IPO's at a probability of 0.001, by the greatest ratio
kept, or not the tighter one at 0.99, by the least (the greatest is 1/0.99 with any band). Our row: refuted if
under some kind another correction has, at every noise from 0.2 and T from 2, no more bias nor variance, and
less of one, by 1 % of that without a correction. A trust region is meant to leave the gradient; what that is
good for is not judged here but in training (the map and D4). Checks of the instrument, to 1e-10: mean and
variance of every row from all groups of 3 by the library; sequence weights are unbiased up to f; E_q[w²] = (1
+ χ²)^T; token weights follow the local surrogate (C1); without noise no row errs.
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
    winners,
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
NOWHERE = Number(0.5, 0.5, low=0.0, high=1.0, relation="at least", at="no setting: errors are too alike")
"""A share of tables of which nothing is known."""


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


def band(statistic: Statistic, rate: float) -> tuple[float, float]:
    """The least and the greatest π/q of a token that a mask keeps, ``rate`` being its q."""
    new = np.linspace(0, 1, 400_001)[1:-1]
    q = np.full_like(new, rate)
    logs = [jnp.log(each)[None, None] for each in (q, new)]
    blank = jnp.ones_like(logs[0])
    rollout = Rollout(jnp.zeros(1), blank, blank, blank[:, :, :1], blank[:, :, 0], logs[0], logs[1], logs[1])
    kept = new[np.asarray(statistic(rollout))[0, 0] <= REGION] / rate
    return float(kept.min()), float(kept.max())


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """The atlas of one update, draws of single states, identities, and the bands of two masks."""
    gaps = every_group(seed)
    bands = [[band(s, p) for p in (0.001, 0.99)] for s in (BothBinaryKL(), TotalVariation())]
    return {
        "atlas": atlas(seed, size),
        "states": xr.Dataset({"mass": draws_of_states(seed, size.states)}),
        "identities": xr.Dataset({"gap": ("of", list(gaps.values()))}, {"of": list(gaps)}),
        "bands": xr.Dataset(
            {"ratio": (("mask", "rate", "end"), bands)},
            {"mask": ["KPop", "IPO"], "rate": [0.001, 0.99], "end": ["least", "greatest"]},
        ),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """DPPO's two halves, users' sentences, and who is dominated."""
    for name in data["identities"].of.values:
        gap = data["identities"].gap.sel(of=name)
        claim.requires(f"{name}: deviation", worst(gap, tolerance=1e-10))
    judge_clip(data["states"].mass, claim)
    judge_users(data["atlas"], claim)
    judge_lengths(data["atlas"].kept.sel(kind="fixed"), claim)
    judge_kl(data["atlas"], claim)
    judge_bands(data["bands"].ratio, claim)
    judge_frontier(data["atlas"], claim)


def judge_clip(mass: xr.DataArray, claim: Claim) -> None:
    """Which tokens the ratio clip stops, by the divergence of their states."""
    row = claim.also("Potentially catastrophic shifts in high-probability tokens are under-constrained.")
    right, passed = {}, {}
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
            if kind == "fixed":
                passed[noise] = [1 - number.value for number in list(shares.values())[1:]]
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
    rare, common, spared = ([f"{found[place]:.0%}" for found in passed.values()] for place in range(3))
    row.finds(
        f"Under fixed noise of {', '.join(f'{noise:g}' for noise in passed)} the clip passes "
        f"{', '.join(common)} of the common tokens in states beyond δ, {', '.join(rare)} of the rare ones, "
        f"DPPO's mask {', '.join(spared)} of these. No shift by more than ε passes the clip, as "
        "|π - q| = q·|π/q - 1|.",
        when=bool(passed),
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
    row = claim.also(
        "(prime-rl 1930; here by the error of one update) Unlike DPPO, we mask independently of the "
        "advantage sign, as it is more suitable for async RL."
    )
    judge_errors(cells, ("IPO", "DPPO (TV)"), ("older",), ENGINES, row)
    row = claim.also(
        "(prime-rl 1030, which replaces clipping with masking; here of ratios above 8, under Gaussian noise, "
        "by the error of one update) An excessively high ratio signals a trainer inference mismatch which "
        "should be treated similar to an error."
    )
    judge_errors(cells, ("token mask at 8", "token TIS at 8"), ENGINES, ("older",), row)
    beside = ahead(cells, "token mask", "token TIS", (*ENGINES, "older"))
    if beside:
        row.reports("share of tables on which, at 2, the mask errs less than TIS", beside)
    row.finds("Gaussian noise has no errors besides: a ratio above 8 may be what the policy says.")


def judge_errors(
    cells: xr.Dataset, pair: tuple[str, str], asked: tuple[str, ...], beside: tuple[str, ...], row: Claim
) -> None:
    """Whether the first of the pair errs less: under the kinds asked about, and beside these."""
    better, worse = pair
    name = f"share of tables on which {better} errs less than {worse}"
    row.refutes(name, ahead(cells, better, worse, asked) or {"every kind": NOWHERE})
    for kind, number in ahead(cells, better, worse, beside).items():
        row.qualifies(f"{name}: {kind}", number, only=f"without the kind {kind!r}")
    lost = [number for number in row.numbers.values() if number.holds is False]
    row.finds(
        f"In the settings that fail first ({'; '.join(number.at for number in lost)}) {worse} errs less on "
        f"{_range(1 - number.value for number in lost)} of the tables.",
        when=bool(lost),
    )


def judge_lengths(kept: xr.DataArray, claim: Claim) -> None:
    """Whom masks by the product and by the geometric mean of an answer's ratios keep, by its length."""
    product = claim.also("(TRL 4891) Product ratios favor shorter sequences in masking decisions.")
    middle = claim.also(
        "(TRL 4891) The geometric mean measures the average per-token divergence, independent of length."
    )
    short, long = (kept.sel(horizon=T) for T in (HORIZONS[0], HORIZONS[-1]))
    for row, name in ((product, "sequence mask"), (middle, "geometric mask")):
        for noise in kept.noise.values:
            one, six = (each.sel(noise=noise, row=name) for each in (short, long))
            says = f"noise {noise:g}: share of answers kept at T = 6 less at T = 1"
            change = mean(six - one, expected=0.0, relation="at most")
            if name == "geometric mask":
                change = mean(six - one, expected=0.0, tolerance=LENGTH)
            if 1 - min(float(one.mean()), float(six.mean())) < 0.01:
                row.reports(f"{says} (hardly any is dropped)", change)
                continue
            row.refutes(says, change)
            row.finds(
                f"At noise {noise:g} its mask keeps {float(one.mean()):.0%} of the answers of one token and "
                f"{float(six.mean()):.0%} of those of six.",
                when=name == "sequence mask" or change.value > LENGTH,
            )
    middle.finds(
        "It favors long answers: noise averages out over them.",
        when=any(n.holds is False and n.value > 0 for n in middle.numbers.values()),
    )


def judge_kl(cells: xr.Dataset, claim: Claim) -> None:
    """Which share of the squared log-ratio lies on what IPO drops, at the width of its source."""
    row = claim.also(
        "(prime-rl 2458, of IPO's mask at 0.2) Tokens outside the band would dominate the squared "
        "log-ratio and contribute the bulk of the KL."
    )
    here = cells.sel(row="IPO at 0.2", horizon=HORIZONS[-1])
    for kind, noise in itertools.product((*ENGINES, "older"), cells.noise.values):
        at = here.sel(kind=kind, noise=noise)
        name = f"{kind}, noise {noise:g}, T = 6: share of (log π/q)² on tokens IPO drops"
        number = mean(at.lost, expected=0.5, relation="at least")
        if float(1 - at.kept.mean()) < 0.01:
            row.reports(f"{name} (which are hardly any)", number)
        elif noise == cells.noise.values[-1]:
            row.refutes(name, number)
        else:
            row.qualifies(name, number, only=f"above a mismatch of {noise:g}")
    for kind in (*ENGINES, "older"):
        shares = ", ".join(f"{share:.0%}" for share in here.lost.sel(kind=kind).mean("table").values)
        row.finds(f"{kind.capitalize()}, by size of the mismatch: {shares}.")


def judge_bands(ratio: xr.DataArray, claim: Claim) -> None:
    """KPop's band beside IPO's, in ratios."""
    row = claim.also(
        "(prime-rl 3283) Compared to IPO's absolute probability-difference band, the binary-KL band adapts "
        "to token probability: wide in ratio terms for rare tokens, tight for confident ones."
    )
    rare, sure = ratio.sel(rate=0.001, end="greatest"), ratio.sel(rate=0.99, end="least")
    wide = Number(float(rare.sel(mask="KPop") / rare.sel(mask="IPO")), 1.0, relation="at least")
    row.refutes("greatest ratio kept at a probability of .001, KPop's over IPO's", wide)
    tight = Number(float(sure.sel(mask="KPop") / sure.sel(mask="IPO")), 1.0, relation="at least")
    row.refutes("least ratio kept at a probability of .99, KPop's over IPO's", tight)
    row.finds(
        f"For rare tokens IPO's band is the wider one, in ratio: up to {float(rare.sel(mask='IPO')):.0f} "
        f"times at a probability of .001, KPop's up to {float(rare.sel(mask='KPop')):.0f} times.",
        when=wide.holds is False,
    )
    row.finds(
        f"For confident ones, at .99, KPop's ends at a ratio of {float(sure.sel(mask='KPop')):.3f}, IPO's at "
        f"{float(sure.sel(mask='IPO')):.3f}.",
        when=tight,
    )


def judge_frontier(cells: xr.Dataset, claim: Claim) -> None:
    """Who is dominated everywhere, in words."""
    row = claim.ours("None of these corrections is dominated everywhere, by one other, in bias and variance.")
    for kind in KINDS[:-1]:
        at = pooled(cells.sel(kind=kind, noise=NOISE[1:], horizon=HORIZONS[1:], row=ROWS))
        losers = dominated(at)
        row.refutes(f"{kind}: rows dominated at every noise from 0.2 and T from 2", Number(len(losers), 0.0))
        found = winners(losers)
        for winner, rows in found.items():
            row.reports(f"{kind}: rows that {winner} beats ({', '.join(rows)})", Number(len(rows)))
        words = ", ".join(f"{winner} beats {len(rows)}" for winner, rows in found.items())
        row.finds(f"{kind.capitalize()}: of {len(ROWS)}, {words}.", when=bool(losers))
    small = pooled(cells.sel(kind="bfloat16", noise=NOISE[0], row=ROWS))
    apart = abs(small / small.sel(row="none") - 1).sel(what="variance").max()
    row.reports("bfloat16: greatest relative difference of variance from no correction", Number(float(apart)))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Where the rare draws lie that the clip stops; bias and variance of every row under fixed noise."""
    figure.set_size_inches(8.4, 4.2)
    left, middle, right = plotting.panels(figure, 1, 3, width_ratios=(1.25, 1, 1))
    mass = data["states"].mass.sum("batch")
    within = mass.sel(what="rare within, stopped")
    share = within / (within + mass.sel(what="rare beyond, stopped"))
    names = {"fixed": "noise", "expert": "another expert", "older": "an older policy"}
    for place, (kind, label) in enumerate(names.items()):
        left.plot(share.noise, share.sel(kind=kind), "o-", ms=4, color=plotting.COLORS[place], label=label)
    left.axhline(0.5, color="0.5", lw=0.8, ls="--", label="half: below, the clip is right")
    left.set(xscale="log", xlabel="size of the mismatch (logits)", ylim=(-0.03, 1.4))
    left.set(ylabel="share stopped without need", title="rare tokens that a clip of 0.2 stops")
    left.set_yticks(np.linspace(0, 1, 6))
    left.minorticks_off()
    left.set_xticks(NOISE, [f"{size:g}" for size in NOISE])
    left.legend(loc="upper right")
    cells = data["atlas"].sel(noise=0.4, horizon=6, kind="fixed", row=ROWS)
    bias = np.sqrt(cells.bias.mean("table") / cells.square).values
    variance = (cells.variance.mean("table") / cells.own).values
    order = np.argsort(bias)
    for axes, values, label in (
        (middle, bias, "bias / |gradient|"),
        (right, variance, "variance / on-policy"),
    ):
        for height, place in enumerate(order):
            color = _color(ROWS[place])
            axes.plot([0, values[place]], [height, height], "-", color=color, lw=0.8, alpha=0.5)
            axes.plot(values[place], height, "o", color=color, ms=4.5, clip_on=False)
        axes.set(xlabel=label, ylim=(-0.7, len(ROWS) - 0.3))
        axes.set_xlim(left=0.0, right=1.1 * values.max())
        axes.set_yticks(range(len(ROWS)), [ROWS[place] for place in order] if axes is middle else [])
    middle.set_title("one update, noise of 0.4, T = 6")


def _color(row: str) -> str:
    families = ("none", "weights", "TIS", "mask")
    family = "mask" if row in ("IcePop", "IPO", "KPop") else row.split()[-1]
    return plotting.COLORS[families.index(family) if family in families else len(families)]
