"""A shared prefix is pushed by the covariance of advantage and weight.

Claim B1 of arXiv:2601.05002 (Proposition 1). For completions that share a prefix, the advantage part of the
gradient in the prefix is grad log pi(y_t|y_<t) W_agg, W_agg = sum_i omega_it A_i live_it; the KL and entropy
terms stand apart, by the derivative of R alone. Refuted if omega by hand and the gradient of the loss, or a
penalty's part by hand and by autodiff, differ by more than 1e-6 in any method, on sequence trees or through
the weights of a neural network; if the push does not cancel under uniform weights while nobody is clipped; or
if under 1/len it is not Cov(A, 1/len). Qualified where the printed omega = alpha s is not the derivative, and
where a clip breaks the cancellation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.problems.lengths import TABLE
from experiments.problems.shared_prefix import (
    DRIFTS,
    GROUP,
    PENALISED,
    PREFIX,
    SPACE,
    START,
    groups,
    jittered,
    penalty_by_hand,
    push,
    scored,
    weights_by_hand,
)
from experiments.formulas.token_weights import FORMS
from experiments.verdict import Number, judge, mean, worst
from grpo_jax import methods
from grpo_jax.biases import aggregate_weight, penalty_gradients, token_gradients
from grpo_jax.policies import MLPPolicy, TreePolicy
from grpo_jax.types import Policy, Rollout

CLAIM = "B1"
PAPER = "B"
PRECISION = "float64"

LOG_RATIOS = np.linspace(-0.5, 0.5, 101)
SIZES = {"smoke": 16, "quick": 256, "full": 4096}


def compared(rng: np.random.Generator, policy: Policy, drift: float, runs: int) -> dict[str, np.ndarray]:
    """Per method: error of the parameters' gradient, the prefix's push, the error of the printed omega.

    Per method with a penalty: the error of its part of the gradient, and its push on the prefix.
    """
    begin = policy.init(jax.random.key(0))
    start = jittered(rng, jax.tree.map(lambda x: jnp.repeat(x[..., None], runs, -1), begin), START)
    rollout = groups(rng, policy, start, jittered(rng, start, 0.3), runs)

    def score(params):
        return scored(policy, params, rollout.prompts, rollout.tokens, rollout.mask).logp

    logp, transposed = jax.vjp(jax.jit(score), jittered(rng, start, drift))
    pull = jax.jit(transposed)

    def apart(auto, hand) -> float:
        """Greatest difference in the parameters' gradient, relative to the greatest entry by hand."""
        pairs = list(zip(jax.tree.leaves(pull(auto)[0]), jax.tree.leaves(pull(hand)[0]), strict=True))
        scale = max(float(jnp.abs(b).max()) for _, b in pairs)
        return max(float(jnp.abs(a - b).max()) for a, b in pairs) / max(scale, 1e-12)

    found: dict[str, list] = {key: [] for key in ("error", "push", "printed", "penalty", "penalty_push")}
    for name in FORMS:
        auto, out = token_gradients(methods.get(name), rollout, logp), weights_by_hand(name, rollout, logp)
        found["error"].append(apart(auto, out.gradient))
        found["push"].append(push(auto))
        found["printed"].append(_printed_error(name, rollout, logp, out.gradient))
        if name in PENALISED:
            pulled = penalty_gradients(methods.get(name), rollout, logp)
            found["penalty"].append(apart(pulled, -penalty_by_hand(name, rollout, logp, out)[1]))
            found["penalty_push"].append(beside(pulled, auto))
    return {key: np.array(value) for key, value in found.items()}


def beside(pulled: jax.Array, auto: jax.Array) -> np.ndarray:
    """[R] |the penalty's net push on the prefix| over the advantages' gross push there, mean over runs."""
    net = jnp.abs(aggregate_weight(pulled, prefix=PREFIX)).sum((0, 1))
    return np.asarray(net / jnp.abs(auto[:, :, :PREFIX]).sum((0, 1, 2)).mean())


def _printed_error(name: str, rollout: Rollout, logp: jax.Array, hand: jax.Array) -> float:
    """How far alpha s A live is from omega A live, relative to the greatest of the latter."""
    factor = {
        "gpg": logp,
        "cispo": logp,
        "gcpo": 1 / jnp.maximum(rollout.mask.sum(2, keepdims=True), 1),
    }.get(name, jnp.ones(()))
    return float(jnp.abs(hand * (factor - 1)).max() / jnp.maximum(jnp.abs(hand).max(), 1e-12))


def prefix_sweep(rng: np.random.Generator, runs: int) -> dict[str, np.ndarray]:
    """What pushes the prefix under uniform weights and, shift-only, under 1/len.

    uniform: [ratio, R] under uniform weights W_agg over half the sum of alpha |A|, against the prefix's log
      ratio; NaN where a group ties.
    constant, net: [prompt, R] W_agg of the same groups at the old policy, under uniform weights and 1/len.
    covariance: [prompt, R] the group's Cov(A, 1/len).
    """
    policy = TreePolicy.uniform(SPACE)
    start = jnp.zeros((*np.shape(policy.logits), runs))
    rollout = groups(rng, policy, start, start, runs)
    inside = (jnp.arange(SPACE.horizon) < PREFIX).reshape(1, 1, -1, 1)

    @jax.jit
    def pushed(d):
        auto = token_gradients(methods.get("dr_grpo"), rollout, rollout.old_logp + d * inside)
        return aggregate_weight(auto, prefix=1)[0, 0]

    pushes = [pushed(d) for d in LOG_RATIOS]
    reward = np.asarray(rollout.rewards)[:, :, 0]
    advantage = reward - reward.mean(1, keepdims=True)
    half = 0.5 * np.abs(advantage[0]).sum(0) / (2 * GROUP)
    inverse = 1 / np.asarray(rollout.mask).sum(2)
    covariance = (advantage * (inverse - inverse.mean(1, keepdims=True))).mean(1) / 2
    at_old = {
        name: aggregate_weight(token_gradients(methods.get(method), rollout, rollout.old_logp), prefix=1)
        for name, method in (("constant", "dr_grpo"), ("net", "grpo_v32"))
    }
    uniform = np.array(pushes) / np.where(half > 1e-12, half, np.nan)
    found = {name: np.asarray(push)[:, 0] for name, push in at_old.items()}
    return found | {"uniform": uniform, "covariance": covariance}


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Gradients by hand and by autodiff, on trees and through a network; the prefix's push."""
    rng = np.random.default_rng(int(jax.random.key_data(key)[-1]))
    runs = SIZES[size]
    tree = {name: compared(rng, TreePolicy.uniform(SPACE), drift, runs) for name, drift in DRIFTS.items()}
    network = compared(rng, MLPPolicy(space=SPACE), DRIFTS["drifted"], runs)
    swept = prefix_sweep(rng, runs)
    errors, penalties = ([*(tree[d][of] for d in DRIFTS), network[of]] for of in ("error", "penalty"))
    return xr.Dataset(
        {
            "error": (("policy", "row"), np.array(errors)),
            "push": (("drift", "row", "seed"), np.stack([tree[d]["push"] for d in DRIFTS])),
            "penalty": (("policy", "penalised"), np.array(penalties)),
            "penalty_push": (
                ("drift", "penalised", "seed"), np.stack([tree[d]["penalty_push"] for d in DRIFTS])
            ),
            "printed": (("drift", "row"), np.stack([tree[d]["printed"] for d in DRIFTS])),
            "uniform": (("log_ratio", "seed"), swept["uniform"]),
        }
        | {name: (("prompt", "seed"), swept[name]) for name in ("constant", "net", "covariance")},
        coords={
            "policy": [*(f"tree, {name}" for name in DRIFTS), "network, drifted"],
            "drift": list(DRIFTS),
            "row": list(FORMS),
            "penalised": [name for name in FORMS if name in PENALISED],
            "log_ratio": LOG_RATIOS,
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """Every method's gradient, the cancellation, the covariance, and the printed omega."""
    numbers = {}
    for policy in data.policy.values:
        errors = data.error.sel(policy=policy)
        numbers[f"{policy}: worst relative error of {data.row.size} methods"] = worst(
            errors, expected=0, tolerance=1e-6
        )
        numbers[f"{policy}: worst relative error of {data.penalised.size} penalties"] = worst(
            data.penalty.sel(policy=policy), expected=0, tolerance=1e-6
        )
    uniform = data.uniform.dropna("seed", how="all")
    inside = uniform.sel(log_ratio=slice(np.log(0.81), np.log(1.19)))
    numbers["uniform weights, nobody clipped: push"] = worst(inside, expected=0, tolerance=1e-9)
    numbers["constant weights: W_agg at the old policy"] = worst(data.constant, expected=0, tolerance=1e-12)
    numbers["1/len: W_agg - Cov(A, 1/len)"] = worst(data.net, expected=data.covariance, tolerance=1e-12)
    above = uniform.sel(log_ratio=0.3, method="nearest")
    clipped = "uniform weights, prefix at ratio 1.35: push"
    numbers[clipped] = mean(above, expected=0, tolerance=0.01)
    printed = "printed omega = alpha s: worst relative error"
    numbers[printed] = Number(float(data.printed.max()), expected=0, tolerance=1e-6)
    for name in TABLE:
        numbers[f"{name}: share of the prefix's push that does not cancel"] = mean(
            data.push.sel(row=name, drift="at the old policy")
        )
    for name in data.penalised.values:
        for drift in data.drift.values:
            label = f"{name}, {drift}: penalty's net push on the prefix over the advantages' gross push"
            numbers[label] = mean(data.penalty_push.sel(penalised=name, drift=drift))
    words = {
        printed: "with omega = alpha for GPG, alpha sg[I] for CISPO and len alpha s for GCPO",
        clipped: "while nobody is clipped: beyond, the clip pushes the whole prefix back",
    }
    refutes = [name for name, number in numbers.items() if number.expected is not None and name not in words]
    return judge(numbers, refutes=refutes, qualifies=words)


def draw(figure, data: xr.Dataset) -> None:
    """The push under 1/len, under uniform weights as the prefix drifts, and in the methods of Table 1."""
    figure.set_size_inches(12.0, 4.1)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.1, 1.1))
    for panel in (left, middle, right):
        panel.spines[["top", "right"]].set_visible(False)
    left.plot(data.covariance.values.ravel(), data.net.values.ravel(), "o", ms=3, color="#d95f02", alpha=0.5)
    edge = float(abs(data.covariance).max())
    left.plot([-edge, edge], [-edge, edge], color="0.4", lw=1, zorder=0)
    left.plot(data.covariance.values.ravel(), data.constant.values.ravel(), "o", ms=3, color="#7570b3")
    left.annotate(
        "the same groups, constant weights", (edge, 0), (0, -12), textcoords="offset points", ha="right",
        color="#7570b3", fontsize=8,
    )  # fmt: skip
    left.set(xlabel="Cov(A, 1/len) of the group", ylabel="push on the shared prefix, $W_{agg}$")
    left.locator_params(axis="x", nbins=5)
    left.set_title("Weights 1/len: every group pushes its prefix", fontsize=9)
    ratio = np.exp(data.log_ratio)
    middle.plot(ratio, data.uniform.median("seed"), color="#7570b3", lw=2)
    middle.axvspan(0.8, 1.2, color="0.92", zorder=0)
    middle.set(xlabel="ratio of the prefix token, new / old", ylabel="push / (½ Σ α|A|)")
    middle.set_title("Constant weights: 0 until one side is clipped", fontsize=9)
    names = list(TABLE)[::-1]
    for row, name in enumerate(names):
        for drift, color in zip(data.drift.values, ("#1b9e77", "#d95f02"), strict=True):
            number = mean(data.push.sel(row=name, drift=drift))
            right.plot([number.low, number.high], [row, row], color=color, lw=4, solid_capstyle="butt")
            right.plot(number.value, row, "o", color=color, ms=4, label=drift if row == 0 else None)
    right.set_yticks(range(len(names)), names, fontsize=8)
    right.set(xlabel="share of the prefix's push left uncancelled")
    right.set_title("Table 1, groups of eight", fontsize=9)
    right.legend(frameon=False, fontsize=8)
