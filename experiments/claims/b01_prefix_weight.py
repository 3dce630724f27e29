"""Non-uniform group weighting induces systematic gradient biases on shared prefix tokens: where completions
share a prefix, the advantages push it by W_agg = Σ_i ω_{i,t} A_i, which cancels under uniform weights only.

[B] (arXiv:2601.05002), abstract and Proposition 1; the KL and entropy terms stand apart. Groups of eight
random completions with graded rewards that share their first two tokens, on a sequence tree and through the
weights of a neural network, at the old policy and drifted from it.

Refuted if of the methods of Table 1 one that divides by an output's length, or selects outputs, leaves less
than 2 % of the push uncancelled at the old policy, or one with uniform weights more than 1e-9 (GCPO, whose
printed weights are uniform and whose derivative is not, is left to the row on ω); or if under GRPO, GRPO
(V3.2) or GSPO the mean push, with its sign, is not at least 5 % of the gross one towards the prefix where
short outputs win, and against it where long ones do: that is what "systematic" adds. Rewards drawn without
regard to length are the placebo. Qualified by a clip that breaks the cancellation under uniform weights.
Identities check the instrument: W_agg = 0 under uniform weights while nobody is clipped, Cov(A, 1/len) under
1/len, and ω = α ∂s/∂log π of every method, and every penalty's, by hand against autodiff (relative error
1e-6). Rows of their own: Proposition 1's ω = α s for every method, and that the bias affects all of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.formulas.compiled import light
from experiments.formulas.token_weights import FORMS
from experiments.harness.numbers import Number, each, interval, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
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
from grpo_jax import methods, plotting
from grpo_jax.biases import aggregate_weight, penalty_gradients, token_gradients
from grpo_jax.policies import MLPPolicy, TreePolicy
from grpo_jax.types import Policy, Rollout

PRECISION = "float64"
SIZES = sizes(groups=(32, 128, 4096))

NAMES = {
    "grpo": "GRPO", "grpo_v32": "GRPO (V3.2)", "gspo": "GSPO", "gtpo": "GTPO", "dapo": "DAPO",
    "cppo": "CPPO", "dr_grpo": "Dr. GRPO", "gpg": "GPG", "cispo": "CISPO", "gcpo": "GCPO",
}  # fmt: skip
"""Table 1."""
BY_LENGTH = ("grpo", "grpo_v32", "gspo")
"""Methods that divide by an output's length and select nothing."""
WINNERS = {"short outputs win": -1.0, "long outputs win": 1.0, "placebo": 0.0}
"""What the chance of a reward follows: its slope in the length."""
UNIFORM = ("dapo", "dr_grpo", "gpg", "cispo")
"""Methods whose weights at the old policy are equal within a group."""
LEFT = "gcpo"
"""Uniform as printed, and not by its derivative: judged by Proposition 1's row alone."""
OLD, DRIFTED = DRIFTS
LOG_RATIOS = np.linspace(-0.5, 0.5, 41)
HELD = np.log(1.35)
"""Where winners of a group are clipped and losers are not."""


@light
def pushed(rollout: Rollout, logp: jax.Array) -> dict[str, tuple[jax.Array, ...]]:
    """Every method's token gradients by autodiff and by hand; its penalty's where it has one."""
    found: dict[str, tuple[jax.Array, ...]] = {}
    for name in FORMS:
        out = weights_by_hand(name, rollout, logp)
        found[name] = token_gradients(methods.get(name), rollout, logp), out.gradient
        if name in PENALISED:
            pulled = penalty_gradients(methods.get(name), rollout, logp)
            found[name] += pulled, -penalty_by_hand(name, rollout, logp, out)[1]
    return found


def compared(rng: np.random.Generator, policy: Policy, drift: float, runs: int) -> xr.Dataset:
    """Errors of the parameters' gradients and of the printed ω, and the push on the prefix, by method."""
    begin = light(policy.init)(jax.random.key(0))
    start = jittered(rng, jax.tree.map(lambda x: jnp.repeat(x[..., None], runs, -1), begin), START)
    rollout = groups(rng, policy, start, jittered(rng, start, 0.3), runs)

    def score(params: Any) -> jax.Array:
        return scored(policy, params, rollout.prompts, rollout.tokens, rollout.mask).logp

    logp, transposed = jax.vjp(jax.jit(score), jittered(rng, start, drift))
    pull = jax.jit(transposed)

    def apart(auto: jax.Array, hand: jax.Array) -> float:
        """Greatest difference in the parameters' gradient, relative to the greatest entry by hand."""
        found, wanted = (jax.tree.leaves(jax.device_get(pull(each))) for each in (auto, hand))
        scale = max(float(abs(b).max()) for b in wanted)
        gap = max(float(abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
        return gap / max(scale, 1e-12)

    rows = []
    for auto, hand, *penalty in (gradients := pushed(rollout, logp)).values():
        net, gross = (np.zeros(runs), 1.0) if not penalty else beside(penalty[0], auto)
        rows.append(
            xr.Dataset(
                {
                    "error": apart(auto, hand),
                    "push": ("group", push(auto)),
                    "penalty_error": apart(*penalty) if penalty else np.nan,
                    "penalty_push": ("group", net / gross if penalty else np.full(runs, np.nan)),
                }
            )
        )
    found = xr.concat(rows, xr.Variable("algorithm", list(gradients)))
    printed = [printed_error(name, rollout, logp, *gradients[name][:2]) for name in NAMES]
    return found.assign(printed=("row", printed)).assign_coords(row=list(NAMES))


def beside(pulled: jax.Array, auto: jax.Array) -> tuple[np.ndarray, float]:
    """[R] the penalty's net push on the prefix, and the advantages' gross push there, mean over groups."""
    net = abs(np.asarray(aggregate_weight(pulled, prefix=PREFIX))).sum((0, 1))
    return net, float(abs(np.asarray(auto)[:, :, :PREFIX]).sum((0, 1, 2)).mean())


def printed_error(name: str, rollout: Rollout, logp: jax.Array, auto: jax.Array, hand: jax.Array) -> float:
    """How far the printed α s A live is from autodiff's gradient, relative to the greatest of the latter.

    It is ω A live by hand, with the row's own s in the place of ∂s/∂log π.
    """
    factor = {
        "gpg": np.asarray(logp),
        "cispo": np.asarray(logp),
        "gcpo": 1 / np.maximum(np.asarray(rollout.mask).sum(2, keepdims=True), 1),
    }.get(name, np.ones(()))
    found = np.asarray(auto)
    return float(abs(np.asarray(hand) * factor - found).max() / max(abs(found).max(), 1e-12))


def one_group(rng: np.random.Generator, runs: int) -> dict[str, xr.Dataset]:
    """W_agg of the same groups under uniform weights and under 1/len, and their Cov(A, 1/len).

    And, as the prefix's ratio moves, the push under uniform weights over half the sum of α|A|.
    """
    policy = TreePolicy.uniform(SPACE)
    start = jnp.zeros((*np.shape(policy.logits), runs))
    rollout = groups(rng, policy, start, start, runs)
    inside = (jnp.arange(SPACE.horizon) < PREFIX)[None, None, :, None]

    def first(name: str, log_ratio: Any) -> jax.Array:
        """[P, R] the push on the first token of the prefix."""
        logp = rollout.old_logp + log_ratio * inside
        return aggregate_weight(token_gradients(methods.get(name), rollout, logp), prefix=1)[:, 0]

    dims = ("prompt", "entry", "group")
    reward = xr.DataArray(np.asarray(rollout.rewards)[:, :, 0], dims=dims)
    advantage = reward - reward.mean("entry")
    inverse = 1 / xr.DataArray(np.asarray(rollout.mask).sum(2), dims=dims)
    half = 0.5 * abs(advantage).sum("entry") / (2 * GROUP)
    moved = light(jax.vmap(lambda d: first("dr_grpo", d)))(jnp.asarray(LOG_RATIOS))
    swept = xr.DataArray(moved, {"log_ratio": LOG_RATIOS}, ("log_ratio", "prompt", "group"))
    both: Callable[[], Any] = light(lambda: (first("dr_grpo", 0.0), first("grpo_v32", 0.0)))
    constant, by_length = both()
    return {
        "prefix": xr.Dataset({
            "constant": (("prompt", "group"), constant),
            "by_length": (("prompt", "group"), by_length),
            "covariance": (advantage * (inverse - inverse.mean("entry"))).mean("entry") / 2,
        }),
        "uniform": xr.Dataset({"push": swept / half.where(half > 1e-12)}),
    }  # fmt: skip


def systematic(rng: np.random.Generator, runs: int) -> xr.DataArray:
    """[winners, algorithm, group] signed push on a prefix's first token over the gross one, of two groups."""
    policy = TreePolicy.uniform(SPACE)
    start = jnp.zeros((*np.shape(policy.logits), runs))
    rollout = groups(rng, policy, start, start, runs)
    length = np.asarray(rollout.mask).sum(2, keepdims=True)
    chance = rng.uniform(size=length.shape)

    def signed(slope: jax.Array) -> jax.Array:
        win = chance < 0.5 + slope * (length / SPACE.horizon - 0.75)
        here = rollout._replace(rewards=win.astype(float))
        rows = []
        for name in BY_LENGTH:
            found = token_gradients(methods.get(name), here, here.old_logp)[:, :, 0]
            gross = jnp.abs(found).sum((0, 1))
            rows.append(found.sum((0, 1)) / jnp.where(gross > 0, gross, 1))
        return jnp.stack(rows)

    found = light(jax.vmap(signed))(jnp.asarray(list(WINNERS.values())))
    at = {"winners": list(WINNERS), "algorithm": list(BY_LENGTH)}
    return xr.DataArray(found, at, ("winners", "algorithm", "group"))


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Gradients by hand and by autodiff, on trees and through a network; what pushes the prefix."""
    rng, runs = np.random.default_rng(seed), size.groups
    tree = [compared(rng, TreePolicy.uniform(SPACE), drift, runs) for drift in DRIFTS.values()]
    network = compared(rng, MLPPolicy(space=SPACE), DRIFTS[DRIFTED], runs)
    return one_group(rng, runs) | {
        "tree": xr.concat(tree, xr.Variable("drift", list(DRIFTS))),
        "network": network,
        "systematic": xr.Dataset({"push": systematic(rng, 8 * runs)}),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Cancellation and covariance, Table 1 row by row, the printed ω, and every derivative by hand."""
    tree, prefix = data["tree"], data["prefix"]
    policies = {f"tree, {drift}": tree.sel(drift=drift) for drift in DRIFTS}
    for name, found in (policies | {f"network, {DRIFTED}": data["network"]}).items():
        count, pulled = found.sizes["algorithm"], found.penalty_error.dropna("algorithm")
        claim.requires(f"{name}: gradient of {count} methods - by hand", worst(found.error, tolerance=1e-6))
        told = f"{name}: gradient of {pulled.size} penalties - by hand"
        claim.requires(told, worst(pulled, tolerance=1e-6))
    free = data["uniform"].push.sel(log_ratio=slice(np.log(0.81), np.log(1.19)))
    idle = worst(free.stack(of=("prompt", "group")).dropna("of"), tolerance=1e-9)
    claim.requires("uniform weights, nobody clipped: push", idle)
    claim.requires("uniform weights: W_agg at the old policy", worst(prefix.constant, tolerance=1e-12))
    covariance = worst(prefix.by_length, expected=prefix.covariance, tolerance=1e-12)
    claim.requires("weights 1/len: W_agg - Cov(A, 1/len)", covariance)
    pushes = data["systematic"].push
    for row in BY_LENGTH:
        here = pushes.sel(algorithm=row)
        placebo = mean(here.sel(winners="placebo"), expected=0.0, tolerance=0.05)
        claim.requires(f"{NAMES[row]}, rewards without regard to length: signed push", placebo)
        for winners, sign in (("short outputs win", 1), ("long outputs win", -1)):
            number = mean(sign * here.sel(winners=winners), expected=0.05, relation="at least")
            claim.refutes(
                f"{NAMES[row]}, {winners}: push {'for' if sign > 0 else 'against'} the prefix", number
            )
    shares = {
        row: mean(tree.push.sel(drift=OLD, algorithm=row), **expectation(row)) for row in NAMES if row != LEFT
    }
    for row, number in shares.items():
        claim.refutes(f"{NAMES[row]}: share of the push that does not cancel", number)
    above = data["uniform"].push.sel(log_ratio=HELD, method="nearest")
    clipped = mean(above.stack(of=("prompt", "group")).dropna("of"), expected=0.0, tolerance=0.01)
    words = "while nobody is clipped: beyond, the clip pushes the whole prefix back"
    claim.qualifies("uniform weights, prefix at ratio 1.35: push over half of Σ α|A|", clipped, only=words)
    claim.reports("share that does not cancel, drifted", each(
        tree.push.sel(drift=DRIFTED, algorithm=list(NAMES)), over="group"
    ))  # fmt: skip
    penalties = tree.penalty_push.sel(algorithm=list(PENALISED))
    claim.reports("penalty's net push over the advantages' gross push", each(penalties, over="group"))
    pushing = [number for row, number in shares.items() if row not in UNIFORM]
    low, high = min(n.value for n in pushing), max(n.value for n in pushing)
    claim.finds(
        f"{len(pushing)} methods leave {low:.0%} to {high:.0%} of the push on a prefix uncancelled that all "
        f"{GROUP} outputs of a group share; {', '.join(NAMES[row] for row in UNIFORM)} leave none.",
        when=shares.values(),
    )
    toward, against = (pushes.sel(algorithm="grpo", winners=w).mean() for w in list(WINNERS)[:2])
    claim.finds(
        f"Where short outputs win GRPO pushes the prefix up, by {float(toward):.0%} of the gross push on "
        f"average, where long ones do down, by {float(-against):.0%}.",
        when=[n for name, n in claim.numbers.items() if name.startswith("GRPO, ") and "win" in name],
    )
    claim.finds(
        "Constant weights stop cancelling once a side of the group is clipped.", when=clipped.holds is False
    )
    claim.reports("GCPO: share that does not cancel", mean(tree.push.sel(drift=OLD, algorithm=LEFT)))
    judge_printed(
        tree,
        claim.also("The weight on a shared prefix token is ω = α s, for all the methods (Proposition 1)."),
    )
    judge_all(
        tree.push.sel(algorithm=list(NAMES)),
        claim.also("The bias on shared prefix tokens affects all the methods under analysis."),
    )


def judge_printed(tree: xr.Dataset, row: Claim) -> None:
    """Proposition 1 as printed, method by method."""
    numbers = {name: Number(float(tree.printed.sel(row=name).max()), 0.0, 1e-6) for name in NAMES}
    for name, number in numbers.items():
        row.refutes(f"{NAMES[name]}: printed ω = α s against the derivative, relative", number)
    lost = [NAMES[name] for name, number in numbers.items() if number.holds is False]
    row.finds(
        f"It is the derivative for {len(NAMES) - len(lost)} of {len(NAMES)} methods, not for "
        f"{', '.join(lost)}: there ω is α, α sg[I] and len α s."
        if lost == [NAMES[name] for name in ("gpg", "cispo", "gcpo")]
        else f"It is not the derivative for {', '.join(lost)}.",
        when=bool(lost),
    )


def judge_all(push: xr.DataArray, row: Claim) -> None:
    """Every method of the table, at the old policy or drifted from it, wherever more is left."""
    spared = []
    for name, told in NAMES.items():
        here = push.sel(algorithm=name)
        where = here.mean("group").idxmax("drift").item()
        number = mean(here.sel(drift=where), expected=0.02, relation="at least")
        row.refutes(f"{told}, {where}: share of the push that does not cancel", number)
        spared += [told] if number.holds is False else []
    row.finds(f"Not {' nor '.join(spared)}, at the old policy or off it.", when=bool(spared))


def expectation(row: str) -> dict[str, Any]:
    """What the sentence says of the share of a method's push that is left at the old policy."""
    if row in UNIFORM:
        return {"expected": 0.0, "tolerance": 1e-9}
    return {"expected": 0.02, "relation": "at least"}


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """The push under 1/len and under constant weights, both measured; and what Table 1's methods leave."""
    figure.set_size_inches(7, 3.3)
    left, right = plotting.panels(figure, 1, 2)
    prefix, lengths, constant = data["prefix"], plotting.COLORS[1], plotting.COLORS[0]
    edge = float(abs(prefix.covariance).max())
    plotting.theory(left, [-edge, edge], [-edge, edge], label="Cov(A, 1/len)", color="0.5")
    for name, color, label in (
        ("by_length", lengths, "weights 1/len"),
        ("constant", constant, "constant weights"),
    ):
        x, y = prefix.covariance.values.ravel(), prefix[name].values.ravel()
        left.plot(x, y, "o", ms=3, alpha=0.6, color=color, label=label)
    left.legend(loc="upper left")
    left.set(xlabel="Cov(A, 1/len) of the group", ylabel="push on the shared prefix, W_agg")
    left.set_title("Weights 1/len push every group's prefix")
    shares = interval(data["tree"].push.sel(drift=OLD), over="group")
    rows = {name: shares.sel(algorithm=row) for row, name in NAMES.items()}
    colors = [constant if row in UNIFORM else lengths for row in NAMES]
    plotting.intervals(right, rows, colors=colors)
    right.set(xlabel="share of the push that does not cancel", xlim=(-0.02, 1.05))
    right.set_title("Table 1 at the old policy (blue: equal weights)")
