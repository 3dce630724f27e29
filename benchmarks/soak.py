"""Sweeps for half an hour in one process: whether memory, open files, mappings or threads grow."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import grpo_jax as gj
from grpo_jax import methods
from grpo_jax.parts.gains import Clip
from grpo_jax.sweeps.dataset import non_finite

ROWS = 15
"""Rows of the table."""
COLUMNS = ("minutes", "sweeps", "structures", "MiB", "files", "mappings", "threads")


def config(**changes: Any) -> gj.Config:
    """Two contexts, three answers."""
    base = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=[[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]]),
        loop=gj.Loop(group_size=4, inner_steps=2),
    )
    return dataclasses.replace(base, **changes)


def of_one_s_own() -> gj.Method:
    """A method with a part whose class is new each time: no program of an earlier one serves it."""

    @gj.part
    class Mine:
        low: float = gj.number(0.2, low=0.0)
        high: float = gj.number(0.2, low=0.0)

        def __call__(self, at: Any) -> Any:
            return Clip(low=self.low, high=self.high)(at)

    return dataclasses.replace(methods.grpo, gain=Mine())


def structures() -> Iterator[gj.Config]:
    """Ever new ones: every method, group size and number of steps by turns, and a part of one's own."""
    names = sorted(methods.METHODS)
    for i in itertools.count():
        if i % 4 == 3:
            yield config(method=of_one_s_own())
            continue
        loop = gj.Loop(group_size=2 + i // len(names) % 61, inner_steps=1 + i % 3)
        yield config(method=methods.METHODS[names[i % len(names)]], loop=loop)


def once(config: gj.Config, folder: Path | None) -> None:
    """One sweep, looked at as its user would: the numbers, and what is on disk."""
    data = gj.sweep(
        config,
        {"learning_rate": np.linspace(0.001, 0.1, 16)},
        seeds=64,
        iterations=20,
        record_every=10,
        record=("expected_reward", "entropy"),
        out=folder,
        progress=False,
    )
    if folder is not None:
        data = gj.load(folder)
    if (told := non_finite(data)) is not None:
        raise RuntimeError(told)


def held() -> dict[str, float]:
    """What this process holds now; NaN where the system does not say."""
    own = Path("/proc/self")
    if not own.exists():
        return dict.fromkeys(COLUMNS[3:], float("nan"))
    status = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines())
    return {
        "MiB": int(status["VmRSS"].split()[0]) / 1024,
        "files": len(list((own / "fd").iterdir())),
        "mappings": len((own / "maps").read_bytes().splitlines()),
        "threads": threading.active_count(),
    }


def main(minutes: float) -> dict[str, Any]:
    """A table over time, and each column's slope over its second half.

    By turns a sweep of a structure that was there before, the same with a folder, and one of a new structure.
    """
    from benchmarks.measure import machine

    began, rows = time.monotonic(), list[dict[str, float]]()
    sweeps = seen = 0
    new = structures()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    while len(rows) <= ROWS:
        once(config(), None)
        with tempfile.TemporaryDirectory() as folder:
            once(config(), Path(folder))
        once(next(new), None)
        sweeps, seen = sweeps + 3, seen + 1
        if (passed := (time.monotonic() - began) / 60) >= len(rows) * minutes / ROWS:
            gc.collect()
            rows.append({"minutes": passed, "sweeps": sweeps, "structures": seen} | held())
            print(f"| {' | '.join(f'{rows[-1][c]:.4g}' for c in COLUMNS)} |", flush=True)
    slopes = {column: slope(rows, column) for column in COLUMNS[3:]}
    print("a minute, over the second half: " + ", ".join(f"{c} {v:+.3g}" for c, v in slopes.items()))
    return {"machine": machine(), "minutes": minutes, "rows": rows, "a minute": slopes}


def slope(rows: list[dict[str, float]], column: str) -> float:
    """A minute, by least squares over the second half of the rows."""
    late = rows[len(rows) // 2 :]
    return float(np.polyfit([row["minutes"] for row in late], [row[column] for row in late], 1)[0])
