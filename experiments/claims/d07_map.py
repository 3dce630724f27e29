"""Ours: at T = 4 and one rate of AdamW, under an engine's noise of 0.8, no correction gains 0.01 of reward.

The map: rows are corrections, columns kinds of mismatch (bfloat16 as it is; noise of 0.8 on logits, fixed or
fresh at each iteration; another expert at a tenth of the states), in each cell bias and variance of one
update and what training does. Trees of three tokens, T = 4, binary rewards, groups of 8, one step a batch by
AdamW without decay, to which the scale of a correction is nothing, at a rate at which runs without mismatch
climb from 0.5 to 0.9; J is that of the policy itself, over training. Questions, noise, tokens and iterations
are the same in every cell (common random numbers). Bias and variance are exact, at the start.

Refuted if for some row and kind of noise (fixed, fresh, expert) the 99.9 % interval of J over training less
that without a correction, over questions, all rows together, lies above 0.01. Under bfloat16, which costs
nothing, there is nothing to gain: it is reported, as is what corrections lose. Control: with the same engine
all rows are one run. The row on dominance: refuted if no correction is beaten everywhere by one other, which
has no more bias, variance or lost reward under any kind and less of one under some; more and less mean by 1 %
of the gradient's norm, 1 % of the policy's own variance, 0.005 of reward, of reward by 99.9 % intervals, all
pairs and kinds together. The rows on what trains better than another (DPPO than PPO's clip, in either form;
DPPO than IPO): refuted if J over training is behind by 0.005 under some kind, or ahead by it under none;
reproduced if ahead by it under one, by intervals over questions, all kinds together. DPPO and IPO have the
masks of 0.2 of their source, a mask of 0.1 qualifies. An engine's noise only, no older policy; the first step
on a batch; one rate; without the KL term of the source.
"""

import itertools
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import CONFIDENCE, Number, each, hardest, interval, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import mismatches, trees
from experiments.problems.mismatch_atlas import winners
from experiments.problems.mismatches import AS_QUOTED, ENGINES, ROWS
from grpo_jax import plotting

SIZES = sizes(tables=(96, 320, 960), iterations=(40, 100, 100), draws=(2, 4, 8))

SPACE = gj.Sequences(vocab=3, horizon=4)
GROUP, SPREAD = 8, 1.5
KINDS = list(ENGINES)[1:]
NOISES = KINDS[1:]
"""Kinds that cost reward: bfloat16 does not."""
QUOTED = ("DPPO (TV) at 0.2", "IPO at 0.2")
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
        found.append([bias[: len(ROWS)], error.variance.sum(1)[: len(ROWS)] / own])
    axes = {"kind": list(ENGINES), "what": ["bias", "variance"], "row": ROWS}
    return xr.DataArray(np.array(found), axes, tuple(axes)).to_dataset("what")


def training(
    given: trees.Problem, root: int, iterations: int, correction: mismatches.Correction, axes: dict[str, Any]
) -> xr.Dataset:
    """J of every question over training (``whole``) and in its last tenth (``end``), over axes and kinds."""
    config = mismatches.config_of(given, mismatches.OneOf(), group_size=GROUP, correction=correction)
    kinds = {"behavior.mismatch.kind": {name: float(place) for place, name in enumerate(ENGINES)}}
    data = gj.sweep(
        config, axes | kinds, iterations=iterations, root=root, record=["prompt_reward"],
        record_every=iterations // 20, progress=False,
    )  # fmt: skip
    names = {"behavior.mismatch.kind": "kind", "context": "table"} | dict.fromkeys(axes, "row")
    reward = data.prompt_reward.isel(seed=0, drop=True).rename(names)
    last = reward.isel(iteration=slice(-2, None)).mean("iteration")
    return xr.Dataset({"end": last, "whole": reward.mean("iteration")})


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """The map: one update in double precision, training in the precision of runs."""
    given = trees.problem(seed, SPACE, tables=size.tables, kind="binary", spread=SPREAD)
    with jax.enable_x64(True):
        update = one_update(given, seed, size.draws)
    rows = {"method.corrections.0.row": {name: float(place) for place, name in enumerate(ROWS)}}
    quoted = [training(given, seed, size.iterations, AS_QUOTED[name], {}) for name in QUOTED]
    return {
        "update": update,
        "training": training(given, seed, size.iterations, mismatches.Chosen(), rows),
        "quoted": xr.concat(quoted, xr.Variable("row", list(QUOTED))),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """What corrections gain in training, who is dominated, and who trains better than whom."""
    update, whole = data["update"], data["training"].whole
    alike = whole.sel(kind="same") - whole.sel(kind="same", row="none", drop=True)
    claim.requires("same engine: J less that without a correction", worst(alike, tolerance=1e-6))
    gained = (whole - whole.sel(row="none", drop=True)).sel(row=ROWS[1:])
    for kind in KINDS:
        ahead = each(gained.sel(kind=kind), over="table", expected=GAIN, relation="at most", together=True)
        role = claim.refutes if kind in NOISES else claim.reports
        role(f"{kind}: gain of the correction that gains most", hardest(ahead))
        behind = each(gained.sel(kind=kind), over="table", expected=0.0, relation="at least", together=True)
        claim.reports(f"{kind}: loss of the correction that loses most", hardest(behind))
    lost = (whole.sel(kind="same", row="none", drop=True) - whole).mean("table")
    for kind, name in itertools.product(KINDS, ROWS):
        claim.reports(f"{kind}, {name}: bias / gradient", Number(float(update.bias.sel(kind=kind, row=name))))
        claim.reports(f"{kind}, {name}: variance", Number(float(update.variance.sel(kind=kind, row=name))))
        claim.reports(f"{kind}, {name}: J lost", Number(float(lost.sel(kind=kind, row=name))))
    held = [number for name, number in claim.numbers.items() if claim.roles[name] == "refutes"]
    told(update, lost, held, claim)
    judge_dominance(update, whole, claim)
    judge_dppo(whole, data["quoted"].whole, claim)


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
    dear = float(abs(lost.sel(kind="bfloat16")).max())
    claim.finds(
        f"Logits in bfloat16, as they are, cost nothing: they change reward by {dear:.4f} at most under any "
        f"row, bias and variance by {far:.1%}.",
        when=far < 0.01 and dear < 0.001,
    )


def beaten(update: xr.Dataset, whole: xr.DataArray) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Rows to which another surely, and perhaps, never loses by a margin, and wins once, with these others.

    Reward is known by an interval over questions, for all pairs and kinds together.
    """
    level = 1 - (1 - CONFIDENCE) / (len(ROWS) * (len(ROWS) - 1) * len(KINDS))
    surely: dict[str, list[str]] = {}
    perhaps: dict[str, list[str]] = {}
    exact = update.sel(kind=KINDS).to_array() / 0.01
    J = whole.sel(kind=KINDS, row=ROWS)
    for row in ROWS:
        gap = exact.sel(row=row, drop=True) - exact
        never = (gap >= -1).all(["variable", "kind"])
        wins = (gap > 1).any(["variable", "kind"])
        reward = interval(J - J.sel(row=row, drop=True), over="table", confidence=level) / LESS
        for found, end in ((surely, reward.low), (perhaps, reward.high)):
            who = never & (end >= -1).all("kind") & (wins | (end > 1).any("kind"))
            if bool(who.any()):
                found[row] = [name for name in ROWS if who.sel(row=name)]
    return surely, perhaps


def judge_dominance(update: xr.Dataset, whole: xr.DataArray, claim: Claim) -> None:
    """In words."""
    row = claim.ours(
        "Some corrections are dominated everywhere: one other has no more bias, variance or lost reward "
        "under any kind of mismatch."
    )
    surely, perhaps = beaten(update, whole)
    low, high = float(len(surely)), float(len(perhaps))
    row.refutes("rows dominated everywhere", Number(low, 1.0, low=low, high=high, relation="at least"))
    found = winners(surely)
    for winner, losers in found.items():
        row.reports(f"rows that {winner} beats ({', '.join(losers)})", Number(len(losers)))
    words = ", ".join(f"{winner} beats {len(losers)}" for winner, losers in found.items())
    rest = [name for name in ROWS if name not in perhaps]
    row.finds(f"Of {len(ROWS)}, {words}.", when=bool(surely))
    row.finds(f"Surely beaten by none: {', '.join(rest)}.", when=bool(rest))


def judge_dppo(whole: xr.DataArray, quoted: xr.DataArray, claim: Claim) -> None:
    """The abstract's last sentence, for both forms, and what a user says of one of them."""
    for name in ("DPPO (TV)", "DPPO (KL)"):
        row = claim.also(
            f"(DPPO, arXiv:2602.04879, abstract; here {name} beside PPO's clip, under an engine's noise, at "
            "the first step on a batch, at one rate) DPPO achieves superior training stability and "
            "efficiency compared to existing methods."
        )
        judge_lead(whole, name, "PPO's clip", row)
        less = whole.sel(row=name, drop=True) - whole.sel(row="none", drop=True)
        row.reports(f"J with {name} less that without a correction", each(less.sel(kind=KINDS), over="table"))
    row = claim.also(
        "(prime-rl 2187; here training under an engine's noise, on no older policy, without the KL term of "
        "either) DPPO+KL outperforms IPO."
    )
    judge_lead(quoted, QUOTED[0], QUOTED[1], row)
    judge_lead(whole, "DPPO (TV)", "IPO", row, only="with masks of 0.2")


def judge_lead(whole: xr.DataArray, better: str, worse: str, row: Claim, only: str = "") -> None:
    """``better`` trains ahead of ``worse`` under one kind, and behind it under none."""

    def judged(name: str, number: Number | dict[str, Number]) -> None:
        if only:
            row.qualifies(name, number, only=only)
        else:
            row.refutes(name, number)

    gain = (whole.sel(row=better, drop=True) - whole.sel(row=worse, drop=True)).sel(kind=KINDS)
    behind = each(gain, over="table", expected=-LESS, relation="at least", together=True)
    judged(f"J with {better} less that with {worse}", behind)
    ahead = each(gain, over="table", expected=LESS, relation="at least", together=True)
    judged(f"greatest lead of {better} over {worse}", leading(ahead))
    words = ", ".join(f"{number.value + 0.0:+.3f} ({WORDS[kind]})" for kind, number in ahead.items())
    row.finds(f"{better} less {worse}: {words}.")


def leading(numbers: dict[str, Number]) -> Number:
    """Of numbers of which one is enough the one that holds, else one that is open, else one that fails."""
    rank = {True: 2, None: 1, False: 0}
    name = max(numbers, key=lambda kind: (rank[numbers[kind].holds], numbers[kind].value))
    return replace(numbers[name], at=name)


def site_table(data: dict[str, xr.Dataset]) -> list[dict[str, Any]]:
    """The map's numbers: every correction under every kind of mismatch, rewards with 99.9 % intervals.

    ``lost`` is J without mismatch and correction less J here, ``won`` J here less J without a correction.
    """
    update, whole = data["update"], data["training"].whole
    lost = interval(whole.sel(kind="same", row="none", drop=True) - whole, over="table")
    won = interval(whole - whole.sel(row="none", drop=True), over="table")
    found = []
    for name, kind in itertools.product(ROWS, KINDS):
        here = {"kind": kind, "row": name}
        numbers = {"bias": update.bias, "variance": update.variance}
        for word, mean in (("lost", lost), ("won", won)):
            numbers |= {word: mean.value, f"{word} low": mean.low, f"{word} high": mean.high}
        told = {word: float(f"{float(array.sel(here)):.4g}") for word, array in numbers.items()}
        found.append({"correction": name, "mismatch": WORDS[kind], **told})
    return found


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """The map: three numbers for every correction and kind."""
    figure.set_size_inches(7, 5.6)
    panels = plotting.panels(figure, 1, 3, sharey=True)
    whole = data["training"].whole
    lost = 100 * (whole.sel(kind="same", row="none", drop=True) - whole).mean("table")
    lost = lost.round(1) + 0.0  # no negative zero
    shown = {
        "bias / |gradient|": data["update"].bias,
        "variance / on-policy": data["update"].variance,
        "reward lost × 100": lost,
    }
    for axes, (title, array) in zip(panels, shown.items(), strict=True):
        cells = array.sel(kind=KINDS, row=ROWS[::-1])
        cells = cells.assign_coords(kind=[WORDS[kind].replace(" ", "\n") for kind in KINDS])
        log = "variance" in title
        limits = (0.5, 5.0) if log else None  # above, one colour: the number is in the cell
        plotting.heatmap(
            axes, cells, x="kind", y="row", log=log, limits=limits, annotate=True, colorbar=False
        )
        axes.set(title=title, xlabel="", ylabel="")
    figure.suptitle("Corrections for an engine's mismatch: one update, and what training makes of it (T = 4)")
