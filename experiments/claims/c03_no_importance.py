"""Without importance sampling GRPO performs about as well, as long as a batch moves the policy little.

Claim C3 of arXiv:2508.02833, in two readings: (i) the gradient stays at θ_old, (ii) the score A∇log π_θ at
the current θ, without a ratio. Refuted if μ SGD steps of η of (i) are not one step of μη to 1e-10, if the
methods disagree at μ = 1, if clipped GRPO, the control, has no bound on one batch, or if with small steps a
reading's mean J over training differs from clipped GRPO's by more than a tenth of what that gains. Qualified
if at some learning rate and μ > 1 it differs by more than 0.02 (99.9 % over all of them together), or if
reading (ii) has no bound on one batch: its objective A log π_θ keeps growing with μ.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.problems.trees import INF, Problem, config_of, grid, method, problem, trained
from experiments.verdict import CONFIDENCE, Number, judge, mean, worst
from grpo_jax import diagnostics, train
from grpo_jax.config import Config, TrainState
from grpo_jax.part import aligned
from grpo_jax.parts.ratios import Frozen
from grpo_jax.sequences import Sequences
from grpo_jax.types import Array

CLAIM = "C3"
PAPER = "C"
PRECISION = "float64"

TREE = Sequences(vocab=2, horizon=4)
EPS, GROUP, PERIOD, MARGIN = 0.2, 8, 8, 0.02
METHODS = ("GRPO", "GRPO unclipped", "TIC-GRPO unclipped", "score", "frozen")
READINGS = ("frozen", "score")
RATES = {"SGD": 2.0 ** np.arange(-3, 5, 2), "AdamW": 2.0 ** np.arange(-7, 1, 2)}
STEPS = np.array([1.0, 2.0, 8.0])
SIZES = {"smoke": (16, 6, 128), "quick": (200, 20, 1024), "full": (1000, 60, 16384)}
COLORS = {
    "GRPO": "#222222",
    "GRPO unclipped": "#888888",
    "TIC-GRPO unclipped": "#7570b3",
    "score": "#e7298a",
    "frozen": "#1b9e77",
}


def with_ratio(
    given: Problem, table: np.ndarray, kind: np.ndarray, rate, steps, group: int | None, optimizer="SGD"
) -> Config:
    """Runs of the first four methods, by number."""
    chosen = method(
        trajectory=(kind == 2).astype(float),
        score=(kind == 3).astype(float),
        low=np.where(kind == 0, EPS, 1.0),
        high=np.where(kind == 0, EPS, INF),
    )
    return config_of(
        given, table, chosen, rate=rate, steps=steps, period=PERIOD, group_size=group, optimizer=optimizer
    )


def frozen(config: Config) -> Config:
    """The same with the gradient kept at θ_old."""
    return dataclasses.replace(config, method=dataclasses.replace(config.method, ratio=Frozen()))


def mean_value(config: Config, tables: np.ndarray, root: int, iterations: int) -> np.ndarray:
    """[R] mean J over outer iterations; a seed for each table."""
    return np.asarray(trained(config, train.init(config, tables, root=root), iterations=iterations)[0])[
        1:
    ].mean(0)


def at_start(root: int, tables: int) -> np.ndarray:
    """[table] J before training."""
    which = np.arange(tables)
    given = problem(root, TREE, tables=tables, kind="graded")
    config = with_ratio(given, which, 0 * which, 0.0 * which, 1.0 + 0 * which, None)
    params, prompts = jnp.asarray(given.logits[None]), diagnostics.all_prompts(config.policy)
    return np.asarray(diagnostics.expected_reward(config.policy, config.task, params, prompts))


def compared(root: int, tables: int, iterations: int, optimizer: str) -> xr.DataArray:
    """[sampling, rule, table, rate, steps] mean J of every method."""
    given = problem(root, TREE, tables=tables, kind="graded")
    found = np.empty((2, len(METHODS), tables, len(RATES[optimizer]), len(STEPS)))
    for place, group in enumerate((None, GROUP)):
        for methods in (slice(0, 4), slice(4, 5)):
            kinds = np.arange(5)[methods]
            cells = grid(kind=kinds, table=np.arange(tables), rate=RATES[optimizer], steps=STEPS)
            which, kind, rate, steps = (cells[name] for name in ("table", "kind", "rate", "steps"))
            config = with_ratio(given, which, kind, rate, steps, group, optimizer)
            config = frozen(config) if methods.start else config
            found[place, methods] = mean_value(config, which, root, iterations).reshape(
                len(kinds), tables, -1, len(STEPS)
            )
    dims = ("sampling", "rule", "table", f"rate_{optimizer}", "steps")
    coords = {"sampling": ["exact", "sampled"], "rule": list(METHODS), dims[3]: RATES[optimizer]}
    return xr.DataArray(found, coords | {"steps": STEPS}, dims)


def one_step_apart(root: int, tables: int, optimizer: str, group: int | None) -> np.ndarray:
    """[iteration, table] distance between μ frozen steps of η and one of μη, over the distance moved."""
    given, which, ones = problem(root, TREE, tables=tables, kind="graded"), np.arange(tables), np.ones(tables)
    paths = []
    for steps, rate in ((PERIOD, 0.1), (1, 0.1 * PERIOD)):
        config = with_ratio(given, which, 0 * which + 4, rate * ones, steps * ones, group, optimizer)
        config = frozen(config)
        state = train.init(config, which, root=root)
        start, path = state.params, []
        for _ in range(5):
            state, _info = train.run(config, state, iterations=1, record=())
            path.append(np.asarray(state.params - start))
        paths.append(np.array(path))
    apart, moved = (np.sqrt(np.sum(x**2, (1, 2, 3))) for x in (paths[0] - paths[1], paths[0]))
    return apart / np.where(moved > 0, moved, 1)


@functools.partial(jax.jit, static_argnames=("steps",))
def on_one_batch(config: Config, state: TrainState, rate: Array, *, steps: int) -> tuple[Array, Array, Array]:
    """[steps, R] E[A log π_θ], the batch's least log π_θ, and J before every SGD step on one batch."""
    config = aligned(config)
    expectation: Any = config.expectation
    batch = expectation.collect(config, state)
    prompts = diagnostics.all_prompts(config.policy)

    def body(params: Array, _: None) -> tuple[Array, tuple[Array, Array, Array]]:
        def value(p: Array) -> tuple[Array, tuple[Array, Array]]:
            objective, logp = expectation.objective(config, batch, p)
            return jnp.sum(objective), (objective, jnp.sum(logp, 2))

        grads, (_, logp) = jax.grad(value, has_aux=True)(params)
        seen = batch.rollout.multiplicity > 0
        gain = jnp.sum(batch.rollout.multiplicity * batch.advantages[:, :, 0] * logp, (0, 1))
        gain = gain / jnp.sum(batch.rollout.multiplicity, (0, 1))
        least = jnp.min(jnp.where(seen, logp, 0), (0, 1))
        truth = diagnostics.expected_reward(config.policy, config.task, params, prompts)
        return params + rate * grads, (gain, least, truth)

    return jax.lax.scan(body, state.params, length=steps)[1]


def one_batch(root: int, tables: int, steps: int) -> xr.Dataset:
    """Powers of two of μ on one batch at η = 1: what A log π, the rarest output and J do."""
    given = problem(root, TREE, tables=tables, kind="graded")
    cells, marks = grid(kind=np.arange(4), table=np.arange(tables)), 2 ** np.arange(int(np.log2(steps)) + 1)
    found = []
    for group in (None, GROUP):
        ones = np.ones(len(cells["table"]))
        config = with_ratio(given, cells["table"], cells["kind"], ones, ones, group)
        paths = on_one_batch(config, train.init(config, cells["table"], root=root), 1.0, steps=steps + 1)
        found.append([np.asarray(path)[marks].reshape(len(marks), 4, tables) for path in paths])
    dims = ("sampling", "mu", "ratio", "batch")
    coords = {"mu": marks, "ratio": list(METHODS[:4])}
    split = np.moveaxis(np.array(found), 1, 0)
    return xr.Dataset({n: (dims, x) for n, x in zip(("gain", "least", "truth"), split, strict=True)}, coords)


def simulate(key, size: str) -> xr.Dataset:
    """Training over learning rates and μ, the identity of frozen steps, and many steps on one batch."""
    tables, iterations, steps = SIZES[size]
    root = int(jax.random.randint(key, (), 0, 2**31 - 1))
    parts = {optimizer: compared(root, tables, iterations, optimizer) for optimizer in RATES}
    apart = {
        f"apart_{name}": (("iteration", "table"), one_step_apart(root, tables, name.split("_")[0], group))
        for name, group in (("SGD_exact", None), ("SGD_sampled", GROUP), ("AdamW_exact", None))
    }
    start = {"start": ("table", at_start(root, tables))}
    return xr.merge([xr.Dataset(parts | apart | start), one_batch(root, min(tables, 64), steps)])


def gaps(data: xr.Dataset, optimizer: str, sampling: str, rule: str, *, base: str = "GRPO") -> xr.DataArray:
    """[table, rate, steps] mean J of one rule minus that of another."""
    values = data[optimizer].sel(sampling=sampling).rename({f"rate_{optimizer}": "rate"})
    return values.sel(rule=rule) - values.sel(rule=base)


def growth(data: xr.Dataset, ratio: str, sampling: str) -> xr.DataArray:
    """[batch] A log π gained by the last step over that gained by half as many, where rewards do not tie."""
    gain = data.gain.sel(ratio=ratio, sampling=sampling) - data.gain.sel(ratio=ratio, sampling=sampling).isel(
        mu=0
    )
    gain = gain.where(gain.isel(mu=-1) != 0).dropna("batch")
    return gain.isel(mu=-1) / gain.isel(mu=-2)


def largest_gap(gap: xr.DataArray, together: float) -> tuple[str, Number]:
    """Where the mean of gaps [table, rate, steps] breaks its margin most, or comes closest to it."""
    cells = {
        f"μ = {steps:g}, η = {rate:g}": mean(
            gap.sel(rate=rate, steps=steps), expected=0.0, tolerance=MARGIN, confidence=together
        )
        for steps in gap.steps.values
        for rate in gap.rate.values
    }
    severity = {False: 2, None: 1, True: 0}
    return max(cells.items(), key=lambda cell: (severity[cell[1].holds], abs(cell[1].value)))


def training(data: xr.Dataset) -> tuple[dict[str, Number], dict[str, Number], dict[str, Number]]:
    """Gaps to clipped GRPO with small steps, the largest over rates and μ > 1, and numbers that only inform.

    The largest is taken over all cells, so its interval holds for all of them at once (Bonferroni).
    """
    cells = len(RATES) * 2 * len(READINGS) * len(RATES["SGD"]) * int(np.sum(STEPS > 1))
    together = 1 - (1 - CONFIDENCE) / cells
    small, large, other = {}, {}, {}
    for optimizer, rates in RATES.items():
        first = 2.0 if optimizer == "SGD" else 8.0
        for sampling in ("exact", "sampled"):
            place = {"rule": "GRPO", f"rate_{optimizer}": rates[0], "steps": first}
            grown = data[optimizer].sel(sampling=sampling, **place) - data.start
            other[f"small steps: {optimizer}, {sampling}, GRPO's mean J over its start"] = mean(grown)
            for reading in READINGS:
                gap = gaps(data, optimizer, sampling, reading)
                label = f"{optimizer}, {sampling}, {reading} − GRPO"
                small[f"small steps: {label}"] = mean(
                    gap.sel(rate=rates[0], steps=first), expected=0.0, tolerance=0.1 * float(grown.mean())
                )
                where, number = largest_gap(gap.sel(steps=STEPS[STEPS > 1]), together)
                large[f"largest gap: {label} ({where})"] = number
                company = gaps(data, optimizer, sampling, reading, base="GRPO unclipped").sel(steps=8.0)
                other[f"μ = 8, η = {rates[2]:g}: {label} unclipped"] = mean(company.sel(rate=rates[2]))
    return small, large, other


def check(data: xr.Dataset):
    """Identities and small steps judge; large steps and the missing bound qualify."""
    same = {name: data[name].sel(steps=1.0, sampling="exact") for name in RATES}
    numbers = {
        "SGD: μ frozen steps of η from one of μη, relative distance": worst(
            np.maximum(data.apart_SGD_exact, data.apart_SGD_sampled), expected=0, tolerance=1e-10
        ),
        **{
            f"{name}: mean J at μ = 1, spread over all methods": worst(
                value.max("rule"), expected=value.min("rule"), tolerance=1e-10
            )
            for name, value in same.items()
        },
    }
    refutes = list(numbers)
    small, large, other = training(data)
    bounds = {
        f"A log π when μ doubles, {ratio}, {sampling}": mean(
            growth(data, ratio, sampling),
            expected=1.5 if ratio in ("GRPO", "score") else None,
            relation="at most",
        )
        for ratio in METHODS[:4]
        for sampling in ("exact", "sampled")
    }
    numbers |= other | small | large | bounds
    for iterations in (1, 5):
        name = f"AdamW: μ frozen steps of η from one of μη, {iterations} iterations"
        numbers[name] = mean(data.apart_AdamW_exact.isel(iteration=iterations - 1))
    qualifies = dict.fromkeys(large, "where a batch moves the policy little")
    qualifies |= {name: "up to a finite μ" for name in bounds if ", score," in name}
    control = [name for name in bounds if ", GRPO," in name]
    return judge(numbers, refutes=[*refutes, *small, *control], qualifies=qualifies)


def draw(figure, data: xr.Dataset) -> None:
    """Above: one batch, many steps. Below: whole training, relative to clipped GRPO."""
    figure.set_size_inches(11.5, 7)
    top, bottom = figure.subfigures(2, 1)
    axes = top.subplots(1, 3)
    _draw_one_batch(axes, data)
    axes[0].legend(frameon=False, fontsize=8)
    below = bottom.subplots(1, 4)
    places = [(optimizer, sampling) for optimizer in RATES for sampling in ("exact", "sampled")]
    for axis, place in zip(below, places, strict=True):
        _draw_training(axis, data, *place)
    handles, labels = below[0].get_legend_handles_labels()
    bottom.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    below[0].set_ylabel("mean J − that of GRPO")
    for axis in (*axes, *below):
        axis.spines[["top", "right"]].set_visible(False)


def _draw_one_batch(axes, data: xr.Dataset) -> None:
    for ratio in METHODS[:4]:
        for sampling, style in (("exact", "-"), ("sampled", "--")):
            at = data.sel(ratio=ratio, sampling=sampling).mean("batch")
            label = ratio if sampling == "exact" else None
            rise = at.gain - at.gain.isel(mu=0)
            for axis, curve in zip(axes, (rise[1:], -at.least, at.truth), strict=True):
                axis.plot(curve.mu, curve, style, color=COLORS[ratio], lw=1.5, label=label)
    marks = np.array([16, 1024])
    axes[0].plot(marks, 0.02 * marks, color="0.6", lw=0.8, ls=":")
    axes[0].annotate("∝ μ", (300, 3), fontsize=8, color="0.4")
    titles = ("gain of E[A log π$_θ$]", "−log π$_θ$ of the rarest output", "J")
    for axis, title, scale in zip(axes, titles, ("log", "log", "linear"), strict=True):
        axis.set(xscale="log", yscale=scale, xlabel="inner steps μ on one batch, SGD, η = 1")
        axis.set_title(f"{title}; dashed: sampled", fontsize=9)


def _draw_training(axis, data: xr.Dataset, optimizer: str, sampling: str) -> None:
    for rule in METHODS[1:]:
        for steps, style in ((8.0, "-"), (2.0, ":")):
            gap = gaps(data, optimizer, sampling, rule).sel(steps=steps)
            rows = [mean(gap.sel(rate=rate)) for rate in gap.rate.values]
            label = rule if steps == 8 else None
            axis.plot(
                gap.rate, [n.value for n in rows], style, color=COLORS[rule], marker="o", ms=3.5, label=label
            )
            if steps == 8:
                low, high = ([getattr(n, end) for n in rows] for end in ("low", "high"))
                axis.fill_between(gap.rate, low, high, color=COLORS[rule], alpha=0.15, lw=0)
    axis.axhspan(-MARGIN, MARGIN, color="0.93", zorder=0)
    axis.axhline(0, color=COLORS["GRPO"], lw=0.8)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="learning rate η", title=f"{optimizer}, {sampling}\nμ = 8 (dotted: 2); grey: ± {MARGIN}")
    axis.title.set_fontsize(9)
