"""A million complete runs, and the cost of a run from a thousand on; each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.case import Case, Shape

RUNS = (1_000, 10_000, 100_000, 1_000_000)
CHILD = """
import json, sys
from benchmarks.scale import measured
print(json.dumps(measured(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "stream")))
"""


def measured(runs: int, record_every: int, stream: bool) -> dict[str, float]:
    """Seconds and peak memory of one sweep in this process: K 8, Q 4, G 8, μ 2, 100 iterations."""
    import resource
    import tempfile
    import time

    from benchmarks.implementations.ours import configuration
    from grpo_jax.sweeps import sweep

    config = configuration(Case(Shape(8, 4, 8, 2), runs=runs, iterations=100))
    record = ("expected_reward", "entropy", "kl_ref", "clip_fraction_high")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        data = sweep(
            config,
            seeds=runs,
            iterations=100,
            record_every=record_every,
            record=record,
            out=folder if stream else None,
            progress=False,
        )
        seconds = time.perf_counter() - start
        finite = bool(data["finite"].isel(iteration=-1).values.all())
        attributes = dict(data.attrs)
        data.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "runs": runs,
        "seconds": seconds,
        "running": attributes["run_seconds"],
        "compiling": attributes["compile_seconds"],
        "peak GiB": peak,
        "microseconds a run": attributes["run_seconds"] / runs * 1e6,
        "all finite": finite,
    }


def main(rounds: int) -> dict[str, Any]:
    """The cost of a run by sweep width, then every iteration streamed to disk."""
    from benchmarks.measure import machine

    found: dict[str, Any] = {"machine": machine(), "thinned": []}
    for runs in RUNS:
        found["thinned"].append(_child(runs, 25, "keep"))
    costs = [entry["microseconds a run"] for entry in found["thinned"]]
    found["greatest over least cost a run"] = max(costs) / min(costs)
    found["streamed"] = _child(RUNS[-1], 1, "stream")
    print(f"cost a run, greatest over least: {max(costs) / min(costs):.2f} (target 1.10)")
    return found


def _child(runs: int, record_every: int, mode: str) -> dict[str, float]:
    command = [sys.executable, "-c", CHILD, str(runs), str(record_every), mode]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{mode}, every {record_every}:", ", ".join(f"{k} {v:.4g}" for k, v in result.items()), flush=True)
    return result
