"""(2510.11495, abstract.) "When the task consists of predicting the parity of d bits and long sequences are
rare", "reinforcement learning after next-token prediction enables autoregressive transformers to generalize,
whereas mere next-token prediction requires extreme statistical or computational resources to do so".

arXiv:2510.11495 (Tsilivis et al., read as an abstract). Parity of ten bits, a quarter of the 1,024 problems
held out; a transformer of two layers, width 32. Of the demonstrations a share p shows the running parities
before the answer, the others the answer alone; 300 steps on 128 of them each, at a rate that falls from 2e-3
to 0. Then Dr. GRPO (GRPO without 1/|o|, which would weigh a chain less, and without σ) on right or wrong:
8 prompts, groups of 8, one step a batch, no penalty. Every seed has weights, demonstrations and draws of its
own. Accuracy is on held-out problems: greedy, the likeliest token at each step, and sampled. (In a first run,
200 steps on 64 at a constant rate and 60 iterations of GRPO at 1e-3, our control was open at p = .5 and
reinforcement got nowhere. In a second one, seven seeds and 204 iterations at 3e-4, each seed ended near .5 or
near 1, and no mean was decided: at that rate some give the chain up again. Trials on other draws chose what
stands here, where seeds still end at either place: how many do is said. Twelve of its sixteen seeds had left
the means open.)

Refuted if, with p = .1 or .2 by itself, the greedy accuracy after next-token prediction is not within .1 of
chance, .5 (99.9 % over seeds), even after twice as many steps, or is below .9 after reinforcement. "Extreme
resources" are beyond what is tried here. The abstract's "longer responses" is refuted if sampled answers do
not grow by 2 tokens or more. A control: with p = .5 and .7 next-token prediction alone reaches .9 greedily.
Ours: the likeliest answer begins as the chain does and goes on if p > (1 - p)/2, which is p > 1/3; a sampled
one is right with probability (1 + p)/2. Refuted if greedy answers have more than 2.5 tokens at .1 or .2 or
fewer than 10 at .5 or .7, or if a sampled accuracy is more than .1 from (1 + p)/2 at one of them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import each
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from grpo_jax import plotting, warm_start
from grpo_jax.measures import View
from grpo_jax.optimizers import Cosine
from grpo_jax.random import Stream, uniforms

SIZES = sizes(seeds=(2, 16, 40), iterations=(6, 720, 720), steps=(8, 300, 300))

TASK = gj.Verifiable(problems=gj.Parity(bits=10, chain="optional"), held_out=0.25)
POLICY = gj.TransformerPolicy(space=TASK.space, prompt_length=TASK.prompt_length, layers=2, width=32, heads=2)
RARE, COMMON = [0.1, 0.2], [0.5, 0.7]
BATCH, IMITATED, REINFORCED = 128, 2e-3, 1e-4
RECORDS, ASKED = 6, 256
CHANCE, NEARLY, RIGHT, LONGER = 0.5, 0.1, 0.9, 2.0
SHORT, WHOLE = 2.5, 10.0
"""Tokens: an answer alone has two, EOS included, one behind the whole chain eleven."""
NUMBERS = ["sampled", "greedy", "sampled length", "greedy length"]


def answers(policy: Any, params: Any, at: tuple[Any, Any, Any]) -> jnp.ndarray:
    """[4] ``NUMBERS`` of held-out problems; ``at``: root, seed, step."""
    prompts = TASK.held_out_prompts(uniforms(*at, Stream.HELD_OUT, (ASKED,)))
    draws = uniforms(*at, Stream.ANSWER, (ASKED, 1, policy.horizon))
    likeliest = dataclasses.replace(policy, decoding=gj.Decoding(top_k=1.0))
    given = [who.sample(params, prompts, draws) for who in (policy, likeliest)]
    right = [jnp.mean(TASK.grade(prompts, tokens, mask)) for tokens, mask in given]
    return jnp.stack([*right, *(jnp.sum(mask) / ASKED for _, mask in given)])


@gj.measure("number", labels={"number": NUMBERS}, about="of answers to held-out problems")
def told(view: View) -> jnp.ndarray:
    """[4(, R)]."""
    policy, state = view.config.policy, view.state
    if not view.runs:
        return answers(policy, state.params, (state.root, state.seed, state.step))

    def one(params: Any, seed: jnp.ndarray) -> jnp.ndarray:
        return answers(policy, params, (state.root, seed, state.step))

    return jax.vmap(one, in_axes=-1, out_axes=-1)(state.params, state.seed)


def reinforced(policies: dict[float, Any], size: Any, root: int) -> xr.DataArray:
    """[share, iteration, number] Dr. GRPO from each of the policies, and where it starts."""
    config = gj.Config(
        policy=next(iter(policies.values())), task=TASK,
        method=dataclasses.replace(gj.methods.dr_grpo, penalty=None),
        optimizer=gj.ClippedNorm(inner=gj.AdamW(learning_rate=REINFORCED, b2=0.95), max_norm=1.0),
        loop=gj.Loop(prompts=8, group_size=8), expectation=gj.Sampled(),
    )  # fmt: skip
    starts = {str(share): policy for share, policy in policies.items()}
    data = gj.sweep(
        config, variants={"policy": starts}, iterations=size.iterations,
        record_every=size.iterations // RECORDS, record=[], record_start=True, root=root,
        measure={"told": told}, progress=False,
    )  # fmt: skip
    found = data.told.isel(seed=0).reset_coords(drop=True).rename(policy="share")
    return found.assign_coords(share=list(policies))


def taught(shares: list[float], steps: int, root: int) -> tuple[dict[float, Any], xr.DataArray]:
    """Policies after next-token prediction at these shares, and [share, number] what they answer."""
    falling = gj.AdamW(learning_rate=Cosine(init=IMITATED, steps=float(steps)))
    told: dict[str, Any] = {
        "optimizer": gj.ClippedNorm(inner=falling, max_norm=1.0),
        "batch": BATCH,
        "seed": root,
    }
    policies = {p: warm_start.imitate(POLICY, TASK, steps=steps, long=p, **told) for p in shares}
    found = np.stack([asked(policy.start, root) for policy in policies.values()])
    return policies, xr.DataArray(found, {"share": shares, "number": NUMBERS})


@jax.jit
def asked(params: Any, root: Any) -> jnp.ndarray:
    """[4] ``answers`` before reinforcement."""
    return answers(POLICY, params, (jnp.uint32(root), jnp.uint32(0), jnp.uint32(0)))


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Next-token prediction at every share, at rare ones twice as long, too; and Dr. GRPO after it."""
    once, twice, after = [], [], []
    for root in range(1000 * seed, 1000 * seed + size.seeds):
        policies, found = taught([*RARE, *COMMON], size.steps, root)
        once.append(found)
        twice.append(taught(RARE, 2 * size.steps, root)[1])
        after.append(reinforced({p: policies[p] for p in RARE}, size, root))
    seeds = xr.Variable("seed", range(size.seeds))
    return {
        "imitated": xr.Dataset({"once": xr.concat(once, seeds)}),
        "longer": xr.Dataset({"twice": xr.concat(twice, seeds)}),
        "reinforced": xr.Dataset({"told": xr.concat(after, seeds)}),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Chance before, right after, longer meanwhile; and the threshold."""
    once, twice = data["imitated"].once, data["longer"].twice
    curves = data["reinforced"].told
    start, end = curves.isel(iteration=0, drop=True), curves.isel(iteration=-1, drop=True)
    for name, found in (("", once.sel(share=RARE)), (", twice the steps", twice)):
        claim.refutes(
            f"next-token prediction{name}, greedy accuracy",
            each(found.sel(number="greedy", drop=True), expected=CHANCE, tolerance=NEARLY),
        )
    common = each(once.sel(share=COMMON, number="greedy", drop=True), expected=RIGHT, relation="at least")
    claim.requires("next-token prediction, chains common, greedy accuracy", common)
    after = each(end.sel(number="greedy", drop=True), expected=RIGHT, relation="at least")
    claim.refutes("after reinforcement, greedy accuracy", after)
    claim.reports("after reinforcement, sampled accuracy", each(end.sel(number="sampled", drop=True)))
    learnt = (end.sel(number="greedy", drop=True) >= RIGHT).sum("seed")
    told = " and ".join(f"{int(learnt.sel(share=p))} at p = {p:g}" for p in RARE)
    claim.finds(
        f"Of {end.sizes['seed']} seeds {told} reach {RIGHT:g} greedily, in {int(curves.iteration[-1])} "
        "iterations."
    )
    row = claim.also(
        '(2510.11495, abstract.) "Reinforcement learning leverages increased test-time computation, '
        'manifested in longer responses".'
    )
    grown = (end - start).sel(number="sampled length", drop=True)
    row.refutes("tokens more after reinforcement", each(grown, expected=LONGER, relation="at least"))
    judge_threshold(once, claim)


def judge_threshold(once: xr.DataArray, claim: Claim) -> None:
    """Where the likeliest answer has the chain, and how often a sampled one is right."""
    row = claim.ours(
        "The likeliest answer shows the chain where more than a third of the demonstrations do; a sampled "
        "one is right with probability (1 + p)/2."
    )
    learnt = each(once.sel(share=COMMON, number="greedy", drop=True), expected=RIGHT, relation="at least")
    row.requires("chains common, greedy accuracy", learnt)
    length = once.sel(number="greedy length", drop=True)
    row.refutes(
        "greedy tokens, chains rare", each(length.sel(share=RARE), expected=SHORT, relation="at most")
    )
    row.refutes(
        "greedy tokens, chains common", each(length.sel(share=COMMON), expected=WHOLE, relation="at least")
    )
    sampled = once.sel(share=[*RARE, *COMMON], number="sampled", drop=True)
    gap = sampled - (1 + sampled.share) / 2
    row.refutes("sampled accuracy - (1 + p)/2", each(gap, expected=0.0, tolerance=NEARLY))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Accuracy by share after next-token prediction; every seed's accuracy and length through reinforcement,
    as they end at one of two places.
    """
    figure.set_size_inches(7, 2.6)
    left, middle, right = plotting.panels(figure, 1, 3)
    once, curves = data["imitated"].once, data["reinforced"].told
    accuracy = once.sel(number=["sampled", "greedy"])
    accuracy.attrs = {"long_name": "held-out accuracy"}
    plotting.curves(left, accuracy, over="seed", by="number", x="share")
    left.axvline(1 / 3, color="0.6", ls=":", zorder=0)
    left.set(xlabel="share of demonstrations with the chain", ylim=(0.4, 1.02))
    left.set_title("Next-token prediction alone")
    for axes, number, name in (
        (middle, "greedy", "held-out accuracy, greedy"), (right, "sampled length", "tokens, sampled")
    ):  # fmt: skip
        values = curves.sel(number=number, drop=True)
        for color, share in zip(plotting.COLORS, values.share.values, strict=False):
            for place in range(values.sizes["seed"]):
                one = values.sel(share=share).isel(seed=place)
                axes.plot(one.iteration, one, color=color, lw=0.9, label=f"{share:g}" if place == 0 else None)
        axes.set(xlabel="iteration", ylabel=name)
    middle.set(ylim=(0.4, 1.02))
    middle.set_title("Then reinforcement, each seed")
    middle.legend(title="share")
    right.set_title("Length, each seed")
