"""The ten prompts of ``difficulties`` under MaxRL, GRPO and r − r̄, at learning rates equal in effect.

A learning rate is *effective* if it is divided by the rule's mean weight w(p) over prompts: at the start
(``at_constant_rates``), or anew at every step (``at_equal_rates``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import difficulty
from experiments.problems import difficulties, weighings
from experiments.problems.dead_groups import Tabulated
from experiments.problems.optimizers import named
from grpo_jax.exact import gradient_law
from grpo_jax.methods import SHIFT, max_rl, max_rl_successes
from grpo_jax.parts.advantages import Normalized
from grpo_jax.tasks import SequenceTable

PLAIN, GRPO, SUCCESSES, MAXRL = "r − r̄", "GRPO: (r − r̄)/σ", "MaxRL: r/r̄", "MaxRL centred: (r − r̄)/r̄"
SWITCHES = ("advantage.centre", "advantage.spread", "advantage.level", "reduction.length")
NUMBERS = {
    PLAIN: (1.0, 0.0, 0.0), GRPO: (1.0, 1.0, 0.0), SUCCESSES: (0.0, 0.0, 1.0), MAXRL: (1.0, 0.0, 1.0),
}  # fmt: skip
"""Of ``Weighing``: the first three of the switches."""
RULES: dict[str, difficulty.Rule] = {
    PLAIN: difficulty.centred,
    GRPO: difficulty.divided,
    SUCCESSES: difficulty.over_mean,
    MAXRL: partial(difficulty.over_mean, centre=True),
}
LIBRARY: dict[str, Any] = {
    PLAIN: SHIFT, GRPO: Normalized(), SUCCESSES: max_rl_successes.advantage, MAXRL: max_rl.advantage,
}  # fmt: skip
"""The library's advantages for the same."""
SEEN = [0.05, 0.15, 0.25, 0.5, 0.95]
"""Success rates at which the noise of an update is taken."""
LEARNING = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
"""Effective, of one prompt."""
PASSES = 3
"""Runs until effective rates are equal at every step."""


def identities() -> xr.Dataset:
    """Largest gaps of the library's update to all ``groups`` of 4 in NumPy, and of MaxRL's to its
    ``objective``, ∇J_G = Σ_k (1 − p)^(k−1) ∇p, k up to G; the centred form's ends at G − 1."""

    def gap(name: str, size: int) -> float:
        def weight(p: float) -> float:
            return sum((1 - p) ** k for k in range(size - (name == MAXRL)))

        return weighings.gap_to_weight(LIBRARY[name], weight, group_size=size, seed=3)

    groups = [weighings.gap_to_groups(LIBRARY[n], rule, group_size=4, seed=3) for n, rule in RULES.items()]
    objective = [[gap(name, size) for name in (SUCCESSES, MAXRL)] for size in (4, 8)]
    return xr.Dataset({
        "groups": xr.DataArray(groups, {"rule": list(RULES)}),
        "objective": xr.DataArray(objective, {"group_size": [4, 8], "rule": [SUCCESSES, MAXRL]}),
    })  # fmt: skip


def signal() -> xr.DataArray:
    """‖mean‖²/trace of the covariance of one update of one prompt, groups of 8, by rule and success rate."""
    task = SequenceTable(space=difficulties.SPACE, table=difficulties.RIGHT[None])
    found = np.zeros((len(NUMBERS), len(SEEN)))
    for i, (centre, spread, level) in enumerate(NUMBERS.values()):
        advantage = difficulties.Weighing(centre=centre, spread=spread, level=level)
        config = difficulties.config(advantage, group_size=8)
        for j, logits in enumerate(difficulties.logits(np.array(SEEN))):
            policy = gj.TreePolicy(space=difficulties.SPACE, logits=logits[None])
            alone = gj.Config(policy=policy, task=task, method=config.method, loop=config.loop)
            found[i, j] = gradient_law(alone, jnp.asarray(logits[None])).signal_to_noise
    return xr.DataArray(found, {"rule": list(RULES), "prompt": SEEN})


def switches(rates: np.ndarray, group_size: int) -> dict[str, tuple[float, ...]]:
    """Every rule as values of ``SWITCHES``, the last the mean of its w over prompts at the start."""
    return {name: (*NUMBERS[name], w) for name, w in mean_weights(rates, group_size).items()}


def mean_weights(rates: np.ndarray, group_size: int) -> dict[str, float]:
    """w of every rule, mean over prompts of these success rates."""
    return {name: float(difficulty.weight_of(rule, rates, group_size).mean()) for name, rule in RULES.items()}


def at_constant_rates(seed: int, size: Any, group_size: int) -> xr.DataArray:
    """Success rates by rule, at constant learning rates that are equal in effect at the start."""
    axes = {SWITCHES: switches(difficulties.PROMPTS, group_size)}
    given = difficulties.config(difficulties.Weighing(), group_size=group_size)
    found = difficulties.trained(
        given, axes, LEARNING, iterations=size.iterations, seeds=size.seeds, root=seed
    )
    return named(found, {SWITCHES: "rule"})


def at_equal_rates(seed: int, size: Any, group_size: int) -> xr.Dataset:
    """Success rates by rule, and by how much effective learning rates, equal at every step, are ``off``.

    A rate is divided at every step by the mean weight over prompts and runs, which the pass before found.
    """
    base = difficulties.config(difficulties.Weighing(), group_size=group_size)
    schedule: Any = Tabulated(rates=np.ones(size.iterations))
    given = replace(base, optimizer=gj.SGD(learning_rate=schedule))
    paths = (*SWITCHES[:3], "optimizer.learning_rate.rates")
    grid = np.linspace(0, 1, 2001)[1:-1]
    known = {name: difficulty.weight_of(rule, grid, group_size) for name, rule in RULES.items()}
    start = mean_weights(difficulties.PROMPTS, group_size)
    settings = {f"{name}, {rate:g}": (name, rate) for name in RULES for rate in LEARNING}
    factors = {key: np.full(size.iterations, 1 / start[name]) for key, (name, _) in settings.items()}
    for _ in range(PASSES):
        rates = {key: len(difficulties.PROMPTS) * rate * factors[key] for key, (_, rate) in settings.items()}
        axis = {key: (*NUMBERS[name], rates[key]) for key, (name, _) in settings.items()}
        data = gj.sweep(
            given, {paths: axis}, seeds=size.seeds, root=seed, iterations=size.iterations, record_every=1,
            record=["prompt_reward"], record_start=True, progress=False,
        ).prompt_reward  # fmt: skip
        rows, off = named(data, {paths: "setting", "context": "prompt"}), []
        for key, (name, _) in settings.items():
            seen = rows.sel(setting=key).isel(iteration=slice(-1))
            weight = xr.apply_ufunc(np.interp, seen, grid, known[name], input_core_dims=[[], ["n"], ["n"]])
            mean_weight = weight.mean(["seed", "prompt"])
            off.append(abs(mean_weight * factors[key] - 1).max("iteration"))
            factors[key] = 1 / mean_weight.values
    seldom = rows.isel(iteration=slice(None, None, max(size.iterations // 20, 1)))
    found = xr.Dataset({"rate": seldom, "off": xr.concat(off, xr.Variable("setting", list(settings)))})
    labels = [[f"{name}, {rate:g}" for rate in LEARNING] for name in RULES]
    place = xr.DataArray(labels, {"rule": list(RULES), "learning_rate": LEARNING})
    found = found.sel(setting=place).drop_vars("setting")
    return found.assign_coords(prompt=difficulties.PROMPTS.round(12))
