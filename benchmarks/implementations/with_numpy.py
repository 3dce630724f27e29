"""NumPy, vectorised over the sweep: arrays [Q, K, S], the group as counts, the gradient by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.case import Case, Result

NAME = "numpy"
NOTE = "one thread, the whole sweep in each array; its own PCG64 generator"


def log_softmax(theta: np.ndarray) -> np.ndarray:
    """Over actions, axis 1."""
    shifted = theta - theta.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def counts(p: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """[Q, K, S] histogram of inverse-CDF samples; one sample of all runs at a time."""
    upto = np.cumsum(p, 1)
    level = uniforms * upto[:, -1:]
    below = np.zeros_like(upto)
    for g in range(uniforms.shape[1]):
        below[:, :-1] += level[:, g : g + 1] < upto[:, :-1]
    below[:, -1] = uniforms.shape[1]
    below[:, 1:] -= below[:, :-1].copy()
    return below


def advantages(n: np.ndarray, table: np.ndarray, group: int) -> np.ndarray:
    """[Q, K, S] rewards normalised within the group; 0 for ties."""
    mean = (n * table).sum(1, keepdims=True) / group
    deviation = table - mean
    spread = np.sqrt((n * deviation**2).sum(1, keepdims=True) / group)
    tied = n.max(1, keepdims=True) == group
    return np.where(tied, 0, deviation / np.where(tied, 1, spread))


def gradient(case: Case, theta: np.ndarray, old: np.ndarray, ref: np.ndarray, w: np.ndarray, a: np.ndarray):
    """Gradient of the loss in the logits, and the share held by the clip [S]."""
    logp = log_softmax(theta)
    ratio = np.exp(logp - old)
    held = ((ratio > 1 + case.clip) & (a > 0)) | ((ratio < 1 - case.clip) & (a < 0))
    pull = w * (np.where(held, 0, ratio * a) - case.kl_coef * (1 - np.exp(ref - logp)))
    return np.exp(logp) * pull.sum(1, keepdims=True) - pull, (w * held).sum((0, 1))


def prepare(case: Case, draws: np.ndarray | None) -> Callable[[], Result]:
    """The sweep as it stands, nothing to compile."""
    shape, kind = case.shape, case.dtype
    table = case.table.astype(kind)[:, :, None]
    generator = np.random.default_rng(0)
    size = (shape.questions, shape.group, case.runs)

    def run() -> Result:
        theta = np.zeros((shape.questions, shape.actions, case.runs), kind)
        ref, m, v, count = log_softmax(theta), np.zeros_like(theta), np.zeros_like(theta), 0
        found = np.empty((case.iterations, 4, case.runs), kind)
        for i in range(case.iterations):
            old = log_softmax(theta)
            u = draws[i] if draws is not None else generator.random(size, kind)
            n = counts(np.exp(old), u)
            a, w, clipped = advantages(n, table, shape.group), n / (shape.questions * shape.group), 0
            for _ in range(shape.inner):
                g, share = gradient(case, theta, old, ref, w, a)
                count, clipped = count + 1, clipped + share
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
        return Result.split(found)

    return run
