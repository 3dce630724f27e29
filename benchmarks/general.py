"""The general path: any method on noisy rewards, one a sample, against NumPy doing the same."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.case import Case, Shape
from benchmarks.implementations.ours import configuration, sweeping
from benchmarks.implementations.with_numpy import log_softmax

CASE = Case(Shape(8, 4, 8, 2), runs=5120, iterations=10)


def ours(case: Case) -> Callable[[], Any]:
    """Bernoulli rewards, so no histogram can stand for the samples."""
    from grpo_jax.collectors import Sampled
    from grpo_jax.tasks.noise import Bernoulli
    from grpo_jax.tasks.questions import Questions

    task = Questions(table=case.table, noise=Bernoulli())
    config = dataclasses.replace(configuration(case), task=task, expectation=Sampled())
    return sweeping(config, case, tune=False)


def with_numpy(case: Case) -> Callable[[], Any]:
    """Samples [Q, G, S], rewards of their own, scatter of the gradient through one-hot rows."""
    shape, kind = case.shape, case.dtype
    generator = np.random.default_rng(0)
    table = case.table.astype(kind)[:, :, None]
    size = (shape.questions, shape.group, case.runs)
    actions = np.arange(shape.actions)[None, None, :, None]

    def run() -> np.ndarray:
        theta = np.zeros((shape.questions, shape.actions, case.runs), kind)
        ref, m, v, count = log_softmax(theta), np.zeros_like(theta), np.zeros_like(theta), 0
        found = np.empty((case.iterations, 4, case.runs), kind)
        for i in range(case.iterations):
            old = log_softmax(theta)
            upto = np.cumsum(np.exp(old), 1)
            level = generator.random(size, kind) * upto[:, -1:]
            chosen = (level[:, :, None] >= upto[:, None, :-1]).sum(2)
            hot = (chosen[:, :, None] == actions).astype(kind)
            means = np.take_along_axis(np.broadcast_to(table, theta.shape), chosen, 1)
            r = (generator.random(size, kind) < means).astype(kind)
            deviation = r - r.mean(1, keepdims=True)
            spread = r.std(1, keepdims=True)
            a = np.where(spread == 0, 0, deviation / np.where(spread == 0, 1, spread))
            old_chosen, ref_chosen = (np.take_along_axis(x, chosen, 1) for x in (old, ref))
            w, clipped = kind(1 / (shape.questions * shape.group)), 0
            for _ in range(shape.inner):
                full = log_softmax(theta)
                logp = np.take_along_axis(full, chosen, 1)
                ratio = np.exp(logp - old_chosen)
                held = ((ratio > 1 + case.clip) & (a > 0)) | ((ratio < 1 - case.clip) & (a < 0))
                pull = w * (np.where(held, 0, ratio * a) - case.kl_coef * (1 - np.exp(ref_chosen - logp)))
                g = np.exp(full) * pull.sum(1, keepdims=True) - (hot * pull[:, :, None]).sum(1)
                count, clipped = count + 1, clipped + held.mean((0, 1))
                m = case.b1 * m + (1 - case.b1) * g
                v = case.b2 * v + (1 - case.b2) * g * g
                up = m / (1 - case.b1**count) / (np.sqrt(v / (1 - case.b2**count)) + case.eps)
                theta = theta - case.learning_rate * (np.where(m == 0, 0, up) + case.weight_decay * theta)
            logp = log_softmax(theta)
            p = np.exp(logp)
            found[i, 0] = (p * table).sum(1).mean(0)
            found[i, 1] = -(p * logp).sum(1).mean(0)
            found[i, 2] = (p * (logp - ref)).sum(1).mean(0)
            found[i, 3] = clipped / shape.inner
        return found

    return run


def main(rounds: int, case: Case = CASE) -> dict[str, Any]:
    """Interleaved rounds of both; prints and returns the ratio."""
    from benchmarks.measure import PAUSE, machine

    sides = {"grpo_jax": ours(case), "numpy": with_numpy(case)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    core: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name, run in sides.items():
            time.sleep(PAUSE)
            start, busy = time.perf_counter(), time.process_time()
            run()
            if i:
                seconds[name].append(time.perf_counter() - start)
                core[name].append(time.process_time() - busy)
    rate = {name: case.updates / float(np.median(s)) / 1e6 for name, s in seconds.items()}
    per_core = {name: case.updates / min(s) / 1e6 for name, s in core.items()}
    for name in sides:
        print(f"{name}: {rate[name]:.3g} million updates a second, {per_core[name]:.3g} a core-second")
    print(f"grpo_jax / numpy: {rate['grpo_jax'] / rate['numpy']:.2f}; target 4")
    return {"machine": machine(), "rate": rate, "per core-second": per_core, "seconds": seconds}
