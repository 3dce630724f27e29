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

from typing import Any

import xarray as xr

from experiments.harness.numbers import Number, each, furthest, interval, surest, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import prompt_lengths, token_means
from grpo_jax import plotting

PRECISION = "float64"
SIZES = sizes(seeds=(24, 48, 512), iterations=(40, 40, 300))

TRAINED = ["sequence", "prompt", "batch", "micro-batches"]
LEARNING = [0.1, 0.4, 1.6]
"""Effective, of one prompt."""
TENFOLD = {"sorted": [1, 1, 2, 2, 5, 5, 10, 10], "paired": [1, 10, 5, 6, 6, 5, 10, 1]}
"""Lengths that show the spread; paired, every part has eleven tokens an answer."""
TWICE, NEAR, LONGER, AHEAD, ALIKE = 2.0, 0.1, 0.1, 0.05, 0.02


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """The identities, and training with every mean."""
    runs = [prompt_lengths.trained(seed, size, mean, LEARNING) for mean in TRAINED]
    return {
        "identities": token_means.identities(TENFOLD),
        "runs": xr.concat(runs, xr.Variable("mean", TRAINED)),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Tokens and gradients of success; what the means do in training."""
    known, runs = data["identities"], data["runs"]
    claim.requires("token weights - by hand", worst(known.weights, tolerance=1e-12))
    claim.requires("expected update - every joint batch", worst(known.updates, tolerance=1e-10))
    nested = Number(float(known.nested), 0.0, 1e-12)
    claim.requires("sequence mean within micro-batches - sequence mean", nested)
    claim.refutes("tokens together: prompt of 6 / prompt of 3", Number(float(known.pair), TWICE, 1e-12))
    entering = known.gradient.sel(tokens=6) / known.gradient.sel(tokens=3)
    claim.qualifies(
        "weight of its gradient of success: prompt of 6 / prompt of 3",
        Number(float(entering.sel(mean="batch")), TWICE, NEAR),
        only="of tokens counted together; in the update both prompts' gradients of success weigh alike",
    )
    told = ", ".join(f"{float(entering.sel(mean=m)):.2f} ({m})" for m in ("batch", "prompt", "sequence"))
    claim.finds(f"In the update the prompt of 6 tokens weighs {told} of that of 3.")
    lengths(runs, claim)
    folds(known.fold, claim)
    learning(runs, claim)


def lengths(runs: xr.Dataset, claim: Claim) -> None:
    """Where lengths end, under micro-batches and under the batch mean; nothing rewards a length."""
    row = claim.also(
        '(SkyRL 1637.) The token mean over micro-batches "biases towards larger response lengths".'
    )
    course = runs.tokens.mean("context").sel(order=["any", "any, hard"]).isel(iteration=slice(1, None))
    gap = course.sel(mean=["micro-batches", "sequence"]) - course.sel(mean="batch", drop=True)
    ends = gap.sel(order="any", drop=True).isel(iteration=-1)
    most, last = (surest(each(of, expected=LONGER, relation="at least")) for of in (gap, ends))
    row.refutes("most tokens above the batch mean", most)
    only = "for a while, where most answers are wrong"
    row.qualifies("the same in the end, from success rates of .3", last, only=only)
    for order, start in {"any": prompt_lengths.START, "any, hard": prompt_lengths.HARD}.items():
        found = interval(gap.sel(order=order)).value
        words = [
            f"{float(found.sel(mean=m).min()):+.2f} to {float(found.sel(mean=m).max()):+.2f} ({m})"
            for m in found["mean"].values
        ]
        row.finds(f"From success rates of {start:g} lengths differ by {', '.join(words)} tokens.")


def folds(found: xr.DataArray, claim: Claim) -> None:
    """How many times as much as the least favoured prompt the most favoured one weighs."""
    row = claim.ours(
        "Means per sequence and per prompt weigh a prompt by one over its length, tenfold from 1 to 10 "
        "tokens; a batch mean weighs all alike; one over micro-batches does either, by the order of prompts."
    )
    for mean, fold in {"sequence": 10.0, "prompt": 10.0, "batch": 1.0}.items():
        row.refutes(f"{mean} mean", worst(found.sel(mean=mean), expected=fold, tolerance=1e-9))
    for order, fold in {"sorted": 10.0, "paired": 1.0}.items():
        number = Number(float(found.sel(mean="micro-batches", order=order)), fold, 1e-9)
        row.refutes(f"mean over micro-batches, {order}", number)


def learning(runs: xr.Dataset, claim: Claim) -> None:
    """How far short prompts are ahead of long ones, on average over training."""
    row = claim.ours(
        "Under a sequence or a prompt mean short prompts are learnt before long ones, under a batch mean not."
    )
    course = runs.prompt_reward.mean("iteration")
    first, last = (course.isel(context=two).mean("context") for two in (slice(2), slice(-2, None)))
    lead = first - last
    row.requires("placebo, one length", furthest(lead.sel(order="alike"), tolerance=ALIKE))
    for mean in ("sequence", "prompt"):
        found = each(lead.sel(order="sorted", mean=mean), expected=AHEAD, relation="at least")
        row.refutes(f"{mean} mean: lead of short prompts", max(found.values(), key=lambda n: n.low or 0.0))
    even = furthest(lead.sel(order="sorted", mean="batch"), tolerance=ALIKE)
    row.refutes("batch mean: lead of short prompts", even)
    eaten = runs.square.isel(iteration=1).sel(order="sorted").mean(["seed", "learning_rate"])
    shares = eaten.isel(context=slice(-2, None)).sum("context") / eaten.sum("context")
    told = ", ".join(f"{float(shares.sel(mean=m)):.0%} ({m})" for m in TRAINED)
    row.finds(f"Of the squared length of the first update the two longest of eight prompts have {told}.")


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Weights over lengths, and which prompts are learnt first."""
    figure.set_size_inches(7, 3.0)
    left, right = plotting.panels(figure, 1, 2)
    for order, mean, other, color in (
        ("sorted", "prompt", "sequence, prompt; micro-batches, sorted", plotting.COLORS[0]),
        ("paired", "batch", "batch; micro-batches, paired", plotting.COLORS[1]),
    ):
        typical = sorted(TENFOLD[order])
        found = token_means.weights_of_prompts(typical, mean)
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
