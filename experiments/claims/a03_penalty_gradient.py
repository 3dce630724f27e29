"""The k3 penalty estimates KL(pi || pi_ref) but pulls like KL(pi_ref || pi).

Claim A3 of arXiv:2502.18548, (8)-(10): D = pi_ref / pi - log(pi_ref / pi) - 1 has, at pi = pi_old, the mean
KL(pi || pi_ref), yet its gradient in pi(o) is 1 - pi_ref / pi: that of KL(pi_ref || pi) and a constant, which
vanishes in logits. Ours, in logits: k1 has gradient 0, k2 that of KL(pi || pi_ref), and so has k3 times the
ratio, off-policy too; off-policy k3 has neither. Each trains to its own policy. In a sequence all this holds
at each prefix, with the chance of the prefix held fixed. Refuted if an identity fails by 1e-12 (1e-11 under
a drift), exact ascent ends 1e-6 from the predicted policy, or sampled SGD, extrapolated to learning rate
zero, is not within 0.01 of it.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.alignment import (
    ascend,
    binary,
    furthest,
    grid,
    intercepts,
    light,
    method,
    problem,
    time_average,
)
from experiments.verdict import Number, judge, mean, worst
from grpo_jax.config import Config, Loop
from grpo_jax.exact import Exact, expected_gradient, expected_objective
from grpo_jax.optimizers import SGD
from grpo_jax.part import number, part
from grpo_jax.parts.penalties import K1, K2, K3, Penalty, RatioWeight
from grpo_jax.parts.reductions import Constant, Reduction
from grpo_jax.policies import ActionPolicy, TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.tasks import Questions, SequenceTable
from grpo_jax.theory import stationary_pair, stationary_pair_direct
from grpo_jax.types import Array, Evaluation

CLAIM = "A3"
PAPER = "A"
PRECISION = "float64"

ESTIMATORS: dict[str, Penalty] = {
    "k1": Penalty(divergence=K1(), coef=1.0),
    "k2": Penalty(divergence=K2(), coef=1.0),
    "k3": Penalty(divergence=K3(), coef=1.0),
    "ratio x k3": Penalty(divergence=K3(), weight=RatioWeight(), coef=1.0),
}
TARGETS = ("KL(pi || pi_ref)", "KL(pi_ref || pi)")
ACTIONS = 5
DRIFTS = np.array([0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0])
"""Standard deviation of log pi - log pi_old over outputs."""
HORIZONS = (1, 2, 4)
BETAS, REFERENCE = np.logspace(-0.6, 1, 13), 0.2
EXACT = 1e-12
SAMPLED, SAMPLED_BETAS, RATES = ("k2", "k3", "ratio x k3"), np.array([0.3, 1.0]), np.array([0.05, 0.1, 0.2])
SIZES = {"smoke": (8, 48, 3000), "quick": (64, 48, 3000), "full": (1024, 256, 12000)}
"""Random pi, pi_ref and drifts; seeds and iterations of sampled runs."""
MARGIN = 0.01


@part
class Which:
    """The penalties weighted by numbers, so that one program serves all of them."""

    weights: Any = number(rank=1)
    coef: Any = number(0.0)
    reduce: Reduction | None = None

    def __call__(self, at: Evaluation) -> Array:
        values = [penalty(at) for penalty in ESTIMATORS.values()]
        chosen = sum((w * value for w, value in zip(self.weights, values, strict=True)), jnp.zeros(()))
        return self.coef * chosen


def penalized(which: np.ndarray, beta) -> Which:
    """The penalty whose estimator is `which` [R] in each run."""
    weights = np.arange(len(ESTIMATORS))[:, None] == which
    return Which(weights=weights.astype(float), coef=beta)


def unrewarded(policy, task, which: np.ndarray) -> Config:
    """Nothing to gain: the objective is minus the penalty, summed over tokens."""
    made = dataclasses.replace(method(0.0), penalty=penalized(which, 1.0), reduction=Constant(length=1.0))
    return Config(policy=policy, task=task, method=made, loop=Loop(group_size=2), expectation=Exact())


def random_logits(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def one_step(root: int, tables: int) -> dict[str, np.ndarray]:
    """Exact gradients [estimator, drift, table, K] and values, with pi, pi_old and pi_ref in logits."""
    which, d, table = (
        axis.astype(int) for axis in grid(range(len(ESTIMATORS)), range(len(DRIFTS)), range(tables))
    )
    raw = random_logits(root, 3, ACTIONS, tables)
    unit = (raw[2] - raw[2].mean(0)) / raw[2].std(0)
    logits, reference = raw[0][:, table], 1.5 * raw[1][:, table]
    old = logits - DRIFTS[d] * unit[:, table]
    task = Questions(table=np.zeros((1, ACTIONS)))
    config = unrewarded(ActionPolicy(logits=np.zeros((1, ACTIONS))), task, which)
    at = {"old": old[None], "reference": reference[None]}
    gradient = -np.asarray(expected_gradient(config, logits[None], **at))[0]
    value = -np.asarray(expected_objective(config, logits[None], **at))
    shape = (len(ESTIMATORS), len(DRIFTS), tables)
    first = (slice(None), slice(0, len(DRIFTS) * tables))
    return {
        "gradient": np.moveaxis(gradient.reshape(ACTIONS, *shape), 0, -1),
        "value": value.reshape(shape),
        **{
            name: np.moveaxis(softmax(x[first]).reshape(ACTIONS, *shape[1:]), 0, -1)
            for name, x in (("pi", logits), ("old", old), ("reference", reference))
        },
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    weight = np.exp(logits - logits.max(0))
    return weight / weight.sum(0)


def derivative(pi: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """d/d pi(o) of E_old D at pi_old = pi, for free pi(o), by differentiating k3 itself; [table, K]."""

    def mean(free: Array) -> Array:
        return jnp.sum(pi * K3()(jnp.log(free), jnp.log(reference)))

    return np.asarray(light(jax.grad(mean))(jnp.asarray(pi)))


def trees(root: int, tables: int) -> np.ndarray:
    """[horizon, measure, table] for k2 and k3 token by token.

    Measures: the distance to KL's gradients at each prefix, weighted by the chance of the prefix; and that to
    the gradient of the sequences' KL; over the norm of the latter.
    """
    return np.stack([_tree(root, horizon, min(tables, 16)) for horizon in HORIZONS])


def _tree(root: int, horizon: int, tables: int) -> np.ndarray:
    space = Sequences(vocab=3, horizon=horizon)
    nodes, found = space.offsets[-1], []
    which, table = (axis.astype(int) for axis in grid([1, 2], range(tables)))
    raw = random_logits(root + horizon, 2, 1, nodes, 3, tables)[..., table]
    task = SequenceTable(space=space, table=np.zeros((1, 3**horizon)))
    config = unrewarded(TreePolicy.uniform(space), task, which)
    gradient = -np.asarray(expected_gradient(config, raw[0], reference=raw[1]))
    for run in range(len(which)):
        logits, reference = jnp.asarray(raw[0, 0, ..., run]), jnp.asarray(raw[1, 0, ..., run])
        whole = sequence_gradient(logits, reference, horizon=horizon, frozen=False)[which[run] - 1]
        frozen = sequence_gradient(logits, reference, horizon=horizon, frozen=True)[which[run] - 1]
        gaps = [np.linalg.norm(gradient[0, ..., run] - aim) for aim in (frozen, whole)]
        found.append(np.array(gaps) / np.linalg.norm(whole))
    return np.array(found).reshape(2, tables, 2).transpose(0, 2, 1).reshape(4, tables)


@functools.partial(light, static_argnames=("horizon", "frozen"))
def sequence_gradient(logits: Array, reference: Array, *, horizon: int, frozen: bool) -> Array:
    """Gradients [2, nodes, V] of both KLs over all 3^T sequences, by adding up prefixes level by level.

    KL(p || q) = sum_s d_p(s) KL_s, d_p(s) the chance of the prefix under p; `frozen` holds d at pi's.
    """

    def both(free: Array) -> Array:
        log_pi, log_ref = jax.nn.log_softmax(free, 1), jax.nn.log_softmax(reference, 1)
        reach, met, first = jnp.ones(1), jnp.ones(1), 0
        total = jnp.zeros(2)
        for depth in range(horizon):
            p, q = (x[first : first + 3**depth] for x in (log_pi, log_ref))
            if frozen:
                reach = met = jax.lax.stop_gradient(reach)
            forward = (jnp.exp(p) * (p - q)).sum(1) @ reach
            reverse = (jnp.exp(q) * (q - p)).sum(1) @ met
            total += jnp.stack([forward, reverse])
            reach, met = (reach[:, None] * jnp.exp(p)).ravel(), (met[:, None] * jnp.exp(q)).ravel()
            first += 3**depth
        return total

    return jax.jacrev(both)(logits)


def trained() -> np.ndarray:
    """[estimator, beta] pi(a) after exact ascent of pairs."""
    which, beta = grid(range(len(ESTIMATORS)), BETAS)
    made = dataclasses.replace(method(0.0), penalty=penalized(which, beta))
    rate = SGD(learning_rate=jnp.asarray(2 / (1 + beta)))
    options = {"method": made, "optimizer": rate}
    reference = binary(np.full(beta.size, REFERENCE))
    config = problem(reference, np.array([1.0, 0.0]), beta, group_size=2, **options)
    return ascend(config, beta.size, iterations=3000)[0].reshape(len(ESTIMATORS), -1)


def sampled(seeds: int, iterations: int, root: int) -> np.ndarray:
    """[rate, estimator x beta, seed] time averages of pi(a) in sampled runs that start as predicted."""
    kinds = [list(ESTIMATORS).index(name) for name in SAMPLED]
    rate, which, beta, seed = grid(RATES, kinds, SAMPLED_BETAS, np.arange(seeds))
    made = dataclasses.replace(method(0.0), penalty=penalized(which, beta))
    told = predictions(SAMPLED_BETAS)
    shape = (len(RATES), len(SAMPLED), len(SAMPLED_BETAS), seeds)
    start = np.broadcast_to(np.array([told[name] for name in SAMPLED])[..., None], shape).ravel()
    options = {"method": made, "optimizer": SGD(learning_rate=jnp.asarray(rate)), "expectation": None}
    options |= {"start": binary(start)}
    reference = binary(np.full(beta.size, REFERENCE))
    config = problem(reference, np.array([1.0, 0.0]), beta, group_size=2, **options)
    average = time_average(config, seed.astype(int), root=root, iterations=iterations)[0]
    return average.reshape(len(RATES), -1, seeds)


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Exact gradients of four estimators on and off policy and on trees, and what each trains to."""
    root, (tables, seeds, iterations) = int(jax.random.key_data(key)[-1]), SIZES[size]
    found = one_step(root, tables)
    free = derivative(found["pi"][0], found["reference"][0])
    policies = {name: (("drift", "table", "action"), found[name]) for name in ("pi", "old", "reference")}
    return xr.Dataset(
        {
            "gradient": (("estimator", "drift", "table", "action"), found["gradient"]),
            "value": (("estimator", "drift", "table"), found["value"]),
            "derivative": (("table", "action"), free),
            "tree": (("horizon", "measure", "tree_table"), trees(root, tables)),
            "trained": (("estimator", "beta"), trained()),
            "average": (("rate", "setting", "seed"), sampled(seeds, iterations, root)),
            **policies,
        },
        coords={
            "estimator": list(ESTIMATORS), "drift": DRIFTS, "beta": BETAS, "horizon": list(HORIZONS),
            "measure": ["k2, prefix", "k2, sequence", "k3, prefix", "k3, sequence"],
        },
    )  # fmt: skip


def targets(data: xr.Dataset) -> dict[str, np.ndarray]:
    """The gradients in logits of both divergences, [drift, table, K]."""
    pi, reference = data.pi.values, data.reference.values
    log = np.log(pi / reference)
    forward = pi * (log - (pi * log).sum(-1, keepdims=True))
    return dict(zip(TARGETS, (forward, pi - reference), strict=True))


def distances(data: xr.Dataset) -> xr.DataArray:
    """[estimator, target, drift] the root mean square over tables of |gradient - target| / |target|."""
    found = []
    for aim in targets(data).values():
        gap = np.linalg.norm(data.gradient.values - aim, axis=-1) / np.linalg.norm(aim, axis=-1)
        found.append(np.sqrt((gap**2).mean(-1)))
    coords = {"estimator": data.estimator, "target": list(TARGETS), "drift": data.drift}
    return xr.DataArray(np.stack(found, 1), dims=("estimator", "target", "drift"), coords=coords)


def predictions(betas: np.ndarray = BETAS) -> dict[str, np.ndarray]:
    """What each estimator should train pairs to."""
    direct = np.asarray(stationary_pair_direct(REFERENCE, betas))
    return {"k2": direct, "k3": np.asarray(stationary_pair(REFERENCE, betas)), "ratio x k3": direct}


def check(data: xr.Dataset):
    """Value and derivatives on-policy; each estimator's gradient; off-policy; trees; trained policies."""
    forward, reverse = targets(data).values()
    pi, reference = data.pi.values[0], data.reference.values[0]
    kl = (pi * np.log(pi / reference)).sum(-1)
    value, gradient = data.value.sel(drift=0), data.gradient.sel(drift=0)
    numbers = {
        "k3: mean - KL(pi || pi_ref)": worst(value.sel(estimator="k3"), expected=kl, tolerance=EXACT),
        "k3: d/d pi - (1 - pi_ref / pi)": worst(
            data.derivative, expected=1 - reference / pi, tolerance=EXACT
        ),
        "k1: gradient": worst(gradient.sel(estimator="k1"), expected=0 * pi, tolerance=EXACT),
        "k2: gradient - that of KL(pi || pi_ref)": worst(
            gradient.sel(estimator="k2"), expected=forward[0], tolerance=EXACT
        ),
        "k3: gradient - that of KL(pi_ref || pi)": worst(
            gradient.sel(estimator="k3"), expected=reverse[0], tolerance=EXACT
        ),
        "ratio x k3, any drift: gradient - that of KL(pi || pi_ref)": worst(
            data.gradient.sel(estimator="ratio x k3"), expected=forward, tolerance=1e-11
        ),
    }
    found = distances(data).sel(estimator="k3")
    for drift in (0.1, 1.0):
        for target in TARGETS:
            name = f"k3, drift {drift:g}: relative distance from the gradient of {target}"
            numbers[name] = Number(float(found.sel(drift=drift, target=target)), 0.01, relation="at least")
    for name, aim in predictions().items():
        ended = data.trained.sel(estimator=name)
        numbers[f"{name}: exact ascent - theory"] = worst(ended, expected=aim, tolerance=1e-6)
    at_zero, _ = intercepts(RATES, data.average)
    told = predictions(SAMPLED_BETAS)
    for name, values in zip(SAMPLED, np.split(at_zero, len(SAMPLED)), strict=True):
        numbers[f"{name}: sampled, extrapolated - theory"] = furthest(values, told[name], tolerance=MARGIN)
    free = data.trained.sel(estimator="k1")
    numbers["k1: exact ascent, least pi(a) at any beta"] = Number(
        float(free.min()), expected=0.99, relation="at least"
    )
    for measure in data.measure.values:
        tree = data.tree.sel(measure=measure)
        if "prefix" in measure:
            numbers[f"tree, {measure[:2]} prefix by prefix: relative error"] = worst(
                tree, expected=0 * tree, tolerance=EXACT
            )
        else:
            numbers[f"tree of 4 tokens, {measure}: missing share of the gradient"] = Number(
                float(np.sqrt((tree.sel(horizon=4) ** 2).mean())), expected=0.05, relation="at least"
            )
    judged = [name for name, number in numbers.items() if number.expected is not None]
    return judge(numbers, refutes=judged)


COLORS = dict(zip(ESTIMATORS, ("#6b7280", "#7c3aed", "#c2410c", "#1d4ed8"), strict=True))


def draw(figure, data: xr.Dataset) -> None:
    """The distance of each estimator's gradient from both divergences', and what each one trains to."""
    figure.set_size_inches(12.0, 3.9)
    left, middle, right = figure.subplots(1, 3)
    _draw_distances(left, distances(data))
    _draw_trees(middle, data.tree)
    theory = predictions()
    for name, color in COLORS.items():
        if name in theory and name != "k2":
            right.plot(BETAS, theory[name], color=color, lw=1.5)
        marker = {"k2": "s", "ratio x k3": "x"}.get(name, "o")
        face = "none" if marker == "s" else color
        right.plot(BETAS, data.trained.sel(estimator=name), marker, ms=5, mfc=face, color=color, label=name)
    _draw_sampled(right, data)
    right.axhline(REFERENCE, color="0.6", lw=0.8, ls="--")
    right.annotate(
        "π_ref", (BETAS[0], REFERENCE), (0, 3), textcoords="offset points", color="0.4", fontsize=8
    )
    right.set(xscale="log", ylim=(0, 1.03), xlabel="β", ylabel="trained π(a)")
    right.set_title("Each estimator trains to its own policy (G = 2)", fontsize=10)
    right.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 0.22))
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)


def _draw_sampled(axes, data: xr.Dataset) -> None:
    at_zero, _ = intercepts(RATES, data.average)
    names = np.repeat(SAMPLED, len(SAMPLED_BETAS))
    for name, beta, values in zip(names, np.tile(SAMPLED_BETAS, len(SAMPLED)), at_zero, strict=True):
        number = mean(values)
        axes.plot([beta, beta], [number.low, number.high], color=COLORS[str(name)], lw=2.2)
        axes.plot(beta, number.value, "_", ms=12, mew=1.6, color=COLORS[str(name)])
    axes.plot([], [], "+", ms=9, mew=1.6, color="0.3", label="sampled, rate → 0")


def _draw_distances(axes, found: xr.DataArray) -> None:
    x = np.maximum(found.drift.values, 3e-3)
    for name in ("k2", "k3", "ratio x k3"):
        for target, style in zip(TARGETS, ("-", "--"), strict=True):
            axes.plot(
                x,
                found.sel(estimator=name, target=target),
                style,
                marker="o",
                ms=3.5,
                color=COLORS[name],
                lw=1.4,
            )
    for name in ("k2", "k3", "ratio x k3"):
        axes.plot([], [], color=COLORS[name], label=name)
    axes.plot([], [], "-", color="0.3", label="from ∇KL(π‖π_ref)")
    axes.plot([], [], "--", color="0.3", label="from ∇KL(π_ref‖π)")
    axes.set(xscale="log", ylim=(-0.001, 12), xlabel="drift from π_old (std of log ratio)")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_xticks([3e-3, 1e-2, 1e-1, 1], ["0", "0.01", "0.1", "1"])
    axes.set_ylabel("relative distance of gradients")
    axes.set_title("On-policy k3 is the reverse KL; off-policy neither", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.3))


def _draw_trees(axes, tree: xr.DataArray) -> None:
    for measure in ("k2, sequence", "k3, sequence"):
        values, color = tree.sel(measure=measure), COLORS[measure[:2]]
        for x, horizon in enumerate(tree.horizon.values):
            spread = np.linspace(-0.12, 0.12, tree.sizes["tree_table"]) + (0.17 if "k3" in measure else -0.17)
            axes.plot(x + spread, values.sel(horizon=horizon), "o", ms=2.5, color=color, alpha=0.6)
        label = "k2 against ∇KL(π‖π_ref)" if "k2" in measure else "k3 against ∇KL(π_ref‖π)"
        axes.plot([], [], "o", color=color, ms=4, label=label)
    axes.set_xticks(range(tree.sizes["horizon"]), tree.horizon.values)
    axes.set(
        xlabel="tokens in a sequence",
        ylabel="missing share of the sequence KL's gradient",
        ylim=(-0.03, 1.25),
    )
    axes.set_title("Token by token the prefix's chance is held fixed", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
