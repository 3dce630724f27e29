"""What a sampler of its own costs: time and memory of engines and queues, against the old policy's."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np

import grpo_jax as gj
from benchmarks.case import Case, Shape
from benchmarks.implementations.ours import configuration, sweeping
from grpo_jax import train
from grpo_jax.parts.sampler import SamplerMismatch

CASE = Case(Shape(8, 4, 8, 2), runs=5120, iterations=50)
ENGINES: dict[str, gj.Behavior | None] = {
    "the old policy": None,
    "temperature": gj.Behavior(decoding=gj.Decoding(temperature=1.2)),
    "top-p": gj.Behavior(decoding=gj.Decoding(top_p=0.9)),
    "noise, fixed": gj.Behavior(mismatch=gj.Noise(scale=0.1)),
    "noise, fresh": gj.Behavior(mismatch=gj.Noise(scale=0.1, fresh=True)),
    "bfloat16": gj.Behavior(mismatch=gj.Rounded()),
    "1 iteration old": gj.Behavior(age=gj.Age(lag=1, depth=1)),
    "4 iterations old": gj.Behavior(age=gj.Age(lag=4, depth=4)),
    "16 iterations old": gj.Behavior(age=gj.Age(lag=16, depth=16)),
    "0 to 4 iterations old": gj.Behavior(age=gj.Age(lag=0, spread=4, depth=4)),
}


def state_bytes(config: gj.Config) -> int:
    """Of one run's state."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: train.start(config, np.uint32(0), 0)))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def main(rounds: int, case: Case = CASE) -> dict[str, Any]:
    """Interleaved rounds of all engines, each with truncated importance weights; prints ratios of medians."""
    from benchmarks.measure import PAUSE, machine

    base = dataclasses.replace(configuration(case), expectation=gj.Counts())
    method = dataclasses.replace(base.method, corrections=(SamplerMismatch(),))
    configs = {name: dataclasses.replace(base, behavior=b, method=method) for name, b in ENGINES.items()}
    runs = {name: sweeping(config, case, tune=False) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            if i:
                seconds[name].append(time.perf_counter() - start)
    first = float(np.median(seconds["the old policy"]))
    found = {}
    print("| sampler | time, against the old policy's | bytes of a run's state |\n|---|---|---|")
    for name, config in configs.items():
        found[name] = {"ratio": float(np.median(seconds[name])) / first, "bytes": state_bytes(config)}
        print(f"| {name} | {found[name]['ratio']:.2f} | {found[name]['bytes']} |")
    return {"machine": machine(), "engines": found, "seconds": seconds}
