"""(trl 5381.) A mean over all tokens of the batch "up-weights longer sequences since a prompt with 6 tokens
contributes twice as much as a prompt with 3 tokens."

github.com/huggingface/trl/pull/5381, which answers 5375 ("DAPO token level loss is incorrectly implemented")
and was closed; verl 2776 asks the same. A token mean per sequence, per prompt, per batch, or per micro-batch
(a part of the prompts, in order; ranks are the same), the last averaged over parts. Eight prompts of 2 to 8
tokens whose first token alone decides, groups of 8, A = r − r̄, on-policy, SGD, logits of their own.

Refuted if under the batch mean all tokens of the longer prompt together do not weigh twice those of the other
(1e-12). Qualified if that is not so of what trains: the weight with which a prompt's gradient of success,
∇J_q, enters the expected update (2 ± .1). SkyRL 1637 says in a row of its own that a mean over micro-batches
"biases towards larger response lengths": refuted if lengths are at no moment of training surely .1 tokens
above those of a batch mean, with two prompts in a micro-batch or (a sequence mean) one answer, from success
rates of .3 or .05, where answers are of any length; qualified if they are not so in the end from .3. Ours: of
prompts of 1 to 10 tokens the shortest weighs 10 times the longest under a sequence and a prompt mean, and
once under the batch mean; under a mean over micro-batches 10 times where prompts are sorted and once where
long and short ones are paired (1e-9), an identity: it can fall only if the code is wrong. Ours: at equal
effective learning rates (means of these weights over prompts) short prompts are ahead of long ones by at
least .05, on average over training, under a sequence or prompt mean at some rate, and at no rate under the
batch mean (± .02). Checks of our instrument: the library's token weights against loops in NumPy (1e-12), its
expected update against every joint batch (1e-10); a sequence mean within micro-batches is a sequence mean;
placebo: with prompts of one length short and long ones are one (± .02).
"""

import itertools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import denominators
from experiments.harness.numbers import Number, each, furthest, interval, worst
from experiments.harness.numbers import mean as over_seeds
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import prompt_lengths
from grpo_jax import plotting, surrogate
from grpo_jax.parts.reductions import Constant, MicroBatches, PerGroupToken, PerSequence, PerToken, Reduction
from grpo_jax.types import Rollout

PRECISION = "float64"
SIZES = sizes(seeds=(24, 48, 512), iterations=(40, 40, 300))

PARTS = 4
MEANS: dict[str, Reduction] = {
    "sequence": PerSequence(),
    "prompt": PerGroupToken(),
    "batch": PerToken(),
    "micro-batches": MicroBatches(inner=PerToken(), count=PARTS),
    "constant": Constant(length=1.0),
}
TRAINED = ["sequence", "prompt", "batch", "micro-batches"]
LEARNING = [0.1, 0.4, 1.6]
"""Effective, of one prompt."""
TENFOLD = {"sorted": [1, 1, 2, 2, 5, 5, 10, 10], "paired": [1, 10, 5, 6, 6, 5, 10, 1]}
"""Lengths that show the spread; paired, every part has eleven tokens an answer."""
TWICE, NEAR, LONGER, AHEAD, ALIKE = 2.0, 0.1, 0.1, 0.05, 0.02


def batch(lengths: np.ndarray, rewards: Any = None) -> Rollout:
    """A batch of answers of these lengths [P, N]."""
    mask = (np.arange(int(lengths.max())) < lengths[:, :, None]).astype(float)
    shape = lengths.shape
    one = np.zeros(shape) if rewards is None else rewards
    blank = jnp.zeros(mask.shape)
    return Rollout(
        prompts=jnp.arange(shape[0]), tokens=blank.astype(int), mask=jnp.asarray(mask),
        rewards=jnp.asarray(one)[:, :, None], multiplicity=jnp.ones(shape), sampling_logp=blank,
        old_logp=blank, ref_logp=blank,
    )  # fmt: skip


def weights(lengths: np.ndarray, mean: str, reduction: Reduction | None = None) -> np.ndarray:
    """[P, N] the library's weight of an answer's tokens, which all have the same."""
    found = np.asarray((reduction or MEANS[mean])(batch(lengths)))
    return found.max(2)


def updates(chance: np.ndarray, lengths: np.ndarray, mean: str) -> np.ndarray:
    """[P] the library's expected update of the first token's log-odds, over every joint batch of pairs."""
    reduction = MicroBatches(count=len(chance)) if mean == "micro-batches" else MEANS[mean]
    method = gj.Method(
        advantage=prompt_lengths.SHIFT, ratio=prompt_lengths.Score(), gain=prompt_lengths.Linear(),
        reduction=reduction,
    )  # fmt: skip
    whole = np.repeat(lengths[:, None], 2, 1)
    drawn = np.array(list(itertools.product((0.0, 1.0), repeat=whole.size))).reshape(-1, *whole.shape)
    law = np.where(drawn > 0, chance[:, None], 1 - chance[:, None]).prod((1, 2))

    def value(odds: jax.Array, right: jax.Array) -> jax.Array:
        rollout = batch(whole, right)
        sign = jnp.where(right > 0, 1.0, -1.0)
        logp = jnp.zeros(rollout.mask.shape).at[:, :, 0].set(jax.nn.log_sigmoid(sign * odds[:, None]))
        return surrogate.objective(method, rollout, surrogate.advantages(method, rollout), logp)

    slopes = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(jnp.log(chance / (1 - chance)), drawn)
    return law @ np.asarray(slopes)


def identities() -> xr.Dataset:
    """Token weights and expected updates against NumPy; folds at lengths of 1 to 10; the pair of 5381."""
    ragged = np.random.default_rng(4).integers(1, 9, (8, 6))
    gaps = [abs(weights(ragged, m) - denominators.token_weights(ragged, m, parts=PARTS)).max() for m in MEANS]
    chance, pair = np.array([0.3, 0.6]), np.array([3, 6])
    moved, told = [], []
    for mean in MEANS:
        moved.append(updates(chance, pair, mean))
        told.append(denominators.expected_update(chance, pair, mean, group_size=2, parts=2))
    slope = chance * (1 - chance)
    folds = [
        [
            np.ptp(np.log(weights(np.repeat(np.array(row)[:, None], 8, 1), m)[:, 0]))
            for row in TENFOLD.values()
        ]
        for m in MEANS
    ]
    nested = abs(
        weights(ragged, "", MicroBatches(inner=PerSequence(), count=PARTS)) - weights(ragged, "sequence")
    )
    tokens = weights(np.repeat(pair[:, None], 8, 1), "batch")[:, 0] * pair
    return xr.Dataset({
        "weights": xr.DataArray(gaps, {"mean": list(MEANS)}),
        "updates": xr.DataArray(abs(np.array(moved) - told).max(1), {"mean": list(MEANS)}),
        "gradient": xr.DataArray(np.array(moved) / slope, {"mean": list(MEANS), "tokens": pair}),
        "fold": xr.DataArray(np.exp(folds), {"mean": list(MEANS), "order": list(TENFOLD)}),
        "nested": nested.max(),
        "pair": tokens[1] / tokens[0],
    })  # fmt: skip


def trained(seed: int, size: Any, mean: str) -> xr.Dataset:
    """Success rates, lengths and shares of the update by order of prompts, rate and prompt."""
    given = prompt_lengths.config(MEANS[mean], "sorted")
    typical = np.array(prompt_lengths.ORDERS["sorted"], float)[:, None]
    scale = denominators.token_weights(np.repeat(typical, prompt_lengths.GROUP, 1), mean, parts=PARTS)
    rates = [rate / (prompt_lengths.GROUP * float(scale.mean())) for rate in LEARNING]
    tables = {order: prompt_lengths.logits(order) for order in prompt_lengths.ORDERS}
    data = gj.sweep(
        given, {"policy.logits": tables, "learning_rate": rates},
        seeds=size.seeds, iterations=size.iterations, record_every=size.iterations // 20, root=seed,
        record=["prompt_reward"], record_start=True, progress=False,
        measure={"tokens": prompt_lengths.mean_length, "square": prompt_lengths.square},
    )  # fmt: skip
    data = data.rename({"policy.logits": "order"}).assign_coords(learning_rate=LEARNING)
    return data[["prompt_reward", "tokens", "square"]]


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """The identities, and training with every mean."""
    runs = xr.concat([trained(seed, size, mean) for mean in TRAINED], xr.Variable("mean", TRAINED))
    return {"identities": identities(), "runs": runs}


def ends(values: xr.DataArray) -> xr.DataArray:
    """Of the first two prompts, the shortest of "sorted", less of the last two."""
    return values.isel(context=slice(2)).mean("context") - values.isel(context=slice(-2, None)).mean(
        "context"
    )


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Tokens and gradients of success; what the means do in training."""
    known, runs = data["identities"], data["runs"]
    claim.requires("token weights - by hand", worst(known.weights, tolerance=1e-12))
    claim.requires("expected update - every joint batch", worst(known.updates, tolerance=1e-10))
    claim.requires(
        "sequence mean within micro-batches - sequence mean", Number(float(known.nested), 0.0, 1e-12)
    )
    claim.refutes("tokens together: prompt of 6 / prompt of 3", Number(float(known.pair), TWICE, 1e-12))
    entering = known.gradient.sel(tokens=6) / known.gradient.sel(tokens=3)
    claim.qualifies(
        "weight of its gradient of success: prompt of 6 / prompt of 3",
        Number(float(entering.sel(mean="batch")), TWICE, NEAR),
        only="of tokens counted together; in the update both prompts' gradients of success weigh alike",
    )
    claim.finds(
        "In the update the prompt of 6 tokens weighs "
        + ", ".join(f"{float(entering.sel(mean=m)):.2f} ({m})" for m in ("batch", "prompt", "sequence"))
        + " of that of 3."
    )
    lengths(runs, claim.also(
        "(SkyRL 1637.) The token mean over micro-batches \"biases towards larger response lengths\"."
    ))  # fmt: skip
    folds(known.fold, claim.ours(
        "Means per sequence and per prompt weigh a prompt by one over its length, tenfold from 1 to 10 "
        "tokens; a batch mean weighs all alike; one over micro-batches does either, by the order of prompts."
    ))  # fmt: skip
    learning(runs, claim.ours(
        "Under a sequence or a prompt mean short prompts are learnt before long ones, under a batch mean not."
    ))  # fmt: skip


def lengths(runs: xr.Dataset, row: Claim) -> None:
    """Where lengths end, under micro-batches and under the batch mean; nothing rewards a length."""
    course = runs.tokens.mean("context").sel(order=["any", "any, hard"]).isel(iteration=slice(1, None))
    gap = course.sel(mean=["micro-batches", "sequence"]) - course.sel(mean="batch", drop=True)
    row.refutes("most tokens above the batch mean", most(gap))
    row.qualifies(
        "the same in the end, from success rates of .3",
        most(gap.sel(order="any", drop=True).isel(iteration=-1)),
        only="for a while, where most answers are wrong",
    )
    for order in gap.order.values:
        found = interval(gap.sel(order=order)).value
        words = [
            f"{float(found.sel(mean=m).min()):+.2f} to {float(found.sel(mean=m).max()):+.2f} ({m})"
            for m in found["mean"].values
        ]
        start = prompt_lengths.HARD if "hard" in order else prompt_lengths.START
        row.finds(f"From success rates of {start:g} lengths differ by {', '.join(words)} tokens.")


def most(gap: xr.DataArray) -> Number:
    """A setting that is surely above the margin, else the one whose interval reaches highest."""
    numbers = each(gap, expected=LONGER, relation="at least")
    top = max(numbers, key=lambda name: (numbers[name].holds is True, numbers[name].high or 0.0))
    return replace(numbers[top], at=top)


def folds(found: xr.DataArray, row: Claim) -> None:
    """How many times as much as the least favoured prompt the most favoured one weighs."""
    expected = {"sequence": 10.0, "prompt": 10.0, "batch": 1.0}
    for mean, fold in expected.items():
        row.refutes(f"{mean} mean", worst(found.sel(mean=mean), expected=fold, tolerance=1e-9))
    for order, fold in (("sorted", 10.0), ("paired", 1.0)):
        number = Number(float(found.sel(mean="micro-batches", order=order)), fold, 1e-9)
        row.refutes(f"mean over micro-batches, {order}", number)


def learning(runs: xr.Dataset, row: Claim) -> None:
    """How far short prompts are ahead of long ones, on average over training."""
    course = runs.prompt_reward.mean("iteration")
    placebo = ends(course.sel(order="alike"))
    row.requires("placebo, one length", furthest(placebo, tolerance=ALIKE))
    lead = ends(course.sel(order="sorted"))
    for mean in ("sequence", "prompt"):
        found = each(lead.sel(mean=mean), expected=AHEAD, relation="at least")
        row.refutes(f"{mean} mean: lead of short prompts", max(found.values(), key=lambda n: n.low or 0.0))
    row.refutes("batch mean: lead of short prompts", furthest(lead.sel(mean="batch"), tolerance=ALIKE))
    row.reports("micro-batches: lead of short prompts", each(lead.sel(mean="micro-batches")))
    whole = course.sel(order="sorted").mean("context")
    best = {m: at_best_rate(whole.sel(mean=m)) for m in TRAINED}
    for mean in TRAINED:
        row.reports(f"{mean}: mean success rate over training", each(whole.sel(mean=mean)))
        if mean != "batch":
            row.reports(f"{mean} less batch mean, best rates", over_seeds(best[mean] - best["batch"]))
    eaten = runs.square.isel(iteration=1).sel(order="sorted").mean(["seed", "learning_rate"])
    shares = eaten.isel(context=slice(-2, None)).sum("context") / eaten.sum("context")
    row.finds(
        "Of the squared length of the first update the two longest of eight prompts have "
        + ", ".join(f"{float(shares.sel(mean=m)):.0%} ({m})" for m in TRAINED)
        + "."
    )


def at_best_rate(course: xr.DataArray) -> xr.DataArray:
    """At the learning rate with the greatest mean over seeds."""
    place = int(course.mean("seed").argmax("learning_rate"))
    return course.isel(learning_rate=place, drop=True)


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Weights over lengths, and which prompts are learnt first."""
    figure.set_size_inches(7, 3.0)
    left, right = plotting.panels(figure, 1, 2)
    for order, mean, other, color in (
        ("sorted", "prompt", "sequence, prompt; micro-batches, sorted", plotting.COLORS[0]),
        ("paired", "batch", "batch; micro-batches, paired", plotting.COLORS[1]),
    ):
        typical = np.sort(TENFOLD[order])
        found = weights(np.repeat(typical[:, None], 8, 1), mean)[:, 0]
        left.plot(typical, found / found[-1], "o-", ms=3.5, color=color, label=other)
    left.legend()
    left.set(xlabel="tokens of an answer", ylabel="weight of the gradient of success", ylim=(0, 10.5))
    left.set_title("A token mean over what?")
    runs = data["runs"].prompt_reward.sel(order="sorted", learning_rate=0.4).drop_vars("order")
    for mean, style in (("prompt", "-"), ("batch", "--")):
        here = runs.sel(mean=mean).isel(context=[0, 7]).assign_coords(context=["2 tokens", "8 tokens"])
        here.attrs = {"long_name": "success rate"}
        plotting.curves(right, here.rename(context="prompts of"), over="seed", by="prompts of", style=style)
    right.set_title("prompt mean (—), batch mean (– –)")
