"""Numba: one run at a time in plain loops, runs in parallel, fast-math."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from benchmarks.case import Case, Result, Unavailable

NAME = "numba"
NOTE = "prange over runs on all cores, fastmath; a 32-bit counter hash as generator"


@functools.cache
def _kernel():
    try:
        import numba
    except ImportError as error:
        raise Unavailable("numba is not installed") from error
    fast = numba.njit(fastmath=True, inline="always")

    @fast
    def uniform(seed, counter):
        x = np.uint32(seed * np.uint32(0x9E3779B9) ^ counter * np.uint32(0x85EBCA6B))
        x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
        x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
        return np.uint32(x ^ (x >> np.uint32(16))) >> np.uint32(8)

    @fast
    def log_softmax(theta, out):
        top, total = theta[0], theta[0] * 0
        for k in range(theta.size):
            top = max(top, theta[k])
        for k in range(theta.size):
            total += math.exp(theta[k] - top)
        shift = top + math.log(total)
        for k in range(theta.size):
            out[k] = theta[k] - shift

    @fast
    def collect(old, table, given, use_given, seed, counter, weight, advantage, group, scale):
        kind, actions = old.dtype.type, old.size
        upto, running = advantage, kind(0)
        for k in range(actions):
            running += math.exp(old[k])
            upto[k], weight[k] = running, kind(0)
        for g in range(group):
            u = given[g] if use_given else kind(uniform(seed, np.uint32(counter + g))) * kind(2.0**-24)
            low, high = 0, actions - 1
            while low < high:
                middle = (low + high) // 2
                if u * running < upto[middle]:
                    high = middle
                else:
                    low = middle + 1
            weight[low] += kind(1)
        mean, square, tied = kind(0), kind(0), False
        for k in range(actions):
            mean += weight[k] * table[k] / kind(group)
            tied = tied or weight[k] == group
        for k in range(actions):
            square += weight[k] * (table[k] - mean) ** 2
        inverse = kind(0) if tied else kind(1) / math.sqrt(square / kind(group))
        for k in range(actions):
            advantage[k] = (table[k] - mean) * inverse
            weight[k] *= scale

    @numba.njit(fastmath=True, parallel=True)
    def kernel(found, table, draws, use_draws, group, inner, numbers):
        kind = table.dtype.type
        lr, clip, coef, b1, b2, eps, decay = numbers
        iterations, _, runs = found.shape
        questions, actions = table.shape
        for s in numba.prange(runs):
            theta, m, v = (
                np.zeros(table.shape, kind),
                np.zeros(table.shape, kind),
                np.zeros(table.shape, kind),
            )
            old, weight = np.empty(table.shape, kind), np.empty(table.shape, kind)
            advantage, logp = np.empty(table.shape, kind), np.empty(actions, kind)
            pull, p = np.empty(actions, kind), np.empty(actions, kind)
            given, scale = np.empty(group, kind), kind(1) / kind(questions * group)
            ref, p1, p2 = kind(-math.log(actions)), kind(1), kind(1)
            for i in range(iterations):
                clipped = kind(0)
                for q in range(questions):
                    log_softmax(theta[q], old[q])
                    if use_draws:
                        for g in range(group):
                            given[g] = draws[i, q, g, s]
                    counter = np.uint32((i * questions + q) * group)
                    collect(
                        old[q],
                        table[q],
                        given,
                        use_draws,
                        np.uint32(s),
                        counter,
                        weight[q],
                        advantage[q],
                        group,
                        scale,
                    )
                for _ in range(inner):
                    p1, p2 = p1 * b1, p2 * b2
                    c1, c2 = kind(1) / (kind(1) - p1), kind(1) / (kind(1) - p2)
                    for q in range(questions):
                        log_softmax(theta[q], logp)
                        total = kind(0)
                        for k in range(actions):
                            a, w = advantage[q, k], weight[q, k]
                            ratio = math.exp(logp[k] - old[q, k])
                            held = (ratio > 1 + clip and a > 0) or (ratio < 1 - clip and a < 0)
                            clipped += w if held else kind(0)
                            p[k] = math.exp(logp[k])
                            gain = kind(0) if held else ratio * a
                            pull[k] = w * (gain - coef * (kind(1) - math.exp(ref - logp[k])))
                            total += pull[k]
                        for k in range(actions):
                            g = p[k] * total - pull[k]
                            m[q, k] = b1 * m[q, k] + (kind(1) - b1) * g
                            v[q, k] = b2 * v[q, k] + (kind(1) - b2) * g * g
                            up = m[q, k] * c1 / (math.sqrt(v[q, k] * c2) + eps)
                            up = kind(0) if m[q, k] == 0 else up
                            theta[q, k] -= lr * (up + decay * theta[q, k])
                reward, entropy, kl = kind(0), kind(0), kind(0)
                for q in range(questions):
                    log_softmax(theta[q], logp)
                    for k in range(actions):
                        probability = math.exp(logp[k])
                        reward += probability * table[q, k]
                        entropy -= probability * logp[k]
                        kl += probability * (logp[k] - ref)
                found[i, 0, s], found[i, 1, s] = reward / questions, entropy / questions
                found[i, 2, s], found[i, 3, s] = kl / questions, clipped / inner

    return kernel


def prepare(case: Case, draws: np.ndarray | None) -> Callable[[], Result]:
    """Compiles for the case's dtype on the first call."""
    kernel, kind, shape = _kernel(), case.dtype, case.shape
    given = np.zeros((1, 1, 1, 1), kind) if draws is None else np.ascontiguousarray(draws, kind)
    names = (case.learning_rate, case.clip, case.kl_coef, case.b1, case.b2, case.eps, case.weight_decay)
    numbers, table = tuple(kind(x) for x in names), case.table.astype(kind)

    def run() -> Result:
        found = np.empty((case.iterations, 4, case.runs), kind)
        kernel(found, table, given, draws is not None, shape.group, shape.inner, numbers)
        return Result.split(found)

    run()
    return run
