"""PyTorch, eager, gradient by autograd, fused-by-hand AdamW; the group as counts; arrays [Q, K, S]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.case import Case, Result, Unavailable

NAME = "torch, eager"
NOTE = "autograd; torch's own threads and generator"

try:
    import torch
except ImportError:
    torch = None


def counts(p, u):
    """[Q, K, S] histogram of inverse-CDF samples."""
    upto = torch.cumsum(p, 1)
    level = u * upto[:, -1:]
    below = sum((level[:, g : g + 1] < upto[:, :-1]).to(p.dtype) for g in range(u.shape[1]))
    full = torch.full_like(below[:, :1], u.shape[1])
    return torch.diff(torch.cat([torch.zeros_like(full), below, full], 1), dim=1)


def advantages(n, table, group: int):
    """[Q, K, S] rewards normalised within the group; 0 for ties."""
    deviation = table - (n * table).sum(1, keepdim=True) / group
    spread = torch.sqrt((n * deviation**2).sum(1, keepdim=True) / group)
    tied = n.amax(1, keepdim=True) == group
    return torch.where(tied, 0, deviation / torch.where(tied, 1, spread))


def held_by_clip(case: Case, ratio, a):
    """Where the clip holds the gain."""
    return ((ratio > 1 + case.clip) & (a > 0)) | ((ratio < 1 - case.clip) & (a < 0))


def surrogate(case: Case, theta, old, ref, w, a):
    """(loss, share held by the clip [S])."""
    logp = torch.log_softmax(theta, 1)
    ratio = torch.exp(logp - old)
    held = held_by_clip(case, ratio, a)
    x = ref - logp
    terms = w * (torch.where(held, ratio.detach(), ratio) * a - case.kl_coef * (torch.exp(x) - x - 1))
    return -terms.sum(), (w * held).sum((0, 1))


def autograd(case: Case, theta, old, ref, w, a):
    """(gradient, share held by the clip)."""
    theta = theta.detach().requires_grad_()
    loss, share = surrogate(case, theta, old, ref, w, a)
    return torch.autograd.grad(loss, theta)[0], share


def by_hand(case: Case, theta, old, ref, w, a):
    """(gradient, share held by the clip), written out for the compiler."""
    logp = torch.log_softmax(theta, 1)
    ratio = torch.exp(logp - old)
    held = held_by_clip(case, ratio, a)
    pull = w * (torch.where(held, 0, ratio * a) - case.kl_coef * (1 - torch.exp(ref - logp)))
    return torch.exp(logp) * pull.sum(1, keepdim=True) - pull, (w * held).sum((0, 1))


def iteration(case: Case, gradient, theta, m, v, ref, table, u, corrections):
    """One iteration: (theta, m, v, diagnostics [4, S]); ``corrections`` [μ, 2] are Adam's 1 − b^t."""
    shape, clipped = case.shape, 0
    old = torch.log_softmax(theta, 1)
    n = counts(torch.exp(old), u)
    a, w = advantages(n, table, shape.group), n / (shape.questions * shape.group)
    for step in range(shape.inner):
        g, share = gradient(case, theta, old, ref, w, a)
        clipped = clipped + share
        m = case.b1 * m + (1 - case.b1) * g
        v = case.b2 * v + (1 - case.b2) * g * g
        up = (m / corrections[step, 0]) / (torch.sqrt(v / corrections[step, 1]) + case.eps)
        theta = theta - case.learning_rate * (torch.where(m == 0, 0, up) + case.weight_decay * theta)
    logp = torch.log_softmax(theta, 1)
    p = torch.exp(logp)
    means = [(p * table).sum(1).mean(0), -(p * logp).sum(1).mean(0), (p * (logp - ref)).sum(1).mean(0)]
    return theta, m, v, torch.stack([*means, clipped / shape.inner])


def sweep(case: Case, draws: np.ndarray | None, step) -> Callable[[], Result]:
    """The whole sweep with a given iteration."""
    shape, kind = case.shape, torch.float64 if case.double else torch.float32
    table = torch.tensor(case.table, dtype=kind)[:, :, None]
    given = None if draws is None else torch.tensor(draws, dtype=kind)
    powers = np.arange(1, case.iterations * shape.inner + 1)
    corrections = torch.tensor(1 - np.stack([case.b1**powers, case.b2**powers], 1), dtype=kind)
    corrections = corrections.reshape(case.iterations, shape.inner, 2)

    def run() -> Result:
        theta = torch.zeros((shape.questions, shape.actions, case.runs), dtype=kind)
        ref, m, v, found = torch.log_softmax(theta, 1), torch.zeros_like(theta), torch.zeros_like(theta), []
        for i in range(case.iterations):
            size = (shape.questions, shape.group, case.runs)
            u = given[i] if given is not None else torch.rand(size, dtype=kind)
            theta, m, v, seen = step(theta, m, v, ref, table, u, corrections[i])
            found.append(seen)
        return Result.split(torch.stack(found).numpy())

    run()
    return run


def prepare(case: Case, draws: np.ndarray | None) -> Callable[[], Result]:
    """Eager."""
    if torch is None:
        raise Unavailable("torch is not installed")
    return sweep(case, draws, lambda *arrays: iteration(case, autograd, *arrays))
