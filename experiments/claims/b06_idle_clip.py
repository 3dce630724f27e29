"""Clipping is inactive in the first inner step on a batch, where the ratio is 1; with one optimizer step on
each batch (μ = 1) it never acts.

[B] (arXiv:2601.05002), on the clip of equation (1); the words are a paraphrase, the place is not known to us.
π_old is the policy that drew the batch, so that the first inner step is taken at ratios of exactly 1. In
exact numbers this holds by construction (exp 0 = 1): what can fail is that both forward passes give the same
bits, and that no other path lets the clip act. Eight contexts of five answers with noisy rewards, GRPO
without a penalty, clipped at 0.2 and not at all on the same draws, SGD and AdamW, as many optimizer steps at
every μ.

Refuted if at μ = 1 one bit of a policy differs between clipped and unclipped runs, or if at any μ the clip
holds a token in the first inner step; each optimizer by itself. Two controls check that a clip at work would
be seen: 64 passes, and μ = 1 with an old policy that is refreshed every eighth iteration only, must move the
policy. One pass in minibatches is several steps: what the clip does there is reported. Ours: from how many
passes on clipping changes the reward that training ends with; and the gradient at exactly 1 ± ε.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, each, furthest, interval, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from grpo_jax import plotting
from grpo_jax.measures import DIAGNOSTICS, StepView, View
from grpo_jax.parts.gains import Clip
from grpo_jax.tasks import Bernoulli
from grpo_jax.types import Evaluation

SIZES = sizes(seeds=(16, 128, 1024))

BOUND = 0.2
PASSES = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
STEPS = 576
"""Optimizer steps: more passes, fewer batches."""
OPTIMIZERS = {"SGD": (1.0, 0.0), "AdamW": (0.0, 0.03)}
"""Learning rates of SGD and of AdamW."""
CLIPS = {"clipped": (BOUND, BOUND), "unclipped": (np.inf, np.inf)}
REFRESH = 8
"""Iterations between two refreshes of the stale old policy; its age is 0 to REFRESH - 1 steps."""
MINIBATCHES = 8
FEW = 4
"""Passes up to which clipping is said to change nothing worth speaking of."""
MARGIN = 0.005
"""Reward that does not count as a difference."""
MOVED = 1e-3
"""Logits by which a control must move the policy."""


@gj.part
class Both:
    """SGD and AdamW added; at rates of which one is 0 it is the other, and both are one program."""

    sgd: float = gj.number()
    adamw: float = gj.number()

    def transform(self) -> optax.GradientTransformation:
        """The sum of both updates."""
        plain = gj.SGD(learning_rate=self.sgd).transform()
        adaptive = gj.AdamW(learning_rate=self.adamw).transform()

        def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            one, first = plain.update(grads, state[0], params)
            other, second = adaptive.update(grads, state[1], params)
            return jax.tree.map(jnp.add, one, other), (first, second)

        return optax.GradientTransformation(
            lambda params: (plain.init(params), adaptive.init(params)), update
        )


@gj.measure(per="step", about="share of tokens that the clip holds")
def held(view: StepView) -> jax.Array:
    """Above and below, step by step."""
    return jnp.add(*view.clip_fractions)


@gj.measure("context", "answer", about="logits")
def logits(view: View) -> jax.Array:
    """The policy."""
    return view.params


FINAL = {
    "logits": dataclasses.replace(logits, averaged=False),
    "final_reward": dataclasses.replace(DIAGNOSTICS["expected_reward"], averaged=False),
}
"""Kept as they are in the end; the clip's share is averaged over the run."""


def trained(seed: int, size: Any, passes: int, **loop: Any) -> xr.Dataset:
    """STEPS optimizer steps of every optimizer, clipped and not, on the same draws."""
    rng = np.random.default_rng(seed)
    table = np.stack([rng.permutation([0.9, 0.6, 0.2, 0.1, 0.0]) for _ in range(8)])
    config = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=8, actions=5),
        task=gj.Questions(table=table, noise=Bernoulli()),
        method=dataclasses.replace(gj.methods.grpo, penalty=None),
        optimizer=Both(sgd=0.0, adamw=0.0),
        loop=gj.Loop(group_size=8, inner_steps=passes, **loop),
    )
    found = gj.sweep(
        config, {("sgd", "adamw"): OPTIMIZERS, ("clip_low", "clip_high"): CLIPS}, seeds=size.seeds,
        iterations=STEPS // passes, root=seed, average_from=0, record=[], measure={"held": held, **FINAL},
        progress=False,
    ).rename({"sgd+adamw": "optimizer", "clip_low+clip_high": "clip"})  # fmt: skip
    shares = found.held.sel(clip="clipped", drop=True)
    logits = found.logits.sel(clip="clipped") - found.logits.sel(clip="unclipped")
    return xr.Dataset({
        "held": shares.mean("inner_step"),
        "first": shares.isel(inner_step=0, drop=True),
        "moved": abs(logits).max(["context", "answer"]),
        "gain": found.final_reward.sel(clip="clipped") - found.final_reward.sel(clip="unclipped"),
    }).drop_vars(["clip", "clip_low", "clip_high", "sgd", "adamw"], errors="ignore")  # fmt: skip


def boundary_gradients() -> xr.Dataset:
    """∂/∂s of the clipped gain where s is exactly 1 + 0.2 (A = 1) or 1 − 0.2 (A = −1), divided by A."""

    def naive(ratio: jax.Array, advantage: float) -> jax.Array:
        return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - BOUND, 1 + BOUND) * advantage)

    def ours(ratio: jax.Array, advantage: float) -> jax.Array:
        log_ratio, value = jnp.log(ratio).reshape(1, 1, 1), jnp.full((1, 1, 1), advantage)
        rollout: Any = None  # the clip reads none of it
        at = Evaluation(rollout=rollout, logp=log_ratio, log_ratio=log_ratio, advantages=value)
        return jnp.sum(Clip(low=BOUND, high=BOUND)(at))

    def slope(gain: Any, advantage: float) -> float:
        at = jnp.float32(1) + jnp.float32(advantage * BOUND)
        return float(jax.grad(gain)(at, advantage)) / advantage

    gains = {"autodiff of min and clip": naive, "our clip": ours}
    sides = {"1 + ε, A > 0": 1.0, "1 − ε, A < 0": -1.0}
    found = [[slope(gain, advantage) for advantage in sides.values()] for gain in gains.values()]
    return xr.Dataset(
        {"gradient": (("gain", "side"), found)}, coords={"gain": list(gains), "side": list(sides)}
    )


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Runs over the number of passes, a stale old policy, and gradients at the boundary."""
    runs = [trained(seed, size, passes) for passes in PASSES]
    return {
        "runs": xr.concat(runs, xr.Variable("passes", PASSES)),
        "stale": trained(seed, size, 1, refresh_every=REFRESH),
        "parted": trained(seed, size, 1, minibatches=MINIBATCHES),
        "boundary": boundary_gradients(),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Bits at μ = 1, the first inner step at every μ, controls; and where clipping changes the reward."""
    for name in OPTIMIZERS:
        runs, stale = data["runs"].sel(optimizer=name), data["stale"].sel(optimizer=name)
        once, many = runs.sel(passes=1), runs.sel(passes=PASSES[-1])
        same = worst(once.moved)
        claim.refutes(f"{name}, μ = 1: clipped - unclipped, greatest difference of a logit", same)
        claim.refutes(f"{name}, first inner step at any μ: share of tokens held", worst(runs.first))
        for control, moved in (("64 passes", many.moved), ("μ = 1, stale old policy", stale.moved)):
            number = mean(moved, expected=MOVED, relation="at least")
            claim.requires(f"{name}, {control}: clipped - unclipped", number)
        acts = mean(stale.held)
        claim.reports(f"{name}, μ = 1, stale old policy: share of tokens held", acts)
        claim.finds(
            f"{name}: with one optimizer step on each batch a clip of {BOUND} changes not one bit; with an "
            f"old policy up to {REFRESH - 1} steps old it holds {acts.value:.2%} of the tokens.",
            when=same,
        )
    slow, fast = OPTIMIZERS["SGD"][0], OPTIMIZERS["AdamW"][1]
    judge_passes(
        data["runs"],
        claim.ours(
            f"At learning rates {slow:g} (SGD) and {fast:g} (AdamW), up to {FEW} passes over each batch, "
            f"clipping at {BOUND} changes the final reward by less than {MARGIN}, and at {PASSES[-1]} passes "
            "by more."
        ),
    )
    for name in OPTIMIZERS:
        parted = mean(data["parted"].moved.sel(optimizer=name))
        claim.reports(f"{name}, one pass in {MINIBATCHES} minibatches: clipped - unclipped", parted)
    edges = data["boundary"].gradient
    told = "; ".join(f"{gain} {float(edges.sel(gain=gain).mean()):g}" for gain in edges.gain.values)
    claim.finds(
        f"At exactly 1 ± ε the gradient of the minimum, over A, is a matter of convention: {told}.",
        when=bool((edges.max("side") == edges.min("side")).all()),
    )
    for (gain, side), value in data["boundary"].gradient.stack(at=("gain", "side")).to_series().items():
        claim.reports(f"gradient of {gain} at exactly {side}", Number(float(value)))


def judge_passes(runs: xr.Dataset, row: Claim) -> None:
    """When clipping matters, each optimizer by itself."""
    for name in OPTIMIZERS:
        gain, share = runs.gain.sel(optimizer=name), runs.held.sel(optimizer=name)
        few = furthest(gain.sel(passes=slice(1, FEW)), tolerance=MARGIN)
        many = mean(gain.sel(passes=PASSES[-1]), expected=0.0, tolerance=MARGIN, relation="differs")
        row.refutes(f"{name}, up to {FEW} passes: reward gained by clipping", few)
        row.refutes(f"{name}, {PASSES[-1]} passes: reward gained by clipping", many)
        row.reports(f"{name}: reward gained by clipping", each(gain))
        row.reports(f"{name}: share of tokens held", each(share))
        ends = interval(gain)
        for what, there in (
            ("clipping changes the reward", (ends.low > 0) | (ends.high < 0)),
            ("it holds 1 % of the tokens", share.mean("seed") > 0.01),
        ):
            row.reports(f"{name}: fewest passes at which {what}", least(there))
        row.finds(
            f"{name}: {PASSES[-1]} passes with clipping end {abs(many.value):.3f} "
            f"{'above' if many.value > 0 else 'below'} those without.",
            when=many,
        )


def least(there: xr.DataArray) -> Number:
    """The fewest passes at which something is so; NaN if it never is."""
    return Number(float(there.passes.where(there).min()))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """How often the clip acts, and what that does to the final reward, over the passes."""
    figure.set_size_inches(7, 3)
    colors = dict(zip(OPTIMIZERS, plotting.COLORS, strict=False))
    left, right = plotting.panels(figure, 1, 2)
    plotting.curves(left, 100 * data["runs"].held, x="passes", by="optimizer", colors=colors)
    plotting.curves(right, data["runs"].gain, x="passes", by="optimizer", colors=colors)
    for axes, name in ((left, "tokens held by the clip, %"), (right, "final reward, clipped − unclipped")):
        for optimizer, color in colors.items():
            y = data["runs"].sel(optimizer=optimizer).mean("seed")
            axes.plot(PASSES, 100 * y.held if axes is left else y.gain, "o", ms=3, color=color)
        axes.set_xscale("log", base=2)
        axes.set_xticks(2 ** np.arange(7), [str(2**n) for n in range(7)])
        axes.minorticks_off()
        axes.set(xlabel="passes over each batch, μ", ylabel=name)
    right.get_legend().remove()
    right.axhline(0, color="0.5", lw=0.7, zorder=0)
    right.axhspan(-MARGIN, MARGIN, color="0.9", lw=0, zorder=0)
    left.set_title("The clip holds nothing at one pass")
    right.set_title(f"{STEPS} optimizer steps (grey: ± {MARGIN})")
