"""The fused kernel against the general path, through ``sweep``; of use on a GPU alone."""

from __future__ import annotations

import statistics
from typing import Any

import jax

from benchmarks.case import Case, Shape
from benchmarks.implementations.ours import configuration
from benchmarks.measure import machine
from grpo_jax.sweeps import sweep

RECORD = ("expected_reward", "entropy", "kl_ref", "clip_fraction_high")
CASE = Case(Shape(8, 4, 8, 2), runs=1_048_576, iterations=1000)
TOY = Case(Shape(2, 1, 2, 1), runs=256, iterations=50)
"""What an interpreted kernel can do in seconds, so that the command runs anywhere."""


def main(rounds: int) -> dict[str, Any]:
    """Interleaved rounds of both paths; prints million updates a second and what compiling takes."""
    case = CASE if jax.default_backend() == "gpu" else TOY
    if case is TOY:
        print("No GPU: the kernel is interpreted, which is no measure of its speed.")
    paths = {"general": False, "fused": True}
    running: dict[str, list[float]] = {name: [] for name in paths}
    found: dict[str, Any] = {"machine": machine(), "interpreted": case is TOY}
    for round_ in range(rounds + 1):
        for name, fused in paths.items():
            data = sweep(
                configuration(case),
                seeds=case.runs,
                iterations=case.iterations,
                record_every=25,
                record=RECORD,
                fused=fused,
                progress=False,
            )
            if round_ == 0:
                found[name] = {"compiling": data.attrs["compile_seconds"], "fused": data.attrs["fused"]}
            else:
                running[name].append(data.attrs["updates"] / data.attrs["run_seconds"] / 1e6)
    for name, rates in running.items():
        found[name] |= {"million updates a second": statistics.median(rates)}
        print(f"{name}: {found[name]}", flush=True)
    return found
