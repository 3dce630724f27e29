"""Ours: whatever engine's noise there is, no correction trains ahead of none by a hundredth of reward.

The map: rows are corrections, columns kinds of mismatch (bfloat16 as it is; noise of 0.8 on logits, fixed or
fresh at each iteration; another expert at a tenth of the states), in each cell bias and variance of one
update and what training does. Trees of three tokens, T = 4, binary rewards, groups of 8, one step a batch by
AdamW without decay, to which the scale of a correction is nothing, at a rate at which runs without mismatch
climb from 0.5 to 0.9; J is that of the policy itself, over training. Questions, noise, tokens and iterations
are the same in every cell (common random numbers). Bias and variance are exact, at the start.

Refuted if for some row and kind the 99.9 % interval of J over training less that without a correction, over
questions, all rows together, lies above 0.01. Qualified if a correction is behind by as much. Control: with
the same engine all rows are one run. The row on dominance: refuted if no correction is beaten everywhere by
one other, which has no more bias, variance or lost reward under any kind and less of one under some; more
and less mean by 1 % of the gradient's norm, 1 % of the policy's own variance, 0.005 of reward. The row on
DPPO's abstract: refuted if J over training is behind that with PPO's clip by 0.005 under some kind, or ahead
by it under none, with either of its two forms.
"""

import itertools
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, each, hardest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import mismatches, trees
from experiments.problems.mismatches import ENGINES, ROWS
from grpo_jax import plotting

SIZES = sizes(tables=(96, 320, 960), iterations=(40, 100, 100), draws=(2, 4, 8))

SPACE = gj.Sequences(vocab=3, horizon=4)
GROUP, SPREAD = 8, 1.5
KINDS = list(ENGINES)[1:]
GAIN, LESS = 0.01, 0.005
"""Rewards that count: of a correction over none, and in dominance."""
WORDS = {"bfloat16": "bfloat16", "fixed": "fixed noise", "fresh": "fresh noise", "expert": "other expert"}


def one_update(given: trees.Problem, root: int, draws: int) -> xr.Dataset:
    """Bias over ‖f∇J‖ and variance over that of the policy's own groups, by kind and row."""
    target = mismatches.aim(given, group_size=GROUP)
    size = np.sum(target**2)
    own = mismatches.one_update(given, given.logits, group_size=GROUP).variance[0].sum()
    found = []
    for kind, engine in ENGINES.items():
        updates = [
            mismatches.one_update(
                given, mismatches.held(engine, given.logits, root=root, draw=d), group_size=GROUP
            )
            for d in range(1 if kind in ("same", "bfloat16") else draws)
        ]
        error = mismatches.errors(updates, target)[kind == "fresh"]
        bias = np.sqrt(np.maximum(error.bias.sum(1), 0) / size)
        found.append([bias, error.variance.sum(1) / own])
    axes = {"kind": list(ENGINES), "what": ["bias", "variance"], "row": ROWS}
    return xr.DataArray(np.array(found), axes, tuple(axes)).to_dataset("what")


def training(given: trees.Problem, root: int, iterations: int) -> xr.Dataset:
    """J of every question over training (``whole``) and in its last tenth (``end``), by row and kind."""
    axes = {
        "method.corrections.0.row": {name: float(place) for place, name in enumerate(ROWS)},
        "behavior.mismatch.kind": {name: float(place) for place, name in enumerate(ENGINES)},
    }
    data = gj.sweep(
        mismatches.config_of(given, mismatches.OneOf(), group_size=GROUP), axes, iterations=iterations,
        root=root, record=["prompt_reward"], record_every=iterations // 20, progress=False,
    )  # fmt: skip
    names = {"method.corrections.0.row": "row", "behavior.mismatch.kind": "kind", "context": "table"}
    reward = data.prompt_reward.isel(seed=0, drop=True).rename(names)
    last = reward.isel(iteration=slice(-2, None)).mean("iteration")
    return xr.Dataset({"end": last, "whole": reward.mean("iteration")})


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """The map: one update in double precision, training in the precision of runs."""
    given = trees.problem(seed, SPACE, tables=size.tables, kind="binary", spread=SPREAD)
    with jax.enable_x64(True):
        update = one_update(given, seed, size.draws)
    return {
        "update": update,
        "training": training(given, seed, size.iterations),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """What corrections gain in training, who is dominated, and DPPO's abstract."""
    update, whole = data["update"], data["training"].whole
    alike = whole.sel(kind="same") - whole.sel(kind="same", row="none", drop=True)
    claim.requires("same engine: J less that without a correction", worst(alike, tolerance=1e-6))
    gained = (whole - whole.sel(row="none", drop=True)).sel(kind=KINDS)
    for kind in KINDS:
        rows = gained.sel(kind=kind, row=ROWS[1:])
        ahead = each(rows, over="table", expected=GAIN, relation="at most", together=True)
        claim.refutes(f"{kind}: gain of the correction that gains most", hardest(ahead))
        behind = each(rows, over="table", expected=-GAIN, relation="at least", together=True)
        claim.qualifies(
            f"{kind}: loss of the correction that loses most", hardest(behind),
            only=f"as a bound from above: under {WORDS[kind]} some corrections train behind none",
        )  # fmt: skip
    lost = (whole.sel(kind="same", row="none", drop=True) - whole).mean("table")
    for kind, name in itertools.product(KINDS, ROWS):
        claim.reports(f"{kind}, {name}: bias / gradient", Number(float(update.bias.sel(kind=kind, row=name))))
        claim.reports(f"{kind}, {name}: variance", Number(float(update.variance.sel(kind=kind, row=name))))
        claim.reports(f"{kind}, {name}: J lost", Number(float(lost.sel(kind=kind, row=name))))
    held = [number for name, number in claim.numbers.items() if claim.roles[name] == "refutes"]
    told(update, lost, held, claim)
    judge_dominance(update, lost, claim)
    judge_dppo(whole, claim)


def told(update: xr.Dataset, lost: xr.DataArray, held: list[Number], claim: Claim) -> None:
    """What mismatch costs, what corrections win back, and which cost most."""
    alone, wrong = lost.sel(row="none", kind=KINDS), update.bias.sel(row="none")
    back = (alone - lost.sel(kind=KINDS)).max()
    claim.finds(
        f"Left alone, a mismatch that makes an update wrong by up to {float(wrong.max()):.0%} of the "
        f"gradient costs {float(alone.max()):.3f} of reward over training at most. No correction wins back "
        f"more than {float(back):.3f}.",
        when=held,
    )
    cost = (lost - lost.sel(row="none", drop=True)).sel(kind=KINDS).max("kind")
    cost = cost.sortby(cost, ascending=False)
    most = [f"{name} {float(cost.sel(row=name)):.3f}" for name in cost.row.values[:4]]
    claim.finds(f"Worse than doing nothing, by up to: {', '.join(most)}.", when=bool((cost[:4] > GAIN).all()))
    far = float(abs(update - update.sel(row="none", kind="same")).sel(kind="bfloat16").to_array().max())
    claim.finds(
        f"Logits in bfloat16, as they are, change no row's bias or variance by more than {far:.1%}.",
        when=far < 0.01,
    )


def beaten(update: xr.Dataset, lost: xr.DataArray) -> dict[str, list[str]]:
    """Rows to which another never loses by a margin, in bias, variance or reward, and wins once."""
    margins = {"bias": 0.01, "variance": 0.01, "lost": LESS}
    table = xr.concat(
        [update.bias, update.variance, lost], xr.Variable("what", list(margins)), coords="minimal"
    ).sel(kind=KINDS)
    scale = xr.DataArray(list(margins.values()), {"what": table.what}, ("what",))
    found: dict[str, list[str]] = {}
    for row, other in itertools.permutations(ROWS, 2):
        gap = (table.sel(row=row) - table.sel(row=other)) / scale
        if bool((gap >= -1).all()) and bool((gap > 1).any()):
            found.setdefault(row, []).append(other)
    return found


def judge_dominance(update: xr.Dataset, lost: xr.DataArray, claim: Claim) -> None:
    """In words."""
    row = claim.ours(
        "Some corrections are dominated everywhere: one other has no more bias, variance or lost reward "
        "under any kind of mismatch."
    )
    losers = beaten(update, lost)
    row.refutes("rows dominated everywhere", Number(len(losers), 1.0, relation="at least"))
    words = "; ".join(f"{loser} by {', '.join(winners)}" for loser, winners in losers.items())
    row.finds(f"Dominated everywhere: {words}.", when=bool(losers))
    rest = [name for name in ROWS if name not in losers]
    row.finds(f"Not dominated: {', '.join(rest)}.", when=bool(losers))


def judge_dppo(whole: xr.DataArray, claim: Claim) -> None:
    """The abstract's last sentence, against PPO's clip, kind by kind."""
    row = claim.also(
        "(DPPO, arXiv:2602.04879, abstract) DPPO achieves superior training stability and efficiency "
        "compared to existing methods."
    )
    for name in ("DPPO (TV)", "DPPO (KL)"):
        gain = whole.sel(row=name, drop=True) - whole.sel(row="PPO's clip", drop=True)
        numbers = {kind: mean(gain.sel(kind=kind), expected=-LESS, relation="at least") for kind in KINDS}
        row.refutes(f"{name}: J over training less that with PPO's clip", numbers)
        top = max(KINDS, key=lambda kind: numbers[kind].low or 0.0)
        ahead = mean(gain.sel(kind=top), expected=LESS, relation="at least")
        row.refutes(f"{name}: its greatest lead over PPO's clip", replace(ahead, at=top))
        less = whole.sel(row="none", drop=True) - whole.sel(row=name, drop=True)
        behind = mean(less.sel(kind="fixed"), expected=LESS, relation="at least")
        row.reports(f"{name}: J without a correction less that with it, fixed", behind)
        row.finds(
            f"{name}: ahead of PPO's clip by {ahead.value:.3f} under {WORDS[top]}, and {behind.value:.3f} "
            "behind no correction at all under fixed noise.",
            when=[ahead, behind],
        )
        lead = max(KINDS, key=lambda kind: numbers[kind].value)
        row.finds(
            f"{name}: under no kind surely ahead of PPO's clip by {LESS:g} (most, under {WORDS[lead]}: "
            f"{numbers[lead].value:.3f}).",
            when=ahead.holds is not True,
        )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """The map: three numbers for every correction and kind."""
    figure.set_size_inches(7, 5.6)
    panels = plotting.panels(figure, 1, 3, sharey=True)
    whole = data["training"].whole
    lost = 100 * (whole.sel(kind="same", row="none", drop=True) - whole).mean("table")
    shown = {
        "bias / |gradient|": data["update"].bias,
        "variance / on-policy": data["update"].variance,
        "reward lost × 100": lost,
    }
    for axes, (title, array) in zip(panels, shown.items(), strict=True):
        cells = array.sel(kind=KINDS, row=ROWS[::-1])
        cells = cells.assign_coords(kind=[WORDS[kind].replace(" ", "\n") for kind in KINDS])
        plotting.heatmap(
            axes, cells, x="kind", y="row", log="variance" in title, annotate=True, colorbar=False
        )
        axes.set(title=title, xlabel="", ylabel="")
    figure.suptitle("Corrections for an engine's mismatch: one update, and what training makes of it (T = 4)")
