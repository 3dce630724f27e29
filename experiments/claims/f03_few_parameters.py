"""(2602.07729, abstract, of LLMs; put to a small transformer.) "Full fine-tuning with SGD updates fewer than
0.02% of model parameters without any sparsity-promoting regularization, more than 1000 times fewer than
AdamW."

arXiv:2602.07729 (Mukherjee et al., read as an abstract), which also says that SGD "matches or even
outperforms AdamW in RL for LLMs". Here a one-layer transformer of width 32 sorts three letters out of five
(exact match); a supervised warm start stops at 30 to 40 % on held-out problems, and GRPO goes on from
there: 8 prompts, groups of 8, one step a batch, no penalty. SGD and AdamW (no decay) at five learning rates
each, a factor of 3 apart; the rate with the best mean accuracy on the 25 held-out problems over the last
quarter on three seeds is judged on others. All seeds start from one warm start. Parameters are stored and
updated in float32 or in bfloat16 (AdamW's moments as well); what is computed is float32. The abstract does
not say how parameters were stored. Changed: other bits than at the start. (Two earlier runs, the last of
eight seeds and 120 iterations, gained too little to be decided, at rates at the end of their grids; a trial
on other draws chose 240 and the fifth rate.)

Refuted if with bfloat16 storage, where rounding helps it most, SGD at its rate changes more than .02 % of
parameters, or AdamW less than 1000 times as many. Qualified if so with float32. That SGD matches AdamW is
refuted if its accuracy is more than .05 below with float32, qualified if so with bfloat16. Ours: that it is
the rounding which leaves parameters as they were under SGD is refuted if with float32 SGD changes less than
.9 of what AdamW does, or with bfloat16 more than .9 of what it does with float32; that few carry the update
if the largest .02 % hold half of its square. A rate of 0 changes nothing (placebo); each optimizer adds .1 to
the accuracy with either storage, at a rate inside its grid. .02 % of this network are three parameters: it
can speak of shares of all, not of which ones a large model would move.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, mean
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from grpo_jax import plotting, warm_start
from grpo_jax.measures import View

SIZES = sizes(seeds=(3, 48, 96), iterations=(40, 240, 400))

TASK = gj.Verifiable(problems=gj.Sort(size=3, letters=5, partial=False), held_out=0.2)
TUNED = 3
"""Seeds that choose the rate."""
RATES = {
    "SGD": (gj.SGD, [0.0, 0.005, 0.015, 0.045, 0.135, 0.405]),
    "AdamW": (gj.AdamW, [0.0, 1e-4, 3e-4, 9e-4, 2.7e-3, 8.1e-3]),
}
STORAGES = ["float32", "bfloat16"]
FEW, TIMES = 0.0002, 1000
MARGIN, LEARNT, NEARLY, HALF = 0.05, 0.1, 0.9, 0.5


def flat(tree: Any) -> jnp.ndarray:
    """All parameters [n], in what they are stored in."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def by_run(function: Any, view: View) -> jnp.ndarray:
    """A function of parameters and of where they started, for every run."""
    if not view.runs:
        return function(view.params, view.state.ref_params)
    return jax.vmap(function, in_axes=-1)(view.params, view.state.ref_params)


@gj.measure(about="share of parameters that changed")
def changed(view: View) -> jnp.ndarray:
    """[(R)]."""
    return by_run(lambda now, start: jnp.mean(flat(now) != flat(start), dtype=jnp.float32), view)


@gj.measure(about="share of parameters that changed, read in bfloat16")
def visible(view: View) -> jnp.ndarray:
    """[(R)] as after a training in float32 whose checkpoints are stored in bfloat16."""

    def one(now: Any, start: Any) -> jnp.ndarray:
        before, after = (flat(x).astype(jnp.bfloat16) for x in (start, now))
        return jnp.mean(after != before, dtype=jnp.float32)

    return by_run(one, view)


@gj.measure(about="share of the squared update in its largest .02 %")
def top(view: View) -> jnp.ndarray:
    """[(R)]; 0 where nothing changed."""

    def one(now: Any, start: Any) -> jnp.ndarray:
        squared = jnp.square(flat(now).astype(jnp.float32) - flat(start).astype(jnp.float32))
        most = jax.lax.top_k(squared, math.ceil(FEW * squared.size))[0]
        return jnp.sum(most) / jnp.maximum(jnp.sum(squared), 1e-30)

    return by_run(one, view)


def train(
    optimizer: Any, axes: Any, stored: dict[str, Any], seeds: range, iterations: int, root: int
) -> xr.Dataset:
    """GRPO from the warm start: what changed by its end, and accuracy over the last quarter."""
    config = gj.Config(
        policy=next(iter(stored.values())), task=TASK, method=gj.Method(penalty=None), optimizer=optimizer,
        loop=gj.Loop(prompts=8, group_size=8), expectation=gj.Sampled(),
    )  # fmt: skip
    data = gj.sweep(
        config, axes, variants={"policy": stored}, seeds=seeds, iterations=iterations, root=root,
        record=[], record_every=iterations // 8, progress=False,
        measure={
            "accuracy": gj.measures.held_out(256), "changed": changed, "visible": visible, "top": top
        },
    )  # fmt: skip
    late = data.accuracy.isel(iteration=slice(-2, None)).mean("iteration")
    last = data.isel(iteration=-1, drop=True).assign(accuracy=late)
    return last.drop_attrs().rename(policy="storage")


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """From one warm start: every optimizer and storage at all rates, and each at its best on other seeds."""
    policy = gj.TransformerPolicy(
        space=TASK.space, prompt_length=TASK.prompt_length, layers=1, width=32, heads=2
    )
    warm = warm_start.fit(policy, TASK, seed=seed, progress=False)
    started: Any = warm.policy
    tried, judged = [], []
    for make, rates in RATES.values():
        stored = {name: dataclasses.replace(started, storage=name) for name in STORAGES}
        optimizer = make(learning_rate=0.1)
        found = train(optimizer, {"learning_rate": rates}, stored, range(TUNED), size.iterations, seed)
        found = found.rename(learning_rate="step").assign_coords(step=range(len(rates)))
        best = found.accuracy.isel(step=slice(1, None)).mean("seed").fillna(0).idxmax("step")
        own = []
        for name, kept in stored.items():
            rate = [rates[int(best.sel(storage=name))]]
            others = range(TUNED, TUNED + size.seeds)
            own.append(
                train(optimizer, {"learning_rate": rate}, {name: kept}, others, size.iterations, seed).isel(
                    learning_rate=0, drop=True
                )
            )
        tried.append(found)
        judged.append(xr.concat(own, "storage").assign(best=best))
    names = xr.Variable("optimizer", list(RATES))
    return {
        "rates": xr.concat(tried, names),
        "judged": xr.concat(judged, names).assign(start=warm.accuracy, parameters=flat(started.start).size),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Shares changed and accuracies, each at its own best rate."""
    placebo = float(data["rates"].changed.isel(step=0).max())
    claim.requires("largest share changed at a rate of 0", Number(placebo, expected=0.0, tolerance=0.0))
    found = data["judged"]
    start = float(found.start)
    match = claim.also(
        '(2602.07729, abstract; put to a small transformer.) SGD "matches or even outperforms AdamW in RL '
        'for LLMs".'
    )
    rounding = claim.ours("What leaves parameters as they were under SGD is the rounding.")
    spread = claim.ours(
        "Nor do few parameters carry the update: the largest .02 % hold less than half of it."
    )
    printed = []
    for storage in STORAGES:
        here = found.sel(storage=storage)
        sgd, adam = (here.sel(optimizer=name) for name in RATES)
        few = mean(sgd.changed, expected=FEW, relation="at most")
        times = mean(adam.changed - TIMES * sgd.changed, expected=0.0, relation="at least")
        better = mean(sgd.accuracy - adam.accuracy, expected=0.0, tolerance=MARGIN, relation="at least")
        numbers = {f"{storage}, SGD: share changed": few, f"{storage}: share of AdamW - 1000 · SGD's": times}
        for name, number in numbers.items():
            if storage == "bfloat16":
                claim.refutes(name, number)
                printed.append(number)
            else:
                claim.qualifies(name, number, only="where parameters are stored in bfloat16")
        if storage == "float32":
            match.refutes(f"{storage}: accuracy, SGD - AdamW", better)
        else:
            match.qualifies(f"{storage}: accuracy, SGD - AdamW", better, only="with float32 storage")
        for name, own in zip(RATES, (sgd, adam), strict=True):
            where = f"{storage}, {name}"
            rate = RATES[name][1][int(own.best)]
            claim.reports(f"{where}: best rate", Number(rate))
            claim.reports(f"{where}: accuracy (start {start:.2f})", mean(own.accuracy))
            claim.reports(f"{where}: share changed, read in bfloat16", mean(own.visible))
            spread.refutes(f"{where}: in the largest .02 %", mean(own.top, expected=HALF, relation="at most"))
            if name == "AdamW":
                claim.reports(f"{where}: share changed", mean(own.changed))
            inside = float(1 < int(own.best) < len(RATES[name][1]) - 1)
            learnt = mean(own.accuracy - start, expected=LEARNT, relation="at least")
            for row in (claim, match):
                row.requires(f"{where}: accuracy gained", learnt)
                row.requires(f"{where}: best rate inside the grid", Number(inside, expected=1.0))
    moved = [float(found.changed.mean("seed").sel(optimizer="SGD", storage=name)) for name in STORAGES]
    size = int(found.parameters)
    claim.finds(
        f"On this network of {size:,} parameters SGD changes {moved[0]:.1%} of them where they are stored in "
        f"float32 and {moved[1]:.0%} in bfloat16, each at its best rate.",
        when=all(number.holds is False for number in printed),
    )
    single, half = (found.sel(storage=name, optimizer="SGD").changed for name in STORAGES)
    every = found.sel(storage="float32", optimizer="AdamW").changed
    rounding.refutes(
        "float32: share changed, SGD - .9 · AdamW",
        mean(single - NEARLY * every, expected=0.0, relation="at least"),
    )
    rounding.refutes(
        "SGD: share changed, bfloat16 - .9 · float32",
        mean(half - NEARLY * single, expected=0.0, relation="at most"),
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Accuracy and share changed, by rate, and what was judged at the best."""
    figure.set_size_inches(7, 2.8)
    left, right = plotting.panels(figure, 1, 2)
    lines = named(data["rates"].isel(step=slice(1, None)).mean("seed"))
    judged = named(data["judged"])
    for axes, what in ((left, "accuracy"), (right, "changed")):
        plotting.curves(axes, lines[what], over=None, by="kind", x="step")
        for i, (color, kind) in enumerate(zip(plotting.COLORS, judged.kind.values, strict=False)):
            one = judged.sel(kind=kind)
            beside = np.full(one.sizes["seed"], float(one.best) + 0.1 * (i - 1.5))
            axes.scatter(beside, one[what], color=color, s=9, alpha=0.5)
        axes.set(
            xlabel="learning rate (each step × 3)", xticks=range(1, len(RATES["SGD"][1])), ylim=(0, 1.02)
        )
    left.axhline(float(data["judged"].start), color="0.6", ls=":", zorder=0)
    left.set(ylabel="held-out accuracy")
    left.set_title("What SGD and AdamW reach")
    right.axhline(FEW, color="0.6", ls=":", zorder=0)
    right.set(ylabel="share of parameters changed")
    right.set_title("The rounding decides what stays as it was")
    right.get_legend().remove()


def named(data: xr.Dataset) -> xr.Dataset:
    """Optimizer and storage as one dimension."""
    found = data.stack(kind=("optimizer", "storage")).reset_index("kind", drop=True)
    return found.assign_coords(kind=[f"{o}, {s}" for o in RATES for s in STORAGES])
