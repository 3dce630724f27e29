"""A checked configuration on a small task: a tree of answers that end, four prompts of unequal difficulty."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import numpy as np
import xarray as xr

from grpo_jax.ages import Age
from grpo_jax.behavior import Behavior, Rounded
from grpo_jax.check.setting import Setting
from grpo_jax.config import Config, Loop
from grpo_jax.part import leaf_paths, put, put_all, subparts
from grpo_jax.parts.others import Apart
from grpo_jax.parts.reductions import MicroBatches
from grpo_jax.parts.shaping import NormalizedSum, Sum, WeightedSum
from grpo_jax.policies import TreePolicy
from grpo_jax.presets.traits import corrects_sampler
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import Method
from grpo_jax.sweeps import sweep
from grpo_jax.sweeps.dataset import non_finite
from grpo_jax.tasks.trees import Output, tabulated

VOCAB, TOKENS, RATE, ITERATIONS = 4, 5, 0.05, 200
LEANINGS = (2.0, 1.0, 0.0, -1.0)
"""By how much each prompt's policy leans towards the token that is right, in logits."""
MOST_STEPS, MOST_AGE, MOST_GROUP = 16, 8, 64
RECORD = (
    "expected_reward",
    "length",
    "kl_ref",
    "entropy",
    "tied",
    "clip_fraction_high",
    "surrogate",
    "finite",
)


def right(output: Output) -> float:
    """1 iff the last token before the end is token 0; an answer that the budget cuts off never is."""
    return float(len(output) < TOKENS and len(output) > 0 and output[-1] == 0)


def small(
    setting: Setting, *, learning_rate: float = RATE, iterations: int = ITERATIONS
) -> tuple[Config, list[str]]:
    """(configuration of the small task, what had to be changed for it, in words).

    Args:
      setting: what was read.
      learning_rate: the optimizer's.
      iterations: batches of a run, of which old weights are at most one less old.

    Raises:
      ValueError: for a method that this task cannot run.
    """
    at, changed = setting.at, []
    group, steps = min(at.group_size, MOST_GROUP), min(at.minibatches, MOST_STEPS)
    if group < at.group_size:
        changed.append(f"groups of {group}, not {at.group_size}")
    if steps < at.minibatches:
        changed.append(f"{steps} optimizer steps a pass, not {at.minibatches}")
    parts = [part.count for part in subparts(setting.method.reduction) if isinstance(part, MicroBatches)]
    prompts = math.lcm(steps, *parts, len(LEANINGS))
    space = Sequences(vocab=VOCAB, horizon=TOKENS, eos=VOCAB - 1, forbidden=((0, VOCAB - 1),))
    logits = np.zeros((len(LEANINGS), space.offsets[-1], VOCAB))
    logits[:, :, 0] = np.array(LEANINGS)[:, None]
    method, told = shrunk(setting.method)
    changed += told
    behavior = setting.sampling.behavior
    if at.lag is not None:
        lag = min(at.lag, MOST_AGE, iterations - 1)
        if lag < at.lag:
            changed.append(f"weights {lag} batches old, not {at.lag}")
        if lag:
            behavior = dataclasses.replace(behavior or Behavior(), age=Age(lag=lag, depth=lag))
    if behavior is None and corrects_sampler(setting.method):
        behavior = Behavior(mismatch=Rounded())
        changed.append("an engine that holds weights in bfloat16, for the correction to correct")
    config = Config(
        policy=TreePolicy(space=space, logits=logits, decoding=setting.sampling.trainer),
        task=tabulated(space, *[right] * len(LEANINGS)),
        method=method,
        optimizer=at.optimizer,
        loop=Loop(
            group_size=group, prompts=prompts, inner_steps=at.passes, minibatches=steps, refill=at.refill
        ),
        behavior=behavior,
    )
    rates = [path for path in leaf_paths(config.optimizer) if path.rpartition(".")[2] == "learning_rate"]
    for path in rates:
        config = put(config, f"optimizer.{path}", learning_rate)
    changed.append(f"a learning rate of {learning_rate:g}: a table of logits needs more than a network")
    return config, changed


def shrunk(method: Method) -> tuple[Method, list[str]]:
    """The method with its lengths those of the small task."""
    leaves = leaf_paths(method)
    limits = {
        p: float(v)
        for p, v in leaves.items()
        if p.rpartition(".")[2] == "limit" and f"{p[:-5]}buffer" in leaves
    }
    values: dict[str, Any] = {}
    for path, limit in limits.items():
        values[path] = float(TOKENS)
        values[f"{path[:-5]}buffer"] = float(leaves[f"{path[:-5]}buffer"]) / limit * TOKENS
    for path, value in leaves.items():
        if path.startswith("reduction") and path.rpartition(".")[2] == "length" and float(value) > TOKENS:
            values[path] = float(TOKENS)
    shaping = _single(method.shaping)
    told = [] if shaping == method.shaping else ["one reward, so that the weights of several fall away"]
    told += [f"lengths in the method are those of answers of up to {TOKENS} tokens"] if values else []
    made = put_all(method, values)
    return dataclasses.replace(made, shaping=_single(made.shaping)), told


def _single(shaping: Any) -> Any:
    """The same shaping of one reward."""
    if isinstance(shaping, WeightedSum):
        return Sum()
    if isinstance(shaping, (Apart, NormalizedSum)):
        return dataclasses.replace(shaping, weights=())
    inner = getattr(shaping, "inner", None)
    return shaping if inner is None else dataclasses.replace(shaping, inner=_single(inner))


def run(
    setting: Setting,
    *,
    seeds: int = 32,
    iterations: int = ITERATIONS,
    learning_rate: float = RATE,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[xr.Dataset, list[str]]:
    """(curves of the configuration on the small task, what was changed for it).

    Args:
      setting: what was read.
      seeds: runs.
      iterations: batches of each.
      learning_rate: the optimizer's.
      out: folder for the dataset.
      progress: whether a bar is shown.
    """
    config, changed = small(setting, learning_rate=learning_rate, iterations=iterations)
    data = sweep(
        config,
        seeds=seeds,
        iterations=iterations,
        record_every=max(iterations // 40, 1),
        record=RECORD,
        out=out,
        progress=progress,
    )
    return data, changed


def picture(data: xr.Dataset, path: str | os.PathLike[str]) -> list[str]:
    """Draw reward, length, distance and entropy with 99.9 % bands; the paths written."""
    from grpo_jax import plotting

    panels = plotting.panels(rows=2, columns=2, height=5.0)
    for axes, name in zip(panels, ("expected_reward", "length", "kl_ref", "entropy"), strict=True):
        plotting.curves(axes, data[name], over="seed")
    return [str(written) for written in plotting.save(panels, path)]


BARS = "▁▂▃▄▅▆▇█"


def curves(data: xr.Dataset) -> str:
    """Means over seeds as lines of text: start, course, end."""
    lines = []
    for name in RECORD:
        if name == "finite":
            continue
        values = data[name].mean("seed").to_numpy()
        ends = f"{values[0]:8.3g} to {values[-1]:.3g}"
        lines.append(f"  {name:<20}{_spark(values)}  {ends}")
    lines += [f"  {told}" for told in [non_finite(data)] if told]
    return "\n".join(lines)


def _spark(values: np.ndarray) -> str:
    here = np.isfinite(values)
    low, high = (np.min(values[here]), np.max(values[here])) if here.any() else (0.0, 0.0)
    if high == low:
        return "".join(BARS[0] if known else " " for known in here)
    places = (values - low) / (high - low) * (len(BARS) - 1)
    return "".join(BARS[round(float(place))] if np.isfinite(place) else " " for place in places)
